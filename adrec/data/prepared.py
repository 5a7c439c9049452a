"""The prepared folder, opened: what every later command reads instead of raw logs."""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from adrec.config.base import load_stored_config
from adrec.config.data.preprocess import PreprocessConfig
from adrec.config.training.features import resolve_counters
from adrec.data.arrays import combined
from adrec.data.availability import FILE, Availability
from adrec.data.disk.formats import other_format
from adrec.data.disk.outputs import is_stray
from adrec.data.disk.tables import iter_batches, parquet_schema, read_table
from adrec.data.features import FeatureSet
from adrec.data.labels import LabelCut
from adrec.data.shape import LogShape
from adrec.data.vectors import with_vectors
from adrec.errors import ConfigError, DataError
from adrec.schema import ADS, PREPARED_IMPRESSIONS, SPLITS, USERS, TableSpec, entity_tables
from adrec.specs import CounterSpec, HistorySpec

FORMAT = 2
STATE = "state"
"""Folder of the as-of state in a prepared folder."""
_RUN = "Run 'adrec preprocess' first."


def open_prepared(path: Path) -> "Prepared":
    """Open a prepared folder. Raises DataError where it is missing, half of one, or of another format version."""
    if not path.is_dir():
        raise DataError(f"{path}: no such prepared folder. {_RUN}")
    prepared = Prepared(path)
    if (path / "manifest.json").is_file() and (version := prepared.manifest.get("format")) != FORMAT:
        config = path / "config.yaml"
        raise DataError(other_format(path, version=version, ours=FORMAT, command="adrec preprocess", config=config))
    for needed in ("manifest.json", ADS.file, USERS.file):
        if not (path / needed).is_file():
            raise DataError(f"{path}: not a prepared folder, it has no {needed}. {_RUN}")
    return prepared


class Prepared:
    """A prepared folder. Tables are checked against the contract when they are read."""

    def __init__(self, path: Path, read_as: Mapping[str, FeatureSet] | None = None) -> None:
        """`read_as`: fitted features of another log, by table, whose scales and vocabularies hold for what both have."""
        self.path, self.read_as = path, read_as or {}

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """Counts, time range, schema, fingerprints, split summary (manifest.json)."""
        return _read_json(self.path / "manifest.json")

    @cached_property
    def config(self) -> PreprocessConfig | None:
        """What the folder was made with; None where it does not say. Raises DataError where another version made it."""
        file = self.path / "config.yaml"
        if not file.is_file():
            return None
        try:
            return load_stored_config(file, PreprocessConfig, command="preprocess")
        except ConfigError as error:
            reason = str(error).splitlines()[0].removeprefix(f"{file}: ").rstrip(".")
            raise DataError(f"{file}: made by another version ({reason}). Run 'adrec preprocess' again.") from None

    @property
    def has(self) -> LogShape:
        """What the log names."""
        return LogShape.of(self.manifest)

    @property
    def fingerprint(self) -> str:
        """Hex digest of the inputs and the config that this folder was made from."""
        return str(self.manifest["fingerprint"])

    @cached_property
    def columns(self) -> list[str]:
        """Columns of the impressions."""
        for split in SPLITS:
            for file in self.split_files(split):
                return list(parquet_schema(file).names)
        raise DataError(f"{self.path}: holds no impressions. {_RUN}")

    def tables(self) -> tuple[TableSpec, ...]:
        """The specs of the tables beside the impressions that the folder holds."""
        return tuple(spec for spec in entity_tables() if (self.path / spec.file).is_file())

    def table(self, spec: TableSpec) -> pa.Table:
        """A table beside the impressions, whole: `spec.stored` and declared columns, vectors mapped. Raises DataError where
        there is none.
        """
        return with_vectors(read_table(self.path / spec.file, spec.stored), self.path, spec.name)

    def ads(self) -> pa.Table:
        """All ads, PREPARED_ADS and declared columns; the row number is the `ad_index`."""
        return self.table(ADS)

    def users(self) -> pa.Table:
        """All users, PREPARED_USERS and declared columns; the row number is the `user_index`."""
        return self.table(USERS)

    @property
    def is_implicit(self) -> bool:
        """Whether the log holds clicks alone, beside which negatives were drawn."""
        return bool(self.manifest.get("implicit"))

    @property
    def drawn_by(self) -> float:
        """The power of an ad's clicks in proportion to which negatives were drawn; 0 for all alike, or none."""
        settings = self.config.negatives if self.config is not None else None
        return settings.alpha if settings is not None and settings.draw == "popularity" else 0.0

    def availability(self) -> Availability:
        """From when to when each ad may be shown, in the order of `ads`."""
        return Availability.load(self.path) if (self.path / FILE).is_file() else Availability.of_ads(self.ads())

    @property
    def state(self) -> Path:
        """Folder of what the log knew at its end, from which counters and histories go on."""
        return self.path / STATE

    def history(self) -> HistorySpec:
        """Which earlier clicks the rows know."""
        return self.config.history.spec if self.config is not None else HistorySpec()

    def counters(self) -> list[CounterSpec]:
        """The point-in-time counters of the folder, `usual` resolved; none where it does not say what it was made with."""
        if self.config is None:
            return []
        tables = (parquet_schema(self.path / spec.file).names for spec in (ADS, USERS))
        return resolve_counters(self.config.counters, set(self.columns).union(*tables), self.has.lacking)

    def split_files(self, split: str) -> list[Path]:
        """Impression shards of train, valid or test, in order; empty where the split has no rows."""
        if split not in SPLITS:
            raise DataError(f"{self.path}: unknown split '{split}'. Splits: {', '.join(SPLITS)}.")
        return shards_of(self.path, split)

    def iter(self, split: str, columns: Sequence[str] | None = None, batch_rows: int = 65_536) -> Iterator[pa.RecordBatch]:
        """Stream the impressions of a split in order, in batches of at most `batch_rows` rows."""
        spec = PREPARED_IMPRESSIONS if columns is None else _only(columns)
        for file in self.split_files(split):
            yield from iter_batches(file, spec, columns, batch_rows=batch_rows)

    def label_cut(self, splits: Sequence[str]) -> LabelCut | None:
        """What training on `splits` may know of labels: what happened before the next part begins.

        None where nothing follows, where the split is not in time order, or where no label has a moment of its own.
        """
        later = [moment for split in SPLITS if split not in splits and (moment := self.begins(split)) is not None]
        moments = self.manifest.get("label_moments", {})
        return LabelCut(min(later), moments) if later and moments else None

    def timed_cut(self, splits: Sequence[str], window_hours: float | None) -> LabelCut:
        """The same with times told, for labels that come late; where nothing follows, the log's last showing is the cut.

        Raises DataError where no label or no showing has a moment.
        """
        moments, last = self.manifest.get("label_moments", {}), self.manifest.get("last")
        if not moments or last is None:
            raise DataError(
                f"{self.path}: no label has a moment of its own, so that nothing is known to come late. Name the column with "
                "the moment of the conversion as history.converted_at in the preprocess config, or leave `delay` out."
            )
        cut = self.label_cut(splits) or LabelCut(datetime.fromisoformat(last), moments)
        return cut.timing(window_hours)

    def begins(self, split: str) -> datetime | None:
        """Where a split begins, aware; None for the first one, and where splits are not in time order."""
        cut = self.manifest.get("cuts", {}).get(split)
        return None if cut is None else datetime.fromisoformat(cut)

    def rows(self, split: str) -> int:
        """Number of impressions of a split."""
        return int(self.manifest["splits"].get(split, {}).get("rows", 0))

    @property
    def names_ads_by_rows(self) -> bool:
        """Whether its ads are those that impressions name, no table of their own: then the catalogue tells what was shown."""
        sources = self.manifest.get("source_rows")
        return self.has.ad and sources is not None and "ads" not in sources

    def features(self) -> dict[str, FeatureSet]:
        """The fitted features of `impressions`, `ads` and `users`."""
        fitted = _read_json(self.path / "features.json")
        own = {table: FeatureSet.from_json(data) for table, data in fitted.items()}
        return {table: found.read_as(self.read_as[table]) if table in self.read_as else found for table, found in own.items()}

    def corpus(self) -> pa.Table:
        """Distinct texts: text, segmented, language, kind, held_out, later."""
        return read_table(self.path / "corpus.parquet")

    def later(self, texts: pa.Array) -> pa.Array:
        """Which texts exist only after training ends, (texts,) bool: nothing may be learned from them."""
        if not self.manifest.get("cuts"):
            return pa.repeat(False, len(texts))
        corpus = read_table(self.path / "corpus.parquet", columns=["text", "later"])
        return pc.is_in(texts, value_set=combined(corpus.filter(corpus["later"])["text"]))

    @property
    def tokenizer(self) -> Path | None:
        """Folder of the tokenizer, where one was made."""
        folder = self.path / "tokenizer"
        return folder if folder.is_dir() else None


class ReadBy(Prepared):
    """A prepared folder as a bundle reads it: by the bundle's fitted features, which may be those of another log (carried
    scales, privacy) than the folder's own.
    """

    def __init__(self, prepared: Prepared, features: dict[str, FeatureSet]) -> None:
        super().__init__(prepared.path)
        self._features = features

    def features(self) -> dict[str, FeatureSet]:
        """Those it was given."""
        return self._features


def shards_of(folder: Path, split: str) -> list[Path]:
    """The impression files of a split of the prepared folder at `folder`, in order."""
    return sorted(file for file in (folder / "impressions" / split).glob("*.parquet") if not is_stray(file))


def _only(columns: Sequence[str]) -> TableSpec:
    """Check just the asked columns, as required ones."""
    return TableSpec("impressions", tuple(column for column in PREPARED_IMPRESSIONS.columns if column.name in set(columns)))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: missing. {_RUN}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}). {_RUN}") from None
    if not isinstance(read, dict):
        raise DataError(f"{path}: expected a JSON object. {_RUN}")
    return read
