"""Pairs of texts that belong together, read off a prepared folder: parts of an ad, clicks in a row, query and click."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adrec.data.prepared import Prepared
from adrec.errors import DataError

SEPARATOR = " [SEP] "


@dataclass(frozen=True)
class Pairs:
    """`texts[left[i]]` belongs with `texts[right[i]]`. `share` is how often each text stands on the right, summing to 1."""

    texts: np.ndarray  # (N,) str
    left: np.ndarray  # (P,) int64
    right: np.ndarray  # (P,) int64
    share: np.ndarray  # (N,) float64

    def __len__(self) -> int:
        """Number of pairs P."""
        return len(self.left)

    def split(self, fraction: float, *, seed: int) -> tuple["Pairs", "Pairs"]:
        """Training and held-out pairs; at least one of each."""
        order = np.random.default_rng(seed).permutation(len(self))
        held = max(1, min(len(self) - 1, round(fraction * len(self))))
        parts = [np.sort(order[held:]), np.sort(order[:held])]
        first, second = (Pairs(self.texts, self.left[part], self.right[part], self.share) for part in parts)
        return first, second

    def are_true(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Which of these (left, right) belong together (or are one text), bool, same shape."""
        keys = self._keys(left, right)
        place = np.searchsorted(self._known, keys).clip(max=max(0, len(self._known) - 1))
        found: np.ndarray = (self._known[place] == keys) | (left == right)
        return found

    @cached_property
    def _known(self) -> np.ndarray:
        return np.unique(np.concatenate([self._keys(self.left, self.right), self._keys(self.right, self.left)]))

    def _keys(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        keys: np.ndarray = left * len(self.texts) + right
        return keys


def part_pairs(prepared: Prepared) -> Pairs:
    """Each ad's title, and the rest of its text. Raises DataError where ads have a title only."""
    texts = prepared.ads().column("text").combine_chunks()
    halves = pc.split_pattern(texts, SEPARATOR.strip(), max_splits=1)
    whole = pc.equal(pc.list_value_length(halves), 2)
    halves = pc.filter(halves, whole)
    if not len(halves):
        raise DataError(
            "objective nsp, pairs 'parts': no ad has text beyond its title. Use pairs: clicks, or add a description."
        )
    first = pc.utf8_trim_whitespace(pc.list_element(halves, 0))
    second = pc.utf8_trim_whitespace(pc.list_element(halves, 1))
    return _pairs(first, second)


def click_pairs(prepared: Prepared, kinds: frozenset[str]) -> Pairs:
    """Distinct pairs ending in a clicked ad, of training rows alone.

    `kinds`: `clicks` (the ad that the user had clicked before it), `queries` (what was searched), `interests` (the user's).
    Raises DataError where the folder has none.
    """
    columns = ["click", "ad_index", "user_index", "history_index"]
    if "queries" in kinds and "query" in prepared.columns:
        columns.append("query")
    ads = prepared.ads().column("text").combine_chunks()
    users = prepared.users().column("text").combine_chunks()
    lefts: list[pa.Array] = []
    rights: list[pa.Array] = []

    def add(left: pa.Array, right: pa.Array) -> None:
        real = pc.and_(pc.not_equal(pc.fill_null(left, ""), ""), pc.not_equal(pc.fill_null(right, ""), ""))
        lefts.append(pc.filter(left, real))
        rights.append(pc.filter(right, real))

    for batch in prepared.iter("train", columns):
        clicked = batch.filter(pc.equal(pc.fill_null(batch.column("click"), 0), 1))
        ad_text = ads.take(clicked.column("ad_index"))
        if "clicks" in kinds:
            history = clicked.column("history_index")
            some = pc.greater(pc.list_value_length(history), 0)
            last = history.filter(some)
            newest = pc.list_flatten(last).take(pa.array(np.cumsum(pc.list_value_length(last).to_numpy()) - 1))
            add(ads.take(newest), ad_text.filter(some))
        if "queries" in kinds and "query" in clicked.schema.names:
            add(clicked.column("query"), ad_text)
        if "interests" in kinds:
            add(users.take(clicked.column("user_index")), ad_text)
    if not sum(map(len, lefts)):
        raise DataError(f"{prepared.path}: no pairs of kind {', '.join(sorted(kinds))} in the training rows.")
    return _pairs(pa.concat_arrays(lefts), pa.concat_arrays(rights))


def _pairs(left: pa.Array, right: pa.Array) -> Pairs:
    """Number the texts and keep each pair once."""
    both = pa.concat_arrays([left.cast(pa.string()), right.cast(pa.string())]).dictionary_encode()
    codes = both.indices.to_numpy().astype(np.int64)
    texts = both.dictionary.to_numpy(zero_copy_only=False)
    first, second = codes[: len(left)], codes[len(left) :]
    share = np.bincount(second, minlength=len(texts)) / max(1, len(second))
    distinct = first != second
    keys = np.unique(first[distinct] * len(texts) + second[distinct])
    if len(keys) < 2:
        raise DataError("fewer than two pairs of texts: too few to learn from. Leave the objective out.")
    return Pairs(texts, keys // len(texts), keys % len(texts), share)
