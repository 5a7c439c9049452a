"""Prepared tables → columnar arrays that models and baselines read: `Examples` (impressions) and `Catalog` (ads, users).

Everything is vectorised over rows. A history is kept once for the rows of a request that share it, which is what
makes a million impressions with fifty clicks each fit in memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from adrec.data.arrays import Longs, cells_with_row, combined, integers, newest, ranges, with_row
from adrec.data.features import FeatureArrays, FeatureSet
from adrec.data.features.vectors import Modality
from adrec.data.graph.paths import Paths
from adrec.data.identities import NOBODYS, OwnVectors
from adrec.data.labels import ELAPSED, LabelCut, delay_column, labels_as_of
from adrec.data.prepared import Prepared
from adrec.data.ragged import Ragged, ragged, values_of
from adrec.errors import DataError
from adrec.schema import DRAWN, WEIGHT

LABELS = ("click", "conversion", "rating", "dwell_seconds")
"""Columns of the impressions that a task may learn."""

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]


@dataclass(frozen=True)
class Examples:
    """N impressions. Rows of a request are contiguous; `history_of_row` points into R distinct histories.

    Histories hold row numbers of the ads catalog, newest last, at most H; `history_hours` is the age of each click.
    """

    row_id: Longs
    """(N,) number of the row over the prepared folder."""
    request: Ints
    """(N,) request codes 0, 1, 2, ... never decreasing."""
    user_index: Ints
    """(N,) row in the users catalog."""
    ad_index: Ints
    """(N,) row in the ads catalog."""
    shown_at: Longs
    """(N,) microseconds since 1970, UTC; 0 where the log has no moments."""
    position: Ints
    """(N,) slot from 1; 0 where unknown."""
    labels: dict[str, Floats]
    """name → (N,), NaN where missing. Empty for rows that are only scored."""
    numeric: Floats
    """(N, Fn) standardised features of the impression, counters included."""
    categorical: Ints
    """(N, Fc) codes, 0 is the unknown value."""
    lists: dict[str, Ragged]
    """name → N lists of codes."""
    query: Ints
    """(N,) index into `queries`; 0 is no query."""
    queries: tuple[str, ...]
    """Distinct query texts; the first is empty."""
    history_length: Ints
    """(N,) clicks the user had before, not cut at H."""
    history_of_row: Ints
    """(N,) which of the R histories."""
    history_offsets: Longs
    """(R + 1,)"""
    history_values: Ints
    """(V,) ads clicked earlier."""
    history_hours: Floats
    """(V,) age in hours at `shown_at`; NaN where unknown."""
    skipped_offsets: Longs
    """(R + 1,)"""
    skipped_values: Ints
    """(W,) ads shown earlier and not clicked, newest last."""
    weight: NDArray[np.float64] | None = None
    """(N,) impressions that each row stands for; None where each is one."""
    elapsed: Floats | None = None
    """(N,) hours from the showing to the cut; None where labels were not timed."""
    delays: dict[str, Floats] = field(default_factory=dict)
    """name → (N,) hours from the showing to what the label says happened, NaN where it has not; for labels with moments."""
    matches: Floats | None = None
    """(N, M) how near each candidate is to what its user did and said (`adrec.models.match`); None before they are made"""

    def __len__(self) -> int:
        return len(self.row_id)

    @property
    def histories(self) -> Ragged:
        """The R distinct histories as lists of ads."""
        return Ragged(self.history_offsets, self.history_values)

    @property
    def skipped(self) -> Ragged:
        """What was skipped before, beside each of the R histories."""
        return Ragged(self.skipped_offsets, self.skipped_values)

    def holds_both(self, label: str) -> NDArray[np.bool_]:
        """(R,) requests that hold both a row with `label` and one without: of which an order can be learned."""
        starts, values = self.request_starts, self.labels[label]
        if not len(values):
            return np.zeros(0, bool)
        most, least = np.fmax.reduceat(values, starts[:-1]), np.fmin.reduceat(values, starts[:-1])
        return np.asarray((most > 0) & (least == 0), bool)

    @property
    def request_starts(self) -> Longs:
        """Offsets of the requests, (G + 1,): the rows of request g are `starts[g]` up to `starts[g + 1]`."""
        changes = np.flatnonzero(np.diff(self.request)) + 1
        return np.concatenate([[0], changes, [len(self)]] if len(self) else [[0]]).astype(np.int64)

    def ads_used(self) -> Longs:
        """Sorted distinct ads among candidates, histories and skipped ads: those whose text must be encoded."""
        return np.unique(np.concatenate([self.ad_index, self.history_values, self.skipped_values])).astype(np.int64)

    def take(self, rows: NDArray[Any]) -> "Examples":
        """The given rows (in non-decreasing order of request), with only the histories that they use."""
        used, history_of_row = np.unique(self.history_of_row[rows], return_inverse=True)
        histories = self.histories.take(used)
        spans = ranges(self.history_offsets[used], np.diff(self.history_offsets)[used])
        skipped = self.skipped.take(used)
        return replace(
            self,
            row_id=self.row_id[rows],
            request=self.request[rows],
            user_index=self.user_index[rows],
            ad_index=self.ad_index[rows],
            shown_at=self.shown_at[rows],
            position=self.position[rows],
            labels={name: values[rows] for name, values in self.labels.items()},
            numeric=self.numeric[rows],
            categorical=self.categorical[rows],
            lists={name: values.take(rows) for name, values in self.lists.items()},
            query=self.query[rows],
            history_length=self.history_length[rows],
            history_of_row=history_of_row.astype(np.int32),
            history_offsets=histories.offsets,
            history_values=histories.values,
            history_hours=self.history_hours[spans],
            skipped_offsets=skipped.offsets,
            skipped_values=skipped.values,
            weight=None if self.weight is None else self.weight[rows],
            elapsed=None if self.elapsed is None else self.elapsed[rows],
            delays={name: values[rows] for name, values in self.delays.items()},
            matches=None if self.matches is None else self.matches[rows],
        )

    def over(self, ads: Longs) -> "Examples":
        """The same rows over a catalog of only the `ads`, sorted, that they use."""
        return replace(
            self,
            ad_index=np.searchsorted(ads, self.ad_index).astype(np.int32),
            history_values=np.searchsorted(ads, self.history_values).astype(np.int32),
            skipped_values=np.searchsorted(ads, self.skipped_values).astype(np.int32),
        )


@dataclass(frozen=True)
class Catalog:
    """A ads, or users: identifiers, text and fitted features, addressed by row number."""

    ids: pa.StringArray
    """(A,) identifiers."""
    texts: pa.StringArray
    """(A,) the text an encoder reads; empty where there is none."""
    numeric: Floats
    """(A, Fn)"""
    categorical: Ints
    """(A, Fc) codes, 0 is the unknown value."""
    lists: dict[str, Ragged]
    """name → A lists of codes."""
    identity: Ints
    """(A,) code of the trained vector of its own (`OwnVectors`); 0 for whatever has none."""
    vectors: Floats | None = None
    """(A, D) text vectors, where they have been computed."""
    modalities: dict[str, Modality] = field(default_factory=dict)
    """column → A vectors that other models made, of pictures for instance"""
    paths: Paths | None = None
    """which of the lists says what ads are linked to, where one does"""

    def __len__(self) -> int:
        return len(self.ids)

    def with_vectors(self, vectors: Floats) -> "Catalog":
        """The same catalog carrying text vectors."""
        return replace(self, vectors=vectors)

    def take(self, rows: NDArray[np.int64]) -> "Catalog":
        """The given rows."""
        return Catalog(
            ids=self.ids.take(pa.array(rows)),
            texts=self.texts.take(pa.array(rows)),
            numeric=self.numeric[rows],
            categorical=self.categorical[rows],
            lists={name: values.take(rows) for name, values in self.lists.items()},
            identity=self.identity[rows],
            vectors=None if self.vectors is None else self.vectors[rows],
            modalities={name: held.take(rows) for name, held in self.modalities.items()},
            paths=self.paths,
        )

    def with_row(self, row: int, own: "Catalog") -> "Catalog":
        """The catalog with the one row of `own` at `row`, or behind the last; all but text vectors."""
        return Catalog(
            ids=cells_with_row(self.ids, row, own.ids),
            texts=cells_with_row(self.texts, row, own.texts),
            numeric=with_row(self.numeric, row, own.numeric),
            categorical=with_row(self.categorical, row, own.categorical),
            lists={name: lists.with_row(row, own.lists[name]) for name, lists in self.lists.items()},
            identity=with_row(self.identity, row, own.identity),
            modalities={name: held.with_row(row, own.modalities[name]) for name, held in self.modalities.items()},
            paths=self.paths,
        )


def load_examples(
    prepared: Prepared,
    *splits: str,
    max_history: int = 50,
    labels: Sequence[str] = LABELS,
    rows: int | None = None,
    cut: LabelCut | None = None,
) -> Examples:
    """Whole splits in memory, one after the other; `rows` keeps only the first whole requests within so many rows (at least
    one request). `cut`: labels as they were known then (`Prepared.label_cut`).

    Raises DataError where they have no rows.
    """
    columns = columns_to_read(prepared, labels, cut)
    chunks: list[pa.RecordBatch] = []
    read = 0
    for batch in chain.from_iterable(prepared.iter(split, columns, 262_144) for split in splits):
        chunks.append(batch)
        read += batch.num_rows
        if rows is not None and read > rows:
            break
    if read == 0:
        raise DataError(
            f"{prepared.path}: the split '{' + '.join(splits)}' has no rows. Change the split in the preprocess config."
        )
    table = labels_as_of(pa.Table.from_batches(chunks), cut)
    if rows is not None and read > rows:
        codes = run_codes(table["request_id"])
        table = table.slice(0, max(int(np.searchsorted(codes, codes[rows])), int(np.searchsorted(codes, 1))))
    return examples_from_table(table, prepared.features()["impressions"], max_history=max_history, labels=labels)


def examples_from_table(
    table: pa.Table, features: FeatureSet, *, max_history: int = 50, labels: Sequence[str] = LABELS
) -> Examples:
    """Prepared impressions (any subset of rows in order) as arrays."""
    arrays = features.transform(table)
    request = run_codes(table["request_id"])
    user_index = integers(table["user_index"], 0, np.int32)
    history, hours = ragged(table["history_index"]), None
    if "history_hours" in table.column_names:
        hours = values_of(table["history_hours"]).astype(np.float32)
    skipped = ragged(table["skipped_index"]) if "skipped_index" in table.column_names else Ragged.empty(len(table))
    history_of_row, first_rows = _distinct_histories(request, user_index, history, skipped)
    history_offsets, places = newest(history.offsets, max_history, first_rows)
    skipped_offsets, kept_skipped = newest(skipped.offsets, max_history, first_rows)
    query, queries = _query_codes(table)
    alone = _without_negatives(table, request) if DRAWN in table.column_names else None
    no_position, no_moment = np.zeros(len(table), np.int32), np.zeros(len(table), np.int64)
    return Examples(
        row_id=table["row_id"].to_numpy() if "row_id" in table.column_names else np.arange(len(table), dtype=np.int64),
        request=request,
        user_index=user_index,
        ad_index=integers(table["ad_index"], 0, np.int32),
        shown_at=pc.cast(table["shown_at"], pa.int64()).to_numpy() if "shown_at" in table.column_names else no_moment,
        position=integers(table["position"], 0, np.int32) if "position" in table.column_names else no_position,
        labels={name: _label(table[name], alone) for name in labels if name in table.column_names},
        numeric=arrays.numeric,
        categorical=arrays.categorical,
        lists={name: Ragged(offsets, values) for name, (offsets, values) in arrays.lists.items()},
        query=query,
        queries=queries,
        history_length=integers(table["history_length"], 0, np.int32),
        history_of_row=history_of_row,
        history_offsets=history_offsets,
        history_values=history.values[places],
        history_hours=hours[places] if hours is not None else np.full(len(places), np.nan, np.float32),
        skipped_offsets=skipped_offsets,
        skipped_values=skipped.values[kept_skipped],
        weight=table[WEIGHT].to_numpy() if WEIGHT in table.column_names else None,
        elapsed=table[ELAPSED].to_numpy() if ELAPSED in table.column_names else None,
        delays={
            name: combined(table[delay_column(name)]).to_numpy(zero_copy_only=False)
            for name in labels
            if delay_column(name) in table.column_names
        },
    )


def catalog_from_table(
    table: pa.Table, features: FeatureSet, *, key: str, own: OwnVectors = NOBODYS, text: str = "text"
) -> Catalog:
    """Ads or users as arrays. `own`: which have a trained vector of their own."""
    arrays: FeatureArrays = features.transform(table)
    ids = combined(table[key]).cast(pa.string())
    return Catalog(
        ids=ids,
        texts=combined(pc.fill_null(table[text], "")).cast(pa.string()),
        numeric=arrays.numeric,
        categorical=arrays.categorical,
        lists={name: Ragged(offsets, values) for name, (offsets, values) in arrays.lists.items()},
        identity=own.codes(ids),
        modalities=features.modalities(table, where=key.removesuffix("_id") + "s"),
        paths=Paths.of(features),
    )


# ------------------------------------------------------------------------------------------- arrow → numpy


def _label(column: pa.ChunkedArray, alone: NDArray[np.bool_] | None) -> Floats:
    values = np.asarray(pc.cast(column, pa.float32()).to_numpy(), np.float32)
    return values if alone is None else np.where(alone, np.float32(np.nan), values)


def _without_negatives(table: pa.Table, request: Ints) -> NDArray[np.bool_]:
    """(N,) clicks beside which nothing could be drawn: there is nothing to compare them with."""
    drawn = combined(table[DRAWN]).to_numpy(zero_copy_only=False)
    count = np.bincount(request, drawn, minlength=1)
    return np.asarray(count[request] == 0)


def run_codes(column: pa.ChunkedArray) -> Ints:
    """0, 1, 2, ... increasing where the value changes from one row to the next."""
    if len(column) == 0:
        return np.zeros(0, np.int32)
    values = combined(column)
    changed = pc.not_equal(values.slice(1), values.slice(0, len(values) - 1)).to_numpy(zero_copy_only=False)
    return np.concatenate([[0], np.cumsum(changed)]).astype(np.int32)


def _query_codes(table: pa.Table) -> tuple[Ints, tuple[str, ...]]:
    if "query" not in table.column_names:
        return np.zeros(len(table), np.int32), ("",)
    encoded = combined(pc.fill_null(table["query"], "")).dictionary_encode()
    texts = encoded.dictionary.to_numpy(zero_copy_only=False)
    order = np.argsort(texts != "", kind="stable")  # the empty text first, whether or not it occurs
    has_empty = len(texts) > 0 and texts[order[0]] == ""
    rank = np.empty(len(texts), np.int32)
    rank[order] = np.arange(len(texts)) + (0 if has_empty else 1)
    names = [str(text) for text in texts[order]]
    return rank[encoded.indices.to_numpy()], tuple(names if has_empty else ["", *names])


def _distinct_histories(request: Ints, user: Ints, history: Ragged, skipped: Ragged) -> tuple[Ints, Longs]:
    """Which history each row has, and the first row of each: a row shares its predecessor's when all is equal."""
    if len(request) == 0:
        return np.zeros(0, np.int32), np.zeros(0, np.int64)
    same = np.zeros(len(request), bool)
    same[1:] = (request[1:] == request[:-1]) & (user[1:] == user[:-1])
    same &= history.equals_previous() & skipped.equals_previous()
    return (np.cumsum(~same) - 1).astype(np.int32), np.flatnonzero(~same).astype(np.int64)


def columns_to_read(prepared: Prepared, labels: Sequence[str], cut: LabelCut | None = None) -> list[str]:
    """The columns of the impressions that training reads, among those the folder has; for a `cut`, the labels' moments too."""
    wanted = {
        *("row_id", "request_id", "user_index", "ad_index", "shown_at", "position", "query", "history_index"),
        *("history_hours", "skipped_index", "history_length", DRAWN, WEIGHT),
        *labels,
        *(cut.reads(labels) if cut is not None else ()),
        *prepared.features()["impressions"].columns,
    }
    return [name for name in prepared.columns if name in wanted]
