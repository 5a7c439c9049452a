"""What lies in a file, in a form that the engine reads: compression, archives, other encodings, JSON arrays, workbooks.

Plain UTF-8 text, gzip and zstd are read where they lie and cost nothing here. Everything else is written in pieces of 1 MB as
UTF-8 text into the engine's scratch folder, which goes with the run; a workbook is held in memory once, whole.
"""

import codecs
import csv
import hashlib
import json
import lzma
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from adrec.data.disk.engine import one_row, readable_faults, stream, text
from adrec.errors import DataError, ResourceError, install_hint

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz"}
ARCHIVE = ".zip"
WORKBOOKS = {".xlsx", ".xls", ".xlsm", ".xlsb", ".ods"}
_READ_BY_THE_ENGINE = {".gz", ".zst"}
_PIECE = 1 << 20
_LARGEST_OBJECT = 1 << 28
"""Bytes of one JSON object, or of one that wraps a whole table."""


def with_members(files: Iterable[Path]) -> list[Path]:
    """`files`, an archive replaced by the files in it: `log.zip/part-0.csv` is a path to such a one. Raises DataError."""
    found: list[Path] = []
    for file in files:
        found += _members(file) if file.suffix.lower() == ARCHIVE else [file]
    return found


def is_data(relative: Path) -> bool:
    """Whether a file of a folder is part of a table: not `_SUCCESS`, checksums, or what a desktop leaves."""
    hidden = any(step.startswith((".", "_")) for step in relative.parts)
    return not hidden and relative.suffix.lower() not in {".crc", ".md5", ".sha256", ".ini", ".db"}


def pieces(file: Path) -> Iterator[bytes]:
    """The bytes of a plain, compressed or archived file, a megabyte at a time. Raises DataError."""
    try:
        with ExitStack() as stack:
            handle: Any
            archive = archive_of(file)
            if archive is None:
                handle = stack.enter_context(open(file, "rb"))
            else:
                inside = stack.enter_context(zipfile.ZipFile(archive))
                handle = stack.enter_context(inside.open(file.relative_to(archive).as_posix()))
            kind = COMPRESSIONS.get(file.suffix.lower())
            if kind == "xz":
                handle = stack.enter_context(lzma.open(handle))
            elif kind is not None:
                handle = stack.enter_context(pa.CompressedInputStream(pa.PythonFile(handle, mode="r"), kind))
            while piece := handle.read(_PIECE):
                yield piece
    except (
        pa.ArrowException,
        OSError,
        EOFError,
        lzma.LZMAError,
        zipfile.BadZipFile,
        RuntimeError,
        NotImplementedError,
    ) as error:
        raise DataError(f"{file}: cannot be read ({str(error).splitlines()[0][:160]}). Write the file again.") from None


def readable(
    connection: duckdb.DuckDBPyConnection,
    files: Sequence[Path],
    kind: str,
    *,
    encoding: str = "utf-8",
    sheet: str | None = None,
    head: int | None = None,
) -> list[Path]:
    """Files of UTF-8 text with the rows of `files`: they themselves, or copies in the engine's scratch folder.

    `kind` is csv, tsv, jsonl or xlsx. `head`: copies hold the first bytes alone, about so many. Raises DataError.
    """
    return [_readable(connection, file, kind, encoding, sheet, head) for file in files]


def _readable(
    connection: duckdb.DuckDBPyConnection, file: Path, kind: str, encoding: str, sheet: str | None, head: int | None
) -> Path:
    if kind == "xlsx":
        return _copy(connection, file, f"sheet {sheet}", lambda aside: _write_sheet(file, aside, sheet))
    is_utf8 = codecs.lookup(encoding).name in {"utf-8", "utf-8-sig", "ascii"}
    suffix = file.suffix.lower()
    as_it_is = archive_of(file) is None and (suffix in _READ_BY_THE_ENGINE or suffix not in COMPRESSIONS)
    plain = file
    if not (is_utf8 and as_it_is):
        what = f"{encoding} {head}"
        plain = _copy(connection, file, what, lambda aside: _decode(file, aside, "utf-8" if is_utf8 else encoding, head))
    if kind != "jsonl" or (shape := _json_shape(plain)) == "lines":
        return plain
    what = f"{shape} {encoding} {head}"
    return _copy(connection, file, what, lambda aside: _write_objects(connection, plain, aside, shape, head))


def is_text_of(file: Path) -> bool:
    """Whether a file without a telling name is text: not Parquet, by its first bytes."""
    return not next(pieces(file), b"").startswith(b"PAR1")


def sheet_rows(file: Path) -> dict[str, int]:
    """The sheets of a workbook that hold anything, in order, and how many rows each has. Raises DataError."""
    book = _workbook(file)
    rows = {name: len(book.get_sheet_by_name(name).to_python()) for name in book.sheet_names}
    filled = {name: count for name, count in rows.items() if count}
    if not filled:
        raise DataError(f"{file}: the workbook holds no rows.")
    return filled


def _copy(connection: duckdb.DuckDBPyConnection, file: Path, what: str, write: Callable[[Path], None]) -> Path:
    folder = Path(one_row(connection, "SELECT current_setting('temp_directory') AS folder")["folder"]) / "decoded"
    digest = hashlib.sha256(f"{what} {file}".encode()).hexdigest()[:16]
    # Folders named key=value are columns: the copy lies in one of the same name.
    copy = folder / digest / (file.parent.name if "=" in file.parent.name else "") / "decoded.txt"
    if not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        aside = copy.with_suffix(".aside")
        write(aside)
        aside.rename(copy)
    return copy


def archive_of(file: Path) -> Path | None:
    """The archive that a path of `with_members` lies in."""
    return next((parent for parent in file.parents if parent.suffix.lower() == ARCHIVE and parent.is_file()), None)


def _members(archive: Path) -> list[Path]:
    try:
        with zipfile.ZipFile(archive) as inside:
            names = [Path(item.filename) for item in inside.infolist() if not item.is_dir() and item.file_size]
            locked = any(item.flag_bits & 1 for item in inside.infolist())
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{archive}: is no whole zip archive ({error}). Write the file again.") from None
    if locked:
        raise DataError(f"{archive}: is locked by a password. Unpack it, and name the files in it under `files`.")
    names = sorted(name for name in names if is_data(name) and ".." not in name.parts)
    nested = [name for name in names if name.suffix.lower() in {ARCHIVE, ".tar", ".tgz", ".7z", ".rar"}]
    if nested or not names:
        what = f"holds another archive ({nested[0]})" if nested else "holds no file with rows"
        raise DataError(f"{archive}: {what}. Unpack it, and name the files in it under `files`.")
    return [archive / name for name in names]


def _decode(file: Path, copy: Path, encoding: str, head: int | None) -> None:
    decoder = codecs.getincrementaldecoder(encoding)()
    read = 0
    try:
        with open(copy, "w", encoding="utf-8", newline="") as target:
            for piece in pieces(file):
                decoded = decoder.decode(piece)
                read += len(piece)
                if head is not None and read >= head:
                    end = max(decoded.rfind("\n"), decoded.rfind("\r"))
                    target.write(decoded[: end + 1])
                    return
                target.write(decoded)
            target.write(decoder.decode(b"", final=True))
    except UnicodeError as error:
        raise DataError(
            f"{file}: near byte {read:,}: not {encoding} text ({error.__class__.__name__}). Set `encoding`."
        ) from None


def _json_shape(path: Path) -> str:
    """`lines` of one value each; `array` or `objects` (each over several lines) where the engine must take them apart."""
    start = next(pieces(path), b"").removeprefix(codecs.BOM_UTF8).lstrip()
    if start.startswith(b"["):
        return "array"
    if not start.startswith(b"{"):
        return "lines"
    written = start.decode("utf-8", errors="replace")
    try:
        _, end = json.JSONDecoder().raw_decode(written)
    except json.JSONDecodeError:
        return "lines"
    return "objects" if "\n" in written[:end] else "lines"


def _write_objects(connection: duckdb.DuckDBPyConnection, path: Path, copy: Path, shape: str, head: int | None) -> None:
    """One object a line: a line end inside one is space, since strings write theirs as \\n."""
    shapes = {"array": "array", "objects": "unstructured"}
    limit = f" LIMIT {max(head // 100, 1)}" if head is not None else ""
    # The engine sets twice the largest object aside at once, and none in a file that it need not unpack is longer than that.
    packed = path.suffix in _READ_BY_THE_ENGINE
    largest = _LARGEST_OBJECT if packed else min(_LARGEST_OBJECT, max(path.stat().st_size, _PIECE))
    reader = f"read_json_objects({text(str(path))}, format = {text(shapes[shape])}, maximum_object_size = {largest})"
    query = f"SELECT translate(json, chr(10) || chr(13), '  ') AS line FROM {reader}{limit}"
    with open(copy, "w", encoding="utf-8") as target, readable_faults(str(path)):
        for batch in stream(connection, query):
            target.writelines(f"{line}\n" for line in batch.column(0).to_pylist())


def _write_sheet(file: Path, copy: Path, sheet: str | None) -> None:
    """A sheet as CSV. Its cells have types: moments become ISO 8601, whole numbers lose their `.0`."""
    book = _workbook(file)
    if sheet is not None and sheet not in book.sheet_names:
        raise DataError(f"{file}: has no sheet {sheet!r}. Sheets: {', '.join(book.sheet_names)}. Mend `sheet` in the config.")
    rows = book.get_sheet_by_name(sheet or next(iter(sheet_rows(file)))).to_python()
    with open(copy, "w", encoding="utf-8", newline="") as target:
        csv.writer(target, lineterminator="\n").writerows([_cell(value) for value in row] for row in rows)


def _workbook(file: Path) -> Any:
    try:
        from python_calamine import CalamineError, CalamineWorkbook
    except ImportError:
        raise ResourceError(f"{file}: reading workbooks needs python-calamine. Run: {install_hint('xlsx')}") from None
    try:
        return CalamineWorkbook.from_path(file)
    except (CalamineError, OSError) as error:
        raise DataError(f"{file}: is no whole workbook ({str(error).splitlines()[0][:160]}). Write the file again.") from None


def _cell(value: object) -> object:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer() and abs(value) < 1 << 53:
        return int(value)
    if isinstance(value, datetime):
        return value.isoformat(" ")
    return value.isoformat() if isinstance(value, date | time) else value
