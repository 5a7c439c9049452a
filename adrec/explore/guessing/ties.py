"""What columns say of one another, measured on the rows that `look` read: who determines what, and what gives the click away.

Each question is one grouped query in DuckDB over at most `look.ROWS` rows.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np

from adrec.data.disk.engine import name, one_row, open_memory_engine, text
from adrec.explore.look import Column, Table

_CHANCE = 1e-3
"""What is so unlikely to come about by chance is believed."""
_AGREE = 0.99
"""Share of repeats that must agree: a few changes (a price, a city) still leave the column the ad's or the user's."""
_DENIED = 0.9
_TOLD = 0.9995
"""From this area under the curve on, a column tells the click by itself."""
_FEWEST_OF_A_LABEL = 10


@dataclass(frozen=True)
class Tie:
    """How far one column follows from another. `repeats`: rows that could have differed; `agreement`: share that did not."""

    repeats: int
    agreement: float
    by_chance: float
    """Share of repeats that would agree if the column had nothing to do with the other."""
    keys: int = 0
    """Values of the other column that repeat."""
    pure: float = 0.0
    """Share of these whose rows all agree: one that stands for many (an unknown ad) does not speak for the rest."""
    differing: float = 0.0
    """Share of all values of the other column whose rows differ."""

    @property
    def holds(self) -> bool:
        """The column follows, and chance does not explain it."""
        agrees = self.agreement >= _AGREE or (self.keys >= 10 and self.pure >= 0.95)
        return self.repeats > 0 and agrees and self._log_chance < math.log(_CHANCE)

    @property
    def fails(self) -> bool:
        """It plainly differs among rows of the same."""
        return self.repeats >= 5 and self.agreement < _DENIED and self.pure < _DENIED and self.differing > 1 - _DENIED

    @property
    def _log_chance(self) -> float:
        return self.repeats * self.agreement * math.log(max(min(self.by_chance, 1.0), 1e-9))


class Rows:
    """The rows of one table that were looked at, as a relation that can be asked."""

    RELATION = "looked_rows"

    def __init__(self, connection: duckdb.DuckDBPyConnection, table: Table) -> None:
        self.connection, self.table = connection, table
        connection.register(self.RELATION, table.head)

    def ask(self, aggregate: str) -> Any:
        """One aggregate over all rows."""
        return one_row(self.connection, f"SELECT {aggregate} AS value FROM {self.RELATION}")["value"]

    def cell(self, column: str) -> str:
        """SQL of a cell as trimmed text, NULL where empty."""
        return f"nullif(trim(CAST({name(column)} AS VARCHAR)), '')"

    def cells(self, columns: Sequence[str]) -> str:
        """SQL of several cells as one text."""
        joined = ", ".join(f"coalesce({self.cell(column)}, '')" for column in columns)
        return f"concat_ws('|', {joined})" if len(columns) > 1 else self.cell(columns[0])

    def top_share(self, column: str) -> float:
        """Share of the rows that hold the commonest value."""
        query = f"SELECT count(*) AS n FROM looked_rows WHERE {self.cell(column)} IS NOT NULL GROUP BY {self.cell(column)}"
        row = one_row(self.connection, f"SELECT max(n) AS top, sum(n) AS n FROM ({query})")
        return float(row["top"] or 0) / float(row["n"] or 1)

    def letters(self, column: str) -> float:
        """Share of letters among the characters, white space aside: text that people write has many."""
        cell = self.cell(column)
        row = one_row(
            self.connection,
            f"SELECT sum(len(regexp_replace({cell}, '[^\\p{{L}}]', '', 'g'))) AS letters, "
            f"sum(len(regexp_replace({cell}, '\\s', '', 'g'))) AS characters FROM looked_rows",
        )
        return float(row["letters"] or 0) / float(row["characters"] or 1)

    def values(self, column: str, most: int) -> list[tuple[str, int]]:
        """The commonest values, trimmed, with their counts."""
        query = f"SELECT {self.cell(column)} AS v, count(*) AS n FROM looked_rows WHERE v IS NOT NULL GROUP BY v"
        return [(str(v), int(n)) for v, n in self.connection.execute(f"{query} ORDER BY n DESC, v LIMIT {most}").fetchall()]

    def is_counting(self, column: str) -> bool:
        """Whether it counts the rows: each is one more than the row before."""
        number = f"try_cast({self.cell(column)} AS HUGEINT)"
        steps = f"SELECT {number} - lag({number}) OVER () AS step FROM looked_rows"
        row = one_row(self.connection, f"SELECT count(step) AS n, count_if(step = 1) AS ones FROM ({steps})")
        return bool(row["n"] >= 2 and row["ones"] >= 0.98 * row["n"])

    def tie(self, key: Sequence[str], columns: Sequence[str], apart: Sequence[str]) -> Tie:
        """How far `columns` follow from `key`. Rows of a key that agree on `apart` count once: they were told together."""
        place = self.cells(apart) if apart else "row_number() OVER ()"
        value = f"coalesce({self.cells(columns)}, '')"
        cells = f"{self.cells(key)} AS k, {value} AS v, {place} AS p"
        rows = f"SELECT DISTINCT {cells} FROM looked_rows WHERE {self.cells(key)} IS NOT NULL"
        row = one_row(
            self.connection,
            f"WITH r AS ({rows}), g AS (SELECT k, v, count(*) AS n FROM r GROUP BY ALL), "
            "m AS (SELECT k, sum(n) AS n, max(n) AS top FROM g GROUP BY k), "
            "u AS (SELECT v, count(DISTINCT k) AS n FROM r GROUP BY v) "
            "SELECT (SELECT sum(n - 1) FROM m) AS repeats, (SELECT sum(top - 1) FROM m) AS agreeing, "
            "(SELECT count_if(n > 1) FROM m) AS keys, (SELECT count_if(n > 1 AND top = n) FROM m) AS pure, "
            "(SELECT count_if(top < n) / count(*) FROM m) AS differing, "
            "(SELECT sum(n * n) / pow(sum(n), 2) FROM u) AS by_chance",
        )
        repeats, keys = int(row["repeats"] or 0), int(row["keys"] or 0)
        agreement, pure = float(row["agreeing"] or 0) / max(repeats, 1), int(row["pure"] or 0) / max(keys, 1)
        return Tie(repeats, agreement, float(row["by_chance"] or 1), keys, pure, float(row["differing"] or 0))

    def gives_away(self, column: str, positive: str, *, is_number: bool) -> str | None:
        """Why `column` tells the label `positive` (SQL, 0 or 1) by itself; None where it does not."""
        cell = self.cell(column)
        filled = f"{cell} IS NOT NULL AND coalesce(try_cast({cell} AS DOUBLE), 1) <> 0"
        row = one_row(
            self.connection,
            f"SELECT count_if(y = 1) AS ones, count_if(y = 0) AS zeros, count_if(y = 1 AND f) AS filled_ones, "
            f"count_if(y = 0 AND f) AS filled_zeros FROM (SELECT {positive} AS y, {filled} AS f FROM looked_rows)",
        )
        ones, zeros = int(row["ones"] or 0), int(row["zeros"] or 0)
        if min(ones, zeros) < _FEWEST_OF_A_LABEL:
            return None
        if row["filled_ones"] >= 0.5 * ones and row["filled_zeros"] <= 0.001 * zeros:
            return "is filled only where the ad was clicked"
        if is_number:
            area = self._area(cell, positive)
            return "tells the click by itself" if max(area, 1 - area) >= _TOLD else None
        counts = (
            f"SELECT {cell} AS v, count(*) AS n, sum({positive}) AS y FROM looked_rows WHERE {positive} IS NOT NULL GROUP BY v"
        )
        pure = one_row(
            self.connection,
            f"SELECT sum(greatest(y, n - y)) FILTER (n > 1) AS same, sum(n) FILTER (n > 1) AS n FROM ({counts})",
        )
        rows = float(pure["n"] or 0)
        return "tells the click by itself" if rows >= 0.9 * (ones + zeros) and pure["same"] >= _TOLD * rows else None

    def _area(self, cell: str, positive: str) -> float:
        """Area under the ROC curve of the column's own values; missing ones lie below all others."""
        got = self.connection.execute(
            f"SELECT coalesce(try_cast({cell} AS DOUBLE), '-inf'::DOUBLE) AS x, {positive} AS y FROM looked_rows "
            f"WHERE {positive} IS NOT NULL"
        ).fetchnumpy()
        values, label = np.asarray(got["x"], dtype=float), np.asarray(got["y"], dtype=float)
        _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
        middle = np.cumsum(counts) - (counts - 1) / 2
        ones, zeros = label.sum(), len(label) - label.sum()
        return float((middle[place][label == 1].sum() - ones * (ones + 1) / 2) / (ones * zeros))

    def pairs(self, column: str, first: Sequence[str], second: Sequence[str], keys: Sequence[str]) -> float:
        """Share of the rows whose `column` is one of `second` that have a row of `first` with the same `keys`."""
        cell, key = self.cell(column), self.cells(keys)
        listed = [", ".join(map(text, words)) for words in (first, second)]
        row = one_row(
            self.connection,
            f"SELECT count(*) AS n, count_if({key} IN (SELECT {key} FROM looked_rows WHERE {cell} IN ({listed[0]}))) AS paired "
            f"FROM looked_rows WHERE {cell} IN ({listed[1]})",
        )
        return float(row["paired"]) / max(float(row["n"]), 1)

    def middle(self, column: str) -> float:
        """The median of a column of numbers."""
        return float(
            one_row(self.connection, f"SELECT median(try_cast({self.cell(column)} AS DOUBLE)) AS m FROM looked_rows")["m"]
        )

    def above(self, column: str, other: str) -> float:
        """Share of the rows whose number in `column` is above that in `other`."""
        left, right = (f"try_cast({self.cell(name_)} AS DOUBLE)" for name_ in (column, other))
        row = one_row(self.connection, f"SELECT count_if({left} > {right}) AS n, count(*) AS rows FROM looked_rows")
        return float(row["n"]) / max(float(row["rows"]), 1)

    def share_inside(self, column: str, other: "Rows", other_column: str) -> float:
        """Share of the distinct values of `column` that `other_column` of another table holds too."""
        ours = {value for value, _ in self.values(column, 100_000)}
        theirs = {value for value, _ in other.values(other_column, 100_000)}
        return len(ours & theirs) / max(len(ours), 1)

    def share_of_items(self, column: Column, key: Sequence[str]) -> float:
        """Share of the distinct items of a list column that are values of `key`."""
        cell = self.cell(column.name)
        items = f"string_split({cell}, {text(column.separator or ' ')})"
        if column.separator == "":
            items = name(column.name) if column.stored.endswith("[]") else f"from_json({cell}, '[\"VARCHAR\"]')"
        unnested = f"SELECT unnest({items}) AS i FROM looked_rows WHERE {cell} IS NOT NULL"
        item = f"SELECT DISTINCT trim(CAST(i AS VARCHAR)) AS i FROM ({unnested})"
        row = one_row(
            self.connection,
            f"SELECT count(*) AS n, count_if(i IN (SELECT {self.cells(key)} FROM looked_rows)) AS known FROM ({item})",
        )
        return float(row["known"]) / max(float(row["n"]), 1)


@contextmanager
def rows_of(table: Table) -> Iterator[Rows]:
    """The rows of a table, open for questions."""
    with open_memory_engine() as connection:
        yield Rows(connection, table)
