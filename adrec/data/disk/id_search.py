"""Whether a file of any kind still names somebody: looked for decoded and decompressed, in memory that does not grow with it.

Parquet, JSON and arrays are asked for whole values, text for whole words. In SQLite's pages cells touch each other, so a longer
id may be taken for a shorter one there. Other binary files (weights, columns of numbers) name nobody.
"""

import bz2
import gzip
import io
import json
import lzma
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

_OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_BLOCK = 2**22
"""Characters that are looked through at once."""
_SQLITE = b"SQLite format 3\0"


def holds(file: Path, names: Sequence[str]) -> bool:
    """Whether any of `names` stands in the file as a whole value or word. Raises OSError and what pyarrow and json raise."""
    if file.suffix == ".parquet":
        return _parquet_holds(file, pa.array(names, pa.string()))
    if file.suffix == ".npz":
        with np.load(file, allow_pickle=False) as arrays:
            return any(arrays[name].dtype.kind == "U" and bool(np.isin(arrays[name], names).any()) for name in arrays.files)
    if file.suffix == ".json":
        return bool(set(names) & set(_strings_of(json.loads(file.read_bytes()))))
    with opened(file) as stream:
        start = stream.read(4096)
        is_store = start.startswith(_SQLITE)
        if b"\0" in start and not is_store:
            return False
        stream.seek(0)
        text = io.TextIOWrapper(stream, encoding="utf-8", errors="replace", newline="")
        return text_holds(text, names, whole=not is_store)


def opened(file: Path) -> Any:
    """Its bytes, decompressed where its name says that they are compressed."""
    return _OPENERS.get(file.suffix, open)(file, "rb")


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


def _parquet_holds(file: Path, names: pa.Array) -> bool:
    with pq.ParquetFile(file) as table:
        for batch in table.iter_batches():
            for column in batch.columns:
                values = column.flatten() if pa.types.is_list(column.type) else column
                values = values.dictionary_decode() if pa.types.is_dictionary(values.type) else values
                is_text = pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
                if is_text and pc.any(pc.is_in(values.cast(pa.string()), value_set=names)).as_py():
                    return True
    return False


def _strings_of(value: Any) -> Iterator[str]:
    """Every text of a JSON value, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from (key, *_strings_of(part))
    elif isinstance(value, list):
        for part in value:
            yield from _strings_of(part)
