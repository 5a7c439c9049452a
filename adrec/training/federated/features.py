"""Scales and vocabularies of columns whose rows stay with their owners, fitted from two sums.

`ranges`: of each number how many values lie in each cell of a grid that is the same everywhere, of each category how many lie
in each bucket of its hash. `moments`: count, sum and squares about the centre of those cells, in units of how far they reach;
for quantiles, count and sum in cells of about equal numbers of values. A sum cannot name a value, so a vocabulary's codes are
those of its buckets, commonest first; to name the values that many hold would take private heavy hitters (Zhu et al. 2020),
which are not here. Ads are everybody's, and fitted on the whole catalogue at each side.

Numbers of the second sum are said in two words, of 2^-24 and of 2^-48.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from adrec.data.arrays import combined
from adrec.data.features import FeatureSet
from adrec.data.features.categorical import Hashed, known_buckets, to_ragged, to_strings
from adrec.data.features.moments import Moments
from adrec.data.features.numeric import NumericFitter, landmarks_of_cells, to_floats
from adrec.data.prepared import Prepared
from adrec.errors import ConfigError
from adrec.training.federated.exchange import Message
from adrec.training.federated.sums import Floats
from adrec.training.private.features import features_of_ads

RANGES, MOMENTS = "ranges", "moments"
TABLES = ("impressions", "users")
FINE = 2048
"""Cells of the second sum in which quantiles are told apart: values that share one count as their mean."""
_WORD = 2.0**24
_NOTHING = 2.0**-44
"""Of the squared reach: a variance that is no more is the rounding of the sums."""
_POSITIVE = 2.0 ** (np.arange(-64 * 4, 64 * 4 + 1) / 4.0)
_EDGES = np.concatenate([-_POSITIVE[::-1], _POSITIVE])
_ENDS = np.concatenate([[-(2.0**128)], _EDGES, [2.0**128]])
_CELLS = len(_ENDS) - 1


class Reach(NamedTuple):
    """Where the values of a column lie, as the first sum tells."""

    centre: float
    scale: float
    """no value is further from the centre"""
    edges: Floats
    """(FINE - 1,) between cells of about as many values each"""


class Column(NamedTuple):
    """A column that is fitted: numbers (`spec` of a NumericSpec), or values of a vocabulary."""

    table: str
    name: str
    spec: Any
    is_number: bool

    @property
    def is_ranked(self) -> bool:
        """Whether quantiles are fitted, not moments."""
        return self.is_number and self.spec.transform in {"quantile", "normal"}


@dataclass(frozen=True)
class Fitting:
    """What all sides know before anything is fitted: the declared columns."""

    stored: dict[str, FeatureSet]
    """of a prepared folder; only what is declared is read, and `ads`, which anyone may fit"""
    buckets: int

    @classmethod
    def of(cls, prepared: Prepared, buckets: int, *, seed: int) -> "Fitting":
        """Raises ConfigError where a column can only be fitted on rows in one place."""
        stored = prepared.features()
        for table in TABLES:
            if stored[table].spec.vectors:
                raise ConfigError(
                    f"features: vectors of {table} ({stored[table].spec.vectors[0].column}) cannot be fitted from sums. Set"
                    " `features: agreed`, or leave the column out in preprocess."
                )
        return cls({**stored, "ads": features_of_ads(prepared, stored["ads"], seed)}, buckets)

    @property
    def declared(self) -> dict[str, Any]:
        """JSON-safe; sides that may be fitted together have it alike."""
        specs: dict[str, Any] = {table: self.stored[table].spec.to_json() for table in TABLES}
        return {**specs, "ads": self.stored["ads"].to_json(), "buckets": self.buckets}

    @property
    def columns(self) -> list[Column]:
        """In the order in which they are summed."""
        found = []
        for table in TABLES:
            fitted, spec = self.stored[table], self.stored[table].spec
            found += [Column(table, item.column, item, True) for item in spec.numeric if item.transform != "none"]
            for coders, declared in ((fitted.categories, spec.categorical), (fitted.lists, spec.lists)):
                by_name = {item.column: item for item in declared}
                found += [
                    Column(table, coder.name, by_name[coder.name], False)
                    for coder in coders
                    if coder.name in by_name and getattr(by_name[coder.name], "buckets", None) is None  # declared by hash
                ]
        return found

    def together(self, ask: Callable[[Message], Floats]) -> dict[str, FeatureSet]:
        """The fitted features, where `ask` gives the sum over all owners of what they say."""
        counted = ask(Message({"task": RANGES}, {}))
        reaches = self.reaches(counted)
        said = ask(
            Message(
                {"task": MOMENTS},
                {
                    "centres": np.array([reach.centre for reach in reaches]),
                    "scales": np.array([reach.scale for reach in reaches]),
                    "edges": np.stack([reach.edges for reach in reaches]) if reaches else np.zeros((0, FINE - 1)),
                },
            )
        )
        return self.fitted(counted, said)

    def reaches(self, counted: Floats) -> list[Reach]:
        """Of each column of numbers."""
        cells = [part for column, part in self._parts(counted, RANGES) if column.is_number]
        return [_reach(np.rint(part)) for part in cells]

    def fitted(self, counted: Floats, said: Floats) -> dict[str, FeatureSet]:
        """From the two sums."""
        numbers: dict[tuple[str, str], Any] = {}
        coders: dict[tuple[str, str], Hashed] = {}
        for column, part in self._parts(counted, RANGES):
            if not column.is_number:
                known = known_buckets(np.rint(part).astype(np.int64), column.spec.min_count)
                coders[column.table, column.name] = Hashed(column.name, self.buckets, known)
        of_numbers = [column for column in self.columns if column.is_number]
        for (column, part), reach in zip(self._parts(said, MOMENTS), self.reaches(counted), strict=True):
            numbers[column.table, column.name] = _scaled(column, part, reach)
        assert len(numbers) == len(of_numbers)
        features = {"ads": self.stored["ads"]}
        for table in TABLES:
            own = self.stored[table]
            features[table] = replace(
                own,
                numerics=tuple(numbers.get((table, item.name), item) for item in own.numerics),
                categories=tuple(coders.get((table, item.name), item) for item in own.categories),
                lists=tuple(coders.get((table, item.name), item) for item in own.lists),
            )
        return features

    def _parts(self, vector: Floats, task: str) -> list[tuple[Column, Floats]]:
        """The numbers of each column that the task is about."""
        columns = [column for column in self.columns if task == RANGES or column.is_number]
        if task == RANGES:
            widths = [_CELLS if column.is_number else self.buckets for column in columns]
        else:
            widths = [3 * FINE if column.is_ranked else 5 for column in columns]
        return list(zip(columns, np.split(vector, np.cumsum(widths)[:-1]) if columns else [], strict=True))


@dataclass(frozen=True)
class OwnColumns:
    """An owner's training rows, and the users whom they show."""

    fitting: Fitting
    tables: dict[str, pa.Table]

    @classmethod
    def of(cls, fitting: Fitting, prepared: Prepared) -> "OwnColumns":
        """All training rows of a folder."""
        wanted = {column.name for column in fitting.columns if column.table == "impressions"}
        names = sorted(wanted | {"user_index"})
        rows = pa.Table.from_batches(list(prepared.iter("train", names)))
        return cls(fitting, {"impressions": rows, "users": prepared.users()})

    def __len__(self) -> int:
        return int(self.tables["impressions"].num_rows)

    def take(self, rows: NDArray[np.integer]) -> "OwnColumns":
        """Some of the rows; the users stay the folder's, and those whom the rows show count."""
        return OwnColumns(self.fitting, {**self.tables, "impressions": self.tables["impressions"].take(pa.array(rows))})

    def vector(self, task: Message) -> Floats:
        """The summand of a task."""
        columns, shown = self.fitting.columns, self._shown()
        if task.facts["task"] == RANGES:
            parts = [
                _cells(_numbers(column, shown), _EDGES) if column.is_number else self._buckets(column, shown)
                for column in columns
            ]
        else:
            numbers = [column for column in columns if column.is_number]
            given = [task.arrays[name] for name in ("centres", "scales", "edges")]
            reaches = [Reach(float(centre), float(scale), edges) for centre, scale, edges in zip(*given, strict=True)]
            parts = [_said(column, _numbers(column, shown), reach) for column, reach in zip(numbers, reaches, strict=True)]
        return np.concatenate(parts) if parts else np.zeros(0)

    def _shown(self) -> dict[str, pa.Table]:
        rows = self.tables["impressions"]
        people = np.unique(rows["user_index"].to_numpy())
        return {"impressions": rows, "users": self.tables["users"].take(pa.array(people))}

    def _buckets(self, column: Column, shown: dict[str, pa.Table]) -> Floats:
        values, spec = combined(shown[column.table][column.name]), column.spec
        if hasattr(spec, "splits_at"):
            strings = to_ragged(values, column.name, spec.max_items, spec.splits_at)[1]
        else:
            strings = to_strings(values, column.name)
        codes = Hashed(column.name, self.fitting.buckets).apply(strings.drop_null()) - 1
        return np.bincount(codes, minlength=self.fitting.buckets).astype(np.float64)


def _numbers(column: Column, shown: dict[str, pa.Table]) -> Floats:
    """As the scaler sees them, what is missing left out."""
    values = to_floats(combined(shown[column.table][column.name]), column.name)
    placed = NumericFitter(column.spec, column.name, 0).placed(values)
    return placed[~np.isnan(placed)]


def _cells(values: Floats, edges: Floats, weights: Floats | None = None) -> Floats:
    return np.bincount(np.searchsorted(edges, values, side="right"), weights, len(edges) + 1).astype(np.float64)


def _reach(counts: Floats) -> Reach:
    low, high = _ENDS[:-1], _ENDS[1:]
    middle = (low + high) / 2
    there = np.flatnonzero(counts > 0)
    if not len(there):
        return Reach(0.0, 1.0, np.zeros(FINE - 1))
    centre = float(counts[there] @ middle[there] / counts[there].sum())
    scale = float(max(high[there].max() - centre, centre - low[there].min()))
    # The values lie anywhere in their cells: edges as if evenly.
    below = np.concatenate([[0.0], np.cumsum(counts[there])])
    at = np.linspace(0.0, below[-1], FINE + 1)[1:-1]
    cell = np.clip(np.searchsorted(below, at, side="right") - 1, 0, len(there) - 1)
    part = (at - below[cell]) / counts[there][cell]
    return Reach(centre, scale, low[there][cell] + part * (high - low)[there][cell])


def _said(column: Column, values: Floats, reach: Reach) -> Floats:
    if column.is_ranked:
        low, width = _bounds(reach)
        cell = np.searchsorted(reach.edges, values, side="right")
        return np.concatenate(
            [_cells(values, reach.edges), *_words(_cells(values, reach.edges, (values - low[cell]) / width[cell]))]
        )
    units = (values - reach.centre) / reach.scale
    return np.concatenate([[float(len(values))], *_words(np.array([units.sum(), np.square(units).sum()]))])


def _bounds(reach: Reach) -> tuple[Floats, Floats]:
    """Where each cell of the second sum begins, and how wide it is; values may lie outside where the first sum lacked them."""
    ends = np.concatenate([[reach.centre - reach.scale], reach.edges, [reach.centre + reach.scale]])
    width: Floats = np.diff(ends)
    return ends[:-1], np.where(width > 0, width, 1.0)


def _as_written(means: Floats, width: Floats) -> Floats:
    """Means of cells that hold one value are that value to its last bit, or it has not the rank that equal values share.

    Such are found as values have few digits: nothing, single precision, or twelve decimals.
    """
    digits = np.clip(11 - np.floor(np.log10(np.maximum(np.abs(means), 1e-12))), 0, 22)
    decimal = np.rint(means * 10.0**digits) / 10.0**digits
    for value in (decimal, means.astype(np.float32).astype(np.float64), np.zeros_like(means)):
        means = np.where(np.abs(value - means) <= _NOTHING * (width + np.abs(means)), value, means)
    return means


def _scaled(column: Column, part: Floats, reach: Reach) -> Any:
    fitter = NumericFitter(column.spec, column.name, 0)
    count = np.rint(part[: FINE if column.is_ranked else 1])
    total = _number(part[len(count) :])
    if column.is_ranked:
        there = count > 0
        low, width = (bound[there] for bound in _bounds(reach))
        means = _as_written(low + width * total[there] / count[there], width)
        return replace(fitter.fitted(), landmarks=landmarks_of_cells(means, count[there].astype(np.int64)))
    rows = float(count[0])
    if rows:
        mean = total[0] / rows
        variance = total[1] / rows - mean**2
        squares = rows * variance * reach.scale**2 if variance > _NOTHING else 0.0
        fitter.moments = Moments(rows, float(reach.centre + reach.scale * mean), float(squares))
    return fitter.fitted()


def _words(values: Floats) -> Sequence[Floats]:
    """Numbers as multiples of 2^-24, and 2^24 times what is left of them."""
    first = np.rint(values * _WORD) / _WORD
    return first, (values - first) * _WORD


def _number(words: Floats) -> Floats:
    """The inverse of `_words`, or of a sum of them."""
    first, second = np.split(words, 2)
    return first + second / _WORD
