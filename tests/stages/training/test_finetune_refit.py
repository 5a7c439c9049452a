"""`refit`: what validation chose, trained once more on training and validation rows together."""

import json
import os
import subprocess
import sys

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file
from worlds import make_world

from adrec.bundle import open_bundle
from adrec.config.base import save_config
from adrec.config.inference.score import ScoreConfig
from adrec.config.training.baselines import BaselinesConfig
from adrec.config.training.finetune import FinetuneConfig
from adrec.data.prepared import open_prepared
from adrec.inference.packing import unpack
from adrec.stages.inference import score
from adrec.stages.training import finetune
from adrec.terminal import Terminal

QUIET = Terminal(quiet=True)


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """The same settings without and with `refit`."""
    folder = tmp_path_factory.mktemp("refit")
    world = make_world(folder / "prepared", requests=1500)
    config = FinetuneConfig(
        prepared=world.path,
        output=folder / "chosen",
        model={"width": 16, "hidden": [16], "identities": ["ads"]},
        training={"epochs": 4, "batch_rows": 256, "learning_rate": 4e-3, "loggers": []},
        baselines={"names": ["popularity", "lightgbm"]},
        hybrid={"kind": "weighted"},
        seeds=2,
        ensemble=True,
    )
    again = config.model_copy(update={"output": folder / "again", "refit": True})
    return world, config, again, finetune.run(config, QUIET), finetune.run(again, QUIET)


def test_validation_still_judges_what_it_chose(once):
    _, _, _, chosen, again = once
    assert again.models == chosen.models, "the refitted model has seen these rows: its own figures there mean nothing"
    assert chosen.refit is None and again.refit is not None


def test_all_rows_are_learned_for_as_long_as_was_best(once):
    world, config, again, _, result = once
    prepared = open_prepared(world.path)
    rows = {split: prepared.rows(split) for split in ("train", "valid")}
    assert result.refit["rows"] == sum(rows.values())
    schedule = config.training.epochs * round(sum(rows.values()) / config.training.batch_rows)
    assert result.refit["steps"] == round(result.refit["share"] * schedule)
    assert result.refit["agreement"] > 0.9
    before, after = (unpack(open_bundle(one.output)) for one in (config, again))
    seen = [int(pc.sum(packed.seen_ads["impressions"]).as_py()) for packed in (before, after)]
    assert seen == [rows["train"], sum(rows.values())]
    trees = [packed.baselines["lightgbm"].trees for packed in (before, after)]
    assert trees[0].count == trees[1].count and trees[0].booster.model_to_string() != trees[1].booster.model_to_string()
    weights = [load_file(one.output / "model.safetensors") for one in (config, again)]
    assert any(not np.allclose(weights[0][name], weights[1][name]) for name in weights[0])
    assert before.hybrid == after.hybrid
    assert "trained again on" in "".join(str(part) for part in result.render())


def test_rows_that_a_bundle_has_learned_flatter_it(once, tmp_path, capsys):
    world, config, again, _, _ = once
    warned = {}
    for one in (config, again):
        for split in ("train", "valid", "test"):
            settings = ScoreConfig(bundle=one.output, prepared=world.path, split=split, output=tmp_path / "scored.parquet")
            score.run(settings, Terminal())
            warned[one.refit, split] = "flatter" in " ".join(capsys.readouterr().err.split())
    assert {key for key, is_warned in warned.items() if is_warned} == {(False, "train"), (True, "train"), (True, "valid")}


def test_predicted_clicks_are_those_of_the_rows_it_learned(once, tmp_path):
    world, _, again, _, _ = once
    predicted = observed = 0.0
    for split in ("train", "valid"):
        settings = ScoreConfig(bundle=again.output, prepared=world.path, split=split, output=tmp_path / "scored.parquet")
        score.run(settings, QUIET)
        table = pq.read_table(tmp_path / "scored.parquet")
        predicted += pc.sum(table["score"]).as_py()
        observed += pc.sum(table["click"]).as_py()
    # The validation rows may pull the level towards their own, by no more than chance allows.
    assert predicted / observed == pytest.approx(1, abs=0.05)


def test_a_run_stopped_before_the_refit_ends_as_if_it_had_not_been(once, tmp_path, monkeypatch):
    _, _, again, _, _ = once
    stopped = again.model_copy(update={"output": tmp_path / "stopped"})

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("adrec.stages.training.finetuning.networks.train_again", stop)
        with pytest.raises(KeyboardInterrupt):
            finetune.run(stopped, QUIET)
    assert not stopped.output.exists()
    finetune.run(stopped, QUIET)
    weights = [load_file(one.output / "model.safetensors") for one in (again, stopped)]
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_streamed_rows_and_one_network_of_several(once, tmp_path, monkeypatch):
    monkeypatch.setattr("adrec.training.click_data.SHUFFLE_ROWS", 1500)
    _, config, again, _, _ = once
    training = config.training.model_copy(update={"in_memory_rows": 0, "epochs": 2})
    update = {"output": tmp_path / "streamed", "training": training, "ensemble": False}
    result = finetune.run(again.model_copy(update=update), QUIET)
    metrics = json.loads((tmp_path / "streamed" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["refit"] == result.refit
    assert result.refit["rows"] == sum(open_prepared(config.prepared).rows(split) for split in ("train", "valid"))
    assert result.best_seed in result.seeds


@pytest.mark.slow
def test_two_processes_train_every_seed_and_the_refit(once, tmp_path):
    _, config, again, _, _ = once
    alone = {"output": tmp_path / "one", "device": "cpu", "baselines": BaselinesConfig(names=[]), "hybrid": {"kind": "none"}}
    bundles = []
    for name, more in {"one": {"accumulate": 2}, "two": {"devices": 2}}.items():
        training = config.training.model_copy(update={"epochs": 1, "batch_rows": 128, **more})
        shape = config.model.model_copy(update={"dropout": 0.0, "identities": []})
        update = {**alone, "output": tmp_path / name, "training": training, "model": shape}
        changed = FinetuneConfig.model_validate({**again.model_dump(), **update})
        save_config(changed, tmp_path / f"{name}.yaml")
        command = [sys.executable, "-m", "adrec", "finetune", "--quiet", "--config", str(tmp_path / f"{name}.yaml")]
        subprocess.run(command, check=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})
        bundles.append(load_file(tmp_path / name / "model.safetensors"))
    assert all(np.allclose(bundles[0][name], bundles[1][name], atol=1e-5) for name in bundles[0])
