"""The moving average of the weights: what is judged and kept, and a run that dies and goes on."""

import copy
import warnings

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional

from adrec.config.training.loop import TrainingConfig
from adrec.terminal import Terminal
from adrec.training.loader import BatchLoader, shuffled
from adrec.training.optimizer import configure_adamw
from adrec.training.trainer import fit, open_work, total_batches, total_steps

X = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
Y = X.sum(axis=1, keepdims=True)


class Net(pl.LightningModule):
    """A linear map with dropout before it; notes its weights after each step, and dies at a given batch."""

    def __init__(self, steps, die_at=None):
        super().__init__()
        self.net = nn.Sequential(nn.Dropout(0.2), nn.Linear(8, 1))
        self.steps, self.die_at, self.noted = steps, die_at, []

    def training_step(self, batch, number):
        if number == self.die_at:
            raise RuntimeError("killed")
        self.noted.append(copy.deepcopy(self.net.state_dict()))
        return functional.mse_loss(self.net(batch[0]), batch[1])

    def validation_step(self, batch, _):
        self.log("valid_loss", functional.mse_loss(self.net(batch[0]), batch[1]), batch_size=len(batch[1]))

    def configure_optimizers(self):
        return configure_adamw([(self, 5e-2)], total_steps=self.steps, weight_decay=0.0, schedule="constant")


def collate(rows, generator):
    return torch.from_numpy(X[rows]), torch.from_numpy(Y[rows])


def run(work, *, die_at=None, valid=True, **settings):
    config = TrainingConfig(**{"epochs": 3, "checkpoint_steps": 4, "patience": None, "average": "ema", **settings})
    open_work(work, {"run": 1}, resume=True)
    torch.manual_seed(0)
    module = Net(total_steps(config, 12), die_at)
    batches = [shuffled(240, seed=1, epoch=0)[start : start + 20] for start in range(0, 240, 20)]
    train = BatchLoader(lambda epoch: batches, collate, total=total_batches(config, 12), seed=5)
    judged = BatchLoader(lambda epoch: [np.arange(240, 300)], collate, seed=6) if valid else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = fit(
            module,
            train,
            judged,
            config=config,
            seed=3,
            device="cpu",
            work=work,
            terminal=Terminal(quiet=True),
            description="t",
        )
    return module, result


def test_without_evaluation_the_average_of_all_steps_stands(tmp_path):
    module, _ = run(tmp_path / "work", valid=False)
    last, _ = run(tmp_path / "plain", valid=False, average="none")
    # The weights before each step but the first are those after the one before; after the last step they are the plain run's.
    after = [state["1.weight"] for state in module.noted[1:]] + [last.net[1].weight.detach()]
    average = after[0].clone()
    for count, weight in enumerate(after[1:], start=1):
        kept = min(0.995, (1 + count) / (10 + count))
        average = kept * average + (1 - kept) * weight
    torch.testing.assert_close(module.net[1].weight.detach(), average)
    assert not torch.allclose(module.net[1].weight, last.net[1].weight, atol=1e-3)


def test_what_was_judged_is_what_is_kept(tmp_path):
    module, result = run(tmp_path / "work")
    module.eval()
    with torch.no_grad():
        inputs, labels = collate(np.arange(240, 300), None)
        again = float(functional.mse_loss(module.net(inputs), labels))
    assert again == pytest.approx(result.best, abs=1e-6)
    assert [point["valid_loss"] for point in result.evaluations] != [
        point["valid_loss"] for point in run(tmp_path / "plain", average="none")[1].evaluations
    ]


def test_averaging_leaves_the_steps_as_they_are(tmp_path):
    _, averaged = run(tmp_path / "work")
    _, plain = run(tmp_path / "plain", average="none")
    assert averaged.losses == plain.losses


def test_killed_it_ends_as_if_nothing_had_happened(tmp_path):
    whole, expected = run(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path / "work", die_at=27)
    module, result = run(tmp_path / "work")
    assert result.resumed_at > 0
    assert (result.losses, result.evaluations) == (expected.losses, expected.evaluations)
    assert all(torch.equal(a, b) for a, b in zip(module.state_dict().values(), whole.state_dict().values(), strict=True))


def test_sharded_weights_are_refused():
    with pytest.raises(ValidationError, match="average: needs whole weights"):
        TrainingConfig(average="ema", strategy="fsdp", devices=2)
