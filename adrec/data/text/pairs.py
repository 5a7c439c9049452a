"""Pairs of texts that belong together, read off a prepared folder: parts of an ad, clicks in a row, query and click."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adrec.config.training.pretrain import CLICKED
from adrec.data.labels import labels_as_of
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

    def split(self, fraction: float, *, most: int, seed: int) -> tuple["Pairs", "Pairs"]:
        """Training and held-out pairs; at least one of each, held out at most `most`."""
        order = np.random.default_rng(seed).permutation(len(self))
        held = max(1, min(len(self) - 1, most, round(fraction * len(self))))
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


def both_of(first: Pairs, second: Pairs) -> Pairs:
    """The pairs of both, which number the same texts."""
    left, right = (np.concatenate([getattr(pairs, side) for pairs in (first, second)]) for side in ("left", "right"))
    return Pairs(first.texts, left, right, first.share)


def part_pairs(prepared: Prepared) -> Pairs:
    """Each ad's title, and the rest of its text. Raises DataError where ads have a title only."""
    first, second = _parts(prepared)
    if not len(first):
        raise DataError(
            "objective nsp, pairs 'parts': no ad has text beyond its title. Use pairs: clicks, or add a description."
        )
    return _pairs(first, second)


def text_pairs(prepared: Prepared, kinds: frozenset[str], *, window: int = 1) -> Pairs:
    """Distinct pairs: `parts` (the title of an ad and the rest of its text) and `categories` (an ad and its category's name) of
    all ads known when training ends, clicked or not; the others end in a clicked ad, of training rows and the histories in
    them alone.

    `clicks` (two ads that one user clicked, at most `window` clicks apart), `queries` (what was searched before a click),
    `interests` (of the user who clicked). Raises DataError where the folder has none.
    """
    columns = ["click", "ad_index", "user_index", "history_index"]
    if "queries" in kinds and "query" in prepared.columns:
        columns.append("query")
    ads = prepared.ads().column("text").combine_chunks()
    users = prepared.users().column("text").combine_chunks()
    lefts: list[pa.Array] = []
    rights: list[pa.Array] = []
    together = np.empty(0, np.int64)

    def add(left: pa.Array, right: pa.Array) -> None:
        real = pc.and_(pc.not_equal(pc.fill_null(left, ""), ""), pc.not_equal(pc.fill_null(right, ""), ""))
        lefts.append(pc.filter(left, real))
        rights.append(pc.filter(right, real))

    cut = prepared.label_cut(("train",))
    columns += [cut.columns["click"]] if cut is not None and "click" in cut.columns else []
    for batch in prepared.iter("train", columns) if kinds & CLICKED else ():
        batch = labels_as_of(batch, cut)
        clicked = batch.filter(pc.equal(pc.fill_null(batch.column("click"), 0), 1))
        ad_text = ads.take(clicked.column("ad_index"))
        if "clicks" in kinds:
            first, second = _clicked_together(clicked.column("history_index"), clicked.column("ad_index"), window)
            together = np.union1d(together, first * len(ads) + second)
        if "queries" in kinds and "query" in clicked.schema.names:
            add(clicked.column("query"), ad_text)
        if "interests" in kinds:
            add(users.take(clicked.column("user_index")), ad_text)
    if len(together):
        add(ads.take(pa.array(together // len(ads))), ads.take(pa.array(together % len(ads))))
    if "categories" in kinds and "category" in prepared.ads().column_names:
        known = pc.invert(prepared.later(ads))
        add(ads.filter(known), prepared.ads().column("category").combine_chunks().filter(known))
    if "parts" in kinds:
        add(*_parts(prepared))
    if not sum(map(len, lefts)):
        raise DataError(f"{prepared.path}: no pairs of kind {', '.join(sorted(kinds))} in the training rows.")
    return _pairs(pa.concat_arrays(lefts), pa.concat_arrays(rights))


def _parts(prepared: Prepared) -> tuple[pa.Array, pa.Array]:
    """Titles, and the rest of the texts, of the ads that have both and were known when training ends."""
    texts = prepared.ads().column("text").combine_chunks()
    halves = pc.split_pattern(texts.filter(pc.invert(prepared.later(texts))), SEPARATOR.strip(), max_splits=1)
    halves = pc.filter(halves, pc.equal(pc.list_value_length(halves), 2))
    return tuple(pc.utf8_trim_whitespace(pc.list_element(halves, place)) for place in (0, 1))


def _clicked_together(history: pa.ListArray, ad: pa.Array, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (earlier, later) of ads of one row, its history and then its own ad, at most `window` places apart."""
    lengths = pc.fill_null(pc.list_value_length(history), 0).to_numpy().astype(np.int64)
    clicks = np.insert(pc.list_flatten(history).to_numpy().astype(np.int64), np.cumsum(lengths), ad.to_numpy())
    row = np.repeat(np.arange(len(lengths)), lengths + 1)
    pieces = []
    for apart in range(1, min(window, int(lengths.max(initial=0))) + 1):
        one_row = row[apart:] == row[:-apart]
        pieces.append((clicks[:-apart][one_row], clicks[apart:][one_row]))
    if not pieces:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    return np.concatenate([pair[0] for pair in pieces]), np.concatenate([pair[1] for pair in pieces])


def _pairs(left: pa.Array, right: pa.Array) -> Pairs:
    """Number the texts and keep each pair once."""
    both = pa.concat_arrays([left.cast(pa.string()), right.cast(pa.string())]).dictionary_encode()
    codes = both.indices.to_numpy().astype(np.int64)
    texts = both.dictionary.to_numpy(zero_copy_only=False)
    first, second = codes[: len(left)], codes[len(left) :]
    distinct = first != second
    keys = np.unique(first[distinct] * len(texts) + second[distinct])
    if len(keys) < 2:
        raise DataError("fewer than two pairs of texts: too few to learn from. Leave the objective out.")
    right = keys % len(texts)
    return Pairs(texts, keys // len(texts), right, np.bincount(right, minlength=len(texts)) / len(right))
