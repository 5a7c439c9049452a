"""RecBole's atomic files (Zhao et al. 2021): tab separated, header `name:type`, lists separated by spaces."""

import duckdb

from adrec.config.data.sources import RecboleSource
from adrec.data.disk.engine import columns_of, name
from adrec.errors import DataError
from adrec.prepare.sources.base import RawTable, RawTables, Reading
from adrec.prepare.sources.files import find_files, read_files

_GUESSES = {
    "user_id": ("user_id",),
    "ad_id": ("item_id", "ad_id"),
    "shown_at": ("timestamp", "time"),
    "click": ("label",),
    "rating": ("rating",),
    "title": ("title", "movie_title", "name", "item_name"),
    "category": ("class", "category", "categories", "genre", "item_category"),
    "entity_id": ("entity_id",),
    "head": ("head_id",),
    "relation": ("relation_id",),
    "tail": ("tail_id",),
}
_DEFAULTS = {"link": {"relation": "is"}}
"""An item of a .link file is its entity."""
_TYPES = {"token": "string", "token_seq": "list", "float": "number", "float_seq": "list"}


def open_recbole(connection: duckdb.DuckDBPyConnection, config: RecboleSource, skip: int = 0) -> RawTables:
    """Without a label, a rating of at least `positive_rating` is a click. The first of several classes is the category."""
    inter = _open(connection, config, "inter", "raw_impressions", ("user_id", "ad_id", "shown_at", "click", "rating"))
    item = _open(connection, config, "item", "raw_ads", ("ad_id", "title", "category"))
    user = _open(connection, config, "user", "raw_users", ("user_id",))
    ad_links = _open(connection, config, "link", "raw_ad_links", ("ad_id", "entity_id"))
    links = _open(connection, config, "kg", "raw_links", ("head", "relation", "tail"))
    if inter is None:
        raise DataError(f"{config.folder}: holds no .inter file. Name the folder of a RecBole data set.")
    found = columns_of(connection, "raw_impressions")
    if "click" not in found and "rating" in found:
        rating = "try_cast(rating AS DOUBLE)"
        click = f"CASE WHEN {rating} >= {config.positive_rating!r} THEN 1 WHEN {rating} IS NOT NULL THEN 0 END AS click"
        connection.execute(f"CREATE OR REPLACE TEMP VIEW rated_impressions AS SELECT *, {click} FROM raw_impressions")
        inter = RawTable("rated_impressions", inter.files, inter.reading)
    return RawTables(impressions=inter, ads=item, users=user, ad_links=ad_links, links=links)


def _open(
    connection: duckdb.DuckDBPyConnection, config: RecboleSource, ending: str, view: str, canonical: tuple[str, ...]
) -> RawTable | None:
    files = sorted(config.folder.glob(f"*.{ending}"))
    if not files:
        return None
    if len(files) > 1:
        raise DataError(
            f"{config.folder}: holds several .{ending} files ({files[0].name}, {files[1].name}). Keep one data set a folder."
        )
    read_files(connection, f"{view}_file", find_files(str(files[0])), format="tsv", quote="")
    typed = [column for column in columns_of(connection, f"{view}_file") if not column.startswith("source_")]
    fields = {column.partition(":")[0]: column for column in typed}
    kinds = {field: _TYPES.get(column.partition(":")[2], "string") for field, column in fields.items()}
    chosen = {ours: config.columns[ours] for ours in canonical if ours in config.columns}
    for ours in canonical:
        guess = next((field for field in _GUESSES[ours] if field in fields), None)
        if ours not in chosen and guess is not None:
            chosen[ours] = guess
    missing = [theirs for theirs in chosen.values() if theirs not in fields]
    if missing:
        raise DataError(f"{files[0]}: field '{missing[0]}' is missing. Fields: {', '.join(fields)}. Mend source.columns.")
    selected = [f"{_cell(name(fields[theirs]), kinds[theirs], ours)} AS {name(ours)}" for ours, theirs in chosen.items()]
    others = [field for field in fields if field not in chosen.values() and field not in chosen]
    selected += [f"{name(fields[field])} AS {name(field)}" for field in others]
    selected += ["source_file", "source_row", "source_order"]
    connection.execute(f"CREATE OR REPLACE TEMP VIEW {view} AS SELECT {', '.join(selected)} FROM {view}_file")
    types = {field: kinds[field] for field in others}
    reading = Reading(
        time_unit="seconds", list_separator=" ", types=types, own_names={o: fields[t] for o, t in chosen.items()},
        defaults=_DEFAULTS.get(ending, {}),
    )  # fmt: skip
    return RawTable(view, tuple(files), reading)


def _cell(cell: str, kind: str, ours: str) -> str:
    return f"string_split({cell}, ' ')[1]" if kind == "list" and ours == "category" else cell
