"""The vector cache: each text encoded once, whatever happens to the files."""

import contextlib

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from adrec.data.text import vector_cache
from adrec.data.text.vector_cache import RecentVectors, cached_vectors, default_cache_folder


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
    (segment,) = tmp_path.glob("f*/*.npy")
    short = segment.read_bytes()[:-5]
    segment.unlink()  # the running process has it mapped
    segment.write_bytes(short)
    vector_cache._INDEXES.clear()  # as the next process finds it
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


def test_texts_that_come_one_at_a_time_leave_few_files_and_all_their_vectors(tmp_path):
    encoder = Encoder()
    texts = [f"text {number}" for number in range(100)]
    for text in texts:
        cached_vectors([text], fingerprint="f", encode=encoder, folder=tmp_path)
    assert len(list(tmp_path.glob("f*/*.npy"))) <= vector_cache.MOST_SMALL_SEGMENTS
    vector_cache._INDEXES.clear()
    found = cached_vectors(texts, fingerprint="f", encode=Encoder(), folder=tmp_path)
    assert [tuple(row) for row in found] == [Encoder.vector(text) for text in texts]
    assert encoder.asked == texts


def test_a_look_up_does_not_open_files_that_it_knows(tmp_path, monkeypatch):
    for number in range(5):
        cached_vectors([f"text {number}"], fingerprint="f", encode=Encoder(), folder=tmp_path)
    opened = []
    monkeypatch.setattr(vector_cache, "_open", lambda path: opened.append(path))
    cached_vectors(["text 3"], fingerprint="f", encode=Encoder(), folder=tmp_path)
    assert opened == []


def test_what_another_process_wrote_is_seen(tmp_path):
    cached_vectors(["a"], fingerprint="f", encode=Encoder(), folder=tmp_path)
    ours = dict(vector_cache._INDEXES)
    vector_cache._INDEXES.clear()
    cached_vectors(["b"], fingerprint="f", encode=Encoder(), folder=tmp_path)
    vector_cache._INDEXES.update(ours)
    encoder = Encoder()
    cached_vectors(["a", "b"], fingerprint="f", encode=encoder, folder=tmp_path)
    assert encoder.asked == []


def test_the_folder_stays_below_its_bound(tmp_path, monkeypatch):
    monkeypatch.setenv("ADREC_CACHE_BYTES", "3000")
    for number in range(20):
        texts = [f"text {number} {place}" for place in range(20)]
        cached_vectors(texts, fingerprint="f", encode=Encoder(), folder=tmp_path)
        assert sum(path.stat().st_size for path in tmp_path.glob("f*/*.npy")) <= 3000
    encoder = Encoder()
    cached_vectors(texts, fingerprint="f", encode=encoder, folder=tmp_path)
    assert encoder.asked == []  # the newest are there


def test_threads_share_the_folder(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    def ask(seed):
        chosen = np.random.default_rng(seed).integers(0, 60, 10)
        texts = [f"text {number}" for number in chosen]
        found = cached_vectors(texts, fingerprint="f", encode=Encoder(), folder=tmp_path)
        return [tuple(row) for row in found] == [Encoder.vector(text) for text in texts]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(100)))


def test_recent_vectors_hold_the_last_ones_in_memory_from_any_thread():
    from concurrent.futures import ThreadPoolExecutor

    recent, encoder = RecentVectors(most=50), Encoder()

    def ask(seed):
        texts = [f"text {number}" for number in np.random.default_rng(seed).integers(0, 200, 10)]
        return [tuple(row) for row in recent(texts, encoder)] == [Encoder.vector(text) for text in texts]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(200)))
    encoder.asked.clear()
    last = [f"new {number}" for number in range(50)]
    recent(last, encoder)
    recent(last[::-1], encoder)
    assert encoder.asked == last
    assert len(recent._vectors) == 50
    assert recent([], Encoder()).shape == (0, 3)
