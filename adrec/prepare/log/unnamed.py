"""What a log does not name: users, ads, moments. The rows get stand-ins, so that one engine works on every log.

Rows without a user share one blank row of the users, `NOBODY`, which ten million of them cost nothing; it has no code, so no
history and no counter is kept of it, and each of its rows is a request of its own. Rows without an ad are of one blank ad. Rows
without a moment all happen at 1970-01-01: nothing is before anything else.
"""

from collections.abc import Collection, Sequence

import duckdb

from adrec.config.data.preprocess import LeaveLastOutSplit, PreprocessConfig, RollingSplit, TimeSplit, UserSplit
from adrec.data.disk.engine import columns_of, name, one_row, text
from adrec.data.shape import LogShape
from adrec.errors import DataError, listed
from adrec.prepare.sources import RawTables
from adrec.prepare.staging.validate import missing_columns
from adrec.schema import IMPRESSIONS, NOBODY, TableSpec

_COLUMNS = {"user": "user_id", "ad": "ad_id", "time": "shown_at"}
_STAND_INS = {
    "user": ("VARCHAR", text(NOBODY)),
    "ad": ("VARCHAR", text(NOBODY)),
    "time": ("TIMESTAMP", "TIMESTAMP '1970-01-01'"),
}


def shape_of(connection: duckdb.DuckDBPyConnection, raw: RawTables, config: PreprocessConfig, extra: Sequence[str]) -> LogShape:
    """What the impressions name, by their columns. Raises DataError, a line each, where the config reads what is not there.

    `extra`: columns beyond the contract that the config names; where there are faults, those that are missing are told too.
    """
    table = raw.impressions
    columns = {*columns_of(connection, table.view), *table.reading.defaults}
    shape = LogShape(**{key: column in columns for key, column in _COLUMNS.items()})
    known = listed(columns_of(connection, table.view))
    faults = []
    for key, column in _COLUMNS.items():
        needs = _needs(raw, config, key, columns) if not getattr(shape, key) else []
        if needs:
            readers, cures = (" and ".join(dict.fromkeys(words)) for words in zip(*needs, strict=True))
            faults.append(
                f"{table.files[0]}: column '{column}' is missing, which {readers} need{'s' * (len(needs) == 1)}. Columns: "
                f"{known}. Name it (--set source.impressions.columns.{column}=COLUMN), or {cures}."
            )
    if faults:
        more = missing_columns(table, IMPRESSIONS, columns_of(connection, table.view), extra)
        raise DataError("\n".join([*faults, *more]))
    return shape


def fill_unnamed(connection: duckdb.DuckDBPyConnection, staged: str, shape: LogShape) -> None:
    """Give the staged impressions the stand-ins of what they do not name."""
    for part, (kind, value) in _STAND_INS.items():
        if not getattr(shape, part):
            connection.execute(f"ALTER TABLE {staged} ADD COLUMN {_COLUMNS[part]} {kind} DEFAULT {value}")
    if not shape.user or not one_row(connection, f"SELECT count(*) AS n FROM {staged} WHERE user_id IS NULL")["n"]:
        return
    if "request_id" in columns_of(connection, staged):  # some rows of a request may say whose it is
        connection.execute(
            f"UPDATE {staged} s SET user_id = r.user_id FROM ({users_of_requests(staged)}) r "
            "WHERE s.request_id = r.request_id AND s.user_id IS NULL"
        )
    connection.execute(f"UPDATE {staged} SET user_id = {text(NOBODY)} WHERE user_id IS NULL")


def users_of_requests(rows: str) -> str:
    """SQL of request_id and user_id: whose the requests are of which some rows of `rows` say it and others do not."""
    return (
        f"SELECT request_id, min(user_id) AS user_id FROM {rows} WHERE request_id IS NOT NULL "
        "GROUP BY 1 HAVING count(user_id) BETWEEN 1 AND count(*) - 1"
    )


def forget_nobody(connection: duckdb.DuckDBPyConnection, spec: TableSpec) -> None:
    """Take away what rows of unknown users say from the blank user whom they share: it would be told of all of them."""
    columns = [column for column in columns_of(connection, spec.name) if column not in {spec.key, spec.index}]
    who = f"{spec.key} = {text(NOBODY)}"
    if columns:
        emptied = ", ".join(f"{name(column)} = NULL" for column in columns)
        connection.execute(f"UPDATE {spec.name} SET {emptied} WHERE {who}")
    tables = {table for (table,) in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
    if spec.versions in tables:
        theirs = f"SELECT {spec.index} FROM {spec.name} WHERE {who}"
        connection.execute(f"DELETE FROM {spec.versions} WHERE {spec.index} IN ({theirs})")


def _needs(raw: RawTables, config: PreprocessConfig, key: str, columns: Collection[str]) -> list[tuple[str, str]]:
    """What of the config needs the `key` of a log that is missing, and what else would do."""
    needs: list[tuple[str, str]] = []
    split, counted = config.split, [spec for spec in config.counters if spec != "usual"]
    if key == "time":
        if isinstance(split, TimeSplit | RollingSplit | LeaveLastOutSplit):
            needs.append((f"split.method {split.method}", "set split.method=random"))
        if counted:
            needs.append(("every counter", "leave the counters out"))
        calendar = config.features.impressions.calendar
        if calendar is not None and calendar.column == "shown_at":
            needs.append(("features.impressions.calendar", "leave the calendar out"))
        if config.privacy.drop_before is not None:
            needs.append(("privacy.drop_before", "leave privacy.drop_before out"))
        return needs
    of, by_part = f"{key}s", {"user": (UserSplit, LeaveLastOutSplit), "ad": ()}[key]
    if raw.tables.get(of) is not None:
        needs.append((f"the table of the {of}", f"leave source.{of} out"))
    else:
        declared = [column for _, column in getattr(config.features, of).columns] + getattr(config, f"{key}_columns")
        if declared:
            where = f"name '{declared[0]}' under features.impressions, not of the {of}"
            needs.append((f"'{declared[0]}' of the {of}", where))
        if key == "ad" and "title" in columns:
            needs.append(("'title'", "give it the column of the title too"))
    if isinstance(split, by_part) or split.method == f"cold_{key}":
        needs.append((f"split.method {split.method}", "set split.method=random"))
    if key == "ad" and config.negatives is not None:
        needs.append(("`negatives`", "leave `negatives` out"))
    if any(key in spec.by for spec in counted):
        needs.append((f"a counter by '{key}'", "leave that counter out"))
    return needs
