"""What a source gives: views with canonical column names, and every file it read."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from adrec.config.preprocess import Scalar


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


@dataclass(frozen=True)
class RawTable:
    """A view with canonical column names, of whatever types, plus `source_file` (name), `source_row` and `source_order`.

    `source_row` counts the rows of a Parquet file from 1, and those of text files over all files of the table.
    `source_order` is unique and in the order of `files`, then of their rows.
    """

    view: str
    files: tuple[Path, ...]
    reading: Reading = Reading()


@dataclass(frozen=True)
class RawTables:
    """The tables of a source. `ads` or `users` None: they are taken from the impressions."""

    impressions: RawTable
    ads: RawTable | None = None
    users: RawTable | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """Every input file, for the fingerprint."""
        return tuple(dict.fromkeys(file for table in (self.ads, self.users, self.impressions) if table for file in table.files))
