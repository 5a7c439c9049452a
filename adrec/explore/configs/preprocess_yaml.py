"""The preprocess config that follows from a guess and a recipe: the source, its columns, gaps to choose, features."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adrec import schema
from adrec.explore.guessing.findings import Gap, Guess
from adrec.explore.look import Column, Table
from adrec.urls import address_of

_LISTED = ("history", "interests")
NEGATIVES = {"per_click": 4, "draw": "uniform"}


class Paths:
    """Paths as the configs write them."""

    def __init__(self, runs: Path, final: Path) -> None:
        self._runs, self._final = runs, final

    def __call__(self, name: str) -> str:
        """What a command writes under `name`."""
        return self.to(self._runs / name)

    def to(self, path: Path | str) -> str:
        """Relative to the configs, or absolute where that would climb far; of what lies elsewhere, its address."""
        address = address_of(path)
        if address is not None:
            return address
        relative = os.path.relpath(path, self._final)
        return str(path) if relative.startswith("../../../") else relative


class Commented:
    """A section as it is put together, with what is written behind its lines and above them."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.behind: dict[str, str] = {}
        self.above: dict[str, list[str]] = {}


def source_of_guess(guess: Guess, paths: Paths, to: Commented) -> dict[str, Any]:
    """The `source` section, and comments on its keys."""
    source: dict[str, Any] = {"format": "tables"}
    for role in ("impressions", "clicks", "conversions", "ads", "users"):
        if role in guess.tables:
            source[role] = _table(guess, role, paths, to)
    _mark_gaps(guess, source, to)
    return source


def _table(guess: Guess, role: str, paths: Paths, to: Commented) -> dict[str, Any]:
    table, names = guess.tables[role], dict(guess.names[role])
    files = _files(table, paths)
    section: dict[str, Any] = {"files": files[0] if len(files) == 1 else files, **table.reading}
    category = guess.column(role, "category")
    first_of = category.name if category is not None and category.is_list else None
    if first_of is not None:
        del names["category"]
    at_least = guess.reading.get(role, {}).get("at_least", {})
    renamed = {ours: theirs for ours, theirs in names.items() if ours != theirs and ours not in at_least}
    if renamed:
        section["columns"] = renamed
        to.behind[f"source.{role}.columns"] = "ours: yours"
    if first_of is not None:
        section["first_of"] = {"category": first_of}
        to.behind[f"source.{role}.first_of"] = "the first of several is the category"
    separator = list_separator(guess, role)
    if separator is not None:
        section["list_separator"] = separator
    section |= _how_to_read_time(guess, role) | guess.reading.get(role, {})
    if "leave_out" in table.reading:
        section["leave_out"] = {**table.reading["leave_out"], **section["leave_out"]}
    if role in guess.joined_on:
        section["on"] = guess.joined_on[role]
        to.behind[f"source.{role}.on"] = "what a row and its impression have in common"
    if role == "impressions":
        _stand_in(guess, section)
    if "at_least" in section:
        to.behind[f"source.{role}.at_least"] = "a click is a rating of at least this"
    if "first_position" in section:
        to.behind[f"source.{role}.first_position"] = "slots are counted from 0 here"
    return section


def _stand_in(guess: Guess, section: dict[str, Any]) -> None:
    """Values for columns that the contract requires and the log has not."""
    names, title = guess.names["impressions"], guess.has("title")
    required = {*schema.IMPRESSIONS.required, *([] if title or "ads" in guess.tables else schema.ADS.required)}
    constants = {"user_id": "anyone", "ad_id": "any", "shown_at": "2020-01-01 00:00:00"}
    defaults = {name: value for name, value in constants.items() if name in required and name not in names}
    if defaults:
        section["defaults"] = {**section.get("defaults", {}), **defaults}
    if "title" in required and not title:
        if "ad_id" in names:
            section["columns"] = {"ad_id": names["ad_id"], **section.get("columns", {}), "title": names["ad_id"]}
        else:
            section["defaults"]["title"] = "any"


def list_separator(guess: Guess, role: str) -> str | None:
    """What separates items of the table's lists that are text: of history and interests first, else of what most have."""
    columns = [guess.column(role, canonical) for canonical in (*_LISTED, "category")]
    named = [column.separator for column in columns if column is not None and column.separator]
    other = [column.separator for column in _feature_lists(guess, role) if column.separator]
    return next(iter([*named, *sorted(other, key=other.count, reverse=True)]), None)


def _feature_lists(guess: Guess, role: str) -> list[Column]:
    """Columns of a table that are list features, whoever they describe."""
    table = guess.tables[role]
    every = {name for kinds in guess.features.values() for name in kinds["lists"]}
    return [column for name, column in table.columns.items() if name in every]


def _how_to_read_time(guess: Guess, role: str) -> dict[str, Any]:
    for canonical in ("shown_at", "clicked_at", "converted_at", "starts_at", "ends_at"):
        column = guess.column(role, canonical)
        if column is not None and column.time:
            return dict(column.time)
    return {}


def _files(table: Table, paths: Paths) -> list[str]:
    """The folder where it holds nothing else, else the files."""
    folder = table.files[0].parent
    if len(table.files) > 3 and not table.parts and all("=" not in file.parent.name for file in table.files):
        same = [file for file in folder.rglob("*") if file.is_file() and not file.name.startswith((".", "_"))]
        if set(same) == set(table.files):
            return [paths.to(folder)]
    return [paths.to(file) for file in table.files]


def _mark_gaps(guess: Guess, source: dict[str, Any], to: Commented) -> None:
    """Each gap is a comment where its column would stand."""
    lines = [line for gap in guess.gaps for line in gap_lines(gap)]
    if lines:
        place = "source.impressions.columns" if "columns" in source["impressions"] else "source.impressions.files"
        to.above.setdefault(place, []).extend(lines)


def gap_lines(gap: Gap) -> list[str]:
    """What to choose, in the config: a line that becomes a key of `columns` when its # goes."""
    if not gap.candidates:
        return [f"CHOOSE {gap.canonical}: no column looks like one; without it {gap.without}"]
    return [
        f"CHOOSE {gap.canonical}: {', '.join(gap.candidates)}? Without it {gap.without}.",
        f"  columns: {{{gap.canonical}: {gap.candidates[0]}}}",
    ]


def features_of_guess(guess: Guess, made: Mapping[str, Any], to: Commented) -> dict[str, Any]:
    """The features of the log's own columns, with those that the recipe adds."""
    features: dict[str, Any] = {}
    for role in ("impressions", "ads", "users"):
        own, more = guess.features[role], made.get(role, {})
        numeric: list[Any] = [
            *more.get("numeric", []),
            *({"column": name, "missing_indicator": True} for name in own["numeric"]),
        ]
        lists = [*(_list(guess, role, name) for name in own["lists"]), *more.get("lists", [])]
        section = {"numeric": numeric, "categorical": list(own["categorical"]), "lists": lists, "vectors": list(own["vectors"])}
        section = {key: value for key, value in section.items() if value}
        if "calendar" in more:
            section["calendar"] = more["calendar"]
        if section:
            features[role] = section
    return features


def _list(guess: Guess, role: str, name: str) -> Any:
    """A list feature; with its separator where that is not the table's."""
    home = role if role in guess.tables and name in guess.tables[role].columns else "impressions"
    column = guess.tables[home].columns.get(name)
    if column is None or not column.separator or column.separator == list_separator(guess, home):
        return name
    return {"column": name, "separator": column.separator}


def template_of(guess: Guess | None) -> str:
    """What of an ad the language model reads."""
    every: Sequence[str] = ("title", "description", "category")
    return " [SEP] ".join(f"{{{name}}}" for name in every if guess is None or guess.has(name) or name == "title")
