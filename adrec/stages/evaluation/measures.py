"""Every metric of one column of predictions, as bootstrap measures: point value and all draws come from the same code."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adrec.metrics.bootstrap import Measure, Values, divide, of_curve, of_groups, of_sums
from adrec.metrics.calibration import bin_codes
from adrec.metrics.classification import log_losses
from adrec.metrics.ranking import RankedGroups
from adrec.metrics.ties import Floats, Ints, group_codes
from adrec.stages.evaluation.tasks import Scores

LOWER_IS_BETTER = frozenset({"log_loss", "brier", "normalised_entropy", "ece", "mse", "rmse", "mae"})
NO_DIRECTION = frozenset({"predicted_over_observed"})


@dataclass(frozen=True)
class Frame:
    """Rows of a task with their users and groups, recoded so that only users with rows are drawn."""

    labels: Floats
    users: Ints
    """(N,) in [0, user_count)."""
    user_count: int
    requests: Ints | None
    """(N,) dense codes; None where the table has no requests."""

    @classmethod
    def of(cls, labels: Floats, users: Ints, requests: Ints | None) -> "Frame":
        """Recode the raw codes of some rows of a table."""
        codes, count = group_codes(users)
        return cls(labels, codes, count, None if requests is None else group_codes(requests)[0])

    def take(self, rows: Ints) -> "Frame":
        """The given rows; users keep their codes, so that draws stay paired with those of all rows."""
        requests = None if self.requests is None else self.requests[rows]
        return Frame(self.labels[rows], self.users[rows], self.user_count, requests)

    @property
    def has_lists(self) -> bool:
        """Whether any request holds more than one row."""
        return self.requests is not None and len(self.requests) > int(self.requests.max(initial=-1)) + 1


def binary_measures(
    frame: Frame, scores: Scores, *, cutoffs: Sequence[int], threshold: float, bins: int
) -> tuple[list[Measure], dict[str, int]]:
    """Measures of a click-like task, and how many requests and users each kind of mean left out (one class only)."""
    measures = [of_curve(frame.labels, scores.values, frame.users, frame.user_count)]
    skipped = {}
    if frame.requests is not None and frame.has_lists:
        ranked = RankedGroups(frame.labels, scores.values, frame.requests)
        measures.append(of_groups(_list_metrics(ranked, cutoffs), owners(frame.requests, frame.users), frame.user_count))
        skipped["requests_of_one_class"] = ranked.skipped
    by_user = RankedGroups(frame.labels, scores.values, frame.users)
    measures.append(_user_measure(by_user, frame))
    skipped["users_of_one_class"] = by_user.skipped
    if scores.is_probability:
        measures += [_probability_measure(frame, scores.values), _calibration_measure(frame, scores.values, bins)]
        measures.append(_decision_measure(frame, scores.values, threshold))
    return measures, skipped


def core_measures(frame: Frame, scores: Scores) -> list[Measure]:
    """The few measures that slices report."""
    measures = [of_curve(frame.labels, scores.values, frame.users, frame.user_count)]
    if frame.requests is not None and frame.has_lists:
        auc = RankedGroups(frame.labels, scores.values, frame.requests).auc()
        measures.append(of_groups({"auc_request": auc}, owners(frame.requests, frame.users), frame.user_count))
    if scores.is_probability:
        measures.append(_probability_measure(frame, scores.values))
    return measures


def regression_measures(frame: Frame, scores: Scores) -> list[Measure]:
    """Squared and absolute error, and predicted over observed."""
    error = frame.labels - scores.values

    def combine(sums: Values) -> Values:
        mse = divide(sums["squared"], sums["rows"])
        return {
            "mse": mse,
            "rmse": np.sqrt(mse),
            "mae": divide(sums["absolute"], sums["rows"]),
            "predicted_over_observed": divide(sums["predicted"], sums["observed"]),
        }

    columns = {
        "squared": error**2,
        "absolute": np.abs(error),
        "predicted": scores.values,
        "observed": frame.labels,
        "rows": np.ones(len(error)),
    }
    return [of_sums(columns, frame.users, frame.user_count, combine)]


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
    kept = ~np.isnan(auc)
    columns = {
        "auc": np.where(kept, auc, 0.0),
        "users": kept,
        "weighted": np.where(kept, auc * by_user.sizes, 0.0),
        "rows": np.where(kept, by_user.sizes, 0),
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

    columns = {
        "log_loss": log_losses(frame.labels, p),
        "squared": (frame.labels - p) ** 2,
        "predicted": p,
        "observed": frame.labels,
        "rows": np.ones(len(p)),
    }
    return of_sums(columns, frame.users, frame.user_count, combine)


def _calibration_measure(frame: Frame, p: npt.NDArray[np.floating], bins: int) -> Measure:
    """ECE with bins fixed by the data: the sum over bins of |predicted - observed| clicks, over rows."""
    count = frame.user_count
    cell = bin_codes(p, bins) * count + frame.users
    gaps = np.bincount(cell, p - frame.labels, bins * count).reshape(bins, count)
    columns = {str(b): gaps[b] for b in range(bins)}

    def combine(sums: Values) -> Values:
        gap = np.sum([np.abs(sums[name]) for name in columns], axis=0)
        return {"ece": divide(gap, sums["rows"])}

    rows = np.bincount(frame.users, minlength=count)
    return of_sums({**columns, "rows": rows}, np.arange(count), count, combine)


def _decision_measure(frame: Frame, p: npt.NDArray[np.floating], threshold: float) -> Measure:
    yes = p >= threshold
    columns = {
        "hit": yes * frame.labels,
        "false_alarm": yes * (1 - frame.labels),
        "miss": ~yes * frame.labels,
        "rows": np.ones(len(p)),
    }

    def combine(sums: Values) -> Values:
        hit, false_alarm, miss = sums["hit"], sums["false_alarm"], sums["miss"]
        return {
            "accuracy": divide(sums["rows"] - false_alarm - miss, sums["rows"]),
            "precision": divide(hit, hit + false_alarm),
            "recall": divide(hit, hit + miss),
            "f1": divide(2 * hit, 2 * hit + false_alarm + miss),
        }

    return of_sums(columns, frame.users, frame.user_count, combine)


def owners(groups: Ints, users: Ints) -> Ints:
    """The user of each group, (G,) in the order of sorted group codes."""
    codes, count = group_codes(groups)
    owner = np.zeros(count, dtype=np.int64)
    owner[codes] = users
    return owner
