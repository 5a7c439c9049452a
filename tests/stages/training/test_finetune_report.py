"""What finetune reports is what `score` and `evaluate` find for the bundle that it wrote."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import transformers as t
from worlds import TOPICS, WORDS, make_world, word_encoder

from adrec.config.evaluation.evaluate import EvaluateConfig
from adrec.config.inference.score import ScoreConfig
from adrec.config.training.finetune import FinetuneConfig
from adrec.data.prepared import open_prepared
from adrec.errors import DataError
from adrec.inference.predictor import Predictor
from adrec.models.text.text_encoder import TextEncoder, load_text_encoder
from adrec.models.text.word_vectors import WordTokenizer
from adrec.stages.evaluation import evaluate
from adrec.stages.inference import score
from adrec.stages.training import finetune
from adrec.terminal import Terminal
from adrec.training.click_data import load_click_data
from adrec.training.click_encoder import open_text_encoder, text_reader

QUIET = Terminal(quiet=True)
TRAINING = {"epochs": 2, "batch_rows": 256, "learning_rate": 4e-3, "loggers": []}


def small_transformer(folder):
    """A BERT of two random layers over the world's words."""
    torch.manual_seed(0)
    words = [word for topic in TOPICS for word in (topic, *WORDS[topic].split())]
    config = t.BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=len(words) + 2,
        max_position_embeddings=20,
    )  # fmt: skip
    backbone = t.BertModel(config, add_pooling_layer=False)
    TextEncoder(backbone=backbone, tokenizer=WordTokenizer(words), dimension=16, max_tokens=16).save(folder)
    return folder


def with_blanks(path):
    """Take the text from every third ad and every second user."""
    for name, every in (("ads", 3), ("users", 2)):
        table = pq.read_table(path / f"{name}.parquet")
        texts = ["" if row % every == 0 else text for row, text in enumerate(table["text"].to_pylist())]
        table = table.set_column(table.column_names.index("text"), "text", [texts])
        pq.write_table(table, path / f"{name}.parquet")


def reported_and_found(config, tmp_path):
    """Figures of the bundle's own report, and of evaluate over its scores of the validation rows."""
    finetune.run(config, QUIET)
    reported = json.loads((config.output / "metrics.json").read_text(encoding="utf-8"))
    scored = tmp_path / "scored.parquet"
    score.run(
        ScoreConfig(bundle=config.output, prepared=config.prepared, split="valid", output=scored, cache=config.text.cache),
        QUIET,
    )
    judged = evaluate.run(
        EvaluateConfig(scored=scored, output=tmp_path / "judged", bootstrap={"replicates": 20}), QUIET
    ).as_dict()
    return reported, judged["tasks"]


SETTINGS = {
    "frozen": {},
    "last": {"text": {"train": "last", "last_layers": 1, "learning_rate": 1e-2}},
    "full": {"text": {"train": "full", "learning_rate": 1e-2}},
    "lora": {"text": {"train": "lora", "learning_rate": 1e-2}},
    "down_sampled": {"loss": {"negative_rate": 0.5}, "hybrid": {"kind": "none"}},
    "weighted": {"hybrid": {"kind": "weighted"}},
    "stack": {"hybrid": {"kind": "stack"}},
    "seeds": {"seeds": 2},
    "ensemble": {"seeds": 2, "ensemble": True, "calibration": "isotonic"},
    "ensemble of one": {"seeds": 1, "ensemble": True},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_report_is_of_the_bundle_that_was_written(name, tmp_path):
    if name == "lora":
        pytest.importorskip("peft")
    world = make_world(tmp_path / "prepared", requests=700, conversions=True)
    with_blanks(world.path)
    given = SETTINGS[name]
    reference = small_transformer(tmp_path / "encoder") if "text" in given else word_encoder(tmp_path / "words")
    config = FinetuneConfig(
        prepared=world.path,
        output=tmp_path / "bundle",
        model={"width": 16, "hidden": [16], "user": {"parts": ["soft", "target"]}},
        tasks=[{"name": "click"}, {"name": "conversion", "after": "click"}],
        training=TRAINING,
        baselines={"names": ["smoothed_ctr", "logistic", "lightgbm", "content"]},
        **{**given, "text": {"reference": str(reference), "cache": tmp_path / "cache", **given.get("text", {})}},
    )
    reported, judged = reported_and_found(config, tmp_path)
    assert reported["measured"] == "as shipped"
    runs = judged["click"]["runs"]
    for run, row in (("model", "adrec"), *((model, model) for model in ("smoothed_ctr", "logistic", "lightgbm", "content"))):
        for metric, value in reported["models"][row].items():
            if metric in runs[run]["metrics"]:
                assert value == pytest.approx(runs[run]["metrics"][metric]["value"], abs=1e-9), (run, metric)
    of_conversions = judged["conversion"]["runs"]["model"]["metrics"]["auc"]["value"]
    assert reported["models"]["adrec"]["conversion_auc"] == pytest.approx(of_conversions, abs=1e-9)
    assert {"auc", "log_loss", "auc_request"} <= set(reported["models"]["adrec"])


@pytest.mark.parametrize("train", ["last", "full"])
def test_blank_texts_are_nothing_in_training_as_in_scoring(train, tmp_path):
    world = make_world(tmp_path / "prepared", requests=200)
    with_blanks(world.path)
    text = {"reference": str(small_transformer(tmp_path / "encoder")), "train": train, "last_layers": 1}
    config = FinetuneConfig(
        prepared=world.path, output=tmp_path / "bundle", text={**text, "cache": tmp_path / "cache"},
        training={**TRAINING, "epochs": 1}, baselines={"names": []},
    )  # fmt: skip
    finetune.run(config, QUIET)
    predictor = Predictor.load(config.output, cache=config.text.cache)
    prepared = open_prepared(world.path)
    # Training gives the network tokens; the Predictor, vectors made once. Same weights, same rows: same logits.
    trained = predictor.packed.model
    reader = text_reader(config, open_text_encoder(config, prepared))
    data = load_click_data(config, prepared, reader, QUIET)
    with torch.inference_mode():
        tokens = np.concatenate([trained(batch).logits.numpy() for batch in data.batches(data.valid)])
    vectors = predictor.raw(data.valid, predictor.catalogs(prepared.ads(), prepared.users()))
    assert np.abs(tokens - vectors).max() < 1e-5
    assert not predictor.reader.vectors(["", "  "]).any()


def test_a_blank_text_is_the_zero_vector_and_moves_no_weight(tmp_path):
    encoder = load_text_encoder(str(small_transformer(tmp_path / "encoder"))).train()
    ids, mask = encoder.tokenize(["", "rose soil", " \t"])
    assert mask.any(1).tolist() == [False, True, False]
    found = encoder(ids, mask)
    assert not found[[0, 2]].any() and found[1].any()
    found[0].sum().backward()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in encoder.parameters())


@pytest.mark.parametrize("tasks", [[{"name": "conversion"}], [{"name": "conversion", "after": "click"}, {"name": "click"}]])
def test_a_conversion_as_the_first_task_is_judged_by_conversions(tasks, tmp_path):
    world = make_world(tmp_path / "prepared", requests=500, conversions=True)
    config = FinetuneConfig(
        prepared=world.path, output=tmp_path / "bundle", model={"width": 8, "hidden": [8]}, tasks=tasks,
        training=TRAINING, baselines={"names": []},
    )  # fmt: skip
    reported, judged = reported_and_found(config, tmp_path)
    found = judged["conversion"]["runs"]["model"]["metrics"]
    for metric in ("auc", "log_loss", "auc_request"):
        assert reported["models"]["adrec"][metric] == pytest.approx(found[metric]["value"], abs=1e-9)
    assert ("click" in judged) == (len(tasks) > 1), "a score of conversions is no score of clicks"


def test_a_loss_within_requests_needs_one_that_holds_both(tmp_path):
    """Requests of one ad: every step's loss was 0, and the weights were written as they began."""
    make_world(tmp_path / "prepared", requests=200, per_request=1)
    own = {"prepared": tmp_path / "prepared", "output": tmp_path / "bundle", "text": {"reference": None}}
    with pytest.raises(DataError, match="no training request holds both"):
        finetune.run(FinetuneConfig(**own, loss={"terms": [{"kind": "listwise"}, {"kind": "bpr"}]}), Terminal(quiet=True))
