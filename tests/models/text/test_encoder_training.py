"""Training modes of a text encoder: what moves, what does not, and that saving keeps what was learned."""

import pytest
import torch
from transformers import BertConfig, BertModel

from adrec.errors import ConfigError
from adrec.models.text.encoder_training import merged, trainable_copy
from adrec.models.text.text_encoder import TextEncoder
from adrec.models.text.word_vectors import WordTokenizer


def _encoder():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    words = [f"w{number}" for number in range(20)]
    return TextEncoder(
        backbone=BertModel(config, add_pooling_layer=False), tokenizer=WordTokenizer(words), dimension=16, max_tokens=16
    ).eval()


def _step(encoder):
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in encoder.parameters() if p.requires_grad], lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        encoder(*encoder.tokenize(["w1 w2 w3", "w4"])).square().mean().backward()
        optimizer.step()
    return {name for name, value in encoder.state_dict().items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize("mode", ["last", "lora", "full"])
def test_only_what_the_mode_says_moves(mode):
    original = _encoder()
    trained = trainable_copy(original, mode, last_layers=1, lora_rank=2)
    moved = _step(trained)
    assert moved
    if mode == "last":
        assert all("layer.2." in name for name in moved)
    if mode == "lora":
        assert all("lora_" in name for name in moved)
    if mode == "full":
        assert any("embeddings" in name for name in moved)
    assert all(torch.equal(a, b) for a, b in zip(original.state_dict().values(), _encoder().state_dict().values(), strict=True))


def test_lora_starts_as_the_encoder_itself_and_merges_exactly():
    original = _encoder()
    trained = trainable_copy(original, "lora", lora_rank=4).eval()
    inputs = original.tokenize(["w5 w6 w7 w8", "w9"])
    with torch.no_grad():
        assert torch.allclose(trained(*inputs), original(*inputs), atol=1e-6)
    _step(trained)
    trained.eval()
    with torch.no_grad():
        expected = trained(*inputs)
        plain = merged(trained)
        assert torch.allclose(plain(*inputs), expected, atol=1e-5)
        assert not torch.allclose(expected, original(*inputs), atol=1e-4)
    assert set(plain.state_dict()) == set(original.state_dict())


def test_more_layers_than_there_are():
    with pytest.raises(ConfigError, match="has 3 layers"):
        trainable_copy(_encoder(), "last", last_layers=9)
