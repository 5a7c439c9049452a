"""Logit to probability of what happens in the end, from labels of which many are still to come.

A row's label is 1 by now with probability share times p, share being how much of what will happen has happened by its age. One
curve of delays gives the shares of all rows, and that is right for their sum alone: where what happens often also happens fast
(cheap goods), the likely rows of a young log show more than their share and the others less, and a slope that is fitted to
them is too steep. So a model of probabilities keeps its slope, and only its level is fitted.
"""

import numpy as np
import numpy.typing as npt

from adrec.models.blend.calibration import Calibration, Floats, has_both

_MIN_SLOPE = 1e-3


def fit_seen(logits: npt.ArrayLike, labels: npt.ArrayLike, share: npt.ArrayLike, *, is_level: bool) -> Calibration:
    """The map to what happens in the end, by maximum likelihood of what has by now. `share` (N,) in [0, 1].

    `is_level`: the logits are those of probabilities, and only their level is fitted; else slope and level are. Rows with a
    NaN label or a share of 0 are left out. With fewer than 5 rows of either label nothing is fitted.
    """
    from scipy.optimize import minimize
    from scipy.special import expit

    y, part = np.asarray(labels, dtype=np.float64), np.asarray(share, dtype=np.float64)
    known = ~np.isnan(y) & (part > 0)
    x, y, part = np.asarray(logits, dtype=np.float64)[known], y[known], part[known]
    rows, clicks = len(y), int(y.sum())
    if not has_both(y, np.ones(rows)):
        return Calibration(rows=rows, clicks=clicks)
    centre, spread = float(x.mean()), float(x.std()) or 1.0
    z = (x - centre) / spread

    def lost(line: Floats) -> tuple[float, Floats]:
        at = line[0] * z + line[1]
        p = expit(at)
        q = np.clip(part * p, 1e-12, 1 - 1e-12)  # what is seen by now
        slope = (q - y) / (q * (1 - q)) * part * p * (1 - p)
        return float(-np.mean(y * np.log(q) + (1 - y) * np.log1p(-q))), np.array([slope @ z, slope.sum()]) / rows

    start = np.array([spread, centre])
    bounds = [(spread, spread) if is_level else (_MIN_SLOPE * spread, None), (None, None)]
    slope, intercept = minimize(lost, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"gtol": 1e-9}).x
    return Calibration(
        method="platt",
        slope=float(slope / spread),
        intercept=float(intercept - slope * centre / spread),
        rows=rows,
        clicks=clicks,
    )
