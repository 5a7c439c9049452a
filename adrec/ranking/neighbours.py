"""Candidates by what single clicks are like: each clicked ad proposes its nearest neighbours (Linden, Smith and York 2003), and
what several clicks propose, or one very near, comes first.

The mean of a history of many interests is near none of them; its clicks are. A clicked ad's neighbours are searched once and
kept, so that users who clicked the same cost nothing more. Memory: `MOST_KEPT` lists at most.
"""

import numpy as np

from adrec.ranking.arrays import Bools, Floats, Ints
from adrec.ranking.retrieve import ExactIndex

NEIGHBOURS = 200
"""Ads that a click proposes."""
MOST_KEPT = 100_000
_PAIRS = 20_000  # of ads, whose cosines say how far apart two ads usually are


class Neighbours:
    """Over one catalogue of unit vectors (A, E), of which only `allowed` (A,) ads are proposed."""

    def __init__(self, index: ExactIndex, allowed: Bools) -> None:
        self._index, self._allowed = index, allowed
        self._place: Ints = np.full(len(allowed), -1, dtype=np.int32)
        """where an ad's neighbours stand, -1 where they were not searched yet"""
        width = min(NEIGHBOURS, len(allowed))
        self._ad: Ints = np.empty((0, width), dtype=np.int32)
        self._cosine: Floats = np.empty((0, width), dtype=np.float32)
        self.spread = _spread(index.ads.numpy())
        """standard deviation of the cosine of two ads: the unit in which nearness counts"""

    def of(self, ads: Ints) -> tuple[Ints, Floats]:
        """(D, N) neighbours of D different ads and their cosines, nearest first; -1 and -inf behind the last."""
        new = ads[self._place[ads] < 0]
        if len(new):
            if len(self._ad) + len(new) > MOST_KEPT:
                self._place[:] = -1
                self._ad, self._cosine, new = self._ad[:0], self._cosine[:0], ads
            found = self._index.search(
                self._index.ads.numpy()[new],
                self._ad.shape[1],
                eligible=lambda rows, columns: np.broadcast_to(
                    self._allowed[columns], (rows.stop - rows.start, len(self._allowed[columns]))
                ),
            )
            self._place[new] = len(self._ad) + np.arange(len(new))
            self._ad = np.concatenate([self._ad, found.ad])
            self._cosine = np.concatenate([self._cosine, found.similarity])
        return self._ad[self._place[ads]], self._cosine[self._place[ads]]

    def with_row(self, index: ExactIndex, allowed: Bools, row: int) -> "Neighbours":
        """Over unit vectors that differ at `row`, or have it behind the last, with these `allowed` ads. What was searched and
        neither names the ad nor would name it now is kept.
        """
        other = Neighbours(index, allowed)
        if self._ad.shape[1] != other._ad.shape[1]:
            return other
        clicked = np.flatnonzero(self._place >= 0)
        clicked = clicked[clicked != row]
        place, vectors = self._place[clicked], index.ads.numpy()
        is_near = vectors[clicked] @ vectors[row] >= self._cosine[place, -1] if allowed[row] else np.zeros(len(place), np.bool_)
        kept = ~is_near & ~(self._ad[place] == row).any(axis=1)
        other._place[clicked[kept]] = np.arange(int(kept.sum()))
        other._ad, other._cosine = self._ad[place[kept]], self._cosine[place[kept]]
        return other

    def proposed(self, offsets: Ints, clicked: Ints) -> tuple[Ints, Ints, Floats]:
        """(n,) request, ad and nearness of everything that the clicks of R requests propose, each once, in order of request.

        offsets (R + 1,) into clicked. Nearness is log mean exp((cosine - 1) / spread) over the request's clicks, where a click
        that does not propose the ad counts nothing.
        """
        lengths = np.diff(offsets)
        distinct, which = np.unique(clicked, return_inverse=True)
        ad, cosine = self.of(distinct)
        weight = np.exp((cosine - 1) / self.spread)  # 0 where there is no ad
        request = np.repeat(np.arange(len(lengths)), lengths)
        key = (request[:, None] * len(self._allowed) + ad[which])[ad[which] >= 0]
        pairs, place = np.unique(key, return_inverse=True)
        total = np.bincount(place, weights=weight[which][ad[which] >= 0], minlength=len(pairs))
        of_request, of_ad = np.divmod(pairs, len(self._allowed))
        return of_request, of_ad, np.log(total / lengths[of_request])


def best_of_each(request: Ints, value: Floats, requests: int, k: int) -> tuple[Ints, Ints]:
    """Entries (n,) of R requests that are among the k of largest value of their own, best first, and the place of each."""
    order = np.lexsort((-value, request))
    place = np.arange(len(order)) - np.searchsorted(request[order], np.arange(requests))[request[order]]
    return order[place < k], place[place < k]


def _spread(unit_vectors: Floats) -> float:
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, len(unit_vectors), (2, _PAIRS))
    return max(float(np.einsum("nd,nd->n", unit_vectors[one], unit_vectors[other]).std()), 1e-3)
