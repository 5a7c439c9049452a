"""What a source gives: views with canonical column names, and every file it read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from adrec import schema
from adrec.config.data.sources import Scalar
from adrec.errors import DataError


@dataclass(frozen=True)
class Reading:
    """How text and numbers of one table become canonical values (see config.preprocess.TableInput)."""

    time_format: str | Sequence[str] | None = None
    time_unit: str = "seconds"
    time_zone: str = "UTC"
    has_real_moments: bool = True
    """whether a moment far from today deserves a word; not where the source makes them up"""
    list_separator: str = "|"
    decimal: str = "."
    thousands: str = ""
    null_values: Sequence[str] | None = None
    """Words of a missing cell; None: those of adrec.prepare.staging.convert, by role."""
    types: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Scalar] = field(default_factory=dict)
    own_names: Mapping[str, str] = field(default_factory=dict)
    """Canonical name -> the user's own, for messages."""
    positive: Mapping[str, Sequence[Scalar]] = field(default_factory=dict)
    """Flag -> what means 1."""
    at_least: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    """Flag -> the column of numbers that it is made of, and the least of them that means 1."""
    first_position: int = 1


@dataclass(frozen=True)
class RawTable:
    """A view with canonical column names, of whatever types, plus three columns that say where a row came from.

    `source_file` is the file's path below the folder that all files of the table share, `source_row` counts a file's
    rows from 1, `source_order` is unique and in the order of `files`, then of their rows.
    """

    view: str
    files: tuple[Path, ...]
    reading: Reading = Reading()


class RawTables:
    """The tables of a source, by their name in `schema.TABLES`. Ads or users that are not there come from the impressions."""

    def __init__(
        self, *, can_skip: bool = False, events: Mapping[str, RawTable] | None = None, **tables: RawTable | None
    ) -> None:
        """`can_skip`: the source can be opened without its first files of impressions, so that new days may be appended.
        `events`: `clicks` and `conversions` that are tables of their own.

        Raises DataError where there are no impressions, or a table that no spec describes.
        """
        known = {spec.name for spec in schema.TABLES}
        unknown = [table for table in tables if table not in known]
        if unknown or tables.get("impressions") is None:
            what = f"gives a table '{unknown[0]}'" if unknown else "gives no impressions"
            raise DataError(f"source: {what}. Tables: {', '.join(sorted(known))}.")
        self.can_skip, self.events = can_skip, dict(events or {})
        self.tables: dict[str, RawTable] = {
            spec.name: table for spec in schema.TABLES if (table := tables.get(spec.name)) is not None
        }

    @property
    def impressions(self) -> RawTable:
        """The log."""
        return self.tables["impressions"]

    @property
    def ads(self) -> RawTable | None:
        """None: the impressions carry the ads."""
        return self.tables.get("ads")

    @property
    def users(self) -> RawTable | None:
        """None: the impressions carry the users."""
        return self.tables.get("users")

    @property
    def files(self) -> dict[str, tuple[Path, ...]]:
        """Every input file by table, for fingerprints."""
        return {label: table.files for label, table in {**self.tables, **self.events}.items()}
