"""`adrec forget`: take people out of the prepared folder, the event store, tables and caches; name the bundles that know them.

The raw log is its owner's and is left alone, so the digests of who is forgotten are kept for every later build. At the end
everything is searched for the ids, decoded and decompressed: what is said to be gone has been looked for.
"""

import gzip
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from rich.console import RenderableType

from adrec.config.base import load_config
from adrec.config.data.forget import ForgetConfig
from adrec.config.data.preprocess import PreprocessConfig
from adrec.config.inference.serve import StoreConfig
from adrec.data.arrays import combined
from adrec.data.disk.engine import open_memory_engine
from adrec.data.disk.outputs import files_of
from adrec.data.disk.row_files import row_format
from adrec.data.disk.writing import write_aside
from adrec.data.prepared import Prepared, open_prepared
from adrec.data.text.vector_cache import drop_texts
from adrec.errors import ConfigError, DataError
from adrec.models.text.text_vectors import phrases
from adrec.prepare.staging.forgotten import Forgotten
from adrec.prepare.staging.privacy import load_key, pseudonym
from adrec.schema import SPLITS
from adrec.serve.store import open_store
from adrec.stages.data import preprocess
from adrec.stages.storage import run_guarded
from adrec.terminal import Terminal


@dataclass(frozen=True)
class ForgetResult:
    """What went, and what is left."""

    users: int
    prepared: str
    list: str
    events: int = 0
    """of the store"""
    rows: dict[str, int] = field(default_factory=dict)
    """taken out of each table"""
    vectors: int = 0
    """taken out of the caches"""
    left: tuple[str, ...] = ()
    """files of the prepared folder and the tables that still hold one of the ids"""
    to_train_again: tuple[str, ...] = ()
    """files of bundles that do"""

    def as_dict(self) -> dict[str, Any]:
        """JSON-safe values."""
        return asdict(self)

    def render(self) -> Iterable[RenderableType]:
        """What went, then what is left to do."""
        yield f"{self.users:,} users are forgotten: {self.prepared} is built without them, and {self.list} keeps their digests."
        yield f"{self.events:,} events, {sum(self.rows.values()):,} rows of tables and {self.vectors:,} cached vectors went."
        for file in self.left:
            yield f"{file}: still holds an id."
        if self.to_train_again:
            yield "Bundles that know them (train again; 'adrec daily' does it by itself, from nothing):"
            yield from (f"  {file}" for file in self.to_train_again)
        yield "Not looked at: your raw log, backups, and what others have copied."


def run(config: ForgetConfig, terminal: Terminal) -> ForgetResult:
    """Forget the users. Raises ConfigError where the preprocess config names no file to remember it by."""
    preparing = load_config(config.preprocess, PreprocessConfig)
    remembered = preparing.privacy.forgotten
    if remembered is None:
        raise ConfigError(
            f"{config.preprocess}: the next build would bring them back. Set privacy.forgotten to a file for the digests of "
            "those who are forgotten (privacy: {forgotten: forgotten.txt})."
        )
    users = list(dict.fromkeys(config.users))
    names = users
    if preparing.privacy.pseudonymise:
        key = load_key(preparing.privacy)
        names = [pseudonym(user, key) for user in users]
    earlier = open_prepared(preparing.output) if (preparing.output / "manifest.json").is_file() else None
    typed = _texts_of(earlier, names) if earlier is not None else []
    # Before the folder that knows their texts is gone: a run that was killed is run again.
    vectors = drop_texts(typed, config.cache)
    Forgotten.load(remembered).add(names, remembered)
    run_guarded(preprocess.run, preparing, terminal)
    both = list(dict.fromkeys([*names, *users]))
    events = _erased(config.store, both) if config.store is not None else 0
    rows = {str(table): _without(table, both) for table in config.tables}
    with terminal.progress("Looking through what is left", unit="files") as advance:
        looked_at = [*files_of(preparing.output), *config.tables]
        left = tuple(str(file) for file in looked_at if _holds(file, both, advance))
        known = [file for bundle in config.bundles for file in files_of(bundle)]
        to_train_again = tuple(str(file) for file in known if _holds(file, both, advance))
    return ForgetResult(
        users=len(users),
        prepared=str(preparing.output),
        list=str(remembered),
        events=events,
        rows=rows,
        vectors=vectors,
        left=left,
        to_train_again=to_train_again,
    )


def _texts_of(prepared: Prepared, names: Sequence[str]) -> list[str]:
    """What the users are known to have written: interests, whole and phrase by phrase, and queries."""
    wanted = pa.array(names, pa.string())
    table = prepared.users()
    at = np.flatnonzero(pc.is_in(table["user_id"], value_set=wanted).to_numpy())
    interests = table["text"].take(pa.array(at)).drop_null().combine_chunks() if "text" in table.column_names else pa.array([])
    found = set(interests.to_pylist()) | set(phrases(interests.cast(pa.string())).values.to_pylist())
    if "query" in prepared.columns:
        for split in SPLITS:
            for batch in prepared.iter(split, ["user_index", "query"]):
                own = pc.is_in(batch["user_index"], value_set=pa.array(at, batch["user_index"].type))
                found |= set(batch["query"].filter(own).drop_null().to_pylist())
    return sorted(found - {""})


def _erased(settings: StoreConfig, names: Sequence[str]) -> int:
    with closing(open_store(settings)) as store:
        return sum(len(store.erase(name).events) for name in names)


def _without(table: Path, names: Sequence[str]) -> int:
    """Rewrite a table of rows without those of `names`; how many there were. Raises DataError where it has no user_id."""
    ids, form = pa.array(names, pa.string()), row_format(table)
    try:
        if form == "parquet":
            return _parquet_without(table, ids)
        with _opened(table, "rt") as handle:
            lines = pa.array(handle.read().splitlines(), pa.string())
        own = pc.is_in(_users_of_lines(lines, form), value_set=ids)
    except (OSError, KeyError, UnicodeDecodeError, pa.ArrowException) as error:
        raise DataError(f"{table}: is no table that score, rank or events wrote ({error}). Name others in `tables`.") from None
    count = int(pc.sum(own).as_py() or 0)
    if count:
        with write_aside(table) as aside, _opened(aside, "wt", like=table) as handle:
            handle.writelines(f"{line}\n" for line in lines.filter(pc.invert(own)).to_pylist())
    return count


def _parquet_without(table: Path, ids: pa.Array) -> int:
    count = 0
    with pq.ParquetFile(table) as file:
        if "user_id" not in file.schema_arrow.names:
            raise KeyError("no column user_id")
        with write_aside(table) as aside, pq.ParquetWriter(aside, file.schema_arrow, compression="zstd") as writer:
            for group in range(file.num_row_groups):
                rows = file.read_row_group(group)
                rest = rows.filter(pc.invert(pc.is_in(rows["user_id"].cast(pa.string()), value_set=ids)))
                count += len(rows) - len(rest)
                writer.write_table(rest)
    return count


def _users_of_lines(lines: pa.Array, form: str) -> pa.Array:
    """The user of each line, null for a head: rows that adrec writes have no line breaks in their cells."""
    if form == "jsonl":
        with open_memory_engine() as engine:
            engine.register("lines", pa.table({"line": lines}))
            users = engine.sql("SELECT json_extract_string(line, '$.user_id') AS id FROM lines").to_arrow_table()["id"]
            return combined(users)
    data = "\n".join(lines.to_pylist()).encode()
    parse = pa.csv.ParseOptions(delimiter="\t" if form == "tsv" else ",", newlines_in_values=False)
    types = pa.csv.ConvertOptions(include_columns=["user_id"], column_types={"user_id": pa.string()})
    users = combined(pa.csv.read_csv(pa.BufferReader(data), parse_options=parse, convert_options=types)["user_id"])
    return pa.concat_arrays([pa.nulls(1, pa.string()), users])


@contextmanager
def _opened(path: Path, mode: str, *, like: Path | None = None) -> Iterator[IO[str]]:
    """A text file, compressed where its name (or that of `like`) says so."""
    opened: Callable[..., Any] = gzip.open if (like or path).suffix == ".gz" else open
    with opened(path, mode, encoding="utf-8", newline="") as handle:
        yield handle


def _holds(file: Path, names: Sequence[str], advance: Callable[..., None]) -> bool:
    """Whether any of `names` stands in a file as a whole value (Parquet, JSON, arrays) or as a word of its text."""
    advance(1)
    if file.suffix == ".parquet":
        return _parquet_holds(file, pa.array(names, pa.string()))
    if file.suffix == ".npz":
        with np.load(file, allow_pickle=False) as arrays:
            return any(arrays[name].dtype.kind == "U" and bool(np.isin(arrays[name], names).any()) for name in arrays.files)
    data = file.read_bytes()
    data = gzip.decompress(data) if file.suffix == ".gz" else data
    if file.suffix == ".json":
        return bool(set(names) & set(_strings_of(json.loads(data))))
    if b"\0" in data[:4096]:  # weights and other numbers
        return False
    words = "|".join(re.escape(name) for name in names)
    return re.search(rf"(?<![\w-])(?:{words})(?![\w-])", data.decode("utf-8", "replace")) is not None


def _parquet_holds(file: Path, names: pa.Array) -> bool:
    with pq.ParquetFile(file) as opened:
        for batch in opened.iter_batches():
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
