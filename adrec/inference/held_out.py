"""The validation rows as `adrec score` scores them: chunk by chunk, by a Predictor over the prepared folder's own tables.

What finetune fits above the network, and what it reports, comes from here, so that the report is of the bundle that is
written and not of the network while it is trained. The network runs once; hybrid and calibration are applied to its outputs.

# N rows, K tasks
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from adrec.config.inference.score import RowsConfig
from adrec.data.examples import Examples
from adrec.data.prepared import Prepared
from adrec.inference.click_model import ClickModel, Scores
from adrec.inference.predictor import Predictor
from adrec.models.baselines.base import Inputs
from adrec.models.baselines.suite import score_all
from adrec.training.ctr_module import task_metrics

Floats = NDArray[np.float32]
CHUNK_ROWS: int = RowsConfig.model_fields["chunk_rows"].default
"""As `adrec score` takes them: a product of other sizes may differ in the last bit."""


class HeldOut:
    """Outputs of `predictor` on the rows `valid` of `prepared`.

    `raw` (N, K) is the network's; `simple`: name → (N,) of the predictor's baselines.
    """

    def __init__(self, predictor: Predictor, prepared: Prepared, valid: Examples) -> None:
        self.predictor, self.valid = predictor, valid
        self.catalogs = predictor.catalogs(prepared.ads(), prepared.users())
        # As the bundle makes them, whatever training made them of.
        matches = [predictor.matched(inputs.examples, self.catalogs).matches for inputs in self._chunks()]
        self.valid = replace(valid, matches=np.concatenate([columns for columns in matches if columns is not None]))
        raw: list[Floats] = []
        simple: list[dict[str, Floats]] = []
        for inputs in self._chunks():
            raw.append(predictor.raw(inputs.examples, self.catalogs))
            simple.append(score_all(predictor.packed.baselines, inputs))
        self.raw = np.concatenate(raw)
        self.simple = {name: np.concatenate([part[name] for part in simple]) for name in simple[0]}

    def scores(self, packed: ClickModel) -> Scores:
        """What the bundle `packed` says, which joins the same network and baselines."""
        parts: list[Scores] = []
        start = 0
        for inputs in self._chunks():
            rows = slice(start, start + len(inputs))
            parts.append(packed.joined(self.raw[rows], {name: values[rows] for name, values in self.simple.items()}, inputs))
            start = rows.stop
        tasks = {name: np.concatenate([chunk.tasks[name] for chunk in parts]) for name in parts[0].tasks}
        logit, score = (np.concatenate([getattr(chunk, name) for chunk in parts]) for name in ("logit", "score"))
        unplaced = [chunk.any_slot for chunk in parts if chunk.any_slot is not None]
        return Scores(logit, score, tasks, self.simple, np.concatenate(unplaced) if unplaced else None)

    def figures(self, packed: ClickModel) -> dict[str, dict[str, float]]:
        """Metrics of what the bundle `packed` answers, as `evaluate` measures them: `adrec`, and where it knows what slots do
        `any_slot`, without those of the rows. Every task must have its labels among those of the rows."""
        scores, valid = self.scores(packed), self.valid
        labels = np.stack([valid.labels[task.name] for task in packed.tasks], axis=1)
        others = [scores.tasks[task.name] for task in packed.tasks[1:]]
        mains = {"adrec": scores.score, **({} if scores.any_slot is None else {"any_slot": scores.any_slot})}
        return {
            name: task_metrics(packed.tasks, [main, *others], labels, valid.request, valid.weight)
            for name, main in mains.items()
        }

    def _chunks(self) -> Iterator[Inputs]:
        for start in range(0, len(self.valid), CHUNK_ROWS):
            examples = self.valid.take(np.arange(start, min(start + CHUNK_ROWS, len(self.valid))))
            yield self.predictor.inputs(examples, self.catalogs)
