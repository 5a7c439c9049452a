"""Pictures of ads from the file to the served answer: what only they show is learned, and what cannot be read is set aside."""

import base64
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import vector_worlds
import vision

from adrec.config.inference.explain import ExplainConfig
from adrec.config.inference.score import ScoreConfig
from adrec.data.prepared import open_prepared
from adrec.data.vectors import file_of
from adrec.errors import DataError
from adrec.inference.predictor import Predictor
from adrec.metrics.classification import auc
from adrec.stages.inference import explain, score
from adrec.terminal import Terminal

QUIET = Terminal(quiet=True)


@pytest.fixture(scope="module")
def cycle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    world = vector_worlds.make(folder / "raw", missing=0.2, draw=vision.png)
    pictures = sorted((world.folder / "pictures").glob("*.png"))
    pictures[0].write_bytes(b"<svg><script>alert(1)</script></svg>")
    pictures[1].write_bytes(pictures[1].read_bytes()[:100])
    pictures[2].unlink()
    encoder = vision.small_clip(folder / "clip")
    prepared = vector_worlds.prepare(
        world, folder / "prepared", ads=(), image={"reference": str(encoder), "cache": str(folder / "cache")}
    )
    config, _ = vector_worlds.train(prepared, folder / "bundle", baselines={"names": ["lightgbm"]})
    return world, prepared, config, Predictor.load(config.output), pictures


def _test_rows(prepared):
    return pa.concat_tables([pq.read_table(file) for file in prepared.split_files("test")])


def test_what_only_pictures_show_is_learned(cycle):
    world, prepared, _, predictor, _ = cycle
    rows = _test_rows(prepared)
    scores = predictor.score_examples(predictor.examples_of(rows), predictor.catalogs(prepared.ads(), prepared.users()))
    label, truth = rows["click"].to_numpy(), rows["true_probability"].to_numpy()
    assert auc(label, scores.score) - 0.5 > 0.65 * (auc(label, truth) - 0.5)
    assert auc(label, scores.baselines["lightgbm"]) > 0.65


def test_what_cannot_be_read_is_set_aside_with_its_reason(cycle):
    _, prepared, _, _, pictures = cycle
    found = {row["reference"]: row["reason"] for row in pq.read_table(prepared.path / "rejected_pictures.parquet").to_pylist()}
    named = [f"pictures/{path.name}" for path in pictures[:3]]
    assert set(found) == set(named)
    assert "scripts" in found[named[0]] and "damaged" in found[named[1]] and "is no file" in found[named[2]]
    assert sum(prepared.manifest["images"]["set_aside"].values()) == 3
    assert any("3 pictures of 80 ads were set aside" in note for note in prepared.manifest["notes"])
    vectors = np.load(file_of(prepared.path, "ads", "picture"))
    place = prepared.ads()["image"].to_pylist().index(named[0])
    assert np.isnan(vectors[place]).all()


def test_own_files_with_pictures_beside_them_are_scored_alike(cycle, tmp_path):
    world, prepared, config, predictor, pictures = cycle
    rows = _test_rows(prepared).select(["user_id", "ad_id", "shown_at", "request_id"]).slice(0, 200)
    ads = pq.read_table(world.folder / "ads.parquet").select(["ad_id", "title", "image"])
    empty = pa.table({"user_id": ["u0"], "ad_id": ["a0"], "shown_at": pa.array([0]).cast(pa.timestamp("us", "UTC"))})
    expected = predictor.score(rows, prepared.ads(), prepared.users(), history=empty)["logit"].to_numpy()
    contents = _contents(world, ads)
    inside = ads.set_column(2, "image", pa.array(contents, pa.binary()))
    assert np.allclose(predictor.score(rows, inside, prepared.users(), history=empty)["logit"].to_numpy(), expected, atol=1e-5)
    for name, table in (("rows", rows), ("history", empty)):
        pq.write_table(table, tmp_path / f"{name}.parquet")
    for name, table in (("named", ads), ("inside", inside)):
        # names of files lead from the folder of the file that holds them
        file = world.folder / f"{name}.parquet"
        pq.write_table(table, file)
        output = tmp_path / f"{name}_scored.parquet"
        settings = ScoreConfig(
            bundle=config.output, impressions=str(tmp_path / "rows.parquet"), ads=str(file), output=output,
            users=str(world.folder / "users.parquet"), history=str(tmp_path / "history.parquet"),
        )  # fmt: skip
        score.run(settings, QUIET)
        assert np.allclose(pq.read_table(output)["logit"].to_numpy(), expected, atol=1e-5)


def test_bytes_in_parquet_give_the_same_vectors(cycle, tmp_path):
    world, prepared, _, _, _ = cycle
    ads = pq.read_table(world.folder / "ads.parquet")
    place = ads.column_names.index("image")
    contents = _contents(world, ads)
    pq.write_table(ads.set_column(place, "image", pa.array(contents, pa.binary())), world.folder / "inside.parquet")
    reference = prepared.config.image.reference
    source = {
        "format": "tables",
        "ads": {"files": str(world.folder / "inside.parquet")},
        "users": {"files": str(world.folder / "users.parquet")},
        "impressions": {"files": str(world.folder / "impressions.parquet")},
    }
    other = vector_worlds.prepare(world, tmp_path / "prepared", ads=(), source=source, image={"reference": reference})
    found, expected = (np.load(file_of(folder.path, "ads", "picture")) for folder in (other, prepared))
    assert np.allclose(found, expected, atol=1e-6, equal_nan=True)
    assert "image" not in pq.read_schema(other.path / "ads.parquet").names


def test_patches_of_a_picture_are_what_the_score_loses_with_them(cycle, tmp_path):
    """Held against the ad scored with a picture that was painted over before it was given."""
    world, prepared, config, predictor, _ = cycle
    settings = ExplainConfig(
        bundle=config.output, prepared=prepared.path, split="test", output=tmp_path / "why", rows=6, occlusion=2, device="cpu"
    )
    result = explain.run(settings, QUIET)
    told = [row.as_dict() for row in result.rows]
    row = next(row for row in told if row["pictures"])
    assert all(bool(other["pictures"]) == any(part["name"] == "picture" for part in other["parts"]) for other in told)
    rows = _test_rows(prepared)
    named = np.array(rows["user_id"].to_pylist()) == row["user_id"]
    place = int(np.flatnonzero(named & (np.array(rows["ad_id"].to_pylist()) == row["ad_id"]))[0])
    ads = prepared.ads()
    at = ads["ad_id"].to_pylist().index(row["ad_id"])
    contents = _contents(world, ads)
    whole = _decoded(contents[at])
    logits = []
    for box in (None, (whole.width // 2, 0, whole.width, whole.height // 2)):  # the second patch of four: above, to the right
        picture, target = whole.copy(), io.BytesIO()
        if box is not None:
            picture.paste((128, 128, 128), box)
        picture.save(target, "PNG")
        contents[at] = target.getvalue()
        own = ads.drop_columns(["picture"]).set_column(
            ads.column_names.index("image"), "image", pa.array(contents, pa.binary())
        )
        catalogs = predictor.catalogs(own, prepared.users())
        logits.append(float(predictor.score_examples(predictor.examples_of(rows.slice(place, 1)), catalogs).logit[0]))
    patches = row["pictures"][0]["patches"]
    assert np.shape(patches) == (2, 2) and abs(patches[0][1]) > 1e-4
    assert patches[0][1] == pytest.approx(logits[0] - logits[1], abs=1e-4)
    page = (tmp_path / "why" / "explanations.html").read_text()
    assert page.count("<rect") >= 4 and "data:image/jpeg;base64," in page


def test_pictures_that_are_gone_are_told_and_explained_without(cycle, tmp_path):
    _, prepared, config, _, _ = cycle
    told = Terminal(quiet=True)
    (tmp_path / "empty").mkdir()
    settings = ExplainConfig(
        bundle=config.output, prepared=prepared.path, split="test", output=tmp_path / "why", rows=3, device="cpu",
        pictures=tmp_path / "empty",
    )  # fmt: skip
    warnings = []
    told.warn = warnings.append
    result = explain.run(settings, told)
    assert all(not row.explanation.pictures for row in result.rows)
    assert "Set `pictures`" in warnings[0] and "is no file" in warnings[0]


def test_another_encoder_at_the_same_place_is_told(cycle, tmp_path):
    world, prepared, config, _, _ = cycle
    import shutil

    moved = tmp_path / "prepared"
    shutil.copytree(prepared.path, moved)
    other = vision.small_vit(tmp_path / "vit")
    text = (moved / "config.yaml").read_text().replace(str(prepared.config.image.reference), str(other))
    (moved / "config.yaml").write_text(text)
    with pytest.raises(DataError, match="is another encoder than the one that read the pictures"):
        vector_worlds.train(open_prepared(moved), tmp_path / "bundle")


def test_the_server_reads_the_picture_of_an_ad_that_is_put(cycle, tmp_path):
    from fastapi.testclient import TestClient

    from adrec.config.inference.serve import ServeConfig
    from adrec.serve.app import create_app
    from adrec.serve.door.keys import KEY_VARIABLE, Keys

    world, prepared, config, predictor, pictures = cycle
    policy = {"top_n": 5, "rules": {"clicked": "keep", "active": False}, "diversity": {"method": "none"}}
    settings = ServeConfig.model_validate(
        {
            "bundle": str(config.output), "prepared": str(prepared.path), "store": str(tmp_path / "store.sqlite"),
            "policies": {"default": policy}, "device": "cpu", "pictures": str(world.folder / "pictures"),
        }
    )  # fmt: skip
    fan = world.taste[0]
    loved, hated = (vision.png((sign * fan + 1) / 2) for sign in (1, -1))
    shown = "data:image/png;base64," + base64.b64encode(loved).decode()
    keys = Keys(settings.access, {KEY_VARIABLE: "a-key-of-this-test"})
    with TestClient(create_app(settings, keys=keys), headers={"X-API-Key": "a-key-of-this-test"}) as client:
        words = {"title": "the same words"}
        assert client.put("/v1/ads/loved", json=words | {"image": shown}).status_code == 200
        hated_shown = "data:image/png;base64," + base64.b64encode(hated).decode()
        assert client.put("/v1/ads/hated", json=words | {"image": hated_shown}).status_code == 200
        assert client.put("/v1/ads/named", json=words | {"image": pictures[5].name}).status_code == 200
        rows = [{"user_id": "u0", "ad_id": ad} for ad in ("loved", "hated", "named", f"a{pictures[5].stem}")]
        scored = client.post("/v1/score", json={"rows": rows}).json()["rows"]
        assert scored[0]["score"] > scored[1]["score"]
        told = client.get("/v1/ads/loved").json()["vectors"]["picture"]
        assert np.allclose(told, predictor.packed.media["image"].encoder.encode([_decoded(loved)])[0], atol=1e-4)
        bad = ["data:image/png;base64," + base64.b64encode(data).decode() for data in (b"<svg/>", b"x", loved[:90])]
        for image in [*bad, "../ads.parquet", "none.png", "http://127.0.0.1/x.png", "data:,x", ""]:
            refused = client.put("/v1/ads/loved", json=words | {"image": image})
            assert refused.status_code == 422, image
        described = [{"user_id": "x", "interests": ["red shoes"]}]
        answer = client.post("/v1/score", json={"rows": [{"user_id": "x", "ad_id": "loved"}], "users": described})
        assert answer.status_code == 200 and 0 <= answer.json()["rows"][0]["score"] <= 1
    with TestClient(create_app(settings, keys=keys), headers={"X-API-Key": "a-key-of-this-test"}) as client:
        again = client.post("/v1/score", json={"rows": rows[:2]}).json()["rows"]
        for now, then in zip(again, scored, strict=False):
            assert now["logit"] == pytest.approx(then["logit"], abs=1e-5)


def _contents(world, ads):
    """The bytes of each ad's picture, None where there is none."""
    files = [world.folder / name if name else None for name in ads["image"].to_pylist()]
    return [file.read_bytes() if file is not None and file.exists() else None for file in files]


def _decoded(data):
    from adrec.data.media.pictures import Pictures

    return Pictures().decode(data)
