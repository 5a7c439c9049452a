"""A decoder language model in one GGUF file as text encoder: weights as written, last-token pooling, saved like any other."""

import importlib.util

import numpy as np
import pytest
import torch

from adrec.errors import DataError, ResourceError
from adrec.models.text.hugging_face import load_masked_lm
from adrec.models.text.text_encoder import encode_texts, load_text_encoder

gguf = pytest.importorskip("gguf")

WORDS = ["<unk>", "<|endoftext|>", *"abcdefghijklmnopqrstuvwxyz", "Ġ", "re", "ro", "Ġro", "se", "ses", "Ġroses"]
MERGES = ["r e", "r o", "Ġ ro", "s e", "se s", "Ġro ses"]
WIDTH, INNER, LAYERS = 16, 32, 2


@pytest.fixture(scope="module")
def weights():
    """Tensors of a small Llama by their GGUF names, (out, in) float32."""
    rng = np.random.default_rng(0)
    shapes = {"token_embd": (len(WORDS), WIDTH)}
    for layer in range(LAYERS):
        shapes |= {f"blk.{layer}.attn_{part}": (WIDTH, WIDTH) for part in ("q", "k", "v", "output")}
        shapes |= {f"blk.{layer}.ffn_{part}": (INNER, WIDTH) for part in ("gate", "up")}
        shapes |= {f"blk.{layer}.ffn_down": (WIDTH, INNER)}
    made = {f"{name}.weight": (rng.normal(size=shape) * 0.3).astype(np.float32) for name, shape in shapes.items()}
    norms = ["output_norm", *(f"blk.{layer}.{part}_norm" for layer in range(LAYERS) for part in ("attn", "ffn"))]
    return made | {f"{name}.weight": np.ones(WIDTH, np.float32) for name in norms}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, weights):
    """A folder that holds one GGUF file and nothing else."""
    made = tmp_path_factory.mktemp("gguf")
    writer = gguf.GGUFWriter(made / "small.gguf", "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(WIDTH // 2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_merges(MERGES)
    writer.add_eos_token_id(1)
    writer.add_bos_token_id(1)
    for name, tensor in weights.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return made


def test_the_folder_opens_with_last_token_pooling_and_the_weights_that_were_written(folder, weights):
    encoder = load_text_encoder(str(folder))
    assert (encoder.pooling, encoder.dimension) == ("last", WIDTH)
    table = encoder.backbone.get_input_embeddings().weight.detach().numpy()
    assert np.array_equal(table, weights["token_embd.weight"])
    ids, mask = encoder.tokenize(["ab roses"])
    with torch.no_grad():
        states = encoder.backbone(input_ids=ids, attention_mask=mask).last_hidden_state
    assert np.allclose(encode_texts(encoder, ["ab roses"])[0], states[0, -1], atol=1e-6)


def test_a_vector_depends_on_neither_neighbours_nor_padding_and_is_finite_for_an_empty_text(folder):
    encoder = load_text_encoder(str(folder / "small.gguf"))
    texts = ["roses", "a b c d e f", "", "zebra roses"]
    together = encode_texts(encoder, texts)
    assert np.isfinite(together).all()
    for text, vector in zip(texts[:2], together[:2], strict=True):
        assert np.allclose(encode_texts(encoder, [text])[0], vector, atol=1e-5)


def test_it_is_saved_as_a_plain_folder(folder, tmp_path):
    encoder = load_text_encoder(str(folder))
    encoder.save(tmp_path / "plain")
    again = load_text_encoder(str(tmp_path / "plain"))
    assert again.pooling == "last" and again.fingerprint == encoder.fingerprint
    assert np.allclose(encode_texts(again, ["ab roses"]), encode_texts(encoder, ["ab roses"]), atol=1e-6)


def test_faults(folder, monkeypatch):
    with pytest.raises(DataError, match="llama has no masked-language-model form"):
        load_masked_lm(folder / "small.gguf")
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "gguf" else found(name, *rest))
    with pytest.raises(ResourceError, match=r"pip install .*\[gguf\]'"):
        load_text_encoder(str(folder))
