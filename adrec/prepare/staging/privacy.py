"""What of a person may reach the output: pseudonyms, masked contacts, k-anonymous users.

Pseudonyms are HMAC-SHA256 (RFC 2104), computed inside the engine so that raw ids are never stored. Without the key they
can neither be reversed nor be recomputed from a list of known ids.
"""

import hashlib
import hmac
import os
import re
from collections.abc import Callable
from typing import Any

import duckdb
import pyarrow as pa
from duckdb.func import FunctionNullHandling, PythonUDFType

from adrec.config.data.preprocess import PrivacySettings, Quasi
from adrec.data.arrays import ends, lengths_of
from adrec.data.disk.engine import columns_of, name, one_row, text
from adrec.errors import ConfigError, DataError
from adrec.prepare.staging.forgotten import Forgotten
from adrec.prepare.text.contacts import masked
from adrec.schema import Role, TableSpec

KEY_VARIABLE = "ADREC_PRIVACY_KEY"

_SHORTEST_KEY = 16
_BLOCK = 64
_PSEUDONYM = re.compile("[0-9a-f]{64}")
_FORGOTTEN = "adrec_forgotten"
_MASK = "adrec_masked"
"""Name of the engine's function that masks a text."""


class Privacy:
    """Wraps the SQL of a cell while it is read."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, settings: PrivacySettings) -> None:
        """Raises ConfigError where a key is needed and there is none."""
        self._settings = settings
        self.forgotten = Forgotten.load(settings.forgotten) if settings.forgotten is not None else None
        if self.forgotten is not None:
            connection.register(_FORGOTTEN, pa.table({"digest": pa.array(sorted(self.forgotten.digests), pa.string())}))
        if settings.mask_contacts:
            _register_mask(connection, tuple(settings.phone_regions))
        if settings.pseudonymise:
            key = load_key(settings)
            key = hashlib.sha256(key).digest() if len(key) > _BLOCK else key
            padded = key.ljust(_BLOCK, b"\0")
            # Variables, not literals: the text of a query may end up in a message.
            connection.execute("SET VARIABLE adrec_inner = ?", [bytes(byte ^ 0x36 for byte in padded)])
            connection.execute("SET VARIABLE adrec_outer = ?", [bytes(byte ^ 0x5C for byte in padded)])

    def hidden(self, spec: TableSpec) -> tuple[str, ...]:
        """Columns of a table whose values no message may show."""
        return tuple(column.name for column in spec.columns if column.role == "person" and self._settings.pseudonymise)

    def remembered(self, user_id: str) -> str | None:
        """SQL of whether the user of a row, whose id as it is kept is `user_id`, is none of those to be left out."""
        if self.forgotten is None or not self.forgotten.digests:
            return None
        digest = f"sha256({text(self.forgotten.salt)} || {user_id})"
        return f"({user_id} IS NULL OR {digest} NOT IN (SELECT digest FROM {_FORGOTTEN}))"

    def wrapper(self, spec: TableSpec) -> Callable[[str, str, str], str]:
        """`wrap(column, sql, type)`: SQL of the value of a table's column that may be kept. Null stays null."""
        roles: dict[str, Role] = {column.name: column.role for column in spec.columns} | {"source_file": "id"}
        return lambda column, sql, kind: self._wrapped(roles.get(column, "text"), sql, kind)

    def _wrapped(self, role: Role, sql: str, kind: str) -> str:
        if role == "person" and self._settings.pseudonymise:
            inner = f"unhex(sha256(getvariable('adrec_inner') || encode({sql})))"
            return f"sha256(getvariable('adrec_outer') || {inner})"
        if role != "text" or not self._settings.mask_contacts:
            return sql
        if kind == "VARCHAR":
            return f"{_MASK}({sql})"
        return f"{_MASK}_each({sql})" if kind == "VARCHAR[]" else sql


def load_key(settings: PrivacySettings) -> bytes:
    """The key from the file or the environment. Raises ConfigError where it is missing or short; never shows it."""
    if settings.key_file is not None:
        try:
            key = settings.key_file.read_bytes().strip()
        except OSError as error:
            raise ConfigError(f"privacy.key_file: {settings.key_file} cannot be read ({error.strerror}).") from None
        where = f"privacy.key_file {settings.key_file}"
    else:
        key = os.environ.get(KEY_VARIABLE, "").encode()
        where = f"environment variable {KEY_VARIABLE}"
    if len(key) < _SHORTEST_KEY:
        raise ConfigError(
            f"privacy: the {where} holds {len(key)} bytes, at least {_SHORTEST_KEY} are needed. "
            "Make a key with: openssl rand -hex 32"
        )
    return key


def pseudonym(identifier: str, key: bytes) -> str:
    """As the engine makes them; one that is a pseudonym already stays."""
    if _PSEUDONYM.fullmatch(identifier):
        return identifier
    return hmac.digest(key, identifier.encode(), "sha256").hex()


def is_pseudonym(identifier: str) -> bool:
    """Whether it looks like one."""
    return _PSEUDONYM.fullmatch(identifier) is not None


def protect_users(connection: duckdb.DuckDBPyConnection, quasi: Quasi) -> dict[str, Any]:
    """Make table `users` k-anonymous in `quasi.columns` (null is a value). Returns what was measured, before and after.

    Raises DataError where there are fewer users than k.
    """
    unknown = [column for column in (*quasi.columns, *quasi.sensitive) if column not in columns_of(connection, "users")]
    if unknown:
        raise DataError(f"privacy.k_anonymity: the users have no column '{unknown[0]}'. Name columns of the users table.")
    before = _measure(connection, quasi)
    report = {"k": quasi.k, "columns": list(quasi.columns), "enforce": quasi.enforce, "before": before}
    if quasi.enforce == "measure" or before["smallest"] >= quasi.k:
        return report | {"after": before} | _sensitive(connection, quasi)
    if before["users"] < quasi.k:
        raise DataError(f"privacy.k_anonymity: {before['users']} users can never be in groups of {quasi.k}. Lower k.")
    hidden = list(reversed(quasi.columns)) if quasi.enforce == "generalise" else []
    for column in hidden:
        _empty(connection, quasi, [column])
    while _measure(connection, quasi)["smallest"] < quasi.k:
        _empty(connection, quasi, quasi.columns)
        if _measure(connection, quasi)["smallest"] < quasi.k:
            _join_smallest(connection, quasi)
    return report | {"after": _measure(connection, quasi)} | _sensitive(connection, quasi)


def _measure(connection: duckdb.DuckDBPyConnection, quasi: Quasi) -> dict[str, int]:
    groups = f"SELECT count(*) AS n FROM users GROUP BY {_listed(quasi)}"
    found = one_row(
        connection,
        "SELECT min(n) AS smallest, count(*) AS groups, sum(n) AS users, "
        f"coalesce(sum(n) FILTER (n < {quasi.k}), 0) AS exposed FROM ({groups})",
    )
    values = " + ".join(f"count({name(column)})" for column in quasi.columns)
    return {key: int(value or 0) for key, value in found.items()} | {
        "values": int(one_row(connection, f"SELECT {values} AS n FROM users")["n"])
    }


def _sensitive(connection: duckdb.DuckDBPyConnection, quasi: Quasi) -> dict[str, Any]:
    """Of each sensitive column l and t over the groups as they are now; null is a value. Empty where there are none."""
    by, found = _listed(quasi), {}
    for column in quasi.sensitive:
        value = name(column)
        measured = one_row(
            connection,
            f"WITH cells AS (SELECT {by}, {value} AS value, count(*) AS n FROM users GROUP BY {by}, {value}), "
            f"shares AS (SELECT value, sum(n) / sum(sum(n)) OVER () AS share FROM cells GROUP BY value), "
            f"parts AS (SELECT cells.*, n / sum(n) OVER (PARTITION BY {by}) AS own, share FROM cells "
            "JOIN shares ON cells.value IS NOT DISTINCT FROM shares.value) "
            "SELECT min(l) AS l, max(t) AS t FROM (SELECT count(*) AS l, (sum(abs(own - share)) + 1 - sum(share)) / 2 AS t "
            f"FROM parts GROUP BY {by})",
        )
        found[column] = {"l": int(measured["l"] or 0), "t": float(measured["t"] or 0.0)}
    return {"sensitive": found} if found else {}


def _empty(connection: duckdb.DuckDBPyConnection, quasi: Quasi, columns: list[str]) -> None:
    """Empty `columns` in groups that are too small."""
    emptied = ", ".join(f"{name(column)} = NULL" for column in columns)
    connection.execute(
        f"UPDATE users SET {emptied} WHERE user_index IN (SELECT user_index FROM "
        f"(SELECT user_index, count(*) OVER (PARTITION BY {_listed(quasi)}) AS n FROM users) WHERE n < {quasi.k})"
    )


def _join_smallest(connection: duckdb.DuckDBPyConnection, quasi: Quasi) -> None:
    """Users without any value are too few: the smallest other group joins them."""
    some = " OR ".join(f"{name(column)} IS NOT NULL" for column in quasi.columns)
    emptied = ", ".join(f"{name(column)} = NULL" for column in quasi.columns)
    matches = " AND ".join(f"users.{name(column)} IS NOT DISTINCT FROM g.{name(column)}" for column in quasi.columns)
    connection.execute(
        f"UPDATE users SET {emptied} FROM (SELECT {_listed(quasi)}, count(*) AS n FROM users WHERE {some} "
        f"GROUP BY {_listed(quasi)} ORDER BY n, {_listed(quasi)} LIMIT 1) g WHERE {matches}"
    )


def _listed(quasi: Quasi) -> str:
    return ", ".join(name(column) for column in quasi.columns)


def _register_mask(connection: duckdb.DuckDBPyConnection, regions: tuple[str, ...]) -> None:
    """Give the engine the functions that mask texts, and lists of them."""
    known = f"SELECT count(*) AS n FROM duckdb_functions() WHERE function_name = {text(_MASK)}"
    if one_row(connection, known)["n"]:
        return

    def each(lists: pa.ChunkedArray | pa.ListArray) -> pa.Array:
        whole = lists.combine_chunks() if isinstance(lists, pa.ChunkedArray) else lists
        items = masked(whole.flatten(), regions)
        return pa.ListArray.from_arrays(pa.array(ends(lengths_of(whole)), pa.int32()), items, mask=whole.is_null())

    arrow, special = PythonUDFType.ARROW, FunctionNullHandling.SPECIAL
    connection.create_function(
        _MASK, lambda texts: masked(texts, regions), ["VARCHAR"], "VARCHAR", type=arrow, null_handling=special
    )
    connection.create_function(f"{_MASK}_each", each, ["VARCHAR[]"], "VARCHAR[]", type=arrow, null_handling=special)
