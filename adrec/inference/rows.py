"""Ads and users as scoring reads them: checked, with the texts that preprocess makes, a row for everyone who is asked about."""

from collections.abc import Collection, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adrec.config.data.preprocess import TextSettings
from adrec.data.arrays import combined
from adrec.data.disk.tables import check_schema
from adrec.data.features import FeatureSet
from adrec.data.prepared import Prepared
from adrec.errors import DataError
from adrec.prepare.text.maker import TextMaker, language_where_written
from adrec.schema import ADS, NOBODY, USER_LANGUAGE, USERS, TableSpec


def with_texts(table: pa.Table, template: str, settings: TextSettings, *, words: bool = False) -> pa.Table:
    """Ads or users with `text`, `segmented` and `language` (`user_language`), made by the template where there is no text.

    A table that has its text is left as it is, but for the `segmented` words where they are asked for.
    """
    has_text = "text" in table.column_names
    if has_text and ("segmented" in table.column_names or not words):
        return table
    of_users = "ad_id" not in table.column_names
    batch = pa.RecordBatch.from_arrays([combined(column) for column in table.columns], names=table.column_names)
    whole, segmented, language = TextMaker(settings).render("{text}" if has_text else template, batch)
    languages = {USER_LANGUAGE: language_where_written(whole, language)} if of_users else {"language": language}
    made = {"segmented": segmented} if has_text else {**languages, "segmented": segmented, "text": whole}
    for name, values in made.items():
        if name not in table.column_names:
            table = table.append_column(name, values)
    return table


def written_titles(ads: pa.Table) -> pa.Array:
    """(A,) titles, empty where an ad has none."""
    if "title" not in ads.column_names:
        return pa.array([""] * len(ads), pa.string())
    return pc.fill_null(combined(ads["title"]).cast(pa.string()), "")


def shown_titles(ads: pa.Table) -> pa.Array:
    """(A,) what people are shown of an ad: its title, else its other text, else its identifier."""
    shown = written_titles(ads)
    for column in ("text", "ad_id"):
        if column in ads.column_names:
            shown = pc.if_else(pc.equal(shown, ""), pc.fill_null(combined(ads[column]).cast(pa.string()), ""), shown)
    return shown


def checked_ads(ads: pa.Table, *, where: str = "ads") -> pa.Table:
    """The ads, strings as plain strings. Raises DataError on a missing or mistyped column, a null or a repeated ad_id."""
    return _checked(ads, ADS, where)


def checked_users(users: pa.Table, *, where: str = "users") -> pa.Table:
    """The users, likewise."""
    return _checked(users, USERS, where)


def refuse_other_spaces(prepared: Prepared, features: Mapping[str, FeatureSet], own: Collection[str] = ()) -> None:
    """Raises DataError where the folder's vectors are not those that a bundle of these `features` reads, but another encoder's.

    Numbers of one width can always be fed in; they would mean something else. `own`: tables that the user brings instead.
    """
    theirs = prepared.features()
    for table in ("ads", "users"):
        held = {item.name: item.space for item in theirs[table].vectors}
        for item in features[table].vectors if table not in own else ():
            if (space := held.get(item.name, item.space)) != item.space:
                raise DataError(
                    f"{prepared.path}: '{item.name}' of the {table} lies in the space '{space}', and the bundle reads "
                    f"'{item.space}': another encoder made it. Run 'adrec preprocess' with the encoder of the bundle, or "
                    "'adrec finetune' on this folder."
                )


def with_new_users(users: pa.Table | None, wanted: pa.Array) -> pa.Table:
    """The users table with a blank row for every user in `wanted` that it lacks; null is `NOBODY`."""
    wanted = pc.fill_null(wanted, NOBODY)
    if users is None:
        return pa.table({"user_id": pc.unique(wanted)})
    lacking = pc.filter(wanted, pc.invert(pc.is_in(wanted, value_set=combined(users["user_id"]))))
    new = pc.unique(lacking)
    if len(new) == 0:
        return users
    return pa.concat_tables([users, pa.table({"user_id": new})], promote_options="default")


def _checked(table: pa.Table, spec: TableSpec, where: str) -> pa.Table:
    check_schema(table.schema, spec, where=where)
    assert spec.key is not None
    ids = combined(table[spec.key]).cast(pa.string())
    if ids.null_count:
        row = int(np.flatnonzero(pc.is_null(ids).to_numpy(zero_copy_only=False))[0])
        raise DataError(f"{where}: row {row + 1}: '{spec.key}' is empty. Every row needs one.")
    counts = pc.value_counts(ids)
    repeated = pc.filter(counts.field(0), pc.greater(counts.field(1), 1))
    if len(repeated):
        raise DataError(f"{where}: {spec.key} '{repeated[0].as_py()}' occurs more than once. Keep one row of each.")
    return table
