"""What a candidate is linked to, and how many of the user's clicks are linked to the same: counts for each relation.

A list of an ad whose values are paths (`adrec.data.graph`) is read in two ways: value by value, like any list, and by relation:
"three of your clicks are by the same maker". Those counts are known of an ad that nobody has seen, as soon as its links are.

# B rows, C contexts, A ads, V codes of the list, G groups of relations
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adrec.data.arrays import Longs
from adrec.data.features import FeatureSet
from adrec.data.features.categorical import FittedVocabulary
from adrec.data.graph.links import relation_of
from adrec.data.ragged import Ragged

MOST_RELATIONS = 64
"""Paths of rarer relations count together."""
_CELLS = 4_000_000
"""Counts held at once."""


@dataclass(frozen=True)
class Paths:
    """The list of ads that holds paths, and the relation of each of its values."""

    name: str
    relations: tuple[str, ...]
    """(G,), those with the most values first; the last stands for all others where there are more"""
    group: NDArray[np.int64]
    """(V,) relation of each code; of code 0, which is unknown, the first"""

    @classmethod
    def of(cls, features: FeatureSet) -> "Paths | None":
        """None where no list holds paths, or none of them is known."""
        for declared, coder in zip(features.spec.lists, features.lists, strict=True):
            if declared.paths and isinstance(coder, FittedVocabulary) and len(coder.values):
                relation = relation_of(coder.values).dictionary_encode()
                counts = np.bincount(relation.indices.to_numpy())
                names = relation.dictionary.to_numpy(zero_copy_only=False)
                order = np.lexsort((names, -counts))
                rank = np.empty(len(order), np.int64)
                rank[order] = np.minimum(np.arange(len(order)), MOST_RELATIONS - 1)
                kept = tuple(str(name) for name in names[order][:MOST_RELATIONS])
                group = np.concatenate([[0], rank[relation.indices.to_numpy()]])
                return cls(declared.column, kept, group)
        return None

    def shared(self, lists: Ragged, histories: Ragged, context: Longs, ad: NDArray[np.integer]) -> NDArray[np.float32]:
        """(B, G) log(1 + n): how many links of a relation candidate `ad` (B,) shares with the clicks of its `context` (B,).

        `lists` (A) codes of the ads, `histories` (C) ads clicked. A click that shares two links counts twice.
        """
        found = np.zeros((len(ad), len(self.relations)), np.float32)
        own = lists.take(ad)
        codes, place = np.unique(own.values, return_inverse=True)
        code_of = np.full(len(self.group), -1, np.int64)
        code_of[codes] = np.arange(len(codes))
        code_of[0] = -1  # two unknown entities are not the same
        row = np.repeat(np.arange(len(ad)), own.lengths)
        step = max(1, _CELLS // max(len(codes), 1))
        for start in range(0, len(histories), step):
            some = histories.take(np.arange(start, min(start + step, len(histories))))
            clicked = lists.take(some.values)
            owner = np.repeat(np.repeat(np.arange(len(some)), some.lengths), clicked.lengths)
            known = code_of[clicked.values]
            held = known >= 0
            counts = np.bincount(owner[held] * len(codes) + known[held], minlength=len(some) * len(codes))
            mine = (context[row] >= start) & (context[row] < start + step)
            at = (context[row[mine]] - start) * len(codes) + place.reshape(-1)[mine]
            cell = row[mine] * len(self.relations) + self.group[own.values[mine]]
            found += np.bincount(cell, counts[at], found.size).reshape(found.shape).astype(np.float32)
        return np.log1p(found)
