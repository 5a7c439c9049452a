"""Calibration under `privacy`: a level and Platt's line a task, fitted on noised sums over what each unit's rows say."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from adrec.config.training.finetune import FinetuneConfig
from adrec.models.blend.calibration import Calibration
from adrec.models.blend.calibration_sums import LEVEL_STEPS, LINE_STEPS, LineFit, line_sums
from adrec.models.net.tasks import Task
from adrec.privacy.mechanisms import LINE_SENSITIVITY, Releases, some_of_each
from adrec.training.click_data import ClickData
from adrec.training.ctr_training import Trained, raw_outputs

_ROWS_OF_A_USER = 4
"""Of the validation rows, that calibration's line reads."""
_LEVEL_ROWS, _LEVEL_MOST = 128, 6.0
"""Of a user's training and validation rows, that the level reads, and what he may add to its sum. A mean over four rows would
say a fifth as much: clicks are few, and one changes it by a quarter. Sixteen rows of each would count users alike, and who sees
little clicks more of it: of MIND's rows 4.0 % are clicked, of sixteen a user 6.5 %."""


def private_calibrations(
    config: FinetuneConfig, data: ClickData, trained: Trained, raw: NDArray[np.float32], releases: Releases
) -> dict[str, Calibration]:
    """Platt's line a task: its level by a sum of its own, then Newton's steps over noised sums, to which the rows of a user add
    as one row of all together. Where the sums say less than their noise the line stays at the network's own probabilities.
    """
    if config.calibration == "none":
        return {task.name: Calibration() for task in data.tasks}
    assert config.privacy is not None
    maps, valid = {}, data.valid
    of_user = config.privacy.unit == "user"
    of_line = min(config.privacy.max_rows_per_user, _ROWS_OF_A_USER) if of_user else 1
    for number, task in enumerate(data.tasks):
        labels = valid.labels[task.name]
        own = valid.user_index.astype(np.int64) if of_user else np.arange(len(valid))
        rows = some_of_each(np.where(np.isnan(labels), -1, own), of_line, releases.randomness)
        unit = np.unique(own[rows], return_inverse=True)[1]
        fit = LineFit(releases.noise * LINE_SENSITIVITY)
        scored = _Scored(raw[rows, number], labels[rows], unit)
        if of_user:
            scored = _of_users(config, data, trained, raw[:, number], number, releases)
        most = _LEVEL_MOST if of_user else 1.0
        for step in range(1, LEVEL_STEPS):
            _level(fit, task, scored, most, releases, step)
        for step in range(1, LINE_STEPS + 1):
            sums = line_sums(raw[rows, number], labels[rows], fit.line) / of_line
            summed = np.stack([np.bincount(unit, weights=column) for column in sums.T], axis=1).astype(np.float64)
            noised = releases.line_sums(f"calibration of {task.name}, step {step}", summed, files=("calibration.json",))
            fit.step(noised)
        # Once more: the line's few rows a user know the slope, and not how often all rows are clicked.
        _level(fit, task, scored, most, releases, LEVEL_STEPS)
        maps[task.name] = fit.calibration()
    return maps


def _level(fit: LineFit, task: Task, scored: "_Scored", most: float, releases: Releases, step: int) -> None:
    lacks, clicks = scored.lacks(fit.line)
    artefact = f"level of {task.name}, step {step}"
    lack, predicted, deviation = releases.level(artefact, lacks, clicks, most=most, files=("calibration.json",))
    fit.level(lack, predicted, task.mean, deviation)


class _Scored(NamedTuple):
    """Some rows of each unit: raw outputs, labels, and the unit."""

    raw: NDArray[np.float32]
    labels: NDArray[np.float32]
    unit: NDArray[np.int64]

    def lacks(self, line: tuple[float, float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(U,) what scores lack of the labels, and the clicks that they predict, summed over each unit's rows."""
        lacks = line_sums(self.raw, self.labels, line)[:, 0]
        summed = [np.bincount(self.unit, weights=column) for column in (lacks, self.labels - lacks)]
        return summed[0].astype(np.float64), summed[1].astype(np.float64)


def _of_users(
    config: FinetuneConfig, data: ClickData, trained: Trained, valid: NDArray[np.float32], task: int, releases: Releases
) -> _Scored:
    """Some rows of each user, of the training and the validation rows together. `valid` (N,): outputs of the latter."""
    assert data.train is not None
    name = data.tasks[task].name
    labels = np.concatenate([data.train.labels[name], data.valid.labels[name]])
    own = np.concatenate([data.train.user_index, data.valid.user_index]).astype(np.int64)
    rows = some_of_each(np.where(np.isnan(labels), -1, own), _LEVEL_ROWS, releases.randomness)
    raw = np.concatenate([np.zeros(len(data.train), np.float32), valid])
    learned = np.sort(rows[rows < len(data.train)])
    if len(learned):
        again = raw_outputs(trained.module, data.batches(data.train.take(learned)), config.device)
        raw[learned] = again.logits[:, task]
    return _Scored(raw[rows], labels[rows], np.unique(own[rows], return_inverse=True)[1])
