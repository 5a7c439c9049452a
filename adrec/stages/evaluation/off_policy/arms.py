"""Ads that one test set against each other: every pair's difference of click rates, and whether the scores order them rightly.

Only pairs whose difference is sure can tell a right order from a wrong one, so the share ordered rightly is over these. What a
chooser wants to know is beside it: how much better than their tests' own rates the arms do that a run puts above the mean of
their test. Costs a sum over the rows, then the pairs: at most MOST_ARMS arms of a test are paired.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from adrec.config.evaluation.evaluate import EvaluateConfig
from adrec.data.arrays import ranges
from adrec.metrics.calibration import wilson_interval
from adrec.metrics.intervals.bootstrap import divide, draw_counts, draw_weights
from adrec.metrics.intervals.proportions import difference_interval, difference_p_value
from adrec.metrics.intervals.significance import ALARM_LEVEL, Interval, adjust, interval
from adrec.stages.evaluation.counts import LEAST_UNITS, repeated, tests_of, weights_of
from adrec.stages.evaluation.reading.rows import AnyInts, Floats, Ints, Rows, encode
from adrec.stages.evaluation.reading.tasks import Role, Task

Bools = npt.NDArray[np.bool_]
MOST_ARMS = 200
"""Arms of a test that are compared pair by pair, those shown most: 19,900 pairs."""
MOST_TOLD = 1000
"""Pairs written down, the surest first."""


@dataclass(frozen=True)
class Pair:
    """Two arms of one test, the one with the higher click rate first."""

    test: str
    arm: str
    other: str
    rate: float
    other_rate: float
    difference: float
    low: float
    high: float
    """Newcombe's 95 % interval of the difference, of this pair alone"""
    adjusted_p: float
    """corrected for the pairs of this test (Holm)"""
    agrees: float
    """1 where the model orders the pair so, 0 where the other way, half where it cannot tell"""


@dataclass(frozen=True)
class Judged:
    """What one run's scores are worth for choosing among arms."""

    role: Role
    ordered_rightly: Interval
    """share of the sure pairs; the interval takes as many trials as tests, since pairs of one test hang together"""
    lift_above_mean: Interval
    """click rate of the arms that the run puts above their test's mean, over what these tests' own rates give as many
    impressions; NaN where the run puts none above"""


@dataclass(frozen=True)
class ArmsResult:
    """All tests of a task."""

    by: str
    """what names the test"""
    tests: int
    arms: int
    pairs: int
    sure: int
    """pairs whose difference is significant"""
    sure_tests: int
    """tests that have any"""
    drawn: str
    """what intervals of the lift draw: arms, or the counts of a few"""
    runs: dict[str, Judged]
    told: tuple[Pair, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON-safe values."""
        runs = {
            name: {"role": one.role, "ordered_rightly": one.ordered_rightly._asdict(),
                   "lift_above_mean": one.lift_above_mean._asdict()}
            for name, one in self.runs.items()
        }  # fmt: skip
        counts = {name: getattr(self, name) for name in ("by", "tests", "arms", "pairs", "sure", "sure_tests", "drawn")}
        return {**counts, "runs": runs, "pairs_told": [vars(pair) for pair in self.told]}


@dataclass(frozen=True)
class _Arms:
    """A arms, by test."""

    test: Ints
    """(A,) in [0, T), never decreasing"""
    ad: Ints
    clicks: Floats
    shown: Floats
    of_row: Ints
    """(N,) the arm of each row of the task"""
    row_weights: Floats


def judge_arms(rows: Rows, task: Task, config: EvaluateConfig, generator: np.random.Generator) -> ArmsResult | None:
    """Compare the arms of every test. None where nothing names tests, or no test has two arms."""
    codes = tests_of(rows, config.arms)
    if codes is None:
        return None
    arms = _sums(rows, task, codes[task.rows])
    several = np.bincount(arms.test) > 1
    if not several.any():
        return None
    left, right = _pairs(arms)
    value, low, high = difference_interval(arms.clicks[left], arms.shown[left], arms.clicks[right], arms.shown[right])
    p = difference_p_value(arms.clicks[left], arms.shown[left], arms.clicks[right], arms.shown[right])
    adjusted = _adjusted(p, arms.test[left])
    sure = adjusted < ALARM_LEVEL
    sure_tests = len(np.unique(arms.test[left[sure]]))
    means = {
        scores.name: np.bincount(arms.of_row, arms.row_weights * scores.values, len(arms.test)) / arms.shown
        for scores in task.scores
    }
    agreements = {name: _agreement(value, score[left], score[right]) for name, score in means.items()}
    lifts, drawn = _lifts(arms, means, several, config, generator)
    runs = {
        scores.name: Judged(scores.role, _ordered(agreements[scores.name][sure], sure_tests), lifts[scores.name])
        for scores in task.scores
    }
    named = encode(rows.table[config.arms]).values if config.arms is not None else rows.group.values
    order = np.lexsort((-np.abs(value), adjusted))[:MOST_TOLD]
    told = _told(arms, left[order], right[order], value[order], low[order], high[order], adjusted[order],
                 agreements[task.model.name][order], named, rows.ads.values)  # fmt: skip
    return ArmsResult(
        by=config.arms or "request_id",
        tests=int(several.sum()),
        arms=int(several[arms.test].sum()),
        pairs=len(left),
        sure=int(sure.sum()),
        sure_tests=sure_tests,
        drawn=drawn,
        runs=runs,
        told=told,
    )


def _sums(rows: Rows, task: Task, tests: AnyInts) -> _Arms:
    weights = weights_of(rows)
    own = np.ones(len(task.rows)) if weights is None else weights[task.rows]
    key, of_row = np.unique(tests.astype(np.int64) * len(rows.ads) + rows.ads.codes[task.rows], return_inverse=True)
    test, ad = np.divmod(key, len(rows.ads))
    shown: Floats = np.bincount(of_row, own, len(key)).astype(np.float64)
    clicks: Floats = np.bincount(of_row, repeated(task.labels, own), len(key)).astype(np.float64)
    return _Arms(test, ad, clicks, shown, of_row, own)


def _pairs(arms: _Arms) -> tuple[Ints, Ints]:
    """Every two arms of a test once, of those among the MOST_ARMS shown most."""
    order = np.lexsort((-arms.shown, arms.test))
    sizes = np.bincount(arms.test)
    place = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    busiest = order[place < MOST_ARMS]
    sizes = np.minimum(sizes, MOST_ARMS)
    ends = np.repeat(np.cumsum(sizes), sizes)
    later = ends - np.arange(len(busiest)) - 1
    left = np.repeat(np.arange(len(busiest)), later)
    return busiest[left], busiest[ranges(np.arange(len(busiest)) + 1, later)]


def _adjusted(p: Floats, test: Ints) -> Floats:
    """Holm's correction within each test."""
    order = np.argsort(test, kind="stable")
    bounds = np.flatnonzero(np.diff(test[order], prepend=-1, append=-1))
    adjusted = np.empty(len(p))
    for start, stop in itertools.pairwise(bounds):
        adjusted[order[start:stop]] = adjust(p[order[start:stop]])
    return adjusted


def _agreement(difference: Floats, score: Floats, other: Floats) -> Floats:
    """(P,) 1 where the scores lie as the rates do, 0 where the other way round, one half where they are equal."""
    return np.asarray((1 + np.sign(difference) * np.sign(score - other)) / 2, dtype=np.float64)


def _ordered(agrees: Floats, tests: int) -> Interval:
    if not len(agrees):
        return Interval(float("nan"), float("nan"), float("nan"))
    share = np.array([agrees.mean()])
    low, high = wilson_interval(share, np.array([float(tests)]))
    return Interval(float(share[0]), float(low[0]), float(high[0]))


def _lifts(
    arms: _Arms, scores: Mapping[str, Floats], several: Bools, config: EvaluateConfig, generator: np.random.Generator
) -> tuple[dict[str, Interval], str]:
    """Of each run: clicks of the arms above their test's mean score, over those that their tests' rates give so many
    impressions. And what is drawn."""
    tests = len(several)
    weight = np.bincount(arms.test, arms.shown, tests)
    above = {}
    for name, score in scores.items():
        mean = np.bincount(arms.test, score * arms.shown, tests) / weight
        # A mean of equal scores may differ from them by rounding.
        above[name] = (score > mean[arms.test] * (1 + 1e-12)) & several[arms.test]
    inside = np.flatnonzero(several[arms.test])
    is_whole = len(inside) >= LEAST_UNITS
    replicates = config.bootstrap.replicates
    drawn = _whole_arms(arms, inside, replicates, generator) if is_whole else _counts(arms, replicates, generator)
    starts = np.flatnonzero(np.diff(arms.test, prepend=-1))  # every test has an arm, and arms lie by test
    values: dict[str, list[Floats]] = {name: [] for name in scores}
    for clicks, shown in itertools.chain([(arms.clicks[:, None], arms.shown[:, None])], drawn):
        all_clicks, all_shown = np.add.reduceat(clicks, starts), np.add.reduceat(shown, starts)
        for name, mask in above.items():
            expected = np.add.reduceat(shown * mask[:, None], starts) * all_clicks
            np.divide(expected, all_shown, out=expected, where=all_shown > 0)
            values[name].append(divide((clicks * mask[:, None]).sum(axis=0), expected.sum(axis=0)))
    lifts = {name: interval(float(found[0][0]), np.concatenate(found[1:])) for name, found in values.items()}
    return lifts, "arms" if is_whole else "counts"


def _whole_arms(arms: _Arms, inside: Ints, replicates: int, generator: np.random.Generator) -> Iterator[tuple[Floats, Floats]]:
    """Blocks of clicks and impressions (A, b), arms drawn with replacement."""
    for weights in draw_weights(len(inside), replicates, generator):
        whole = np.zeros((len(arms.test), weights.shape[1]))
        whole[inside] = weights
        yield arms.clicks[:, None] * whole, arms.shown[:, None] * whole


def _counts(arms: _Arms, replicates: int, generator: np.random.Generator) -> Iterator[tuple[Floats, Floats]]:
    """Blocks of clicks and impressions (A, b), every count drawn anew."""
    counts = np.concatenate([arms.clicks, arms.shown - arms.clicks])
    some = np.flatnonzero(counts > 0)
    for weights in draw_counts(counts[some], replicates, generator):
        drawn = np.zeros((len(counts), weights.shape[1]))
        drawn[some] = weights * counts[some, None]
        clicks, misses = np.split(drawn, 2)
        yield clicks, clicks + misses


def _told(
    arms: _Arms,
    left: Ints,
    right: Ints,
    value: Floats,
    low: Floats,
    high: Floats,
    adjusted: Floats,
    agrees: Floats,
    tests: pa.Array,
    ads: pa.Array,
) -> tuple[Pair, ...]:
    names, ad_names = (values.cast(pa.string()).to_pylist() for values in (tests, ads))
    rate = arms.clicks / arms.shown
    told = []
    for place, (one, other) in enumerate(zip(left, right, strict=True)):
        ends = (float(low[place]), float(high[place]))
        if value[place] < 0:
            one, other, ends = other, one, (-ends[1], -ends[0])
        told.append(
            Pair(str(names[arms.test[one]]), str(ad_names[arms.ad[one]]), str(ad_names[arms.ad[other]]), float(rate[one]),
                 float(rate[other]), abs(float(value[place])), *ends, float(adjusted[place]), float(agrees[place]))
        )  # fmt: skip
    return tuple(told)
