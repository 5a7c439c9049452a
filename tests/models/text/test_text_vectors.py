"""Interests are read phrase by phrase, each distinct phrase once."""

import numpy as np
import pyarrow as pa
import torch
from corpora import make_corpus

from adrec.data.device import encodes_bf16, runs_bf16
from adrec.data.examples import Catalog
from adrec.models.text.hugging_face import load_tokenizer
from adrec.models.text.language_model import new_language_model
from adrec.models.text.text_encoder import load_text_encoder
from adrec.models.text.text_vectors import MOST_PHRASES, TextReader


class Letters:
    """An encoder of a world where a text's vector is its number of letters and of spaces."""

    dimension, fingerprint = 2, "letters"


class CountingReader(TextReader):
    """Counts what is encoded, in place of a language model."""

    def __init__(self):
        super().__init__(Letters(), use_cache=False)
        self.encoded = []

    def _encode(self, texts, role, terminal, what):
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


def test_vectors_in_bf16_are_near_and_cached_apart(tmp_path):
    tokenizer = load_tokenizer(make_corpus(tmp_path / "prepared", count=80) / "tokenizer")
    new_language_model("tiny", tokenizer, max_tokens=32).save(tmp_path / "hf", tokenizer)
    encoder = load_text_encoder(str(tmp_path / "hf"))
    texts = [f"{word} shoes for {use}" for word in ("red", "old", "warm") for use in ("work", "winter", "the beach")]
    exact = TextReader(encoder, cache=tmp_path / "cache")
    rounded = TextReader(encoder, cache=tmp_path / "cache", bf16=True)
    first, second = exact.vectors(texts), rounded.vectors(texts)
    assert second.dtype == np.float32 and not np.array_equal(first, second)
    cosines = (first * second).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)
    assert (cosines > 0.999).all()
    assert np.array_equal(TextReader(encoder, cache=tmp_path / "cache").vectors(texts), first), "never one for the other"
    assert np.array_equal(rounded.apart(exact=True).vectors(texts), first), "golden requests are the same everywhere"
    assert [encodes_bf16(precision, "cpu") for precision in ("auto", "fp32", "bf16")] == [False] * 3, "slower there"
    assert [runs_bf16(precision, "cpu") for precision in ("auto", "fp32", "bf16")] == [False, False, True]
