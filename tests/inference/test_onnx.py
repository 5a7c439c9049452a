"""Exported graphs give torch's logits for any number of rows, ads and users, and the score command runs on them."""

import numpy as np
import pytest
import torch
from worlds import make_world, topic_vectors

from adrec.config.training.finetune import ModelSettings, UserEncoderSettings
from adrec.data.batches.collate import Collator, Texts
from adrec.data.examples import catalog_from_table, load_examples
from adrec.data.prepared import open_prepared
from adrec.errors import DataError
from adrec.inference.onnx.backend import OnnxScorer
from adrec.inference.onnx.graphs import Scorer, flat, padded_batch
from adrec.models.build import Dimensions, FeatureShape, build_model
from adrec.models.net.tasks import Task

pytest.importorskip("onnxruntime")
TASKS = (Task("click"), Task("conversion", after=0))


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    world = make_world(tmp_path_factory.mktemp("onnx") / "prepared", requests=200, users=30, conversions=True)
    prepared = open_prepared(world.path)
    features = prepared.features()
    vectors = topic_vectors(world)
    collate = Collator(
        catalog_from_table(prepared.ads(), features["ads"], key="ad_id"),
        catalog_from_table(prepared.users(), features["users"], key="user_id"),
        lambda rows: Texts(torch.from_numpy(vectors[rows])),
        lambda rows: Texts(None),
        tasks=tuple(task.name for task in TASKS),
    )
    dimensions = Dimensions(16, *(FeatureShape.of(features[name]) for name in ("impressions", "ads", "users")))
    return load_examples(prepared, "train", max_history=8), collate, dimensions


def _exported(planted, folder, parts, interaction):
    from adrec.bundle import write_json
    from adrec.inference.onnx.exporting import FORMAT, SCORER, SETTINGS, write_graph
    from adrec.inference.onnx.graphs import first_axis

    examples, collate, dimensions = planted
    torch.manual_seed(0)
    settings = ModelSettings(
        width=16, hidden=[8], interaction=interaction, user=UserEncoderSettings(parts=parts, heads=2, window=3, max_history=8)
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


@pytest.mark.parametrize(("parts", "interaction"), [(["soft", "target"], "mlp"), (["global", "local", "gru"], "dcn")])
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
