"""How a text file is laid out: encoding, separator, lines above the header, whether there is one, lines of totals.

Looks at the first megabyte of a file, and at the last 64 kB of one that is not compressed.
"""

import codecs
import csv
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adrec.prepare.sources.opening import COMPRESSIONS, archive_of, pieces
from adrec.prepare.sources.sniffing import cells_in, likely_delimiter, likely_encoding

_LINES = 400
_TAIL = 1 << 16
_MOST_ABOVE = 40
_TOTAL = re.compile(
    r"(grand |sub-?|report )?totals?(:.*| \d.*)?|summe|gesamt(summe)?|insgesamt|somme|totale|total général|suma|celkem|"
    r"итого|всего|合计|总计|总和|小计|合計|總計",
    re.IGNORECASE,
)
_SHAPE = ((re.compile(r"[^\W\d_]+"), "a"), (re.compile(r"\d+"), "9"))


@dataclass(frozen=True)
class Layout:
    """Keys of a table's config that its file asks for, and sentences about what is not sure."""

    keys: dict[str, Any]
    """`format`, `encoding`, `delimiter`, `quote`, `header`, `skip_lines`, `leave_out`: those that are not as usual."""
    headerless: bool = False
    notes: list[str] = field(default_factory=list)


def layout_of(file: Path, ending: str | None, delimiter: str | None = None) -> Layout:
    """Look at a text file; `ending` is the format that its name says (csv, tsv, jsonl, or None). Raises DataError."""
    start = next(pieces(file), b"")
    keys: dict[str, Any] = {}
    notes = []
    encoding = likely_encoding(start) or "utf-8"
    if encoding != "utf-8":
        keys["encoding"] = encoding
        if not start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            notes.append(f"its text is read as {encoding}, at a guess")
    written = codecs.getincrementaldecoder("utf-8-sig" if encoding == "utf-8" else encoding)(errors="replace").decode(start)
    if ending == "jsonl" or (ending is None and written.lstrip().startswith(("{", "["))):
        return Layout(keys | ({} if ending else {"format": "json"}), False, notes)
    lines = re.split(r"\r\n|\n|\r", written)
    is_whole = len(start) < 1 << 20
    lines = lines if is_whole else lines[:-1]
    marked = re.fullmatch(r"sep=(.{1,4})", lines[0].strip()) if lines else None
    separator = delimiter or (marked[1] if marked else likely_delimiter(lines[min(_MOST_ABOVE, len(lines) // 5) : _LINES]))
    usual = "\t" if ending == "tsv" else ","
    separator = separator or usual
    if ending is None:
        keys["format"] = "csv"
    if separator != usual or (ending is None and separator != ","):
        keys["delimiter"] = separator
    above = _lines_above(lines[:_LINES], separator)
    rows = [_cells(line, separator) for line in lines[above : above + _LINES] if line.strip()]
    if not rows:
        return Layout(keys, False, notes)
    header, headerless = [cell.strip() for cell in rows[0]], _has_no_header(rows)
    lowered = [cell.lower() for cell in header if cell]
    if headerless:
        keys["header"] = [f"column_{number}" for number in range(1, len(rows[0]) + 1)]
    elif len(set(lowered)) < len(lowered):
        keys["header"] = _told_apart(header)
        above += 1
        notes.append("two of its columns have the same name: the later is called with a number behind")
    if above:
        keys["skip_lines"] = above
    if _quotes_are_plain(lines[above : above + _LINES], separator):
        keys["quote"] = ""
    names = keys.get("header", _told_apart(header))
    tail = lines[-5:] if is_whole else _last_lines(file, encoding)
    totals = _totals(rows[1:3], tail, separator, names)
    if totals:
        keys["leave_out"] = totals
        shown = ", ".join(f"{column} {value!r}" for column, values in totals.items() for value in values)
        notes.append(f"rows of totals are left out ({shown})")
    return Layout(keys, headerless, notes)


def _cells(line: str, delimiter: str) -> list[str]:
    if len(delimiter) > 1:
        return line.split(delimiter)
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return line.split(delimiter)


def _lines_above(lines: Sequence[str], delimiter: str) -> int:
    """Lines before the first that has as many cells as most have."""
    counts = [cells_in(line, delimiter) if line.strip() else 0 for line in lines]
    usual = Counter(count for count in counts if count).most_common(1)
    if not usual or usual[0][0] < 2:
        return 0
    first = next(place for place, count in enumerate(counts) if count >= usual[0][0])
    return first if first <= _MOST_ABOVE else 0


def _has_no_header(rows: Sequence[Sequence[str]]) -> bool:
    """Whether the first row is one of values: a cell of it is a number where the others are, or looks as the others do."""
    first, others = rows[0], [row for row in rows[1:] if len(row) == len(rows[0])]
    if not others:
        return False
    numbers = [_is_number(cell) for cell in first]
    if all(numbers) and [cell.strip() for cell in first] == [str(number) for number in range(len(first))]:
        return False
    if any(numbers):
        return any(
            is_number and sum(_is_number(row[place]) for row in others if row[place].strip()) > 0.8 * _filled(others, place)
            for place, is_number in enumerate(numbers)
        )
    for place, cell in enumerate(first):
        shapes = Counter(_shape(row[place]) for row in others if row[place].strip())
        most = shapes.most_common(1)
        if most and "9" in most[0][0] and _shape(cell) == most[0][0] and most[0][1] > 0.8 * sum(shapes.values()):
            seen = {row[place] for row in others}
            if len(seen) > 1 or cell in seen:
                return True
    return False


def _filled(rows: Sequence[Sequence[str]], place: int) -> int:
    return sum(bool(row[place].strip()) for row in rows)


def _is_number(cell: str) -> bool:
    return re.fullmatch(r"[+-]?\d+([.,]\d+)?", cell.strip()) is not None


def _shape(cell: str) -> str:
    shape = cell.strip()
    for pattern, mark in _SHAPE:
        shape = pattern.sub(mark, shape)
    return shape


def _told_apart(header: Sequence[str]) -> list[str]:
    seen: Counter[str] = Counter()
    names = []
    for place, column in enumerate(header, 1):
        plain = column or ("row_label" if place == 1 else f"column_{place}")
        seen[plain.lower()] += 1
        names.append(plain if seen[plain.lower()] == 1 else f"{plain}_{seen[plain.lower()]}")
    return names


def _quotes_are_plain(lines: Sequence[str], delimiter: str) -> bool:
    """Whether lines fall into as many cells if quotes mean nothing, and not if they enclose cells."""
    quoted = [line for line in lines if '"' in line]
    if not quoted or len(delimiter) > 1:
        return False
    plain = Counter(line.count(delimiter) for line in lines if line.strip())
    odd = [line for line in quoted if line.count('"') % 2]
    return bool(odd) and len(plain) == 1


def _last_lines(file: Path, encoding: str) -> list[str]:
    if file.suffix.lower() in COMPRESSIONS or archive_of(file) is not None or encoding != "utf-8":
        return []
    with open(file, "rb") as handle:
        handle.seek(max(0, file.stat().st_size - _TAIL))
        return re.split(r"\r\n|\n|\r", handle.read().decode("utf-8", errors="replace"))[-5:]


def _totals(top: Sequence[Sequence[str]], tail: Sequence[str], delimiter: str, names: Sequence[str]) -> dict[str, list[str]]:
    """Column -> values of rows that are sums over the others, at the top or the bottom."""
    found: dict[str, list[str]] = {}
    for cells in [*top, *(_cells(line, delimiter) for line in tail if line.strip())]:
        for place, cell in enumerate(cells[: len(names)]):
            if _TOTAL.fullmatch(cell.strip()):
                values = found.setdefault(names[place], [])
                if cell.strip() not in values:
                    values.append(cell.strip())
                break
    return dict(list(found.items())[:1])
