"""Sounds of ads from the file to the served answer: what only they tell is learned, and what cannot be read is set aside."""

import base64

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sounds
import vector_worlds
from fastapi.testclient import TestClient

from adrec.config.inference.serve import ServeConfig
from adrec.data.vectors import file_of
from adrec.inference.predictor import Predictor
from adrec.metrics.classification import auc
from adrec.serve.app import create_app
from adrec.serve.door.keys import KEY_VARIABLE, Keys


@pytest.fixture(scope="module")
def cycle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sounds")
    world = vector_worlds.make(folder / "raw", missing=0.2, draw=sounds.wav, as_sound=True)
    files = sorted((world.folder / "sounds").glob("*.wav"))
    files[0].write_bytes(b"<svg/>")
    encoder = sounds.small_whisper(folder / "whisper")
    prepared = vector_worlds.prepare(
        world, folder / "prepared", ads=(), audio={"reference": str(encoder), "cache": str(folder / "cache")}
    )
    config, _ = vector_worlds.train(prepared, folder / "bundle", baselines={"names": ["lightgbm"]})
    return world, prepared, config, Predictor.load(config.output), files


def test_what_only_sounds_tell_is_learned(cycle):
    _, prepared, _, predictor, _ = cycle
    rows = pa.concat_tables([pq.read_table(file) for file in prepared.split_files("test")])
    scores = predictor.score_examples(predictor.examples_of(rows), predictor.catalogs(prepared.ads(), prepared.users()))
    label, truth = rows["click"].to_numpy(), rows["true_probability"].to_numpy()
    assert auc(label, scores.score) - 0.5 > 0.65 * (auc(label, truth) - 0.5)
    assert auc(label, scores.baselines["lightgbm"]) > 0.65


def test_what_cannot_be_read_is_set_aside_with_its_reason(cycle):
    _, prepared, _, _, files = cycle
    (aside,) = pq.read_table(prepared.path / "rejected_sounds.parquet").to_pylist()
    assert aside["reference"] == f"sounds/{files[0].name}" and "is no sound" in aside["reason"]
    assert sum(prepared.manifest["sounds"]["set_aside"].values()) == 1
    vectors = np.load(file_of(prepared.path, "ads", "sound"))
    assert np.isnan(vectors[prepared.ads()["audio"].to_pylist().index(aside["reference"])]).all()


def test_own_frames_with_sounds_inside_are_scored_alike(cycle):
    world, prepared, _, predictor, _ = cycle
    rows = pq.read_table(prepared.split_files("test")[0]).select(["user_id", "ad_id", "shown_at", "request_id"]).slice(0, 100)
    ads = pq.read_table(world.folder / "ads.parquet").select(["ad_id", "title", "audio"])
    contents = [(world.folder / name).read_bytes() if name else None for name in ads["audio"].to_pylist()]
    inside = ads.set_column(2, "audio", pa.array(contents, pa.binary()))
    empty = pa.table({"user_id": ["u0"], "ad_id": ["a0"], "shown_at": pa.array([0]).cast(pa.timestamp("us", "UTC"))})
    expected = predictor.score(rows, prepared.ads(), prepared.users(), history=empty)["logit"].to_numpy()
    assert np.allclose(predictor.score(rows, inside, prepared.users(), history=empty)["logit"].to_numpy(), expected, atol=1e-5)


def test_the_server_hears_an_ad_that_is_put(cycle, tmp_path):
    world, prepared, config, _, files = cycle
    policy = {"top_n": 5, "rules": {"clicked": "keep", "active": False}, "diversity": {"method": "none"}}
    settings = ServeConfig.model_validate(
        {
            "bundle": str(config.output), "prepared": str(prepared.path), "store": str(tmp_path / "store.sqlite"),
            "policies": {"default": policy}, "device": "cpu", "sounds": str(world.folder / "sounds"),
        }
    )  # fmt: skip
    keys = Keys(settings.access, {KEY_VARIABLE: "a-key-of-this-test"})
    loved, hated = (sounds.wav((sign * world.taste[0] + 1) / 2) for sign in (1, -1))
    words = {"title": "the same words"}
    with TestClient(create_app(settings, keys=keys), headers={"X-API-Key": "a-key-of-this-test"}) as client:
        for name, data in (("loved", loved), ("hated", hated)):
            shown = "data:audio/wav;base64," + base64.b64encode(data).decode()
            assert client.put(f"/v1/ads/{name}", json=words | {"audio": shown}).status_code == 200
        assert client.put("/v1/ads/named", json=words | {"audio": files[5].name}).status_code == 200
        rows = [{"user_id": "u0", "ad_id": ad} for ad in ("loved", "hated", "named")]
        scored = client.post("/v1/score", json={"rows": rows}).json()["rows"]
        assert scored[0]["score"] > scored[1]["score"]
        for cell in ("../ads.parquet", "none.wav", "http://127.0.0.1/x.wav", "data:audio/wav;base64,PHN2Zy8+", ""):
            assert client.put("/v1/ads/loved", json=words | {"audio": cell}).status_code == 422, cell
        refused = client.put("/v1/ads/loved", json=words | {"image": "data:image/png;base64,PHN2Zy8+"})
        assert refused.status_code == 422 and "reads no pictures" in refused.text
