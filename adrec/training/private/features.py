"""Features that tell of nobody: ads fitted on the public catalogue, everything else by noised counts or without looking.

A prepared folder's own fits (vocabularies, means, landmarks) come from the rows as they are; here they are made anew. What
a column counts of other people is left out, unless the config says that anyone may know it.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from adrec.asof.spec import counter_name
from adrec.data.arrays import combined
from adrec.data.features import FeatureSet
from adrec.data.features.categorical import FittedVocabulary, to_ragged, to_strings
from adrec.data.features.numeric import FittedNumeric, to_floats
from adrec.data.prepared import Prepared, ReadBy
from adrec.privacy.mechanisms import Releases, one_of_each
from adrec.schema import COUNTER_PREFIX

FILES = ("features.json",)
_REACH = 4.0
"""Numbers are looked at no further out than so many of the deviations that were guessed for them."""
_GUESSED = {"rate": (0.1, 0.1), "share": (0.25, 0.25), "count": (2.0, 1.5), "other": (0.0, float(np.log1p(1e6)) / _REACH)}
"""Mean and deviation: of rates and shares, and of log(1 + x) of counts and of numbers that nothing is known of."""


@dataclass(frozen=True)
class Declared:
    """What anyone may know, by the config's word."""

    public: frozenset[str]
    bounds: Mapping[str, tuple[float, float]]


class Refitted(ReadBy):
    """A prepared folder with features that were fitted anew, and of which nothing but them is told."""

    def later(self, texts: pa.Array) -> pa.Array:
        """None: which texts came late is told by the log."""
        return pa.repeat(False, len(texts))


def planned_releases(prepared: Prepared, unit: str, declared: Declared) -> tuple[int, int]:
    """How many noised releases `private_features` will make, and how many of them are vocabularies: by the config alone."""
    vocabularies = scales = 0
    for table in ("impressions", "users"):
        fitted = prepared.features()[table]
        coders = [*fitted.categories, *fitted.lists]
        vocabularies += sum(isinstance(coder, FittedVocabulary) and coder.name not in declared.public for coder in coders)
        own = own_numbers(prepared, fitted, unit, declared)
        scales += any(item.name in own and _declared(item, declared) is None for item in fitted.numerics)
    return vocabularies + scales, vocabularies


def private_features(
    prepared: Prepared, unit: Literal["user", "row"], declared: Declared, releases: Releases, *, seed: int
) -> tuple[dict[str, FeatureSet], list[str]]:
    """The fitted features of `impressions`, `ads` and `users`, and the columns that were left out."""
    stored = prepared.features()
    names = sorted({name for name in stored["impressions"].columns if name in prepared.columns} | {"user_index"})
    rows = pa.Table.from_batches(list(prepared.iter("train", names)))
    user = rows["user_index"].combine_chunks().to_numpy().astype(np.int64)
    picked = one_of_each(user, releases.randomness) if unit == "user" else np.arange(len(user))
    people = np.unique(user)
    tables = {"impressions": rows.take(pa.array(np.sort(picked))), "users": prepared.users().take(pa.array(people))}
    features, lacking = {"ads": features_of_ads(prepared, stored["ads"], seed)}, []
    for name, table in tables.items():
        own = own_numbers(prepared, stored[name], unit, declared)
        lacking += [item.name for item in stored[name].numerics if item.name not in own]
        lacking += [item.name for item in stored[name].vectors]
        features[name] = _refitted(name, stored[name], table, own, declared, releases)
    return features, lacking


def features_of_ads(prepared: Prepared, stored: FeatureSet, seed: int) -> FeatureSet:
    """On every ad of the catalogue, which is public: also those that no training row shows."""
    ads = prepared.ads()
    fitted = FeatureSet.fit(stored.spec, ads.drop_columns([item.name for item in stored.vectors]).to_batches(), seed=seed)
    if not stored.spec.vectors:
        return fitted
    fitted = fitted.with_fitted_vectors(ads, np.arange(len(ads)), seed=seed)
    spaces = {item.name: item.space for item in stored.vectors}  # a space says by which encoder its vectors were made
    return replace(fitted, vectors=tuple(replace(item, space=spaces[item.name]) for item in fitted.vectors))


def own_numbers(prepared: Prepared, fitted: FeatureSet, unit: str, declared: Declared) -> set[str]:
    """The numeric columns that tell of their own unit alone, or that are public."""
    names = {item.name for item in fitted.numerics}
    if unit == "row":
        return names  # the record is the prepared row, with what it knew of the past
    known = _own_counters(prepared) | declared.public
    return {name for name in names if name in known or not name.startswith(COUNTER_PREFIX)}


def _refitted(
    name: str, stored: FeatureSet, table: pa.Table, own: Collection[str], declared: Declared, releases: Releases
) -> FeatureSet:
    """`stored` anew, by the rows of `table`, one of each unit."""
    coders: dict[str, Any] = {}
    lists = {item.column: item for item in stored.spec.lists}
    minimum = {item.column: item.min_count for item in stored.spec.categorical}
    minimum |= {name: item.min_count for name, item in lists.items()}
    for coder in (*stored.categories, *stored.lists):
        coders[coder.name] = coder
        if isinstance(coder, FittedVocabulary) and coder.name not in declared.public:
            column = combined(table[coder.name])
            if coder.name in lists:
                values = _one_item(column, coder.name, lists[coder.name].max_items, lists[coder.name].splits_at, releases)
            else:
                values = to_strings(column, coder.name)
            artefact = f"vocabulary of {name}.{coder.name}"
            known = releases.vocabulary(artefact, values, min_count=minimum[coder.name], files=FILES)
            coders[coder.name] = FittedVocabulary(coder.name, known)
    numerics = _scaled(name, [item for item in stored.numerics if item.name in own], table, declared, releases)
    spec = replace(stored.spec, numeric=tuple(item for item in stored.spec.numeric if item.column in own), vectors=())
    return FeatureSet(
        spec,
        tuple(numerics),
        tuple(coders[item.name] for item in stored.categories),
        tuple(coders[item.name] for item in stored.lists),
    )


def _own_counters(prepared: Prepared) -> set[str]:
    """Counters of the row's own user; a rate is none of them, since it is smoothed towards everybody's."""
    return {
        counter_name(spec, measure, window)
        for spec in prepared.counters()
        for measure in spec.measures
        for window in (*spec.half_lives_hours, None)
        if measure.startswith("history_") or ("user" in spec.by and not measure.endswith("rate"))
    }


def _declared(item: FittedNumeric, declared: Declared) -> FittedNumeric | None:
    """The column as the owner's word scales it; None where its values must be looked at."""
    if item.name in declared.bounds:
        low, high = declared.bounds[item.name]
        return replace(item, transform="standard", mean=(low + high) / 2, scale=(high - low) / 4, landmarks=[])
    return item if item.name in declared.public else None


def _guessed(item: FittedNumeric) -> FittedNumeric:
    """The column scaled by what it is, without a look at its values."""
    kind = "other"
    if item.name.startswith(COUNTER_PREFIX):
        kind = "rate" if "_rate" in item.name else "share" if "_share" in item.name else "count"
    elif item.name == "history_length":
        kind = "count"
    mean, scale = _GUESSED[kind]
    transform = "standard" if kind in {"rate", "share"} else "log1p"
    return replace(item, transform=transform, mean=mean, scale=scale, landmarks=[])


def _scaled(
    name: str, items: Sequence[FittedNumeric], table: pa.Table, declared: Declared, releases: Releases
) -> list[FittedNumeric]:
    """The columns with scales that are declared, or measured together under noise, or guessed where noise would drown them.

    What is not centred costs dearly: gradients of all units then point the same way, and clipping cuts what tells them apart.
    """
    scaled = {item.name: _declared(item, declared) or _guessed(item) for item in items}
    measured = [item.name for item in items if _declared(item, declared) is None]
    if measured:
        places = [np.where(np.isnan(values := to_floats(combined(table[column]), column)), np.nan, scaled[column].apply(values))
                  for column in measured]  # fmt: skip
        means, deviations = releases.scales(f"scales of {name}", np.stack(places, axis=1) / _REACH, files=FILES)
        for column, mean, deviation in zip(measured, means.tolist(), deviations.tolist(), strict=True):
            if (mean, deviation) != (0.0, 1.0):
                guess = scaled[column]
                moved = guess.mean + guess.scale * _REACH * mean
                scaled[column] = replace(guess, mean=moved, scale=guess.scale * _REACH * deviation)
    return [scaled[item.name] for item in items]


def _one_item(column: pa.Array, name: str, most: int, separators: tuple[str, ...], releases: Releases) -> pa.Array:
    """One item of each list, drawn evenly; null of an empty one."""
    offsets, flat = to_ragged(column, name, most, separators)
    lengths: NDArray[np.int64] = np.diff(offsets)
    at = offsets[:-1] + np.floor(releases.randomness.uniform(len(lengths)) * lengths).astype(np.int64)
    return (
        flat.take(pa.array(np.where(lengths > 0, at, 0), mask=lengths == 0))
        if len(flat)
        else pa.nulls(len(lengths), pa.string())
    )
