"""Texts of several markets in one pretraining: how often each is learned, so that a large market does not drown a small one.

An epoch holds a text of a market of n texts n^(t - 1) times, in units in which the largest market's are there once: t = 1 takes
texts as they come, t = 0 gives all markets as many (Conneau and Lample 2019, "Cross-lingual language model pretraining", 3.1).
No text is left out. Costs links to the corpora, which are not copied, and 8 bytes a text.

# D markets, N texts of all of them, market after market
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from adrec.data.arrays import Longs
from adrec.data.disk.tables import parquet_files
from adrec.data.prepared import Prepared
from adrec.data.text.pairs import Pairs

CORPUS = "corpus.parquet"


@dataclass(frozen=True)
class Mixture:
    """`path` holds the corpora of all `folders`, and `sizes` (D,) says how many texts each has."""

    folders: Sequence[Prepared]
    path: Path
    sizes: Longs
    temperature: float

    @classmethod
    def open(cls, folders: Sequence[Prepared], *, temperature: float, links: Path) -> "Mixture":
        """Of one folder its own corpus; of several links to their files, made in the folder `links`."""
        files = [parquet_files(prepared.path / CORPUS) for prepared in folders]
        sizes = np.array([sum(pq.read_metadata(file).num_rows for file in of_one) for of_one in files], np.int64)
        if len(folders) == 1:
            return cls(folders, folders[0].path / CORPUS, sizes, temperature)
        links.mkdir(parents=True, exist_ok=True)
        for number, file in enumerate(file for of_one in files for file in of_one):
            link, aside = links / f"{number:06d}.parquet", links / f".{number:06d}.{os.getpid()}"
            aside.symlink_to(file.resolve())
            aside.replace(link)  # in one step: other processes of one training make the same
        return cls(folders, links, sizes, temperature)

    @property
    def markets(self) -> dict[str, slice]:
        """Which texts are whose, by the folders' names; nothing where there is one."""
        ends = np.cumsum(self.sizes)
        texts = [slice(int(end - size), int(end)) for end, size in zip(ends, self.sizes, strict=True)]
        names = [f"{number}: {prepared.path.name}" for number, prepared in enumerate(self.folders, start=1)]
        return dict(zip(names, texts, strict=True)) if len(texts) > 1 else {}

    def balanced(self, rows: Longs, *, seed: int) -> Longs:
        """Texts, rising, each as often as an epoch holds it."""
        market = np.searchsorted(np.cumsum(self.sizes), rows, side="right")
        return rows[self._drawn(market, seed)]

    def pairs(self, made: Callable[[Prepared], Pairs], fraction: float, *, most: int, seed: int) -> tuple[Pairs, Pairs]:
        """Training and held-out pairs of all folders, the training ones each as often as an epoch holds them."""
        split = [made(prepared).split(fraction, most=most, seed=seed) for prepared in self.folders]
        if len(split) == 1:
            return split[0]
        texts = np.concatenate([train.texts for train, _ in split])
        starts = np.cumsum([0, *(len(train.texts) for train, _ in split)])[:-1]
        market = np.repeat(np.arange(len(split)), [len(train) for train, _ in split])
        left, right = (side[self._drawn(market, seed)] for side in _sides([train for train, _ in split], starts))
        share = np.bincount(right, minlength=len(texts)) / len(right)
        held_left, held_right = _sides([held for _, held in split], starts)
        return Pairs(texts, left, right, share), Pairs(texts, held_left, held_right, share)

    def _drawn(self, market: NDArray[np.integer], seed: int) -> Longs:
        """Positions, rising, repeated: whole times, and once more for as many as make up the rest."""
        sizes = np.maximum(np.bincount(market, minlength=len(self.sizes)), 1).astype(np.float64)
        times = (sizes / sizes.max()) ** (self.temperature - 1.0)
        whole = np.floor(times)[market]
        more = np.random.default_rng(seed).random(len(market)) < (times - np.floor(times))[market]
        return np.repeat(np.arange(len(market)), (whole + more).astype(np.int64))


def _sides(parts: Sequence[Pairs], starts: NDArray[np.integer]) -> tuple[Longs, Longs]:
    """Left and right of all parts, whose texts begin at `starts` among those of all."""
    left = np.concatenate([pairs.left + start for pairs, start in zip(parts, starts, strict=True)])
    right = np.concatenate([pairs.right + start for pairs, start in zip(parts, starts, strict=True)])
    return left, right
