"""Text files (CSV, TSV, lines of JSON) as DuckDB readers: headers, quotes, encodings.

One reader goes over as many neighbouring files as have the same columns in the same order. Files in another encoding than UTF-8
are decoded in pieces of 1 MB into the engine's scratch folder, which goes with the run.
"""

import codecs
import csv
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from adrec.data.disk.engine import text
from adrec.errors import DataError
from adrec.prepare.sources.json_lines import json_keys

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_LONGEST_LINE = 4_000_000
_PIECE = 1 << 20
_LINE_COLUMN = "line"


@dataclass(frozen=True)
class Dialect:
    """How a text file is written. `quote` None: the double quote, unless lone ones would join lines."""

    delimiter: str = ","
    quote: str | None = None
    escape: str | None = None
    header: tuple[str, ...] | None = None
    """names of the columns where the file has no header line"""
    encoding: str = "utf-8"


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
        options = _options([_LINE_COLUMN], "\x01", "", "", has_header=False, files=files)
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
            tuple(read_header(path, dialect.delimiter, quote, called=file)) for file, path in zip(files, paths, strict=True)
        ]
        for file, header in zip(files, headers, strict=True):
            odd = sorted(set(headers[0]) ^ set(header))
            if odd:
                raise DataError(f"{file}: its header differs from that of {files[0].name} ({', '.join(odd[:6])}).")
    pieces = []
    for header, group in groupby(zip(headers, files, paths, strict=True), key=lambda item: item[0]):
        members = list(group)
        escape = quote if dialect.escape is None else dialect.escape
        has_header = dialect.header is None
        options = _options(header, dialect.delimiter, quote, escape, has_header=has_header, files=files)
        unquoted = _options(header, dialect.delimiter, "", "", has_header=has_header, files=files)
        pieces.append(
            Piece(
                tuple(file for _, file, _ in members),
                tuple(path for _, _, path in members),
                header,
                options,
                unquoted if dialect.quote is None and len(header) > 1 else "",
                int(has_header),
            )
        )
    return pieces


def _refuse_other_encoding(connection: duckdb.DuckDBPyConnection, piece: Piece) -> None:
    try:
        connection.execute(f"SELECT count({_LINE_COLUMN}) FROM {piece.reader()}").fetchall()
    except duckdb.InvalidInputException as error:
        if "unicode" in str(error):
            what = "line 1: is not UTF-8 text. Set `encoding` in the config (gbk, utf-16, latin-1, ...)."
            raise DataError(f"{piece.files[0]}: {what}") from None


def _options(
    columns: Sequence[str], delimiter: str, quote: str, escape: str, *, has_header: bool, files: Sequence[Path]
) -> str:
    listed = ", ".join(f"{text(column)}: 'VARCHAR'" for column in columns)
    return (
        f"auto_detect = false, delim = {text(delimiter)}, quote = {text(quote)}, escape = {text(escape)}, "
        f"header = {str(has_header).lower()}, columns = {{{listed}}}, hive_partitioning = {hive(files)}, "
        f"max_line_size = {_LONGEST_LINE}, buffer_size = {_LONGEST_LINE}"
    )


def hive(files: Sequence[Path]) -> str:
    """SQL: whether folders named `key=value` add columns. Their values stay text."""
    return "true, hive_types_autocast = false" if all("=" in file.parent.name for file in files) else "false"


def read_header(file: Path, delimiter: str, quote: str = '"', *, called: Path | None = None) -> list[str]:
    """Column names in the first line of a text file, plain or compressed; `called` is for messages. Raises DataError."""
    where = called or file
    try:
        with pa.input_stream(str(file), compression=COMPRESSIONS.get(file.suffix)) as handle:
            line = handle.read(_PIECE).split(b"\n", 1)[0].decode("utf-8-sig").rstrip("\r")
    except UnicodeDecodeError:
        raise DataError(f"{where}: row 1: not UTF-8 text. Set `encoding` in the config (gbk, utf-16, latin-1, ...).") from None
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{where}: cannot be read ({str(error).splitlines()[0][:160]}). Write the file again.") from None
    if "\0" in line:
        raise DataError(f"{where}: row 1: holds NUL characters. Set `encoding` in the config (utf-16?).")
    try:
        names = next(csv.reader([line], delimiter=delimiter, quotechar=quote), []) if quote else line.split(delimiter)
    except csv.Error as error:
        raise DataError(f"{where}: row 1: the header cannot be read ({error}).") from None
    names = [column.strip() for column in names]
    if len(names) > 1 and not names[0]:
        names[0] = "row_label"  # the unnamed index that a data frame writes first
    if not names or not all(names):
        raise DataError(f"{where}: row 1: the header has an empty column name. Name every column.")
    lowered = [column.lower() for column in names]
    twice = sorted({column for column in lowered if lowered.count(column) > 1})
    if twice:
        raise DataError(f"{where}: row 1: column '{twice[0]}' occurs twice in the header.")
    return names


def decoded(connection: duckdb.DuckDBPyConnection, files: Sequence[Path], encoding: str) -> list[Path]:
    """`files` in UTF-8: as they are, or copies in the engine's scratch folder. Raises DataError where a byte does not fit."""
    if codecs.lookup(encoding).name in {"utf-8", "utf-8-sig", "ascii"}:
        return list(files)
    row = connection.execute("SELECT current_setting('temp_directory')").fetchone()
    folder = Path(row[0] if row else ".") / "decoded"
    folder.mkdir(parents=True, exist_ok=True)
    copies = []
    for file in files:
        digest = hashlib.sha256(f"{encoding} {file}".encode()).hexdigest()[:16]
        # Folders named key=value are columns: the copy lies in one of the same name.
        copy = folder / digest / (file.parent.name if "=" in file.parent.name else "") / "decoded.txt"
        if not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            _decode(file, copy, encoding)
        copies.append(copy)
    return copies


def _decode(file: Path, copy: Path, encoding: str) -> None:
    decoder = codecs.getincrementaldecoder(encoding)()
    aside = copy.with_suffix(".aside")
    read = 0
    try:
        with open(aside, "w", encoding="utf-8", newline="") as target:
            for piece in _bytes(file):
                target.write(decoder.decode(piece))
                read += len(piece)
            target.write(decoder.decode(b"", final=True))
    except UnicodeError as error:
        raise DataError(
            f"{file}: near byte {read:,}: not {encoding} text ({error.__class__.__name__}). Set `encoding`."
        ) from None
    aside.rename(copy)


def _bytes(file: Path) -> Iterator[bytes]:
    """A plain or compressed file in pieces. Raises DataError."""
    try:
        with pa.input_stream(str(file), compression=COMPRESSIONS.get(file.suffix)) as handle:
            while piece := handle.read(_PIECE):
                yield piece
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file}: cannot be read ({str(error).splitlines()[0][:160]}). Write the file again.") from None


def odd_quotes(file: Path, quote: str = '"') -> int | None:
    """The first line with an odd number of quotes, from 1; None where there is none. A quoted cell may go on from there."""
    mark, ends, carried = ord(quote), 0, 0
    for piece in _bytes(file):
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
