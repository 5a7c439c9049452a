"""The server takes the vectors of ads and users, holds them against the bundle, and answers by them."""

import numpy as np
import pytest
import vector_worlds
from served import client_of

from adrec.config.inference.serve import ServeConfig
from adrec.data.vectors import file_of

POLICY = {"top_n": 5, "rules": {"clicked": "keep", "active": False}, "diversity": {"method": "none"}}


@pytest.fixture(scope="module")
def served_world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served_vectors")
    world = vector_worlds.make(folder / "raw", missing=0.2)
    prepared = vector_worlds.prepare(world, folder / "prepared", users=({"column": "taste", "space": "taste"},))
    config, _ = vector_worlds.train(prepared, folder / "bundle", baselines={"names": ["lightgbm"]}, hybrid={"kind": "auto"})
    return world, prepared, config


def test_an_ad_put_with_vectors_is_ranked_by_them_at_once(served_world, tmp_path):
    world, prepared, config = served_world
    settings = ServeConfig.model_validate(
        {
            "bundle": str(config.output), "prepared": str(prepared.path), "store": str(tmp_path / "store.sqlite"),
            "policies": {"default": POLICY}, "device": "cpu",
        }
    )  # fmt: skip
    fan = world.taste[0]
    near = world.style @ fan
    photo = np.load(file_of(prepared.path, "ads", "photo"))
    place = int(np.flatnonzero(~np.isnan(photo).any(axis=1))[np.argmax(near[~np.isnan(photo).any(axis=1)])])
    far = int(np.flatnonzero(~np.isnan(photo).any(axis=1))[np.argmin(near[~np.isnan(photo).any(axis=1)])])
    with client_of(settings) as client:
        body = {"title": "the same words", "vectors": {"photo": photo[place].tolist(), "noise": [0.0] * 4}}
        assert client.put("/v1/ads/new", json=body).status_code == 200
        assert client.put("/v1/ads/other", json=body | {"vectors": {"photo": photo[far].tolist()}}).status_code == 200
        assert client.put("/v1/ads/plain", json={"title": "the same words"}).status_code == 200
        rows = [{"user_id": "u0", "ad_id": ad} for ad in ("new", "other", "plain", f"a{place}")]
        scored = client.post("/v1/score", json={"rows": rows}).json()["rows"]
        assert scored[0]["score"] > scored[2]["score"] > scored[1]["score"]
        told = client.get("/v1/ads/new").json()
        assert np.allclose(told["vectors"]["photo"], photo[place])
        # The same through a restart's way: all changes at once.
        ranked = client.post("/v1/rank", json={"requests": [{"user_id": "u0", "candidates": ["new", "other", "plain"]}]}).json()
        assert [ad["ad_id"] for ad in ranked["lists"][0]["ads"]] == ["new", "plain", "other"]
        refused = client.put("/v1/ads/new", json=body | {"vectors": {"photo": [1.0]}})
        assert refused.status_code == 422 and "8 numbers are expected, these are 1" in refused.text
        refused = client.put("/v1/ads/new", json=body | {"vectors": {"smell": [1.0]}})
        assert refused.status_code == 422 and "noise, photo" in refused.text
        for bad in ([1e39] * 8, ["x"] * 8, [], [True] * 8):
            assert client.put("/v1/ads/new", json=body | {"vectors": {"photo": bad}}).status_code == 422
        assert client.get("/v1/ads/new").json()["vectors"]["photo"] == told["vectors"]["photo"]
        # A user described in the request, and one with a vector of another width beside one that is answered.
        described = [
            {"user_id": "x", "features": {"taste": (-fan).tolist()}},
            {"user_id": "y", "features": {"taste": fan.tolist()}},
        ]
        rows = [{"user_id": name, "ad_id": "new"} for name in ("x", "y")]
        first, second = client.post("/v1/score", json={"rows": rows, "users": described}).json()["rows"]
        assert first["score"] < second["score"]
        wrong = client.post("/v1/score", json={"rows": rows, "users": [{"user_id": "x", "features": {"taste": [1.0]}}]})
        assert wrong.status_code == 422 and "a list of 3 numbers is expected, this one has 1" in wrong.text
        explained = client.post("/v1/explain", json={"user": {"user_id": "u0"}, "ad_id": "new"}).json()
        assert "photo" in {part["name"] for part in explained["parts"]}
    with client_of(settings) as client:  # changes of before are read with the catalogue
        again = client.post("/v1/score", json={"rows": [{"user_id": "u0", "ad_id": "new"}]}).json()["rows"]
        assert again[0]["logit"] == pytest.approx(scored[0]["logit"], abs=1e-5)
