"""Bytes of strangers: nothing crashes, whatever is no plain still picture is set aside with a reason."""

import io
import struct
import zlib

import numpy as np
import pytest
import vision
from PIL import Image

from adrec.data.media.files import MediaError
from adrec.data.media.pictures import FORMATS, Pictures


def _reason(data, pictures=Pictures()):
    with pytest.raises(MediaError) as told:
        pictures.decode(data)
    return str(told.value)


def _huge_png(width, height):
    """A valid header that claims so many pixels, and hardly any bytes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


def _animated(form):
    target = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(target, form, save_all=True, append_images=frames[1:])
    return target.getvalue()


def test_plain_pictures_of_all_formats_are_read_alike():
    for form in FORMATS:
        found = np.asarray(Pictures().decode(vision.png([1, 0, 0], form=form)), float).mean(axis=(0, 1))
        assert found[0] > 200 and found[1:].max() < 60, form


def test_what_shines_through_stands_on_white():
    target = io.BytesIO()
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(target, "PNG")
    assert np.asarray(Pictures().decode(target.getvalue())).min() == 255


def test_what_is_no_still_picture_is_set_aside():
    assert "scripts" in _reason(b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>")
    assert "scripts" in _reason(b"\xef\xbb\xbf  <?xml version='1.0'?><svg/>")
    assert "too large" in _reason(_huge_png(50_000, 50_000))
    assert "too large (9,000 x 9,000 pixels)" in _reason(_huge_png(9_000, 9_000))
    assert "too large" in _reason(_huge_png(2_000_000, 1))
    for form in ("GIF", "WEBP", "PNG"):
        assert "moves" in _reason(_animated(form))
    assert "is no picture" in _reason(b"%PDF-1.7 hello")
    assert "is no picture" in _reason(b"")
    assert "damaged" in _reason(vision.png([1, 0, 0])[:200])
    target = io.BytesIO()
    Image.new("RGB", (4, 4)).save(target, "TIFF")
    assert "is no picture" in _reason(target.getvalue())


def test_references_lead_nowhere_but_where_they_may(tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "secret.png"
    inside.mkdir()
    outside.write_bytes(vision.png([0, 1, 0]))
    (inside / "a.png").write_bytes(vision.png([1, 0, 0]))
    (inside / "link.png").symlink_to(outside)
    held = Pictures(inside, beneath=True)
    assert held.read("a.png")
    for name in ("../secret.png", str(outside), "link.png", "a.png/b", "x" * 5000, "a\0b", "", "none.png", "."):
        with pytest.raises(MediaError):
            held.read(name)
    with pytest.raises(MediaError, match="files are not read here"):
        Pictures().read("a.png")
    for address in ("http://169.254.169.254/latest", "file:///etc/passwd", "memory://other/x.png"):
        with pytest.raises(MediaError, match="no store"):
            Pictures(inside, stores=("memory://mine/",)).read(address)
    with pytest.raises(MediaError, match="no store"):
        Pictures(stores=("memory://mine/",)).read("memory://mine/../other/x.png")
    with pytest.raises(MediaError, match="no base64"):
        held.read("data:image/png;base64,%%%")
    with pytest.raises(MediaError, match="more than 1,000 bytes"):
        Pictures(max_bytes=1_000).read(b"x" * 1_001)


def test_stores_are_read_by_fsspec():
    import fsspec

    with fsspec.open("memory://mine/a.png", "wb") as handle:
        handle.write(vision.png([0, 0, 1]))
    pictures = Pictures(stores=("memory://mine/",))
    assert pictures.decode(pictures.read("memory://mine/a.png")).size == (24, 20)
    with pytest.raises(MediaError, match="cannot be read"):
        pictures.read("memory://mine/none.png")


def test_five_hundred_damaged_files_crash_nothing():
    rng = np.random.default_rng(0)
    whole = [vision.png([0.2, 0.5, 0.9], form=form) for form in FORMATS]
    read = 0
    for number in range(500):
        data = bytearray(whole[number % len(whole)])
        for _ in range(int(rng.integers(1, 8))):
            if not data:
                break
            match rng.integers(0, 4):
                case 0:
                    data[int(rng.integers(len(data)))] = int(rng.integers(256))
                case 1:
                    del data[int(rng.integers(0, len(data))) :]
                case 2:
                    place = int(rng.integers(len(data)))
                    data[place:place] = rng.bytes(int(rng.integers(1, 40)))
                case _:
                    start = int(rng.integers(len(data)))
                    del data[start : start + int(rng.integers(1, 30))]
            if not data:
                data = bytearray(b"\0")
        try:
            assert Pictures().decode(bytes(data)).mode == "RGB"
            read += 1
        except MediaError as error:
            assert str(error)
    assert 0 < read < 450  # some changes spare the picture, most do not
