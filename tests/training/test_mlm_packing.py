"""Packed and unpacked texts are the same to the model, in every architecture, and the loss counts masked tokens only."""

import numpy as np
import pytest
import torch
from corpora import make_corpus
from torch.nn import functional

from adrec.data.text.corpus import open_corpus, ordinary_ids
from adrec.models.text.hugging_face import load_tokenizer
from adrec.models.text.language_model import LanguageModel, open_language_model
from adrec.training.objectives.mlm import Mlm, MlmFeed, score_mlm, score_unigram


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Corpus and tokenizer."""
    base = tmp_path_factory.mktemp("packing")
    folder = make_corpus(base / "prepared", count=120)
    tokenizer = load_tokenizer(folder / "tokenizer")
    return open_corpus(folder / "corpus.parquet", tokenizer, max_tokens=32, cache=base / "cache"), tokenizer


def feed(world, *, packing=True, batch_tokens=512, rows=None):
    corpus, tokenizer = world
    return MlmFeed(
        corpus,
        np.arange(len(corpus)) if rows is None else rows,
        mask_id=tokenizer.mask_token_id,
        pad_id=tokenizer.pad_token_id,
        ordinary_ids=ordinary_ids(tokenizer),
        pack_tokens=64,
        batch_tokens=batch_tokens,
        packing=packing,
        shuffle=False,
    )


def tiny(family, vocabulary):
    """A masked language model of a family with random weights."""
    import transformers as t

    torch.manual_seed(0)
    width = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    common = {"vocab_size": vocabulary, "max_position_embeddings": 80, "pad_token_id": 0}
    if family == "bert":
        model = t.BertForMaskedLM(t.BertConfig(**width, **common))
    elif family == "roberta":
        model = t.RobertaForMaskedLM(t.RobertaConfig(**width, **{**common, "pad_token_id": 1}))
    elif family == "electra":
        model = t.ElectraForMaskedLM(t.ElectraConfig(**width, **common, embedding_size=16))
    elif family == "distilbert":
        model = t.DistilBertForMaskedLM(
            t.DistilBertConfig(dim=32, n_layers=2, n_heads=2, hidden_dim=64, **common, sinusoidal_pos_embds=False)
        )
    else:
        model = t.ModernBertForMaskedLM(
            t.ModernBertConfig(
                **width, **common, local_attention=8, global_attn_every_n_layers=2, cls_token_id=2, sep_token_id=3
            )
        )
    return LanguageModel(model).eval()


FAMILIES = ["bert", "distilbert", "roberta", "electra", "modernbert"]


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_logits_equal_those_of_each_text_alone_through_transformers(world, family):
    """The oracle is Hugging Face's own forward on one unpadded text, head over every position."""
    model = tiny(family, len(world[1]))
    packed = feed(world)
    batch = packed.collate(packed.plan(0)[0], np.random.default_rng(0))
    width = batch.tokens.shape[1]
    with torch.no_grad():
        logits = Mlm().logits(model, batch)
        for place, found in list(zip(batch.places, logits, strict=True))[:25]:
            row, column = divmod(int(place), width)
            inside = batch.texts[row] == batch.texts[row, column]
            alone = model.model(input_ids=batch.tokens[row][inside][None]).logits[0, batch.positions[row, column]]
            assert torch.allclose(found, alone, atol=1e-5)


def test_packed_and_unpacked_batches_have_one_loss_per_token(world):
    model = tiny("bert", len(world[1]))
    packed, plain = feed(world), feed(world, packing=False)
    with torch.no_grad():
        for item in packed.plan(0):
            batch = packed.collate(item, np.random.default_rng(1))
            # The same corrupted texts, one a row.
            rows = [
                (batch.tokens[row][batch.texts[row] == text], row, text)
                for row in range(len(batch.tokens))
                for text in range(int(batch.texts[row].max()) + 1)
            ]
            longest = max(len(tokens) for tokens, *_ in rows)
            ids = torch.zeros(len(rows), longest, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for number, (tokens, *_) in enumerate(rows):
                ids[number, : len(tokens)], mask[number, : len(tokens)] = tokens, 1
            logits = model.model(input_ids=ids, attention_mask=mask).logits
            where = {(row, text): number for number, (_, row, text) in enumerate(rows)}
            losses = []
            for place, label in zip(batch.places.tolist(), batch.labels, strict=True):
                row, column = divmod(place, batch.tokens.shape[1])
                number = where[row, int(batch.texts[row, column])]
                losses.append(functional.cross_entropy(logits[number, batch.positions[row, column]], label))
            assert abs(float(torch.stack(losses).mean()) - float(Mlm()(model, batch))) < 1e-5
    assert packed.tokens == plain.tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_a_token_never_attends_across_texts(world, family):
    model = tiny(family, len(world[1]))
    packed = feed(world)
    batch = packed.collate(packed.plan(0)[0], np.random.default_rng(0))
    other = batch.texts == 1
    changed = torch.where(other, torch.randint(10, len(world[1]), batch.tokens.shape), batch.tokens)
    with torch.no_grad():
        before = model(batch.tokens, batch.texts, batch.positions)
        after = model(changed, batch.texts, batch.positions)
    assert torch.equal(before[~other], after[~other])
    assert not torch.allclose(before[other], after[other], atol=1e-3)


def test_the_head_is_added_where_there_is_none_and_the_folder_opens_both_ways(world, tmp_path):
    from transformers import AutoModel, AutoModelForMaskedLM, BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(world[1]), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "plain")
    world[1].save_pretrained(tmp_path / "plain")
    model = open_language_model(str(tmp_path / "plain"), world[1], max_tokens=32)
    assert model.new_weights > 0
    model.save(tmp_path / "made", world[1])
    again = open_language_model(str(tmp_path / "made"), world[1], max_tokens=32)
    assert again.new_weights == 0
    ids = torch.tensor([[2, 20, 30, 3]])
    with torch.no_grad():
        plain = AutoModel.from_pretrained(tmp_path / "made").eval()(ids).last_hidden_state
        head = AutoModelForMaskedLM.from_pretrained(tmp_path / "made").eval()(ids).logits
        texts, positions = torch.zeros_like(ids), torch.arange(4)[None]
        states = model.eval()(ids, texts, positions)
        assert torch.allclose(plain, states, atol=1e-6)
        assert torch.allclose(head[0], model.logits(states[0]), atol=1e-5)


def test_scores_are_means_over_masked_tokens_whatever_the_batches(world):
    model = tiny("bert", len(world[1]))
    feeds = [feed(world, batch_tokens=64), feed(world, batch_tokens=64)]
    first, second = (score_mlm(model, item, device="cpu", seed=3) for item in feeds)
    assert first == second
    losses, tokens = 0.0, 0
    with torch.no_grad():
        for number, item in enumerate(feeds[0].plan(0)):
            batch = feeds[0].collate(item, np.random.default_rng([3, number]))
            losses += float(Mlm()(model, batch)) * len(batch.labels)
            tokens += len(batch.labels)
    assert first.tokens == tokens and abs(first.loss - losses / tokens) < 1e-5
    assert first.perplexity == pytest.approx(np.exp(first.loss))


def test_the_unigram_is_the_smoothed_frequency(world):
    corpus, tokenizer = world
    train, held = feed(world, rows=np.flatnonzero(~corpus.held_out)), feed(world, rows=np.flatnonzero(corpus.held_out))
    tokens, words, _ = corpus.token_lists(train.rows)
    counts = np.bincount(tokens[words >= 0], minlength=len(tokenizer)) + 1
    labels = np.concatenate(
        [held.collate(item, np.random.default_rng([5, number])).labels for number, item in enumerate(held.plan(0))]
    )
    score = score_unigram(train, held, vocabulary=len(tokenizer), seed=5)
    assert score.loss == pytest.approx(-np.log(counts / counts.sum())[labels].mean())
    assert score.accuracy == pytest.approx((labels == counts.argmax()).mean())
