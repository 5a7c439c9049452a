"""Training upper layers alone: the layers below run once per text, and nothing else is different."""

import copy

import pytest
import torch
import transformers as t

from adrec.models.text.encoder_training import merged, trainable_copy
from adrec.models.text.text_encoder import TextEncoder, encode_texts
from adrec.models.text.word_vectors import WordTokenizer

WIDTH = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 40}
TEXTS = ["w1 w2 w3", "w4", "w5 w6 w1 w1 w7", "w4", "w2 w2"]


def encoder(family):
    torch.manual_seed(0)
    if family == "bert":
        backbone = t.BertModel(t.BertConfig(**WIDTH, max_position_embeddings=20), add_pooling_layer=False)
    elif family == "roberta":
        backbone = t.RobertaModel(t.RobertaConfig(**WIDTH, max_position_embeddings=40, pad_token_id=0), add_pooling_layer=False)
    elif family == "electra":
        backbone = t.ElectraModel(t.ElectraConfig(**WIDTH, embedding_size=8))
    elif family == "distilbert":
        backbone = t.DistilBertModel(t.DistilBertConfig(vocab_size=40, dim=16, n_layers=3, n_heads=2, hidden_dim=32))
    elif family == "modernbert":
        backbone = t.ModernBertModel(
            t.ModernBertConfig(**WIDTH, local_attention=4, global_attn_every_n_layers=2, pad_token_id=0)
        )
    else:
        backbone = t.LlamaModel(t.LlamaConfig(**WIDTH, pad_token_id=0))
    words = [f"w{number}" for number in range(20)]
    return TextEncoder(backbone=backbone, tokenizer=WordTokenizer(words), dimension=16, max_tokens=16).eval()


@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "distilbert", "modernbert", "llama"])
def test_vectors_and_gradients_are_those_of_the_whole_encoder(family):
    whole = encoder(family)
    trained = trainable_copy(whole, "last", last_layers=1).eval()
    plain = copy.deepcopy(trained)
    plain.frozen_layers = None
    for _ in range(2):  # computed, then kept
        vectors = [side(*side.tokenize(TEXTS)) for side in (trained, plain)]
        assert torch.allclose(vectors[0], vectors[1], atol=1e-6)
    for side, made in zip((trained, plain), vectors, strict=True):
        made.square().sum().backward()
        assert all(parameter.grad is None for parameter in side.parameters() if not parameter.requires_grad)
    pairs = [(a.grad, b.grad) for a, b in zip(trained.parameters(), plain.parameters(), strict=True) if a.requires_grad]
    assert sum(a is not None for a, _ in pairs) > 5
    assert all((a is None) == (b is None) and (a is None or torch.allclose(a, b, atol=1e-5)) for a, b in pairs)


def test_each_text_goes_through_the_lower_layers_once_whatever_its_neighbours_and_the_mode():
    trained = trainable_copy(encoder("bert"), "last", last_layers=1).train()
    trained(*trained.tokenize(TEXTS))
    first = trained.frozen_layers.computed
    assert trained.backbone.training
    trained(*trained.tokenize(["w4", "w2 w2"]))
    assert trained.frozen_layers.computed == first == 5
    trained(*trained.tokenize(["w4 w4", "w1 w2 w3"]))
    assert trained.frozen_layers.computed == 6


def test_what_does_not_fit_is_computed_again():
    trained = trainable_copy(encoder("bert"), "last", last_layers=1).eval()
    trained.frozen_layers.most_bytes = 16 * 4 * 4
    expected = encode_texts(encoder("bert"), TEXTS)
    for _ in range(2):
        found = trained(*trained.tokenize(TEXTS)).detach().numpy()
        assert abs(found - expected).max() < 1e-6
    assert trained.frozen_layers.bytes <= 256 and trained.frozen_layers.computed > 6


def test_the_merged_encoder_is_a_plain_one_and_training_all_layers_keeps_nothing():
    original = encoder("bert")
    trained = trainable_copy(original, "last", last_layers=2)
    assert set(trained.state_dict()) == set(original.state_dict())
    trained(*trained.tokenize(TEXTS)).square().sum().backward()
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad
    expected = trained.eval()(*trained.tokenize(TEXTS)).detach()
    plain = merged(trained)
    assert plain.frozen_layers is None
    assert torch.allclose(plain(*plain.tokenize(TEXTS)), expected, atol=1e-6)
    assert trainable_copy(original, "last", last_layers=3).frozen_layers is None
