"""Batches in the order of an epoch, from examples in memory or streamed from the prepared folder in constant memory.

The order of epoch e is a function of (seed, e) alone, so that a resumed run goes on where it stopped by skipping batches.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch.utils.data import IterableDataset

from adrec.data.collate import Batch
from adrec.data.examples import Examples, Longs, columns_to_read, examples_from_table
from adrec.data.prepared import Prepared
from adrec.data.sampling import Draw, batches, down_sampled, every_row, positives_with_negatives

Source = Callable[[np.random.Generator | None], Iterator[Examples]]
"""Gives a pass over the examples in chunks, in an order drawn from the generator (None: as they lie)."""


def in_memory(examples: Examples) -> Source:
    """One chunk: everything."""
    return lambda generator: iter([examples])


def streamed(prepared: Prepared, split: str, *, chunk_rows: int, max_history: int, labels: tuple[str, ...]) -> Source:
    """Chunks of about `chunk_rows` rows, each put together from row groups drawn anywhere in the split.

    Only one chunk is in memory. A request that two row groups share counts as two where they fall into different chunks.
    """
    files = [pq.ParquetFile(file) for file in prepared.split_files(split)]
    groups = [(number, group) for number, file in enumerate(files) for group in range(file.num_row_groups)]
    columns = columns_to_read(prepared, labels)
    features = prepared.features()["impressions"]

    def chunks(generator: np.random.Generator | None) -> Iterator[Examples]:
        order = np.arange(len(groups)) if generator is None else generator.permutation(len(groups))
        waiting: list[pa.Table] = []
        for at in order:
            number, group = groups[at]
            waiting.append(files[number].read_row_group(group, columns=columns))
            if sum(table.num_rows for table in waiting) >= chunk_rows:
                yield examples_from_table(pa.concat_tables(waiting), features, max_history=max_history, labels=labels)
                waiting = []
        if waiting:
            yield examples_from_table(pa.concat_tables(waiting), features, max_history=max_history, labels=labels)

    return chunks


@dataclass(frozen=True)
class Sampling:
    """Which rows of a chunk an epoch uses. At most one of the two is set; both need the label of the main task."""

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


class BatchStream(IterableDataset[Batch]):
    """Batches of an epoch. `epoch` picks the order; `skip` leaves out batches that were trained on before a resume.

    With `seed` None the rows come as they lie, all of them (validation, scoring). With several processes each takes every
    `world_size`-th batch, all of them equally many.
    """

    def __init__(
        self,
        source: Source,
        collate: Callable[[Examples, Longs, Longs | None], Batch],
        *,
        batch_rows: int,
        seed: int | None = None,
        sampling: Sampling | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__()
        self.source, self.collate = source, collate
        self.batch_rows, self.seed, self.sampling = batch_rows, seed, sampling
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self.skip = 0

    def __iter__(self) -> Iterator[Batch]:
        number = 0
        for examples, drawn in self._draws():
            usable = len(drawn) - len(drawn) % self.world_size if self.seed is not None else len(drawn)
            for draw in drawn[self.rank : usable : self.world_size]:
                number += 1
                if number > self.skip:
                    yield self.collate(examples, draw.rows, draw.group)

    def count(self) -> int:
        """Batches of the current epoch, by drawing them without collating. Streams the whole split."""
        return sum(1 for _, drawn in self._draws() for _ in drawn[self.rank :: self.world_size])

    def _draws(self) -> Iterator[tuple[Examples, list[Draw]]]:
        shuffled = None if self.seed is None else np.random.default_rng([self.seed, self.epoch])
        for examples in self.source(shuffled):
            if shuffled is None or self.sampling is None:
                draw = every_row(examples.request)
            else:
                draw = self.sampling.draw(examples, shuffled)
            yield examples, batches(draw, self.batch_rows, shuffled)
