"""Whether a file of any kind still names somebody: looked for decoded and decompressed, in memory that does not grow with it.

Parquet, JSON and arrays are asked for whole values, text for whole words. In SQLite's pages cells touch each other, so a longer
id may be taken for a shorter one there. Archives and workbooks are looked into. Other binary files (weights, columns of
numbers) name nobody.
"""

import bz2
import gzip
import html
import io
import json
import lzma
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

_OPENERS: dict[str, Callable[..., Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": lambda file, mode: pa.CompressedInputStream(pa.OSFile(str(file), mode), "zstd"),
}
_ARCHIVES = {".zip", ".xlsx", ".xlsm", ".ods"}
_SHUT = {".xls", ".xlsb", ".tar", ".tgz", ".7z", ".rar"}
_BLOCK = 2**22
"""Characters that are looked through at once."""
_SQLITE = b"SQLite format 3\0"
_WIDE = (b"\xff\xfe", b"\xfe\xff")
_ENCODINGS = ("gb18030", "latin-1")


def holds(file: Path, names: Sequence[str], *, is_raw: bool = False) -> bool:
    """Whether any of `names` stands in the file as a whole value or word. Raises OSError and what pyarrow and json raise, and
    ValueError for what is not opened here.

    `is_raw`: in a log as its owner wrote it, where ids may be numbers, and text in another encoding.
    """
    kind = file.suffix.lower()
    if kind in _SHUT:
        raise ValueError(f"{kind} is not opened")
    if kind in {".parquet", ".pq"}:
        return _parquet_holds(file, names, numbers=is_raw)
    if kind == ".npz":
        with np.load(file, allow_pickle=False) as arrays:
            return any(arrays[name].dtype.kind == "U" and bool(np.isin(arrays[name], names).any()) for name in arrays.files)
    if kind == ".json":
        return bool(set(names) & set(_strings_of(json.loads(file.read_bytes()), numbers=is_raw)))
    if kind in _ARCHIVES:
        with zipfile.ZipFile(file) as archive:
            inside = [member for member in archive.namelist() if not member.endswith("/")]
            return any(_stream_holds(partial(archive.open, member), names, is_raw) for member in inside)
    return _stream_holds(partial(opened, file), names, is_raw)


def opened(file: Path) -> Any:
    """Its bytes, decompressed where its name says that they are compressed."""
    return _OPENERS.get(file.suffix.lower(), open)(file, "rb")


def _stream_holds(again: Callable[[], Any], names: Sequence[str], is_raw: bool) -> bool:
    """`again` opens the bytes once more."""
    with again() as stream:
        start = bytes(stream.read(4096))
    is_store, is_wide = start.startswith(_SQLITE), start.startswith(_WIDE)
    if b"\0" in start and not is_store and not is_wide:
        return False
    encodings = ["utf-16" if is_wide else "utf-8"]
    if is_raw and not is_wide and not all(map(str.isascii, names)):
        encodings += _ENCODINGS
    written = _as_written(names)
    for encoding in encodings:
        with again() as stream:
            text = io.TextIOWrapper(stream, encoding=encoding, errors="replace", newline="")
            if text_holds(text, written, whole=not is_store):
                return True
    return False


def _as_written(names: Sequence[str]) -> list[str]:
    """The names, and what lines of JSON, CSV and HTML make of quotes and other letters in them."""
    forms = [(name, json.dumps(name)[1:-1], json.dumps(name, ensure_ascii=False)[1:-1], name.replace('"', '""'),
              html.escape(name), html.escape(name, quote=False), html.escape(name).replace("&#x27;", "&#39;").replace(
              "&quot;", "&#34;")) for name in names]  # fmt: skip
    return list(dict.fromkeys(form for of_name in forms for form in of_name))


def text_holds(stream: IO[str], names: Sequence[str], *, whole: bool = True, block: int = _BLOCK) -> bool:
    """Whether any of `names` stands in the text, as a `whole` word; across two blocks it is seen with both its neighbours."""
    some = "|".join(re.escape(name) for name in names)
    wanted = re.compile(rf"(?<![\w-])(?:{some})(?![\w-])" if whole else some)
    kept, text, is_first = max(map(len, names)) + 2, "", True
    while True:
        more = stream.read(block)
        text = text + more
        for match in wanted.finditer(text):
            # At an inner edge a neighbour is not known: the round before, or after, has seen it.
            if (match.start() > 0 or is_first) and (match.end() < len(text) or not more):
                return True
        if not more:
            return False
        is_first = is_first and len(text) <= kept
        text = text[-kept:]


def _parquet_holds(file: Path, names: Sequence[str], *, numbers: bool) -> bool:
    wanted = pa.array(names, pa.string())
    whole = [int(name) for name in names if re.fullmatch(r"-?[0-9]{1,18}", name)] if numbers else []
    with pq.ParquetFile(file) as table:
        for batch in table.iter_batches():
            for values in (leaf for column in batch.columns for leaf in _leaves(column)):
                kind = values.type
                if pa.types.is_string(kind) or pa.types.is_large_string(kind):
                    found = pc.is_in(values.cast(pa.string()), value_set=wanted)
                elif whole and (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
                    found = pc.is_in(values.cast(pa.float64(), safe=False), value_set=pa.array(whole, pa.float64()))
                else:
                    continue
                if pc.any(found).as_py():
                    return True
    return False


def _leaves(values: pa.Array) -> Iterator[pa.Array]:
    """The arrays that a nested one is made of."""
    kind = values.type
    if pa.types.is_dictionary(kind):
        yield from _leaves(values.dictionary_decode())
    elif pa.types.is_map(kind):
        yield from (*_leaves(values.keys), *_leaves(values.items))
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        yield from _leaves(values.flatten())
    elif pa.types.is_struct(kind):
        for part in values.flatten():
            yield from _leaves(part)
    else:
        yield values


def _strings_of(value: Any, *, numbers: bool = False) -> Iterator[str]:
    """Every text of a JSON value, keys too; whole numbers as text where they are asked for."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from (key, *_strings_of(part, numbers=numbers))
    elif isinstance(value, list):
        for part in value:
            yield from _strings_of(part, numbers=numbers)
    elif numbers and type(value) is int:
        yield str(value)
