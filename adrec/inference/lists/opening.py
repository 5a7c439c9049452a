"""A ranker from the config of `adrec rank`: its catalogue, its users, and what is known of their past.

The command makes one, and so does each worker of a cluster, from the same files.
"""

from pathlib import Path

import pyarrow as pa

from adrec.bundle import open_bundle
from adrec.config.inference.rank import Policy, RankConfig
from adrec.data.arrays import combined
from adrec.data.disk.tables import iter_batches, open_dataset, read_table
from adrec.data.prepared import Prepared
from adrec.inference.catalogs import Catalogs
from adrec.inference.known import Known, known_of, users_named
from adrec.inference.lists.ranker import Ranker
from adrec.inference.lists.requests import REQUESTS
from adrec.inference.lists.rerank import open_rerank
from adrec.inference.own_tables import OwnTables, stage_own, with_described
from adrec.inference.predictor import Predictor
from adrec.inference.rows import with_new_users
from adrec.schema import NOBODY, USERS


def make_ranker(config: RankConfig, prepared: Prepared | None, predictor: Predictor, own: OwnTables) -> Ranker:
    """A ranker over the config's catalogue. Raises DataError where a table breaks the contract, ConfigError for the
    re-ranker of another bundle.
    """
    ads = read_table(own.ads) if own.ads is not None else of(prepared).ads()
    asked = _asked_users(config, prepared, own)
    users = _users(config, prepared, predictor, asked, own)
    catalogs = predictor.catalogs(ads, users, where=config.ads.name if config.ads is not None else str(config.prepared))
    known = _known(config, prepared, catalogs, asked, own)
    fingerprint = "" if config.rerank is None else open_bundle(config.bundle, verify=False).fingerprint
    return Ranker(
        predictor, catalogs, ads, users, policies_of(config), always=config.policy, known=known, seed=config.seed,
        rerank=open_rerank(config.rerank, config.device, fingerprint),
    )  # fmt: skip


def policies_of(config: RankConfig) -> dict[str, Policy]:
    """Its policies, with the list length that was asked for."""
    if config.top_n is None:
        return config.policies
    changed = {}
    for name, policy in config.policies.items():
        values = policy.model_dump()
        values["top_n"] = config.top_n
        values["retrieval"]["candidates"] = max(config.top_n, policy.retrieval.candidates)
        changed[name] = Policy.model_validate(values)
    return changed


def of(prepared: Prepared | None) -> Prepared:
    """The prepared folder, where the config must have one."""
    assert prepared is not None, "the config asks for 'prepared' wherever a table is not given"
    return prepared


def everyone(prepared: Prepared | None, own: OwnTables) -> pa.Table:
    """The users that `split: users` ranks once each: those of the config's own table, if it has one."""
    return read_table(own.users) if own.users is not None else of(prepared).users()


def own_tables(config: RankConfig, prepared: Prepared | None, predictor: Predictor, folder: Path) -> OwnTables:
    """The tables of the config, typed, in `folder`."""
    tables = {"ads": config.ads, "users": config.users, "history": config.history, "requests": config.requests}
    return stage_own(
        predictor.packed.form, predictor.packed.features, folder, tables,
        rows="requests", spec=REQUESTS, columns=config.columns, prepared=prepared,
    )  # fmt: skip


def _users(config: RankConfig, prepared: Prepared | None, predictor: Predictor, asked: pa.Array, own: OwnTables) -> pa.Table:
    """The users table with a row for everyone in the requests."""
    users = read_table(own.users) if own.users is not None else prepared.users() if prepared is not None else None
    return with_new_users(with_described(users, own.row_users, USERS, predictor.packed), asked)


def _asked_users(config: RankConfig, prepared: Prepared | None, own: OwnTables) -> pa.Array:
    """Everyone who has a request."""
    if own.rows is not None:
        named = "user_id" in open_dataset(own.rows).schema.names
        batches = iter_batches(own.rows, columns=["user_id"]) if named else iter(())
    elif config.split == "users":
        return combined(everyone(prepared, own)["user_id"])
    else:
        named = "user_id" in of(prepared).columns
        batches = of(prepared).iter(config.split, ["user_id"]) if named else iter(())
    users = pa.array([] if named else [NOBODY], pa.string())
    for batch in batches:
        users = pa.concat_arrays([users, users_named(pa.Table.from_batches([batch]))]).unique()
    return users


def _known(config: RankConfig, prepared: Prepared | None, catalogs: Catalogs, asked: pa.Array, own: OwnTables) -> Known:
    """What the prepared folder's log knows, and the click log of the config before it."""
    clicks = read_table(own.history) if own.history is not None else None
    where = config.history.name if config.history is not None else "history"
    mine = [name for name in ("ads", "users") if getattr(config, name) is not None]
    return known_of(prepared, catalogs.ad_table, clicks, asked_users=asked, where=where, own=mine)
