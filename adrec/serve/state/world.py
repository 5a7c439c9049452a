"""What a server's files say: catalogue, users, and what the log knew. Read at the start, and again by a reload."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from adrec.asof.reader import AsOf, LogFiles
from adrec.asof.versions import NOTHING_CHANGES, Attributes
from adrec.config.inference.serve import ServeConfig
from adrec.data.arrays import combined
from adrec.data.disk.tables import read_table
from adrec.data.features import FeatureSet
from adrec.data.media.files import absolute
from adrec.data.prepared import Prepared, open_prepared
from adrec.inference.known import attributes_of, log_of
from adrec.inference.rows import refuse_other_spaces
from adrec.schema import ADS

Stamp = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True)
class World:
    """Tables in one piece each, so that ids in them are hashed once."""

    ads: pa.Table
    users: pa.Table
    asof: AsOf
    attributes: Attributes
    timeless: bool
    """histories carry no moments"""
    stamp: Stamp
    """of the files: another one where they have changed"""
    content: str
    """digest of what is in them, wherever they lie"""
    prepared: Prepared | None
    own: tuple[str, ...]
    """tables that come from elsewhere than `prepared`"""

    @classmethod
    def read(cls, config: ServeConfig) -> "World":
        """Read the files that the config names. Raises DataError where they cannot be used."""
        stamp = stamp_of(config)
        prepared = open_prepared(config.prepared) if config.prepared is not None else None
        ads = _leading_from(read_table(config.ads, ADS), config.ads) if config.ads is not None else _of(prepared).ads()
        users = prepared.users() if prepared is not None else pa.table({"user_id": pa.array(["adrec-nobody"])})
        own = ("ads",) if config.ads is not None else ()
        return cls(
            ads=ads.combine_chunks(),
            users=users.combine_chunks(),
            asof=AsOf(log_of(prepared) if prepared is not None else LogFiles.empty(), ads),
            attributes=attributes_of(prepared, own) if prepared is not None else NOTHING_CHANGES,
            timeless=prepared is not None and prepared.manifest.get("history", {}).get("source") == "given",
            stamp=stamp,
            content=_digest(_files(config)),
            prepared=prepared,
            own=own,
        )

    def refuse_other_spaces(self, features: Mapping[str, FeatureSet]) -> None:
        """Raises DataError where the folder's vectors are not those that a bundle of these `features` reads."""
        if self.prepared is not None:
            refuse_other_spaces(self.prepared, features, self.own)


def stamp_of(config: ServeConfig) -> Stamp:
    """Which files lie there now: their inodes, sizes and moments."""
    return tuple(_facts(file) for file in _files(config))


def _files(config: ServeConfig) -> list[Path]:
    files = [config.ads] if config.ads is not None else []
    if config.prepared is not None:
        files += [config.prepared / "manifest.json", config.prepared / "ads.parquet", config.prepared / "users.parquet"]
    return files


def _digest(files: list[Path]) -> str:
    digests = []
    for file in files:
        if file.is_file():
            with open(file, "rb") as handle:
                digests.append(hashlib.file_digest(handle, "sha256").hexdigest())
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()


def _leading_from(ads: pa.Table, file: Path) -> pa.Table:
    """Names of pictures and sounds start from the folder of the file that names them."""
    for column in {"image", "audio"} & set(ads.column_names):
        place = ads.column_names.index(column)
        ads = ads.set_column(place, column, absolute(combined(ads[column]), file.parent))
    return ads


def _facts(file: Path) -> tuple[str, int, int, int]:
    try:
        status = file.stat()
    except OSError:
        return str(file), 0, 0, 0
    return str(file), status.st_ino, status.st_size, status.st_mtime_ns


def _of(prepared: Prepared | None) -> Prepared:
    assert prepared is not None, "the config asks for 'prepared' where 'ads' is not given"
    return prepared
