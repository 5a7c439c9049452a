"""Cosines of a candidate's vector to lists of vectors: the formulas, and their evaluation for every row of a log at once.

The formulas are written once, for tensors: the table asks them in double precision, a network whose encoder is trained asks
them in its own, where gradients pass. In single precision the last bits depend on what is multiplied beside them, and a tree
may split just there. Costs one small matrix product a history; histories are taken in blocks of similar size.

Shapes: N lists, K candidates of each, H places of a list, P interests, D width; B rows.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adrec.data.arrays import ranges, unit_rows
from adrec.data.batches.collate import TextInputs
from adrec.data.ragged import Ragged
from adrec.models.match.histories import Floats

Rows = Callable[[NDArray[np.integer]], Floats]
"""Row numbers, of any shape, → vectors."""
STATISTICS = ("mean", "max", "top3", "last1", "last5", "soft", "recent")
"""Columns of `nearness`."""
DECLARED = ("interest_mean", "interest_nearest")
"""Columns of `interest_nearness`."""
_LEVEL, _NOISE = 100.0, 6.0
"""Variances of a user's level, which is all but free, and of one answer, beside cosines of 1: `taste`."""
_SHARPNESS = 10.0
_HALF_LIFE_CLICKS = 10.0
_BLOCK_CELLS = 4_000_000
_LIST_PARTS = 4
"""A list's candidates fill at most one part in so many of a block."""


def nearness(candidates: Tensor, listed: Tensor, mask: Tensor) -> Tensor:
    """Unit vectors of candidates (N, K, D) and of lists (N, H, D), newest last, mask (N, H) bool → (N, K, 7) as STATISTICS.

    mean: cosine to the mean of the list's unit vectors. max, top3: the largest cosine, the mean of the three largest. last1,
    last5: the newest, the mean of the newest five. soft: log mean exp at sharpness 10, between mean and max. recent: the mean,
    weighted by halving every ten places back. 0 where a list is empty. A zero vector is no place of a list.
    """
    mask = mask & listed.any(-1)
    listed = listed * mask[..., None]
    cosine = torch.bmm(candidates, listed.transpose(1, 2))  # (N, K, H)
    newer = mask.flip(1).cumsum(1).flip(1) - mask.long()  # (N, H) how many of the list are newer
    halved = torch.exp2(-newer.to(listed.dtype) / _HALF_LIFE_CLICKS)
    weights = torch.stack([(newer < 1) * mask, (newer < 5) * mask, halved * mask], -1).to(listed.dtype)  # (N, H, 3)
    averages = torch.bmm(cosine, weights) / weights.sum(1, keepdim=True).clamp(min=1e-12)
    direction = nn.functional.normalize(listed.sum(1), dim=-1)
    hidden = cosine.masked_fill(~mask[:, None], -torch.inf)
    best = hidden.topk(min(3, hidden.shape[2]), dim=-1).values
    shown = torch.isfinite(best)
    best = best.masked_fill(~shown, 0.0)
    count = mask.sum(1)[:, None]  # (N, 1)
    total = torch.logsumexp((hidden * _SHARPNESS).masked_fill((count == 0)[..., None], 0.0), -1)
    soft = (total - torch.log(count.clamp(min=1))) / _SHARPNESS
    columns = [
        torch.bmm(candidates, direction[..., None])[..., 0],
        best[..., 0],
        best.sum(-1) / shown.sum(-1).clamp(min=1),
        averages[..., 0],
        averages[..., 1],
        soft.masked_fill(count == 0, 0.0),
        averages[..., 2],
    ]
    return torch.stack(columns, -1)


def taste(candidates: Tensor, listed: Tensor, liked: Tensor) -> Tensor:
    """How a user's own answers speak for candidates: unit vectors (N, K, D), of what was shown (N, H, D), zeros where a list
    has no such place; liked (N, H) 1 or 0 → (N, K).

    Ridge regression of the answers on the vectors and a level of the user's own, without that level: who likes everything
    likes nothing more than the rest, so the column tells a user's candidates apart and no user from another. It is the mean
    of a Gaussian process over the texts (Rasmussen and Williams 2006, eq. 2.25); of H places or D numbers the fewer are solved.
    """
    there = listed.any(-1)
    level = (there * math.sqrt(_LEVEL)).to(listed.dtype)
    x = torch.cat([listed, level[..., None]], -1)  # (N, H, D + 1)
    y = (liked * there).to(listed.dtype)[..., None]
    small = x if x.shape[1] <= x.shape[2] else x.transpose(1, 2)
    system = torch.bmm(small, small.transpose(1, 2)) + _NOISE * torch.eye(small.shape[1], dtype=x.dtype, device=x.device)
    if small is x:
        weights = torch.bmm(x.transpose(1, 2), torch.linalg.solve(system, y))
    else:
        weights = torch.linalg.solve(system, torch.bmm(small, y))
    return torch.bmm(candidates, weights[:, :-1])[..., 0]


def interest_nearness(candidates: Tensor, interests: Tensor) -> Tensor:
    """Unit vectors (N, K, D); interests (N, P, D) of any length, zero where there is none → (N, K, 2) as DECLARED: cosines to
    the mean of their unit vectors and to the nearest; 0 where there is none.
    """
    unit = nn.functional.normalize(interests, dim=-1)
    near = torch.bmm(candidates, unit.transpose(1, 2)).masked_fill(~interests.any(-1)[:, None], -torch.inf).amax(-1)
    mean = torch.bmm(candidates, nn.functional.normalize(unit.sum(1), dim=-1)[..., None])[..., 0]
    return torch.stack([mean, near.masked_fill(torch.isinf(near), 0.0)], -1)


def to_lists(lists: Ragged, of_row: NDArray[np.integer], candidate: NDArray[np.integer], units: Rows, width: int) -> Floats:
    """(B, 7) `nearness` of the ads `candidate` (B,) to the ads of the lists of each row, `of_row` (B,).

    `units` gives the vectors of ads, (..., width) of unit length.
    """
    result = np.zeros((len(candidate), len(STATISTICS)), np.float32)
    for block in _blocks(lists, of_row, candidate, width):
        listed, asked = (torch.from_numpy(units(ads).astype(np.float64)) for ads in (block.listed, block.candidate))
        columns = nearness(asked, listed, torch.from_numpy(block.mask)).numpy()
        result[block.rows] = columns[block.row_of, block.column_of]
    return result


def to_taste(
    likes: Ragged, dislikes: Ragged, of_row: NDArray[np.integer], candidate: NDArray[np.integer], units: Rows, width: int
) -> Floats:
    """(B, 1) `taste` of the ads `candidate` (B,) by the ads that the user of each row, `of_row` (B,), clicked and skipped."""
    owner = np.concatenate([np.repeat(np.arange(len(lists)), lists.lengths) for lists in (likes, dislikes)])
    answers = np.concatenate([2 * likes.values.astype(np.int64) + 1, 2 * dislikes.values.astype(np.int64)])
    both = Ragged(likes.offsets + dislikes.offsets, answers[np.argsort(owner, kind="stable")])
    result = np.zeros((len(candidate), 1), np.float32)
    for block in _blocks(both, of_row, candidate, width):
        listed, asked = (torch.from_numpy(units(ads).astype(np.float64)) for ads in (block.listed >> 1, block.candidate))
        liked, mask = torch.from_numpy(block.listed & 1), torch.from_numpy(block.mask)
        column = taste(asked, listed * mask[..., None], liked).numpy()
        result[block.rows, 0] = column[block.row_of, block.column_of]
    return result


def to_interests(
    user: NDArray[np.integer], candidate: NDArray[np.integer], units: Sequence[Floats], interests: TextInputs
) -> list[Floats]:
    """For each piece of the text vectors the (B, 2) of `interest_nearness`. `units`: unit vectors (A, piece) of each."""
    found = [np.zeros((len(user), len(DECLARED)), np.float32) for _ in units]
    ends = np.cumsum([unit.shape[1] for unit in units])
    step = max(1, _BLOCK_CELLS // (4 * int(ends[-1])))
    for start in range(0, len(user), step):
        rows = slice(start, start + step)
        users, place = np.unique(user[rows], return_inverse=True)
        vectors = interests(users.astype(np.int64)).vectors
        assert vectors is not None
        vectors = (vectors if vectors.ndim == 3 else vectors[:, None]).double()[torch.from_numpy(place)]  # (b, P, D)
        for unit, end, result in zip(units, ends, found, strict=True):
            asked = torch.from_numpy(unit[candidate[rows]].astype(np.float64))[:, None]
            result[rows] = interest_nearness(asked, vectors[..., end - unit.shape[1] : end])[:, 0].numpy()
    return found


def paired_cosines(
    left: Rows, right: Rows, left_rows: NDArray[np.integer], right_rows: NDArray[np.integer], *, chunk: int = 16_384
) -> Floats:
    """(B,) cosine of the vectors at `left_rows[i]` and `right_rows[i]`; 0 where either is zero."""
    result = np.zeros(len(left_rows), np.float32)
    for start in range(0, len(left_rows), chunk):
        part = slice(start, start + chunk)
        units = unit_rows(left(left_rows[part])), unit_rows(right(right_rows[part]))
        result[part] = np.einsum("nd,nd->n", *units, dtype=np.float64)
    return result


def units_of(vectors: Rows) -> Rows:
    """Rows of any shape of ad numbers as unit vectors, each distinct ad read once."""

    def units(rows: NDArray[np.integer]) -> Floats:
        used, place = np.unique(rows, return_inverse=True)
        found: Floats = unit_rows(vectors(used))[place.reshape(rows.shape)]
        return found

    return units


class _Block(NamedTuple):
    """N lists of a similar size: their H ads and their K candidate rows, padded."""

    listed: NDArray[np.int64]
    """(N, H) ads"""
    mask: NDArray[np.bool_]
    """(N, H)"""
    candidate: NDArray[np.int64]
    """(N, K) ads"""
    rows: NDArray[np.int64]
    """(M,) rows that the block answers"""
    row_of: NDArray[np.int64]
    """(M,) their place among the N lists"""
    column_of: NDArray[np.int64]
    """(M,) their place among the K candidates"""


def _blocks(lists: Ragged, of_row: NDArray[np.integer], candidate: NDArray[np.integer], width: int) -> Iterator[_Block]:
    """Lists that hold ads and have candidates, cut so that a block's arrays stay near `_BLOCK_CELLS` numbers; a list that is
    held against more candidates than that (the whole catalogue) comes once for each part of them.
    """
    by_list = np.argsort(of_row, kind="stable")
    candidates = np.bincount(of_row, minlength=len(lists))
    most = max(_BLOCK_CELLS // (_LIST_PARTS * width), 1)
    parts = np.where(lists.lengths > 0, -(-candidates // most), 0)
    owner = np.repeat(np.arange(len(lists)), parts)  # of each part of a list's candidates
    before = most * ranges(np.zeros(len(lists), np.int64), parts)
    first = (np.cumsum(candidates) - candidates)[owner] + before
    candidates, lengths, starts = np.minimum(candidates[owner] - before, most), lists.lengths[owner], lists.offsets[owner]
    order = np.lexsort((candidates, lengths))
    start = 0
    while start < len(order):
        ahead = order[start : start + 4096]
        h, k = np.maximum.accumulate(lengths[ahead]), np.maximum.accumulate(candidates[ahead])
        cells = np.arange(1, len(ahead) + 1) * ((h + k) * width + h * k)
        count = max(int(np.searchsorted(cells, _BLOCK_CELLS, side="right")), 1)
        chosen = ahead[:count]
        listed, mask = _padded(lists.values, starts[chosen], lengths[chosen])
        rows, _ = _padded(by_list, first[chosen], candidates[chosen])
        row_of = np.repeat(np.arange(count), candidates[chosen])
        column_of = ranges(np.zeros(count, np.int64), candidates[chosen])
        yield _Block(listed, mask, candidate[rows].astype(np.int64), rows[row_of, column_of], row_of, column_of)
        start += count


def _padded(
    values: NDArray[np.integer], starts: NDArray[np.integer], lengths: NDArray[np.integer]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Slices of `values` as the rows of a matrix, repeating each slice's first value as padding at the end; and the mask."""
    place = np.arange(int(lengths.max()))[None, :]
    mask = place < lengths[:, None]
    return values[starts[:, None] + np.where(mask, place, 0)].astype(np.int64), mask
