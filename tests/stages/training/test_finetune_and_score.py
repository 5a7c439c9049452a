"""Finetune and score on a planted world: near the oracle, chance on shuffled labels, and what a bundle promises."""

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file
from worlds import make_world, word_encoder

from adrec.config.base import save_config
from adrec.config.evaluation.evaluate import EvaluateConfig
from adrec.config.inference.encode import EncodeConfig
from adrec.config.inference.score import ScoreConfig
from adrec.config.training.baselines import BaselinesConfig
from adrec.config.training.finetune import FinetuneConfig, FinetuneTraining, TaskSettings
from adrec.data.examples import load_examples
from adrec.data.prepared import open_prepared
from adrec.errors import BundleError, DataError
from adrec.inference.predictor import Predictor
from adrec.metrics.classification import auc
from adrec.models.text.text_encoder import load_text_encoder
from adrec.stages.evaluation import evaluate
from adrec.stages.inference import encode, score
from adrec.stages.training import finetune
from adrec.terminal import Terminal

SMALL = {"width": 32, "hidden": [32], "user": {"parts": ["soft", "target"], "max_history": 15}}
TRAINING = {"epochs": 6, "batch_rows": 256, "learning_rate": 4e-3, "loggers": []}


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    world = make_world(folder / "prepared", requests=3000, users=150, conversions=True, max_history=200)
    config = FinetuneConfig(
        prepared=world.path,
        output=folder / "bundle",
        text={"reference": str(word_encoder(folder / "words")), "cache": folder / "cache"},
        model={**SMALL, "identities": ["ads"]},
        tasks=[{"name": "click"}, {"name": "conversion", "after": "click"}],
        training=TRAINING,
        baselines={"names": ["popularity", "smoothed_ctr", "logistic"]},
        hybrid={"kind": "none"},  # the network's own scores: raw rows bring no skipped ads, which baselines read
    )
    result = finetune.run(config, Terminal(quiet=True))
    return world, config, result


def _score(config, tmp_path, **settings):
    output = tmp_path / "scored.parquet"
    given = {"bundle": config.output, "cache": config.text.cache, "output": output, **settings}
    result = score.run(ScoreConfig(**given), Terminal(quiet=True))
    return pq.read_table(output), result


def test_the_model_lands_near_the_oracle(planted, tmp_path):
    world, config, _ = planted
    table, result = _score(config, tmp_path, prepared=world.path, split="test")
    oracle = auc(world.labels["test"], world.probability["test"])
    found = auc(world.labels["test"], table["score"].to_numpy())
    # The oracle knows what users like from their first request on; a model has to see them click first.
    assert found - 0.5 > 0.85 * (oracle - 0.5)
    assert result.rows == table.num_rows == len(world.labels["test"])
    assert abs(result.mean_score - result.clicks) < 0.04
    conversion = table["score_conversion"].to_numpy()
    assert auc(table["conversion"].to_numpy(), conversion) > 0.6
    assert {"baseline_popularity", "baseline_logistic", "category", "true_probability", "request_id"} <= set(table.column_names)


def test_another_label_than_click_can_be_the_main_task(planted, tmp_path):
    world, config, _ = planted
    tasks = [TaskSettings(name="conversion")]
    alone = config.model_copy(update={"output": tmp_path / "alone", "tasks": tasks})
    finetune.run(alone, Terminal(quiet=True))
    table, _ = _score(alone, tmp_path, prepared=world.path, split="test")
    assert "score_conversion" not in table.column_names
    happened = table["conversion"].to_numpy()
    assert auc(happened, table["score"].to_numpy()) > 0.6 and auc(happened, table["baseline_logistic"].to_numpy()) > 0.55
    judged = evaluate.run(
        EvaluateConfig(
            scored=tmp_path / "scored.parquet",
            output=tmp_path / "judged",
            tasks=[{"label": "conversion", "score": "score"}],
            bootstrap={"replicates": 50},
        ),
        Terminal(quiet=True),
    )
    found = judged.as_dict()["tasks"]["conversion"]["runs"]["model"]["metrics"]["auc"]["value"]
    assert found == pytest.approx(auc(happened, table["score"].to_numpy()))


def test_the_text_carries_it(planted, tmp_path):
    world, config, _ = planted
    blind = config.model_copy(
        update={
            "output": tmp_path / "blind",
            "text": config.text.model_copy(update={"reference": None}),
            "baselines": config.baselines.model_copy(update={"names": []}),
        }
    )
    finetune.run(blind, Terminal(quiet=True))
    with_text, _ = _score(config, tmp_path, prepared=world.path, split="test")
    without, _ = _score(blind, tmp_path, prepared=world.path, split="test")
    label = world.labels["test"]
    assert auc(label, with_text["score"].to_numpy()) > auc(label, without["score"].to_numpy()) + 0.02


def test_shuffled_labels_give_chance(tmp_path):
    world = make_world(tmp_path / "p", requests=1500, shuffle_labels=True)
    config = FinetuneConfig(
        prepared=world.path,
        output=tmp_path / "bundle",
        model=SMALL,
        training={**TRAINING, "epochs": 3},
        baselines={"names": []},
    )
    finetune.run(config, Terminal(quiet=True))
    table, _ = _score(config, tmp_path, prepared=world.path, split="test")
    assert 0.42 < auc(world.labels["test"], table["score"].to_numpy()) < 0.58


def test_batch_size_and_chunks_change_no_score(planted, tmp_path):
    world, config, _ = planted
    whole, _ = _score(config, tmp_path, prepared=world.path, split="test")
    for settings in ({"batch_rows": 1, "chunk_rows": 100, "shard_rows": 150}, {"batch_rows": 37, "chunk_rows": 50}):
        table, _ = _score(config, tmp_path, prepared=world.path, split="test", **settings)
        assert table.column_names == whole.column_names
        for name in ("score", "score_conversion", "baseline_logistic"):
            assert np.abs(table[name].to_numpy() - whole[name].to_numpy()).max() < 1e-6


def _raw(world, tmp_path):
    """The test split as a user would have it: identifiers and histories as lists of ids, no labels."""
    prepared = open_prepared(world.path)
    table = pa.Table.from_batches(list(prepared.iter("test")))
    ads = prepared.ads()
    ids = ads["ad_id"].to_pylist()
    history = [[ids[place] for place in row] for row in table["history_index"].to_pylist()]
    raw = table.select(["user_id", "ad_id", "shown_at", "request_id", "scenario", "counter_appeal"])
    raw = raw.append_column("history", pa.array(history, pa.list_(pa.string()))).append_column(
        "mine", pa.array(range(len(raw)))
    )
    pq.write_table(raw, tmp_path / "raw.parquet")
    pq.write_table(ads.drop_columns(["text", "segmented", "language"]), tmp_path / "ads.parquet")
    pq.write_table(prepared.users().drop_columns(["text", "segmented"]), tmp_path / "users.parquet")
    return raw


def test_raw_tables_give_the_same_scores_as_the_prepared_folder(planted, tmp_path):
    world, config, _ = planted
    expected, _ = _score(config, tmp_path, prepared=world.path, split="test")
    raw = _raw(world, tmp_path)
    # The texts of the world are its titles; the bundle renders raw ads by the default template.
    ads = pq.read_table(tmp_path / "ads.parquet")
    pq.write_table(ads.append_column("text", ads["title"]), tmp_path / "ads.parquet")
    table, _ = _score(
        config, tmp_path, impressions=tmp_path / "raw.parquet", ads=tmp_path / "ads.parquet", users=tmp_path / "users.parquet"
    )
    assert np.abs(table["logit"].to_numpy() - expected["logit"].to_numpy()).max() < 1e-5
    assert table["mine"].to_pylist() == raw["mine"].to_pylist()
    python = Predictor.load(config.output, cache=config.text.cache).score(
        raw, pq.read_table(tmp_path / "ads.parquet"), pq.read_table(tmp_path / "users.parquet")
    )
    assert np.abs(python["score"].to_numpy() - table["score"].to_numpy()).max() < 1e-6


def test_users_and_ads_never_seen(planted, tmp_path):
    _, config, _ = planted
    rows = pa.table(
        {
            "user_id": ["stranger", "u1", "stranger", "other"],
            "ad_id": ["new", "new", "a1", "a1"],
            "shown_at": pa.array([1_700_000_000_000_000] * 4, pa.timestamp("us", tz="UTC")),
            "scenario": ["never heard of", None, "social", "social"],
            "history": [["a1", "gone", "new"], [], None, ["gone"]],
        }
    )
    ads = pa.table({"ad_id": ["new", "a1"], "title": ["rose soil lawn", "goal striker"], "category": ["unheard", "c1"]})
    table = Predictor.load(config.output, cache=config.text.cache).score(rows, ads)
    assert np.isfinite(table["score"].to_numpy()).all() and (table["score"].to_numpy() > 0).all()
    assert table["cold_ad"].to_pylist() == [True, True, False, False]
    assert table["cold_user"].to_pylist() == [True, False, True, True]
    assert table["history_length"].to_pylist() == [3, 0, 0, 1]  # as given, as in training: ads gone since count


def test_history_from_a_click_log_is_strictly_earlier(planted):
    _, config, _ = planted
    predictor = Predictor.load(config.output, cache=config.text.cache)
    at = [10, 20, 20, 30]
    log = pa.table(
        {
            "user_id": ["u1", "u1", "u2", "u1"],
            "ad_id": ["a1", "a2", "a3", "gone"],
            "shown_at": pa.array(at, pa.timestamp("us", tz="UTC")),
            "click": [1, 1, 1, 1],
        }
    )
    ads = pa.table({"ad_id": ["a1", "a2", "a3"], "title": ["rose", "goal", "oven"]})
    rows = pa.table(
        {
            "user_id": ["u1", "u1", "u2", "u1"],
            "ad_id": ["a3"] * 4,
            "shown_at": pa.array([10, 20, 21, 99], pa.timestamp("us", tz="UTC")),
        }
    )
    table = predictor.score(rows, ads, history=log)
    assert table["history_length"].to_pylist() == [0, 1, 1, 2]


def test_bad_rows_are_named(planted, tmp_path):
    world, config, _ = planted
    _raw(world, tmp_path)
    raw = pq.read_table(tmp_path / "raw.parquet")
    settings = {"impressions": tmp_path / "raw.parquet", "ads": tmp_path / "ads.parquet", "chunk_rows": 100}
    ids = raw["ad_id"].to_pylist()
    pq.write_table(raw.set_column(1, "ad_id", pa.array([*ids[:150], "nope", *ids[151:]])), tmp_path / "raw.parquet")
    with pytest.raises(DataError, match="column 'ad_id', row 151: 'nope' is no ad's ad_id"):
        _score(config, tmp_path, **settings)
    pq.write_table(raw.drop_columns(["shown_at"]), tmp_path / "raw.parquet")
    with pytest.raises(DataError, match="column 'shown_at' is missing"):
        _score(config, tmp_path, **settings)
    pq.write_table(raw, tmp_path / "raw.parquet")
    ads = pq.read_table(tmp_path / "ads.parquet")
    pq.write_table(pa.concat_tables([ads, ads.slice(3, 1)]), tmp_path / "ads.parquet")
    with pytest.raises(DataError, match="ad_id 'a3' occurs more than once"):
        _score(config, tmp_path, **settings)
    assert not (tmp_path / "scored.parquet").exists()


def test_a_bundle_that_was_tampered_with_does_not_load(planted, tmp_path):
    _, config, _ = planted
    import shutil

    shutil.copytree(config.output, tmp_path / "bundle")
    with open(tmp_path / "bundle" / "model.safetensors", "r+b") as handle:
        handle.seek(-4, 2)
        handle.write(b"\x00\x00\x80\x7f")
    with pytest.raises(BundleError, match=r"model\.safetensors was altered"):
        Predictor.load(tmp_path / "bundle")


def test_the_bundle_holds_no_pickle(planted):
    _, config, _ = planted
    suffixes = {file.suffix for file in config.output.rglob("*") if file.is_file()}
    assert suffixes <= {".json", ".yaml", ".safetensors", ".parquet", ".txt", ".npz", ".md"}
    assert b"pickle" not in (config.output / "bundle.json").read_bytes()


def test_encode_orders_users_and_ads(planted, tmp_path):
    world, config, _ = planted
    settings = EncodeConfig(bundle=config.output, prepared=world.path, output=tmp_path / "vectors", cache=config.text.cache)
    result = encode.run(settings, Terminal(quiet=True))
    ads = np.load(tmp_path / "vectors" / "ads.npy")
    assert ads.shape == (result.ads, result.width) == (60, 32)
    assert (tmp_path / "vectors" / "users.ids.txt").read_text().splitlines()[:2] == ["u0", "u1"]
    table = pq.read_table(tmp_path / "vectors" / "ads.parquet")
    assert np.allclose(np.array(table["vector"].to_pylist(), np.float32), ads)
    predictor = Predictor.load(config.output, cache=config.text.cache)
    assert np.allclose(predictor.encode_ads(open_prepared(world.path).ads()), ads, atol=1e-6)


def test_streamed_training_learns_too(tmp_path, monkeypatch):
    monkeypatch.setattr("adrec.training.click_data.SHUFFLE_ROWS", 2000)
    world = make_world(tmp_path / "p", requests=3000)
    config = FinetuneConfig(
        prepared=world.path,
        output=tmp_path / "bundle",
        model=SMALL,
        training={**TRAINING, "in_memory_rows": 0},
        baselines={"names": ["popularity"]},
    )
    result = finetune.run(config, Terminal(quiet=True))
    assert result.models["adrec"]["auc"] > 0.65


def test_a_trained_encoder_travels_in_the_bundle(planted, tmp_path):
    world, config, result = planted
    trained = config.model_copy(
        update={
            "output": tmp_path / "trained",
            "text": config.text.model_copy(update={"train": "full", "learning_rate": 1e-2}),
            "training": config.training.model_copy(update={"epochs": 2}),
            "baselines": config.baselines.model_copy(update={"names": []}),
        }
    )
    found = finetune.run(trained, Terminal(quiet=True))
    table, _ = _score(trained, tmp_path, prepared=world.path, split="valid")
    # Scoring reads vectors made once by the trained encoder; validation in training ran it on tokens.
    assert abs(auc(world.labels["valid"], table["logit"].to_numpy()) - found.models["adrec"]["auc"]) < 1e-6
    before = load_text_encoder(str(config.output / "encoder")).state_dict()
    after = load_text_encoder(str(tmp_path / "trained" / "encoder")).state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_an_encoder_that_learned_from_these_clicks_is_warned_of(planted, tmp_path, capsys):
    world, config, _ = planted
    encoder = load_text_encoder(config.text.reference)
    encoder.clicks_of = open_prepared(world.path).fingerprint
    encoder.save(tmp_path / "leaky")
    assert load_text_encoder(str(tmp_path / "leaky")).clicks_of == encoder.clicks_of
    short = config.training.model_copy(update={"epochs": 1})
    update = {"output": tmp_path / "out", "training": short, "baselines": BaselinesConfig(names=[])}
    finetune.run(config.model_copy(update=update), Terminal())
    assert "learned from the clicks" not in capsys.readouterr().err
    update["text"] = config.text.model_copy(update={"reference": str(tmp_path / "leaky")})
    finetune.run(config.model_copy(update=update), Terminal())
    assert "learned from the clicks of these training rows" in " ".join(capsys.readouterr().err.split())


def test_an_ensemble_is_the_mean_of_its_networks(planted, tmp_path):
    world, config, _ = planted
    together = config.model_copy(
        update={
            "output": tmp_path / "together",
            "seeds": 2,
            "ensemble": True,
            "training": config.training.model_copy(update={"epochs": 2}),
            "baselines": config.baselines.model_copy(update={"names": []}),
        }
    )
    result = finetune.run(together, Terminal(quiet=True))
    assert set(result.deviations) >= {"auc", "log_loss"}
    predictor = Predictor.load(together.output, cache=config.text.cache)
    prepared = open_prepared(world.path)
    catalogs = predictor.catalogs(prepared.ads(), prepared.users())
    examples = load_examples(prepared, "test", max_history=15).take(np.arange(40))
    found = predictor.score_examples(examples, catalogs).logit
    parts = []
    for member in predictor.model.members:
        alone = Predictor(dataclasses.replace(predictor.packed, model=member), cache=config.text.cache)
        parts.append(alone.score_examples(examples, catalogs).logit)
    assert np.allclose(found, np.mean(parts, axis=0), atol=1e-6)
    assert not np.allclose(parts[0], parts[1], atol=1e-3)
    ads, users = predictor.ad_vectors(catalogs), predictor.user_vectors(examples, catalogs)
    assert ads.shape[1] == users.shape[1] == 2 * 32
    told = EncodeConfig(bundle=together.output, output=tmp_path / "vectors", prepared=world.path, cache=config.text.cache)
    assert encode.run(told, Terminal(quiet=True)).width == 2 * 32
    np.testing.assert_allclose(np.load(tmp_path / "vectors" / "ads.npy"), ads, atol=1e-6)


def test_mixed_precision_learns_the_same(planted, tmp_path):
    world, config, _ = planted
    training = FinetuneTraining(**TRAINING, precision="bf16")
    half = config.model_copy(update={"output": tmp_path / "half", "training": training, "device": "cpu"})
    finetune.run(half, Terminal(quiet=True))
    found = [_score(one, tmp_path, prepared=world.path, split="test")[0]["score"].to_numpy() for one in (config, half)]
    aucs = [auc(world.labels["test"], scores) for scores in found]
    assert aucs[1] == pytest.approx(aucs[0], abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_learn_as_one_with_two_batches_a_step(planted, tmp_path, strategy):
    _, config, _ = planted
    shape = config.model.model_copy(update={"dropout": 0.0, "identities": []})
    both = {"epochs": 1, "batch_rows": 128, "loggers": []}
    bundles = {}
    for name, more in {"one": {"accumulate": 2}, "two": {"devices": 2, "strategy": strategy}}.items():
        training = FinetuneTraining(**both, **more)
        changed = config.model_copy(
            update={"output": tmp_path / name, "model": shape, "training": training, "device": "cpu",
                    "baselines": BaselinesConfig(names=[])}
        )  # fmt: skip
        save_config(changed, tmp_path / f"{name}.yaml")
        command = [sys.executable, "-m", "adrec", "finetune", "--quiet", "--config", str(tmp_path / f"{name}.yaml")]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        bundles[name] = load_file(tmp_path / name / "model.safetensors")
    assert all(np.allclose(bundles["one"][name], bundles["two"][name], atol=1e-5) for name in bundles["one"])
