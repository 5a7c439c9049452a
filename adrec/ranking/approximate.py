"""Approximate retrieval for very large catalogues, through faiss: an HNSW graph (Malkov and Yashunin 2018) or an
inverted file with product quantisation (Jégou et al. 2011) whose candidates are compared again by exact products.

The search effort is raised until recall against exact search, on a sample of requests, reaches the target.
"""

from typing import Any, Literal

import numpy as np

from adrec.errors import ResourceError
from adrec.ranking.arrays import Floats, Ints
from adrec.ranking.retrieve import Retrieved, exact_top_k

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
        self.effort = _EFFORTS[method][0]

    def search(self, queries: Floats, k: int) -> Retrieved:
        """The k ads found per query (R, D), best first, with exact inner products; -1 where fewer were found."""
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        wanted = min(k if self._method == "hnsw" else _REFINE * k, len(self._ads))
        if self._method == "hnsw":
            parameters = self._faiss.SearchParametersHNSW(efSearch=max(self.effort, wanted))
        else:
            parameters = self._faiss.SearchParametersIVF(nprobe=min(self.effort, self._index.nlist))
        _, found = self._index.search(queries, wanted, params=parameters)
        return self._compare(queries, found, k)

    def tune(self, queries: Floats, k: int, *, target: float) -> float:
        """Raise the effort until recall@k on `queries` reaches `target` or the effort ends. Returns the recall reached."""
        exact = exact_top_k(queries, self._ads, k)
        reached = 0.0
        for effort in _EFFORTS[self._method]:
            self.effort = effort
            reached = recall(self.search(queries, k).ad, exact.ad)
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


def recall(found: Ints, exact: Ints) -> float:
    """Mean share of each request's exact top-k that was found. (R, K) both; -1 is no ad."""
    hits = [np.isin(wanted[wanted >= 0], got).mean() for got, wanted in zip(found, exact, strict=True) if (wanted >= 0).any()]
    return float(np.mean(hits)) if hits else 1.0


def _subspaces(width: int) -> int:
    """Parts of about 4 floats that product quantisation codes as one byte each."""
    return max(part for part in range(1, max(1, width // 4) + 1) if width % part == 0)


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise ResourceError("Approximate retrieval needs faiss. Install it with: pip install 'adrec[ann]'") from None
    return faiss
