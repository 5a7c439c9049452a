"""What an append needs of the rows before without reading them: who was shown in which part and when first, and all requests.

Kept in the prepared folder's `carried/`, a few bytes a user, ad and request. A rebuild writes it, an append goes on from it.
"""

from pathlib import Path

import duckdb
import numpy as np
from numpy.typing import NDArray

from adrec.data.engine import columns_of, fetch, parquet, text

FOLDER = "carried"
_PEOPLE, _REQUESTS = "people.parquet", "requests.npy"


def count_people(connection: duckdb.DuckDBPyConnection, earlier: Path | None) -> None:
    """Table `people`: part, kind (ad or user), index, rows, first moment, of table `events` and the `earlier` output."""
    shown = [
        f"SELECT part, '{kind}' AS kind, {kind}_index AS index, count(*) AS rows, min(shown_at) AS first "
        "FROM events GROUP BY ALL"
        for kind in ("ad", "user")
    ]
    if earlier is not None:
        shown.append(f"SELECT * FROM {parquet(earlier / FOLDER / _PEOPLE)}")
    connection.execute(
        "CREATE OR REPLACE TABLE people AS SELECT part, kind, index, CAST(sum(rows) AS BIGINT) AS rows, min(first) AS first "
        f"FROM ({' UNION ALL BY NAME '.join(shown)}) GROUP BY ALL"
    )


def save_carried(connection: duckdb.DuckDBPyConnection, folder: Path, earlier: Path | None) -> None:
    """Write what the next append goes on from: tables `people` and `requests`, and what `earlier` carried."""
    (folder / FOLDER).mkdir()
    connection.execute(
        f"COPY (SELECT * FROM people ORDER BY part, kind, index) TO {text(str(folder / FOLDER / _PEOPLE))} "
        "(FORMAT parquet, COMPRESSION zstd)"
    )
    known = [_read_requests(earlier)] if earlier is not None else []
    np.save(folder / FOLDER / _REQUESTS, np.sort(np.concatenate([*known, _requests(connection)])), allow_pickle=False)


def known_requests(connection: duckdb.DuckDBPyConnection, earlier: Path) -> int:
    """Rows of table `requests` whose identifier the `earlier` prepared folder has too."""
    known, ours = _read_requests(earlier), _requests(connection)
    if not len(known):
        return 0
    place = np.minimum(np.searchsorted(known, ours), len(known) - 1)
    return int((known[place] == ours).sum())


def _requests(connection: duckdb.DuckDBPyConnection) -> NDArray[np.uint64]:
    """Half of the MD5 of each request's identifier: chance confuses two of a thousand million once in forty logs."""
    if "key" not in columns_of(connection, "requests"):  # those of a user and a moment cannot go on later
        return np.zeros(0, np.uint64)
    codes = fetch(connection, "SELECT md5_number_lower(key) AS code FROM requests")["code"]
    return np.asarray(codes.to_numpy(), dtype=np.uint64)


def _read_requests(folder: Path) -> NDArray[np.uint64]:
    codes: NDArray[np.uint64] = np.load(folder / FOLDER / _REQUESTS, mmap_mode="r", allow_pickle=False)
    return codes
