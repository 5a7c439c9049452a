"""What an append needs of the rows before without reading them: who was shown in which part and when first, and all requests.

Kept in the prepared folder's `carried/`, a few bytes a user, ad and request. A rebuild writes it, an append goes on from it.
"""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import duckdb
import numpy as np
from numpy.typing import NDArray

from adrec.data.disk.engine import columns_of, fetch, moment_sql, name, parquet, text
from adrec.schema import DRAWN

FOLDER = "carried"
_PEOPLE, _LATE, _REQUESTS = "people.parquet", "late_labels.parquet", "requests.npy"


def count_people(connection: duckdb.DuckDBPyConnection, earlier: Path | None, *, moves: bool = False) -> None:
    """Table `people`: part, kind (ad or user), index, rows, first moment, of `events` and `moved` and the `earlier` output.
    What was drawn from the catalogue says nothing of anybody.

    `moves`: whether the rows of its other parts than training are in table `moved`.
    """
    happened = {
        table: f" WHERE NOT coalesce({DRAWN}, false)" if DRAWN in columns_of(connection, table) else ""
        for table in ("events", "moved")
    }
    columns = "part, kind, index, CAST(sum(rows) AS BIGINT) AS rows, min(first) AS first"
    connection.execute(
        "CREATE OR REPLACE TABLE counted (part UTINYINT, kind VARCHAR, index INTEGER, rows BIGINT, first TIMESTAMP)"
    )
    for kind in ("ad", "user"):  # one grouping at a time: each may have a group a row
        for table, condition in happened.items():
            connection.execute(
                f"INSERT INTO counted SELECT part, '{kind}', {kind}_index, count(*), min(shown_at) FROM {table}{condition} "
                f"GROUP BY part, {kind}_index"
            )
    if earlier is not None:
        kept = " WHERE part = 0" if moves else ""
        connection.execute(f"INSERT INTO counted SELECT * FROM {parquet(earlier / FOLDER / _PEOPLE)}{kept}")
    connection.execute(f"CREATE OR REPLACE TABLE people AS SELECT {columns} FROM counted GROUP BY part, kind, index")
    connection.execute("DROP TABLE counted")


def find_late_labels(
    connection: duckdb.DuckDBPyConnection, rows: str, cut: datetime | None, moments: Mapping[str, str], earlier: Path | None
) -> dict[str, int]:
    """Table `late_labels`: label and moment of those of training rows that came at or after `cut`. Returns their number.

    `rows` is SQL of the rows beside the training rows of the `earlier` output.
    """
    connection.execute("CREATE OR REPLACE TABLE late_labels (label VARCHAR, moment TIMESTAMP)")
    if cut is None:
        return {}
    late = [
        f"SELECT '{label}', {name(column)} FROM ({rows}) WHERE part = 0 AND {label} = 1 AND {name(column)} >= {moment_sql(cut)}"
        for label, column in moments.items()
    ]
    if earlier is not None:
        late.append(f"SELECT * FROM {parquet(earlier / FOLDER / _LATE)} WHERE moment >= {moment_sql(cut)}")
    for query in late:
        connection.execute(f"INSERT INTO late_labels {query}")
    found = dict(connection.execute("SELECT label, count(*) FROM late_labels GROUP BY 1").fetchall())
    return {label: found.get(label, 0) for label in moments}


def save_carried(connection: duckdb.DuckDBPyConnection, folder: Path, earlier: Path | None) -> None:
    """Write what the next append goes on from: tables `people`, `late_labels` and `requests`, and what `earlier` carried."""
    (folder / FOLDER).mkdir()
    connection.execute(
        f"COPY (SELECT * FROM people ORDER BY part, kind, index) TO {text(str(folder / FOLDER / _PEOPLE))} "
        "(FORMAT parquet, COMPRESSION zstd)"
    )
    connection.execute(f"COPY late_labels TO {text(str(folder / FOLDER / _LATE))} (FORMAT parquet, COMPRESSION zstd)")
    known = [_read_requests(earlier)] if earlier is not None else []
    # Both are in order, which a stable sort sees: it merges them.
    both = np.sort(np.concatenate([*known, _requests(connection)]), kind="stable")
    np.save(folder / FOLDER / _REQUESTS, both, allow_pickle=False)


def known_requests(connection: duckdb.DuckDBPyConnection, earlier: Path) -> int:
    """Rows of table `requests` whose identifier the `earlier` prepared folder has too."""
    known, ours = _read_requests(earlier), _requests(connection)
    if not len(known):
        return 0
    place = np.minimum(np.searchsorted(known, ours), len(known) - 1)
    return int((known[place] == ours).sum())


def _requests(connection: duckdb.DuckDBPyConnection) -> NDArray[np.uint64]:
    """Half of the MD5 of each request's identifier, ascending: chance confuses two of a thousand million once in forty logs."""
    if "key" not in columns_of(connection, "requests"):  # those of a user and a moment cannot go on later
        return np.zeros(0, np.uint64)
    # Nor can a row that is a request by itself: its key is its number behind @.
    query = "SELECT md5_number_lower(key) AS code FROM requests WHERE NOT regexp_full_match(key, '@[0-9]+') ORDER BY code"
    connection.execute(f"CREATE TABLE IF NOT EXISTS request_codes AS {query}")  # asked for twice
    codes = fetch(connection, "SELECT code FROM request_codes")["code"]
    return np.asarray(codes.to_numpy(), dtype=np.uint64)


def _read_requests(folder: Path) -> NDArray[np.uint64]:
    codes: NDArray[np.uint64] = np.load(folder / FOLDER / _REQUESTS, mmap_mode="r", allow_pickle=False)
    return codes
