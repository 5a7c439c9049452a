"""A bundle's model card says what is so: its figures are the bundle's, hostile names break nothing, Hugging Face reads it."""

import json

import numpy as np
import pytest
from huggingface_hub import ModelCard
from worlds import make_world

from adrec.bundle import open_bundle
from adrec.config.base import load_config
from adrec.config.data.inspect import InspectConfig
from adrec.config.training.finetune import FinetuneConfig
from adrec.data.prepared import open_prepared
from adrec.inference.packing import unpack
from adrec.stages.data import inspect
from adrec.stages.training import finetune
from adrec.stages.training.card import _code, intervals, write_card
from adrec.terminal import Terminal

QUIET = Terminal(quiet=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("card")
    make_world(folder / "prepared", users=120, requests=900)
    settings = (
        "training.epochs=3",
        "model.width=8",
        "baselines.names=[popularity, logistic]",
        "hybrid.kind=average",
        "text=null",
    )
    settings = [item for item in settings if item != "text=null"]
    given = [f"prepared={folder / 'prepared'}", f"output={folder / 'bundle'}", *settings]
    finetune.run(load_config(None, FinetuneConfig, given), QUIET)
    return open_prepared(folder / "prepared"), open_bundle(folder / "bundle")


def test_it_is_part_of_the_bundle_and_says_what_the_files_say(made):
    prepared, bundle = made
    assert "README.md" in bundle.manifest["files"]
    card, metrics = bundle.card, bundle.json("metrics.json")
    assert f"`{prepared.fingerprint}`" in card
    assert "| learned from | train |" in card and f"{metrics['cross_fitted']['auc']:.4f}" in card
    low, high = metrics["intervals"]["adrec"]["auc"]
    assert low < metrics["cross_fitted"]["auc"] < high
    for name in ("popularity", "logistic"):
        low, high = metrics["intervals"][name]["auc"]
        assert f"| `{name}` | {metrics['models'][name]['auc']:.4f} [{low:.3f}, {high:.3f}] |" in card
    assert "Identifiers are" in card or "not known" in card
    assert "{{" not in card and "{%" not in card


def test_hugging_face_reads_its_front_matter(made):
    _, bundle = made
    data = ModelCard(bundle.card).data
    assert data.library_name == "adrec" and data.pipeline_tag == "text-ranking"
    value = next(result.metric_value for result in data.eval_results if result.metric_type == "auc")
    assert value == round(bundle.json("metrics.json")["models"]["adrec"]["auc"], 4)
    assert data.model_name == "bundle"


def test_inspect_shows_its_verdict(made, capsys):
    _, bundle = made
    result = inspect.run(InspectConfig(path=bundle.path), QUIET)
    assert "on validation rows" in result.about["card"] and result.about["card"].startswith(f"{bundle.path}/README.md: AUC ")


@pytest.mark.parametrize("name", ["a|b", "a`b", "<script>", "a\nb", "---"])
def test_no_name_ends_its_cell(made, tmp_path, name):
    shown = _code(name)
    assert shown[0] == shown[-1] == "`" and "`" not in shown[1:-1] and "\n" not in shown and "<" not in shown
    assert "|" not in shown.replace("\\|", "")


def test_a_card_without_intervals_or_privacy(made, tmp_path):
    """Of a bundle whose metrics lack what newer ones have, such as a student's."""
    prepared, bundle = made
    metrics = {key: bundle.json("metrics.json")[key] for key in ("split", "models")}
    write_card(tmp_path, unpack(bundle), metrics, prepared, name="old")
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert ModelCard(card).data.model_name == "old"
    assert f"AUC {metrics['models']['adrec']['auc']:.4f} on validation rows." in card


def test_the_interval_holds_the_truth():
    """Scores of a known AUC: of two normal distributions a unit apart, Φ(1/√2) = .7602."""
    random, held = np.random.default_rng(0), 0
    for _ in range(200):
        labels = random.random(600) < 0.3
        scores = random.normal(size=600) + labels
        low, high = intervals({"x": scores}, labels, np.arange(600), np.arange(600))["x"]["auc"]
        held += low <= 0.7602 <= high
    assert 182 <= held <= 198  # 95 % of 200, give or take 2.6 standard deviations


def test_too_few_rows_have_no_interval():
    labels = np.array([1, 0, 0, 1, np.nan])
    assert intervals({"x": np.arange(5.0)}, labels, np.arange(5), np.arange(5)) == {}


def test_metrics_are_json(made):
    _, bundle = made
    json.dumps(bundle.json("metrics.json"), allow_nan=False)


def test_where_slots_are_learned_the_interval_is_that_of_the_scores_in_their_slots(tmp_path):
    slots = {"social": (0.0, -1.0, -2.0, -3.0), "search": (0.0, -1.0, -2.0, -3.0)}
    make_world(tmp_path / "prepared", users=120, requests=900, slots=slots)
    settings = ("training.epochs=3", "model.width=8", "model.position_bias=true", "baselines.names=[]")
    given = [f"prepared={tmp_path / 'prepared'}", f"output={tmp_path / 'bundle'}", *settings]
    finetune.run(load_config(None, FinetuneConfig, given), QUIET)
    metrics = open_bundle(tmp_path / "bundle").json("metrics.json")
    for name in ("adrec", "any_slot"):
        low, high = metrics["intervals"][name]["auc"]
        assert (low + high) / 2 == pytest.approx(metrics["models"][name]["auc"], abs=1e-3)
    assert metrics["models"]["adrec"]["auc"] > metrics["models"]["any_slot"]["auc"] + 0.01
