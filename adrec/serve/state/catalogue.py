"""The live catalogue: the ads file with what came in since, and users as a batch of requests describes them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adrec.data.arrays import combined, places
from adrec.data.vectors import Vectors
from adrec.inference.click_model import ClickModel
from adrec.inference.rows import with_texts, written_titles
from adrec.prepare.text.clean import language
from adrec.schema import ADS, STRINGS, USER_LANGUAGE, USERS
from adrec.serve.intake.columns import Columns
from adrec.serve.intake.messages import AdIn, UserIn

_MADE = ("text", "segmented", USER_LANGUAGE)
"""Columns of the users that are made of their interests."""
_MOMENTS = ("starts_at", "ends_at")
LINKS = "links"
"""Of a message: what the ad is linked to, whatever the column is called in the log."""
MADE_OF_MEDIA = "pictures"
"""Of a stored ad: fingerprint of an encoder of pictures → the vector that it made of the ad's, whose bytes are not kept."""


class Change(NamedTuple):
    """What became of an ad since the catalogue was read."""

    ad: dict[str, Any] | None
    """as it was put last; None where it was only ever deleted"""
    deleted: bool
    number: int
    """of the change, in the store"""

    def then(self, ad: dict[str, Any] | None, number: int) -> "Change":
        """After a further change. A deleted ad keeps its row: events name it."""
        return Change(self.ad if ad is None else ad, ad is None, number)


UNCHANGED = Change(None, False, 0)


def with_changes(ads: pa.Table, changes: Mapping[str, Change], packed: ClickModel) -> tuple[pa.Table, list[int]]:
    """The ads with changed ones in their old rows and new ones at the end, and the rows of deleted ads."""
    ads = completed(ads, packed)
    ids = combined(ads["ad_id"]).cast(pa.string())
    put = {ad_id: change.ad for ad_id, change in changes.items() if change.ad is not None}
    place = np.arange(len(ads))
    if put:
        added = completed(_table(put, ads.schema, packed), packed)
        old = places(pa.array(list(put), pa.string()), ids)
        rows = len(ads) + np.arange(len(put))
        place[old[old >= 0]] = rows[old >= 0]
        place = np.concatenate([place, rows[old < 0]])
        ads = pa.concat_tables([ads, added], promote_options="default").take(pa.array(place))
        ads = ads.combine_chunks()
    gone = places(pa.array([ad_id for ad_id, change in changes.items() if change.deleted], pa.string()), ads["ad_id"])
    return ads, [int(row) for row in gone[gone >= 0].tolist()]


def vectors_with_changes(
    vectors: Mapping[str, Vectors], ads: pa.Table, changes: Mapping[str, Change], packed: ClickModel
) -> dict[str, Vectors]:
    """The vectors of the catalogue, by column, in the rows that `with_changes` gives the ads; what lies on disk stays there.

    `ads`: the table before the changes.
    """
    put = {ad_id: change.ad for ad_id, change in changes.items() if change.ad is not None}
    own = vectors_of(list(put.values()), packed)
    row = places(pa.array(list(put), pa.string()), combined(ads["ad_id"]).cast(pa.string()))
    row[row < 0] = len(ads) + np.arange(int((row < 0).sum()))
    size = max(len(ads), int(row.max(initial=-1)) + 1)
    return {name: held.with_rows(row, own[name], size) for name, held in vectors.items()}


def vectors_of(put: Sequence[Mapping[str, Any]], packed: ClickModel) -> dict[str, Vectors]:
    """The vectors of ads as they were put, by column; of another width than this bundle reads, or not said: missing."""
    found = {}
    for fitted in packed.features["ads"].vectors:
        given = [(ad.get("vectors") or {}).get(fitted.name) for ad in put]
        for reader in packed.media.values():
            if reader.spec.name == fitted.name:
                encoder = reader.encoder.fingerprint
                given = [own or (ad.get(MADE_OF_MEDIA) or {}).get(encoder) for own, ad in zip(given, put, strict=True)]
        cells = [value if value is not None and len(value) == fitted.width else None for value in given]
        column = pa.array(cells, pa.list_(pa.float32(), fitted.width))
        found[fitted.name] = Vectors.of(column, fitted.width, len(cells), where=fitted.name)
    return found


def ad_of(ad_id: str, ad: dict[str, Any], schema: pa.Schema, packed: ClickModel) -> pa.Table:
    """One ad as a row of the catalogue. Columns that the catalogue lacks stand behind its own."""
    made = completed(_table({ad_id: ad}, schema, packed), packed)
    columns = {field.name: made[field.name].cast(field.type) for field in schema}
    return pa.table({**columns, **{name: made[name] for name in made.column_names if name not in columns}})


def usable(ad: dict[str, Any]) -> bool:
    """Whether a stored ad is one: a row that somebody else wrote must not keep the server from starting."""
    try:
        known = {name: value for name, value in ad.items() if name != MADE_OF_MEDIA}
        AdIn.model_validate({**known, **dict.fromkeys(_MOMENTS)})
        moments = [ad.get(name) for name in _MOMENTS]
        return all(moment is None or (isinstance(moment, int) and 0 <= moment < 1 << 53) for moment in moments)
    except ValueError:
        return False


def completed(ads: pa.Table, packed: ClickModel) -> pa.Table:
    """With `text`, `segmented` and `language`, made where they are missing."""
    ads = with_texts(ads, packed.text.ad_template, packed.text, words=True)
    if "language" not in ads.column_names:
        ads = ads.append_column("language", language(written_titles(ads)))
    return ads


def users_of(known: pa.Table, described: list[UserIn], columns: Columns, packed: ClickModel) -> pa.Table:
    """One row a described user: what is known of them, and over it what the request says, in the cells of `columns`."""
    ids = pa.array([user.user_id for user in described], pa.string())
    row = places(ids, known["user_id"])
    rows = pa.array(row, mask=row < 0)
    table = known.take(rows)
    table = table.set_column(table.column_names.index("user_id"), "user_id", ids)
    says_interests = np.array([user.interests is not None for user in described])
    if says_interests.any():
        said = pa.array([user.interests for user in described], STRINGS)
        table = _said(table, "interests", said, pa.array(says_interests))
    for name in {name for user in described for name in user.features}:
        says = pa.array([name in user.features for user in described])
        table = _said(table, name, columns.array(name, [user.features.get(name) for user in described]), says)
    for words in {reader.spec.interests or "" for reader in packed.media.values()} & set(table.column_names):
        # of other interests than the request says
        nothing = pa.nulls(len(table), table.schema.field(words).type)
        table = _replaced(table, words, pc.if_else(pa.array(says_interests), nothing, combined(table[words])))
    is_new = says_interests | rows.is_null().to_numpy(zero_copy_only=False)
    if not is_new.any():
        return with_texts(table, packed.text.user_template, packed.text, words=True)
    made = [name for name in _MADE if name in table.column_names]
    fresh = with_texts(table.drop_columns(made), packed.text.user_template, packed.text, words=True)
    for name in made:  # the texts of the others stay as they are
        known_of = table[name] if name != USER_LANGUAGE else pc.coalesce(table[name], fresh[name])
        fresh = _replaced(fresh, name, pc.if_else(pa.array(is_new & (name != USER_LANGUAGE)), fresh[name], known_of))
    return fresh


def _said(table: pa.Table, name: str, values: pa.Array, says: pa.Array) -> pa.Table:
    """The table with `values` where a request says them, also before what was known at a moment."""
    kind = table.schema.field(name).type if name in table.column_names else values.type
    before = combined(table[name]) if name in table.column_names else pa.nulls(len(values), kind)
    values = values.cast(kind)
    table = _replaced(table, name, pc.if_else(says, values, before))
    return _replaced(table, USERS.as_of_prefix + name, values)


def _like(values: list[Any], kind: pa.DataType) -> pa.Array:
    """Values as the column's type; those that do not fit are missing."""
    try:
        return pa.array(values, kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.nulls(len(values), kind)


def _replaced(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    if name in table.column_names:
        return table.set_column(table.column_names.index(name), name, values)
    return table.append_column(name, values)


def _table(changes: dict[str, dict[str, Any]], schema: pa.Schema, packed: ClickModel) -> pa.Table:
    """New ads with the columns of the catalogue; columns the message does not know are null."""
    linked = packed.paths.column if packed.paths is not None else None
    made = {"text", "segmented", "language"}
    columns: dict[str, pa.Array] = {"ad_id": pa.array(list(changes), pa.string())}
    for field in schema:
        if field.name in made or field.name == "ad_id":
            continue
        values = [ad.get(LINKS if field.name == linked else field.name) for ad in changes.values()]
        if field.name in {"starts_at", "ends_at"}:
            moments = pa.array(values, pa.int64()).cast(ADS[field.name].type)
            columns[field.name] = moments.cast(field.type)
        else:
            columns[field.name] = _like(values, field.type)
    for name in ("bid", "budget", "category", "advertiser_id"):
        if name not in columns and any(ad.get(name) is not None for ad in changes.values()):
            columns[name] = pa.array([ad.get(name) for ad in changes.values()], ADS[name].type)
    return pa.table(columns)
