"""Exported graphs give torch's logits for any number of rows, ads and users, and the score command runs on them."""

import numpy as np
import pytest
import torch
from worlds import make_world, topic_vectors

from adrec.config.training.finetune import ModelSettings, UserEncoderSettings
from adrec.data.batches.collate import Collator, Texts
from adrec.data.examples import catalog_from_table, load_examples
from adrec.data.identities import OwnVectors
from adrec.data.prepared import open_prepared
from adrec.errors import DataError
from adrec.inference.onnx.backend import OnnxScorer
from adrec.inference.onnx.graphs import Scorer, flat, padded_batch
from adrec.models.match.table import Matcher
from adrec.models.net.tasks import Task
from adrec.training.build import Dimensions, FeatureShape, build_model

pytest.importorskip("onnxruntime")
TASKS = (Task("click"), Task("conversion", after=0))


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    world = make_world(tmp_path_factory.mktemp("onnx") / "prepared", requests=200, users=30, conversions=True)
    prepared = open_prepared(world.path)
    features = prepared.features()
    vectors = topic_vectors(world)
    collate = Collator(
        catalog_from_table(
            prepared.ads(), features["ads"], key="ad_id", own=OwnVectors(prepared.ads()["ad_id"][:40], hashed=5)
        ),
        catalog_from_table(prepared.users(), features["users"], key="user_id"),
        lambda rows: Texts(torch.from_numpy(vectors[rows])),
        lambda rows: Texts(None),
        tasks=tuple(task.name for task in TASKS),
    )
    shapes = (FeatureShape.of(features[name]) for name in ("impressions", "ads", "users"))
    dimensions = Dimensions(16, *shapes, ad_hashed=5, category=features["ads"].categorical_names.index("category"))
    matcher = Matcher(dimensions.match, collate.ads.with_vectors(vectors), collate.users)
    return matcher(load_examples(prepared, "train", max_history=8)), collate, dimensions


def _exported(planted, folder, parts, interaction):
    from adrec.bundle import write_json
    from adrec.inference.onnx.exporting import FORMAT, SCORER, SETTINGS, write_graph
    from adrec.inference.onnx.graphs import first_axis

    examples, collate, dimensions = planted
    torch.manual_seed(0)
    user = {"heads": 2, "window": 3, "max_history": 8, "search_top": 3}
    if ":" in parts[0]:
        user["search"], parts = parts[0].split(":")[1], ["soft", "target", *parts[1:]]
    own = {"identity_optimizer": "rowwise"}  # sparse in training, and no other graph
    settings = ModelSettings(
        width=16, hidden=[8], interaction=interaction, user=UserEncoderSettings(parts=parts, **user), **own
    )
    model = build_model(settings, dimensions, TASKS, text_encoder=None, next_category=False).eval()
    batch = collate(examples, np.arange(20))
    groups = (("ads.", batch.ads.lists), ("users.", batch.users.lists), ("", batch.lists))
    lists = {f"{group}lists.{at}": 8 for group, codes in groups for at in range(len(codes))}
    shape = {"history": 8, "skipped": batch.skipped.shape[1], "lists": lists}
    padded = padded_batch(batch, **shape)
    names = list(flat(padded))
    axes = tuple({0: torch.export.Dim.DYNAMIC} for _ in names)
    write_graph(Scorer(model, names, padded).eval(), tuple(flat(padded).values()), (axes,), names, "logits", folder / SCORER)
    write_json({"format": FORMAT, "inputs": {name: first_axis(name) for name in names}, **shape}, folder / SETTINGS)
    return model


@pytest.mark.parametrize(
    ("parts", "interaction"),
    [
        (["soft", "target"], "mlp"),
        (["global", "local", "gru"], "dcn"),
        ([":category", "sasrec"], "mlp"),
        ([":hashed", "hstu"], "mlp"),
    ],
)
def test_a_graph_gives_torchs_logits_at_every_size(planted, tmp_path, parts, interaction):
    examples, collate, _ = planted
    model = _exported(planted, tmp_path, parts, interaction)
    scorer = OnnxScorer(tmp_path)
    for rows in (np.arange(1), np.arange(3, 10), np.arange(100)):
        batch = collate(examples, rows)
        with torch.inference_mode():
            torch.testing.assert_close(scorer(batch), model(batch).logits, atol=1e-4, rtol=0)


def test_padding_changes_no_logit(planted):
    examples, collate, dimensions = planted
    torch.manual_seed(0)
    model = build_model(ModelSettings(width=16, hidden=[8]), dimensions, TASKS, text_encoder=None, next_category=False).eval()
    batch = collate(examples, np.arange(30))
    lists = {f"users.lists.{at}": 20 for at in range(len(batch.users.lists))}
    wide = padded_batch(batch, history=40, skipped=batch.skipped.shape[1] + 3, lists=lists)
    with torch.inference_mode():
        torch.testing.assert_close(model(wide).logits, model(batch).logits, atol=1e-6, rtol=0)


def test_a_missing_or_damaged_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"onnx\.json: missing or damaged"):
        OnnxScorer(tmp_path)
    (tmp_path / "onnx.json").write_text('{"inputs": {}, "history": 1, "skipped": 0, "lists": {}}')
    (tmp_path / "scorer.onnx").write_bytes(b"not a graph")
    with pytest.raises(DataError, match=r"scorer\.onnx: not a whole ONNX file"):
        OnnxScorer(tmp_path)


def test_lists_of_any_length_are_read_whole(planted, tmp_path):
    """The graph knows no width of a list: what torch reads it reads."""
    examples, collate, dimensions = planted
    from adrec.bundle import write_json
    from adrec.inference.onnx.exporting import SCORER, write_graph
    from adrec.inference.onnx.graphs import FORMAT, SETTINGS, first_axis, is_list

    torch.manual_seed(0)
    settings = ModelSettings(width=16, hidden=[8], user=UserEncoderSettings(max_history=8))
    model = build_model(settings, dimensions, TASKS, text_encoder=None, next_category=False).eval()
    shape = {"history": 8, "skipped": 1}
    padded = padded_batch(collate(examples, np.arange(20)), **shape, lists=2)
    names = list(flat(padded))
    dynamic = torch.export.Dim.DYNAMIC
    axes = tuple({0: dynamic, 1: dynamic} if is_list(name) else {0: dynamic} for name in names)
    assert any(map(is_list, names))
    write_graph(Scorer(model, names, padded).eval(), tuple(flat(padded).values()), (axes,), names, "logits", tmp_path / SCORER)
    write_json({"format": FORMAT, "inputs": {name: first_axis(name) for name in names}, **shape}, tmp_path / SETTINGS)
    scorer = OnnxScorer(tmp_path)
    for width in (1, 2, 70):
        batch = collate(examples, np.arange(30))
        codes = torch.randint(0, dimensions.users.list_cardinalities[0], (len(batch.users.identity), width))
        batch = batch._replace(users=batch.users._replace(lists=(codes,)))
        with torch.inference_mode():
            torch.testing.assert_close(scorer(batch), model(batch).logits, atol=1e-4, rtol=0)


def test_int8_vectors_do_not_know_their_neighbours(tmp_path):
    import transformers

    from adrec.inference.onnx.backend import OnnxEncoder
    from adrec.inference.onnx.exporting import ENCODER, ENCODER_INT8, export_encoder
    from adrec.models.text.text_encoder import TextEncoder, encode_texts, load_text_encoder
    from adrec.models.text.word_vectors import WordTokenizer

    torch.manual_seed(0)
    words = [f"w{number}" for number in range(400)]
    backbone = transformers.BertModel(
        transformers.BertConfig(
            vocab_size=402, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
        ),
        add_pooling_layer=False,
    )  # fmt: skip
    TextEncoder(backbone=backbone, tokenizer=WordTokenizer(words), dimension=32, max_tokens=16).save(tmp_path / "torch")
    encoder = load_text_encoder(str(tmp_path / "torch"))
    difference, cosine = export_encoder(encoder, tmp_path, int8=True)
    assert difference < 1e-5 and cosine > 0.999
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(words, rng.integers(1, 12))) for _ in range(150)] + ["", " "]
    expected = encode_texts(encoder, texts)
    for name in (ENCODER, ENCODER_INT8):
        graph = OnnxEncoder(encoder, tmp_path / name)
        together = encode_texts(graph, texts)
        alone = np.concatenate([encode_texts(graph, [text]) for text in texts])
        assert np.abs(together - alone).max() < 1e-5, name
        assert not together[-2:].any(), "a blank text is the zero vector"
        assert np.abs(together - expected).max() < (0.1 if name == ENCODER_INT8 else 1e-4)
    sizes = [(tmp_path / name).stat().st_size for name in (ENCODER, ENCODER_INT8)]
    assert sizes[1] < 0.8 * sizes[0]


def test_graphs_of_another_bundle_version_or_gap_are_refused(planted, tmp_path):
    from adrec.bundle import write_json
    from adrec.inference.onnx.exporting import refuse_gap
    from adrec.inference.onnx.graphs import FORMAT, SETTINGS

    write_json({"format": FORMAT - 1, "inputs": {}, "history": 1, "skipped": 1}, tmp_path / SETTINGS)
    with pytest.raises(DataError, match="another version of adrec"):
        OnnxScorer(tmp_path)
    refuse_gap(1e-6, 1e-4, "scorer.onnx", "logits")
    for gap in (0.5, float("nan")):
        with pytest.raises(DataError, match=r"scorer\.onnx: its logits differ from torch's"):
            refuse_gap(gap, 1e-4, "scorer.onnx", "logits")
