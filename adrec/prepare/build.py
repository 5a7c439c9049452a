"""Raw tables -> checked tables -> ordered events, inside one engine. What `adrec preprocess` does before it writes."""

from pathlib import Path

import duckdb

from adrec.config.data.preprocess import PreprocessConfig, RollingSplit, TimeSplit
from adrec.data.disk.engine import name
from adrec.prepare.attributes import Attributes
from adrec.prepare.built import Built
from adrec.prepare.extras import extras_of
from adrec.prepare.log.append import (
    Earlier,
    check_catalogue,
    check_events,
    check_versions,
    keep_numbers,
    split_of,
)
from adrec.prepare.log.carried import count_people, find_late_labels
from adrec.prepare.log.counts import split_counts
from adrec.prepare.log.events import (
    add_earlier_users,
    add_unlisted_users,
    build_events,
    build_requests,
    build_table,
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
from adrec.prepare.log.outcomes import made_columns
from adrec.prepare.log.rolling import MOVED, no_moved, read_moved
from adrec.prepare.log.splits import assign, refuse_empty, refuse_time_travel
from adrec.prepare.log.unchanged import take_over
from adrec.prepare.log.unnamed import shape_of
from adrec.prepare.log.versions import join_versions
from adrec.prepare.output.leaks import LEAK
from adrec.prepare.sources import RawTable, RawTables
from adrec.prepare.stager import Stager
from adrec.prepare.staging.validate import Create, create_here
from adrec.schema import (
    ADS,
    COUNTS,
    IMPRESSIONS,
    TRUE_PROBABILITY,
    USERS,
    WEIGHT,
    TableSpec,
    entity_tables,
)
from adrec.terminal import Advance


class Builder:
    """One run's way from raw tables to events. `earlier` is set where new files are appended to an earlier output, and
    `create` makes the table of the impressions (see `stage_table`).
    """

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        raw: RawTables,
        config: PreprocessConfig,
        step: Advance,
        earlier: Earlier | None = None,
        create: Create = create_here,
    ) -> None:
        self._connection, self._raw, self._config, self._step, self._earlier = connection, raw, config, step, earlier
        self._extras = extras_of(config)
        self._built = Built(moves=earlier is not None and isinstance(config.split, RollingSplit))
        self._stager = Stager(connection, raw, config, self._built, self._extras, earlier, create)
        self._attributes = Attributes(connection, raw, config, self._built, self._extras, earlier)

    def build(self) -> Built:
        """Check and type every table, order the events, assign the split. Raises DataError listing every fault."""
        connection, config, built = self._connection, self._config, self._built
        made = made_columns(config.source)
        extra = [column for column in self._extras.impressions if column not in made]
        built.shape = shape_of(connection, self._raw, config, extra)
        for spec in entity_tables():
            if (raw := self._raw.tables.get(spec.name)) is not None:
                self._step(note=f"reading the {spec.name}")
                if self._take_over(spec, raw):
                    continue
                self._stager.stage(raw, spec, spec.name, self._extras.of(spec.name))
                build_table(connection, f"staged_{spec.name}", spec)
                if self._earlier is not None and spec is ADS:
                    keep_numbers(connection, self._earlier, spec)
        self._step(note="reading the impressions")
        self._stager.stage_impressions()
        self._stager.refuse_faults()
        built.notes += split_counts(connection, "staged_impressions", is_implicit=self._config.negatives is not None)
        self._look_at_clicks()
        self._step(note="sorting")
        self._make_ads_and_users()
        build_requests(connection, "staged_impressions", built.shape)
        split = built.split = split_of(connection, config, self._earlier)
        assignment = assign(connection, "staged_impressions", split, seed=config.seed)
        carried, told = self._carried(), self._attributes.told_by_rows()
        build_events(connection, "staged_impressions", assignment.part, carried, assignment.joins, told, shape=built.shape)
        before = self._earlier.manifest["splits"] if self._earlier is not None else {}
        no_moved(connection)
        if self._earlier is not None and built.moves and isinstance(split, TimeSplit):
            read_moved(connection, self._earlier, split, moments_of(connection, config.history))
            before = {split_name: counts for split_name, counts in before.items() if split_name not in MOVED}
        parts = "(SELECT part FROM events UNION ALL SELECT part FROM moved)"
        refuse_empty(connection, config.split, {split_name: counts["rows"] for split_name, counts in before.items()}, parts)
        if built.shape.time:
            refuse_time_travel(connection, split)
            built.cuts = cuts_of(connection, split, before)
        self._attributes.describe()
        self._attributes.find()
        self._draw_negatives()
        join_versions(connection, built.versioned)
        if self._earlier is not None:
            check_versions(connection, self._earlier, built.versioned)
            check_events(connection, self._earlier)
        count_people(connection, self._earlier.folder if self._earlier is not None else None, moves=built.moves)
        if not built.bad_rows("impressions"):
            connection.execute("DROP TABLE staged_impressions")
        self._step(note="looking for leaks")
        self._pass_gate()
        return built

    def _take_over(self, spec: TableSpec, raw: RawTable) -> bool:
        """Whether a table could be left as it was."""
        if self._earlier is None:
            return False
        extra = self._extras.of(spec.name)
        if not take_over(self._connection, self._config, self._earlier, spec, raw, extra):
            return False
        self._built.unchanged.add(spec.name)
        return True

    def _pass_gate(self) -> None:
        connection, built, cuts = self._connection, self._built, self._built.cuts
        moments = moments_of(connection, self._config.history)
        old = self._earlier.manifest if self._earlier is not None else {}
        labels = "".join(f", {label}, {name(column)}" for label, column in moments.items())
        rows = f"SELECT part{labels} FROM events UNION ALL BY NAME SELECT * FROM moved"
        before = {
            split_name: counts
            for split_name, counts in old.get("immature", {}).items()
            if not (built.moves and split_name in MOVED)
        }
        immature = sum_counts(before, immature_labels(connection, rows, cuts, moments))
        late = find_late_labels(
            connection, rows, built.cut, moments, self._earlier.folder if self._earlier is not None else None
        )
        for label, counts in immature.get("train", {}).items():
            counts["rows"] = late[label]
        kept = [finding for finding in old.get("findings", []) if finding["kind"] != LEAK]  # features are looked at anew
        self._built.gate = {
            "cuts": {split_name: moment.isoformat() for split_name, moment in cuts.items()},
            "label_moments": moments,
            "immature": immature,
            "findings": merged(kept, [found.as_dict() for found in findings_of(connection, built.split, built.shape)]),
        }

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
            if earlier is not None and USERS.name in self._built.unchanged:
                unlisted = int(earlier.manifest["unlisted_users"])
            elif earlier is not None:
                unlisted = add_earlier_users(connection, earlier.table(USERS))
                keep_numbers(connection, earlier, USERS)
            new = add_unlisted_users(connection, "staged_impressions")
            if new.rows:
                self._built.unchanged.discard(USERS.name)
            unlisted += new.named
            self._built.unlisted_users = unlisted if self._raw.users is not None else 0

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


def _number_ads(connection: duckdb.DuckDBPyConnection) -> None:
    number_keys(connection, "staged_impressions", ADS, order="source_order")
    connection.execute("ALTER TABLE staged_impressions ADD COLUMN ad_index INTEGER")
    connection.execute("UPDATE staged_impressions s SET ad_index = ads.ad_index FROM ads WHERE ads.ad_id = s.ad_id")


def work_folder(folder: Path) -> Path:
    """Scratch space inside the folder that is being written: gone before it takes its place."""
    return folder / ".work"
