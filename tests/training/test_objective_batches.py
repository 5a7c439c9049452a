"""What the pair objectives are given: false pairs that are false, negatives that are none; losses by their formulas."""

import numpy as np
import pytest
import torch
from corpora import make_corpus, texts

from adrec.data.text.pairs import Pairs
from adrec.models.text.hugging_face import load_tokenizer
from adrec.models.text.language_model import new_language_model
from adrec.models.text.pooling import Pool
from adrec.training.objectives.contrastive import Contrastive, ContrastiveFeed
from adrec.training.objectives.dae import DaeFeed
from adrec.training.objectives.nsp import NspFeed
from adrec.training.objectives.texts import TokenTable, text_vectors


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(tokens of 40 texts, 150 pairs of them, tokenizer)."""
    tokenizer = load_tokenizer(make_corpus(tmp_path_factory.mktemp("pairs") / "prepared", count=60) / "tokenizer")
    lines = np.asarray(texts(40)[0])
    keys = np.random.default_rng(0).choice(1600, 170, replace=False)
    left, right = keys // 40, keys % 40
    left, right = left[left != right], right[left != right]
    share = np.bincount(right, minlength=40) / len(right)
    return TokenTable(lines, tokenizer, max_tokens=24), Pairs(lines, left, right, share), tokenizer


def test_half_of_the_sentence_pairs_are_false_and_never_true_by_accident(world):
    tokens, pairs, tokenizer = world
    feed = NspFeed(pairs, pairs, tokens, batch_texts=20, shuffle=True, seed=0)
    true = {tuple(tokens.joined(np.asarray([a]), np.asarray([b]))[0]) for a, b in zip(pairs.left, pairs.right, strict=True)}
    true |= {tuple(tokens.joined(np.asarray([b]), np.asarray([a]))[0]) for a, b in zip(pairs.left, pairs.right, strict=True)}
    labels = []
    for number, item in enumerate(feed.plan(0)):
        batch = feed.collate(item, np.random.default_rng(number))
        for row, real, label in zip(batch.pairs.tokens, batch.pairs.texts >= 0, batch.labels, strict=True):
            assert (tuple(row[real].tolist()) in true) == bool(label)
        labels.append(batch.labels)
    assert float(torch.cat(labels).mean()) == pytest.approx(0.5, abs=0.02)
    assert tokenizer.sep_token_id in batch.pairs.tokens


def test_true_pairs_of_a_batch_are_no_negatives_and_popular_texts_are_corrected(world):
    tokens, pairs, tokenizer = world
    feed = ContrastiveFeed(pairs, tokens, batch_texts=32, log_q=True, seed=0)
    item = feed.plan(0)[0]
    batch = feed.collate(item, np.random.default_rng(0))
    left, right = pairs.left[item], pairs.right[item]
    known = set(zip(pairs.left, pairs.right, strict=True)) | set(zip(pairs.right, pairs.left, strict=True))
    for i in range(32):
        for j in range(32):
            same = i != j and ((left[i], right[j]) in known or left[i] == right[j] or right[i] == right[j])
            assert bool(batch.same[i, j]) == same
    assert np.allclose(batch.log_q, np.log(pairs.share[right]), atol=1e-6)

    torch.manual_seed(0)
    model = new_language_model("tiny", tokenizer, max_tokens=24).eval()
    pool = Pool("mean", 128)
    with torch.no_grad():
        loss = float(Contrastive(pool, temperature=0.1)(model, batch))
        vectors = [text_vectors(model, pool, tokens.packed(tokens.rows(side))).double().numpy() for side in (left, right)]
    unit = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in vectors]
    logits = unit[0] @ unit[1].T / 0.1 - np.log(pairs.share[right])
    logits[batch.same.numpy()] = -np.inf
    by_hand = np.mean([np.logaddexp.reduce(logits[i]) - logits[i, i] for i in range(32)])
    assert loss == pytest.approx(by_hand, abs=1e-4)


def test_damage_deletes_tokens_in_order_and_leaves_at_least_one(world):
    tokens, _, tokenizer = world
    feed = DaeFeed(np.arange(40), tokens, delete_rate=0.6, batch_texts=40, shuffle=False, seed=0)
    kept = total = 0
    for seed in range(20):
        batch = feed.collate(feed.plan(0)[0], np.random.default_rng(seed))
        whole = [row[real].tolist() for row, real in zip(batch.whole.tokens, batch.whole.texts >= 0, strict=True)]
        flat = batch.damaged.tokens.flatten()
        for row, places, mask in zip(whole, batch.damaged.places, batch.damaged.mask, strict=True):
            damaged = flat[places[mask.bool()]].tolist()
            left = iter(row)
            assert all(token in left for token in damaged)  # a subsequence
            assert damaged[0] == tokenizer.cls_token_id and damaged[-1] == tokenizer.sep_token_id and len(damaged) > 2
            kept, total = kept + len(damaged) - 2, total + len(row) - 2
    assert kept / total == pytest.approx(0.4, abs=0.03)
