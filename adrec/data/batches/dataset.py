"""What each batch of a run holds, from examples in memory or streamed from the prepared folder in constant memory.

A plan lists the batches of an epoch and depends on nothing but (seed, epoch): every epoch has equally many, so that a run
can stop at any batch and go on there (`adrec.training.loop.loader`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from adrec.data.arrays import Longs
from adrec.data.batches.collate import Batch
from adrec.data.batches.sampling import Draw, down_sampled, drawn_rows, every_row, positives_with_negatives, split_into
from adrec.data.examples import Examples, columns_to_read, examples_from_table, run_codes
from adrec.data.labels import LabelCut, labels_as_of
from adrec.data.prepared import Prepared

LANES = 8
"""Of a streamed epoch, at most: processes that share it read what is theirs and no more where their number divides this."""
_GROUPS_PER_LANE = 8  # at least, so that lanes are about equally long

MakeBatch = Callable[[Examples, Longs, Longs | None], Batch]


class Replay(NamedTuple):
    """Which requests are trained on where a model has learned the earlier ones: later ones, and a share of the others."""

    after: int
    """microseconds since 1970: the last moment that was learned"""
    share: float
    seed: int

    def of(self, examples: Examples) -> Examples:
        """The requests of `examples` that are trained on; all of them where none would be."""
        drawn = np.random.default_rng(self.seed).random(len(examples.request_starts)) < self.share
        codes = np.repeat(np.arange(len(examples.request_starts) - 1), np.diff(examples.request_starts))
        rows = np.flatnonzero((examples.shown_at > self.after) | drawn[codes])
        return examples.take(rows) if 0 < len(rows) < len(examples) else examples

    def places(self, places: list[tuple[Path, int]]) -> list[tuple[Path, int]]:
        """The row groups (file, number) that hold later rows, and a share of the others; all where none would be."""
        drawn = np.random.default_rng(self.seed).random(len(places)) < self.share
        chosen = [place for place, is_drawn in zip(places, drawn, strict=True) if is_drawn or _newest(place) > self.after]
        return chosen or places


def _newest(place: tuple[Path, int]) -> int:
    """The last moment of a row group, microseconds since 1970; far in the future where the file does not say."""
    group = pq.ParquetFile(place[0]).metadata.row_group(place[1])
    for number in range(group.num_columns):
        column = group.column(number)
        if column.path_in_schema == "shown_at" and column.statistics is not None and column.statistics.has_min_max:
            return int(pc.cast(pa.scalar(column.statistics.max), pa.timestamp("us", "UTC")).value)
    return np.iinfo(np.int64).max


@dataclass(frozen=True)
class Sampling:
    """Which rows of its examples an epoch uses. At most one of the two samples; both look at the main task's label."""

    label: str = "click"
    negatives: int | None = None
    """Each positive with so many negatives of its request."""
    negative_rate: float = 1.0
    """Share of negatives kept."""

    def draw(self, examples: Examples, generator: np.random.Generator) -> Draw:
        """Rows and groups of this pass."""
        if self.negatives is not None:
            return positives_with_negatives(examples.request, examples.labels[self.label], self.negatives, generator)
        if self.negative_rate < 1:
            return down_sampled(examples.request, examples.labels[self.label], self.negative_rate, generator)
        return every_row(examples.request)

    def rows(self, request: np.ndarray, label: np.ndarray) -> float:
        """Rows a pass draws, or is expected to."""
        return drawn_rows(request, label, self.negatives, self.negative_rate)


class MemoryPlan:
    """Epochs over examples in memory: `plan(epoch)` → draws, `collate(draw, generator)` → Batch."""

    def __init__(self, examples: Examples, make: MakeBatch, *, sampling: Sampling, batch_rows: int, seed: int) -> None:
        self.examples, self.make, self.sampling, self.seed = examples, make, sampling, seed
        self.rows = sampling.rows(examples.request, examples.labels[sampling.label])
        self.count = max(1, round(self.rows / batch_rows))

    def plan(self, epoch: int) -> Sequence[Draw]:
        """The draws of an epoch, in order."""
        generator = np.random.default_rng([self.seed, epoch])
        return split_into(self.sampling.draw(self.examples, generator), self.count, generator)

    def collate(self, draw: Draw, generator: np.random.Generator) -> Batch:
        """One batch."""
        return self.make(self.examples, draw.rows, draw.group)


class Piece(NamedTuple):
    """Batch `number` of the `batches` that the row groups `groups` of an epoch make together."""

    epoch: int
    lane: int
    groups: tuple[int, ...]
    number: int
    batches: int


class StreamedPlan:
    """Epochs over splits that are read from disk: a chunk of row groups, drawn from anywhere, is shuffled together.

    Batches come from several lanes in turn, each with row groups of its own. Ranks and workers take batches in turn too
    (`adrec.training.loop.loader`): the batches of one process are then those of a few lanes, and it decodes only their row
    groups. The lanes depend on the data alone, so that the batches are the same whoever shares them. In memory is one
    chunk a lane, `shuffle_rows` together. A request that lies across two row groups counts as two where they fall into
    different chunks.
    """

    def __init__(
        self,
        prepared: Prepared,
        splits: Sequence[str],
        make: MakeBatch,
        *,
        sampling: Sampling,
        batch_rows: int,
        seed: int,
        shuffle_rows: int,
        max_history: int,
        labels: Sequence[str],
        cut: LabelCut | None = None,
        replay: Replay | None = None,
        fill: Callable[[Examples], Examples] = lambda examples: examples,
    ) -> None:
        """`cut`: labels as they were known then. `replay`: which row groups are read; all where it is None. `fill`: makes what
        rows that are read lack, their matches."""
        self.make, self.sampling, self.seed = make, sampling, seed
        self.batch_rows, self.shuffle_rows, self.max_history = batch_rows, shuffle_rows, max_history
        self.labels, self.cut, self.fill = tuple(labels), cut, fill
        self.columns = columns_to_read(prepared, labels, cut)
        self.features = prepared.features()["impressions"]
        files = [file for split in splits for file in prepared.split_files(split)]
        self.places = [(file, group) for file in files for group in range(pq.read_metadata(file).num_row_groups)]
        if replay is not None:
            self.places = replay.places(self.places)
        self.group_rows, self.group_draws = self._measure()
        self.rows = float(self.group_draws.sum())
        self.count = max(1, round(self.rows / batch_rows))
        self.filled = np.flatnonzero(self.group_draws)  # row groups that a pass draws from
        lanes = min(LANES, max(len(self.filled) // _GROUPS_PER_LANE, 1), self.count)
        self.lanes = 1 << (lanes.bit_length() - 1)
        self._chunks: dict[int, tuple[tuple[int, ...], int, Examples, list[Draw]]] = {}

    def plan(self, epoch: int) -> Sequence[Piece]:
        """The pieces of an epoch: those of each lane chunk after chunk, lanes in turn."""
        order = np.random.default_rng([self.seed, epoch]).permutation(self.filled)
        lanes = [self._lane(epoch, lane, order[lane :: self.lanes]) for lane in range(self.lanes)]
        return [lanes[number % self.lanes][number // self.lanes] for number in range(self.count)]

    def _lane(self, epoch: int, lane: int, order: NDArray[np.int64]) -> list[Piece]:
        """Every `lanes`-th piece of an epoch, from the row groups of `order`."""
        batches = len(range(lane, self.count, self.lanes))
        chunk_of = np.cumsum(self.group_rows[order]) // max(self.shuffle_rows // self.lanes, 1)
        drawn = np.cumsum(self.group_draws[order])
        pieces: list[Piece] = []
        for chunk in np.unique(chunk_of):
            members = np.flatnonzero(chunk_of == chunk)
            # Batches up to here, rounded: over the whole lane the roundings add up to `batches`, in whatever order.
            count = round(batches * float(drawn[members[-1]]) / float(drawn[-1])) - len(pieces)
            groups = tuple(int(group) for group in order[members])
            pieces += [Piece(epoch, lane, groups, number, count) for number in range(count)]
        return pieces

    def collate(self, piece: Piece, generator: np.random.Generator) -> Batch:
        """One batch; reads its chunk where the last batch of its lane was of another."""
        if piece.lane not in self._chunks or self._chunks[piece.lane][:2] != (piece.groups, piece.epoch):
            self._chunks.pop(piece.lane, None)
            examples = self.read(piece.groups)
            shuffle = np.random.default_rng([self.seed, piece.epoch, *piece.groups])
            draws = split_into(self.sampling.draw(examples, shuffle), piece.batches, shuffle)
            self._chunks[piece.lane] = (piece.groups, piece.epoch, examples, draws)
        _, _, examples, draws = self._chunks[piece.lane]
        return self.make(examples, draws[piece.number].rows, draws[piece.number].group)

    def sample(self, rows: int) -> Examples:
        """All rows of a few row groups from anywhere, `rows` or fewer where that is more than one of them."""
        order = np.random.default_rng([self.seed, 0]).permutation(self.filled)
        count = np.searchsorted(np.cumsum(self.group_rows[order]), rows, side="right")
        return self.read([int(group) for group in order[: max(int(count), 1)]])

    def read(self, groups: Sequence[int]) -> Examples:
        """All rows of row groups, by their numbers in `places`."""
        tables = []
        for number in groups:
            file, group = self.places[number]
            tables.append(pq.ParquetFile(file).read_row_group(group, columns=self.columns))
        table = labels_as_of(pa.concat_tables(tables), self.cut)
        return self.fill(examples_from_table(table, self.features, max_history=self.max_history, labels=self.labels))

    def _measure(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows of each row group, and rows that a pass draws from it."""
        rows, draws = [], []
        for file, group in self.places:
            of_cut = self.cut.reads([self.sampling.label]) if self.cut is not None else []
            columns = ["request_id", self.sampling.label, *of_cut]
            table = labels_as_of(pq.ParquetFile(file).read_row_group(group, columns=columns), self.cut)
            label = np.asarray(pc.cast(table[self.sampling.label], pa.float32()).to_numpy(), np.float32)
            rows.append(table.num_rows)
            draws.append(self.sampling.rows(run_codes(table["request_id"]), label))
        return np.asarray(rows, np.int64), np.asarray(draws, np.float64)


@dataclass(frozen=True)
class InOrder:
    """All rows as they lie, whole requests together, in batches of about `batch_rows`; may be iterated again and again."""

    examples: Examples
    make: MakeBatch
    batch_rows: int
    splits: bool = False
    """whether a request of more rows comes in several batches: where nothing compares its rows, this bounds memory"""

    def __iter__(self) -> Iterator[Batch]:
        for draw in self._draws():
            step = self.batch_rows if self.splits and len(draw.rows) > 2 * self.batch_rows else len(draw.rows)
            for start in range(0, len(draw.rows), step):
                part = slice(start, start + step)
                yield self.make(self.examples, draw.rows[part], draw.group[part])

    def __len__(self) -> int:
        requests = len(self.examples.request_starts) - 1
        return min(max(1, round(len(self.examples) / self.batch_rows)), requests)

    def _draws(self) -> list[Draw]:
        return split_into(every_row(self.examples.request), len(self), None) if len(self.examples) else []
