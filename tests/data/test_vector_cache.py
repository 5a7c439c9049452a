"""The vector cache: each text encoded once, whatever happens to the files."""

import contextlib

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from adrec.data.vector_cache import cached_vectors, default_cache_folder


class Encoder:
    """Counts what it is asked; the vector of a text is its length, its first character and a hash."""

    def __init__(self):
        self.asked = []

    def __call__(self, texts):
        self.asked.extend(texts)
        return np.array([self.vector(text) for text in texts], np.float32).reshape(len(texts), 3)

    @staticmethod
    def vector(text):
        return (len(text), ord(text[0]) if text else -1, sum(map(ord, text)) % 997)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.text(max_size=5), max_size=20), min_size=1, max_size=4))
def test_vectors_are_right_and_each_text_is_encoded_once(calls):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        encoder = Encoder()
        for texts in calls:
            vectors = cached_vectors(texts, fingerprint="f", encode=encoder, folder=Path(folder), segment_texts=3)
            assert vectors.shape == (len(texts), 3)
            assert [tuple(row) for row in vectors] == [Encoder.vector(text) for text in texts]
        assert sorted(encoder.asked) == sorted({text for texts in calls for text in texts})


def test_another_encoder_shares_nothing(tmp_path):
    first, second = Encoder(), Encoder()
    cached_vectors(["a", "b"], fingerprint="f", encode=first, folder=tmp_path)
    cached_vectors(["a", "b"], fingerprint="g", encode=second, folder=tmp_path)
    assert second.asked == ["a", "b"]


def test_a_kill_costs_only_the_segment_in_progress(tmp_path):
    texts = [f"text {number}" for number in range(10)]

    def dies(asked):
        if "text 6" in asked:
            raise KeyboardInterrupt
        return Encoder()(asked)

    with contextlib.suppress(KeyboardInterrupt):
        cached_vectors(texts, fingerprint="f", encode=dies, folder=tmp_path, segment_texts=3)
    after = Encoder()
    vectors = cached_vectors(texts, fingerprint="f", encode=after, folder=tmp_path, segment_texts=3)
    assert after.asked == texts[6:]
    assert [tuple(row) for row in vectors] == [Encoder.vector(text) for text in texts]


def test_a_damaged_segment_is_encoded_again(tmp_path):
    texts = ["a", "b", "c"]
    cached_vectors(texts, fingerprint="f", encode=Encoder(), folder=tmp_path)
    (segment,) = (tmp_path / "f").glob("*.npy")
    segment.write_bytes(segment.read_bytes()[:-5])
    again = Encoder()
    vectors = cached_vectors(texts, fingerprint="f", encode=again, folder=tmp_path)
    assert again.asked == texts
    assert [tuple(row) for row in vectors] == [Encoder.vector(text) for text in texts]


def test_an_unwritable_cache_is_no_obstacle(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    vectors = cached_vectors(["a"], fingerprint="f", encode=Encoder(), folder=blocked)
    assert tuple(vectors[0]) == Encoder.vector("a")


def test_default_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("ADREC_CACHE", str(tmp_path / "mine"))
    assert default_cache_folder() == tmp_path / "mine" / "vectors"
    monkeypatch.delenv("ADREC_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_folder() == tmp_path / "adrec" / "vectors"
