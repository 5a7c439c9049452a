"""Text files (CSV, TSV, lines of JSON) as DuckDB readers: headers, quotes, lines above the header.

One reader goes over as many neighbouring files as have the same columns in the same order.
"""

import codecs
import csv
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import duckdb
import numpy as np

from adrec.data.disk.engine import text
from adrec.errors import DataError, is_concealed
from adrec.prepare.sources.json_lines import json_keys
from adrec.prepare.sources.opening import pieces
from adrec.prepare.sources.sniffing import encoding_cure, likely_delimiter

_LONGEST_LINE = 4_000_000
_LINE_COLUMN = "line"


@dataclass(frozen=True)
class Dialect:
    """How a text file is written. `quote` None: the double quote, unless lone ones would join lines."""

    delimiter: str = ","
    quote: str | None = None
    escape: str | None = None
    header: tuple[str, ...] | None = None
    """names of the columns where the file has no header line"""
    skip_lines: int = 0
    """lines above the header"""
    left_out: tuple[str, ...] = ()
    """first cells of lines that are no rows, and that may have fewer cells than a row"""


@dataclass(frozen=True)
class Piece:
    """Neighbouring files that one reader reads. `files` are the user's own, `paths` what is read (decoded copies, if any)."""

    files: tuple[Path, ...]
    paths: tuple[Path, ...]
    columns: tuple[str, ...]
    """what the reader gives: the cells, or one column `line` where the lines are JSON"""
    options: str
    unquoted: str
    """the options of a reader that takes quotes for plain characters; empty where the config says what quotes mean"""
    header_lines: int
    keys: tuple[str, ...] = ()
    """of the JSON objects"""
    delimiter: str = ""
    left_out: tuple[str, ...] = ()

    def reader(self, *, more: str = "", options: str | None = None, paths: Sequence[Path] | None = None) -> str:
        """The FROM clause."""
        listed = ", ".join(text(_escaped(path)) for path in (paths or self.paths))
        return f"read_csv([{listed}], {options or self.options}{more})"


def text_pieces(
    connection: duckdb.DuckDBPyConnection, files: Sequence[Path], paths: Sequence[Path], kind: str, dialect: Dialect
) -> list[Piece]:
    """The readers of `files` (csv, tsv or jsonl), in order. Raises DataError for headers that differ or cannot be read."""
    if kind == "jsonl":
        # No byte of JSON is a control character, so that a line is one cell.
        options = _options([_LINE_COLUMN], "\x01", "", "", above=0, files=files)
        piece = Piece(tuple(files), tuple(paths), (_LINE_COLUMN,), options + ", strict_mode = false", "", 0)
        try:
            keys = json_keys(connection, piece.reader(more=", ignore_errors = true"), str(files[0]))
        except DataError:
            _refuse_other_encoding(connection, piece)
            raise
        return [Piece(piece.files, piece.paths, piece.columns, piece.options, "", 0, tuple(keys))]
    quote = '"' if dialect.quote is None else dialect.quote
    if dialect.header is not None:
        headers = [tuple(dialect.header)] * len(files)
    else:
        headers = [
            tuple(read_header(path, dialect.delimiter, quote, called=file, skip_lines=dialect.skip_lines))
            for file, path in zip(files, paths, strict=True)
        ]
        for file, header in zip(files, headers, strict=True):
            odd = sorted(set(headers[0]) ^ set(header))
            if odd:
                raise DataError(f"{file}: its header differs from that of {files[0].name} ({', '.join(odd[:6])}).")
    found = []
    for header, group in groupby(zip(headers, files, paths, strict=True), key=lambda item: item[0]):
        members = list(group)
        escape = quote if dialect.escape is None else dialect.escape
        above = dialect.skip_lines + int(dialect.header is None)
        options = _options(header, dialect.delimiter, quote, escape, above=above, files=files)
        unquoted = _options(header, dialect.delimiter, "", "", above=above, files=files)
        found.append(
            Piece(
                tuple(file for _, file, _ in members),
                tuple(path for _, _, path in members),
                header,
                options,
                unquoted if dialect.quote is None and len(header) > 1 else "",
                above,
                delimiter=dialect.delimiter,
                left_out=dialect.left_out,
            )
        )
    return found


def _refuse_other_encoding(connection: duckdb.DuckDBPyConnection, piece: Piece) -> None:
    try:
        connection.execute(f"SELECT count({_LINE_COLUMN}) FROM {piece.reader()}").fetchall()
    except duckdb.InvalidInputException as error:
        if "unicode" in str(error):
            what = f"line 1: is not UTF-8 text. {encoding_cure(next(pieces(piece.paths[0]), b''))}"
            raise DataError(f"{piece.files[0]}: {what}") from None


def _options(columns: Sequence[str], delimiter: str, quote: str, escape: str, *, above: int, files: Sequence[Path]) -> str:
    """`above`: lines before the first row."""
    top = "header = true" if above == 1 else f"header = false, skip = {above}"
    listed = ", ".join(f"{text(column)}: 'VARCHAR'" for column in columns)
    return (
        f"auto_detect = false, delim = {text(delimiter)}, quote = {text(quote)}, escape = {text(escape)}, "
        f"{top}, columns = {{{listed}}}, hive_partitioning = {hive(files)}, "
        f"max_line_size = {_LONGEST_LINE}, buffer_size = {_LONGEST_LINE}"
    )


def hive(files: Sequence[Path]) -> str:
    """SQL: whether folders named `key=value` add columns. Their values stay text."""
    return "true, hive_types_autocast = false" if all("=" in file.parent.name for file in files) else "false"


def read_header(file: Path, delimiter: str, quote: str = '"', *, called: Path | None = None, skip_lines: int = 0) -> list[str]:
    """Column names in the first line of a text file, plain or compressed, behind `skip_lines`; `called` is for messages.

    Columns without a name are called by their number (the first `row_label`: a data frame's index). Raises DataError.
    """
    where = called or file
    line = _line_of(file, where, skip_lines)
    row = skip_lines + 1
    try:
        single = quote and len(delimiter) == 1
        names = next(csv.reader([line], delimiter=delimiter, quotechar=quote), []) if single else line.split(delimiter)
    except csv.Error as error:
        raise DataError(f"{where}: row {row}: the header cannot be read ({error}).") from None
    names = [column.strip() for column in names]
    if not any(names):
        raise DataError(
            f"{where}: row {row}: the header has no names. Set `skip_lines` to the lines above it, or name the columns in "
            "`header` in the config."
        )
    unnamed = ["row_label", *(f"column_{number}" for number in range(2, len(names) + 1))]
    names = [column or other for column, other in zip(names, unnamed, strict=True)]
    lowered = [column.lower() for column in names]
    twice = sorted({column for column in lowered if lowered.count(column) > 1})
    if twice:
        raise DataError(
            f"{where}: row {row}: column '{twice[0]}' occurs twice in the header. Name the columns in `header` in the config, "
            f"with `skip_lines: {row}`."
        )
    other = likely_delimiter([line])
    if len(names) == 1 and other not in {None, delimiter}:
        shown = {"\t": '"\\t"'}.get(str(other), f"'{other}'")
        told = "" if is_concealed() else f", {line[:60]!r}"
        raise DataError(f"{where}: row {row}: the header is one name{told}. Set `delimiter: {shown}` in the config.")
    return names


def _line_of(file: Path, where: Path, skip_lines: int) -> str:
    start = next(pieces(file), b"")
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in start[:200]:
        raise DataError(f"{where}: row 1: is not UTF-8 text. {encoding_cure(start)}")
    lines = start.removeprefix(codecs.BOM_UTF8).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n", skip_lines + 1)
    if len(lines) <= skip_lines:
        raise DataError(f"{where}: has {len(lines)} lines, and skip_lines passes over {skip_lines}. Mend `skip_lines`.")
    try:
        return lines[skip_lines].decode("utf-8")
    except UnicodeDecodeError:
        raise DataError(f"{where}: row {skip_lines + 1}: not UTF-8 text. {encoding_cure(start)}") from None


def odd_quotes(file: Path, quote: str = '"') -> int | None:
    """The first line with an odd number of quotes, from 1; None where there is none. A quoted cell may go on from there."""
    mark, ends, carried = ord(quote), 0, 0
    for piece in pieces(file):
        piece = piece.replace(b"\r", b"\n") if b"\n" not in piece else piece  # a lone CR ends a line too
        if carried == 0 and quote.encode() not in piece:
            ends += piece.count(b"\n")
            continue
        values = np.frombuffer(piece, np.uint8)
        lines = np.flatnonzero(values == 10)
        quotes = np.searchsorted(np.flatnonzero(values == mark), lines)  # of the piece, before each line's end
        each = np.diff(quotes, prepend=-carried) if len(lines) else quotes
        odd = np.flatnonzero(each % 2)
        if len(odd):
            return ends + int(odd[0]) + 1
        total = piece.count(quote.encode())
        carried = total - int(quotes[-1]) if len(lines) else carried + total
        ends += len(lines)
    return ends + 1 if carried % 2 else None


def _escaped(path: Path) -> str:
    return "".join(f"[{character}]" if character in "*?[" else character for character in str(path))
