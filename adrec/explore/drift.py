"""What has changed from one table to another: which columns hold other values, and how far their distributions have moved.

A few passes of the engine a column, over any number of rows. Rows of one user hang together: distances are judged by how much
users differ, not by how many rows there are.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import duckdb
import numpy as np

from adrec.data.disk.engine import columns_of, name, one_row, text
from adrec.metrics.drift import Distance, distance
from adrec.metrics.intervals.significance import ALARM_LEVEL, adjust
from adrec.schema import BASELINE_PREFIX, WEIGHT

Role = Literal["label", "score", "column"]
BINS, MOST_VALUES, FEW_VALUES = 10, 50, 20
"""Bins of a number; values of a category told apart, the rest together; a number of so few values is a category."""
MOVERS = 3
OTHERS = "(others)"
LABELS = ("click", "conversion", "rating", "dwell_seconds")
_IDENTIFIERS = ("user_id", "ad_id", "request_id", "row_id", "advertiser_id")
_INTERNAL = ("ad_index", "user_index", "history_index", "skipped_index", "history_hours", WEIGHT)
_CLUSTERS = ("user_id", "user_index", "request_id")
_NUMBERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "FLOAT", "DOUBLE", "DECIMAL", "U")


@dataclass(frozen=True)
class Mover:
    """A bin or value, and its share of the rows in both tables."""

    value: str
    before: float
    after: float


@dataclass(frozen=True)
class ColumnDrift:
    """One column in both tables. Shares are of the rows."""

    table: str
    column: str
    role: Role
    missing: tuple[float, float]
    mean: tuple[float, float] | None
    """of numbers"""
    distance: Distance
    adjusted_p: float
    """over all columns of all tables that were compared (Holm)"""
    movers: list[Mover]
    drifted: bool = False
    """beyond chance, and far enough to matter"""


@dataclass(frozen=True)
class TableDrift:
    """One table on both sides."""

    name: str
    rows: tuple[int, int]
    identical: bool
    """the same rows, in whatever order"""
    only_before: list[str]
    only_after: list[str]
    changed: list[str]
    """columns of both whose values differ (not in order alone), or whose type does"""
    unseen: dict[str, float]
    """identifier -> share of the later table's rows whose value the earlier one does not have"""
    columns: list[ColumnDrift] = field(default_factory=list)


def compare_tables(
    connection: duckdb.DuckDBPyConnection, before: str, after: str, label: str
) -> tuple[TableDrift, list[ColumnDrift]]:
    """Two relations of the engine. The second result holds columns that `judged` still has to correct and to call."""
    kinds = [columns_of(connection, relation) for relation in (before, after)]
    rows = [int(one_row(connection, f"SELECT count(*) AS n FROM {one}")["n"]) for one in (before, after)]
    shared = [column for column in kinds[0] if column in kinds[1]]
    sums = [_sums(connection, relation, shared) for relation in (before, after)]
    changed = [column for column in shared if sums[0][column] != sums[1][column] or kinds[0][column] != kinds[1][column]]
    lacking = [[column for column in kinds[one] if column not in kinds[other]] for one, other in ((0, 1), (1, 0))]
    identical = not changed and not any(lacking) and rows[0] == rows[1] and sums[0][""] == sums[1][""]
    unseen, drifts = {}, []
    if not identical and all(rows):
        for column in _IDENTIFIERS:
            if column in shared:
                unseen[column] = _unseen(connection, before, after, column)
        for column in shared:
            value = _comparable(column, kinds[0][column], kinds[1][column])
            if value is not None:
                drifts.append(replace(_column(connection, before, after, column, value, kinds[0]), table=label))
    return TableDrift(label, (rows[0], rows[1]), identical, lacking[0], lacking[1], changed, unseen), drifts


def judged(drifts: list[ColumnDrift], *, least_psi: float, least_change: float) -> list[ColumnDrift]:
    """The same columns, p-values corrected over all of them, and those that drifted marked; the farthest first.

    Drifted is what is beyond chance and either has a PSI of `least_psi`, or is a label or score whose mean moved by
    `least_change` of itself.
    """
    adjusted = adjust([drift.distance.p_value for drift in drifts])
    made = []
    for drift, p_value in zip(drifts, adjusted, strict=True):
        is_far = drift.distance.psi >= least_psi
        if drift.role != "column" and drift.mean is not None:
            before, after = drift.mean
            is_far |= abs(after - before) >= least_change * abs(before) > 0
        drifted = bool(p_value < ALARM_LEVEL and is_far)
        made.append(replace(drift, adjusted_p=float(p_value), drifted=drifted))
    return sorted(made, key=lambda drift: (not drift.drifted, -np.nan_to_num(drift.distance.js)))


def _sums(connection: duckdb.DuckDBPyConnection, relation: str, columns: list[str]) -> dict[str, Any]:
    """A number for the values of each column, and for whole rows under "", that does not depend on their order."""
    cells = [f"sum(hash({name(column)})::HUGEINT % 1000000007) AS c{at}" for at, column in enumerate(columns)]
    whole = (
        f"sum(hash({', '.join(name(column) for column in columns)})::HUGEINT % 1000000007) AS whole"
        if columns
        else "0 AS whole"
    )
    found = one_row(connection, f"SELECT {', '.join([*cells, whole])} FROM {relation}")
    return {**{column: found[f"c{at}"] for at, column in enumerate(columns)}, "": found["whole"]}


def _unseen(connection: duckdb.DuckDBPyConnection, before: str, after: str, column: str) -> float:
    cell = f"CAST({name(column)} AS VARCHAR)"
    known = f"SELECT DISTINCT {cell} AS known FROM {before} WHERE {name(column)} IS NOT NULL"
    is_new = f"CASE WHEN {cell} IN ({known}) THEN 0.0 ELSE 1.0 END"
    query = f"SELECT avg({is_new}) AS share FROM {after} WHERE {name(column)} IS NOT NULL"
    return float(one_row(connection, query)["share"] or 0.0)


def _comparable(column: str, before: str, after: str) -> tuple[str, bool] | None:
    """The SQL of what is compared, and whether it is a number; None for identifiers, moments and nested values."""
    if column in (*_IDENTIFIERS, *_INTERNAL):
        return None
    cell = name(column)
    if all(kind.endswith("[]") for kind in (before, after)):
        return f"len({cell})", True
    if all(kind.startswith(_NUMBERS) and kind != "UUID" for kind in (before, after)):
        number = f"CAST({cell} AS DOUBLE)"
        return f"CASE WHEN isfinite({number}) THEN {number} END", True
    if any(
        kind.startswith(("TIMESTAMP", "DATE", "TIME", "STRUCT", "MAP", "UNION")) or kind.endswith("]")
        for kind in (before, after)
    ):
        return None
    return f"CAST({cell} AS VARCHAR)", False


def _column(
    connection: duckdb.DuckDBPyConnection, before: str, after: str, column: str, value: tuple[str, bool], kinds: dict[str, str]
) -> ColumnDrift:
    cell, is_number = value
    bins = _bins(connection, before, after, cell, is_number)
    cluster = next((name(key) for key in _CLUSTERS if key in kinds and key in columns_of(connection, after)), None)
    weight = name(WEIGHT) if WEIGHT in kinds else "1"
    sides = [_counts(connection, relation, bins.expression, cluster, weight) for relation in (before, after)]
    labels = sorted({label for counts, _ in sides for label in counts}, key=bins.order)
    counts = [np.array([side.get(label, 0.0) for label in labels]) for side, _ in sides]
    sizes = [max(float(count.sum()), 1.0) for count in counts]
    shares = [count / size for count, size in zip(counts, sizes, strict=True)]
    movers = [
        Mover(bins.shown(label), float(p), float(q))
        for label, p, q in sorted(zip(labels, *shares, strict=True), key=lambda row: -abs(row[1] - row[2]))
    ]
    missing = tuple(float(shares[side][labels.index("")]) if "" in labels else 0.0 for side in (0, 1))
    mean = None
    if is_number:
        of = f"sum({cell} * {weight}) / nullif(sum(CASE WHEN {cell} IS NOT NULL THEN {weight} END), 0)"
        means = [one_row(connection, f"SELECT {of} AS m FROM {relation}")["m"] for relation in (before, after)]
        mean = None if any(count is None for count in means) else (float(means[0]), float(means[1]))
    is_score = column in ("score", "logit") or column.startswith((BASELINE_PREFIX, "score_"))
    role: Role = "label" if column in LABELS else "score" if is_score else "column"
    far = distance(counts[0], counts[1], design=max(design for _, design in sides))
    return ColumnDrift("", column, role, (missing[0], missing[1]), mean, far, far.p_value, movers[:MOVERS])


@dataclass(frozen=True)
class _Bins:
    """How a column is cut: an SQL expression that gives a bin's label, '' for missing."""

    expression: str
    edges: list[float] | None
    is_number: bool = False

    def order(self, label: str) -> tuple[int, str]:
        return (int(label) if self.edges is not None and label else -1, label)

    def shown(self, label: str) -> str:
        if label == "":
            return "(missing)"
        if self.edges is None:
            return f"{float(label):.6g}" if self.is_number and label != OTHERS else label
        at = int(label)
        low = "" if at == 0 else f"{self.edges[at - 1]:.4g} ≤ "
        high = "" if at == len(self.edges) else f" < {self.edges[at]:.4g}"
        return f"{low}x{high}"


def _bins(connection: duckdb.DuckDBPyConnection, before: str, after: str, cell: str, is_number: bool) -> _Bins:
    both = f"(SELECT {cell} AS v FROM {before} UNION ALL SELECT {cell} AS v FROM {after})"
    if is_number and int(one_row(connection, f"SELECT approx_count_distinct(v) AS n FROM {both}")["n"]) > FEW_VALUES:
        steps = ", ".join(f"{step / BINS:g}" for step in range(1, BINS))
        edges = sorted(set(one_row(connection, f"SELECT quantile_cont(v, [{steps}]) AS q FROM {both}")["q"] or []))
        cases = " ".join(f"WHEN {cell} < {edge!r} THEN '{at}'" for at, edge in enumerate(edges))
        return _Bins(f"CASE WHEN {cell} IS NULL THEN '' {cases} ELSE '{len(edges)}' END", edges)
    word = f"CAST({cell} AS VARCHAR)"
    common = connection.execute(
        f"SELECT CAST(v AS VARCHAR) FROM {both} WHERE v IS NOT NULL GROUP BY v ORDER BY count(*) DESC, v LIMIT {MOST_VALUES}"
    ).fetchall()
    listed = ", ".join(text(value) for (value,) in common) or "NULL"
    return _Bins(f"CASE WHEN {cell} IS NULL THEN '' WHEN {word} IN ({listed}) THEN {word} ELSE '{OTHERS}' END", None, is_number)


def _counts(
    connection: duckdb.DuckDBPyConnection, relation: str, bin_of: str, cluster: str | None, weight: str
) -> tuple[dict[str, float], float]:
    """Rows of each bin, and how many rows count as one (Rao and Scott 1981).

    That is the mean over bins of the variance of a bin's share between clusters over that of independent rows.
    """
    key = f"CAST({cluster} AS VARCHAR)" if cluster is not None else "row_number() OVER ()"
    found = connection.execute(
        f"WITH rows AS (SELECT {key} AS cluster, {bin_of} AS bin, {weight} AS weight FROM {relation}), "
        "cells AS (SELECT cluster, bin, CAST(sum(weight) AS DOUBLE) AS c FROM rows GROUP BY ALL), "
        "sizes AS (SELECT cluster, sum(c) AS n FROM cells GROUP BY cluster) "
        "SELECT bin, sum(c), sum(c * c), sum(c * n), (SELECT sum(n * n) FROM sizes) FROM cells JOIN sizes "
        "ON cells.cluster IS NOT DISTINCT FROM sizes.cluster GROUP BY bin"
    ).fetchall()
    counts = {str(label): float(count) for label, count, *_ in found}
    total = sum(counts.values())
    ratios = []
    for _, count, squares, products, sizes in found:
        share = count / total
        independent = total * share * (1 - share)
        if independent > 0:
            ratios.append((squares - 2 * share * products + share**2 * sizes, independent))
    if not ratios:
        return counts, 1.0
    between, independent = np.array(ratios).T
    return counts, float(max(np.sum(between / independent * (1 - independent / total)) / max(len(ratios) - 1, 1), 1.0))
