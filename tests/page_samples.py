"""One page of every kind, in a language, from small worlds: what the tests of pages look at."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scored_world import scored_columns, write_ads, write_scored

from adrec.config.data.inspect import InspectConfig
from adrec.config.evaluation.compare import CompareConfig
from adrec.config.evaluation.evaluate import EvaluateConfig
from adrec.inference.explain.counterfactual import Change
from adrec.inference.explain.explainer import Explanation, Part
from adrec.inference.explain.words import Word
from adrec.stages.data import inspect
from adrec.stages.evaluation import compare, evaluate
from adrec.stages.inference.explain import ExplainResult, Worded, _page
from adrec.stages.training.pretraining.report import write_report as write_pretraining
from adrec.stages.training.tuning.report import write_report as write_search
from adrec.terminal import Terminal
from adrec.training.loop.trainer import FitResult

_NAMES = """
    model oracle item cosine other scored ranked new_policy policy epsilon item_id cars travel social search en zh adv seed
    user_id ad_id request_id shown_at position propensity scenario click logit score cold_ad cold_user history_length row_id
    baseline_item baseline_cosine true_probability default popular text one two later learning_rate dropout parquet table
"""
DATA = frozenset(_NAMES.split())
"""Names that stand in these worlds' data, in whatever language the page is."""
_SHORT = """
    AUC PR MRR nDCG MAP GAUC ECE Brier PSI Jensen Shannon Holm IPS MSE RMSE MAE ROC UTC fANOVA nat sd adrec evaluate against
"""
ACRONYMS = frozenset(_SHORT.split())


def write_pages(folder: Path, language: str) -> dict[str, Path]:
    """Name -> page."""
    folder.mkdir(parents=True, exist_ok=True)
    return {
        "report": _report(folder, language),
        "lists": _lists(folder, language),
        "inspect": _inspect(folder, language),
        "drift": _drift(folder, language),
        "compare": _compare(folder, language),
        "explain": _explain(folder, language),
        "pretrain": _pretrain(folder, language),
        "tune": _tune(folder, language),
    }


def _report(folder: Path, language: str) -> Path:
    columns = scored_columns(requests=900)
    broken = columns["scenario"] == "search"
    score = np.where(broken, np.random.default_rng(0).permutation(columns["score"]), columns["score"])
    scored = write_scored(folder / "scored.parquet", requests=900, score=score, new_policy=np.full(len(score), 1 / 40))
    training = folder / "bundle"
    training.mkdir()
    steps = [{"step": step, "valid_auc": 0.6 + step / 1000, "valid_log_loss": 0.5} for step in (10, 20)]
    recall = {
        "policy": "default", "requests": 50, "k": 10, "candidates": 200, "eligible": 300.0, "recall": 0.5, "deviation": 0.01,
        "by_value": None, "channels": {"popular": 0.4}, "shares": {},
    }  # fmt: skip
    stored = {"curves": {"1": steps, "2": steps}, "candidate_recall": [recall]}
    (training / "metrics.json").write_text(json.dumps(stored))
    importance = folder / "why"
    importance.mkdir()
    (importance / "importance.json").write_text(
        json.dumps(
            {
                "rows": 500,
                "importance": [{"label": "dropout", "increase": 0.1, "low": 0.05, "high": 0.2}],
                "dependence": [{"label": "dropout", "values": ["1", "2"], "scores": [0.1, 0.2]}],
            }
        )
    )
    pq.write_table(pa.table(columns | {"position": columns["position"] + 3}), folder / "shifted.parquet")
    config = EvaluateConfig(
        scored=scored, output=folder / "report", drift={"before": scored, "after": folder / "shifted.parquet"},
        ads=write_ads(folder / "ads.parquet"), training=training, language=language,
        against=[write_scored(folder / "other.parquet", requests=900, noise=2.0)], off_policy={"policy_column": "new_policy"},
        bootstrap={"replicates": 30}, importance=importance,
    )  # fmt: skip
    evaluate.run(config, Terminal(quiet=True))
    return folder / "report" / "report.html"


def _lists(folder: Path, language: str) -> Path:
    rows = np.arange(60)
    table = {
        "user_id": [f"u{r // 6}" for r in rows], "request_id": [f"q{r // 6}" for r in rows],
        "ad_id": [f"a{r % 17}" for r in rows],
        "rank": (rows % 6 + 1).astype(np.int32), "score": np.full(60, 0.1, np.float32), "value": 0.2 - rows / 1000,
        "reason": ["<i>because</i>"] * 60, "click": (rows % 5 == 0).astype(np.int8),
    }  # fmt: skip
    pq.write_table(pa.table(table), folder / "ranked.parquet")
    config = EvaluateConfig(
        scored=folder / "ranked.parquet", output=folder / "lists", ads=folder / "ads.parquet", language=language,
        bootstrap={"replicates": 20},
    )  # fmt: skip
    evaluate.run(config, Terminal(quiet=True))
    return folder / "lists" / "report.html"


def _inspect(folder: Path, language: str) -> Path:
    config = InspectConfig(path=folder / "scored.parquet", html=folder / "inspect.html", language=language)
    inspect.run(config, Terminal(quiet=True))
    return folder / "inspect.html"


def _drift(folder: Path, language: str) -> Path:
    columns = scored_columns(requests=900)
    later = columns | {"position": columns["position"] + 3}
    del later["cold_ad"]
    pq.write_table(pa.table(later), folder / "later.parquet")
    config = InspectConfig(
        path=folder / "scored.parquet", against=folder / "later.parquet", html=folder / "drift.html", language=language
    )
    inspect.run(config, Terminal(quiet=True))
    return folder / "drift.html"


def _compare(folder: Path, language: str) -> Path:
    for name, noise in (("one", 0.5), ("two", 2.0)):
        scored = write_scored(folder / f"{name}.parquet", noise=noise)
        few = {"replicates": 20}
        evaluate.run(EvaluateConfig(scored=scored, output=folder / name, bootstrap=few, report=False), Terminal(quiet=True))
    runs = [folder / "one", folder / "two", folder / "report"]
    config = CompareConfig(runs=runs, html=folder / "compare.html", language=language)
    compare.run(config, Terminal(quiet=True))
    return folder / "compare.html"


def _explain(folder: Path, language: str) -> Path:
    parts = [
        Part("word", "茶", "", 0.4, 0.1, None, 0), Part("interests", "interests", "茶道", 0.3, 0.1),
        Part("click", "a1", "<b>茶具</b>", -0.2, 0.3), Part("query", "query", "茶", 0.1, 0.1), Part("together", "", "", 0.05),
    ]  # fmt: skip
    explanation = Explanation(
        user_id="u1", ad_id="a2", title="茶 <script>", language="zh", reader="zh", text="茶 套装", score=0.2, logit=-1.4,
        baseline=-2.05, parts=parts, words=[Word("茶", 0, 1, 0.4)],
        changes=[Change("interests", "interests", "茶道", 0.1, -2.0)],
    )  # fmt: skip
    path = folder / "explain.html"
    path.write_text(_page(ExplainResult([Worded(explanation, language == "zh")] * 2, "")), encoding="utf-8")
    return path


def _pretrain(folder: Path, language: str) -> Path:
    points = [{"step": step, "valid_loss": 5.0 - step / 10, "valid_mlm": 4.0} for step in (5.0, 10.0)]
    run = FitResult(
        best=4.0, best_step=10, steps=10, losses=[5.0, 4.5, 4.2] * 4, evaluations=points, seconds=3.0, units_per_second=800.0,
        stopped_early=True, resumed_at=0,
    )  # fmt: skip
    scores = {"unigram": {"tokens": 90, "loss": 6.0, "perplexity": 400.0, "accuracy": 0.01}}
    scores["after"] = {"tokens": 90, "loss": 4.0, "perplexity": 54.0, "accuracy": 0.2}
    near = [{"cosine": 0.5, "text": "<i>茶具</i>"}]
    outcome = {
        "parameters": 1000, "texts": 50, "tokens": 900, "run": run.as_dict(), "held_out": {"all": scores, "zh": scores},
        "neighbours": [{"text": "茶", "before": near, "after": near}],
    }  # fmt: skip
    write_pretraining(folder / "pretrain.html", "one", outcome, run, language)
    return folder / "pretrain.html"


def _tune(folder: Path, language: str) -> Path:
    values = [{"training.learning_rate": 0.001, "model.dropout": 0.1}, {"training.learning_rate": 0.01, "model.dropout": 0.2}]
    ends = [("complete", 0.7), ("pruned", 0.6), ("complete", 0.8), ("fail", None)]
    rows = [
        {"trial": place, "state": state, "value": value, "values": values[place % 2]}
        for place, (state, value) in enumerate(ends)
    ]
    summary = {
        "metric": "auc",
        "best_value": 0.8,
        "best": values[0],
        "importance": {"model.dropout": 0.7, "training.learning_rate": 0.3},
    }
    write_search(folder / "tune.html", "one", rows, summary, maximise=True, following="adrec finetune", language=language)
    return folder / "tune.html"
