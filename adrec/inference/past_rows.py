"""Point-in-time counters for the user's own rows, from what preprocess carried over in the prepared folder."""

import pyarrow as pa
import pyarrow.compute as pc

from adrec.asof.reader import PastReader
from adrec.data.arrays import places
from adrec.data.prepared import Prepared


def open_past(
    prepared: Prepared, ads: pa.Table, users: pa.Table | None, ad_ids: pa.Array, user_ids: pa.Array
) -> PastReader | None:
    """What gives counters to rows that point into `ad_ids` and `user_ids`; None where the folder has no counters.

    `ads` and `users` are tables with those ids (in any order; some may be absent), of which counters read columns.
    Raises DataError when the carried state is broken.
    """
    config = prepared.config
    folder = prepared.path / "past"
    if config is None or not config.counters or not folder.is_dir():
        return None
    own_ads, own_users = prepared.ads(), prepared.users()
    return PastReader(
        folder,
        counters=prepared.counters(),
        history=config.history,
        ads=_in_order(ads, "ad_id", ad_ids),
        users=_in_order(users if users is not None else own_users, "user_id", user_ids),
        known_ads=places(ad_ids, own_ads["ad_id"]),
        known_users=places(user_ids, own_users["user_id"]),
    )


def _in_order(table: pa.Table, key: str, ids: pa.Array) -> pa.Table:
    """The rows of `ids`; all null where the table lacks one."""
    found = pc.index_in(ids.cast(pa.string()), value_set=table[key].cast(pa.string()).combine_chunks())
    return table.take(found).set_column(table.column_names.index(key), key, ids.cast(pa.string()))
