"""The user's own tables, made ready for a bundle: each read once into a typed Parquet file of a work folder, in file order.

Of a wide log, whose rows carry their ads and users, new rows do so too: what they say of an ad or a user that no table knows is
its description, as preprocess would have taken it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from adrec.config.data.own_tables import OwnFiles
from adrec.data.arrays import combined
from adrec.data.disk.engine import columns_of, fetch, name, open_memory_engine, parquet
from adrec.data.disk.tables import iter_batches, parquet_schema, read_table, write_table
from adrec.data.disk.writing import write_aside
from adrec.data.features import FeatureSet
from adrec.data.media.files import absolute
from adrec.data.prepared import Prepared
from adrec.errors import DataError, concealed
from adrec.inference.click_model import ClickModel
from adrec.inference.known import CLICKS
from adrec.inference.rows import with_texts
from adrec.prepare.log.unnamed import users_of_requests
from adrec.prepare.own_files import LogForm, TableForm, files_of, stage_file
from adrec.prepare.staging.roles import Roles, roles_of_features
from adrec.schema import ADS, IMPRESSIONS, USERS, Column, TableSpec, as_of_column
from adrec.specs import WORDS

_CLICKS = TableSpec("history", (*CLICKS.columns, IMPRESSIONS["click"]))


class OwnTables(NamedTuple):
    """Typed Parquet files; None where the user gave no such table."""

    rows: Path | None = None
    ads: Path | None = None
    users: Path | None = None
    history: Path | None = None
    row_ads: Path | None = None
    """ads that the rows themselves describe"""
    row_users: Path | None = None


def stage_own(
    form: LogForm,
    features: Mapping[str, FeatureSet],
    folder: Path,
    tables: Mapping[str, OwnFiles | None],
    *,
    rows: str = "impressions",
    spec: TableSpec = IMPRESSIONS,
    columns: Mapping[str, str | list[str]] | None = None,
    prepared: Prepared | None = None,
) -> OwnTables:
    """Read `tables` (`ads`, `users`, `history` and the one called `rows`, which holds `spec`) into `folder`.

    Files that are there already are kept, so that a run which was killed goes on. `columns` are the config's for the rows.
    Raises DataError for what cannot be read, and for rows of ads that neither the ads nor `prepared` know.
    """
    staged: dict[str, Path] = {}
    for label, wanted in (("ads", ADS), ("users", USERS), ("history", _CLICKS)):
        table = tables.get(label)
        if table is not None:
            staged[label] = folder / f"{label}.parquet"
            is_new = not staged[label].exists()
            roles = roles_of_features(features[label].spec) if label in features else None
            _stage(table, staged[label], wanted, form, "impressions" if label == "history" else label, key=label, roles=roles)
            if label == "ads" and is_new:
                _lead_from(staged[label], form.media, files_of(table)[0].parent)
    table = tables.get(rows)
    if table is None:
        return OwnTables(**staged)
    carried = {label: names for label, names in form.carried.items() if label not in staged}
    ids = _known_ads(staged.get("ads"), prepared, is_wide="ads" in carried) if rows == "impressions" else None
    staged["rows"] = folder / f"{rows}.parquet"
    roles = roles_of_features(features["impressions"].spec)
    _stage(
        table, staged["rows"], _with_carried(form.needed_by(spec), carried), form, "impressions",
        key=rows, roles=roles, columns=columns, known_ads=ids,
    )  # fmt: skip
    if rows == "impressions":  # of a table of requests each row is one by itself
        _name_users(staged["rows"])
    for described in (ADS, USERS):
        made = _described_by_rows(staged["rows"], described, carried.get(described.name, ()), folder)
        if made is not None:
            staged[f"row_{described.name}"] = made
            if described is ADS:
                _lead_from(made, form.media, files_of(table)[0].parent)
    names_ads = "ad_id" in parquet_schema(staged["rows"]).names
    if rows == "impressions" and names_ads and prepared is None and not {"ads", "row_ads"} & set(staged):
        raise DataError(
            f"{table.name}: says nothing of its ads but their ids. Name a file of `ads`, or the `prepared` folder that has "
            "them."
        )
    return OwnTables(**staged)


def read_own(
    form: LogForm, features: Mapping[str, FeatureSet], folder: Path, tables: Mapping[str, OwnFiles | None]
) -> dict[str, pa.Table]:
    """Those of `ads`, `users` and `history` that there are, whole, read through `folder` as `stage_own` does."""
    staged = stage_own(form, features, folder, tables)
    return {label: read_table(file) for label, file in staged._asdict().items() if file is not None}


def with_described(table: pa.Table | None, described: Path | None, spec: TableSpec, packed: ClickModel) -> pa.Table | None:
    """The ads or users of a table, and behind them those that rows describe and it lacks, with their texts."""
    if described is None:
        return table
    text = packed.text
    template = text.ad_template if spec is ADS else text.user_template
    new = read_table(described)
    if table is not None:
        assert spec.key is not None
        known = combined(table[spec.key]).cast(pa.string())
        new = new.filter(pc.invert(pc.is_in(new[spec.key].cast(pa.string()), value_set=known)))
        if new.num_rows == 0:
            return table
    words = WORDS in packed.features[spec.name].columns
    if table is None or "text" in table.column_names:
        new = with_texts(new, template, text, words=words)
    return new if table is None else pa.concat_tables([table, new], promote_options="permissive")


def as_of_rows(rows: pa.Table, columns: list[str], form: LogForm) -> pa.Table:
    """The rows with those `columns` (`ad@price`) that hold what a wide row says of its ad or user (`price`)."""
    for column in columns:
        found = as_of_column(column)
        if found is None or column in rows.column_names:
            continue
        spec, told = found
        if spec.name in form.carried and told in rows.column_names:
            rows = rows.append_column(column, rows[told])
    return rows


def _stage(
    table: OwnFiles,
    target: Path,
    spec: TableSpec,
    form: LogForm,
    label: str,
    *,
    key: str,
    roles: Roles | None,
    columns: Mapping[str, str | list[str]] | None = None,
    known_ads: pa.Array | None = None,
) -> None:
    if target.exists():
        return
    with concealed(form.pseudonymised or form.mask_contacts):
        stage_file(
            table, target, spec, form.tables.get(label, TableForm()),
            key=key, columns=columns, roles=roles, privacy=form.privacy(), known_ads=known_ads,
        )  # fmt: skip


def _lead_from(file: Path, columns: Sequence[str], root: Path) -> None:
    """Names of pictures and sounds in a typed file of ads lead from the folder of the user's own file."""
    for column in set(columns) & set(parquet_schema(file).names):
        table = read_table(file)
        place = table.column_names.index(column)
        write_table(table.set_column(place, column, absolute(combined(table[column]), root)), file)


def _known_ads(ads: Path | None, prepared: Prepared | None, *, is_wide: bool) -> pa.Array | None:
    """Ids that every row's ad must be among; None where rows bring their own."""
    if ads is not None:
        return combined(read_table(ads, columns=["ad_id"])["ad_id"])
    return combined(prepared.ads()["ad_id"]) if prepared is not None and prepared.has.ad and not is_wide else None


def _with_carried(spec: TableSpec, carried: Mapping[str, tuple[str, ...]]) -> TableSpec:
    """The rows' contract with the columns of ads and users that they may bring along."""
    added: list[Column] = []
    for other in (ADS, USERS):
        names = [name for name in carried.get(other.name, ()) if name in other and name not in spec]
        added += [Column(name, other[name].type, False, other[name].meaning, other[name].role) for name in names]
    return TableSpec(spec.name, (*spec.columns, *added), spec.key)


def _name_users(rows: Path) -> None:
    """Rows that do not say whose they are get the user whom others of their request name, as in preprocess."""
    schema = parquet_schema(rows)
    if not {"user_id", "request_id"} <= set(schema.names) or not _has_nulls(rows, "user_id"):
        return
    with open_memory_engine() as connection:
        known = fetch(connection, users_of_requests(parquet(rows)))
    if not len(known):
        return
    with write_aside(rows) as aside, pq.ParquetWriter(aside, schema, compression="lz4") as writer:
        for batch in iter_batches(rows):
            theirs = known["user_id"].take(pc.index_in(batch["request_id"], value_set=combined(known["request_id"])))
            users = pc.coalesce(batch["user_id"], combined(theirs))
            writer.write_batch(batch.set_column(schema.get_field_index("user_id"), schema.field("user_id"), users))


def _has_nulls(file: Path, column: str) -> bool:
    """By what the file says of its row groups."""
    metadata = pq.read_metadata(file)
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    pieces = [group.column(number) for group in groups for number in range(group.num_columns)]
    return any(piece.statistics is None or piece.statistics.null_count for piece in pieces if piece.path_in_schema == column)


def _described_by_rows(rows: Path, spec: TableSpec, columns: tuple[str, ...], folder: Path) -> Path | None:
    """A file of what `rows` say of each ad or user: of every column the last value given, in time. None where nothing."""
    found = parquet_schema(rows).names
    wanted = [column for column in columns if column in found]
    if not wanted or spec.key not in found:
        return None
    target = folder / f"row_{spec.name}.parquet"
    if not target.exists():
        with open_memory_engine() as connection:
            source = parquet(rows, options="file_row_number = true")
            moment = "shown_at, " if "shown_at" in columns_of(connection, f"(SELECT * FROM {source})") else ""
            last = ", ".join(f"arg_max({name(column)}, ({moment}file_row_number)) AS {name(column)}" for column in wanted)
            query = (
                f"SELECT {spec.key}, {last} FROM {source} WHERE {spec.key} IS NOT NULL GROUP BY 1 ORDER BY min(file_row_number)"
            )
            write_table(fetch(connection, query), target)
    return target
