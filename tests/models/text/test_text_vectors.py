"""Interests are read phrase by phrase, each distinct phrase once."""

import numpy as np
import pyarrow as pa
import torch

from adrec.data.examples import Catalog
from adrec.models.text.text_vectors import MOST_PHRASES, TextReader


class Letters:
    """An encoder of a world where a text's vector is its number of letters and of spaces."""

    dimension, fingerprint = 2, "letters"


class CountingReader(TextReader):
    """Counts what is encoded, in place of a language model."""

    def __init__(self):
        super().__init__(Letters(), use_cache=False)
        self.encoded = []

    def _encode(self, texts, terminal, what):
        self.encoded += texts
        return np.array([[len(text), text.count(" ")] for text in texts], np.float32)


def users(texts):
    count = len(texts)
    return Catalog(
        ids=pa.array([f"u{number}" for number in range(count)]),
        texts=pa.array(texts),
        numeric=np.zeros((count, 0), np.float32),
        categorical=np.zeros((count, 0), np.int32),
        lists={},
        identity=np.zeros(count, np.int32),
    )


def test_each_interest_is_encoded_once_and_gets_a_vector_of_its_own():
    reader = CountingReader()
    give = reader.interests(users(["tea, long walks", "long walks；tea、运动", "", "opera"]), np.array([0, 1, 2]), apart=True)
    assert sorted(reader.encoded) == ["", "long walks", "tea", "运动"]
    found = give(np.array([1, 2, 0])).vectors
    expected = [[[10, 1], [3, 0], [2, 0]], [[0, 0], [0, 0], [0, 0]], [[3, 0], [10, 1], [0, 0]]]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32))
    give(np.array([3]))
    assert reader.encoded.count("opera") == 1 and len(reader.encoded) == 5


def test_a_long_list_keeps_its_end_as_one_text():
    reader = CountingReader()
    give = reader.interests(users([", ".join("abcdefghij")]), apart=True)
    assert give(np.array([0])).vectors.shape == (1, MOST_PHRASES, 2)
    assert "h, i, j" in reader.encoded


def test_all_interests_as_one_text():
    reader = CountingReader()
    assert reader.interests(users(["tea, long walks"]), apart=False)(np.array([0])).vectors.tolist() == [[15, 2]]
