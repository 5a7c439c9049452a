"""TF-IDF of ads in any language: words of alphabetic scripts, and pairs of characters where words are not spaced."""

import re
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy import sparse

from adrec.models.match.histories import sparse_unit_rows

_UNSPACED = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_PIECES = re.compile(rf"[{_UNSPACED}]+|[^\W{_UNSPACED}_]+")
_STARTS_UNSPACED = re.compile(rf"[{_UNSPACED}]")


def terms(text: str) -> Iterator[str]:
    """Lower-case words; overlapping character pairs in Chinese, Japanese and Korean (the usual index for unspaced text).

    >>> list(terms("New 新款手机!"))
    ['new', '新款', '款手', '手机']
    """
    for piece in _PIECES.findall(text.lower()):
        if len(piece) > 1 and _STARTS_UNSPACED.match(piece):
            yield from (first + second for first, second in pairwise(piece))
        else:
            yield piece


def _kept_terms(dropped: frozenset[str], text: str) -> Iterator[str]:
    return (term for term in terms(text) if term not in dropped)


def _stop_words() -> frozenset[str]:
    import stopwordsiso

    return frozenset(stopwordsiso.stopwords(["en", "zh"]))


class TfIdf:
    """(1 + log count) * (1 + log((1 + texts) / (1 + texts with the term))), unit rows: scikit-learn's smooth sublinear form.

    Salton and Buckley 1988.
    """

    def __init__(self, vocabulary: NDArray[np.str_], idf: NDArray[np.float32]) -> None:
        self.vocabulary = vocabulary
        self.idf = idf

    @classmethod
    def fit(cls, texts: pa.Array, *, stop_words: bool = True, max_terms: int = 200_000) -> "TfIdf":
        """Learn terms and weights from `texts`: the `max_terms` commonest, without English and Chinese stop words if asked."""
        from sklearn.feature_extraction.text import CountVectorizer

        dropped = _stop_words() if stop_words else frozenset()
        vectorizer = CountVectorizer(analyzer=partial(_kept_terms, dropped), max_features=max_terms)
        listed = texts.to_numpy(zero_copy_only=False)
        if all(next(_kept_terms(dropped, text), None) is None for text in listed):
            return cls(np.zeros(0, np.str_), np.zeros(0, np.float32))
        counts = vectorizer.fit_transform(listed)
        found = np.bincount(counts.indices, minlength=counts.shape[1])
        idf = np.log((1 + len(listed)) / (1 + found)) + 1
        return cls(np.asarray(vectorizer.get_feature_names_out(), dtype=np.str_), idf.astype(np.float32))

    def transform(self, texts: pa.Array) -> sparse.csr_matrix:
        """(A, T) unit rows; zeros where a text has no known term."""
        from sklearn.feature_extraction.text import CountVectorizer

        if len(self.vocabulary) == 0:
            return sparse.csr_matrix((len(texts), 0), dtype=np.float32)
        known = {str(term): place for place, term in enumerate(self.vocabulary)}
        counts = CountVectorizer(analyzer=terms, vocabulary=known).transform(texts.to_numpy(zero_copy_only=False))
        weighted = sparse.csr_matrix(counts, dtype=np.float32)
        weighted.data = (1 + np.log(weighted.data)) * self.idf[weighted.indices]
        return sparse_unit_rows(weighted)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What npz stores."""
        return {"vocabulary": self.vocabulary, "idf": self.idf}
