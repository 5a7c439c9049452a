"""Approximate retrieval for very large catalogues, through faiss: an HNSW graph (Malkov and Yashunin 2018) or an
inverted file with product quantisation (Jégou et al. 2011) whose candidates are compared again by exact products.

The search effort is raised until recall against exact search, on a sample of requests, reaches the target (`tune`).
"""

from collections.abc import Callable
from copy import copy
from typing import Any, Literal

import numpy as np

from adrec.errors import ResourceError, install_hint
from adrec.ranking.arrays import Bools, Floats, Ints
from adrec.ranking.recall import shares_of
from adrec.ranking.retrieve import Retrieved

Method = Literal["hnsw", "ivfpq"]
_EFFORTS: dict[Method, tuple[int, ...]] = {"hnsw": (64, 128, 256, 512, 1024, 2048), "ivfpq": (16, 32, 64, 128, 256, 512)}
_REFINE = 10  # candidates per wanted ad that product quantisation proposes


class ApproximateIndex:
    """A searchable catalogue. `ads` (A, D) float32 stays in memory for the exact comparison."""

    def __init__(self, ads: Floats, method: Method, *, seed: int) -> None:
        self._faiss = _faiss()
        self._ads = np.ascontiguousarray(ads, dtype=np.float32)
        self._method = method
        count, width = self._ads.shape
        inner = self._faiss.METRIC_INNER_PRODUCT
        if method == "hnsw":
            self._index = self._faiss.IndexHNSWFlat(width, 32, inner)
            self._index.hnsw.efConstruction = 120
        else:
            lists = int(min(max(64, 4 * np.sqrt(count)), max(1, count // 39)))
            self._index = self._faiss.index_factory(width, f"IVF{lists},PQ{_subspaces(width)}", inner)
            self._index.cp.seed = seed
            self._index.cp.niter = 10  # k-means has settled by then; twenty-five take most of the time
            sample = np.random.default_rng(seed).permutation(count)[: max(256, 64 * lists)]
            self._index.train(self._ads[sample])
        self._index.add(self._ads)
        self._changed: Ints = np.zeros(0, dtype=np.int64)
        """rows that the index lacks or has as they were: they are compared with every query"""
        self.effort = _EFFORTS[method][0]

    def with_row(self, ads: Floats, row: int) -> "ApproximateIndex":
        """Of vectors `ads` that differ from these at `row`, or have it behind the last. The index itself is shared."""
        other = copy(self)
        other._ads, other._changed = np.ascontiguousarray(ads, dtype=np.float32), np.union1d(self._changed, [row])
        return other

    def search(self, queries: Floats, k: int, *, among: Bools | None = None) -> Retrieved:
        """The k ads found per query (R, D), best first, with exact inner products; -1 where fewer were found.

        among: (A,) the only ads to be found, None for all.
        """
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        wanted = min(k if self._method == "hnsw" else _REFINE * k, len(self._ads))
        if self._method == "hnsw":
            parameters = self._faiss.SearchParametersHNSW(efSearch=max(self.effort, wanted))
        else:
            parameters = self._faiss.SearchParametersIVF(nprobe=min(self.effort, self._index.nlist))
        among_indexed = None if among is None else among[: self._index.ntotal]
        bits = None if among_indexed is None or among_indexed.all() else np.packbits(among_indexed, bitorder="little")
        if bits is not None:
            selector = self._faiss.IDSelectorBitmap(bits)  # reads `bits`, which must live as long
            parameters.sel = selector
        _, places = self._index.search(queries, wanted, params=parameters)
        if len(self._changed):
            changed = np.broadcast_to(self._changed, (len(queries), len(self._changed)))
            allowed = changed if among is None else np.where(among[changed], changed, -1)
            places = np.concatenate([np.where(np.isin(places, self._changed), -1, places), allowed], axis=1)
        return self._compare(queries, places, k)

    def tune(self, exact: Ints, search: Callable[[], Ints], *, target: float) -> float:
        """Raise the effort until `search()` finds the share `target` of `exact` (R, K), or effort ends. Returns the share."""
        reached = 0.0
        for effort in _EFFORTS[self._method]:
            self.effort = effort
            reached = float(np.nanmean(shares_of(exact, search()))) if (exact >= 0).any() else 1.0
            if reached >= target:
                break
        return reached

    def _compare(self, queries: Floats, found: Ints, k: int) -> Retrieved:
        ads, values = [], []
        step = max(1, 16_000_000 // max(1, found.shape[1] * queries.shape[1]))  # 64 MB of gathered vectors
        for start in range(0, len(queries), step):
            some = found[start : start + step]
            products = np.matmul(self._ads[np.maximum(some, 0)], queries[start : start + step, :, None])[:, :, 0]
            products = np.where(some >= 0, products, -np.inf)
            order = np.lexsort((some, -products), axis=1)[:, :k]
            ads.append(np.take_along_axis(some, order, axis=1))
            values.append(np.take_along_axis(products, order, axis=1))
        return Retrieved(np.concatenate(ads).astype(np.int32), np.concatenate(values))


def _subspaces(width: int) -> int:
    """Parts of about 4 floats that product quantisation codes as one byte each."""
    return max(part for part in range(1, max(1, width // 4) + 1) if width % part == 0)


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise ResourceError(f"Approximate retrieval needs faiss. Install it with: {install_hint('ann')}") from None
    return faiss
