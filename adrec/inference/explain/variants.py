"""One row with some of what is known taken away, scored by the whole bundle: network, trees and calibration.

What is taken away is gone as it would be from a log: a word from the text (which is encoded anew), a click from the history,
the interests or the query as a whole, and a feature as if its value were missing. The candidate gets a row of its own in a
catalogue of the variants, so that a past click on the same ad stays what it is. Nothing shared is changed: arrays are copied,
modules only read, and vectors of altered texts reach no cache.

# N variants, P inputs, H clicks, S skipped ads, W stretches of the text, L items of a list
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from adrec.data.arrays import ends
from adrec.data.batches.collate import Texts
from adrec.data.examples import Catalog, Examples
from adrec.data.features import FeatureSet
from adrec.data.features.vectors import Modality
from adrec.data.ragged import Ragged
from adrec.data.vectors import Vectors
from adrec.inference.catalogs import Catalogs
from adrec.inference.click_model import Scores
from adrec.inference.explain.names import shown_category
from adrec.inference.explain.words import special_tokens, stretches, without
from adrec.inference.predictor import Predictor
from adrec.models.text.text_vectors import TextReader
from adrec.schema import USER_LANGUAGE
from adrec.specs import WORDS

INTERESTS = "interests"
_NO_ID = "adrec: an id that nobody has"
TABLES = ("impressions", "ads", "users")
Present = NDArray[np.bool_]


@dataclass(frozen=True)
class Input:
    """Something known of a row that can be taken away by itself."""

    kind: str
    """word, click, skipped, interests, query, vector or feature"""
    name: str
    value: str
    group: str
    """Inputs of a group are put in place one after the other: text, history, interests, query, impressions, ads, users."""
    atoms: tuple[tuple[str, int], ...]
    """What goes with it: (array, column)."""
    deviation: float | None = None
    """of a number: how many deviations above the mean of the training rows"""


class Variants:
    """The inputs of one row, and what the bundle says of the row with any of them taken away."""

    def __init__(self, predictor: Predictor, catalogs: Catalogs, row: Examples, reader: TextReader) -> None:
        """`row` holds one row over `catalogs`; `reader` encodes altered texts and keeps none."""
        self.predictor, self.catalogs, self.row, self.reader = predictor, catalogs, row, reader
        predictor.encode(row, catalogs)
        self.ad, self.user = int(row.ad_index[0]), int(row.user_index[0])
        self.features = predictor.packed.features
        self.text = str(catalogs.ads.texts[self.ad].as_py())
        encoder = predictor.packed.encoder
        listed = WORDS in catalogs.ads.lists
        special = special_tokens(encoder.tokenizer) if encoder is not None else ()
        self.spans = stretches(self.text, special) if encoder is not None or listed else []
        self.blank = {name: _blank(fitted) for name, fitted in self.features.items()}
        """name of a table → its numbers (Fn,) where all are missing"""
        self.inputs = list(self._inputs())

    @property
    def groups(self) -> list[NDArray[np.int64]]:
        """Numbers of the inputs of each group."""
        names = [item.group for item in self.inputs]
        return [np.array([i for i, name in enumerate(names) if name == group]) for group in dict.fromkeys(names)]

    def scores(self, present: Present) -> Scores:
        """What the bundle says of N variants that have the inputs of `present` (N, P)."""
        keep = self._kept(present)
        examples, before = self._examples(keep)
        catalogs = replace(self.catalogs, **self._ads(keep, before), **self._users(keep))
        return self.predictor.score_examples(examples, catalogs, baselines=False)

    def scores_of_others(self, present: Present, ads: NDArray[np.integer]) -> Scores:
        """The same of the same user and moment, with the ads `ads` (N,) of the catalogue, as they are, as candidates."""
        keep = self._kept(present)
        examples, before = self._examples(keep)
        distinct, which = np.unique(ads, return_inverse=True)
        used = np.concatenate([before, distinct.astype(np.int64)])
        texts = self.catalogs.ad_texts(used)
        catalog = self.catalogs.ads.take(used)
        if texts.vectors is not None:
            catalog = catalog.with_vectors(texts.vectors.numpy())
        examples = replace(examples, ad_index=(len(before) + which.reshape(-1)).astype(np.int32))
        given = _given(catalog.vectors) if texts.vectors is not None else lambda rows: Texts(None)
        catalogs = replace(self.catalogs, ads=catalog, ad_texts=given, **self._users(keep))
        return self.predictor.score_examples(examples, catalogs, baselines=False)

    def scores_with(self, modality: str, vectors: NDArray[np.float32]) -> Scores:
        """The same of N rows like this one, whose candidates have `vectors` (N, D), as they were encoded, as `modality`."""
        keep = self._kept(np.ones((len(vectors), len(self.inputs)), bool))
        examples, before = self._examples(keep)
        made = self._ads(keep, before)
        held = made["ads"].modalities[modality]
        rows = np.arange(len(before), len(before) + len(vectors))
        own = Vectors(vectors, vectors[:0], np.arange(len(vectors)))
        # Missing first: one place that came later would else be written by all of them.
        gone = np.isin(np.arange(len(held.vectors)), rows)
        changed = held._replace(vectors=held.vectors.without(gone).with_rows(rows, own, len(held.vectors)))
        made["ads"] = replace(made["ads"], modalities={**made["ads"].modalities, modality: changed})
        return self.predictor.score_examples(examples, replace(self.catalogs, **made, **self._users(keep)), baselines=False)

    def _kept(self, present: Present) -> dict[str, Present]:
        """Array → which of its columns (N, width) N variants have."""
        keep = {array: np.ones((len(present), width), bool) for array, width in self._widths().items()}
        for number, item in enumerate(self.inputs):
            for array, column in item.atoms:
                keep[array][:, column] = present[:, number]
        return keep

    # ------------------------------------------------------------------------------------------- inputs

    def _inputs(self) -> Iterator[Input]:
        ads, users, row = self.catalogs.ads, self.catalogs.users, self.row
        words: list[tuple[tuple[str, int], ...]] = [(("word", number),) for number in range(len(self.spans))]
        listed_places: set[int] = set()
        if WORDS in ads.lists:
            values = _values(self.features["ads"], ads.lists, WORDS, self.ad)
            for number, (start, end) in enumerate(self.spans):
                spoken = {word.lower() for word in self.text[start:end].split()} | {self.text[start:end].lower()}
                mine = [place for place, value in enumerate(values) if value in spoken and place not in listed_places]
                listed_places |= set(mine)
                words[number] += tuple((f"ads:{WORDS}", place) for place in mine)
        for number, (start, end) in enumerate(self.spans):
            yield Input("word", self.text[start:end], "", "text", words[number])
        for kind, lists in (("click", row.histories), ("skipped", row.skipped)):
            for place, ad in enumerate(lists.take(row.history_of_row).values):
                yield Input(kind, ads.ids[int(ad)].as_py(), "", "history", ((kind, place),))
        interests = self._interests()
        if interests:
            items = _values(self.features["users"], users.lists, INTERESTS, self.user) if INTERESTS in users.lists else []
            declared = str(users.texts[self.user].as_py()) or ", ".join(filter(None, items))
            yield Input("interests", INTERESTS, declared, INTERESTS, tuple(interests))
        if int(row.query[0]) and self.catalogs.queries is not None:
            yield Input("query", "query", row.queries[int(row.query[0])], "query", (("query", 0),))
        taken = {*interests, *((f"ads:{WORDS}", place) for place in listed_places)}
        for table in TABLES:
            yield from self._of_table(table, taken)

    def _interests(self) -> list[tuple[str, int]]:
        """All that says what the user declared: the text, lists of its items or words, its language."""
        users, fitted = self.catalogs.users, self.features["users"]
        atoms: list[tuple[str, int]] = []
        if self.predictor.packed.dimensions.interests and users.texts[self.user].as_py():
            atoms.append((INTERESTS, 0))
        for name in (INTERESTS, WORDS):
            if name in users.lists:
                atoms += [(f"users:{name}", place) for place in range(int(users.lists[name].lengths[self.user]))]
        if atoms and USER_LANGUAGE in fitted.categorical_names:
            atoms.append(("users.categorical", fitted.categorical_names.index(USER_LANGUAGE)))
        return atoms

    def _of_table(self, table: str, taken: set[tuple[str, int]]) -> Iterator[Input]:
        """The features of the impression, the candidate or the user that say something, but those `taken` by other inputs."""
        fitted = self.features[table]
        numeric, categorical, lists, identity = self._values_of(table)
        named: dict[str, list[tuple[str, int]]] = {}
        values: dict[str, str] = {}
        deviations: dict[str, float] = {}
        for column, name in enumerate(fitted.categorical_names):
            if categorical[column] and (f"{table}.categorical", column) not in taken:
                whole = _whole_name(fitted, name)
                named.setdefault(whole, []).append((f"{table}.categorical", column))
                values.setdefault(whole, shown_category(fitted, column, int(categorical[column])))
        for column, name in enumerate(fitted.numeric_names):
            if numeric[column] != self.blank[table][column]:
                whole = _whole_name(fitted, name)
                named.setdefault(whole, []).append((f"{table}.numeric", column))
                if whole == name and name not in values:
                    values[name], deviations[name] = f"{numeric[column]:+.2f} sd", float(numeric[column])
        for name, atoms in named.items():
            yield Input("feature", name, values.get(name, ""), table, tuple(atoms), deviations.get(name))
        for coder in fitted.lists:
            items = _values(fitted, lists, coder.name, 0)
            for value in dict.fromkeys(value for value in items if value is not None):
                atoms = [(f"{table}:{coder.name}", place) for place, item in enumerate(items) if item == value]
                atoms = [atom for atom in atoms if atom not in taken]
                if atoms:
                    yield Input("feature", coder.name, value, table, tuple(atoms))
        for name, held in self._modalities(table).items():
            if held.known(np.zeros(1, np.int64))[0]:
                yield Input("vector", name, "", table, ((f"{table}~{name}", 0),))
        if identity:
            yield Input("feature", "this very ad" if table == "ads" else "this very user", "", table, ((f"{table}.id", 0),))

    def _values_of(self, table: str) -> tuple[Any, Any, dict[str, Ragged], bool]:
        """Numbers (Fn,), codes (Fc,), lists of one row each, and whether it has an id that can be forgotten."""
        if table == "impressions":
            return self.row.numeric[0], self.row.categorical[0], self.row.lists, False
        catalog, number = (self.catalogs.ads, self.ad) if table == "ads" else (self.catalogs.users, self.user)
        lists = {name: values.take(np.array([number])) for name, values in catalog.lists.items()}
        return catalog.numeric[number], catalog.categorical[number], lists, True

    def _modalities(self, table: str) -> dict[str, Modality]:
        """The vectors of the candidate or the user, one row each."""
        if table == "impressions":
            return {}
        catalog, number = (self.catalogs.ads, self.ad) if table == "ads" else (self.catalogs.users, self.user)
        return {name: held.take(np.array([number])) for name, held in catalog.modalities.items()}

    def _widths(self) -> dict[str, int]:
        histories = self.row.histories.take(self.row.history_of_row), self.row.skipped.take(self.row.history_of_row)
        widths = {"click": len(histories[0].values), "skipped": len(histories[1].values), "word": len(self.spans)}
        widths |= {INTERESTS: 1, "query": 1}
        for table in TABLES:
            numeric, categorical, lists, _ = self._values_of(table)
            widths |= {f"{table}.numeric": len(numeric), f"{table}.categorical": len(categorical), f"{table}.id": 1}
            widths |= {f"{table}:{name}": len(values.values) for name, values in lists.items()}
            widths |= {f"{table}~{name}": 1 for name in self._modalities(table)}
        return widths

    # ------------------------------------------------------------------------------------------- variants

    def _examples(self, keep: dict[str, Present]) -> tuple[Examples, NDArray[np.int64]]:
        """The variants over a catalogue of their own, and the ads that come first in it: those clicked and skipped."""
        row, count = self.row, len(keep["query"])
        clicks, skipped = (lists.take(row.history_of_row).values for lists in (row.histories, row.skipped))
        hours = row.history_hours[row.history_offsets[row.history_of_row[0]] :][: len(clicks)]
        ads_of, place = np.unique(np.concatenate([clicks, skipped]), return_inverse=True)
        numeric, categorical, lists = self._altered("impressions", keep)
        gone = (~keep["click"]).sum(axis=1)
        examples = replace(
            row.take(np.zeros(count, np.int64)),
            request=np.arange(count, dtype=np.int32),
            user_index=np.arange(count, dtype=np.int32),
            ad_index=np.arange(len(ads_of), len(ads_of) + count, dtype=np.int32),
            numeric=numeric,
            categorical=categorical,
            lists=lists,
            query=np.where(keep["query"][:, 0], row.query[0], 0).astype(np.int32),
            history_length=np.maximum(row.history_length[0] - gone, 0).astype(np.int32),
            history_of_row=np.arange(count, dtype=np.int32),
            history_offsets=ends(keep["click"].sum(axis=1)),
            history_values=np.broadcast_to(place[: len(clicks)], keep["click"].shape)[keep["click"]].astype(np.int32),
            history_hours=np.broadcast_to(hours, keep["click"].shape)[keep["click"]],
            skipped_offsets=ends(keep["skipped"].sum(axis=1)),
            skipped_values=np.broadcast_to(place[len(clicks) :], keep["skipped"].shape)[keep["skipped"]].astype(np.int32),
        )
        return examples, ads_of.astype(np.int64)

    def _ads(self, keep: dict[str, Present], before: NDArray[np.int64]) -> dict[str, Any]:
        """`ads` and `ad_texts`: the ads `before`, then the candidate of each variant."""
        base = self.catalogs.ads.take(np.append(before, self.ad))
        rows = np.append(np.arange(len(before)), np.full(len(keep["word"]), len(before)))
        own = len(before)
        texts, vectors = base.texts, self.catalogs.ad_texts(np.append(before, self.ad)).vectors
        kinds, which = np.unique(keep["word"], axis=0, return_inverse=True)
        altered = [without(self.text, self.spans, kind) for kind in kinds]
        catalog = replace(base.take(rows), **self._repeated("ads", base, rows, keep, own))
        catalog = replace(
            catalog, texts=pa.concat_arrays([texts.slice(0, own), pa.array(altered).take(pa.array(which.reshape(-1)))])
        )
        if vectors is None:
            return {"ads": catalog, "ad_texts": lambda rows: Texts(None)}
        array = vectors.numpy()
        made = np.repeat(array[own:], len(kinds), axis=0)
        cut = np.flatnonzero(~kinds.all(axis=1))
        if len(cut):
            made[cut] = self.reader.vectors([altered[kind] for kind in cut])
        catalog = catalog.with_vectors(np.concatenate([array[:own], made[which.reshape(-1)]]))
        return {"ads": catalog, "ad_texts": _given(catalog.vectors)}

    def _users(self, keep: dict[str, Present]) -> dict[str, Any]:
        """`users` and `user_texts`: the user of each variant."""
        base, rows = self.catalogs.users.take(np.array([self.user])), np.zeros(len(keep["query"]), np.int64)
        catalog = replace(base.take(rows), **self._repeated("users", base, rows, keep, 0))
        vectors = self.catalogs.user_texts(np.array([self.user])).vectors
        if vectors is None:
            return {"users": catalog, "user_texts": lambda rows: Texts(None)}
        there = keep[INTERESTS].reshape(-1, *[1] * (vectors.ndim - 1))
        return {"users": catalog, "user_texts": _given((vectors.numpy() * there).astype(np.float32))}

    def _repeated(
        self, table: str, base: Catalog, rows: NDArray[np.int64], keep: dict[str, Present], own: int
    ) -> dict[str, Any]:
        """Columns of a catalog: rows before `own` as they are, then N altered ones."""
        numeric, categorical, lists = self._altered(table, keep)
        there = keep[f"{table}.id"][:, 0]
        named = base.ids.take(pa.array(rows))
        return {
            "ids": pa.concat_arrays([named.slice(0, own), _where(there, named.slice(own))]),
            "numeric": np.concatenate([base.numeric[:own], numeric]),
            "categorical": np.concatenate([base.categorical[:own], categorical]),
            "lists": {name: _joined(base.lists[name].take(np.arange(own)), altered) for name, altered in lists.items()},
            "identity": np.concatenate([base.identity[:own], np.where(there, base.identity[rows[own:]], 0)]).astype(np.int32),
            "modalities": {
                name: Modality(
                    held.vectors.take(rows).without(np.append(np.zeros(own, bool), ~keep[f"{table}~{name}"][:, 0])), held.fitted
                )
                for name, held in base.modalities.items()
            },
        }

    def _altered(self, table: str, keep: dict[str, Present]) -> tuple[Any, Any, dict[str, Ragged]]:
        """Numbers (N, Fn), codes (N, Fc) and lists of N rows, missing where they are taken away."""
        numeric, categorical, lists, _ = self._values_of(table)
        return (
            np.where(keep[f"{table}.numeric"], numeric, self.blank[table]).astype(np.float32),
            np.where(keep[f"{table}.categorical"], categorical, 0).astype(np.int32),
            {name: _thinned(values.values, keep[f"{table}:{name}"]) for name, values in lists.items()},
        )


def _blank(fitted: FeatureSet) -> NDArray[np.float32]:
    """(Fn,) what the model sees where nothing is known."""
    return np.asarray(fitted.transform(pa.table({"adrec_nothing": pa.nulls(1)})).numeric[0])


def _whole_name(fitted: FeatureSet, name: str) -> str:
    """A number and whether it is missing are one input; so are the ways to tell an hour, or a day of the week."""
    for item in fitted.numerics:
        if name == f"{item.name}_missing" and item.missing_indicator:
            return item.name
    if fitted.spec.calendar is not None:
        column = fitted.spec.calendar.column
        for part, names in {"hour": ("hour",), "weekday": ("weekday", "weekend")}.items():
            if name in {f"{column}_{one}{end}" for one in names for end in ("", "_sin", "_cos")}:
                return f"{column}_{part}"
    return name


def _values(fitted: FeatureSet, lists: dict[str, Ragged], name: str, row: int) -> list[str | None]:
    """The items of a row's list as text, None where a value is not known."""
    coder = next(item for item in fitted.lists if item.name == name)
    codes = lists[name].take(np.array([row])).values
    return [coder.value(int(code)) if code > 0 else None for code in codes]


def _thinned(values: NDArray[Any], keep: Present) -> Ragged:
    """N lists of the items of `values` (L,) that are kept (N, L)."""
    return Ragged(ends(keep.sum(axis=1)), np.broadcast_to(values, keep.shape)[keep])


def _joined(first: Ragged, second: Ragged) -> Ragged:
    offsets = np.concatenate([first.offsets, first.offsets[-1] + second.offsets[1:]])
    return Ragged(offsets, np.concatenate([first.values, second.values]))


def _where(there: NDArray[np.bool_], ids: pa.Array) -> pa.Array:
    return pc.if_else(pa.array(there), ids, pa.scalar(_NO_ID))


def _given(vectors: NDArray[np.float32] | None) -> Any:
    """Rows of ready vectors, as a batch asks for them."""
    assert vectors is not None
    return lambda rows: Texts(torch.from_numpy(vectors[rows]))
