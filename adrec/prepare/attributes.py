"""Attributes of ads and users, which have time: what they are when training ends, and what they were for each row."""

import duckdb

from adrec.config.data.preprocess import PreprocessConfig
from adrec.config.training.features import resolve_counters
from adrec.data.disk.engine import columns_of, one_row
from adrec.prepare.built import Built
from adrec.prepare.extras import Extras
from adrec.prepare.log.append import Earlier, check_known
from adrec.prepare.log.events import latest_values
from adrec.prepare.log.unnamed import forget_nobody
from adrec.prepare.log.versions import candidates, changing, choose_versions, renumber_versions, versions_of_rows
from adrec.prepare.sources import RawTables
from adrec.prepare.staging.privacy import protect_users
from adrec.prepare.text.clean import template_columns
from adrec.schema import ADS, DRAWN, KNOWN_FROM, USERS, TableSpec
from adrec.specs import CounterSpec


class Attributes:
    """Columns of ads and users of which a table has versions, or a wide one."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        raw: RawTables,
        config: PreprocessConfig,
        built: Built,
        extras: Extras,
        earlier: Earlier | None,
    ) -> None:
        self._connection, self._raw, self._config, self._earlier = connection, raw, config, earlier
        self._built, self._extras = built, extras

    def describe(self) -> None:
        """The columns of ads and users of which a table has versions, or a wide one, as they were when training ends."""
        connection, earlier, cut = self._connection, self._earlier, self._built.cut
        for spec, raw in ((ADS, self._raw.ads), (USERS, self._raw.users)):
            if raw is None and (spec is ADS or earlier is None):
                latest_values(connection, "staged_impressions", spec, self._described_by_rows(spec), cut)
                forget_nobody(connection, spec)
            elif self._has_versions(spec):
                if earlier is not None:
                    renumber_versions(connection, spec)
                choose_versions(connection, spec, cut, self._read_by_models(spec))
        if self._config.privacy.k_anonymity is not None:
            self._built.privacy |= protect_users(connection, self._config.privacy.k_anonymity)
        if earlier is not None:
            check_known(earlier, one_row(connection, "SELECT count(*) AS n FROM ads")["n"] - earlier.manifest["ads"])

    def _has_versions(self, spec: TableSpec) -> bool:
        is_staged = spec.name in {label for label, _ in self._built.staged}  # one that is as it was has none
        return is_staged and KNOWN_FROM in columns_of(self._connection, f"staged_{spec.name}")

    def _described_by_rows(self, spec: TableSpec) -> list[str]:
        """Columns of ads or users that a wide table has."""
        found = columns_of(self._connection, "staged_impressions")
        wanted = dict.fromkeys((*spec.names[1:], *self._extras.of(spec.name)))
        return [column for column in wanted if column in found and column != KNOWN_FROM]

    def _candidates(self, spec: TableSpec) -> list[str]:
        """Columns of a table that events may know as of their request. What is made k-anonymous has one value, for all."""
        connection, config = self._connection, self._config
        if self._raw.tables.get(spec.name) is None:
            columns = self._described_by_rows(spec) if spec is ADS or self._earlier is None else []
        else:
            columns = list(columns_of(connection, spec.versions)) if self._has_versions(spec) else []
        if spec is USERS and config.privacy.k_anonymity is not None:
            columns = [column for column in columns if column not in config.privacy.k_anonymity.columns]
        features = config.features.ads if spec is ADS else config.features.users
        return candidates(spec, features, self._counters(), columns)

    def _counters(self) -> list[CounterSpec]:
        tables = ("staged_impressions", "ads", "users")
        columns = {key for table in tables for key in columns_of(self._connection, table)}
        columns |= {DRAWN} if self._config.negatives is not None else set()
        return resolve_counters(self._config.counters, columns, self._built.shape.lacking)

    def told_by_rows(self) -> dict[str, str]:
        """Columns of a wide table that may be versions, by the name under which events carry them."""
        return {
            spec.as_of_prefix + column: column
            for spec, raw in ((ADS, self._raw.ads), (USERS, self._raw.users))
            if raw is None
            for column in self._candidates(spec)
        }

    def find(self) -> None:
        """Which columns change from one moment to the next, and what they were for each row."""
        versioned = self._built.versioned
        for spec in (ADS, USERS):
            columns = self._candidates(spec)
            if columns and self._raw.tables.get(spec.name) is None:
                versions_of_rows(self._connection, spec, columns)
                forget_nobody(self._connection, spec)
            versioned[spec.name] = changing(self._connection, spec, columns)

    def _read_by_models(self, spec: TableSpec) -> set[str]:
        """Columns of a table that a text or a calendar reads, whose value is that of the cut."""
        config = self._config
        features = config.features.ads if spec is ADS else config.features.users
        template = config.text.ad_template if spec is ADS else config.text.user_template
        calendar = {features.calendar.column} if features.calendar is not None else set()
        return {*template_columns(template), *calendar}
