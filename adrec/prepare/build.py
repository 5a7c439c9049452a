"""Raw tables -> checked tables -> ordered events, inside one engine. What `adrec preprocess` does before it writes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import duckdb

from adrec.config.features import FeatureSpec
from adrec.config.preprocess import ColumnSplit, PreprocessConfig
from adrec.errors import DataError
from adrec.prepare import quarantine
from adrec.prepare.engine import columns_of, name, one_row
from adrec.prepare.events import (
    SOURCE_COLUMNS,
    add_unlisted_users,
    build_events,
    build_keyed,
    build_requests,
    first_values,
    good,
    plain_columns,
)
from adrec.prepare.sources import RawTable, RawTables
from adrec.prepare.splits import assign, refuse_time_travel
from adrec.prepare.validate import Rejected, Staged, stage_table
from adrec.schema import ADS, IMPRESSIONS, TRUE_PROBABILITY, USERS

Step = Callable[[str], None]


@dataclass
class Built:
    """Tables `ads`, `users`, `requests`, `events` are ready; this is what was found on the way."""

    staged: list[tuple[str, Staged]] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Extras:
    """Columns beyond the contract that the config declares, by table."""

    impressions: tuple[str, ...]
    ads: tuple[str, ...]
    users: tuple[str, ...]


def extras_of(config: PreprocessConfig) -> Extras:
    """Declared extra columns: `keep` and those that features, counters and the split name."""

    def named(spec: FeatureSpec) -> list[str]:
        groups = (spec.numeric, spec.categorical, spec.hashed, spec.lists)
        return [item.column for group in groups for item in group if not _made(item.column)]

    impressions = [*config.keep, *named(config.features.impressions)]
    if isinstance(config.split, ColumnSplit) and config.split.column not in SOURCE_COLUMNS:
        impressions.append(config.split.column)
    moments = (config.history.clicked_at, config.history.converted_at)
    impressions += [column for column in moments if column is not None]
    ads = [*config.ad_columns, *named(config.features.ads)]
    users = [*config.user_columns, *named(config.features.users)]
    if config.privacy.k_anonymity is not None:
        users += config.privacy.k_anonymity.columns
    return Extras(*(tuple(dict.fromkeys(columns)) for columns in (impressions, ads, users)))


def build(connection: duckdb.DuckDBPyConnection, raw: RawTables, config: PreprocessConfig, step: Step) -> Built:
    """Check and type every table, order the events, assign the split. Raises DataError listing every fault."""
    built = Built()
    extras = extras_of(config)
    wide_ads, wide_users = raw.ads is None, raw.users is None
    if raw.ads is not None:
        step("reading the ads")
        _stage(connection, built, raw.ads, ADS, "ads", config, extras.ads)
        build_keyed(connection, "staged_ads", "ad_id", "ads")
    if raw.users is not None:
        step("reading the users")
        _stage(connection, built, raw.users, USERS, "users", config, extras.users)
        build_keyed(connection, "staged_users", "user_id", "users")
    step("reading the impressions")
    wide = [*(extras.ads if wide_ads else ()), *(extras.users if wide_users else ())]
    _stage_impressions(connection, built, raw, config, extras, wide)
    bad = sum(staged.bad_rows for _, staged in built.staged)
    rows = sum(staged.rows for _, staged in built.staged)
    quarantine.refuse_too_many(built.rejected, rows, bad, config.validation.max_rejected_fraction)
    _refuse_empty(connection, config)
    step("sorting")
    if wide_ads:
        _ads_from_impressions(connection, extras.ads)
    if wide_users:
        columns = [
            column for column in (*USERS.names[1:], *extras.users) if column in columns_of(connection, "staged_impressions")
        ]
        first_values(connection, "staged_impressions", "user_id", columns, "users", order="(shown_at, source_order)")
        built.facts["unlisted_users"] = 0
    else:
        built.facts["unlisted_users"] = add_unlisted_users(connection, "staged_impressions")
    build_requests(connection, "staged_impressions")
    assignment = assign(connection, "staged_impressions", config.split, seed=config.seed)
    carried = _carried(connection, config, extras)
    build_events(connection, "staged_impressions", assignment.part, carried, assignment.joins)
    connection.execute("DROP TABLE staged_impressions" if not bad else "SELECT 1")
    refuse_time_travel(connection, config.split)
    return built


def _stage(
    connection: duckdb.DuckDBPyConnection,
    built: Built,
    raw: RawTable,
    spec: Any,
    label: str,
    config: PreprocessConfig,
    extra: Sequence[str],
) -> None:
    staged = stage_table(connection, raw, spec, f"staged_{label}", extra=extra, nan_is_missing=config.validation.nan_is_missing)
    built.staged.append((label, staged))
    built.rejected += quarantine.faults_of(connection, raw, staged, label)


def _stage_impressions(
    connection: duckdb.DuckDBPyConnection,
    built: Built,
    raw: RawTables,
    config: PreprocessConfig,
    extras: Extras,
    wide: Sequence[str],
) -> None:
    optional = [TRUE_PROBABILITY]
    if raw.ads is None:
        optional += [column for column in ADS.names if column != "ad_id"]
    if raw.users is None:
        optional += [column for column in USERS.names if column != "user_id"]
    staged = stage_table(
        connection,
        raw.impressions,
        IMPRESSIONS,
        "staged_impressions",
        extra=[*extras.impressions, *wide],
        optional_extra=optional,
        nan_is_missing=config.validation.nan_is_missing,
        known_ads="ads" if raw.ads is not None else None,
    )
    built.staged.append(("impressions", staged))
    built.rejected += quarantine.faults_of(connection, raw.impressions, staged, "impressions")
    built.facts["source_rows"] = staged.rows


def _ads_from_impressions(connection: duckdb.DuckDBPyConnection, extra: Sequence[str]) -> None:
    found = columns_of(connection, "staged_impressions")
    if "title" not in found:
        raise DataError(
            "impressions: column 'title' is missing. A wide table carries the ads: map `title` (another column may "
            "stand for it), or name an `ads` table in the config."
        )
    columns = [column for column in dict.fromkeys((*ADS.names[1:], *extra)) if column in found]
    first_values(connection, "staged_impressions", "ad_id", columns, "ads", order="source_order")
    connection.execute("ALTER TABLE staged_impressions ADD COLUMN ad_index INTEGER")
    connection.execute(
        "UPDATE staged_impressions SET ad_index = ads.ad_index FROM ads WHERE ads.ad_id = staged_impressions.ad_id"
    )


def _carried(connection: duckdb.DuckDBPyConnection, config: PreprocessConfig, extras: Extras) -> list[str]:
    """Columns of the staged impressions that reach the events."""
    known = plain_columns(connection, "staged_impressions")
    wanted = {*IMPRESSIONS.names, *extras.impressions, TRUE_PROBABILITY} - {"user_id", "ad_id", "shown_at"}
    return [column for column in known if column in wanted]


def _refuse_empty(connection: duckdb.DuckDBPyConnection, config: PreprocessConfig) -> None:
    left = one_row(connection, f"SELECT count(*) AS n FROM staged_impressions WHERE {good(connection, 'staged_impressions')}")[
        "n"
    ]
    if not left:
        raise DataError("impressions: no row passed the checks. See the faults above, or raise the limit less far.")


def _made(column: str) -> bool:
    """Columns that preprocess itself makes are not read."""
    return "*" in column or column.startswith("counter_") or column in {"shown_at", "history_length"}


def resolved_shares(connection: duckdb.DuckDBPyConnection, built: Built) -> dict[str, Any]:
    """How many ids of the impressions and of given histories some ad answers to."""
    staged = dict(built.staged)["impressions"]
    unknown = [number for number, check in enumerate(staged.checks) if check.condition == "known.ad_id IS NULL"]
    rejected = (
        sum(f.rows for f in built.rejected if f.table == "impressions" and f.problem == "is no ad's ad_id") if unknown else 0
    )
    return {"candidates": staged.rows, "candidates_unknown": rejected}


def quoted(columns: Sequence[str]) -> str:
    """A SQL list of columns."""
    return ", ".join(name(column) for column in columns)
