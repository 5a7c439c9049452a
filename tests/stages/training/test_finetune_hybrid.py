"""The hybrid as a bundle's scorer: same scores after loading, row by row, honest validation figures, calibrated."""

import json

import numpy as np
import pytest
from pydantic import ValidationError
from worlds import make_world, word_encoder

from adrec.config.training.finetune import FinetuneConfig
from adrec.data.examples import load_examples
from adrec.data.prepared import open_prepared
from adrec.inference.predictor import Predictor
from adrec.metrics.classification import auc
from adrec.stages.training import finetune
from adrec.terminal import Terminal

NAMES = ["popularity", "conditional_logit", "lightgbm"]


def settings(world, folder, kind, **changes):
    return FinetuneConfig(
        prepared=world.path,
        output=folder / kind,
        text={"reference": str(word_encoder(folder / "words")), "cache": folder / "cache"},
        model={"width": 16, "hidden": [16], "user": {"parts": ["soft"], "max_history": 15}},
        training={"epochs": 2, "batch_rows": 256, "learning_rate": 4e-3, "loggers": []},
        baselines={"names": NAMES},
        hybrid={"kind": kind},
        **changes,
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hybrid")
    return make_world(folder / "prepared", requests=1200, users=80), folder


@pytest.fixture(scope="module", params=["average", "stack"])
def trained(made, request):
    world, folder = made
    config = settings(world, folder, request.param)
    result = finetune.run(config, Terminal(quiet=True))
    prepared = open_prepared(world.path)
    predictor = Predictor.load(config.output, device="cpu", cache=config.text.cache)
    return config, result, prepared, predictor


def test_the_bundle_scores_with_it(trained):
    config, result, prepared, predictor = trained
    assert result.hybrid == config.hybrid.kind == predictor.packed.hybrid.kind
    assert (config.output / "hybrid" / "state.json").exists()
    rows = load_examples(prepared, "test", max_history=15)
    catalogs = predictor.catalogs(prepared.ads(), prepared.users())
    with_baselines = predictor.score_examples(rows, catalogs)
    alone = predictor.score_examples(rows, catalogs, baselines=False)
    np.testing.assert_array_equal(with_baselines.logit, alone.logit)
    assert list(with_baselines.baselines) == NAMES and alone.baselines == {}
    few = predictor.score_examples(rows.take(np.arange(40)), catalogs, batch_rows=7)
    np.testing.assert_allclose(few.score, with_baselines.score[:40], atol=1e-6)
    network = result.models["network"]["auc"]
    assert auc(rows.labels["click"], with_baselines.logit) > network - 0.02
    assert with_baselines.score.mean() == pytest.approx(rows.labels["click"].mean(), rel=0.15)


def test_validation_figures_come_from_rows_the_hybrid_did_not_see(trained):
    config, result, prepared, predictor = trained
    rows = load_examples(prepared, "valid", max_history=15)
    seen = predictor.score_examples(rows, predictor.catalogs(prepared.ads(), prepared.users()))
    kept = json.loads((config.output / "metrics.json").read_text(encoding="utf-8"))
    reported = kept["models"]["adrec"]["auc"]
    assert kept["hybrid"]["kind"] == config.hybrid.kind
    assert auc(rows.labels["click"], seen.logit) > reported - 0.005, "its own rows look at least as good as others"


def test_a_named_kind_needs_a_member_among_the_baselines_and_auto_does_not(made):
    world, folder = made
    values = {"prepared": world.path, "output": folder / "x", "baselines": {"names": ["popularity"]}}
    with pytest.raises(ValidationError, match="hybrid: needs one of conditional_logit, lightgbm"):
        FinetuneConfig(**values, hybrid={"kind": "average"})
    assert FinetuneConfig(**values).hybrid.kind == "auto"


def test_a_baseline_that_is_clearly_better_is_named(made):
    """The network alone, barely trained, beside trees that know the counters: said on the terminal, in JSON, in the bundle."""
    world, folder = made
    config = settings(world, folder, "none", calibration="none")
    config = config.model_copy(update={"training": config.training.model_copy(update={"max_steps": 1, "learning_rate": 1e-6})})
    result = finetune.run(config, Terminal(quiet=True))
    check = result.as_dict()["simple_check"]
    assert check["low"] > 0 and check["name"] in NAMES
    gap = result.models[check["name"]][check["metric"]] - result.models["adrec"][check["metric"]]
    assert check["difference"] == pytest.approx(gap, abs=1e-6)
    spoken = " ".join(str(line) for line in result.render())
    assert f"{check['name']} is clearly better than the model" in spoken and "hybrid.kind=auto" in spoken
    assert json.loads((config.output / "metrics.json").read_text())["simple_check"] == check


def test_with_auto_no_baseline_is_clearly_better(made):
    world, folder = made
    config = settings(world, folder, "auto")
    config = config.model_copy(update={"training": config.training.model_copy(update={"max_steps": 1, "learning_rate": 1e-6})})
    result = finetune.run(config, Terminal(quiet=True))
    assert result.simple_check is not None and not result.simple_check.is_better
    assert any("no simple baseline is clearly better" in str(line) for line in result.render())
