"""Every table checked and typed before anything is made of it: roles, faults, privacy, events of files of their own."""

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from operator import or_
from typing import Any

import duckdb

from adrec.config.data.preprocess import PreprocessConfig
from adrec.data.disk.engine import one_row, readable_faults
from adrec.errors import DataError
from adrec.prepare.built import Built
from adrec.prepare.extras import Extras
from adrec.prepare.log.append import Earlier
from adrec.prepare.log.events import good
from adrec.prepare.log.outcomes import events_of, join_events_to, joined_by, made_columns, spec_of, told_of
from adrec.prepare.log.unnamed import fill_unnamed
from adrec.prepare.sources import RawTable, RawTables
from adrec.prepare.sources.malformed import set_lines_aside
from adrec.prepare.staging import quarantine
from adrec.prepare.staging.privacy import Privacy
from adrec.prepare.staging.roles import Roles, roles_of
from adrec.prepare.staging.validate import Create, Staged, create_here, stage_table
from adrec.schema import ADS, IMPRESSIONS, KNOWN_FROM, TRUE_PROBABILITY, USERS, TableSpec


class Stager:
    """Stages the tables of a source; what it finds goes to `built`."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        raw: RawTables,
        config: PreprocessConfig,
        built: Built,
        extras: Extras,
        earlier: Earlier | None,
        create: Create = create_here,
    ) -> None:
        """`create`: what makes the table of the impressions, see `stage_table`."""
        self._create = create
        self._connection, self._raw, self._config, self._earlier = connection, raw, config, earlier
        self._built, self._extras = built, extras
        self._privacy = Privacy(connection, config.privacy)
        if (forgotten := self._privacy.forgotten) is not None:
            built.privacy["forgotten"] = {"users": len(forgotten.digests), "digest": forgotten.fingerprint}

    def stage(self, raw: RawTable, spec: TableSpec, label: str, extra: Sequence[str], **more: Any) -> None:
        """Table `staged_<label>`, and what was rejected. Lines that cannot be read are set aside."""
        roles = self._roles_of(label)

        if label == "impressions":
            more |= {"create": self._create}

        def stage() -> Staged:
            return stage_table(
                self._connection, raw, spec, f"staged_{label}", extra=extra, roles=roles, private=self._privacy.wrapper(spec),
                remembered=self._privacy.remembered, nan_is_missing=self._config.validation.nan_is_missing, **more,
            )  # fmt: skip

        with readable_faults(str(raw.files[0])):
            try:
                staged = stage()
            except (duckdb.InvalidInputException, duckdb.IOException):
                if not set_lines_aside(self._connection, raw.files):
                    raise
                staged = stage()
            self._built.staged.append((label, staged))
            self._built.notes += staged.notes
            self._built.rejected += quarantine.faults_of(
                self._connection, raw, staged, label, hidden=self._privacy.hidden(spec)
            )

    def _roles_of(self, label: str) -> Roles:
        roles = roles_of(self._config)
        if label in events_of(self._config.source):
            return Roles(dict.fromkeys(joined_by(self._config.source), "id"))
        if label != "impressions":
            return roles.get(label, Roles({}))
        carried = [table for table, raw in (("ads", self._raw.ads), ("users", self._raw.users)) if raw is None]
        keys = Roles(dict.fromkeys(joined_by(self._config.source), "id"))
        return reduce(or_, (roles[table] for table in carried), roles["impressions"] | keys)

    def stage_impressions(self) -> None:
        """A wide table brings the columns of ads and users along."""
        made = made_columns(self._config.source)
        extra = [*(column for column in self._extras.impressions if column not in made), *joined_by(self._config.source)]
        spec, shape = IMPRESSIONS, self._built.shape
        if self._raw.ads is None and shape.ad:
            extra, spec = [*extra, *self._extras.ads], _wide(spec, ADS)
        if self._raw.users is None and shape.user:
            extra, spec = [*extra, *self._extras.users], _wide(spec, USERS)
        since = self._config.privacy.drop_before
        self.stage(
            self._raw.impressions, spec, "impressions", extra, optional_extra=[TRUE_PROBABILITY],
            known_ads="ads" if self._raw.ads is not None else None,
            since=f"{since:%Y-%m-%d %H:%M:%S.%f}" if since is not None and shape.time else None,
        )  # fmt: skip
        self._join_events()
        fill_unnamed(self._connection, "staged_impressions", shape)

    def _join_events(self) -> None:
        """Clicks and conversions that are files of their own."""
        for label, table in events_of(self._config.source).items():
            raw = self._raw.events[label]
            self.stage(raw, spec_of(label, table), label, [column for column in table.on if column not in IMPRESSIONS])
            is_append = self._earlier is not None
            counts = join_events_to(self._connection, "staged_impressions", label, table, str(raw.files[0]), may_miss=is_append)
            self._built.joined[label] = counts
            if not is_append and counts["matched"] < counts["events"]:  # of an append, most belong to rows of before
                self._built.notes.append(told_of(label, table, counts))

    def refuse_faults(self) -> None:
        """The limit holds for each table by itself; of appended files, together with those before."""
        built, limit = self._built, self._config.validation.max_rejected_fraction
        for label, staged in built.staged:
            before = self._earlier.counts(label) if self._earlier is not None else (0, 0)
            faults = [fault for fault in built.rejected if fault.table == label]
            over = staged.bad_rows + before[1] > limit * (staged.rows + before[0])
            if over:
                everything = [*faults, *(fault for fault in built.rejected if fault.table != label)]
                quarantine.refuse_too_many(everything, staged.rows + before[0], staged.bad_rows + before[1], limit)
        left = f"SELECT count(*) AS n FROM staged_impressions WHERE {good(self._connection, 'staged_impressions')}"
        if not one_row(self._connection, left)["n"]:
            raise DataError("\n".join([*map(str, built.rejected), "impressions: no row passed the checks."]))


def _wide(spec: TableSpec, other: TableSpec) -> TableSpec:
    """`spec` with the columns of `other`, none of which a row must have."""
    added = (
        replace(column, required=False) for column in other.columns if column.name not in spec and column.name != KNOWN_FROM
    )
    return TableSpec(spec.name, (*spec.columns, *added), spec.key)
