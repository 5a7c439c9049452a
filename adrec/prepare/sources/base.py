"""What a source gives: views with canonical column names, and every file it read."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from adrec.config.sources import Scalar


@dataclass(frozen=True)
class Reading:
    """How text and numbers of one table become canonical values (see config.preprocess.TableInput)."""

    time_format: str | None = None
    time_unit: str = "seconds"
    time_zone: str = "UTC"
    list_separator: str = "|"
    types: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Scalar] = field(default_factory=dict)
    own_names: Mapping[str, str] = field(default_factory=dict)
    """Canonical name -> the user's own, for messages."""


@dataclass(frozen=True)
class RawTable:
    """A view with canonical column names, of whatever types, plus three columns that say where a row came from.

    `source_file` is the file's path below the folder that all files of the table share, `source_row` counts a file's
    rows from 1, `source_order` is unique and in the order of `files`, then of their rows.
    """

    view: str
    files: tuple[Path, ...]
    reading: Reading = Reading()

    @property
    def is_text(self) -> bool:
        """Whether the cells are text whose type must be guessed (CSV, TSV)."""
        plain = self.files[0].name.removesuffix(".gz").removesuffix(".zst")
        return not plain.endswith((".parquet", ".jsonl", ".ndjson", ".json"))


@dataclass(frozen=True)
class RawTables:
    """The tables of a source. `ads` or `users` None: they are taken from the impressions.

    `can_skip`: the source can be opened without its first files of impressions, so that new days may be appended.
    """

    impressions: RawTable
    ads: RawTable | None = None
    users: RawTable | None = None
    can_skip: bool = False

    @property
    def files(self) -> dict[str, tuple[Path, ...]]:
        """Every input file by table, for fingerprints."""
        tables = {"ads": self.ads, "users": self.users, "impressions": self.impressions}
        return {label: table.files for label, table in tables.items() if table is not None}
