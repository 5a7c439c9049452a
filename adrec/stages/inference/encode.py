"""`adrec encode`: ad and user vectors to Parquet, and to `.npy` beside a list of identifiers."""

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rich.console import RenderableType

from adrec.config.base import save_config
from adrec.config.inference.encode import EncodeConfig
from adrec.data.arrays import combined
from adrec.data.device import resolve_device
from adrec.data.disk.outputs import VECTORS
from adrec.data.disk.tables import write_table
from adrec.data.disk.writing import folder_aside
from adrec.data.prepared import open_prepared
from adrec.errors import ConfigError
from adrec.inference.known import Known, known_of
from adrec.inference.own_tables import read_own
from adrec.inference.predictor import Catalogs, Predictor
from adrec.inference.rows import refuse_other_spaces
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
    """Encode all ads, and all users with the newest history known of them."""
    prepared = open_prepared(config.prepared) if config.prepared is not None else None
    if config.ads is None and prepared is None:
        raise ConfigError("encode: give `ads`, or a `prepared` folder that has them.")
    predictor = Predictor.load(config.bundle, device=resolve_device(config.device), cache=config.cache)
    with tempfile.TemporaryDirectory(prefix="adrec-tables-") as folder:
        tables = {"ads": config.ads, "users": config.users, "history": config.history}
        own = read_own(predictor.packed.form, predictor.packed.features, Path(folder), tables)
    if prepared is not None:
        refuse_other_spaces(prepared, predictor.packed.features, own)
    ads = own["ads"] if prepared is None else own.get("ads", prepared.ads())
    users = own.get("users", prepared.users() if prepared is not None else None)
    catalogs = predictor.catalogs(ads, users, where=config.ads.name if config.ads is not None else str(config.prepared))
    with terminal.progress("Encoding", len(catalogs.ads) + len(catalogs.users), unit="vectors") as advance:
        ad_vectors = predictor.ad_vectors(catalogs)
        advance(len(ad_vectors))
        where = config.history.name if config.history is not None else "history"
        known = known_of(prepared, catalogs.ad_table, own.get("history"), where=where, own=own)
        user_vectors = _users(predictor, catalogs, known)
        advance(len(user_vectors))
    with folder_aside(config.output, VECTORS) as folder:
        _write(folder, "ads", "ad_id", catalogs.ads.ids, ad_vectors)
        if users is not None:
            _write(folder, "users", "user_id", catalogs.users.ids, user_vectors)
        save_config(config, folder / "config.yaml")
    return EncodeResult(str(config.output), len(ad_vectors), len(user_vectors), ad_vectors.shape[1])


def _users(predictor: Predictor, catalogs: Catalogs, known: Known) -> NDArray[np.float32]:
    """(U, D) every user after the last click known."""
    count = len(catalogs.users)
    if count == 0 or len(catalogs.ads) == 0:
        return np.zeros((0, predictor.packed.config.model.width), np.float32)
    moments = pa.array(np.full(count, known.after), pa.int64()).cast(pa.timestamp("us", tz="UTC"))
    rows = pa.table({"user_id": catalogs.users.ids, "shown_at": moments})
    examples = predictor.examples_at(
        rows, catalogs, known, np.arange(count), np.zeros(count, np.int64), counters=False
    )  # fmt: skip
    return predictor.user_vectors(examples, catalogs)


def _write(folder: Path, name: str, key: str, ids: pa.Array, vectors: NDArray[np.float32]) -> None:
    lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    write_table(pa.table({key: ids, "vector": lists}), folder / f"{name}.parquet")
    np.save(folder / f"{name}.npy", vectors)
    listed = "".join(f"{identifier}\n" for identifier in combined(ids).to_numpy(zero_copy_only=False))
    (folder / f"{name}.ids.txt").write_text(listed, encoding="utf-8")
