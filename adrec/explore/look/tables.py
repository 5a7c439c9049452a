"""Find the tables behind paths and look at the first rows of each: how the files are laid out, and what every column holds.

A table's `reading` are the keys that its config needs; the rows looked at are read with them, as `preprocess` will read all.
At most ROWS rows a table are looked at, of at most FILES of its files (spread from the first to the last), whatever its size.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from adrec.config.data.sources import TableInput
from adrec.data.disk.engine import columns_of, name, one_row, open_memory_engine
from adrec.errors import DataError
from adrec.explore.look.cells import Column, cleaned, column_of, different_values, marks_of
from adrec.explore.look.layout import Layout, layout_of
from adrec.explore.look.moments import read_joined
from adrec.prepare.sources.files import find_files, format_of
from adrec.prepare.sources.nested import find_nested
from adrec.prepare.sources.opening import ARCHIVE, COMPRESSIONS, is_text_of, pieces, readable, sheet_rows, with_members
from adrec.prepare.sources.tables import open_table

ROWS = 20_000
FILES = 8
_HEAD_BYTES = 16 << 20
_OURS = "source_file, source_row, source_order"
PARTS = {"train": "train", "training": "train", "valid": "valid", "validation": "valid", "val": "valid", "dev": "valid",
         "test": "test"}  # fmt: skip
"""Words in names of files that say a part."""
_UNNAMED = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|\d+")


@dataclass(frozen=True)
class Joined:
    """A date and a clock in columns of their own: `shown_at: [date, time]` under `columns` makes them one moment."""

    columns: tuple[str, ...]
    time: dict[str, Any]
    """How the joined cell is read: keys of the table, as `Column.time`."""
    example: str


@dataclass(frozen=True)
class Table:
    """Files that are one table, and its columns by name (fields inside of cells by their path, `user.id`)."""

    files: tuple[Path, ...]
    rows: int
    """Rows looked at."""
    columns: dict[str, Column]
    parts: dict[str, str] = field(default_factory=dict)
    """File name -> train, valid or test, where the names of the files say so."""
    head: pa.Table = field(default_factory=lambda: pa.table({}), compare=False, repr=False)
    """The rows looked at: what one column says of another is measured on them. Words for nothing are NULL, numbers that are
    text are written plainly; fields inside of cells are columns."""
    reading: dict[str, Any] = field(default_factory=dict)
    """Keys that `source.<table>` needs so that its files are read: format, delimiter, encoding, quote, header, skip_lines,
    sheet, leave_out, decimal, thousands, null_values. What moments and lists need is in `Column.time` and `.separator`."""
    headerless: bool = False
    """The files have no line of names: columns are called column_1, column_2, ... and `reading` has a `header` to mend."""
    joined: tuple[Joined, ...] = ()
    """Moments in two columns."""
    notes: tuple[str, ...] = ()
    """Sentences about what was guessed of the files, without the file's name."""
    total_rows: int = 0
    """Rows of all files: exact for Parquet and where all were looked at, else told from sizes."""

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
    """Files of one table: their names differ in numbers alone (part-0-<uuid>, day=1/x, 000000_0), or in train and test."""
    groups: dict[tuple[object, ...], list[Path]] = {}
    for file in files:
        words = [step for step in re.split(r"[-_. ]+", _UNNAMED.sub("", _stem(file))) if step and step not in PARTS]
        folder = file.parent
        while "=" in folder.name:
            folder = folder.parent
        groups.setdefault((folder, *words, format_of(file)), []).append(file)
    return list(groups.values())


def _stem(file: Path) -> str:
    return file.name.split(".", 1)[0].lower()


def _part_of(file: Path) -> str | None:
    said = [PARTS[step] for step in re.split(r"[-_. ]+", _stem(file)) if step in PARTS]
    return said[0] if len(said) == 1 else None


def _table(connection: duckdb.DuckDBPyConnection, files: list[Path]) -> Table:
    layout = _layout(connection, files[0])
    step = max(1, math.ceil(len(files) / FILES))
    looked = [*files[:-1:step], files[-1]] if len(files) > 1 else files
    _read_head(connection, looked, layout.keys)
    rows = int(one_row(connection, "SELECT count(*) AS n FROM head")["n"])
    if not rows:
        raise DataError(f"{files[0]}: holds no rows, so nothing can be guessed from it.")
    stored = columns_of(connection, "head")
    marks = marks_of(connection, [column for column, kind in stored.items() if kind == "VARCHAR"], layout.keys.get("delimiter"))
    columns = {column: column_of(connection, column, kind, marks) for column, kind in stored.items()}
    parts = {file.name: part for file in files if (part := _part_of(file)) is not None}
    return Table(
        tuple(files), rows, columns, parts if len(files) > 1 else {}, cleaned(connection, columns, marks),
        reading=layout.keys | marks.keys, headerless=layout.headerless,
        joined=tuple(_joined(connection, columns)), notes=(*layout.notes, *_doubts(columns), *marks.notes),
        total_rows=_total_rows(files, looked, rows),
    )  # fmt: skip


def _layout(connection: duckdb.DuckDBPyConnection, file: Path) -> Layout:
    """How the first file of a table is laid out; those beside it are taken to be alike."""
    member = with_members([file])[0]
    kind = format_of(member)
    if kind == "parquet" or (kind is None and not is_text_of(member)):
        return Layout({} if kind else {"format": "parquet"})
    if kind != "xlsx":
        return layout_of(member, kind)
    sheets = sheet_rows(file)
    largest = max(sheets, key=lambda sheet: sheets[sheet])
    keys = {"sheet": largest} if largest != next(iter(sheets)) else {}
    (copy,) = readable(connection, [file], "xlsx", sheet=largest)
    layout = layout_of(copy, "csv", ",")
    return Layout(keys | layout.keys, layout.headerless, layout.notes)


def _read_head(connection: duckdb.DuckDBPyConnection, files: Sequence[Path], keys: dict[str, Any]) -> None:
    """The table `head`: the first rows of each of `files`, of the fields inside of cells as well."""
    each = math.ceil(ROWS / len(files))
    for number, file in enumerate(files):
        table = TableInput.model_validate({"files": [str(file)], **keys})
        open_table(connection, "looked", table, head=_HEAD_BYTES)
        query = f"SELECT * EXCLUDE ({_OURS}) FROM looked LIMIT {each}"
        if number == 0:
            # A cell whose fields are columns says nothing of its own.
            parents = find_nested(connection, "looked_files").parents
            dropped = "".join(f", {name(column)}" for column in sorted(parents))
            query = f"SELECT * EXCLUDE ({_OURS}{dropped}) FROM looked LIMIT {each}"
            connection.execute(f"CREATE OR REPLACE TEMP TABLE head AS {query}")
        else:
            known = ", ".join(map(name, set(columns_of(connection, "head")) & set(columns_of(connection, "looked"))))
            connection.execute(f"INSERT INTO head BY NAME SELECT {known} FROM looked LIMIT {each}")


def _joined(connection: duckdb.DuckDBPyConnection, columns: dict[str, Column]) -> list[Joined]:
    """Pairs of a day and a time of a day; the clock nearest to the day's column comes first."""
    places = list(columns)
    days = [column for column in columns.values() if column.time is not None and column.is_day]
    clocks = [column for column in columns.values() if column.is_clock]
    pairs = sorted(
        ((day, clock) for day in days for clock in clocks),
        key=lambda pair: abs(places.index(pair[0].name) - places.index(pair[1].name)),
    )
    found = []
    for day, clock in pairs:
        values = [different_values(connection, column.name) for column in (day, clock)]
        keys = read_joined(values[0], day.time or {}, values[1])
        if keys is not None:
            found.append(Joined((day.name, clock.name), keys, f"{day.example} {clock.example}"))
    return found


def _doubts(columns: dict[str, Column]) -> list[str]:
    return [f"column '{column.name}': {column.doubt}" for column in columns.values() if column.doubt]


def _total_rows(files: Sequence[Path], looked: Sequence[Path], rows: int) -> int:
    if all(format_of(file) == "parquet" for file in files):
        return sum(pq.read_metadata(file).num_rows for file in files)
    if rows < ROWS // len(looked) and len(looked) == len(files):
        return rows
    return max(rows, _rows_by_size(files, looked))


def _rows_by_size(files: Sequence[Path], looked: Sequence[Path]) -> int:
    """From how many lines the first megabyte has; compressed text is taken to be a fifth of what it was."""
    start = next(pieces(with_members([looked[0]])[0]), b"")
    lines = max(start.count(b"\n"), start.count(b"\r"), 1)
    packed = sum(file.stat().st_size * (5 if file.suffix.lower() in {*COMPRESSIONS, ARCHIVE} else 1) for file in files)
    return round(packed * lines / max(len(start), 1))
