"""kill -9 while pretraining: the same command given again ends with the weights of a run that nothing stopped."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from corpora import make_corpus
from safetensors.torch import load_file

from adrec.config.base import load_config
from adrec.config.training.pretrain import PretrainConfig
from adrec.stages.training.pretrain import run
from adrec.terminal import Terminal
from adrec.training.loop.trainer import work_folder


def settings(prepared, output, streamed):
    return [
        f"prepared={prepared}",
        f"output={output}",
        f"batches.streamed={str(streamed).lower()}",
        "batches.max_tokens=32",
        "batches.batch_tokens=512",
        "batches.chunk_texts=100",
        "training.epochs=60",
        "training.patience=null",
        "training.checkpoint_steps=5",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("streamed", [False, True])
def test_killed_in_the_middle_of_an_epoch_and_given_again(tmp_path, streamed):
    prepared = make_corpus(tmp_path / "prepared", count=240)
    whole = run(load_config(None, PretrainConfig, settings(prepared, tmp_path / "whole", streamed)), Terminal(quiet=True))
    given = [f"--set={one}" for one in settings(prepared, tmp_path / "cut", streamed)]
    command = [sys.executable, "-m", "adrec", "pretrain-mlm", "--quiet", *given]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=process_environment())
    checkpoint = work_folder(tmp_path / "cut") / "last.ckpt"
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL and not (tmp_path / "cut").exists()
    finished = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True, env=process_environment())
    resumed = json.loads(finished.stdout)
    assert resumed["run"]["resumed_at"] >= 5
    assert resumed["run"]["evaluations"] == whole.run.evaluations
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut")]
    assert weights[0].keys() == weights[1].keys()
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_killed_and_given_again(tmp_path, strategy):
    """Each process goes on with its own random state: dropout after the kill is what it would have been."""
    prepared = make_corpus(tmp_path / "prepared", count=240)
    two = ["training.devices=2", f"training.strategy={strategy}", "device=cpu", "training.epochs=30"]
    commands = {}
    for name in ("whole", "cut"):
        given = [f"--set={one}" for one in [*settings(prepared, tmp_path / name, False), *two]]
        commands[name] = [sys.executable, "-m", "adrec", "pretrain-mlm", "--quiet", *given]
    subprocess.run(commands["whole"], check=True, env=process_environment())
    process = subprocess.Popen(
        commands["cut"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=process_environment(), start_new_session=True
    )
    checkpoint = work_folder(tmp_path / "cut") / "last.ckpt"
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL and not (tmp_path / "cut").exists()
    finished = subprocess.run(
        [*commands["cut"], "--json"], capture_output=True, text=True, check=True, env=process_environment()
    )
    assert json.loads(finished.stdout)["run"]["resumed_at"] >= 5
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut")]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])


def process_environment():
    return {**os.environ, "OMP_NUM_THREADS": "1"}
