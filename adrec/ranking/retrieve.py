"""Retrieve: the k ads of largest inner product with each request's vector, exactly.

Blocks of ads are multiplied with blocks of requests. A block's products are reduced to the maximum of every
`_GROUP` ads, and only groups whose maximum beats the request's threshold are opened: almost none does, so the cost is that of
the matrix product. The threshold is the k-th best so far; before the first block it is guessed from a sample of the ads, low
enough that more than k ads will almost surely beat it. Where fewer do, the requests are searched again without a guess, so the
result is exact for any data. Products lie ads by requests, so that the maximum of a group is taken over whole rows. Memory:
one (ads, requests) block of products.

Where the processor multiplies whole or short numbers faster, a block is screened in them first: what comes within the rounding
error of the threshold is multiplied again in float32, and only that product counts. A few requests wait for the memory: int8
is a quarter to read. Many wait for the arithmetic: bfloat16 has twice as much. It is scalar quantisation with re-ranking
(Douze et al. 2024, The Faiss library), made exact by the bound.
"""

import math
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Literal, NamedTuple

import numpy as np
import torch

from adrec.ranking.arrays import Bools, Floats, Ints

EligibleBlock = Callable[[slice, slice], Bools]
"""`eligible(requests, ads)` -> (r, a) bool: which ads of a block (or every n-th of one) may be retrieved for which."""

_GROUP = 16
_CELLS, _LEAST_ADS = 1_048_576, 2_048  # products of a block: they stay in the processor's cache
_SAMPLE_EVERY = 32  # the sample that guesses a threshold is every 32nd ad: 3 % more products
_LOWEST = float("-inf")
_FEW_REQUESTS, _MANY_REQUESTS = 16, 64  # up to the first are screened in int8, from the second in bfloat16
_STEPS = 127  # of int8 on either side of 0
_ARITHMETIC = 1e-5  # what float32 arithmetic may add to a bound, in units of the two norms
_BFLOAT16 = 3.1 * 2**-8
"""Rounding of a bfloat16 product, in units of the two norms: 2^-8 (8 bits of precision) for each factor and for the result."""
_SCREENED_WIDTH = 64  # for few requests; narrower vectors are read in no time
_GROUPS_FOR_EACH = 4  # groups of a block for each ad wanted, so that few of the best share a group
_SCREEN_PASSES = {"int8": 24, "bfloat16": 64}
"""One in so many products may pass the screen; where more do, rounding hides the order and it is left off."""


class Retrieved(NamedTuple):
    """The best ads of each request, best first. R requests, K ads."""

    ad: Ints  # (R, K) int32 rows of the catalogue, -1 where fewer than K are eligible
    similarity: Floats  # (R, K) float32 inner products, -inf where ad is -1


class _Rounded(NamedTuple):
    """N vectors as whole numbers of steps: `codes` times `steps` is at most `errors` (in norm) away from them."""

    codes: torch.Tensor  # (N, D) int8
    steps: torch.Tensor  # (N,)
    errors: torch.Tensor  # (N,)
    norms: torch.Tensor  # (N,) of `codes` times `steps`

    @classmethod
    def of(cls, vectors: torch.Tensor) -> "_Rounded":
        codes = torch.empty(vectors.shape, dtype=torch.int8)
        steps, errors, norms = (torch.empty(len(vectors)) for _ in range(3))
        for start in range(0, len(vectors), _LEAST_ADS):  # a catalogue twice in float32 may not fit
            rows = slice(start, start + _LEAST_ADS)
            part = vectors[rows]
            largest = part.abs().amax(dim=1)
            steps[rows] = torch.where(largest > 0, largest / _STEPS, 1.0)
            near = (part / steps[rows, None]).round_()
            codes[rows] = near
            near *= steps[rows, None]
            errors[rows], norms[rows] = torch.linalg.vector_norm(part - near, dim=1), torch.linalg.vector_norm(near, dim=1)
        return cls(codes, steps, errors, norms)


class ExactIndex:
    """Ads (A, D) float32, finite, ready to be searched exactly by inner product. Takes a quarter more memory than they do."""

    def __init__(self, ads: Floats) -> None:
        if ads.ndim != 2:
            raise ValueError(f"ads {ads.shape} must be (A, D)")
        self.ads = torch.from_numpy(np.ascontiguousarray(ads, dtype=np.float32))

    @cached_property
    def rounded(self) -> "_Rounded":
        """The ads in int8, made when few requests first search a catalogue of some size."""
        return _Rounded.of(self.ads)

    @property
    def screens_few(self) -> bool:
        """Whether a few requests are screened in int8."""
        return self.ads.shape[1] >= _SCREENED_WIDTH and _multiplies_int8()

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


def exact_top_k(
    queries: Floats,
    ads: Floats,
    k: int,
    *,
    eligible: EligibleBlock | None = None,
    request_block: int = 1_024,
    ad_block: int | None = None,
) -> Retrieved:
    """`ExactIndex(ads).search(...)`, for ads that are searched once."""
    return ExactIndex(ads).search(queries, k, eligible=eligible, request_block=request_block, ad_block=ad_block)


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
        self.screen = self._choose_screen()
        self.norms = torch.linalg.vector_norm(queries, dim=1)
        if self.screen == "int8":
            ads, self.coarse = index.rounded, _Rounded.of(queries)
            # |q a - q' a'| <= |q| |a - a'| + |q - q'| |a'|, where q' and a' are the rounded ones
            margin = self.norms * ads.errors.max() + (self.coarse.errors + _ARITHMETIC * self.norms) * ads.norms.max()
            self.margin = margin / self.coarse.steps
        elif self.screen == "bfloat16":
            self.coarse_queries, self.coarse_products = queries.bfloat16(), self.products.bfloat16()

    def _choose_screen(self) -> Literal["int8", "bfloat16"] | None:
        if len(self.queries) >= _MANY_REQUESTS:
            return "bfloat16" if _multiplies_bfloat16() else None
        if len(self.queries) > _FEW_REQUESTS:
            return None
        enough = len(self.products) // _GROUP >= _GROUPS_FOR_EACH * self.k
        return "int8" if enough and self.index.screens_few else None

    def run(self) -> tuple[Ints, Floats]:
        """(R, K) ads and (R, K) values, best first."""
        # Rounded products of a block tell few requests what the k-th best is at least: no need to guess.
        guess = self._guess() if self.screen != "int8" else torch.full((len(self.queries),), _LOWEST)
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
            passed = self._screened(columns, best.threshold) if self.screen is not None else None
            if passed is None:
                best.add(self._multiply(columns), start)
            else:
                best.enter(*passed)
        return best.finish()

    def _screened(self, columns: slice, threshold: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
        """Ads, requests and products above `threshold` (R,) among the ads `columns`; None where a screen is of no use."""
        by_int8 = self.screen == "int8"
        block, needed = self._in_int8(columns, threshold) if by_int8 else self._in_bfloat16(columns, threshold)
        if bool((needed == _LOWEST).any()):
            return None
        ad, request = _above(block, needed)
        if len(ad) * _SCREEN_PASSES["int8" if by_int8 else "bfloat16"] > block.numel():
            self.screen = None
            return None
        value = self._products_of(self.ads[columns], ad, request)
        kept = value > threshold[request]
        return ad[kept] + columns.start, request[kept], value[kept]

    def _in_int8(self, columns: slice, threshold: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Rounded products (a, R) in units of each request's own step, and what must be more than that (R,)."""
        rounded = self.index.rounded
        whole = torch._int_mm(self.coarse.codes, rounded.codes[columns].T).T
        block = torch.mul(whole, rounded.steps[columns, None], out=self.products[: len(whole), : len(self.queries)])
        self._mask(block, columns)
        needed = threshold / self.coarse.steps - self.margin
        maxima = _group_maxima(block)
        if len(maxima) >= self.k:
            # k ads have at least this rounded product; the k-th best is one margin below at most, its own rounded one two.
            kth = torch.topk(maxima, self.k, dim=0).values[-1]
            needed = torch.maximum(needed, kth - 2 * self.margin)
        return block, torch.nextafter(needed, torch.full_like(needed, _LOWEST))

    def _in_bfloat16(self, columns: slice, threshold: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Rounded products (a, R), and what must be more than that (R,)."""
        ads = self.ads[columns]
        block = torch.mm(ads.bfloat16(), self.coarse_queries.T, out=self.coarse_products[: len(ads)])
        self._mask(block, columns)
        return block, threshold - _BFLOAT16 * torch.linalg.vector_norm(ads, dim=1).max() * self.norms

    def _products_of(self, ads: torch.Tensor, ad: torch.Tensor, request: torch.Tensor) -> torch.Tensor:
        """(n,) float32 products of single pairs."""
        if len(self.queries) > _FEW_REQUESTS:
            return (ads[ad] * self.queries[request]).sum(dim=1)
        value = torch.empty(len(ad))
        for number, query in enumerate(self.queries):  # no need to lay a query beside every ad
            mine = torch.nonzero(request == number).squeeze(1)
            value[mine] = ads.index_select(0, ad[mine]) @ query
        return value

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


def _multiplies_bfloat16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())  # torch asks its own kernels so


def _multiplies_int8() -> bool:
    return bool(torch.cpu._is_vnni_supported())  # without it, sums of products may saturate


def merge_channels(channels: list[Ints], k: int, shares: Sequence[float] | None = None) -> Ints:
    """(R, k) ads of several ranked lists (R, K_i) in turn, repeats left out; -1 marks empty places, at the end of the result.

    `shares`: one number >= 0 a channel, in proportion to which they have their turns; equal ones by default (the first of each,
    the second of each, ...). A channel without a share fills what the others leave empty.
    """
    depth = max(channel.shape[1] for channel in channels)
    woven = np.full((len(channels[0]), depth, len(channels)), -1, dtype=np.int64)
    for number, channel in enumerate(channels):
        woven[:, : channel.shape[1], number] = channel
    with np.errstate(divide="ignore"):
        due = np.arange(1, depth + 1)[:, None] / np.asarray([1.0] * len(channels) if shares is None else shares)
    flat = woven.reshape(len(woven), -1)[:, np.argsort(due.ravel(), kind="stable")]
    order = np.argsort(flat, axis=1, kind="stable")  # equal ads keep their turn, so the first of a run is the earliest
    ordered = np.take_along_axis(flat, order, axis=1)
    repeated = np.zeros(flat.shape, dtype=bool)
    np.put_along_axis(repeated, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
    kept = np.argsort(repeated | (flat < 0), axis=1, kind="stable")[:, :k]
    merged = np.take_along_axis(np.where(repeated, -1, flat), kept, axis=1)
    result: Ints = np.full((len(flat), k), -1, dtype=np.int64)
    result[:, : merged.shape[1]] = merged
    return result
