"""Folders of sentence-transformers give the vectors of their own library, from a folder, a package or the hub's cache.

The models are small and random; the oracle is the library itself.
"""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from corpora import make_corpus

from adrec.errors import ConfigError, DataError
from adrec.models.text.hugging_face import load_tokenizer
from adrec.models.text.language_model import new_language_model
from adrec.models.text.text_encoder import encode_texts, load_text_encoder
from adrec.models.text.text_vectors import TextReader

TEXTS = ["Roses and soil", "striker", "a much longer line about pasta and butter in the oven", "钢琴曲 海滩"]
PROMPTS = {"query": "task: search | query: ", "document": "title: none | text: ", "other": "x"}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A tiny BERT without any pooling recorded."""
    base = tmp_path_factory.mktemp("sentence")
    tokenizer = load_tokenizer(make_corpus(base / "prepared", count=80) / "tokenizer")
    torch.manual_seed(0)
    new_language_model("tiny", tokenizer, max_tokens=48).save(base / "hf", tokenizer)
    (base / "hf" / "adrec.json").unlink(missing_ok=True)
    return base / "hf"


def made(plain, folder, *, pooling="mean", dense=(), normalize=True, prompts=PROMPTS, **limits):
    """Written by the library itself; and the library's model."""
    library = pytest.importorskip("sentence_transformers")
    models = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    base = pytest.importorskip("sentence_transformers.base.modules")
    torch.manual_seed(1)
    transformer = base.Transformer(str(plain), **limits)
    width = transformer.get_embedding_dimension()
    steps = [transformer, models.Pooling(width, pooling_mode=pooling)]
    for out, activation in dense:
        steps.append(base.Dense(width, out, activation_function=activation))
        width = out
    steps += [base.Normalize()] if normalize else []
    model = library.SentenceTransformer(modules=steps, prompts=prompts, device="cpu")
    model.save(str(folder))
    return library.SentenceTransformer(str(folder), device="cpu")


def theirs(model, texts, role="document"):
    encode = model.encode_query if role == "query" else model.encode_document
    return encode(texts, convert_to_numpy=True)


@pytest.mark.parametrize("pooling", ["cls", "mean", "max", "lasttoken", "mean_sqrt_len_tokens", "weightedmean"])
def test_every_pooling_is_the_librarys(plain, tmp_path, pooling):
    model = made(plain, tmp_path / "m", pooling=pooling, normalize=False)
    encoder = load_text_encoder(str(tmp_path / "m"))
    for role in ("document", "query"):
        assert np.allclose(encode_texts(encoder, TEXTS, role=role), theirs(model, TEXTS, role), atol=1e-5)


def test_dense_layers_prompts_and_unit_length(plain, tmp_path):
    """As EmbeddingGemma has them: two dense layers, unit length, another prompt for each side."""
    model = made(plain, tmp_path / "m", dense=[(24, torch.nn.Tanh()), (12, torch.nn.Identity())])
    encoder = load_text_encoder(str(tmp_path / "m"))
    assert encoder.dimension == 12
    for role in ("document", "query"):
        assert np.allclose(encode_texts(encoder, TEXTS, role=role), theirs(model, TEXTS, role), atol=1e-5)
    assert not np.allclose(encode_texts(encoder, TEXTS), encode_texts(encoder, TEXTS, role="query"), atol=1e-3)
    encoder.save(tmp_path / "again")
    again = load_text_encoder(str(tmp_path / "again"))
    assert again.fingerprint == encoder.fingerprint
    for role in ("document", "query"):
        assert np.array_equal(encode_texts(again, TEXTS, role=role), encode_texts(encoder, TEXTS, role=role))


def test_short_vectors_are_the_librarys_of_unit_length_again(plain, tmp_path):
    model = made(plain, tmp_path / "m")
    encoder = load_text_encoder(str(tmp_path / "m"), dimensions=8)
    short = model.encode_document(TEXTS, truncate_dim=8, normalize_embeddings=True)
    assert encoder.dimension == 8 and np.allclose(encode_texts(encoder, TEXTS), short, atol=1e-5)
    encoder.save(tmp_path / "again")
    assert np.array_equal(encode_texts(load_text_encoder(str(tmp_path / "again")), TEXTS), encode_texts(encoder, TEXTS))
    with pytest.raises(ConfigError, match="text.dimensions is 1000"):
        load_text_encoder(str(tmp_path / "m"), dimensions=1000)


def test_older_files_of_the_library(plain, tmp_path):
    """Flags of poolings, the transformer in a folder of its own, its longest text and lower case, a pickle's weights."""
    made(plain, tmp_path / "m", pooling="cls", dense=[(12, torch.nn.Tanh())], prompts={})
    old = tmp_path / "old"
    shutil.copytree(tmp_path / "m", old)
    (old / "0_Transformer").mkdir()
    for file in [*old.glob("*.json"), *old.glob("*.safetensors")]:
        if file.name not in {"modules.json", "config_sentence_transformers.json"}:
            file.rename(old / "0_Transformer" / file.name)
    steps = json.loads((old / "modules.json").read_text())
    steps[0]["path"] = "0_Transformer"
    (old / "modules.json").write_text(json.dumps(steps))
    (old / "1_Pooling" / "config.json").write_text('{"word_embedding_dimension": 1, "pooling_mode_cls_token": true}')
    (old / "0_Transformer" / "sentence_bert_config.json").write_text('{"max_seq_length": 7, "do_lower_case": true}')
    dense = next(old.glob("2_Dense*"))
    weights = load_text_encoder(str(tmp_path / "m")).above.state_dict()
    torch.save({f"linear.{name.rsplit('.', 1)[-1]}": tensor for name, tensor in weights.items()}, dense / "pytorch_model.bin")
    (dense / "model.safetensors").unlink()
    library = pytest.importorskip("sentence_transformers")
    encoder = load_text_encoder(str(old))
    assert encoder.max_tokens == 7 and encoder.pooling == "cls"
    expected = library.SentenceTransformer(str(old), device="cpu").encode(TEXTS)
    assert np.allclose(encode_texts(encoder, TEXTS), expected, atol=1e-5)


def test_longer_texts_than_recorded_on_request(plain, tmp_path):
    made(plain, tmp_path / "m", prompts={}, max_seq_length=7)
    recorded = json.loads((tmp_path / "m" / "sentence_bert_config.json").read_text())
    (tmp_path / "m" / "sentence_bert_config.json").write_text(json.dumps({**recorded, "max_seq_length": 9}))
    tokenizer = json.loads((tmp_path / "m" / "tokenizer_config.json").read_text())
    (tmp_path / "m" / "tokenizer_config.json").write_text(json.dumps({**tokenizer, "model_max_length": 48}))
    assert load_text_encoder(str(tmp_path / "m")).max_tokens == 9
    assert load_text_encoder(str(tmp_path / "m"), max_tokens=48).max_tokens == 48
    with pytest.raises(ConfigError, match="reads at most 48"):
        load_text_encoder(str(tmp_path / "m"), max_tokens=49)


def test_what_is_not_understood_is_refused_in_one_line(plain, tmp_path):
    made(plain, tmp_path / "m", dense=[(12, torch.nn.Tanh())])

    def fault(message, file, change):
        copy = tmp_path / f"broken{len(list(tmp_path.iterdir()))}"
        shutil.copytree(tmp_path / "m", copy)
        path = next(copy.glob(file))
        path.write_text(json.dumps(change(json.loads(path.read_text()))))
        with pytest.raises(DataError, match=message) as caught:
            load_text_encoder(str(copy))
        assert len(str(caught.value).splitlines()) == 1

    def step(number, **values):
        return lambda steps: [{**old, **(values if at == number else {})} for at, old in enumerate(steps)]

    fault("'WordWeights' as step 3", "modules.json", step(2, type="sentence_transformers.models.WordWeights"))
    fault("'custom.Transformer' as step 1", "modules.json", step(0, type="custom.Transformer"))
    fault("no Pooling step", "modules.json", lambda steps: steps[:1])
    fault("outside the folder", "modules.json", step(1, path="../.."))
    fault("pools by mean, max", "1_Pooling/config.json", lambda config: {**config, "pooling_mode": ["mean", "max"]})
    fault("pools by median", "1_Pooling/config.json", lambda config: {**config, "pooling_mode": "median"})
    fault("leaves the prompt", "1_Pooling/config.json", lambda config: {**config, "include_prompt": False})
    fault("activation 'Softshrink'", "2_Dense/config.json", lambda config: {**config, "activation_function": "a.Softshrink"})
    fault("use_residual", "2_Dense/config.json", lambda config: {**config, "use_residual": True})
    fault("not those of its config", "2_Dense/config.json", lambda config: {**config, "out_features": 13})
    fault("query_length", "sentence_bert_config.json", lambda config: {**config, "query_length": 32})
    fault("not valid JSON", "config_sentence_transformers.json", lambda config: ["prompts"])


def test_the_same_from_the_hub_and_from_a_package(plain, tmp_path, monkeypatch):
    """The hub's cache is laid out as its client leaves it; nothing is asked of the network."""
    made(plain, tmp_path / "m", pooling="cls", dense=[(12, torch.nn.Tanh())])
    snapshot = tmp_path / "hub" / "models--owner--name" / "snapshots" / ("0" * 40)
    shutil.copytree(tmp_path / "m", snapshot)
    (tmp_path / "hub" / "models--owner--name" / "refs").mkdir()
    (tmp_path / "hub" / "models--owner--name" / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: pytest.fail("the network was asked"))
    (tmp_path / "carried_weights").mkdir()
    (tmp_path / "carried_weights" / "__init__.py").touch()
    shutil.copytree(tmp_path / "m", tmp_path / "carried_weights" / "model")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    expected = encode_texts(load_text_encoder(str(tmp_path / "m")), TEXTS, role="query")
    for reference in ("owner/name", "package:carried_weights/model"):
        assert np.array_equal(encode_texts(load_text_encoder(reference), TEXTS, role="query"), expected)


def test_ads_and_what_people_type_have_their_own_prompts_and_vectors_in_the_cache(plain, tmp_path):
    made(plain, tmp_path / "m")
    encoder = load_text_encoder(str(tmp_path / "m"))
    reader = TextReader(encoder, cache=tmp_path / "cache")
    for _ in range(2):  # made, then read from the cache
        assert np.allclose(reader.vectors(TEXTS), encode_texts(encoder, TEXTS), atol=1e-6)
        assert np.allclose(reader.vectors(TEXTS, typed=True), encode_texts(encoder, TEXTS, role="query"), atol=1e-6)
    asked = reader.queries([])(["striker", ""]).vectors.numpy()
    assert np.allclose(asked, encode_texts(encoder, ["striker", ""], role="query"), atol=1e-5) and not asked[1].any()
    bare = load_text_encoder(str(tmp_path / "m"), prompts={"query": "query: "})
    assert np.allclose(
        encode_texts(bare, TEXTS, role="query"), encode_texts(bare, [f"query: {text}" for text in TEXTS]), atol=1e-6
    )
    assert bare.fingerprint != encoder.fingerprint
