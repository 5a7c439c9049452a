"""What the first rows say about one column: kind, range, values, how it reads as moments, a list, a flag.

Works on the table `head` of the engine; decimal marks and words for nothing are found for a whole table first, since its config
has one of each.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import duckdb
import pyarrow as pa

from adrec.data.disk.engine import fetch, name, one_row, text
from adrec.explore.look.moments import are_numbers, is_clock, is_day, read_numbers, read_texts
from adrec.prepare.sources.base import Reading
from adrec.prepare.staging.convert import MISSING, converted, is_null_word, vector_items

SEPARATORS = ("|", ";", "^", ",", " ")
_MOST_VALUES = 12
_LOOKED_AT = 5_000
"""Different values that patterns are tried on."""
_OTHER_NULLS = ("-", "--", "?", "(null)", "(none)", "none", "Null", "nil", "N.A.", "n/a", "na", "#NULL!", "无", "空")
_PLAIN = re.compile(r"[+-]?(\d+([.]\d*)?|[.]\d+)([eE][+-]?\d+)?")
_COMMA = re.compile(r"[+-]?(\d+|\d{1,3}([. '\u00a0]\d{3})+),\d+")
_GROUPED = re.compile(r"[+-]?\d{1,3}(?P<mark>[,. '])\d{3}((?P=mark)\d{3})*(?P<rest>[.,]\d+)?")
FLAG_WORDS = {"0", "1", "0.0", "1.0", "true", "false", "t", "f", "yes", "no", "y", "n"}
"""What a flag's cell says without a config (convert.py reads it so)."""


@dataclass(frozen=True)
class Column:
    """What the first rows say about one column. `low` and `high` are None unless every value is a number."""

    name: str
    stored: str
    """Type in the engine: VARCHAR for all columns of text files."""
    filled: int
    """Cells that hold something; words for nothing (NULL, \\N, `null_words`) do not count."""
    distinct: int
    low: float | None
    high: float | None
    whole: bool
    """Every value is a whole number."""
    words: float
    """Words a cell, on average; two Chinese characters count as one."""
    example: str
    time: dict[str, Any] | None
    """How to read it as a time: {} as it is (stored as moments, or ISO 8601), or keys of the table: `time_unit`, or
    `time_format` (a string, or a list of strings where cells differ). None where it is none."""
    separator: str | None
    """What separates the items of a list that is text; "" where it is stored as a list (also as JSON or Python text); None
    where it is no list."""
    values: tuple[str, ...] = ()
    """Its values where they are at most 12, the most frequent first."""
    null_words: tuple[str, ...] = ()
    """Words for nothing that occur in it."""
    doubt: str = ""
    """What is not sure about reading it as a time: the day or the month may come first."""
    is_day: bool = False
    """Its moments have no clock."""
    vector_width: int | None = None
    """Numbers of each cell, where every cell is a list of as many, some of them fractions; None where it is no vector."""
    is_clock: bool = False
    """Times of a day without the day: 06:30, or hours from 0 to 23 in a column called so."""

    @property
    def is_number(self) -> bool:
        """Every value is a number."""
        return self.low is not None and self.separator != ""

    @property
    def is_list(self) -> bool:
        """A list whatever it is called; commas and spaces alone may as well be those of a sentence."""
        return self.separator in {"", "|", ";", "^"}

    @property
    def is_flag(self) -> bool:
        """Every value says 0 or 1 as flags do: 0/1, true/false, yes/no, t/f, y/n."""
        return self.stored == "BOOLEAN" or (0 < self.distinct <= 2 and {value.lower() for value in self.values} <= FLAG_WORDS)

    @property
    def kind(self) -> str:
        """empty, flag, time, number, list or text, the first that fits."""
        if not self.filled:
            return "empty"
        if self.is_flag and self.distinct > 1:
            return "flag"
        if self.time is not None:
            return "time"
        return "number" if self.is_number else "list" if self.is_list else "text"


@dataclass(frozen=True)
class Marks:
    """How numbers and missing cells of a table are written: keys for its config, and what reads them here."""

    keys: dict[str, Any] = field(default_factory=dict)
    reading: Reading = field(default_factory=Reading)
    nulls: tuple[str, ...] = MISSING
    notes: tuple[str, ...] = ()


def marks_of(connection: duckdb.DuckDBPyConnection, columns: Sequence[str], delimiter: str | None) -> Marks:
    """Decimal mark, thousands and words for nothing of the text columns of `head`."""
    counted: Counter[tuple[str, str]] = Counter()
    unsure: list[str] = []
    others: Counter[str] = Counter()
    for column in columns:
        every = different_values(connection, column)
        values = [value for value in every if value not in MISSING]
        # Among numbers NaN is a fault unless the config says that it means nothing.
        rare = [value for value in every if value in _OTHER_NULLS or value.lower() == "nan"]
        rest = [value for value in values if value not in _OTHER_NULLS]
        pair = _number_marks(rest, is_comma_likely=delimiter == ";")
        if pair is not None:
            marks, is_sure = pair
            others.update(rare)
            if marks != (".", ""):
                counted[marks] += 1
                unsure += [] if is_sure else [column]
        elif rest and read_texts(rest) is not None:
            others.update(rare)
    decimal, thousands = counted.most_common(1)[0][0] if counted else (".", "")
    if counted and not thousands:  # a column of whole numbers may say what groups digits where others have a decimal mark
        thousands = next((mark for (point, mark), _ in counted.items() if mark and point == decimal), "")
    keys: dict[str, Any] = {} if decimal == "." else {"decimal": decimal}
    keys |= {"thousands": thousands} if thousands else {}
    nulls = tuple(dict.fromkeys([*MISSING, *others]))
    keys |= {"null_values": list(nulls)} if others else {}
    notes = [f"column '{column}': its commas are taken for those of thousands" for column in unsure if thousands == ","]
    reading = Reading(decimal=decimal, thousands=thousands, null_values=nulls)
    return Marks(keys, reading, nulls, tuple(notes))


def column_of(connection: duckdb.DuckDBPyConnection, column: str, stored: str, marks: Marks) -> Column:
    """Look at one column of `head`."""
    cell = name(column)
    if stored.endswith("[]") or (stored == "VARCHAR" and _are_arrays(connection, cell)):
        row = one_row(connection, f"SELECT count({cell}) AS filled, any_value(CAST({cell} AS VARCHAR)) AS example FROM head")
        example, width = str(row["example"])[:60], _vector_width(connection, cell, stored)
        return Column(column, stored, row["filled"], 0, None, None, False, 0.0, example, None, "", vector_width=width)
    trimmed = f"trim(CAST({cell} AS VARCHAR))"
    as_text = f"CASE WHEN NOT {is_null_word(trimmed, ['', *marks.nulls])} THEN {trimmed} END"
    is_text = stored == "VARCHAR"
    number = converted(marks.reading, column, as_text if is_text else cell, stored, "DOUBLE", "number")
    words = f"len(string_split_regex({as_text}, '\\s+')) + len(regexp_extract_all({as_text}, '[\\x{{4E00}}-\\x{{9FFF}}]')) / 2"
    row = one_row(
        connection,
        f"SELECT count({as_text}) AS filled, count(DISTINCT {as_text}) AS distinct_values, count({number}) AS numbers, "
        f"min({number}) AS low, max({number}) AS high, bool_and({number} = floor({number})) AS whole, "
        f"avg({words}) AS words, first({as_text}) FILTER ({as_text} IS NOT NULL) AS example FROM head",
    )
    filled, is_number = int(row["filled"]), row["filled"] > 0 and row["numbers"] == row["filled"]
    few = _few_values(connection, as_text) if row["distinct_values"] <= _MOST_VALUES else ()
    values = [value for value in different_values(connection, column) if value not in marks.nulls]
    time, doubt = _time(connection, column, as_text, stored, values, filled, is_number=is_number, marks=marks)
    return Column(
        column, stored, filled, int(row["distinct_values"]),
        row["low"] if is_number else None, row["high"] if is_number else None, bool(is_number and row["whole"]),
        float(row["words"] or 0), str(row["example"] or "")[:60], time,
        None if is_number or not is_text or time is not None else _separator(connection, as_text, filled),
        values=few,
        null_words=_null_words(connection, trimmed, marks.nulls) if is_text else (),
        doubt=doubt, is_day=time is not None and (stored == "DATE" or is_day(values, time)),
        is_clock=stored == "TIME" or is_clock(values, column),
        vector_width=_vector_width(connection, as_text, stored) if is_text and not is_number and time is None else None,
    )  # fmt: skip


def different_values(connection: duckdb.DuckDBPyConnection, column: str) -> list[str]:
    """Different cells, trimmed, in order of appearance."""
    cell = f"trim(CAST({name(column)} AS VARCHAR))"
    rows = f"SELECT {cell} AS cell, row_number() OVER () AS place FROM head WHERE {cell} <> ''"
    found = connection.execute(f"SELECT cell FROM ({rows}) GROUP BY cell ORDER BY min(place) LIMIT {_LOOKED_AT}").fetchall()
    return [value for (value,) in found]


def _few_values(connection: duckdb.DuckDBPyConnection, as_text: str) -> tuple[str, ...]:
    query = f"SELECT {as_text} AS cell, count(*) AS n FROM head GROUP BY ALL HAVING cell IS NOT NULL ORDER BY n DESC, cell"
    return tuple(value for value, _ in connection.execute(query).fetchall())


def _null_words(connection: duckdb.DuckDBPyConnection, trimmed: str, nulls: Sequence[str]) -> tuple[str, ...]:
    query = f"SELECT DISTINCT {trimmed} AS word FROM head WHERE {is_null_word(trimmed, nulls)} ORDER BY word"
    return tuple(word for (word,) in connection.execute(query).fetchall())


def _number_marks(values: Sequence[str], *, is_comma_likely: bool) -> tuple[tuple[str, str], bool] | None:
    """(decimal mark, thousands mark) with which all values are numbers, and whether nothing else would do; None: no numbers."""
    if not values:
        return None
    odd = [value for value in values if not _PLAIN.fullmatch(value)]
    if not odd:
        return (".", ""), True
    grouped = [match for value in odd if (match := _GROUPED.fullmatch(value))]
    commas = [value for value in odd if _COMMA.fullmatch(value)]
    if len(commas) == len(odd):
        may_group = len(grouped) == len(odd) and all(match["mark"] == "," and not match["rest"] for match in grouped)
        if may_group and not is_comma_likely:
            return (".", ","), any(value.count(",") > 1 for value in odd)
        mark = next((match[2][0] for value in commas if (match := _COMMA.fullmatch(value)) and match[2]), "")
        has_points = any("." in value for value in values if value not in odd)
        return None if has_points and mark != "." else ((",", mark), True)
    if len(grouped) == len(odd):
        groups = {match["mark"] for match in grouped}
        points = {match["rest"][0] for match in grouped if match["rest"]}
        if len(groups) == 1 and len(points) <= 1 and not groups & points:
            mark = groups.pop()
            decimal = points.pop() if points else "," if mark == "." else "."
            return (decimal, mark), True
    both = [value for value in odd if _COMMA.fullmatch(value) or _GROUPED.fullmatch(value)]
    if len(both) == len(odd) and {match["mark"] for match in grouped} <= {".", " ", "'"}:
        mark = next((match["mark"] for match in grouped), "")
        return (",", mark), True
    return None


def _are_arrays(connection: duckdb.DuckDBPyConnection, cell: str) -> bool:
    """Whether every value is a list in JSON, or as Python writes one: lists of JSON lines are read as their text."""
    python = f"translate({cell}, {text(chr(39))}, {text(chr(34))})"
    is_array = f"starts_with({cell}, '[') AND (json_valid({cell}) OR json_valid({python}))"
    return bool(
        one_row(connection, f"SELECT count({cell}) > 0 AND bool_and({is_array}) AS yes FROM head WHERE {cell} <> ''")["yes"]
    )


def _vector_width(connection: duckdb.DuckDBPyConnection, cell: str, stored: str) -> int | None:
    """How many numbers each cell holds, if that is what every cell holds, as many each, and some no whole ones."""
    items = vector_items(Reading(), cell, stored)
    row = one_row(
        connection,
        "SELECT min(len(items)) AS least, max(len(items)) AS most, "
        "bool_and(len(list_filter(items, lambda item: isfinite(item))) = len(items)) AS whole, "
        "bool_or(len(list_filter(items, lambda item: item <> floor(item))) > 0) AS fractions "
        f"FROM (SELECT {items} AS items FROM head WHERE {cell} IS NOT NULL)",
    )
    is_vector = row["least"] is not None and 2 <= row["least"] == row["most"] and row["whole"] and row["fractions"]
    return int(row["least"]) if is_vector else None


def _time(
    connection: duckdb.DuckDBPyConnection,
    column: str,
    as_text: str,
    stored: str,
    values: Sequence[str],
    filled: int,
    *,
    is_number: bool,
    marks: Marks,
) -> tuple[dict[str, Any] | None, str]:
    """How the column reads as a time, and what is not sure about it. Every cell is read as `preprocess` will read it."""
    if stored.startswith(("TIMESTAMP", "DATE")):
        return {}, ""
    if not values or stored in {"BOOLEAN", "TIME", "UUID", "BLOB"}:
        return None, ""
    if is_number or are_numbers(values):
        moments = read_numbers(values, column) if are_numbers(values) else None
    elif _all_moments(connection, as_text, {}, filled):
        return {}, ""
    else:
        moments = read_texts(values)
    if moments is None or not _all_moments(
        connection, as_text if stored == "VARCHAR" else name(column), moments.keys, filled, stored
    ):
        return None, ""
    return moments.keys, moments.doubt


def _all_moments(
    connection: duckdb.DuckDBPyConnection,
    cell: str,
    keys: dict[str, Any],
    filled: int,
    stored: str = "VARCHAR",
    marks: Marks | None = None,
) -> bool:
    moment = converted(replace(marks.reading if marks else Reading(), **keys), "moment", cell, stored, "TIMESTAMP", "moment")
    return filled > 0 and bool(one_row(connection, f"SELECT count({moment}) AS n FROM head")["n"] == filled)


def _separator(connection: duckdb.DuckDBPyConnection, as_text: str, filled: int) -> str | None:
    """What many values hold that looks like a separator of short items."""
    for separator in SEPARATORS:
        pieces = f"SELECT {as_text} AS cell, unnest(string_split({as_text}, {text(separator)})) AS piece FROM head"
        row = one_row(
            connection,
            f"SELECT (SELECT count(*) FROM head WHERE contains({as_text}, {text(separator)})) AS several, "
            f"max(length(trim(piece))) AS longest FROM ({pieces})",
        )
        least = 0.3 if separator in {",", " "} else 0.1
        if filled and row["several"] >= least * filled and (row["longest"] or 0) <= 40:
            return separator
    return None


def cleaned(connection: duckdb.DuckDBPyConnection, columns: dict[str, Column], marks: Marks) -> pa.Table:
    """The rows of `head`: words for nothing are NULL, and numbers that are text are written plainly (1234.5)."""
    cells = []
    for column in columns.values():
        cell = name(column.name)
        if column.stored == "VARCHAR" and column.separator != "":
            trimmed = f"trim({cell})"
            if column.is_number and set(marks.keys) & {"decimal", "thousands"}:
                number = converted(marks.reading, column.name, trimmed, "VARCHAR", "DOUBLE", "number")
                has_mark = f"contains({trimmed}, ',') OR contains({trimmed}, '.')"
                trimmed = f"CASE WHEN {has_mark} THEN CAST({number} AS VARCHAR) ELSE {trimmed} END"
            words = ["", *column.null_words]
            cells.append(f"CASE WHEN NOT {is_null_word(f'trim({cell})', words)} THEN {trimmed} END AS {cell}")
        else:
            cells.append(cell)
    return fetch(connection, f"SELECT {', '.join(cells)} FROM head")
