"""The noised level is that of rows, whoever they belong to: users of a long list each do not drown in those of short ones."""

from types import SimpleNamespace

import numpy as np
import pytest

from adrec.models.net.tasks import Task
from adrec.privacy.mechanisms import Releases
from adrec.privacy.noise import Noise
from adrec.stages.training.finetuning import private_calibration
from adrec.stages.training.finetuning.private_calibration import private_calibrations


class Rows:
    """As much of `Examples` as calibration reads."""

    def __init__(self, user, click, logit):
        self.user_index, self.labels, self.logit = user, {"click": click.astype(np.float32)}, logit.astype(np.float32)

    def __len__(self):
        return len(self.user_index)

    def take(self, rows):
        return Rows(self.user_index[rows], self.labels["click"][rows], self.logit[rows])


def rows_of(users, first, random):
    """Every user one list with about one click in it, of four ads or of sixty."""
    sizes = np.where(np.arange(users) % 2, 60, 4)
    user = np.repeat(np.arange(users), sizes) + first
    click = random.random(len(user)) < 1.0 / np.repeat(sizes, sizes)
    return Rows(user, click, np.log(0.1 / 0.9) + random.normal(0, 0.5, len(user)))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_level_is_that_of_rows_and_not_of_users(monkeypatch, seed):
    random = np.random.default_rng(seed)
    train, valid = rows_of(3000, 0, random), rows_of(400, 3000, random)
    outputs = lambda module, rows, device: SimpleNamespace(logits=rows.logit[:, None])  # noqa: E731
    monkeypatch.setattr(private_calibration, "raw_outputs", outputs)
    data = SimpleNamespace(train=train, valid=valid, tasks=(Task("click", mean=0.13),), batches=lambda rows: rows)
    privacy = SimpleNamespace(unit="user", max_rows_per_user=32)
    config = SimpleNamespace(calibration="platt", privacy=privacy, device="cpu")
    releases = Releases(Noise(seed=seed), 20.0, 1e-7)
    fitted = private_calibrations(config, data, SimpleNamespace(module=None), valid.logit[:, None], releases)["click"]
    clicks = train.labels["click"].mean()
    assert clicks == pytest.approx(2 / 64, rel=0.1)  # of users alike it would be .13
    assert fitted.apply(train.logit).mean() / clicks == pytest.approx(1.0, abs=0.12)
