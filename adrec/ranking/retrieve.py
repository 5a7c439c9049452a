"""Retrieve: the k ads of largest inner product with each request's vector, exactly.

Blocks of ads are multiplied with blocks of requests. A block's products are reduced to the maximum of every
`_GROUP` ads, and only groups whose maximum beats the request's threshold are opened: almost none does, so the cost is that of
the matrix product. The threshold is the k-th best so far; before the first block it is guessed from a sample of the ads, low
enough that more than k ads will almost surely beat it. Where fewer do, the requests are searched again without a guess, so the
result is exact for any data. Products lie ads by requests, so that the maximum of a group is taken over whole rows. Memory:
one (ads, requests) block of products.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from adrec.ranking.arrays import Bools, Floats, Ints

EligibleBlock = Callable[[slice, slice], Bools]
"""`eligible(requests, ads)` -> (r, a) bool: which ads of a block (or every n-th of one) may be retrieved for which."""

_GROUP = 16
_CELLS, _LEAST_ADS = 1_048_576, 2_048  # products of a block: they stay in the processor's cache
_SAMPLE_EVERY = 32  # the sample that guesses a threshold is every 32nd ad: 3 % more products
_LOWEST = float("-inf")


class Retrieved(NamedTuple):
    """The best ads of each request, best first. R requests, K ads."""

    ad: Ints  # (R, K) int32 rows of the catalogue, -1 where fewer than K are eligible
    similarity: Floats  # (R, K) float32 inner products, -inf where ad is -1


class ExactIndex:
    """Ads (A, D) float32, finite, searched exactly by inner product."""

    def __init__(self, ads: Floats) -> None:
        if ads.ndim != 2:
            raise ValueError(f"ads {ads.shape} must be (A, D)")
        self.ads = torch.from_numpy(np.ascontiguousarray(ads, dtype=np.float32))

    def search(
        self,
        queries: Floats,
        k: int,
        *,
        eligible: EligibleBlock | None = None,
        request_block: int = 1_024,
        ad_block: int | None = None,
    ) -> Retrieved:
        """The `k` ads of largest inner product among the eligible ones: what sorting everything would give.

        queries: (R, D) float32, finite. `ad_block` None: as many ads at once as make a block of `_CELLS` products, so that
        few requests cost few steps. Equal products are ordered by ad row. O(R A D) time. Raises ValueError where the widths
        differ or k < 1.
        """
        if queries.ndim != 2 or queries.shape[1] != self.ads.shape[1]:
            raise ValueError(f"queries {queries.shape} and ads {tuple(self.ads.shape)} must be (R, D) and (A, D) of one width")
        if k < 1:
            raise ValueError(f"k is {k}, expected at least 1")
        if ad_block is None:
            ad_block = max(_LEAST_ADS, _CELLS // max(1, min(len(queries), request_block)))
        query_rows = torch.from_numpy(np.ascontiguousarray(queries, dtype=np.float32))
        best_ad = np.full((len(queries), k), -1, dtype=np.int32)
        best_similarity = np.full((len(queries), k), _LOWEST, dtype=np.float32)
        with torch.inference_mode():
            for first in range(0, len(queries), request_block):
                rows = slice(first, min(first + request_block, len(queries)))
                search = _Search(self, query_rows[rows], k, partial(eligible, rows) if eligible else None, ad_block)
                best_ad[rows], best_similarity[rows] = search.run()
        return Retrieved(best_ad, best_similarity)


class _Search:
    """One block of requests against every ad."""

    def __init__(
        self, index: ExactIndex, queries: torch.Tensor, k: int, eligible: Callable[[slice], Bools] | None, ad_block: int
    ) -> None:
        self.index, self.ads = index, index.ads
        self.queries, self.k, self.eligible, self.ad_block = queries, k, eligible, ad_block
        # One column alone is left to a matrix-vector product that reads memory at half the speed of a product of two.
        self.columns = (queries if len(queries) > 1 else queries.repeat(2, 1)).T
        # Reused over the blocks of ads: allocating it anew costs a good part of the product.
        self.products = torch.empty(min(ad_block, len(self.ads)), self.columns.shape[1])

    def run(self) -> tuple[Ints, Floats]:
        """(R, K) ads and (R, K) values, best first."""
        guess = self._guess()
        ads, values = self._one_pass(guess)
        short = np.flatnonzero((values[:, -1] == _LOWEST) & (guess.numpy() > _LOWEST))
        if len(short):
            eligible = self.eligible
            some = None if eligible is None else lambda columns: eligible(columns)[short]
            rest = _Search(self.index, self.queries[short], self.k, some, self.ad_block)
            ads[short], values[short] = rest._one_pass(torch.full((len(short),), _LOWEST))
        return ads, values

    def _guess(self) -> torch.Tensor:
        """(R,) a value that at least k ads will very likely beat; -inf where the sample is too small to say.

        Of the k best, Binomial(k, 1 / _SAMPLE_EVERY) lie in the sample; the rank taken is six deviations above the mean.
        """
        mean = self.k / _SAMPLE_EVERY
        rank = math.ceil(mean + 6 * math.sqrt(mean) + 2)
        best = torch.full((rank, len(self.queries)), _LOWEST)
        if len(self.ads) < rank * _SAMPLE_EVERY:
            return best[-1]
        step = self.ad_block * _SAMPLE_EVERY
        for start in range(0, len(self.ads), step):
            block = self._multiply(slice(start, min(start + step, len(self.ads)), _SAMPLE_EVERY))
            # Maxima of fours: a slightly lower guess at most, and a quarter to sort.
            fours = block[: len(block) // 4 * 4].view(4, -1, block.shape[1]).amax(dim=0)
            best = torch.topk(torch.cat([best, fours]), rank, dim=0).values
        return best[-1]

    def _one_pass(self, threshold: torch.Tensor) -> tuple[Ints, Floats]:
        """The best above `threshold` (R,), of every ad."""
        best = _Best(threshold, self.k)
        for start in range(0, len(self.ads), self.ad_block):
            columns = slice(start, min(start + self.ad_block, len(self.ads)))
            best.add(self._multiply(columns), start)
        return best.finish()

    def _multiply(self, columns: slice) -> torch.Tensor:
        """(a, R) products of the ads `columns`, -inf where not eligible; valid until the next call."""
        ads = self.ads[columns]
        block = torch.mm(ads, self.columns, out=self.products[: len(ads)])[:, : len(self.queries)].contiguous()
        self._mask(block, columns)
        return block

    def _mask(self, block: torch.Tensor, columns: slice) -> None:
        if self.eligible is not None:
            block.masked_fill_(torch.from_numpy(~self.eligible(columns).T), _LOWEST)


class _Best:
    """The k best so far of R requests, and the entrants that wait to be merged with them."""

    def __init__(self, threshold: torch.Tensor, k: int) -> None:
        self.k = k
        self.value = np.full((len(threshold), k), _LOWEST, dtype=np.float32)  # (R, K) best first
        self.ad = np.full((len(threshold), k), -1, dtype=np.int32)  # (R, K)
        self.threshold = threshold  # (R,) only more than this enters: what was asked for, then the k-th value
        self.waiting: list[tuple[Ints, Ints, Floats]] = []
        self.waiting_count = 0

    def add(self, block: torch.Tensor, start: int) -> None:
        """Take the products (a, R) of the ads `start`, `start + 1`, ..."""
        if bool((self.threshold == _LOWEST).any()):
            # No threshold yet. The block's own k-th value bounds what may enter; its equals may too (hence nextafter).
            kth = torch.topk(block, min(self.k, len(block)), dim=0).values[-1]
            bound = torch.nextafter(kth, torch.full_like(kth, _LOWEST)) if len(block) >= self.k else kth.fill_(_LOWEST)
            ad, request = torch.nonzero(block > torch.maximum(bound, self.threshold), as_tuple=True)
        else:
            ad, request = _above(block, self.threshold)
        self.enter(ad + start, request, block[ad, request])

    def enter(self, ad: torch.Tensor, request: torch.Tensor, value: torch.Tensor) -> None:
        """Take N ads that are above the thresholds of their requests, those of one request in order."""
        self.waiting.append((request.numpy(), ad.numpy().astype(np.int32), value.numpy()))
        self.waiting_count += len(ad)
        if self.waiting_count > self.value.size or bool((self.threshold == _LOWEST).any()):
            self._merge()

    def finish(self) -> tuple[Ints, Floats]:
        """(R, K) ads and (R, K) values, best first."""
        self._merge()
        return self.ad, self.value

    def _merge(self) -> None:
        if self.waiting_count == 0:
            self.waiting = []
            return
        row, ad, value = (np.concatenate(parts) for parts in zip(*self.waiting, strict=True))
        self.waiting, self.waiting_count = [], 0
        order = np.lexsort((ad, row))  # by request; within it by ad row
        row, ad, value = row[order], ad[order], value[order]
        place = np.arange(len(row)) - np.searchsorted(row, np.arange(len(self.ad)))[row]
        width = self.k + int(place.max()) + 1
        values = np.full((len(self.ad), width), _LOWEST, dtype=np.float32)
        ads = np.full((len(self.ad), width), -1, dtype=np.int32)
        values[:, : self.k], ads[:, : self.k] = self.value, self.ad
        values[row, self.k + place], ads[row, self.k + place] = value, ad
        # Stable: among equals the earlier column is the earlier ad row, as every entrant comes after the held ones.
        best = np.argsort(-values, axis=1, kind="stable")[:, : self.k]
        self.value, self.ad = np.take_along_axis(values, best, axis=1), np.take_along_axis(ads, best, axis=1)
        self.threshold = torch.maximum(self.threshold, torch.from_numpy(self.value[:, -1].copy()))


def _above(block: torch.Tensor, threshold: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Ads and requests whose product in `block` (a, R) is above `threshold` (R,), looking first at the maxima of groups."""
    whole = len(block) - len(block) % _GROUP
    groups = block[:whole].view(-1, _GROUP, block.shape[1])
    group, request = _true(_group_maxima(block) > threshold)
    opened = groups[group, :, request]  # (n, _GROUP)
    which, inner = _true(opened > threshold[request][:, None])
    ads, requests = group[which] * _GROUP + inner, request[which]
    if whole < len(block):
        tail, tail_request = _true(block[whole:] > threshold)
        ads, requests = torch.cat([ads, tail + whole]), torch.cat([requests, tail_request])
    return ads, requests


def _group_maxima(block: torch.Tensor) -> torch.Tensor:
    """(a // _GROUP, R) of a block (a, R)."""
    return block[: len(block) // _GROUP * _GROUP].view(-1, _GROUP, block.shape[1]).amax(dim=1)


def _true(mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and columns of what is true in `mask`: torch.nonzero, a third of its time where little is true."""
    places = torch.from_numpy(np.flatnonzero(mask.numpy()))
    return places // mask.shape[1], places % mask.shape[1]
