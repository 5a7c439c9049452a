"""Find the tables behind paths and look at the first rows of each: types, ranges, how many values, times, lists.

Reads at most ROWS rows a table, whatever its size.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from adrec.data.disk.engine import columns_of, fetch, name, one_row, open_memory_engine, text
from adrec.errors import DataError
from adrec.prepare.sources.files import find_files, format_of, read_files

ROWS = 20_000
TIME_FORMATS = (
    "%m/%d/%Y %I:%M:%S %p", "%m/%d/%Y %H:%M:%S", "%m/%d/%Y %H:%M", "%d.%m.%Y %H:%M:%S", "%d.%m.%Y %H:%M",
    "%Y/%m/%d %H:%M:%S", "%Y/%m/%d %H:%M", "%Y%m%d%H%M%S", "%Y年%m月%d日 %H:%M:%S", "%Y年%m月%d日 %H:%M", "%Y%m%d", "%d.%m.%Y",
    "%m/%d/%Y", "%Y/%m/%d",
)  # fmt: skip
"""Tried in this order where text is no ISO 8601."""
SEPARATORS = ("|", ";", "^", ",", " ")
PARTS = {"train": "train", "training": "train", "valid": "valid", "validation": "valid", "val": "valid", "dev": "valid",
         "test": "test"}  # fmt: skip
"""Names of files that say a part."""
_UNITS = (("seconds", 1e8, 1e10), ("milliseconds", 1e11, 1e13), ("microseconds", 1e14, 1e16))


@dataclass(frozen=True)
class Column:
    """What the first rows say about one column. `low` and `high` are None unless every value is a number."""

    name: str
    stored: str
    filled: int
    distinct: int
    low: float | None
    high: float | None
    whole: bool
    words: float
    example: str
    time: dict[str, str] | None
    """How to read it as a time ({}: as it is; time_unit or time_format), None where it is none."""
    separator: str | None
    """What separates the items of a list that is text; "" where it is stored as a list; None where it is no list."""

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
        """Every value is 0 or 1 (or true and false)."""
        return self.stored == "BOOLEAN" or (self.whole and self.low in {0, 1} and self.high in {0, 1})


@dataclass(frozen=True)
class Table:
    """Files that are one table, and its columns by name."""

    files: tuple[Path, ...]
    rows: int
    columns: dict[str, Column]
    parts: dict[str, str] = field(default_factory=dict)
    """File name -> train, valid or test, where the names of the files say so."""
    reading: dict[str, Any] = field(default_factory=dict)
    """How to read its files, as keys of the config (`delimiter`, `encoding`, ...)."""
    head: pa.Table = field(default_factory=lambda: pa.table({}), compare=False, repr=False)
    """The rows looked at, as stored: what one column says of another is measured on them."""

    @property
    def label(self) -> str:
        """What to call it in messages."""
        return self.files[0].name if len(self.files) == 1 else f"{self.files[0].name} and {len(self.files) - 1} more"


@dataclass(frozen=True)
class Look:
    """Everything found: a known format (its source section of the config), or plain tables."""

    source: dict[str, Any] | None
    tables: list[Table]


def look_at(paths: Sequence[Path]) -> Look:
    """Look at files and folders. Raises DataError where nothing can be read."""
    source = _known_format(paths)
    if source is not None:
        return Look(source, [])
    groups = _groups(find_files([str(path) for path in paths]))
    with open_memory_engine() as connection:
        return Look(None, [_table(connection, files) for files in groups])


def _known_format(paths: Sequence[Path]) -> dict[str, Any] | None:
    """MIND, RecBole or Open Bandit, told by the names of their files."""
    folders = [path if path.is_dir() else path.parent for path in paths]
    for folder in dict.fromkeys(folders):
        if (folder / "behaviors.tsv").exists() and (folder / "news.tsv").exists():
            return {"format": "mind", "behaviors": str(folder / "behaviors.tsv"), "news": str(folder / "news.tsv")}
        if any(folder.glob("*.inter")):
            return {"format": "recbole", "folder": str(folder)}
        if (folder / "item_context.csv").exists():
            return {"format": "open_bandit", "folder": str(folder)}
    return None


def _groups(files: Sequence[Path]) -> list[list[Path]]:
    """Files of one table: numbered parts (part-0, part-1, day=1/x), and train, valid and test."""
    groups: dict[tuple[object, ...], list[Path]] = {}
    for file in files:
        stem = file.name.split(".", 1)[0].lower()
        part = _part_of(file)
        stem = f"({stem.replace(part[0], '')})" if part is not None else re.sub(r"[-_ .]?\d+$", "", stem) or "(numbers)"
        folder = file.parent
        while "=" in folder.name:
            folder = folder.parent
        groups.setdefault((folder, stem, format_of(file)), []).append(file)
    return list(groups.values())


def _part_of(file: Path) -> tuple[str, str] | None:
    """The word in a file's name that says its part, and the part: `train` of train_sample.csv."""
    words = re.split(r"[^a-z]+", file.name.split(".", 1)[0].lower())
    said = [word for word in words if word in PARTS]
    return (said[0], PARTS[said[0]]) if len(said) == 1 else None


def _table(connection: duckdb.DuckDBPyConnection, files: list[Path]) -> Table:
    read_files(connection, "looked", files)
    ours = "source_file, source_row, source_order"
    connection.execute(f"CREATE OR REPLACE TEMP TABLE head AS SELECT * EXCLUDE ({ours}) FROM looked LIMIT {ROWS}")
    stored = columns_of(connection, "head")
    rows = int(one_row(connection, "SELECT count(*) AS n FROM head")["n"])
    if not rows:
        raise DataError(f"{files[0]}: holds no rows, so nothing can be guessed from it.")
    parts = {file.name: part[1] for file in files if (part := _part_of(file)) is not None}
    columns = {column: _column(connection, column, kind) for column, kind in stored.items()}
    return Table(tuple(files), rows, columns, parts if len(files) > 1 else {}, {}, fetch(connection, "SELECT * FROM head"))


def _column(connection: duckdb.DuckDBPyConnection, column: str, stored: str) -> Column:
    cell = name(column)
    if stored.endswith("[]") or (stored == "VARCHAR" and _are_arrays(connection, cell)):
        row = one_row(connection, f"SELECT count({cell}) AS filled, any_value(CAST({cell} AS VARCHAR)) AS example FROM head")
        return Column(column, stored, row["filled"], 0, None, None, False, 0.0, str(row["example"])[:60], None, "")
    as_text = f"nullif(trim(CAST({cell} AS VARCHAR)), '')"
    number = f"try_cast(CASE lower({as_text}) WHEN 'true' THEN '1' WHEN 'false' THEN '0' ELSE {as_text} END AS DOUBLE)"
    # Two Chinese characters count as a word.
    words = f"len(string_split_regex({as_text}, '\\s+')) + len(regexp_extract_all({as_text}, '[\\x{{4E00}}-\\x{{9FFF}}]')) / 2"
    row = one_row(
        connection,
        f"SELECT count({as_text}) AS filled, count(DISTINCT {as_text}) AS distinct_values, count({number}) AS numbers, "
        f"min({number}) AS low, max({number}) AS high, bool_and({number} = floor({number})) AS whole, "
        f"avg({words}) AS words, first({as_text}) FILTER ({as_text} IS NOT NULL) AS example FROM head",
    )
    filled, is_number = int(row["filled"]), row["filled"] > 0 and row["numbers"] == row["filled"]
    return Column(
        column, stored, filled, int(row["distinct_values"]),
        row["low"] if is_number else None, row["high"] if is_number else None, bool(is_number and row["whole"]),
        float(row["words"] or 0), str(row["example"] or "")[:60],
        _time(connection, as_text, stored, filled, row if is_number else None),
        None if is_number or stored != "VARCHAR" else _separator(connection, as_text, filled),
    )  # fmt: skip


def _are_arrays(connection: duckdb.DuckDBPyConnection, cell: str) -> bool:
    """Whether every value is a JSON array: lists of JSON lines are read as their text."""
    is_array = f"starts_with({cell}, '[') AND json_valid({cell})"
    return bool(
        one_row(connection, f"SELECT count({cell}) > 0 AND bool_and({is_array}) AS yes FROM head WHERE {cell} <> ''")["yes"]
    )


def _time(
    connection: duckdb.DuckDBPyConnection, as_text: str, stored: str, filled: int, numbers: dict[str, Any] | None
) -> dict[str, str] | None:
    """How the column reads as a time: typed, a number since 1970, ISO 8601 text, or text of one of TIME_FORMATS."""
    if stored.startswith(("TIMESTAMP", "DATE")):
        return {}
    if numbers is not None:
        for unit, low, high in _UNITS:
            if numbers["low"] >= low and numbers["high"] < high:
                return {"time_unit": unit}
        if not (numbers["whole"] and numbers["low"] >= 19_000_101 and numbers["high"] <= 21_001_231_235_959):
            return None
    if not filled:
        return None
    if numbers is None and _all(connection, f"try_cast({as_text} AS TIMESTAMPTZ)", filled):
        return {}
    for form in TIME_FORMATS:
        if _all(connection, f"try_strptime({as_text}, {text(form)})", filled):
            return {"time_format": form}
    return None


def _separator(connection: duckdb.DuckDBPyConnection, as_text: str, filled: int) -> str | None:
    """What most values hold that looks like a separator of short items."""
    for separator in SEPARATORS:
        pieces = f"SELECT {as_text} AS cell, unnest(string_split({as_text}, {text(separator)})) AS piece FROM head"
        row = one_row(
            connection,
            f"SELECT (SELECT count(*) FROM head WHERE contains({as_text}, {text(separator)})) AS several, "
            f"max(length(trim(piece))) AS longest, bool_and(regexp_full_match(trim(piece), '[\\w.:-]*')) AS are_codes "
            f"FROM ({pieces})",
        )
        # A few lists among single items are enough where each item is a code: text holds such marks by chance.
        share = 0.02 if row["are_codes"] and separator in {"|", ";", "^"} else 0.3
        if filled and row["several"] >= share * filled and (row["longest"] or 0) <= 40:
            return separator
    return None


def _all(connection: duckdb.DuckDBPyConnection, expression: str, filled: int) -> bool:
    return bool(one_row(connection, f"SELECT count({expression}) AS n FROM head")["n"] == filled)
