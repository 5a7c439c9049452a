"""Raw tables -> checked tables -> ordered events, inside one engine. What `adrec preprocess` does before it writes."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any

import duckdb

from adrec.config.data.preprocess import ColumnSplit, PreprocessConfig, RollingSplit, Split, TimeSplit
from adrec.config.training.features import TableFeatures, resolve_counters
from adrec.data.availability import Availability
from adrec.data.disk.engine import columns_of, name, one_row, readable_faults
from adrec.data.labels import LabelCut
from adrec.data.shape import LogShape
from adrec.errors import ConfigError, DataError
from adrec.prepare.log.append import (
    Earlier,
    add_earlier_users,
    check_catalogue,
    check_events,
    check_known,
    check_versions,
    keep_numbers,
    split_of,
)
from adrec.prepare.log.carried import count_people, find_late_labels
from adrec.prepare.log.counts import split_counts
from adrec.prepare.log.events import (
    SOURCE_COLUMNS,
    add_unlisted_users,
    build_events,
    build_requests,
    build_table,
    good,
    latest_values,
    number_keys,
    plain_columns,
)
from adrec.prepare.log.gate import cuts_of, findings_of, immature_labels, merged, moments_of, sum_counts
from adrec.prepare.log.negatives import (
    OF_THE_SLOT,
    available_by_log,
    available_by_table,
    draw_negatives,
    keep_clicks,
    refuse_clicks_alone,
    repeated_share,
)
from adrec.prepare.log.outcomes import events_of, join_events_to, joined_by, made_columns, spec_of, told_of
from adrec.prepare.log.rolling import MOVED, no_moved, read_moved
from adrec.prepare.log.splits import assign, refuse_empty, refuse_time_travel
from adrec.prepare.log.unnamed import fill_unnamed, forget_nobody, shape_of
from adrec.prepare.log.versions import candidates, changing, choose_versions, join_versions, renumber_versions, versions_of_rows
from adrec.prepare.output.leaks import LEAK
from adrec.prepare.sources import RawTable, RawTables
from adrec.prepare.sources.malformed import set_lines_aside
from adrec.prepare.staging import quarantine
from adrec.prepare.staging.privacy import Privacy, protect_users
from adrec.prepare.staging.roles import Roles, roles_of
from adrec.prepare.staging.validate import Rejected, Staged, stage_table
from adrec.prepare.text.clean import template_columns
from adrec.schema import (
    ADS,
    COUNTS,
    DRAWN,
    IMPRESSIONS,
    KNOWN_FROM,
    PREPARED_ADS,
    PREPARED_IMPRESSIONS,
    TRUE_PROBABILITY,
    USER_LANGUAGE,
    USERS,
    WEIGHT,
    TableSpec,
    as_of_column,
    entity_tables,
)
from adrec.specs import WORDS, CounterSpec
from adrec.terminal import Advance

_MADE = {"part", "request", "candidate", *PREPARED_IMPRESSIONS.names, *PREPARED_ADS.names} - {
    *IMPRESSIONS.names, *ADS.names, WEIGHT,
}  # fmt: skip


@dataclass
class Built:
    """Tables `ads`, `users`, `requests`, `events` are ready; this is what was found on the way."""

    staged: list[tuple[str, Staged]] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    unlisted_users: int = 0
    """users of the impressions that the users table lacks"""
    privacy: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """what deserves a word though it is no fault"""
    cuts: dict[str, datetime] = field(default_factory=dict)
    """when validation and test begin, where the split is in time order"""
    versioned: dict[str, list[str]] = field(default_factory=dict)
    """columns of ads and users that events carry as of their request"""
    split: Split = field(default_factory=TimeSplit)
    """of these rows: what the config says, with its moments where it names spans"""
    moves: bool = False
    """whether the bounds of an earlier output's parts move"""
    available: Availability | None = None
    """of the ads, where negatives are drawn from them"""
    repeated: float | None = None
    """share of the clicks on ads that their user had clicked before, where the log holds clicks alone"""
    joined: dict[str, dict[str, int]] = field(default_factory=dict)
    """how many clicks and conversions of files of their own belong to impressions"""
    shape: LogShape = field(default_factory=LogShape)
    """what the impressions name, and whether ads have texts"""
    gate: dict[str, Any] = field(default_factory=dict)
    """for the manifest: cuts, labels' moments, labels that came after the cut, findings"""

    @property
    def cut(self) -> datetime | None:
        """When training ends, where the split is in time order."""
        return min(self.cuts.values(), default=None)

    @property
    def label_cut(self) -> LabelCut | None:
        """What of the labels training rows may know."""
        moments = self.gate.get("label_moments", {})
        return LabelCut(self.cut, moments) if self.cut is not None and moments else None

    def rows(self, label: str) -> int:
        """Source rows of a table that were read."""
        return sum(staged.rows for table, staged in self.staged if table == label)

    def bad_rows(self, label: str) -> int:
        """Source rows of a table that were rejected."""
        return sum(staged.bad_rows for table, staged in self.staged if table == label)


@dataclass(frozen=True)
class Extras:
    """Columns beyond the contract that the config declares, by table."""

    impressions: tuple[str, ...]
    ads: tuple[str, ...]
    users: tuple[str, ...]

    def of(self, table: str) -> tuple[str, ...]:
        """None for tables that have but their contract."""
        named: dict[str, tuple[str, ...]] = vars(self)
        return named.get(table, ())


def extras_of(config: PreprocessConfig) -> Extras:
    """Declared extra columns: by themselves, and those that features, the split and the history name."""

    def named(spec: TableFeatures) -> list[str]:
        groups = (spec.numeric, spec.categorical, spec.hashed, spec.lists, spec.vectors)
        return [item.column for group in groups for item in group if not _is_made(item.column)]

    impressions = [*config.keep, *named(config.features.impressions)]
    if isinstance(config.split, ColumnSplit) and config.split.column not in SOURCE_COLUMNS:
        impressions.append(config.split.column)
    impressions += [column for column in (config.history.clicked_at, config.history.converted_at) if column is not None]
    # Languages and words are read off the texts here, and may still be features. A log may have its users' language itself.
    ads = [*config.ad_columns, *(column for column in named(config.features.ads) if column not in {"language", WORDS})]
    users = [*config.user_columns, *(column for column in named(config.features.users) if column not in {USER_LANGUAGE, WORDS})]
    if config.privacy.k_anonymity is not None:
        users += config.privacy.k_anonymity.columns
    reserved = sorted(({*impressions, *ads, *users} & _MADE) | ({*impressions} & {WEIGHT}))
    reserved += sorted(column for column in {*impressions, *ads, *users} if as_of_column(column) is not None)
    if reserved:
        raise ConfigError(f"column '{reserved[0]}' is made by preprocess itself. Rename yours with `columns` in the config.")
    return Extras(*(tuple(dict.fromkeys(columns)) for columns in (impressions, ads, users)))


class Builder:
    """One run's way from raw tables to events. `earlier` is set where new files are appended to an earlier output."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        raw: RawTables,
        config: PreprocessConfig,
        step: Advance,
        earlier: Earlier | None = None,
    ) -> None:
        self._connection, self._raw, self._config, self._step, self._earlier = connection, raw, config, step, earlier
        self._extras = extras_of(config)
        self._privacy = Privacy(connection, config.privacy)
        self._built = Built(moves=earlier is not None and isinstance(config.split, RollingSplit))

    def build(self) -> Built:
        """Check and type every table, order the events, assign the split. Raises DataError listing every fault."""
        connection, config, built = self._connection, self._config, self._built
        made = made_columns(config.source)
        extra = [column for column in self._extras.impressions if column not in made]
        built.shape = shape_of(connection, self._raw, config, extra)
        for spec in entity_tables():
            if (raw := self._raw.tables.get(spec.name)) is not None:
                self._step(note=f"reading the {spec.name}")
                self._stage(raw, spec, spec.name, self._extras.of(spec.name))
                build_table(connection, f"staged_{spec.name}", spec)
                if self._earlier is not None and spec is ADS:
                    keep_numbers(connection, self._earlier, spec)
        self._step(note="reading the impressions")
        self._stage_impressions()
        self._refuse_faults()
        built.notes += split_counts(connection, "staged_impressions", is_implicit=self._config.negatives is not None)
        self._look_at_clicks()
        self._step(note="sorting")
        self._make_ads_and_users()
        build_requests(connection, "staged_impressions", built.shape)
        split = built.split = split_of(connection, config, self._earlier)
        assignment = assign(connection, "staged_impressions", split, seed=config.seed)
        carried, told = self._carried(), self._told_by_rows()
        build_events(connection, "staged_impressions", assignment.part, carried, assignment.joins, told, shape=built.shape)
        before = self._earlier.manifest["splits"] if self._earlier is not None else {}
        no_moved(connection)
        if self._earlier is not None and built.moves and isinstance(split, TimeSplit):
            read_moved(connection, self._earlier, split, moments_of(connection, config.history))
            before = {part: counts for part, counts in before.items() if part not in MOVED}
        parts = "(SELECT part FROM events UNION ALL SELECT part FROM moved)"
        refuse_empty(connection, config.split, {part: counts["rows"] for part, counts in before.items()}, parts)
        if built.shape.time:
            refuse_time_travel(connection, split)
            built.cuts = cuts_of(connection, split, before)
        self._describe_ads_and_users()
        self._join_versions()
        if self._earlier is not None:
            check_versions(connection, self._earlier, built.versioned)
            check_events(connection, self._earlier)
        count_people(connection, self._earlier.folder if self._earlier is not None else None, moves=built.moves)
        if not built.bad_rows("impressions"):
            connection.execute("DROP TABLE staged_impressions")
        self._step(note="looking for leaks")
        self._pass_gate()
        return built

    def _pass_gate(self) -> None:
        connection, built, cuts = self._connection, self._built, self._built.cuts
        moments = moments_of(connection, self._config.history)
        old = self._earlier.manifest if self._earlier is not None else {}
        labels = "".join(f", {label}, {name(column)}" for label, column in moments.items())
        rows = f"SELECT part{labels} FROM events UNION ALL BY NAME SELECT * FROM moved"
        before = {part: counts for part, counts in old.get("immature", {}).items() if not (built.moves and part in MOVED)}
        immature = sum_counts(before, immature_labels(connection, rows, cuts, moments))
        late = find_late_labels(
            connection, rows, built.cut, moments, self._earlier.folder if self._earlier is not None else None
        )
        for label, counts in immature.get("train", {}).items():
            counts["rows"] = late[label]
        kept = [finding for finding in old.get("findings", []) if finding["kind"] != LEAK]  # features are looked at anew
        self._built.gate = {
            "cuts": {part: moment.isoformat() for part, moment in cuts.items()},
            "label_moments": moments,
            "immature": immature,
            "findings": merged(kept, [found.as_dict() for found in findings_of(connection, built.split, built.shape)]),
        }

    def _stage(self, raw: RawTable, spec: TableSpec, label: str, extra: Sequence[str], **more: Any) -> None:
        roles = self._roles_of(label)

        def stage() -> Staged:
            return stage_table(
                self._connection, raw, spec, f"staged_{label}", extra=extra, roles=roles, private=self._privacy.wrapper(spec),
                nan_is_missing=self._config.validation.nan_is_missing, **more,
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

    def _stage_impressions(self) -> None:
        """A wide table brings the columns of ads and users along."""
        made = made_columns(self._config.source)
        extra = [*(column for column in self._extras.impressions if column not in made), *joined_by(self._config.source)]
        spec, shape = IMPRESSIONS, self._built.shape
        if self._raw.ads is None and shape.ad:
            extra, spec = [*extra, *self._extras.ads], _wide(spec, ADS)
        if self._raw.users is None and shape.user:
            extra, spec = [*extra, *self._extras.users], _wide(spec, USERS)
        since = self._config.privacy.drop_before
        self._stage(
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
            self._stage(raw, spec_of(label, table), label, [column for column in table.on if column not in IMPRESSIONS])
            is_append = self._earlier is not None
            counts = join_events_to(self._connection, "staged_impressions", label, table, str(raw.files[0]), may_miss=is_append)
            self._built.joined[label] = counts
            if not is_append and counts["matched"] < counts["events"]:  # of an append, most belong to rows of before
                self._built.notes.append(told_of(label, table, counts))

    def _refuse_faults(self) -> None:
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

    def _look_at_clicks(self) -> None:
        """A log of clicks alone teaches nothing, unless negatives are drawn."""
        if self._config.negatives is not None:
            note = keep_clicks(self._connection, "staged_impressions")
            self._built.notes += [note] if note else []
        elif self._earlier is None:
            refuse_clicks_alone(self._connection, "staged_impressions")

    def _draw_negatives(self) -> None:
        connection, settings, earlier = self._connection, self._config.negatives, self._earlier
        if settings is None:
            return
        if earlier is not None:
            check_catalogue(connection, earlier)
        wide = self._raw.ads is None
        self._built.available = available_by_log(connection) if wide else available_by_table(connection)
        self._built.repeated = repeated_share(connection)
        early = draw_negatives(
            connection,
            settings,
            self._built.available,
            seed=self._config.seed,
            earlier=earlier.files_of_impressions if earlier is not None else (),
        )
        if early:
            self._built.notes.append(
                f"{early:,} clicks are on ads that were not available before ("
                + ("first clicks of their ads" if wide else "by starts_at or known_from")
                + "): histories and counters know them, but no negatives are drawn beside them and no rank is given"
            )

    def _make_ads_and_users(self) -> None:
        """Their ids and numbers."""
        connection, earlier = self._connection, self._earlier
        if self._raw.ads is None:
            _number_ads(connection)
        if self._raw.users is None and earlier is None:
            number_keys(connection, "staged_impressions", USERS, order="(shown_at, source_order)")
        else:
            if self._raw.users is None:
                connection.execute("CREATE OR REPLACE TABLE users (user_index INTEGER, user_id VARCHAR)")
            unlisted = 0
            if earlier is not None:
                unlisted += add_earlier_users(connection, earlier)
                keep_numbers(connection, earlier, USERS)
            unlisted += add_unlisted_users(connection, "staged_impressions")
            self._built.unlisted_users = unlisted if self._raw.users is not None else 0

    def _describe_ads_and_users(self) -> None:
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
            self._built.privacy = protect_users(connection, self._config.privacy.k_anonymity)
        if earlier is not None:
            check_known(earlier, one_row(connection, "SELECT count(*) AS n FROM ads")["n"] - earlier.manifest["ads"])

    # ------------------------------------------------------------------------------------------- versions

    def _has_versions(self, spec: TableSpec) -> bool:
        raw = self._raw.tables.get(spec.name)
        return raw is not None and KNOWN_FROM in columns_of(self._connection, f"staged_{spec.name}")

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

    def _told_by_rows(self) -> dict[str, str]:
        """Columns of a wide table that may be versions, by the name under which events carry them."""
        return {
            spec.as_of_prefix + column: column
            for spec, raw in ((ADS, self._raw.ads), (USERS, self._raw.users))
            if raw is None
            for column in self._candidates(spec)
        }

    def _join_versions(self) -> None:
        """What changes goes to the events, drawn ones too, as of their request."""
        versioned = self._built.versioned
        for spec in (ADS, USERS):
            columns = self._candidates(spec)
            if columns and self._raw.tables.get(spec.name) is None:
                versions_of_rows(self._connection, spec, columns)
                forget_nobody(self._connection, spec)
            versioned[spec.name] = changing(self._connection, spec, columns)
        self._draw_negatives()
        join_versions(self._connection, versioned)

    def _read_by_models(self, spec: TableSpec) -> set[str]:
        """Columns of a table that a text or a calendar reads, whose value is that of the cut."""
        config = self._config
        features = config.features.ads if spec is ADS else config.features.users
        template = config.text.ad_template if spec is ADS else config.text.user_template
        calendar = {features.calendar.column} if features.calendar is not None else set()
        return {*template_columns(template), *calendar}

    def _carried(self) -> list[str]:
        """Columns of the staged impressions that reach the events."""
        known = plain_columns(self._connection, "staged_impressions")
        wanted = {*IMPRESSIONS.names, WEIGHT, *self._extras.impressions, TRUE_PROBABILITY}
        wanted -= {"user_id", "ad_id", "shown_at", *COUNTS}
        if self._config.history.source == "clicks":
            wanted.discard("history")
        if self._config.negatives is not None:
            wanted.difference_update(OF_THE_SLOT)
        return [column for column in known if column in wanted]


def build(
    connection: duckdb.DuckDBPyConnection,
    raw: RawTables,
    config: PreprocessConfig,
    step: Advance,
    earlier: Earlier | None = None,
) -> Built:
    """See Builder.build."""
    return Builder(connection, raw, config, step, earlier).build()


def _wide(spec: TableSpec, other: TableSpec) -> TableSpec:
    """`spec` with the columns of `other`, none of which a row must have."""
    added = (
        replace(column, required=False) for column in other.columns if column.name not in spec and column.name != KNOWN_FROM
    )
    return TableSpec(spec.name, (*spec.columns, *added), spec.key)


def _number_ads(connection: duckdb.DuckDBPyConnection) -> None:
    number_keys(connection, "staged_impressions", ADS, order="source_order")
    connection.execute("ALTER TABLE staged_impressions ADD COLUMN ad_index INTEGER")
    connection.execute("UPDATE staged_impressions s SET ad_index = ads.ad_index FROM ads WHERE ads.ad_id = s.ad_id")


def _is_made(column: str) -> bool:
    """Columns that preprocess itself makes are not read."""
    return "*" in column or column.startswith("counter_") or column in {"shown_at", "history_length"}


def work_folder(folder: Path) -> Path:
    """Scratch space inside the folder that is being written: gone before it takes its place."""
    return folder / ".work"
