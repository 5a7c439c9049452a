"""`adrec forget`: take people out of the prepared folder, the event store, tables and caches; name the bundles that know them.

The raw log is its owner's and is left alone, so the digests of who is forgotten are kept for every later build. What killed
commands left beside their outputs goes, and copies of remote files that name them. At the end everything is searched for the
ids, decoded and decompressed: what is said to be gone has been looked for.
"""

import glob
import gzip
import lzma
import os
import shutil
import tempfile
import zipfile
import zlib
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
from adrec.data.disk.id_search import holds
from adrec.data.disk.lock import lock_path, output_lock
from adrec.data.disk.outputs import files_of
from adrec.data.disk.row_files import row_format
from adrec.data.disk.writing import write_aside
from adrec.data.prepared import Prepared, open_prepared
from adrec.data.remote.fetching import remove
from adrec.data.remote.publishing import publish
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
from adrec.urls import address_of, mirror


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
    scratch: int = 0
    """work folders and unfinished outputs of killed commands that went"""
    copies: int = 0
    """files of the mirror of object storage that went; they are fetched again when they are needed"""
    left: tuple[str, ...] = ()
    """files of the prepared folder, the tables, `look_through` and the system's temporary folder that still hold an id"""
    unread: tuple[str, ...] = ()
    """files that could not be looked through: half-written or broken"""
    to_train_again: tuple[str, ...] = ()
    """files of bundles that hold an id"""

    def as_dict(self) -> dict[str, Any]:
        """JSON-safe values."""
        return asdict(self)

    def render(self) -> Iterable[RenderableType]:
        """What went, then what is left to do."""
        yield f"{self.users:,} users are forgotten: {self.prepared} is built without them, and {self.list} keeps their digests."
        yield f"{self.events:,} events, {sum(self.rows.values()):,} rows of tables and {self.vectors:,} cached vectors went."
        if self.scratch or self.copies:
            yield f"{self.scratch:,} work folders of killed commands and {self.copies:,} copies of remote files went."
        for file in self.left:
            yield f"{file}: still holds an id."
        for file in self.unread:
            yield f"{file}: cannot be read, so whether it holds an id is not known. Remove it if nothing is writing it."
        if self.to_train_again:
            yield "Bundles that know them (train again; 'adrec daily' does it by itself, from nothing):"
            yield from (f"  {file}" for file in self.to_train_again)
        yield "Not looked at: your raw log, backups, and what others have copied."


@dataclass
class _Search:
    """Files → those that hold one of `names`."""

    names: Sequence[str]
    advance: Callable[..., None]
    unread: list[str] = field(default_factory=list)
    is_raw: bool = False
    """in logs as their owners wrote them"""

    def __call__(self, files: Iterable[Path]) -> tuple[str, ...]:
        return tuple(str(file) for file in files if self._holds(file))

    def _holds(self, file: Path) -> bool:
        self.advance(1)
        try:
            return holds(file, self.names, is_raw=self.is_raw)
        except FileNotFoundError:
            return False  # of a command that has ended meanwhile
        except (OSError, EOFError, ValueError, RuntimeError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, pa.ArrowException):
            self.unread.append(str(file))
            return False


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
    outputs = [preparing.output, *config.tables, *config.bundles, *config.look_through]
    scratch = sum(_without_scratch(output) for output in outputs)
    run_guarded(preprocess.run, preparing, terminal)
    both = list(dict.fromkeys([*names, *users]))
    events = _erased(config.store, both) if config.store is not None else 0
    rows = {str(table): _without(table, both) for table in config.tables}
    with terminal.progress("Looking through what is left", unit="files") as advance:
        search = _Search(both, advance)
        left = search([*files_of(preparing.output), *config.tables, *_files_of(config.look_through), *_temporary_files()])
        to_train_again = search(_files_of(config.bundles))
        stays = [*outputs, mirror() / "index"]
        copied = _Search(both, advance, is_raw=True)
        gone = copied(file for file in _files_of([mirror()]) if not any(map(file.is_relative_to, stays)))
    for file in (*gone, *copied.unread):  # what cannot be looked into goes too: a copy is fetched again
        remove(Path(file))
    return ForgetResult(
        users=len(users),
        prepared=str(preparing.output),
        list=str(remembered),
        events=events,
        rows=rows,
        vectors=vectors,
        scratch=scratch,
        copies=len(gone) + len(copied.unread),
        left=left,
        unread=tuple(search.unread),
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


def _without_scratch(output: Path) -> int:
    """Remove what killed commands left beside an output: nothing can be resumed once the rows are others. How much it was.

    Raises ResourceError where a command is at work there.
    """
    left = [path for path in output.parent.glob(f".{glob.escape(output.name)}.*") if path != lock_path(output)]
    if not output.exists():  # a kill between two renames: the next run of the command puts it back
        left = [path for path in left if ".previous" not in path.name]
    if not left:
        return 0
    with output_lock(output):
        for path in left:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    return len(left)


def _files_of(places: Iterable[Path]) -> Iterator[Path]:
    """The files below folders, and files themselves; of what is not there, none."""
    for place in places:
        yield from files_of(place) if place.is_dir() else [place] if place.exists() else []


def _temporary_files() -> Iterator[Path]:
    """What adrec has in the system's temporary folder: of running commands, killed ones, crashes and a cluster's nodes."""
    return _files_of(path for path in Path(tempfile.gettempdir()).glob("adrec-*") if os.access(path, os.R_OK))


def _without(table: Path, names: Sequence[str]) -> int:
    """Rewrite a table of rows without those of `names`, in its store too; how many there were. Raises DataError where it has
    no user_id.
    """
    count = _rewritten(table, names)
    if address_of(table) is not None:
        publish(table)
    return count


def _rewritten(table: Path, names: Sequence[str]) -> int:
    ids, form = pa.array(names, pa.string()), row_format(table)
    try:
        if form == "parquet":
            return _parquet_without(table, ids)
        with _text_of(table, "rt") as handle:
            lines = pa.array(handle.read().removesuffix("\n").split("\n"), pa.string())  # not at a U+2028 in a title
        own = pc.is_in(_users_of_lines(lines, form), value_set=ids)
    except (OSError, KeyError, UnicodeDecodeError, pa.ArrowException) as error:
        raise DataError(f"{table}: is no table that score, rank or events wrote ({error}). Name others in `tables`.") from None
    count = int(pc.sum(own).as_py() or 0)
    if count:
        with write_aside(table) as aside, _text_of(aside, "wt", like=table) as handle:
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
def _text_of(path: Path, mode: str, *, like: Path | None = None) -> Iterator[IO[str]]:
    """A text file, compressed where its name (or that of `like`) says so."""
    opened: Callable[..., Any] = gzip.open if (like or path).suffix == ".gz" else open
    with opened(path, mode, encoding="utf-8", newline="") as handle:
        yield handle
