"""Every metric of one column of predictions, as bootstrap measures: point value and all draws come from the same code."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from adrec.metrics.calibration import BINS, bin_edges
from adrec.metrics.classification import log_losses
from adrec.metrics.intervals.bootstrap import Measure, Values, divide, of_curve, of_groups, of_sums
from adrec.metrics.ranking import RankedGroups
from adrec.metrics.ties import Floats, Ints, group_codes
from adrec.stages.evaluation.counts import Units, repeated
from adrec.stages.evaluation.reading.tasks import Scores

Codes = npt.NDArray[np.integer]
_ROWS_AT_ONCE = 2**20  # so that what is summed by user takes no memory a row

LOWER_IS_BETTER = frozenset({"log_loss", "brier", "normalised_entropy", "ece", "mse", "rmse", "mae"})
NO_DIRECTION = frozenset({"predicted_over_observed"})


@dataclass(frozen=True)
class Frame:
    """Rows of a task with their users and groups, recoded so that only users with rows are drawn.

    Where rows stand for many impressions, what is drawn stands in the place of the users, and there are no lists: nobody was
    shown the rows of a request together, nor is a user one person.
    """

    labels: Floats
    users: Codes
    """(N,) in [0, user_count)."""
    user_count: int
    requests: Codes | None
    """(N,) dense codes; None where the table has no requests."""
    lone: int = 0
    """Rows of no request. Each has a code of its own, so means over requests leave it out as one of a single class."""
    weights: Floats | None = None
    """(N,) impressions of each row; None where each is one."""
    unit: str = "users"
    """What is drawn."""
    counts: Floats | None = None
    """(user_count,) counts that are drawn themselves, where units are too few to stand for others."""
    unnamed: npt.NDArray[np.bool_] | None = None
    """(N,) rows of nobody, where there are any: units of the bootstrap, but no users."""

    @classmethod
    def of(
        cls,
        labels: Floats,
        users: Codes,
        requests: Codes | None,
        lone: int = 0,
        unnamed: npt.NDArray[np.bool_] | None = None,
    ) -> "Frame":
        """Recode the raw codes of some rows of a table."""
        codes, count = group_codes(users)
        grouped = None if requests is None else group_codes(requests)[0].astype(np.int32)
        return cls(labels, codes.astype(np.int32), count, grouped, lone, unnamed=unnamed)

    @property
    def named(self) -> npt.NDArray[np.bool_]:
        """(N,) rows of a known user; those of counts are of nobody."""
        if self.unnamed is None:
            return np.full(len(self.users), self.weights is None)
        return ~self.unnamed

    @classmethod
    def of_counts(cls, labels: Floats, weights: Floats, units: Units) -> "Frame":
        """Rows that stand for many impressions."""
        return cls(labels, units.codes, units.count, None, weights=weights, unit=units.name, counts=units.counts)

    @property
    def impressions(self) -> float:
        """Rows, or what they weigh together."""
        return float(len(self.labels) if self.weights is None else self.weights.sum())

    @property
    def positives(self) -> float:
        """Of the impressions."""
        return float(repeated(self.labels, self.weights).sum())

    def take(self, rows: Codes | slice) -> "Frame":
        """The given rows; users keep their codes, so that draws stay paired with those of all rows."""
        requests = None if self.requests is None else self.requests[rows]
        weights = None if self.weights is None else self.weights[rows]
        unnamed = None if self.unnamed is None else self.unnamed[rows]
        return replace(
            self,
            labels=self.labels[rows],
            users=self.users[rows],
            requests=requests,
            lone=0,
            weights=weights,
            unnamed=unnamed,
        )

    @property
    def has_lists(self) -> bool:
        """Whether any request holds more than one row."""
        return self.requests is not None and len(self.requests) > int(self.requests.max(initial=-1)) + 1


def binary_measures(
    frame: Frame, scores: Scores, *, cutoffs: Sequence[int], threshold: float
) -> tuple[list[Measure], dict[str, int]]:
    """Measures of a click-like task, and how many requests and users each kind of mean left out (one class only)."""
    measures = [of_curve(frame.labels, scores.values, frame.users, frame.user_count, frame.weights)]
    skipped = {}
    if frame.requests is not None and frame.has_lists:
        ranked = RankedGroups(frame.labels, scores.values, frame.requests)
        measures.append(of_groups(_list_metrics(ranked, cutoffs), owners(frame.requests, frame.users), frame.user_count))
        skipped["requests_of_one_class"] = ranked.skipped - frame.lone
    if frame.named.any():
        known = frame if frame.unnamed is None else frame.take(np.flatnonzero(frame.named))
        values = scores.values if frame.unnamed is None else scores.values[frame.named]
        by_user = RankedGroups(known.labels, values, known.users)
        measures.append(_user_measure(by_user, known))
        skipped["users_of_one_class"] = by_user.skipped
    if scores.is_probability:
        measures += [_probability_measure(frame, scores.values), _calibration_measure(frame, scores.values)]
        measures.append(_decision_measure(frame, scores.values, threshold))
    return measures, skipped


def core_measures(frame: Frame, scores: Scores) -> list[Measure]:
    """The few measures that slices report."""
    measures = [of_curve(frame.labels, scores.values, frame.users, frame.user_count, frame.weights)]
    if frame.requests is not None and frame.has_lists:
        auc = RankedGroups(frame.labels, scores.values, frame.requests).auc()
        measures.append(of_groups({"auc_request": auc}, owners(frame.requests, frame.users), frame.user_count))
    if scores.is_probability:
        measures.append(_probability_measure(frame, scores.values))
    return measures


def regression_measures(frame: Frame, scores: Scores) -> list[Measure]:
    """Squared and absolute error, and predicted over observed."""

    def combine(sums: Values) -> Values:
        mse = divide(sums["squared"], sums["rows"])
        return {
            "mse": mse,
            "rmse": np.sqrt(mse),
            "mae": divide(sums["absolute"], sums["rows"]),
            "predicted_over_observed": divide(sums["predicted"], sums["observed"]),
        }

    def columns(y: Floats, p: npt.NDArray[np.floating]) -> Values:
        error = y - p
        return {"squared": error**2, "absolute": np.abs(error), "predicted": p, "observed": y, "rows": np.ones(len(y))}

    return [_of_rows(frame, scores.values, columns, combine)]


def _list_metrics(ranked: RankedGroups, cutoffs: Sequence[int]) -> dict[str, Floats]:
    values = {"auc_request": ranked.auc(), "mrr": ranked.mrr(), "mrr_all": ranked.mrr_all()}
    for k in cutoffs:
        values[f"ndcg@{k}"] = ranked.ndcg(k)
    for k in cutoffs:
        values[f"hit_rate@{k}"] = ranked.hit_rate(k)
        values[f"precision@{k}"] = ranked.precision(k)
        values[f"recall@{k}"] = ranked.recall(k)
        values[f"map@{k}"] = ranked.average_precision(k)
    return values


def _user_measure(by_user: RankedGroups, frame: Frame) -> Measure:
    """AUC per user: the plain mean, and GAUC, the mean weighted by the user's rows (Zhu et al. 2017)."""
    present = np.unique(frame.users)
    auc = by_user.auc()
    is_known = ~np.isnan(auc)
    columns = {
        "auc": np.where(is_known, auc, 0.0),
        "users": is_known,
        "weighted": np.where(is_known, auc * by_user.sizes, 0.0),
        "rows": np.where(is_known, by_user.sizes, 0),
    }

    def combine(sums: Values) -> Values:
        return {"auc_user": divide(sums["auc"], sums["users"]), "gauc": divide(sums["weighted"], sums["rows"])}

    return of_sums(columns, present, frame.user_count, combine)


def _probability_measure(frame: Frame, p: npt.NDArray[np.floating]) -> Measure:
    def combine(sums: Values) -> Values:
        log_loss = divide(sums["log_loss"], sums["rows"])
        rate = divide(sums["observed"], sums["rows"])
        with np.errstate(divide="ignore", invalid="ignore"):
            entropy = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))
        return {
            "log_loss": log_loss,
            "normalised_entropy": divide(log_loss, entropy),
            "brier": divide(sums["squared"], sums["rows"]),
            "predicted_over_observed": divide(sums["predicted"], sums["observed"]),
        }

    def columns(y: Floats, p: npt.NDArray[np.floating]) -> Values:
        squared = (y - p) ** 2
        return {"log_loss": log_losses(y, p), "squared": squared, "predicted": p, "observed": y, "rows": np.ones(len(y))}

    return _of_rows(frame, p, columns, combine)


def _calibration_measure(frame: Frame, p: npt.NDArray[np.floating]) -> Measure:
    """ECE with bins fixed by the data: the sum over bins of |predicted - observed| clicks, over rows."""
    edges = bin_edges(p, weights=frame.weights)

    def columns(y: Floats, p: npt.NDArray[np.floating]) -> Values:
        code = np.searchsorted(edges, p, side="left")
        return {**{str(b): (p - y) * (code == b) for b in range(BINS)}, "rows": np.ones(len(y))}

    def combine(sums: Values) -> Values:
        gap = np.sum([np.abs(sums[str(b)]) for b in range(BINS)], axis=0)
        return {"ece": divide(gap, sums["rows"])}

    return _of_rows(frame, p, columns, combine)


def _decision_measure(frame: Frame, p: npt.NDArray[np.floating], threshold: float) -> Measure:
    def columns(y: Floats, p: npt.NDArray[np.floating]) -> Values:
        yes = p >= threshold
        return {"hit": yes * y, "false_alarm": yes * (1 - y), "miss": ~yes * y, "rows": np.ones(len(y))}

    def combine(sums: Values) -> Values:
        hit, false_alarm, miss = sums["hit"], sums["false_alarm"], sums["miss"]
        return {
            "accuracy": divide(sums["rows"] - false_alarm - miss, sums["rows"]),
            "precision": divide(hit, hit + false_alarm),
            "recall": divide(hit, hit + miss),
            "f1": divide(2 * hit, 2 * hit + false_alarm + miss),
        }

    return _of_rows(frame, p, columns, combine)


def _of_rows(
    frame: Frame,
    p: npt.NDArray[np.floating],
    columns: Callable[[Floats, npt.NDArray[np.floating]], Values],
    combine: Callable[[Values], Values],
) -> Measure:
    """A function of sums over rows of what `columns` makes of labels and predictions, some rows at a time."""
    count = frame.user_count
    totals: Values = {}
    for start in range(0, max(len(p), 1), _ROWS_AT_ONCE):
        block = slice(start, start + _ROWS_AT_ONCE)
        for name, values in columns(frame.labels[block], p[block]).items():
            weighed = values if frame.weights is None else values * frame.weights[block]
            totals[name] = totals.get(name, 0.0) + np.bincount(frame.users[block], weighed, count).astype(np.float64)
    return of_sums(totals, np.arange(count), count, combine)


def owners(groups: Codes, users: Codes) -> Ints:
    """The user of each group, (G,) in the order of sorted group codes."""
    codes, count = group_codes(groups)
    owner = np.zeros(count, dtype=np.int64)
    owner[codes] = users
    return owner
