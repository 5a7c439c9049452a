"""A corpus that is tokenised as it is read gives the same batches as one whose tokens lie on disk."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from corpora import make_corpus

from adrec.data.text.corpus import StreamedTokens, open_corpus, ordinary_ids
from adrec.models.text.hugging_face import load_tokenizer
from adrec.training.loop.loader import BatchLoader
from adrec.training.objectives.mlm import MlmFeed, score_unigram


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """(mapped, streamed, tokenizer): one corpus in row groups of 17 texts, chunks of 50."""
    base = tmp_path_factory.mktemp("streamed")
    folder = make_corpus(base / "prepared", count=230)
    path = folder / "corpus.parquet"
    pq.write_table(pq.read_table(path).slice(0, 221), path, row_group_size=17)
    tokenizer = load_tokenizer(folder / "tokenizer")
    opened = [
        open_corpus(path, tokenizer, max_tokens=12, cache=base / "cache", streamed=streamed, chunk=50)
        for streamed in (False, True)
    ]
    return *opened, tokenizer


def feed(corpus, tokenizer, *, packing=True, shuffle=True):
    return MlmFeed(
        corpus,
        np.flatnonzero(~corpus.held_out),
        mask_id=tokenizer.mask_token_id,
        pad_id=tokenizer.pad_token_id,
        ordinary_ids=ordinary_ids(tokenizer),
        pack_tokens=32,
        batch_tokens=128,
        packing=packing,
        shuffle=shuffle,
        seed=4,
    )


def equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_what_is_known_of_each_text_is_the_same(both):
    mapped, streamed, _ = both
    assert isinstance(streamed.tokens, StreamedTokens)
    for name in ("lengths", "language", "kind", "held_out"):
        assert np.array_equal(getattr(mapped, name), getattr(streamed, name))
    rows = np.random.default_rng(0).permutation(221)[:90]
    for ours, theirs in zip(streamed.token_lists(rows), mapped.token_lists(rows), strict=True):
        assert np.array_equal(ours, theirs) and ours.dtype == theirs.dtype


@pytest.mark.parametrize("packing", [True, False])
def test_every_batch_of_three_epochs_is_the_same_and_each_text_comes_once(both, packing):
    mapped, streamed, tokenizer = both
    ours, theirs = feed(streamed, tokenizer, packing=packing), feed(mapped, tokenizer, packing=packing)
    loaders = [BatchLoader(side.plan, side.collate, epochs=3, seed=1) for side in (ours, theirs)]
    assert all(equal(a, b) for a, b in zip(*loaders, strict=True))
    for epoch in range(3):
        packs = np.concatenate(ours.plan(epoch))
        assert np.array_equal(np.sort(packs), np.arange(len(ours.packs)))
    assert np.array_equal(np.sort(ours.packs.rows), np.arange(len(ours.rows)))


def test_a_batch_stays_in_one_chunk_and_epochs_shuffle_the_chunks(both):
    _, streamed, tokenizer = both
    made = feed(streamed, tokenizer)
    orders = []
    for epoch in range(3):
        chunks = []
        for numbers in made.plan(epoch):
            packs = [made.packs.rows[made.packs.offsets[n] : made.packs.offsets[n + 1]] for n in numbers]
            found = np.unique(made.rows[np.concatenate(packs)] // 50)
            assert len(found) == 1
            chunks.append(int(found[0]))
        orders.append(tuple(dict.fromkeys(chunks)))
        assert sorted(orders[-1]) == [0, 1, 2, 3, 4] and len(chunks) == len(made.plan(0))
    assert len(set(orders)) > 1


def test_ranks_and_workers_share_without_duplicates_and_a_stopped_run_goes_on(both):
    mapped, streamed, tokenizer = both
    ours, theirs = feed(streamed, tokenizer), feed(mapped, tokenizer)
    alone = list(BatchLoader(theirs.plan, theirs.collate, epochs=2, seed=1))
    parts = [list(BatchLoader(ours.plan, ours.collate, epochs=2, seed=1, rank=r, world=2, workers=r)) for r in range(2)]
    together = [batch for pair in zip(*parts, strict=True) for batch in pair]
    assert len(together) == len(alone) // 2 * 2
    assert all(equal(a, b) for a, b in zip(together, alone[: len(together)], strict=True))
    later = BatchLoader(ours.plan, ours.collate, epochs=2, seed=1)
    later.load_state_dict({"done": 7})
    assert all(equal(a, b) for a, b in zip(later, alone[7:], strict=True))


def test_unigram_over_all_chunks(both):
    mapped, streamed, tokenizer = both
    scores = [
        score_unigram(feed(side, tokenizer), feed(side, tokenizer, shuffle=False), vocabulary=len(tokenizer), seed=2)
        for side in (mapped, streamed)
    ]
    assert scores[0] == scores[1]
