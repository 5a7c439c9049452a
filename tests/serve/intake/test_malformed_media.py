"""Five hundred damaged or hostile pictures and sounds put over HTTP: each is ranked or refused with a reason, none crashes."""

import base64
import contextlib
import http.client
import io
import json
import struct
import zlib
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sounds
import vector_worlds
import vision
from PIL import Image, PngImagePlugin
from served import KEY, call, start

from adrec.serve.door.keys import KEY_VARIABLE

HEADERS = {"X-API-Key": KEY, "content-type": "application/json"}
POLICY = {"top_n": 5, "rules": {"clicked": "keep", "active": False}, "diversity": {"method": "none"}}
COUNT = 500


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Prepared folder and bundle of ads with pictures and sounds."""
    folder = tmp_path_factory.mktemp("malformed")
    made = vector_worlds.make(folder / "raw", ads=30, users=30, requests=400, draw=vision.png)
    (made.folder / "sounds").mkdir()
    ads = pq.read_table(made.folder / "ads.parquet")
    for number in range(len(ads)):
        (made.folder / f"sounds/{number}.wav").write_bytes(sounds.wav([1, 0, number / len(ads)], seed=number))
    ads = ads.append_column("audio", pa.array([f"sounds/{number}.wav" for number in range(len(ads))]))
    pq.write_table(ads, made.folder / "ads.parquet")
    cache = str(folder / "cache")
    prepared = vector_worlds.prepare(
        made, folder / "prepared", ads=(), image={"reference": str(vision.small_vit(folder / "vit")), "cache": cache},
        audio={"reference": str(sounds.small_whisper(folder / "whisper")), "cache": cache},
    )  # fmt: skip
    vector_worlds.train(prepared, folder / "bundle", baselines={"names": []})
    return folder


@pytest.mark.slow
def test_five_hundred_malformed_media_crash_nothing(world, tmp_path):
    server, address = start(
        world, tmp_path / "store.sqlite", HEADERS, environment={KEY_VARIABLE: KEY}, policies={"default": POLICY},
        pictures=str(world / "raw/pictures"), sounds=str(world / "raw/sounds"), intake={"max_body_bytes": 4_000_000},
    )  # fmt: skip
    outcomes, accepted, odd = Counter(), [], []
    try:
        for number, (kind, field, cell) in enumerate(_cells(np.random.default_rng(0))):
            status, told = _put(address, f"m{number}", {"title": "the same words", field: cell})
            assert server.poll() is None, f"{kind} ended the server"
            if status == 200:
                accepted.append(f"m{number}")
            is_told = status == 200 or status in {413, 422} and all(len(reason) > 10 for reason in _reasons(told))
            if not is_told or (status == 200 and kind not in SPARED):
                odd.append((kind, status, told))
            outcomes[kind, status] += 1
        assert not odd
        assert sum(outcomes.values()) == COUNT and len({kind for kind, _ in outcomes}) >= 25
        assert 20 < len(accepted) < COUNT / 2  # some changes of bytes spare the picture, most do not
        call(address, "/health/ready", headers=HEADERS)
        # What was taken is ranked at once, and finitely; of what was refused there is no ad.
        for at in range(0, len(accepted), 50):
            asked = {"requests": [{"user_id": "u0", "candidates": accepted[at : at + 50], "top_n": 50}]}
            (ranked,) = call(address, "/v1/rank", asked, HEADERS)["lists"]
            assert {ad["ad_id"] for ad in ranked["ads"]} <= set(accepted) and ranked["ads"]
        rows = [{"user_id": "u0", "ad_id": ad_id} for ad_id in accepted]
        scores = [row["score"] for row in call(address, "/v1/score", {"rows": rows}, HEADERS)["rows"]]
        assert all(0 < score < 1 for score in scores) and len(set(scores)) > len(accepted) / 4
    finally:
        server.terminate()
        server.wait(timeout=30)
    print({f"{kind} {status}": times for (kind, status), times in sorted(outcomes.items())})


def _put(address, ad_id, body):
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=60)
    try:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before all of it was sent
            connection.request("PUT", f"/v1/ads/{ad_id}", json.dumps(body).encode(), HEADERS)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def _reasons(told):
    return [fault["what"] for fault in told["detail"]] if isinstance(told["detail"], list) else [told["detail"]]


SPARED = {"mutated picture", "mutated sound", "truncated picture", "truncated sound", "another type's name", "large but plain"}
"""Kinds of which some can still be read."""


def _cells(rng):
    """COUNT times what it is, the field and its value."""
    pictures = [vision.png([0.2, 0.5, 0.9], form=form) for form in ("PNG", "JPEG", "WEBP", "BMP", "GIF")]
    noises = [sounds.wav([0.2, 0.5, 0.9], form=form) for form in ("WAV", "FLAC", "OGG", "AIFF")]
    hostile = [(*made, field) for field, all_made in (("image", _pictures()), ("audio", _sounds())) for made in all_made]
    for number in range(COUNT):
        if number < len(hostile):
            kind, cell, field = hostile[number]
            yield kind, field, cell if not isinstance(cell, bytes) else _address(cell, field)
            continue
        field, whole = (("image", pictures), ("audio", noises))[number % 2]
        thing, data = {"image": "picture", "audio": "sound"}[field], whole[int(rng.integers(len(whole)))]
        if rng.random() < 0.3:
            yield f"truncated {thing}", field, _address(data[: int(rng.integers(1, len(data)))], field)
        else:
            yield f"mutated {thing}", field, _address(_mutated(data, rng), field)


def _address(data, field, kind=None):
    return f"data:{kind or {'image': 'image/png', 'audio': 'audio/wav'}[field]};base64," + base64.b64encode(data).decode()


def _mutated(data, rng):
    """A few bytes of it set, cut out, put in or doubled."""
    made = bytearray(data)
    for _ in range(int(rng.integers(1, 8))):
        start = int(rng.integers(len(made)))
        match rng.integers(4):
            case 0:
                made[start] = int(rng.integers(256))
            case 1:
                made[start:start] = rng.bytes(int(rng.integers(1, 40)))
            case 2:
                del made[start : start + int(rng.integers(1, 30))]
            case _:
                made[start:start] = made[start : start + int(rng.integers(1, 300))]
        made = made or bytearray(b"\0")
    return bytes(made)


def _chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width, height, pixels=b"\0" * 1000, more=b"", bits=8):
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + more + _chunk(b"IDAT", zlib.compress(pixels, 9)) + _chunk(b"IEND", b"")


def _saved(form, **options):
    target = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    more = {"save_all": True, "append_images": frames[1:]} if options.pop("moves", False) else {}
    frames[0].save(target, form, **more, **options)
    return target.getvalue()


def _pictures():
    yield "50,000 px", _png(50_000, 50_000)
    yield "50,000 px in one row", _png(50_000, 1)
    yield "two thousand million px", _png(2**31 - 1, 2**31 - 1)
    yield "no px", _png(0, 0)
    yield "50,000 px of GIF", b"GIF89a" + struct.pack("<HH", 50_000, 50_000) + b"\0\0\0,\0\0\0\0" + b"\xff" * 40
    yield "50,000 px of BMP", b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 50_000, 50_000, 1, 24, 0, 0, 0, 0, 0, 0)
    jpeg = vision.png([1, 0, 0], form="JPEG")
    frame = jpeg.index(b"\xff\xc0")
    yield "50,000 px of JPEG", jpeg[: frame + 5] + struct.pack(">HH", 50_000, 50_000) + jpeg[frame + 9 :]
    yield "more pixels than it holds", _png(4_000, 4_000)
    yield "large but plain", _png(6_000, 6_000, b"\0" * 6_001 * 6_000)
    yield "a bomb of pixels", _png(9_000, 9_000, b"\0" * 9_001 * 9_000)
    yield "a bomb of text", _png(4, 4, more=_chunk(b"zTXt", b"a\0\0" + zlib.compress(b"\0" * 200_000_000, 9)))
    text = PngImagePlugin.PngInfo()
    for number in range(70):
        text.add_text(str(number), "a" * 1_000_000, zip=True)
    yield "a bomb of many texts", _saved("PNG", pnginfo=text)
    profile = b"a\0\0" + zlib.compress(b"\0" * 100_000_000, 9)
    yield "a bomb of a profile", _png(4, 4, more=_chunk(b"iCCP", profile))
    script = "<script>alert(document.cookie)</script>"
    yield "SVG with script", f"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'>{script}</svg>".encode()
    yield "SVG in UTF-16", f"<svg>{script}</svg>".encode("utf-16")
    yield (
        "SVG behind a mark",
        b"\xef\xbb\xbf\n <?xml version='1.0'?><!DOCTYPE svg [<!ENTITY a SYSTEM 'file:///etc/passwd'>]><svg>&a;</svg>",
    )
    yield "a page", f"<!DOCTYPE html><html>{script}</html>".encode()
    for form in ("GIF", "WEBP", "PNG"):
        yield f"animated {form}", _saved(form, moves=True)
    for form in ("TIFF", "ICO", "PPM", "EPS", "PDF", "TGA", "PCX"):
        yield f"{form}, which is not read", _saved(form)
    yield "PostScript with a command", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%touch /tmp/made) (w) file\n"
    yield "an archive", b"PK\x03\x04" + bytes(200)
    yield "a program", b"\x7fELF" + bytes(200)
    yield "a sound", sounds.wav([1, 0, 0])
    yield "another type's name", _address(vision.png([1, 0, 0]), "image", "text/html")
    yield from _addresses()


def _sounds():
    wav = bytearray(sounds.wav([1, 0, 0]))

    def header(place, form, value):
        changed = bytearray(wav)
        struct.pack_into(form, changed, place, value)
        return bytes(changed)

    yield "no channels", header(22, "<H", 0)
    yield "60,000 channels", header(22, "<H", 60_000)
    yield "no rate", header(24, "<I", 0)
    yield "a rate of 4 GHz", header(24, "<I", 2**32 - 1)
    yield "a sound of a moment", sounds.wav([1, 0, 0], seconds=0.01)
    yield "SVG for a sound", b"<svg><script>alert(1)</script></svg>"
    yield "a picture", vision.png([1, 0, 0])
    yield "a list of addresses", b"#EXTM3U\nfile:///etc/passwd\n"
    yield "an empty WAV", bytes(wav[:44])
    yield "an archive for a sound", b"PK\x03\x04" + bytes(200)
    yield from _addresses()


def _addresses():
    """Cells that lead nowhere, or elsewhere."""
    yield "no base64", "data:image/png;base64,%%%"
    yield "half a byte", "data:image/png;base64,A"
    yield "no mark", "data:,hello"
    yield "nothing", ""
    yield "an empty address", "data:image/png;base64,"
    yield "a file outside", "../ads.parquet"
    yield "a file of the system", "/etc/passwd"
    yield "a zero byte", "a\0b.png"
    yield "a name too long", "x" * 10_000
    yield "a folder", "."
    yield "an address", "http://169.254.169.254/latest/meta-data"
    yield "a file's address", "file:///etc/passwd"
    yield "half of a character", "\ud800"
    yield "a number", 7
    yield "a list", ["a.png"]
    yield "an object", {"url": "a.png"}
    yield "true", True
    yield "more than a body holds", "data:image/png;base64," + "A" * 5_000_000
