"""Latent semantic analysis over tokens: words that occur together lie together, and it travels with the encoder."""

import numpy as np
import torch
from worlds import TOPICS, WORDS, word_encoder

from adrec.models.text.lexical import fit_lexical
from adrec.models.text.text_encoder import encode_texts, load_text_encoder


def _texts():
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS[topic].split(), 3, replace=False)) for topic in TOPICS for _ in range(30)]


def test_texts_of_a_topic_lie_together_even_without_a_common_word(tmp_path):
    encoder = load_text_encoder(str(word_encoder(tmp_path / "words")))
    table = fit_lexical(encoder, _texts(), 8)
    made = encoder.with_lexical(torch.from_numpy(table))
    assert made.parts == (12, 8) and made.dimension == 20
    vectors = encode_texts(made, ["rose soil", "spade lawn", "goal striker"])[:, 12:]
    assert vectors[0] @ vectors[1] > 0.8 > 0.3 > vectors[0] @ vectors[2]
    assert np.allclose(np.linalg.norm(encode_texts(made, _texts()), axis=1), np.sqrt(2), atol=1e-5)


def test_saved_and_opened_it_gives_the_same_vectors(tmp_path):
    encoder = load_text_encoder(str(word_encoder(tmp_path / "words")))
    made = encoder.with_lexical(torch.from_numpy(fit_lexical(encoder, _texts(), 8)))
    made.save(tmp_path / "both")
    again = load_text_encoder(str(tmp_path / "both"))
    assert np.array_equal(encode_texts(again, _texts()[:9]), encode_texts(made, _texts()[:9]))
    assert again.fingerprint == made.fingerprint != encoder.fingerprint


def test_few_texts_leave_zero_columns(tmp_path):
    encoder = load_text_encoder(str(word_encoder(tmp_path / "words")))
    table = fit_lexical(encoder, ["rose soil", "rose lawn", "soil lawn", "goal"], 50)
    assert table.shape[1] == 50 and np.isfinite(table).all() and (table[:, 5:] == 0).all()
    assert (fit_lexical(encoder, ["rose"], 4) == 0).all()
