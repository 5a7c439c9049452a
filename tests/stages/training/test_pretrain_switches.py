"""Switches that must change the cost of pretraining and not what is learned."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from corpora import make_corpus

from adrec.config.base import load_config
from adrec.config.training.pretrain import PretrainConfig
from adrec.errors import ConfigError
from adrec.stages.training.pretrain import run
from adrec.terminal import Terminal


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A prepared folder."""
    return make_corpus(tmp_path_factory.mktemp("switches") / "prepared", count=160)


@pytest.fixture(scope="module")
def plain(prepared, tmp_path_factory):
    """The run that no switch touches."""
    return pretrain(prepared, tmp_path_factory.mktemp("plain") / "encoder")


def settings(prepared, output, *overrides):
    return [
        f"prepared={prepared}",
        f"output={output}",
        "batches.max_tokens=32",
        "batches.batch_tokens=256",
        "training.epochs=2",
        "training.patience=null",
        "training.learning_rate=0.002",
        "objectives.contrastive.weight=0.1",
        *overrides,
    ]


def pretrain(prepared, output, *overrides):
    return run(load_config(None, PretrainConfig, settings(prepared, output, *overrides)), Terminal(quiet=True))


def test_gradient_checkpointing_gives_the_same_losses(prepared, plain, tmp_path):
    result = pretrain(prepared, tmp_path / "e", "training.gradient_checkpointing=true")
    assert np.allclose(result.run.losses, plain.run.losses, rtol=1e-4)


def test_workers_and_streaming_give_the_same_losses(prepared, plain, tmp_path):
    for number, switch in enumerate((["training.workers=1"], ["batches.streamed=true", "objectives.contrastive=null"])):
        wanted = plain if number == 0 else pretrain(prepared, tmp_path / "m", "objectives.contrastive=null")
        assert pretrain(prepared, tmp_path / f"e{number}", *switch).run.losses == wanted.run.losses
    with pytest.raises(ConfigError, match="hold the whole corpus in memory"):
        pretrain(prepared, tmp_path / "no", "batches.streamed=true")


def test_the_profile_is_a_table_and_a_trace(prepared, tmp_path):
    pretrain(prepared, tmp_path / "e", "training.profile=true", "objectives.contrastive=null")
    assert "aten::" in (tmp_path / "e" / "profile" / "table.txt").read_text()
    assert json.loads((tmp_path / "e" / "profile" / "trace.json").read_text())["traceEvents"]


def test_mixed_precision_clips_and_learns_the_same(prepared, plain, tmp_path):
    """What a GPU with bfloat16 does by default; here by autocast on the CPU."""
    half = pretrain(prepared, tmp_path / "bf16", "training.precision=bf16")
    assert half.scores["all"]["after"].loss == pytest.approx(plain.scores["all"]["after"].loss, abs=0.05)


@pytest.mark.slow
def test_a_compiled_encoder_learns_the_same(prepared, plain, tmp_path):
    compiled = pretrain(prepared, tmp_path / "compiled", "training.compile=true")
    assert compiled.scores["all"]["after"].loss == pytest.approx(plain.scores["all"]["after"].loss, abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_learn_as_one_with_two_batches_a_step(prepared, tmp_path, strategy):
    common = [
        "objectives.contrastive=null",
        "training.max_steps=20",
        "training.epochs=20",
        "model.kind=scratch",
        "model.dropout=0",
    ]
    alone = pretrain(prepared, tmp_path / "one", *common, "training.accumulate=2")
    two = ["training.devices=2", f"training.strategy={strategy}", "device=cpu"]
    given = [f"--set={one}" for one in settings(prepared, tmp_path / "two", *common, *two)]
    subprocess.run(
        [sys.executable, "-m", "adrec", "pretrain-mlm", "--quiet", *given],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    scores = json.loads((tmp_path / "two" / "metrics.json").read_text())["held_out"]["all"]
    assert scores["after"]["loss"] == pytest.approx(alone.scores["all"]["after"].loss, abs=1e-3)
