"""Where each held-out click stands among all ads that were available at its moment: ranks for logs that hold clicks alone.

Every (request, available ad) is scored the way `score` and `rank` score a pair, with what was known at that moment, in blocks,
the model and the bundle's baselines alike, so that `evaluate` can compare them and loads no model. Cost: clicks times ads
pairs. A sample of the ads is cheaper, and flatters every model (Krichene and Rendle 2020): ranks of samples compare with
each other only.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from adrec.data.arrays import combined
from adrec.data.availability import Availability
from adrec.data.examples import Examples
from adrec.data.hashing import hash_strings, mix
from adrec.inference.catalogs import Catalogs
from adrec.inference.click_model import Scores
from adrec.inference.known import Known
from adrec.inference.lists.pairs import pairs_at
from adrec.inference.predictor import Predictor
from adrec.schema import CATALOGUE_RANK, CATALOGUE_SIZE, DRAWN

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Doubles = NDArray[np.float64]
_BLOCK_PAIRS = 262_144
BATCH_PAIRS = 16_384
"""Pairs given to the network at once: it makes the vectors of a batch's ads once, so that few batches are cheap."""


@dataclass(frozen=True)
class CatalogueRanks:
    """Ranks over one catalogue. `candidates`: so many ads drawn for each request, None for all."""

    predictor: Predictor
    catalogs: Catalogs
    known: Known
    available: Availability
    candidates: int | None
    drop_clicked: bool
    """leave out what the user clicked before"""
    baselines: bool = True

    def columns(self, rows: pa.Table, examples: Examples) -> dict[str, pa.Array]:
        """`catalogue_rank`, `catalogue_size` and `catalogue_rank_<baseline>` of N prepared impressions; null where a row is
        no click, or its ad was not available.

        A rank is 1 + the number of candidates with a higher score + half of the others with the same one.
        """
        asked = np.flatnonzero(self._is_asked(rows, examples))
        found: dict[str, Doubles] = {}
        size = np.zeros(len(asked))
        # Clicks of one request with one history have the same candidates.
        unit_of = np.unique(
            np.stack([examples.request[asked], examples.history_of_row[asked]]), axis=1, return_index=True, return_inverse=True
        )
        first, unit = asked[unit_of[1]], unit_of[2].ravel()
        step = max(1, _BLOCK_PAIRS // max(len(self.available), 1))
        for start in range(0, len(first), step):
            own = np.flatnonzero((unit >= start) & (unit < start + step))
            target = examples.ad_index[asked[own]].astype(np.int64)
            ranks, sizes = self._of_block(rows, examples, first[start : start + step], unit[own] - start, target)
            size[own] = sizes
            for name, values in ranks.items():
                found.setdefault(name, np.full(len(asked), np.nan))[own] = values
        return {CATALOGUE_SIZE: _placed(size, asked, len(examples)).cast(pa.int32())} | {
            name: _placed(values, asked, len(examples)) for name, values in (found or {CATALOGUE_RANK: size}).items()
        }

    def _is_asked(self, rows: pa.Table, examples: Examples) -> Bools:
        asked = np.ones(len(examples), np.bool_)
        if "click" in rows.column_names:
            asked &= np.asarray(pc.fill_null(pc.equal(rows["click"], 1), False).to_numpy(zero_copy_only=False))
        if DRAWN in rows.column_names:
            asked &= ~np.asarray(combined(rows[DRAWN]).to_numpy(zero_copy_only=False))
        ad, moment = examples.ad_index, examples.shown_at
        return asked & (self.available.opens[ad] <= moment) & (self.available.closes[ad] > moment)

    def _of_block(
        self, rows: pa.Table, examples: Examples, first: Ints, unit: Ints, target: Ints
    ) -> tuple[dict[str, Doubles], Ints]:
        """Ranks, and candidates, of T targets; `first` (R,) a row of each request, `unit` (T,) which of them is theirs."""
        block = examples.take(first)
        allowed = self.available.at(block.shown_at)
        if self.drop_clicked:
            histories = block.histories.take(block.history_of_row)
            allowed[np.repeat(np.arange(len(first)), histories.lengths), histories.values] = False
        if self.candidates is not None:
            allowed = self._drawn(allowed, rows["request_id"].take(pa.array(first)))
        allowed[unit, target] = True
        row, ad = np.nonzero(allowed)
        table = rows.take(pa.array(first))
        pairs = pairs_at(self.predictor, self.catalogs, self.known, table, block, row, ad)
        scores = self.predictor.score_examples(pairs, self.catalogs, batch_rows=BATCH_PAIRS, baselines=self.baselines)
        cells = np.full(allowed.shape, -np.inf)
        ranks = {}
        for name, values in _named(scores).items():
            cells[row, ad] = values
            own = cells[unit]  # (T, A)
            reached = own[np.arange(len(unit)), target][:, None]
            ranks[name] = 1.0 + (own > reached).sum(axis=1) + ((own == reached).sum(axis=1) - 1) / 2
        return ranks, allowed.sum(axis=1)[unit]

    def _drawn(self, allowed: Bools, requests: pa.Array) -> Bools:
        """The `candidates` ads of each request with the lowest hash of both: the same in every run and every block."""
        assert self.candidates is not None
        if allowed.shape[1] <= self.candidates:
            return allowed
        keys = hash_strings(combined(requests).cast(pa.string()))[:, None] ^ hash_strings(self.catalogs.ads.ids)[None, :]
        keys = np.where(allowed, mix(keys) >> np.uint64(1), np.uint64(np.iinfo(np.uint64).max))
        nearest = np.argpartition(keys, self.candidates - 1, axis=1)[:, : self.candidates]
        drawn = np.zeros_like(allowed)
        np.put_along_axis(drawn, nearest, True, axis=1)
        return drawn & allowed


def _named(scores: Scores) -> dict[str, Any]:
    return {CATALOGUE_RANK: scores.logit} | {f"{CATALOGUE_RANK}_{name}": values for name, values in scores.baselines.items()}


def _placed(values: Doubles, rows: Ints, count: int) -> pa.Array:
    """(count,) the values at their rows, null elsewhere."""
    cells = np.full(count, np.nan)
    cells[rows] = values
    return pa.array(cells, mask=np.isnan(cells))
