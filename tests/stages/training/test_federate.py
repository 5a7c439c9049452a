"""Silos that learn together come near whoever has all rows, hold against a liar, and send nothing but masked sums."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from pydantic import ValidationError
from worlds import make_world, word_encoder

from adrec.bundle import open_bundle
from adrec.config.base import load_config
from adrec.config.training.baselines import HybridConfig
from adrec.config.training.federate import FederateConfig
from adrec.config.training.finetune import FinetuneConfig
from adrec.data.prepared import open_prepared
from adrec.errors import ConfigError
from adrec.inference.predictor import Predictor
from adrec.stages.training import federate, finetune
from adrec.stages.training.federating.sides import federated_base
from adrec.terminal import Terminal

QUIET = Terminal(quiet=True)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("federated")
    made = make_world(folder / "prepared", users=150, requests=1500)
    word_encoder(folder / "encoder")
    settings = {
        "prepared": str(folder / "prepared"),
        "output": str(folder / "central"),
        "text": {"reference": str(folder / "encoder"), "cache": str(folder / "cache")},
        "model": {"width": 16, "hidden": [16]},
        "training": {"epochs": 8, "batch_rows": 128, "learning_rate": 5e-3, "loggers": []},
        "baselines": {"names": []},
        "hybrid": {"kind": "none"},
        "recall_requests": 0,
    }
    (folder / "finetune.yaml").write_text(yaml.safe_dump(settings))
    return folder, made


def federated(folder, name, **settings):
    usual = {"clients": "category", "rounds": 12, "clients_per_round": 10}
    return FederateConfig(finetune=folder / "finetune.yaml", output=folder / name, **{**usual, **settings})


def test_silos_come_near_central_training(world):
    folder, made = world
    central = finetune.run(load_config(folder / "finetune.yaml", FinetuneConfig, []), QUIET).models["adrec"]["auc"]
    sent = []
    result = federate.run(federated(folder, "silos"), QUIET, wire=lambda *note: sent.append(note))
    assert result.clients == 3 and result.rows == len(made.labels["train"])
    assert result.figures["auc"] > central - 0.02
    assert {what for _, what, _ in sent} == {"keys", "shares", "masked", "revealed"}
    predictor = Predictor.load(folder / "silos", device="cpu")
    shown = dict(zip(*(predictor.packed.seen_ads[name].to_pylist() for name in ("id", "impressions")), strict=True))
    assert sum(shown.values()) == result.rows and predictor.packed.seen_users.num_rows == 0
    assert predictor.packed.tasks[0].mean == pytest.approx(made.labels["train"].mean(), abs=1e-6)
    assert open_bundle(folder / "silos").manifest["federated"]["secure"] is True


def test_features_fitted_together_are_the_bundles(world):
    folder, _ = world
    sent = []
    settings = {"clients": "user", "rounds": 1, "features": "federated", "feature_buckets": 512, "overrides": ["model.width=8"]}
    federate.run(federated(folder, "fitted", **settings), QUIET, wire=lambda *note: sent.append(note))
    assert {what for _, what, _ in sent} == {"keys", "shares", "masked", "revealed"}
    features, prepared = Predictor.load(folder / "fitted", device="cpu").packed.features, open_prepared(folder / "prepared")
    alone = prepared.features()
    for own, other in zip(features["impressions"].numerics, alone["impressions"].numerics, strict=True):
        assert (own.mean, own.scale) == pytest.approx((other.mean, other.scale), rel=1e-9)
    shown = np.unique(np.concatenate([batch["user_index"].to_numpy() for batch in prepared.iter("train", ["user_index"])]))
    interests = prepared.users().take(pa.array(shown))["interests"].combine_chunks().flatten().value_counts()
    common = [counted["values"].as_py() for counted in interests if counted["counts"].as_py() >= 2]
    assert sorted(features["users"].lists[0].apply(pa.array(common))) == list(range(1, len(common) + 1))
    assert features["ads"] == alone["ads"]


def test_the_ledger_says_that_fitted_features_have_no_noise(world):
    folder, _ = world
    privacy = {"epsilon": 60.0, "delta": 1e-4, "public": ["features", "encoder"], "secure": False}
    settings = {"rounds": 2, "features": "federated", "feature_buckets": 64}
    result = federate.run(federated(folder, "said", privacy=privacy, **settings), QUIET)
    lines = {line["artefact"]: line for line in result.privacy["lines"]}
    assert "fitted from sums without noise" in json.dumps(lines["vocabularies and scales"])
    assert open_bundle(folder / "said").json("features.json")["users"]["lists"][0]["buckets"] == 64


@pytest.mark.slow
def test_users_as_clients_of_whom_some_fall_out(world):
    folder, _ = world
    settings = {"clients": "user", "rounds": 15, "clients_per_round": 20, "drop_out": 0.2, "algorithm": "fedprox"}
    result = federate.run(federated(folder, "users", **settings), QUIET)
    assert result.clients > 100 and result.fallen > 15 * 3
    assert np.isfinite(result.figures["auc"]) and result.figures["auc"] > 0.6


@pytest.mark.slow
def test_one_liar_in_five_costs_little_with_a_robust_rule(world):
    folder, _ = world
    for file in (folder / "prepared" / "impressions").glob("*/*.parquet"):  # five publishers
        table = pq.read_table(file)
        silo = pa.array([f"s{number % 5}" for number in table["user_index"].to_pylist()])
        pq.write_table(table.append_column("silo", silo), file, row_group_size=400)
    lie = lambda client, change: -20.0 * change if client == 1 else change  # noqa: E731
    settings = {"clients": "silo", "secure": False}
    honest = federate.run(federated(folder, "honest", **settings), QUIET)
    broken = federate.run(federated(folder, "broken", **settings), QUIET, corrupt=lie)
    held = federate.run(federated(folder, "held", rule="trimmed_mean", **settings), QUIET, corrupt=lie)
    assert honest.clients == 5
    assert held.figures["auc"] > honest.figures["auc"] - 0.04  # the rule throws half of the honest changes away too
    assert broken.figures["auc"] < held.figures["auc"] - 0.05
    judged = federate.run(federated(folder, "judged", rule="zeno", **settings), QUIET, corrupt=lie)
    assert judged.figures["auc"] > max(honest.figures["auc"] - 0.02, held.figures["auc"])


def test_what_cannot_be_is_refused(world):
    folder, _ = world
    with pytest.raises(ValidationError, match="needs to see each client's change"):
        federated(folder, "x", rule="median")
    with pytest.raises(ValidationError, match="zeno needs to see each client's change"):
        federated(folder, "x", rule="zeno")
    with pytest.raises(ValidationError, match="more clients fall out than"):
        federated(folder, "x", drop_out=0.5)
    with pytest.raises(ConfigError, match="neither impressions nor ads .* have a column 'planet'"):
        federate.run(federated(folder, "x", clients="planet"), QUIET)
    with pytest.raises(ConfigError, match=r"model\.identities cannot be federated"):
        federate.run(federated(folder, "x", overrides=["model.identities=[users]"]), QUIET)


@pytest.mark.parametrize(
    "settings",
    [
        {"hybrid": {"also": ["item_cf"]}},
        {"hybrid": {"kind": "stack"}, "baselines": {"names": ["lightgbm"]}},
        {"seeds": 3, "ensemble": True, "refit": True, "delay": {"method": "fnw"}, "calibration": "isotonic"},
    ],
)
def test_what_needs_all_rows_in_one_place_goes_whole(world, settings):
    """The config that the bundle keeps is one that opens: it named members of a hybrid whose baselines had gone."""
    folder, _ = world
    file = folder / "all-rows.yaml"
    base = yaml.safe_load((folder / "finetune.yaml").read_text())
    file.write_text(yaml.safe_dump({**{key: base[key] for key in base if key not in {"baselines", "hybrid"}}, **settings}))
    left = federated_base(FederateConfig(finetune=file, output=folder / "any", clients="category"))
    assert left.baselines.names == [] and left.hybrid == HybridConfig(kind="none") and left.seeds == 1
    assert FinetuneConfig.model_validate(left.model_dump(mode="json")) == left


@pytest.mark.slow
def test_noise_on_the_sums_is_counted_and_still_teaches(world):
    folder, _ = world
    privacy = {"epsilon": 60.0, "delta": 1e-4, "public": ["features", "encoder"], "secure": False}
    settings = {"clients": "user", "rounds": 25, "clients_per_round": 60, "clip": 0.5, "privacy": privacy}
    result = federate.run(federated(folder, "noised", **settings), QUIET)
    stored = open_bundle(folder / "noised").manifest["privacy"]
    assert stored == result.privacy and stored["unit"] == "client" and stored["spent"] <= 60
    lines = {line["artefact"]: line for line in stored["lines"]}
    assert lines["weights"]["event"]["steps"] == 25 and lines["weights"]["sensitivity"] == 0.5
    assert {"rate of click", "calibration of click, step 3", "vocabularies and scales"} <= set(lines)
    packed = Predictor.load(folder / "noised", device="cpu").packed
    assert set(packed.seen_ads["clicks"].to_pylist()) == {0}
    assert result.figures["auc"] > 0.55


def test_what_noise_cannot_cover_is_refused(world):
    folder, _ = world
    with pytest.raises(ConfigError, match=r"fitted without noise.*public=\[features\]"):
        federate.run(federated(folder, "x", privacy={"epsilon": 1.0}), QUIET)
    with pytest.raises(ConfigError, match=r"text\.reference.*may have learned"):
        federate.run(federated(folder, "x", privacy={"epsilon": 1.0, "public": ["features"]}), QUIET)
    with pytest.raises(ValidationError, match="sums of vocabularies and scales get no noise"):
        federated(folder, "x", privacy={"epsilon": 1.0}, features="federated")
    with pytest.raises(ValidationError, match="noise is added to a sum"):
        federated(folder, "x", privacy={"epsilon": 1.0}, rule="median", secure=False)
