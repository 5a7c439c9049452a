"""Row-wise AdaGrad beside AdamW: against a loop over rows, over a stop, in two processes, and in a whole finetune."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from ports import free_port
from safetensors.numpy import load_file
from torch import nn
from torch.distributed.tensor import DTensor
from worlds import make_world

from adrec.config.inference.score import ScoreConfig
from adrec.config.training.finetune import FinetuneConfig
from adrec.stages.inference import score
from adrec.stages.training import finetune
from adrec.terminal import Terminal
from adrec.training.loop.by_rows import AdamWByRows, LearnsByRows
from adrec.training.loop.optimizer import parameter_groups
from adrec.training.loop.row_shards import local_part, shard_tables, tables_by_rows

ROWS, WIDTH, DECAY, RATE = 12, 3, 0.3, 0.01
QUIET = Terminal(quiet=True)


class Small(nn.Module):
    def __init__(self, *, sparse):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(ROWS, WIDTH, sparse=sparse)
        self.out = nn.Linear(WIDTH, 1)

    def forward(self, codes):
        return self.out(torch.tanh(self.table(codes))).square().mean()


def optimizer_of(network):
    return AdamWByRows(parameter_groups([(network, RATE)], weight_decay=DECAY), fused=True)


def batches(count, seed=1):
    generator = np.random.default_rng(seed)
    return [torch.from_numpy(generator.integers(0, ROWS - 2, 5)) for _ in range(count)]


def trained(network, optimizer, steps):
    for codes in steps:
        optimizer.zero_grad()
        network(codes).backward()
        optimizer.step()
    return network


def test_every_row_moves_as_a_loop_over_rows_says():
    rows, dense = Small(sparse=True), Small(sparse=False)
    optimizer = optimizer_of(rows)
    assert set(tables_by_rows(rows)) == {"table.weight"}
    groups = [{"params": [dense.out.weight], "weight_decay": DECAY}, {"params": [dense.out.bias], "weight_decay": 0}]
    plain = torch.optim.AdamW(groups, lr=RATE)
    squares = [0.0] * ROWS
    for codes in batches(30):
        trained(rows, optimizer, [codes])
        dense.zero_grad()
        dense(codes).backward()
        with torch.no_grad():
            gradients = dense.table.weight.grad
            for row in range(ROWS):
                if row in codes.tolist():
                    gradient = gradients[row]
                    squares[row] += float(gradient.square().mean())
                    before = dense.table.weight[row].clone()
                    step = 10 * RATE * (DECAY / 10 * before + gradient / (squares[row] ** 0.5 + 1e-8))
                    dense.table.weight[row] = before - step
        plain.step()
    torch.testing.assert_close(rows.table.weight, dense.table.weight)
    torch.testing.assert_close(rows.out.weight, dense.out.weight)
    torch.testing.assert_close(rows.out.bias, dense.out.bias)
    untouched = Small(sparse=True).table.weight
    assert torch.equal(rows.table.weight[ROWS - 2 :], untouched[ROWS - 2 :])
    assert not torch.equal(rows.table.weight[: ROWS - 2], untouched[: ROWS - 2])


def test_what_a_row_has_learned_survives_a_stop():
    steps = batches(20)
    whole = Small(sparse=True)
    trained(whole, optimizer := optimizer_of(whole), steps)
    half = Small(sparse=True)
    trained(half, first := optimizer_of(half), steps[:9])
    kept = io.BytesIO()
    torch.save({"network": half.state_dict(), "optimizer": first.state_dict()}, kept)
    kept.seek(0)
    stored = torch.load(kept, weights_only=True)
    again = Small(sparse=True)
    again.load_state_dict(stored["network"])
    second = optimizer_of(again)
    second.load_state_dict(stored["optimizer"])
    trained(again, second, steps[9:])
    assert torch.equal(again.table.weight, whole.table.weight)
    assert torch.equal(again.out.weight, whole.out.weight)
    state = optimizer.state[whole.table.weight]
    assert {name: tuple(value.shape) for name, value in state.items()} == {"step": (), "squares": (ROWS,)}  # one number a row


def settings_of(world, output, **model):
    own = {"identities": ["ads", "users"], "identity_optimizer": "rowwise"}
    shape = {"width": 8, "hidden": [8], "dropout": 0.0, **own, **model}
    return {
        "prepared": world.path, "output": output, "model": shape, "device": "cpu", "baselines": {"names": []},
        "training": {"epochs": 2, "batch_rows": 128, "loggers": []}, "recall_requests": 0,
    }  # fmt: skip


@pytest.mark.parametrize("rows", [None, 5])
def test_a_network_learns_and_scores_with_it(rows, tmp_path):
    world = make_world(tmp_path / "prepared", users=30, requests=250)
    for name in ("rowwise", "adamw"):
        config = FinetuneConfig(**settings_of(world, tmp_path / name, identity_rows=rows, identity_optimizer=name))
        finetune.run(config, QUIET)
        rows_of = {"prepared": world.path, "split": "test"}
        score.run(ScoreConfig(bundle=tmp_path / name, output=tmp_path / f"{name}.parquet", **rows_of), QUIET)
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("rowwise", "adamw"))
    assert {key: value.shape for key, value in one.items()} == {key: value.shape for key, value in other.items()}
    tables = [key for key in one if ".identity." in key]
    assert len(tables) == (2 if rows is None else 4)
    assert all(not np.allclose(one[key], other[key]) for key in tables)


@pytest.fixture
def one_process(tmp_path):
    """A process group of this process alone."""
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


def test_a_table_that_is_shared_out_learns_as_a_whole_one(one_process):
    whole, shared = Small(sparse=True), Small(sparse=True)
    trained(whole, optimizer_of(whole), batches(20))
    (weight,) = shard_tables(shared, "cpu")
    assert isinstance(weight, DTensor) and weight is shared.table.weight
    optimizer = optimizer_of(shared)
    trained(shared, optimizer, batches(20))
    torch.testing.assert_close(local_part(weight.detach()), whole.table.weight.detach())
    torch.testing.assert_close(shared.out.weight, whole.out.weight)
    state = optimizer.state[weight]
    assert isinstance(state["squares"], DTensor) and state["squares"].shape == (ROWS,)


class Learner(LearnsByRows):
    """As the click model learns, without dropout: the mean of its processes' gradients, rows and all else."""

    def __init__(self):
        super().__init__()
        self.network = Small(sparse=True)
        self.find_tables()

    def forward(self, codes):
        return self.network(codes)


def in_one_of_two(rank, port, folder):
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    learner = Learner()
    shared = nn.parallel.DistributedDataParallel(learner)
    optimizer = optimizer_of(learner)
    for codes in batches(12, seed=rank):
        optimizer.zero_grad()
        shared(codes).backward()
        learner.on_before_optimizer_step(optimizer)
        learner.configure_gradient_clipping(optimizer, 0.05, "norm")
        optimizer.step()
    torch.save(learner.network.state_dict(), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_learn_as_one_does_from_both_batches(tmp_path):
    port = free_port()
    torch.multiprocessing.spawn(in_one_of_two, args=(port, tmp_path), nprocs=2)
    learner = Learner()
    optimizer = optimizer_of(learner)
    for both in zip(batches(12, seed=0), batches(12, seed=1), strict=True):
        optimizer.zero_grad()
        torch.stack([learner(codes) for codes in both]).mean().backward()
        learner.configure_gradient_clipping(optimizer, 0.05, "norm")
        optimizer.step()
    for rank in range(2):
        for name, value in torch.load(tmp_path / f"{rank}.pt", weights_only=True).items():
            torch.testing.assert_close(value, learner.network.state_dict()[name])


@pytest.mark.slow
def test_two_processes_train_a_bundle(tmp_path):
    world = make_world(tmp_path / "prepared", users=30, requests=250)
    settings = ["model.width=8", "model.hidden=[8]", "model.identities=[ads, users]", "model.identity_optimizer=rowwise"]
    settings += ["training.epochs=1", "training.batch_rows=64", "training.loggers=[]", "training.devices=2", "device=cpu"]
    settings += ["baselines.names=[]", "recall_requests=0", f"prepared={world.path}", f"output={tmp_path / 'bundle'}"]
    command = [sys.executable, "-m", "adrec", "finetune", "--quiet"]
    for setting in settings:
        command += ["--set", setting]
    subprocess.run(command, check=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})
    weights = load_file(tmp_path / "bundle" / "model.safetensors")
    assert all(np.isfinite(value).all() for value in weights.values())
