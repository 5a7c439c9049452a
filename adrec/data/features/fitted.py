"""FeatureSet: the fitted features of one table. Fitting streams over batches; applying needs no other state.

Missing policy: a missing number becomes the mean (0 after scaling, 0.5 as a rank), with a 0/1 indicator where declared;
a missing category is code 0; a column that a table lacks is missing in every row.
"""

import fnmatch
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from adrec.data.features.calendar import calendar_cardinalities, calendar_numeric_names, calendar_parts
from adrec.data.features.categorical import FittedVocabulary, Hashed, VocabularyFitter, coder_from_json, to_ragged, to_strings
from adrec.data.features.numeric import FittedNumeric, NumericFitter, to_floats
from adrec.data.features.vectors import FittedVector, Modality
from adrec.data.vectors import Vectors
from adrec.errors import DataError
from adrec.schema import TRUE_PROBABILITY
from adrec.specs import CategorySpec, FeatureSpec, HashedSpec, ListSpec, NumericSpec, is_pattern

_FARTHEST = 1e12
"""Largest input of a model: a number beyond it is as good as that, and its square is still finite in float32."""
Coder = FittedVocabulary | Hashed
Batch: TypeAlias = pa.Table | pa.RecordBatch


class FeatureArrays(NamedTuple):
    """Model inputs of N rows. Fn numeric and Fc categorical columns, in the order of the set's names."""

    numeric: NDArray[np.float32]
    """(N, Fn)"""
    categorical: NDArray[np.int32]
    """(N, Fc), 0 is the unknown bucket"""
    lists: dict[str, tuple[NDArray[np.int64], NDArray[np.int32]]]
    """name -> (offsets (N + 1,), codes (total,))"""


@dataclass(frozen=True)
class FeatureSet:
    """Fitted features of one table."""

    spec: FeatureSpec
    numerics: tuple[FittedNumeric, ...]
    categories: tuple[Coder, ...]
    lists: tuple[Coder, ...]
    vectors: tuple[FittedVector, ...] = ()

    @classmethod
    def fit(cls, spec: FeatureSpec, batches: Iterable[Batch], *, seed: int = 42) -> "FeatureSet":
        """Fit on training rows, one pass, any batch sizes. Raises DataError naming a column that is missing or mistyped."""
        fitters: _Fitters | None = None
        for batch in batches:
            fitters = fitters or _Fitters(spec, batch.schema, seed)
            for piece in _pieces(batch):
                fitters.add(piece)
        fitters = fitters or _Fitters(FeatureSpec(calendar=spec.calendar, vectors=spec.vectors), pa.schema([]), seed)
        return cls(
            fitters.spec,
            tuple(item.fitted() for item in fitters.numeric),
            tuple(item.fitted() if isinstance(item, VocabularyFitter) else item for item in fitters.categorical),
            tuple(item.fitted() if isinstance(item, VocabularyFitter) else item for item in fitters.lists),
        )

    @property
    def numeric_names(self) -> list[str]:
        """Names of the columns of `FeatureArrays.numeric`."""
        named = [
            name
            for item in self.numerics
            for name in ([item.name, f"{item.name}_missing"] if item.missing_indicator else [item.name])
        ]
        return named + (calendar_numeric_names(self.spec.calendar) if self.spec.calendar else [])

    @property
    def categorical_names(self) -> list[str]:
        """Names of the columns of `FeatureArrays.categorical`."""
        return [item.name for item in self.categories] + list(self._calendar_cardinalities())

    @property
    def cardinalities(self) -> list[int]:
        """Codes of each categorical column, the unknown bucket 0 included."""
        return [item.cardinality for item in self.categories] + list(self._calendar_cardinalities().values())

    @property
    def list_cardinalities(self) -> dict[str, int]:
        """Codes of each list column, the unknown bucket 0 included."""
        return {item.name: item.cardinality for item in self.lists}

    @property
    def columns(self) -> list[str]:
        """Columns that `transform` and `modalities` read."""
        named = [item.name for group in (self.numerics, self.categories, self.lists, self.vectors) for item in group]
        return list(dict.fromkeys(named + ([self.spec.calendar.column] if self.spec.calendar else [])))

    def transform(self, table: Batch) -> FeatureArrays:
        """Model inputs of every row of `table`. A column it lacks counts as missing. Raises DataError on a wrong type."""
        rows = table.num_rows
        numeric: list[NDArray[np.float64]] = []
        for item in self.numerics:
            values = to_floats(_column(table, item.name), item.name)
            numeric.append(item.apply(values))
            if item.missing_indicator:
                numeric.append(np.isnan(values).astype(np.float64))
        categorical = [coder.apply(to_strings(_column(table, coder.name), coder.name)) for coder in self.categories]
        if self.spec.calendar:
            codes, cycle = calendar_parts(self.spec.calendar, _column(table, self.spec.calendar.column))
            categorical.extend(codes.T)
            numeric.extend(cycle.T)
        lists = {}
        for coder, declared in zip(self.lists, self.spec.lists, strict=True):
            offsets, flat = to_ragged(_column(table, coder.name), coder.name, declared.max_items, declared.splits_at)
            lists[coder.name] = (offsets, coder.apply(flat))
        numbers = np.clip(np.stack(numeric, axis=1), -_FARTHEST, _FARTHEST) if numeric else np.zeros((rows, 0))
        return FeatureArrays(
            numbers.astype(np.float32),
            np.stack(categorical, axis=1).astype(np.int32) if categorical else np.zeros((rows, 0), dtype=np.int32),
            lists,
        )

    def modalities(self, table: Batch, *, where: str = "table") -> dict[str, Modality]:
        """The vectors of every row of `table` by column; a column it lacks is missing. Raises DataError on a wrong width."""
        found = {}
        for fitted in self.vectors:
            column = table.column(fitted.name) if fitted.name in table.schema.names else None
            vectors = Vectors.of(column, fitted.width, table.num_rows, where=f"{where}: column '{fitted.name}'")
            found[fitted.name] = Modality(vectors, fitted)
        return found

    def with_fitted_vectors(self, table: Batch, rows: NDArray[np.integer], *, seed: int = 42) -> "FeatureSet":
        """The same with its columns of vectors fitted on the `rows` of `table` that training shows."""
        fitted = []
        for at, item in enumerate(self.spec.vectors):
            assert item.width is not None, "preprocess measures the widths first"
            column = table.column(item.column) if item.column in table.schema.names else None
            vectors = Vectors.of(column, item.width, table.num_rows, where=f"features: column '{item.column}'")
            fitted.append(
                FittedVector.fit(
                    item.column, vectors, rows, space=item.shared_space, components=item.reduced_to, seed=seed + at
                )
            )
        return replace(self, vectors=tuple(fitted))

    def read_as(self, earlier: "FeatureSet") -> "FeatureSet":
        """The same columns, those that `earlier` has too on its scales and by its vocabularies, new values behind its own."""
        numbers = {(item.name, item.transform, item.missing_indicator): item for item in earlier.numerics}
        vectors = {(item.name, item.space, item.width): item for item in earlier.vectors}
        return replace(
            self,
            numerics=tuple(numbers.get((item.name, item.transform, item.missing_indicator), item) for item in self.numerics),
            categories=_behind(self.categories, earlier.categories),
            lists=_behind(self.lists, earlier.lists),
            vectors=tuple(vectors.get((item.name, item.space, item.width), item) for item in self.vectors),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data; numbers keep every bit."""
        return {
            "spec": self.spec.to_json(),
            "numeric": [item.to_json() for item in self.numerics],
            "categorical": [item.to_json() for item in self.categories],
            "lists": [item.to_json() for item in self.lists],
            "vectors": [item.to_json() for item in self.vectors],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "FeatureSet":
        """The inverse of `to_json`. Raises DataError when the data is not of that form."""
        try:
            return cls(
                FeatureSpec.from_json(data["spec"]),
                tuple(FittedNumeric(**item) for item in data["numeric"]),
                tuple(coder_from_json(item) for item in data["categorical"]),
                tuple(coder_from_json(item) for item in data["lists"]),
                tuple(FittedVector.from_json(item) for item in data.get("vectors", ())),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"features.json: not written by this version ({error}). Run 'adrec preprocess' again.") from None

    def _calendar_cardinalities(self) -> dict[str, int]:
        return calendar_cardinalities(self.spec.calendar) if self.spec.calendar else {}


def _behind(coders: tuple[Coder, ...], earlier: tuple[Coder, ...]) -> tuple[Coder, ...]:
    """Vocabularies whose values stand behind those of the earlier one of the same name."""
    known = {coder.name: coder for coder in earlier if isinstance(coder, FittedVocabulary)}
    return tuple(
        coder.behind(known[coder.name]) if isinstance(coder, FittedVocabulary) and coder.name in known else coder
        for coder in coders
    )


class _Fitters:
    """One fitter a declared column, patterns spelled out against the first batch's schema."""

    def __init__(self, spec: FeatureSpec, schema: pa.Schema, seed: int) -> None:
        self.spec = replace(spec, numeric=tuple(_expand(spec.numeric, schema)))
        for name in replace(self.spec, vectors=()).columns:  # vectors are fitted apart, where they lie
            if name not in schema.names:
                near = ", ".join(schema.names[:20])
                raise DataError(f"features: column '{name}' is declared but not in the table. Columns: {near}.")
        self.numeric = [NumericFitter(item, item.column, seed + at) for at, item in enumerate(self.spec.numeric)]
        self.categorical = [_coder(item) for item in spec.categorical] + [_coder(item) for item in spec.hashed]
        self.lists = [_coder(item) for item in spec.lists]

    def add(self, batch: pa.RecordBatch) -> None:
        for numeric in self.numeric:
            numeric.add(to_floats(_column(batch, numeric.name), numeric.name))
        for category in self.categorical:
            if isinstance(category, VocabularyFitter):
                category.add(to_strings(_column(batch, category.name), category.name))
        for item, declared in zip(self.lists, self.spec.lists, strict=True):
            if isinstance(item, VocabularyFitter):
                column = _column(batch, item.name)
                item.add(to_ragged(column, item.name, declared.max_items, declared.splits_at)[1])


def _coder(item: CategorySpec | HashedSpec | ListSpec) -> VocabularyFitter | Hashed:
    if isinstance(item, CategorySpec):
        return VocabularyFitter(item.column, min_count=item.min_count)
    if item.buckets is not None:
        return Hashed(item.column, item.buckets)
    return VocabularyFitter(item.column, min_count=item.min_count)


def _expand(declared: tuple[NumericSpec, ...], schema: pa.Schema) -> Iterator[NumericSpec]:
    """Patterns become the matching columns that are not named by themselves. A pattern may match nothing."""
    named = {item.column for item in declared}
    for item in declared:
        if not is_pattern(item.column):
            yield item
            continue
        for name in fnmatch.filter(schema.names, item.column):
            if name not in named and name != TRUE_PROBABILITY:
                named.add(name)
                yield replace(item, column=name)


def _column(table: Batch, name: str) -> pa.Array:
    """One column in one piece; all null where the table lacks it."""
    if name not in table.schema.names:
        return pa.nulls(table.num_rows)
    column = table.column(name)
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _pieces(batch: Batch) -> Iterator[pa.RecordBatch]:
    """Record batches of a table, so that a large one is not copied in one piece."""
    if isinstance(batch, pa.RecordBatch):
        yield batch
    else:
        yield from batch.to_batches()
