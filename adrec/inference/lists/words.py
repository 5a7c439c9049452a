"""Which ads share a word with a query or an interest: sparse bags of words over the catalogue's own vocabulary."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.sparse import csr_array, vstack

from adrec.data.arrays import places


class Words:
    """The vocabulary of A ads and their bags. `segmented` (A,) strings: words joined by a space, as preprocess writes."""

    def __init__(self, segmented: pa.Array) -> None:
        offsets, flat = _split(segmented)
        encoded = flat.dictionary_encode()
        self._vocabulary: pa.Array = encoded.dictionary
        codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        self.ads = self._bag(offsets, codes)
        """(A, W) 1 where the ad's text has the word."""
        self._by_word = self.ads.T.tocsr()

    def with_row(self, row: int, segmented: pa.Array) -> "Words":
        """The same with the text of one ad (1,) at `row`, or behind the last; its new words come behind the known ones."""
        _, flat = _split(segmented)
        new = pc.unique(flat)
        new = new.filter(pc.invert(pc.is_in(new, value_set=self._vocabulary)))
        other = Words.__new__(Words)
        other._vocabulary = pa.concat_arrays([self._vocabulary, new.cast(self._vocabulary.type)])
        own, width = other.bag(segmented), max(1, len(other._vocabulary))
        parts = [self.ads[:row], own, self.ads[row + 1 :]]
        other.ads = csr_array(vstack([_widened(csr_array(part), width) for part in parts], format="csr"))
        other._by_word = other.ads.T.tocsr()
        return other

    def bag(self, segmented: pa.Array) -> csr_array:
        """(N, W) bags of other texts; words that no ad has are left out."""
        offsets, flat = _split(segmented)
        if len(flat) == 0:  # looking words up costs the same for none as for many
            return self._bag(offsets, np.zeros(0, np.int64))
        codes = places(flat, self._vocabulary)
        known = np.concatenate([[0], np.cumsum(codes >= 0)])
        return self._bag(known[offsets], codes[codes >= 0].astype(np.int64))

    def matched(self, bag: csr_array) -> csr_array:
        """(N, A) how many of the words of each text the ad has."""
        return csr_array(bag @ self._by_word)

    def shared_word(self, bag: csr_array, ad: NDArray[np.integer]) -> pa.Array:
        """(N,) one word that row n's text and ad n share, the rarest in the catalogue; null where there is none."""
        if not bag.nnz:
            return pa.nulls(len(ad), pa.string())
        common = csr_array(self.ads[ad].multiply(bag))
        common.eliminate_zeros()
        frequency = np.diff(self._by_word.indptr)
        rows = np.repeat(np.arange(len(ad)), np.diff(common.indptr))
        order = np.lexsort((frequency[common.indices], rows))
        first = np.full(len(ad), -1, dtype=np.int64)
        first[rows[order][::-1]] = common.indices[order][::-1]
        return self._vocabulary.take(pa.array(first, mask=first < 0))

    def _bag(self, offsets: NDArray[np.int64], codes: NDArray[np.int64]) -> csr_array:
        shape = (len(offsets) - 1, max(1, len(self._vocabulary)))
        bag = csr_array((np.ones(len(codes), dtype=np.int32), codes, offsets), shape=shape)
        bag.sum_duplicates()
        bag.data[:] = 1
        return bag


def _widened(bags: csr_array, width: int) -> csr_array:
    return csr_array((bags.data, bags.indices, bags.indptr), shape=(bags.shape[0], width))


def _split(segmented: pa.Array) -> tuple[NDArray[np.int64], pa.Array]:
    """Offsets (N + 1,) and the words end to end."""
    if isinstance(segmented, pa.ChunkedArray):
        segmented = segmented.combine_chunks()
    lists = pc.split_pattern(pc.fill_null(segmented, "").cast(pa.string()), " ")
    flat = pc.list_flatten(lists)
    real = pc.not_equal(flat, "").to_numpy(zero_copy_only=False)
    ends = np.concatenate([[0], np.cumsum(pc.list_value_length(lists).to_numpy(zero_copy_only=False))]).astype(np.int64)
    kept = np.concatenate([[0], np.cumsum(real)]).astype(np.int64)
    return kept[ends], flat.filter(pa.array(real))
