"""Declared features that give the click away: filled only where there was one, or ranking the rows nearly by themselves.

One pass over a sample of the training shards (at most 4 row groups, spread evenly), so that it costs the same for any log.
Columns that preprocess makes (counters, history_length) know only the past and are left out.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from fnmatch import filter as matching
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from adrec.config.data.preprocess import Features
from adrec.config.training.features import TableFeatures
from adrec.data.arrays import combined, integers
from adrec.data.disk.tables import parquet_files, parquet_schema, read_table
from adrec.data.examples import run_codes
from adrec.data.features.numeric import to_floats
from adrec.data.labels import LabelCut, labels_as_of
from adrec.metrics.classification import auc
from adrec.schema import COUNTER_PREFIX, WEIGHT, as_of_column
from adrec.specs import is_pattern

LEAK = "leak"
"""Kind of a finding about a feature."""

_GROUPS = 4
_FEW = 20
"""Fewest clicks, and fewest misses, for an AUC to mean anything here."""
_AUC = 0.98
_BY_CHANCE = 1e-6
"""Columns whose filled (or empty) cells would all fall on clicks with a lower probability are told."""
_PRIOR_ROWS = 20.0

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Counted = tuple[Floats, NDArray[np.int32]]
"""Of rows of counts: impressions (N,), and the request of each (N,)."""


def leaking_features(folder: Path, features: Features, cut: LabelCut | None) -> list[dict[str, Any]]:
    """A finding for each declared feature of the prepared `folder` that knows the click. Needs its training shards."""
    train = folder / "impressions" / "train"
    files = parquet_files(train)
    known = parquet_schema(files[0]).names
    if "click" not in known:
        return []
    own = [(key, column) for key, column in _declared(features.impressions, known) if not column.startswith(COUNTER_PREFIX)]
    moments = [column for column in (cut.columns.values() if cut is not None else ()) if column in known]
    weighs = [WEIGHT, "request_id"] if WEIGHT in known else []
    rows = labels_as_of(
        _sample(
            files, list(dict.fromkeys(["click", "ad_index", "user_index", *weighs, *(column for _, column in own), *moments]))
        ),
        cut,
    )
    click = rows["click"].combine_chunks()
    rows = rows.filter(pc.is_valid(click))
    clicked = pc.equal(click.drop_null(), 1).to_numpy(zero_copy_only=False)
    weights = (rows[WEIGHT].to_numpy(), run_codes(rows["request_id"])) if weighs else None
    leaking = {}
    for declared, values in _columns(folder, features, rows, own):
        message = (_filled(values, clicked) if declared.table == "impressions" else "") or _ranks(
            declared, values, clicked, weights
        )
        if message:
            versioned = as_of_column(declared.column)
            table, column = (versioned[0].name, versioned[1]) if versioned else (declared.table, declared.column)
            cure = f"If it is known only after the click, leave it out of `features.{table}`"
            leaking[table, column] = f"features.{table}: '{column}' {message}. {cure}."
    return [{"kind": LEAK, "table": table, "column": column, "message": leaking[table, column]} for table, column in leaking]


@dataclass(frozen=True)
class _Declared:
    table: str
    key: str
    column: str


def _columns(
    folder: Path, features: Features, rows: pa.Table, own: list[tuple[str, str]]
) -> Iterator[tuple[_Declared, pa.Array]]:
    """Each declared column and its values on the rows: those of ads and users by the row's index."""
    for key, column in own:
        yield _Declared("impressions", key, column), _flat(combined(rows[column]))
    for table, spec, index in (("ads", features.ads, "ad_index"), ("users", features.users, "user_index")):
        path = folder / f"{table}.parquet"
        for key, column in _declared(spec, parquet_schema(path).names):
            values = _flat(combined(read_table(path, columns=[column])[column]))
            yield _Declared(table, key, column), values.take(combined(rows[index]))


def _filled(values: pa.Array, clicked: Bools) -> str:
    """What is odd about where the cells are filled."""
    filled = values.is_valid().to_numpy(zero_copy_only=False)
    rate = clicked.mean() if len(clicked) else 0.0
    for mask, word in ((filled, "filled"), (~filled, "empty")):
        # Of `count` cells that are filled whatever happens, all lie on clicks with probability rate ** count.
        count = int(mask.sum())
        if count and clicked[mask].all() and 0 < rate < 1 and count * np.log(rate) < np.log(_BY_CHANCE):
            return f"is {word} only where there is a click ({count:,} of {len(mask):,} rows looked at)"
    return ""


def _ranks(declared: _Declared, values: pa.Array, clicked: Bools, weights: Counted | None) -> str:
    """Whether the column alone tells clicks from misses."""
    if min(clicked.sum(), (~clicked).sum()) < _FEW:
        return ""
    score = to_floats(values, declared.column) if declared.key == "numeric" else _rates(values, clicked, weights)
    # Missing numbers stand below all others.
    reached = auc(
        clicked.astype(np.float64), np.where(np.isfinite(score), score, -np.inf), None if weights is None else weights[0]
    )
    reached = max(reached, 1 - reached)
    return f"alone ranks the training rows at an AUC of {reached:.4f}" if reached > _AUC else ""


def _rates(values: pa.Array, clicked: Bools, weights: Counted | None) -> Floats:
    """Click rate of each row's value among the rows of the other half, smoothed: a value of one row says nothing."""
    codes = integers(pc.cast(values, pa.string()).dictionary_encode().indices, -1) + 1
    half = np.random.default_rng(0).random(len(codes)) < 0.5
    if weights is not None:  # the outcomes of one row of counts would tell on each other
        half = half[weights[1]]
    size = int(codes.max(initial=0)) + 1
    found = np.empty(len(codes))
    own = np.ones(len(codes)) if weights is None else weights[0]
    mean = (own * clicked).sum() / own.sum()
    for mine in (half, ~half):
        shown = np.bincount(codes[~mine], own[~mine], size)
        clicks = np.bincount(codes[~mine], (own * clicked)[~mine], size)
        # Both halves are smoothed towards one rate, or rows of a half would be told apart by it.
        rates = (clicks + _PRIOR_ROWS * mean) / (shown + _PRIOR_ROWS)
        found[mine] = rates[codes[mine]]
    return found


def _sample(files: list[Path], columns: list[str]) -> pa.Table:
    groups = [(file, group) for file in files for group in range(pq.read_metadata(file).num_row_groups)]
    chosen = np.unique(np.linspace(0, len(groups) - 1, _GROUPS).astype(np.int64))
    tables = []
    for number in chosen:
        file, group = groups[number]
        with pq.ParquetFile(file) as shard:
            tables.append(shard.read_row_group(group, columns=columns, use_threads=False))
    return pa.concat_tables(tables)


def _declared(spec: TableFeatures, known: Collection[str]) -> list[tuple[str, str]]:
    """Key and column of the features of columns that the table has, patterns spelled out."""
    found: dict[str, str] = {}
    for key, pattern in spec.columns:
        for column in matching(known, pattern) if is_pattern(pattern) else [pattern]:
            if key not in {"calendar", "vectors"} and column in known:
                found.setdefault(column, key)
    return [(key, column) for column, key in found.items()]


def _flat(values: pa.Array) -> pa.Array:
    """Lists count as one value each."""
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        return pc.binary_join(pc.cast(values, pa.list_(pa.string())), "\n")
    return values
