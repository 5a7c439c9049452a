"""Poisson samples of whole units (users, or rows), and a batch taken apart so that each unit stands by itself.

A Batch carries what its rows share once: ads, contexts, histories. The gradient of one unit must know nothing of the others,
so each gets its own ads and contexts here, as numbers into those of the batch, padded to the size of its chunk. Units of a
chunk are about equally large, so that little is padding.

# U units, R rows a unit, C contexts a unit, A ads a unit, H history, S skipped; B rows of the batch
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adrec.data.arrays import Longs, ends, ranges
from adrec.data.batches.blocks import Blocks
from adrec.data.batches.collate import Batch, Entities, Texts
from adrec.data.batches.dataset import MakeBatch
from adrec.data.examples import Examples
from adrec.privacy.noise import Noise


class Chunk(NamedTuple):
    """Some units of a batch. Numbers point into the batch; where there is padding they say 0."""

    row: Tensor
    """(U, R)"""
    real: Tensor
    """(U, R) bool, False for padding"""
    context: Tensor
    """(U, R) which of the unit's contexts"""
    contexts: Tensor
    """(U, C)"""
    ads: Tensor
    """(U, A)"""
    ad: Tensor
    """(U, R) which of the unit's ads"""
    history: Tensor
    """(U, C, H) which of the unit's ads"""
    skipped: Tensor
    """(U, C, S)"""


class Units(NamedTuple):
    """One step's sample."""

    batch: Batch
    """all rows of all units; of an empty sample one row that no chunk names"""
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True)
class PoissonPlan:
    """Every step each unit takes part with probability `rate`, and with at most `most_rows` of its rows, drawn anew.

    `unit` (N,) is the unit of each row, 0, 1, ...; rows with unit -1 take no part. A run is one epoch of `count` steps.
    """

    examples: Examples
    make: MakeBatch
    unit: Longs
    rate: float
    most_rows: int
    count: int
    chunk_units: int
    noise: Noise

    def __post_init__(self) -> None:
        known = np.flatnonzero(self.unit >= 0)
        order = known[np.argsort(self.unit[known], kind="stable")]
        object.__setattr__(self, "_rows", order)
        object.__setattr__(self, "_starts", ends(np.bincount(self.unit[order])))

    @property
    def units(self) -> int:
        """How many there are."""
        return len(self._starts) - 1  # type: ignore[attr-defined]

    @property
    def expected(self) -> float:
        """Units a step, on average: public, as the rate and the number of units are taken to be."""
        return self.rate * self.units

    def plan(self, epoch: int) -> Sequence[int]:
        """The steps. What they hold is drawn when they are made, and cannot be foretold."""
        return range(self.count)

    def collate(self, step: int, generator: np.random.Generator) -> Units:
        """One step's sample; a step that is made again after a kill draws anew."""
        starts: Longs = self._starts  # type: ignore[attr-defined]
        chosen = np.flatnonzero(self.noise.chosen(np.full(self.units, self.rate)))
        lengths = np.diff(starts)[chosen]
        rows = self._rows[ranges(starts[chosen], lengths)]  # type: ignore[attr-defined]
        code = np.repeat(np.arange(len(chosen)), lengths)
        shuffled = np.lexsort((self.noise.uniform(len(rows)), code))
        rank = np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        kept = shuffled[rank < self.most_rows]
        if not len(kept):
            return Units(self.make(self.examples, np.zeros(1, np.int64), None), ())
        batch = self.make(self.examples, rows[kept], None)
        return Units(batch, chunks_of(batch, code[kept], self.chunk_units))


def chunks_of(batch: Batch, unit: Longs, chunk_units: int) -> tuple[Chunk, ...]:
    """The units of a batch, `unit` (B,) being 0, 1, ... in rising order, at most so many together, the smallest first.

    Where units have as many rows, those with the shortest histories come first: their ads are encoded unit by unit.
    """
    counts = np.bincount(unit)
    first = np.cumsum(counts) - counts
    of_context = batch.history_mask.sum(1).numpy() + batch.skipped_mask.sum(1).numpy()
    known = np.bincount(unit, weights=of_context[batch.context.numpy()])
    order = np.lexsort((known, counts))
    return tuple(
        _chunk(batch, first[some], counts[some])
        for some in np.array_split(order, max(1, -(-len(order) // chunk_units)))
        if len(some)
    )


def apart(batch: Batch, chunk: Chunk) -> Batch:
    """The chunk's units as a Batch each, all of one shape and stacked: every tensor begins with the axis U.

    Labels of padding are NaN, which no loss counts. In-batch losses have no meaning here: `positive` is empty.
    """
    units, rows = chunk.row.shape
    contexts = chunk.contexts
    numbers = torch.arange(rows, device=chunk.row.device).expand(units, rows)
    queries = batch.queries if batch.queries.vectors is None else Texts(batch.queries.vectors[batch.query[chunk.row]])
    return Batch(
        ads=_entities(batch.ads, chunk.ads),
        users=_entities(batch.users, contexts),
        history=chunk.history,
        history_mask=batch.history_mask[contexts, : chunk.history.shape[-1]],
        history_hours=batch.history_hours[contexts, : chunk.history.shape[-1]],
        history_length=batch.history_length[contexts],
        skipped=chunk.skipped,
        skipped_mask=batch.skipped_mask[contexts, : chunk.skipped.shape[-1]],
        queries=queries,
        context=chunk.context,
        blocks=Blocks(chunk.context, numbers[..., None], numbers),
        ad=chunk.ad,
        query=numbers,
        numeric=batch.numeric[chunk.row],
        categorical=batch.categorical[chunk.row],
        lists=tuple(codes[chunk.row] for codes in batch.lists),
        position=batch.position[chunk.row],
        group=torch.zeros_like(chunk.row),
        labels=batch.labels[chunk.row].masked_fill(~chunk.real[..., None], torch.nan),
        positive=chunk.row[:, :0],
        log_frequency=batch.log_frequency[chunk.row],
        matches=batch.matches[chunk.row],
    )


def _chunk(batch: Batch, first: Longs, counts: Longs) -> Chunk:
    units = len(first)
    real = np.arange(counts.max()) < counts[:, None]  # (U, R)
    row = np.where(real, first[:, None] + np.arange(real.shape[1]), first[:, None])
    owner = np.repeat(np.arange(units)[:, None], real.shape[1], axis=1)
    contexts, context = _own(owner, batch.context.numpy()[row], np.ones_like(real), units)
    history, mask = _cut(batch.history.numpy()[contexts], batch.history_mask.numpy()[contexts])  # (U, C, H)
    skipped, passed = _cut(batch.skipped.numpy()[contexts], batch.skipped_mask.numpy()[contexts])
    shapes = [row.shape, history.shape, skipped.shape]
    named = [batch.ad.numpy()[row], history, skipped]
    flat = np.concatenate([part.reshape(units, -1) for part in named], axis=1)
    counted = np.concatenate([part.reshape(units, -1) for part in (np.ones_like(real), mask, passed)], axis=1)
    ads, places = _own(np.repeat(np.arange(units)[:, None], flat.shape[1], axis=1), flat, counted, units)
    cuts = np.cumsum([part.reshape(units, -1).shape[1] for part in named])[:-1]
    ad, of_history, of_skipped = (
        part.reshape(shape) for part, shape in zip(np.split(places, cuts, axis=1), shapes, strict=True)
    )
    return Chunk(*map(_tensor, (row, real, context, contexts, ads, ad, of_history, of_skipped)))


def _cut(places: Longs, real: NDArray[np.bool_]) -> tuple[Longs, NDArray[np.bool_]]:
    """(U, C, H) without the places at the end that all units lack; one stays."""
    width = max(1, int(real.sum(-1).max(initial=0)))
    return places[..., :width], real[..., :width]


def _own(owner: Longs, values: Longs, counted: NDArray[np.bool_], units: int) -> tuple[Longs, Longs]:
    """The distinct `values` of each owner, padded (U, most); and where each value stands there, 0 where it is not counted."""
    width = int(values.max(initial=0)) + 1
    keys, inverse = np.unique((owner * width + values)[counted], return_inverse=True)
    of = keys // width
    sizes = np.bincount(of, minlength=units)
    starts = np.cumsum(sizes) - sizes
    rank = np.arange(len(keys)) - starts[of]
    own = np.zeros((units, max(int(sizes.max(initial=0)), 1)), np.int64)
    own[of, rank] = keys % width
    places = np.zeros(values.shape, np.int64)
    places[counted] = rank[inverse]
    return own, places


def _entities(entities: Entities, rows: Tensor) -> Entities:
    assert entities.texts.input_ids is None, "a text encoder that is trained is no part of a unit"
    return Entities(
        texts=Texts(None if entities.texts.vectors is None else entities.texts.vectors[rows]),
        numeric=entities.numeric[rows],
        categorical=entities.categorical[rows],
        lists=tuple(codes[rows] for codes in entities.lists),
        identity=entities.identity[rows],
        vectors=tuple(vectors[rows] for vectors in entities.vectors),
    )


def _tensor(array: NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
