"""Logit to probability: temperature, Platt or isotonic, chosen by cross-fitted log loss, and always increasing.

Every method maps a logit to a calibrated logit by an increasing function, so calibration cannot change a ranking.
Negative down-sampling is undone exactly, in odds, before the method is fitted. Papers: docs/training/calibration.md.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

Method = Literal["none", "temperature", "platt", "isotonic"]
METHODS: tuple[Method, ...] = get_args(Method)

Floats = npt.NDArray[np.float64]
Fitter = Callable[[Floats, Floats, Floats], dict[str, Any]]
"""Logits, labels and weights (N,) → fields of a `Calibration`."""
_MIN_SLOPE = 1e-3
_MIN_OF_EACH_LABEL = 5
FEW = 50
"""With fewer rows of either label `auto` fits no more than Platt's line, held near the click rate."""
_MOST_PERIODS = 30


@dataclass(frozen=True)
class Calibration:
    """A fitted, increasing map from logits to probabilities.

    `offset` is added to the logit first (log of the share of negatives kept in training, 0 without down-sampling). Then
    comes `slope * x + intercept`, or where there are `knots` (logit, calibrated logit), as of isotonic, the piecewise linear
    function through them, continued outside with `slope`. `log_loss` holds the cross-fitted loss of every method tried, in
    nats a row.
    """

    method: Method = "none"
    offset: float = 0.0
    slope: float = 1.0
    intercept: float = 0.0
    knots: tuple[tuple[float, float], ...] = ()
    log_loss: Mapping[str, float] = field(default_factory=dict)
    rows: int = 0
    clicks: int = 0

    def apply(self, logits: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Calibrated probabilities in [0, 1], of the shape of `logits`, float32."""
        return sigmoid(self.logit(logits)).astype(np.float32)

    def logit(self, logits: npt.ArrayLike) -> Floats:
        """Calibrated logits, of the shape of `logits`, float64."""
        x = np.asarray(logits, dtype=np.float64) + self.offset
        if not self.knots:
            return self.slope * x + self.intercept
        knot_x, knot_y = np.asarray(self.knots, dtype=np.float64).T
        inside: Floats = np.interp(x, knot_x, knot_y)
        outside = np.minimum(x - knot_x[0], 0.0) + np.maximum(x - knot_x[-1], 0.0)
        return np.asarray(inside + self.slope * outside)

    def shifted(self, shift: float) -> "Calibration":
        """The same map with `shift` added to every calibrated logit."""
        return replace(self, intercept=self.intercept + shift, knots=tuple((x, y + shift) for x, y in self.knots))

    def to_json(self) -> dict[str, Any]:
        """JSON-safe values; `from_json` reads them back."""
        return {**asdict(self), "knots": [list(knot) for knot in self.knots], "log_loss": dict(self.log_loss)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Calibration":
        """The calibration that `to_json` wrote. Raises KeyError, TypeError or ValueError on anything else."""
        if values["method"] not in METHODS:
            raise ValueError(f"unknown calibration method {values['method']!r}")
        knots = tuple((float(x), float(y)) for x, y in values["knots"])
        return cls(**{**values, "knots": knots})


def fit(
    logits: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    weights: npt.ArrayLike | None = None,
    method: Literal["auto", "none", "temperature", "platt", "isotonic"] = "auto",
    negative_rate: float = 1.0,
    groups: npt.ArrayLike | None = None,
    folds: int = 5,
    seed: int = 0,
) -> Calibration:
    """Fit on validation rows that the model did not train on.

    `logits` (N,), `labels` (N,) of 0 and 1; rows with a NaN label are left out. `weights` (N,): how many impressions each row
    stands for, one where None; the fit is that of so many rows. `negative_rate` in (0, 1] is the share of
    negatives that training kept; the rows given here must not be down-sampled. `auto` takes the method with the least log
    loss over `folds` cross-fitted folds (whole `groups`, such as requests, stay together), the simpler one on a tie. With fewer
    than FEW rows of either label it takes the logits as they are or Platt's line with a prior (`_fit_held_platt`), so that rows
    which can tell little of a map still tell of a level; with fewer than 5 that line, since training had few as well, and
    misses alone would choose a network that is sure of misses. A method that is named fits nothing to fewer than 5 rows of a
    label; then, and with fewer rows than folds, only the down-sampling is undone.
    """
    offset = sampling_offset(negative_rate)
    y = np.asarray(labels, dtype=np.float64)
    known = ~np.isnan(y)
    x, y = np.asarray(logits, dtype=np.float64)[known] + offset, y[known]
    w = np.ones(len(y)) if weights is None else np.asarray(weights, dtype=np.float64)[known]
    rows, clicks = int(w.sum()), int(w @ y)
    if rows < folds if method == "auto" else not has_both(y, w):
        return Calibration(offset=offset, rows=rows, clicks=clicks)
    fold = _folds(len(y), None if groups is None else np.asarray(groups)[known], folds, seed)
    if method != "auto":
        tried = {method: _FITTERS[method]}
    elif not has_both(y, w) or fold.min() == fold.max():  # nothing to judge by, or no rows of another request to fit to
        return Calibration(**_fit_held_platt(x, y, w), offset=offset, rows=rows, clicks=clicks)
    elif min(clicks, rows - clicks) >= FEW:
        tried = _FITTERS
    else:
        tried = {"none": _fit_none, "platt": _fit_held_platt}
    losses = {name: _cross_fitted_loss(fitter, x, y, w, fold) for name, fitter in tried.items()}
    best = min(tried, key=lambda name: losses[name])
    return Calibration(**{**tried[best](x, y, w), "offset": offset, "log_loss": losses, "rows": rows, "clicks": clicks})


def level_shift(
    logits: npt.ArrayLike,
    labels: npt.ArrayLike,
    times: npt.ArrayLike,
    is_recent: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
) -> float:
    """What to add to calibrated logits so that predicted clicks equal observed ones, for a model that learned all these rows.

    `logits` (N,), `labels` (N,) of 0 and 1, `times` (N,) in any unit, `is_recent` (N,) bool, `weights` (N,) impressions that
    each row stands for; rows with a NaN label are left out.
    The level of the recent rows is nearer to what comes next, that of all rows less noisy. The shift is that of all rows,
    moved towards the recent one's by tau^2 / (tau^2 + var), where tau^2 is how much levels truly vary between periods as
    long as the recent one (DerSimonian and Laird 1986) and var the recent level's own variance. 0 with fewer than 5 rows of a
    label.
    """
    y = np.asarray(labels, dtype=np.float64)
    known = ~np.isnan(y)
    x, y, recent = np.asarray(logits, dtype=np.float64)[known], y[known], np.asarray(is_recent, dtype=bool)[known]
    w = np.ones(len(y)) if weights is None else np.asarray(weights, dtype=np.float64)[known]
    if not has_both(y, w):
        return 0.0
    overall = _match_mean(x, _average(y, w), w)
    old = np.flatnonzero(~recent)
    if not (has_both(y[recent], w[recent]) and has_both(y[old], w[old])):
        return overall
    old = old[np.argsort(np.asarray(times)[known][old], kind="stable")]
    count = int(np.clip(round(len(old) / recent.sum()), 1, _MOST_PERIODS))
    periods = [np.flatnonzero(recent), *(rows for rows in np.array_split(old, count) if has_both(y[rows], w[rows]))]
    levels = np.array([_match_mean(x[rows], _average(y[rows], w[rows]), w[rows]) for rows in periods])
    p = [sigmoid(x[rows] + level) for rows, level in zip(periods, levels, strict=True)]
    # A model that is all but certain of every row says next to nothing of its level there.
    said = np.array([float(np.sum(w[rows] * q * (1.0 - q))) for rows, q in zip(periods, p, strict=True)])
    variances = 1.0 / np.maximum(said, np.finfo(np.float64).tiny)
    between = _variance_between(levels, variances)
    return float(overall + between / (between + variances[0]) * (levels[0] - overall))


def _variance_between(values: Floats, variances: Floats) -> float:
    """tau^2, the variance of the true values behind K estimates of known variances (DerSimonian and Laird 1986); 0 or more."""
    weights = 1.0 / variances
    mean = float(weights @ values) / weights.sum()
    excess = float(weights @ (values - mean) ** 2) - (len(values) - 1)
    spread = float(weights @ (weights.sum() - weights)) / weights.sum()  # nothing cancels where one weight is nearly all
    return max(0.0, excess / spread) if spread > 0 else 0.0


def sampling_offset(negative_rate: float) -> float:
    """What to add to a logit learned with only `negative_rate` of the negatives: log(negative_rate).

    Keeping every click and a share w of the rest multiplies the odds by 1/w, so the true odds are w times the learned ones
    (King and Zeng 2001; He et al. 2014 write it as p / (p + (1 - p) / w)). Raises ValueError outside (0, 1].
    """
    if not 0.0 < negative_rate <= 1.0:
        raise ValueError(f"negative_rate is {negative_rate}, expected a share in (0, 1]")
    return float(np.log(negative_rate))


def log_loss(logits: npt.ArrayLike, labels: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> float:
    """Mean of log(1 + exp(x)) - y x, in nats; exact for logits of any size. `weights` (N,): how often each row counts."""
    x, y = np.asarray(logits, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    losses = np.logaddexp(0.0, x) - y * x
    return float(np.mean(losses)) if weights is None else _average(losses, np.asarray(weights, dtype=np.float64))


def _average(values: Floats, w: Floats) -> float:
    """Weighted mean; to the bit the plain one where all weights are 1."""
    return float((w * values).sum() / w.sum())


def has_both(y: Floats, w: Floats) -> bool:
    """Whether labels `y` (N,) with weights `w` (N,) are enough of either kind to fit anything to."""
    positives = (w * y).sum()
    return bool(min(positives, w.sum() - positives) >= _MIN_OF_EACH_LABEL)


def sigmoid(x: Floats) -> Floats:
    """1 / (1 + exp(-x)), of the shape of `x`, without overflow for logits of any size."""
    return np.exp(-np.logaddexp(0.0, -x))


def _folds(rows: int, groups: npt.NDArray[Any] | None, folds: int, seed: int) -> npt.NDArray[np.int64]:
    codes = np.arange(rows) if groups is None else np.unique(groups, return_inverse=True)[1]
    order = np.random.default_rng(seed).permutation(int(codes.max()) + 1)
    return order[codes] % folds


def _cross_fitted_loss(fitter: Fitter, x: Floats, y: Floats, w: Floats, fold: npt.NDArray[np.int64]) -> float:
    calibrated = np.empty_like(x)
    for number in np.unique(fold):
        held = fold == number
        calibrated[held] = Calibration(**fitter(x[~held], y[~held], w[~held])).logit(x[held])
    return log_loss(calibrated, y, w)


def _fit_none(x: Floats, y: Floats, w: Floats) -> dict[str, Any]:
    return {"method": "none"}


def _fit_temperature(x: Floats, y: Floats, w: Floats) -> dict[str, Any]:
    """One positive number divides every logit (Guo et al. 2017). Searched in log scale, T between e^-5 and e^5."""
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(lambda t: log_loss(x * np.exp(-t), y, w), bounds=(-5.0, 5.0), method="bounded")
    return {"method": "temperature", "slope": float(np.exp(-found.x))}


def _fit_held_platt(x: Floats, y: Floats, w: Floats) -> dict[str, Any]:
    """Platt's line for a few rows: a slope by which one deviation of the logits moves the log-odds by 1 is taken to be usual.

    A Gaussian prior on the standardised slope (Gelman et al. 2008, "A weakly informative default prior distribution for
    logistic regression"): rows that say nothing of the logits leave the click rate, smoothed as Platt does. Beyond the logits
    of these rows, where a network of a few rows goes to extremes, the line is all but level.
    """
    line = Calibration(**_fit_platt(x, y, w, precision=1.0))
    ends = np.unique([x.min(), x.max()])
    knots = tuple(zip(ends.tolist(), line.logit(ends).tolist(), strict=True))
    return {"method": "platt", "slope": min(line.slope, _MIN_SLOPE), "knots": knots}


def _fit_platt(x: Floats, y: Floats, w: Floats, *, precision: float = 0.0) -> dict[str, Any]:
    """Slope and intercept by maximum likelihood on Platt's smoothed targets, so that separable rows stay finite."""
    clicks = (w * y).sum()
    target = np.where(y > 0, (clicks + 1) / (clicks + 2), 1 / (w.sum() - clicks + 2))
    centre = _average(x, w)
    spread = float(np.sqrt(_average((x - centre) ** 2, w))) or 1.0
    slope, intercept = _newton((x - centre) / spread, target, w, precision)
    if slope / spread < _MIN_SLOPE:
        # A model that is no better than chance may ask for a falling line; an increasing one is promised.
        slope = _MIN_SLOPE * spread
        intercept = _match_mean(slope * (x - centre) / spread, _average(target, w), w)
    return {"method": "platt", "slope": slope / spread, "intercept": intercept - slope * centre / spread}


def _newton(x: Floats, target: Floats, w: Floats, precision: float) -> tuple[float, float]:
    """Logistic regression of one standardised variable; damped Newton steps (Lin, Lin and Weng 2007). `precision` of the
    Gaussian around 0 that its slope comes from."""
    design = np.stack([x, np.ones_like(x)])  # (2, N)
    rate, total = _average(target, w), w.sum()
    weights = np.array([0.0, float(np.log(rate / (1 - rate)))])
    pull = np.array([precision / total, 0.0])

    def loss(weights: Floats) -> float:
        return log_loss(weights @ design, target, w) + float(pull @ weights**2) / 2

    reached = loss(weights)
    for _ in range(100):
        p = sigmoid(weights @ design)
        gradient = design @ (w * (p - target)) / total + pull * weights
        hessian = (design * (w * (p * (1 - p)))) @ design.T / total + np.diag(pull + 1e-12)
        step, size = np.linalg.solve(hessian, gradient), 1.0
        while size > 1e-8 and loss(weights - size * step) > reached:
            size /= 2
        weights = weights - size * step
        reached = loss(weights)
        if np.abs(gradient).max() < 1e-10 or size <= 1e-8:
            break
    return float(weights[0]), float(weights[1])


def _fit_isotonic(x: Floats, y: Floats, w: Floats) -> dict[str, Any]:
    """Centred isotonic regression (Oron and Flournoy 2017): pooled blocks become knots at their centres.

    Between knots the line rises, so rows that plain isotonic regression would tie keep their order. Ends are kept off 0 and 1
    by half a row, and the tails go on with Platt's slope. A last shift makes predicted clicks equal observed clicks.
    """
    from sklearn.isotonic import IsotonicRegression

    # Logits that differ by nothing that matters are the same: between such neighbours scikit-learn's line is no number.
    x = np.round(x, 9)
    pooled = IsotonicRegression(y_min=0.0, y_max=1.0).fit_transform(x, y, sample_weight=w)
    _, block = np.unique(np.round(pooled, 12), return_inverse=True)
    size = np.bincount(block, weights=w)
    knot_x = np.bincount(block, weights=w * x) / size
    knot_p = np.bincount(block, weights=w * y) / size
    half_row = 0.5 / (w.sum() + 1)
    knot_p = np.clip(knot_p, half_row, 1 - half_row)
    knot_y = np.log(knot_p / (1 - knot_p))
    parts = {"method": "isotonic", "slope": _fit_platt(x, y, w)["slope"]}
    mapped = Calibration(**parts, knots=tuple(zip(knot_x.tolist(), knot_y.tolist(), strict=True))).logit(x)
    shift = _match_mean(mapped, _average(y, w), w)
    return {**parts, "knots": tuple(zip(knot_x.tolist(), (knot_y + shift).tolist(), strict=True))}


def _match_mean(x: Floats, mean: float, w: Floats) -> float:
    """The shift s for which the mean of sigmoid(x + s), weighed by `w`, is `mean`, in (0, 1)."""
    from scipy.optimize import brentq

    wanted = np.log(mean / (1 - mean))
    low, high = float(wanted - x.max()) - 1.0, float(wanted - x.min()) + 1.0
    return float(brentq(lambda s: _average(sigmoid(x + s), w) - mean, low, high))


_FITTERS: dict[Method, Fitter] = {
    "none": _fit_none,
    "temperature": _fit_temperature,
    "platt": _fit_platt,
    "isotonic": _fit_isotonic,
}
