"""An owner of rows: what it would say to each question of a server that it trusted. Only masked or summed, it leaves its side.

Tasks: `ranges` and `moments` of columns that are fitted together; `counts` of labels and ads; `change` of the weights, times
rows; `cells` of clicks between logits. Where the server adds noise for differential privacy no owner weighs more than another:
`shares` of labels, `clipped` changes, and what its rows say of a calibration's `line`.
"""

import os
from dataclasses import dataclass, field

import numpy as np

from adrec.data.examples import Examples
from adrec.errors import AdrecError
from adrec.models.blend.calibration_sums import cells_of, line_sums
from adrec.stages.training.federating.sides import Side
from adrec.training.ctr_module import CTRModule
from adrec.training.ctr_training import raw_outputs
from adrec.training.federated.exchange import Message
from adrec.training.federated.features import MOMENTS, RANGES, OwnColumns
from adrec.training.federated.rounds import changed, flat, put, weighed
from adrec.training.federated.sums import Floats, clipped


@dataclass
class Owner:
    """With its training and its validation rows."""

    side: Side
    rows: Examples | None
    """None before the features are fitted by which they are read"""
    valid: Examples | None
    columns: OwnColumns | None = None
    """where features are fitted together"""
    number: int = field(default_factory=lambda: int.from_bytes(os.urandom(4), "little"))
    """its order of rows is its own"""
    module: CTRModule | None = None

    def vector(self, task: Message) -> Floats:
        """The summand of a task. Raises AdrecError for one that is not known."""
        side, name = self.side, task.facts.get("task")
        if name in {RANGES, MOMENTS} and self.columns is not None:
            return self.columns.vector(task)
        if self.rows is None:
            raise AdrecError("federated: the server agrees on features beforehand. Set `features` alike on all sides.")
        if name == "counts":
            return side.counts(self.rows)
        if name == "shares":
            return np.concatenate([_share(self.rows.labels[own.name]) for own in side.data.tasks])
        if name in {"change", "clipped"}:
            module = self.module_of(task)
            seed = [side.config.seed, int(task.facts["round"]), self.number]
            change = changed(module, flat(module), self.rows, side.data.collate, side.data.sampling, side.local(), seed)
            if name == "clipped":  # as far as the server's noise covers: its ledger says so
                return clipped(change, float(task.facts["clip"]))
            return weighed(change, float(len(self.rows)))
        if name in {"cells", "line"}:
            return self._of_calibration(task)
        raise AdrecError(f"federated: the server asked for '{name}', which no client sums. Run the same adrec on all sides.")

    def module_of(self, message: Message) -> CTRModule:
        """The network with the weights of a message. Raises AdrecError where they are not its own."""
        if self.module is None:
            self.side.start(message.facts["means"])
            self.module = self.side.module()
        weights = message.arrays["weights"].astype(np.float64)
        if weights.shape != flat(self.module).shape or not np.isfinite(weights).all():
            raise AdrecError(
                "federated: the server sent weights of another network. Give all sides the same finetune settings."
            )
        put(self.module, weights)
        return self.module

    def _of_calibration(self, task: Message) -> Floats:
        side, lines = self.side, task.facts.get("lines")
        assert self.valid is not None
        if not len(self.valid):
            return np.zeros(len(side.data.tasks) * (32 if lines is None else 5))
        raw = raw_outputs(self.module_of(task), side.data.batches(self.valid), side.base.device).logits
        said = []
        for at, own in enumerate(side.data.tasks):
            labels = self.valid.labels[own.name]
            known = ~np.isnan(labels)
            if lines is None:
                said.append(cells_of(raw[:, at], labels).astype(np.float64))
            else:
                rows = line_sums(raw[known, at], labels[known], tuple(lines[at]))
                said.append(rows.mean(axis=0) if len(rows) else np.zeros(5))
        return np.concatenate(said)


def _share(labels: np.ndarray) -> Floats:
    known = ~np.isnan(labels)
    return np.array([1.0, float(labels[known].mean())]) if known.any() else np.zeros(2)
