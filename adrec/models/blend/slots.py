"""What the slot of a list adds to a click's log-odds, above the calibrated logit of an ad whose slot is not known.

No ranker knows a slot before it has ranked, so the score of a candidate is an average over slots; what is shown in a known
slot (a logged row, a place of a list) is clicked more, or less, often. The network learns the slots' effects beside the ads'
(`PositionBias`), so that a good ad's clicks are not put down to the slots it was given; here they are brought to the level of
what is shipped, on validation rows: predicted clicks of each slot are then those observed there.

# N rows, P placements (such as scenarios; one where there are none), S slots
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adrec.data.examples import Examples

Floats = NDArray[np.float64]
FILE = "slots.json"
CELL_DEVIATION = 0.3
"""Standard deviation, in log-odds, of a slot's effect in one placement around what the network says of it."""
PLACEMENT_DEVIATION = 0.5
"""Likewise of a placement's level around that of all."""


@dataclass(frozen=True)
class SlotEffects:
    """`effects` (P, S + 1): log-odds that slot s of placement p adds; column 0, an unknown slot, adds nothing."""

    effects: Floats
    placement: int | None = None
    """Column of the impressions' categorical features that names the placement; None: all are one."""

    def of(self, examples: Examples) -> Floats:
        """(N,) what the slots of logged rows add; slots below the last one known add what it does."""
        return np.asarray(self.effects[self.placements(examples), np.clip(examples.position, 0, self.effects.shape[1] - 1)])

    def of_lists(self, examples: Examples, slots: int) -> Floats:
        """(R, slots) what each place of the lists of R requests adds."""
        at = np.minimum(np.arange(1, slots + 1), self.effects.shape[1] - 1)
        return np.asarray(self.effects[self.placements(examples)][:, at])

    def placements(self, examples: Examples) -> NDArray[np.int64]:
        """(N,) codes; 0 is an unknown one."""
        return placements_of(examples, self.placement)

    def to_json(self) -> dict[str, Any]:
        """JSON-safe values; `load` reads them back."""
        return {"placement": self.placement, "effects": self.effects.tolist()}

    @classmethod
    def load(cls, path: Path) -> "SlotEffects":
        """What was written. Raises ValueError, KeyError or TypeError on anything else."""
        values = json.loads(path.read_text(encoding="utf-8"))
        effects = np.asarray(values["effects"], np.float64)
        if effects.ndim != 2 or not np.isfinite(effects).all():
            raise ValueError(f"{FILE}: effects are not a table of numbers")
        return cls(effects, values["placement"])


def placements_of(examples: Examples, column: int | None) -> NDArray[np.int64]:
    """(N,) codes of the categorical column; 0 where there is none."""
    if column is None:
        return np.zeros(len(examples), np.int64)
    return examples.categorical[:, column].astype(np.int64)


def fit_slots(
    logits: NDArray[np.floating],
    labels: NDArray[np.floating],
    examples: Examples,
    learned: NDArray[np.floating],
    *,
    placement: int | None = None,
    weights: NDArray[np.float64] | None = None,
) -> SlotEffects | None:
    """Fit on validation rows: calibrated `logits` (N,) that know no slot, `labels` (N,), NaN where missing.

    `learned` (P, S + 1) is what the network learned of the slots, towards which a slot's effect is drawn: the likelihood has
    a Gaussian prior around it, up to a level of each placement that is free. None where no row with a label has a slot.
    """
    from scipy.optimize import minimize

    known = ~np.isnan(labels) & (examples.position > 0)
    highest = int(np.flatnonzero(np.abs(learned).sum(0)).max(initial=0))
    if not known.any() or not highest:
        return None
    prior = np.asarray(learned[:, : highest + 1], np.float64)
    size = prior.shape
    place = placements_of(examples, placement)[known]
    cell = place * size[1] + np.minimum(examples.position[known], highest)
    x, y = np.asarray(logits, np.float64)[known], np.asarray(labels, np.float64)[known]
    w = np.ones(len(y)) if weights is None else weights[known] / weights[known].mean()

    def lost(theta: Floats) -> tuple[float, Floats]:
        """Of the level (1), those of the placements (P,) and the cells' own deviations (P S,)."""
        level, own, cells = theta[0], theta[1 : 1 + size[0]], theta[1 + size[0] :]
        z = x + level + own[place] + prior.ravel()[cell] + cells[cell]
        gap = w * (1 / (1 + np.exp(-z)) - y)
        of_cell = np.bincount(cell, gap, prior.size)
        of_place = of_cell.reshape(size).sum(1)
        loss = float(w @ (np.logaddexp(0.0, z) - y * z))
        loss += float(own @ own) / (2 * PLACEMENT_DEVIATION**2) + float(cells @ cells) / (2 * CELL_DEVIATION**2)
        ridges = (own / PLACEMENT_DEVIATION**2, cells / CELL_DEVIATION**2)
        return loss, np.concatenate([[of_place.sum()], of_place + ridges[0], of_cell + ridges[1]])

    theta = minimize(lost, np.zeros(1 + size[0] + prior.size), jac=True, method="L-BFGS-B", options={"maxiter": 500}).x
    effects = theta[0] + theta[1 : 1 + size[0], None] + prior + theta[1 + size[0] :].reshape(size)
    effects[:, 0] = 0.0
    return SlotEffects(effects, placement)
