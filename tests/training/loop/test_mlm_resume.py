"""The trainer: a run that dies and goes on equals one that never stopped; decay groups; schedules; faults."""

import math
import signal
import warnings

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional

from adrec.config.training.loop import TrainingConfig
from adrec.data.device import resolve_device
from adrec.errors import AdrecError, ConfigError, Interrupted, ResourceError
from adrec.terminal import Terminal
from adrec.training.loop.loader import BatchLoader, shuffled
from adrec.training.loop.optimizer import configure_adamw, parameter_groups, warmup_schedule
from adrec.training.loop.trainer import fit, open_work, total_batches, total_steps

X = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
Y = (X.sum(axis=1) > 0).astype(np.float32)


class Killed(RuntimeError):
    """Stands for kill -9: raised inside a step."""


class Small(pl.LightningModule):
    """A net with dropout (it draws from torch's generator) that dies at a given batch."""

    def __init__(self, steps, die_at=None, poison_at=None, signal_at=None):
        super().__init__()
        self.signal_at = signal_at or {}
        self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 1))
        self.steps, self.die_at, self.poison_at = steps, die_at, poison_at

    def training_step(self, batch, number):
        if number == self.die_at:
            raise Killed
        if number in self.signal_at:
            signal.raise_signal(self.signal_at[number])  # to this thread: another might get it too late
        loss = functional.binary_cross_entropy_with_logits(self.net(batch[0])[:, 0], batch[1])
        return loss * math.nan if number == self.poison_at else loss

    def validation_step(self, batch, _):
        loss = functional.binary_cross_entropy_with_logits(self.net(batch[0])[:, 0], batch[1])
        self.log("valid_loss", loss, batch_size=len(batch[1]))

    def configure_optimizers(self):
        return configure_adamw([(self, 1e-2)], total_steps=self.steps, weight_decay=0.01)


def plan(epoch):
    order = shuffled(240, seed=1, epoch=epoch)
    return [order[start : start + 20] for start in range(0, 240, 20)]


def collate(rows, generator):
    noise = generator.normal(size=(len(rows), 8)).astype(np.float32) * 0.1
    return torch.from_numpy(X[rows] + noise), torch.from_numpy(Y[rows])


def run(work, *, die_at=None, poison_at=None, signal_at=None, workers=0, identity=None, **settings):
    config = TrainingConfig(
        **{"epochs": 3, "checkpoint_steps": 4, "patience": None, "evaluations_per_epoch": 2, "accumulate": 2, **settings}
    )
    open_work(work, identity or {"run": 1}, resume=config.resume)
    torch.manual_seed(0)
    module = Small(total_steps(config, 12), die_at, poison_at, signal_at)
    train = BatchLoader(plan, collate, total=total_batches(config, 12), seed=5, workers=workers)
    valid = BatchLoader(lambda epoch: [np.arange(240, 300)], collate, seed=6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = fit(
            module, train, valid, config=config, seed=3, device="cpu", work=work, terminal=Terminal(quiet=True), description="t"
        )
    return module, result


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nothing interrupts."""
    return run(tmp_path_factory.mktemp("whole") / "work")


@pytest.mark.parametrize("seed", range(4))
def test_killed_at_a_random_step_the_run_ends_as_if_nothing_had_happened(tmp_path, whole, seed):
    die_at = int(np.random.default_rng(seed).integers(9, 36))
    with pytest.raises(Killed):
        run(tmp_path / "work", die_at=die_at)
    module, result = run(tmp_path / "work")
    assert 0 < result.resumed_at <= die_at // 2
    assert result.losses == whole[1].losses and len(result.losses) == 36
    assert result.evaluations == whole[1].evaluations
    assert (result.best, result.best_step, result.steps) == (whole[1].best, whole[1].best_step, whole[1].steps)
    assert all(torch.equal(a, b) for a, b in zip(module.state_dict().values(), whole[0].state_dict().values(), strict=True))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at", [9, 11, 12])
def test_a_signal_ends_the_step_leaves_a_checkpoint_and_the_run_goes_on_there(tmp_path, whole, number, at):
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match="stopped at step") as caught:
        run(tmp_path / "work", signal_at={at: number}, checkpoint_steps=1000)
    assert caught.value.exit_code == 128 + number
    assert signal.getsignal(number) is before
    module, result = run(tmp_path / "work", checkpoint_steps=1000)
    assert at // 2 < result.resumed_at <= at // 2 + 2  # at the next step without an evaluation
    assert result.losses == whole[1].losses and result.evaluations == whole[1].evaluations
    assert all(torch.equal(a, b) for a, b in zip(module.state_dict().values(), whole[0].state_dict().values(), strict=True))


def test_a_second_signal_acts_at_once(tmp_path, request):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a server of another test may have left its own
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with pytest.raises(KeyboardInterrupt) as caught:
        run(tmp_path / "work", signal_at={9: signal.SIGINT, 10: signal.SIGINT}, checkpoint_steps=1000, accumulate=3)
    assert not isinstance(caught.value, Interrupted)


def test_killed_twice_and_with_workers(tmp_path, whole):
    for die_at in (13, 30):
        with pytest.raises(Killed):
            run(tmp_path / "work", die_at=die_at, workers=1)
    module, result = run(tmp_path / "work", workers=1)
    assert result.losses == whole[1].losses
    assert all(torch.equal(a, b) for a, b in zip(module.state_dict().values(), whole[0].state_dict().values(), strict=True))


def test_the_module_holds_the_best_weights_and_patience_stops(tmp_path):
    module, result = run(tmp_path / "work", patience=1, epochs=40, learning_rate=1e-2)
    assert result.stopped_early and result.steps < 240
    assert result.best == min(point["valid_loss"] for point in result.evaluations)
    module.eval()
    rows = np.arange(240, 300)
    inputs, labels = collate(rows, np.random.default_rng([6, 0]))
    with torch.no_grad():
        again = functional.binary_cross_entropy_with_logits(module.net(inputs)[:, 0], labels)
    assert float(again) == pytest.approx(result.best, abs=1e-6)


def test_a_checkpoint_of_another_config_is_refused_by_name(tmp_path):
    first = {"config": {"training": {"learning_rate": 0.1}, "seed": 1}}
    with pytest.raises(Killed):
        run(tmp_path / "work", die_at=20, identity=first)
    other = {"config": {"training": {"learning_rate": 0.2}, "seed": 1}}
    with pytest.raises(ConfigError, match=r"config\.training\.learning_rate"):
        run(tmp_path / "work", identity=other)
    _, result = run(tmp_path / "work", identity=other, resume=False)
    assert result.resumed_at == 0


def test_a_loss_that_is_not_finite_stops_before_it_reaches_the_weights(tmp_path):
    with pytest.raises(AdrecError, match="the loss is nan"):
        run(tmp_path / "work", poison_at=9)
    _, result = run(tmp_path / "work")
    assert result.resumed_at == 4 and np.isfinite(result.losses).all()


def test_ranks_share_the_batches_and_workers_change_nothing():
    alone = [batch[0].sum().item() for batch in BatchLoader(plan, collate, epochs=2, seed=5)]
    parts = [
        [batch[0].sum().item() for batch in BatchLoader(plan, collate, epochs=2, seed=5, rank=r, world=3)] for r in range(3)
    ]
    assert [value for together in zip(*parts, strict=True) for value in together] == alone
    assert [batch[0].sum().item() for batch in BatchLoader(plan, collate, epochs=2, seed=5, workers=2)] == alone


def test_matrices_decay_vectors_do_not_and_shared_weights_count_once():
    shared = nn.Linear(4, 4)
    module = nn.ModuleDict({"a": nn.Sequential(shared, nn.LayerNorm(4)), "b": nn.Embedding(5, 4)})
    frozen = nn.Linear(4, 2)
    frozen.requires_grad_(False)
    groups = parameter_groups([(module["a"], 1e-3), (module, 1e-2), (frozen, 1.0)], weight_decay=0.1)
    of = {id(parameter): group for group in groups for parameter in group["params"]}
    assert len(of) == sum(len(group["params"]) for group in groups) == 5
    assert (of[id(shared.weight)]["weight_decay"], of[id(shared.weight)]["lr"]) == (0.1, 1e-3)
    assert of[id(shared.bias)]["weight_decay"] == of[id(module["a"][1].weight)]["weight_decay"] == 0
    assert (of[id(module["b"].weight)]["weight_decay"], of[id(module["b"].weight)]["lr"]) == (0.1, 1e-2)


@pytest.mark.parametrize(("schedule", "half", "end"), [("linear", 0.5, 0.0), ("cosine", 0.5, 0.0), ("constant", 1.0, 1.0)])
def test_schedules(schedule, half, end):
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    scheduler = warmup_schedule(optimizer, total_steps=110, schedule=schedule, warmup_fraction=10 / 110)
    rates = []
    for _ in range(111):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert (rates[10], rates[60], rates[110]) == pytest.approx((1.0, half, end))


def test_a_device_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == "cpu"
    with pytest.raises(ResourceError, match="no GPU"):
        resolve_device("cuda")
