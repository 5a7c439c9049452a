"""Retrieve: the k ads of largest inner product with each request's vector, exactly.

Blocks of ads are multiplied with blocks of requests. A block's products are reduced to the maximum of every
`_GROUP` ads, and only groups whose maximum beats the request's k-th best so far are opened: after the first blocks
almost none does, so the cost is that of the matrix product. Memory: one (requests, ads) block of products.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from adrec.ranking.arrays import Bools, Floats, Ints

EligibleBlock = Callable[[slice, slice], Bools]
"""`eligible(requests, ads)` -> (r, a) bool: which ads of a block may be retrieved for which requests."""

_GROUP = 32
_CELLS, _LEAST_ADS = 1_048_576, 4_096  # products of a block: they stay in the processor's cache
_LOWEST = float("-inf")


class Retrieved(NamedTuple):
    """The best ads of each request, best first. R requests, K ads."""

    ad: Ints  # (R, K) int32 rows of the catalogue, -1 where fewer than K are eligible
    similarity: Floats  # (R, K) float32 inner products, -inf where ad is -1


def exact_top_k(
    queries: Floats,
    ads: Floats,
    k: int,
    *,
    eligible: EligibleBlock | None = None,
    request_block: int = 1_024,
    ad_block: int | None = None,
) -> Retrieved:
    """The `k` ads of largest inner product among the eligible ones: what sorting everything would give.

    queries: (R, D) float32; ads: (A, D) float32, both finite. `ad_block` None: as many ads at once as make a block of
    `_CELLS` products, so that few requests cost few steps. Equal products are ordered by ad row. O(R A D) time.
    Raises ValueError where the widths differ or k < 1.
    """
    if queries.ndim != 2 or ads.ndim != 2 or queries.shape[1] != ads.shape[1]:
        raise ValueError(f"queries {queries.shape} and ads {ads.shape} must be (R, D) and (A, D) of one width")
    if k < 1:
        raise ValueError(f"k is {k}, expected at least 1")
    if ad_block is None:
        ad_block = max(_LEAST_ADS, _CELLS // max(1, min(len(queries), request_block)))
    ad_rows = torch.from_numpy(np.ascontiguousarray(ads, dtype=np.float32))
    query_rows = torch.from_numpy(np.ascontiguousarray(queries, dtype=np.float32))
    best_ad = np.full((len(queries), k), -1, dtype=np.int32)
    best_similarity = np.full((len(queries), k), _LOWEST, dtype=np.float32)
    with torch.inference_mode():
        for first in range(0, len(queries), request_block):
            rows = slice(first, min(first + request_block, len(queries)))
            # Reused over the blocks of ads: allocating it anew costs a good part of the product.
            products = torch.empty(rows.stop - rows.start, min(ad_block, len(ads)))
            best = _Best(rows.stop - rows.start, k)
            for start in range(0, len(ads), ad_block):
                columns = slice(start, min(start + ad_block, len(ads)))
                block = products[:, : columns.stop - columns.start]
                torch.mm(query_rows[rows], ad_rows[columns].T, out=block)
                if eligible is not None:
                    block.masked_fill_(torch.from_numpy(~eligible(rows, columns)), _LOWEST)
                best.add(block, start)
            best_ad[rows], best_similarity[rows] = best.finish()
    return Retrieved(best_ad, best_similarity)


class _Best:
    """The k best so far of R requests, and the entrants that wait to be merged with them."""

    def __init__(self, requests: int, k: int) -> None:
        self.k = k
        self.value = np.full((requests, k), _LOWEST, dtype=np.float32)  # (R, K) best first
        self.ad = np.full((requests, k), -1, dtype=np.int32)  # (R, K)
        self.threshold = torch.full((requests, 1), _LOWEST)  # (R, 1) the k-th value: only more than this enters
        self.waiting: list[tuple[Ints, Ints, Floats]] = []
        self.waiting_count = 0

    def add(self, block: torch.Tensor, start: int) -> None:
        """Take the products (R, a) of the ads `start`, `start + 1`, ..."""
        if bool((self.threshold == _LOWEST).any()):
            # No threshold yet. The block's own k-th value bounds what may enter; its equals may too (hence nextafter).
            kth = torch.topk(block, min(self.k, block.shape[1]), dim=1).values[:, -1:]
            bound = torch.nextafter(kth, torch.full_like(kth, _LOWEST)) if block.shape[1] >= self.k else kth.fill_(_LOWEST)
            row, column = torch.nonzero(block > torch.maximum(bound, self.threshold), as_tuple=True)
        else:
            row, column = _above(block, self.threshold)
        value = block[row, column]
        self.waiting.append((row.numpy(), column.numpy().astype(np.int32) + start, value.numpy()))
        self.waiting_count += len(row)
        if self.waiting_count > 0.25 * self.value.size or bool((self.threshold == _LOWEST).any()):
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
        order = np.argsort(row, kind="stable")  # by request; within it by ad row, since blocks come in that order
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
        self.threshold = torch.from_numpy(self.value[:, -1:].copy())


def _above(block: torch.Tensor, threshold: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and columns of `block` (R, a) above the rows' thresholds (R, 1), looking first at the maxima of groups."""
    whole = block.shape[1] - block.shape[1] % _GROUP
    peaks = block[:, :whole].reshape(len(block), -1, _GROUP).amax(dim=2)  # (R, a / _GROUP)
    row, group = torch.nonzero(peaks > threshold, as_tuple=True)
    opened = block[:, :whole].reshape(len(block), -1, _GROUP)[row, group]  # (n, _GROUP)
    which, inner = torch.nonzero(opened > threshold[row], as_tuple=True)
    rows, columns = row[which], group[which] * _GROUP + inner
    if whole < block.shape[1]:
        tail_row, tail = torch.nonzero(block[:, whole:] > threshold, as_tuple=True)
        rows, columns = torch.cat([rows, tail_row]), torch.cat([columns, tail + whole])
    return rows, columns


def merge_channels(channels: list[Ints], k: int) -> Ints:
    """(R, k) ads of several ranked lists (R, K_i) in turn: the first of each, the second of each, ...; repeats are left out.

    -1 marks empty places, at the end of the result.
    """
    depth = max(channel.shape[1] for channel in channels)
    woven = np.full((len(channels[0]), depth, len(channels)), -1, dtype=np.int64)
    for number, channel in enumerate(channels):
        woven[:, : channel.shape[1], number] = channel
    flat = woven.reshape(len(woven), -1)
    order = np.argsort(flat, axis=1, kind="stable")  # equal ads keep their turn, so the first of a run is the earliest
    ordered = np.take_along_axis(flat, order, axis=1)
    repeated = np.zeros(flat.shape, dtype=bool)
    np.put_along_axis(repeated, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
    kept = np.argsort(repeated | (flat < 0), axis=1, kind="stable")[:, :k]
    merged = np.take_along_axis(np.where(repeated, -1, flat), kept, axis=1)
    result: Ints = np.full((len(flat), k), -1, dtype=np.int64)
    result[:, : merged.shape[1]] = merged
    return result
