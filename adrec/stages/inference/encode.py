"""`adrec encode`: ad and user vectors to Parquet, and to `.npy` beside a list of identifiers."""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rich.console import RenderableType

from adrec.cluster.pool import Pool
from adrec.config.base import save_config
from adrec.config.inference.encode import EncodeConfig
from adrec.data.arrays import combined
from adrec.data.device import resolve_device
from adrec.data.disk.outputs import VECTORS
from adrec.data.disk.tables import write_table
from adrec.data.disk.writing import folder_aside
from adrec.data.prepared import open_prepared
from adrec.errors import ConfigError
from adrec.inference.known import known_of
from adrec.inference.own_tables import read_own
from adrec.inference.predictor import BATCH_ROWS, Predictor
from adrec.inference.rows import refuse_other_spaces
from adrec.prepare.own_files import files_of
from adrec.terminal import Terminal


@dataclass(frozen=True)
class EncodeResult:
    """What was encoded."""

    output: str
    ads: int
    users: int
    width: int

    def as_dict(self) -> dict[str, Any]:
        """JSON-safe values."""
        return vars(self)

    def render(self) -> Iterable[RenderableType]:
        """One line."""
        yield f"{self.ads:,} ads and {self.users:,} users as vectors of {self.width} floats: {self.output}"


def run(config: EncodeConfig, terminal: Terminal) -> EncodeResult:
    """Encode all ads, and all users with the newest history known of them, block by block."""
    if config.ads is None and config.prepared is None:
        raise ConfigError("encode: give `ads`, or a `prepared` folder that has them.")
    encoder = Encoder(config)
    ads, users = encoder.counts
    blocks = [(name, start) for name, count in (("ads", ads), ("users", users)) for start in range(0, count, BATCH_ROWS)]
    vectors = {name: np.zeros((count, encoder.width), np.float32) for name, count in (("ads", ads), ("users", users))}
    with terminal.progress("Encoding", ads + users, unit="vectors") as advance:
        for (name, start), made in _made(config, encoder, blocks, terminal):
            vectors[name][start : start + len(made)] = made
            advance(len(made))
    with folder_aside(config.output, VECTORS) as folder:
        _write(folder, "ads", "ad_id", encoder.catalogs.ads.ids, vectors["ads"])
        if encoder.has_users:
            _write(folder, "users", "user_id", encoder.catalogs.users.ids, vectors["users"])
        save_config(config.model_copy(update={"cluster": None}), folder / "config.yaml")
    return EncodeResult(str(config.output), ads, users, encoder.width)


class Encoder:
    """An opened bundle over opened ads and users."""

    def __init__(self, config: EncodeConfig) -> None:
        prepared = open_prepared(config.prepared) if config.prepared is not None else None
        self.predictor = predictor = Predictor.load(config.bundle, device=resolve_device(config.device), cache=config.cache)
        with tempfile.TemporaryDirectory(prefix="adrec-tables-") as folder:
            tables = {"ads": config.ads, "users": config.users, "history": config.history}
            own = read_own(predictor.packed.form, predictor.packed.features, Path(folder), tables)
        if prepared is not None:
            refuse_other_spaces(prepared, predictor.packed.features, own)
        ads = own["ads"] if prepared is None else own.get("ads", prepared.ads())
        users = own.get("users", prepared.users() if prepared is not None else None)
        where = config.ads.name if config.ads is not None else str(config.prepared)
        self.catalogs, self.has_users = predictor.catalogs(ads, users, where=where), users is not None
        where = config.history.name if config.history is not None else "history"
        self.known = known_of(prepared, self.catalogs.ad_table, own.get("history"), where=where, own=own)
        self.width = predictor.packed.vector_width

    @property
    def counts(self) -> tuple[int, int]:
        """How many ads and users get a vector."""
        ads = len(self.catalogs.ads)
        return ads, len(self.catalogs.users) if ads else 0

    def vectors(self, name: str, start: int) -> NDArray[np.float32]:
        """(N, D) of the block of ads, or users after the last click known, that begins at `start`."""
        if name == "ads":
            return self.predictor.ad_vectors(self.catalogs, start, start + BATCH_ROWS)
        ids = self.catalogs.users.ids.slice(start, BATCH_ROWS)
        moments = pa.array(np.full(len(ids), self.known.after), pa.int64()).cast(pa.timestamp("us", tz="UTC"))
        rows = pa.table({"user_id": ids, "shown_at": moments})
        examples = self.predictor.examples_at(
            rows, self.catalogs, self.known, np.arange(start, start + len(ids)), np.zeros(len(ids), np.int64), counters=False
        )
        return self.predictor.user_vectors(examples, self.catalogs)


def _made(
    config: EncodeConfig, encoder: Encoder, blocks: list[tuple[str, int]], terminal: Terminal
) -> Iterator[tuple[tuple[str, int], NDArray[np.float32]]]:
    """The blocks and their vectors: here in order, or by workers of a cluster as they are finished."""
    if config.cluster is None:
        yield from ((block, encoder.vectors(*block)) for block in blocks)
        return
    tables = {name: table for name in ("ads", "users", "history") if (table := getattr(config, name)) is not None}
    named = {
        name: table.model_copy(update={"files": [str(file) for file in files_of(table)]}) for name, table in tables.items()
    }
    payload = config.model_copy(update={"cluster": None, **named}).model_dump(mode="json")
    files = [file for table in tables.values() for file in files_of(table)]
    with Pool(
        config.cluster, encoding_worker, payload, terminal, reads=(config.bundle, config.prepared, *files), of="block"
    ) as pool:
        yield from pool.each(blocks)


def encoding_worker(payload: dict[str, Any], scratch: Path) -> Callable[[tuple[str, int]], NDArray[np.float32]]:
    """In a worker of a cluster: from a block to its vectors."""
    encoder = Encoder(EncodeConfig.model_validate(payload))
    return lambda block: encoder.vectors(*block)


def _write(folder: Path, name: str, key: str, ids: pa.Array, vectors: NDArray[np.float32]) -> None:
    lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    write_table(pa.table({key: ids, "vector": lists}), folder / f"{name}.parquet")
    np.save(folder / f"{name}.npy", vectors)
    listed = "".join(f"{identifier}\n" for identifier in combined(ids).to_numpy(zero_copy_only=False))
    (folder / f"{name}.ids.txt").write_text(listed, encoding="utf-8")
