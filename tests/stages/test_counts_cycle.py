"""A report of counts from raw file to evaluation: preprocess, finetune, score, evaluate."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from adrec.config.data.preprocess import PreprocessConfig
from adrec.config.evaluation.evaluate import EvaluateConfig
from adrec.config.inference.score import ScoreConfig
from adrec.config.training.finetune import FinetuneConfig
from adrec.stages.data import preprocess
from adrec.stages.evaluation import evaluate
from adrec.stages.inference import score
from adrec.stages.training import finetune
from adrec.terminal import Terminal

QUIET = Terminal(quiet=True)
KAG = Path(__file__).parents[3] / "shared" / "data" / "strangers" / "KAG_full.csv"


def cycle(folder, report, columns, categories, *, arms):
    """metrics.json and the prepared folder of a report in `folder`."""
    raw = {
        "output": "prepared",
        "source": {"format": "tables", "impressions": {"files": report.name, "columns": columns,
                                                       "defaults": {"shown_at": "2026-03-01"}}},
        "split": {"method": "random", "unit": "request", "valid_fraction": 0.25, "test_fraction": 0.25},
        "keep": [arms],
        "tokenizer": {"kind": "none"},
        "features": {"impressions": {"categorical": [{"column": column} for column in categories]}},
    }  # fmt: skip
    base = {"base": folder}
    preprocess.run(PreprocessConfig.model_validate(raw, context=base), QUIET)
    learn = {"prepared": "prepared", "output": "bundle", "training": {"epochs": 12, "batch_rows": 64},
             "baselines": {"names": ["logistic", "lightgbm", "smoothed_ctr"]}}  # fmt: skip
    finetune.run(FinetuneConfig.model_validate(learn, context=base), QUIET)
    asked = {"bundle": "bundle", "prepared": "prepared", "split": "test", "output": "scored.parquet"}
    score.run(ScoreConfig.model_validate(asked, context=base), QUIET)
    judged = {
        "scored": "scored.parquet",
        "output": "evaluation",
        "arms": arms,
        "report": False,
        "bootstrap": {"replicates": 200},
    }
    evaluate.run(EvaluateConfig.model_validate(judged, context=base), QUIET)
    return json.loads((folder / "evaluation" / "metrics.json").read_text())["tasks"]["click"]


def test_what_segments_do_is_learned_from_counts(tmp_path):
    rng = np.random.default_rng(0)
    count = 400
    age, tone = rng.integers(0, 3, count), rng.integers(0, 4, count)
    shown = rng.integers(500, 5000, count)
    rate = 1 / (1 + np.exp(-(np.array([-5, -4, -3.5])[age] + np.array([-0.6, -0.2, 0.2, 0.6])[tone])))
    table = pa.table(
        {
            "user_id": [f"row{n}" for n in range(count)], "ad_id": [f"ad{n}" for n in range(count)],
            "title": [f"offer {n}" for n in range(count)], "campaign": [f"c{n % 3}" for n in range(count)],
            "age": [f"a{n}" for n in age], "tone": [f"t{n}" for n in tone],
            "Impr": shown, "Clicks": rng.binomial(shown, rate),
        }
    )  # fmt: skip
    pa.csv.write_csv(table, tmp_path / "report.csv")
    found = cycle(
        tmp_path, tmp_path / "report.csv", {"impressions": "Impr", "clicks": "Clicks"}, ["age", "tone"], arms="campaign"
    )
    scored = pq.read_table(tmp_path / "scored.parquet")
    assert found["counts"]["impressions"] == scored["weight"].to_numpy().sum()
    assert 0.8 < found["runs"]["model"]["metrics"]["predicted_over_observed"]["value"] < 1.25
    auc = {name: found["runs"][name]["metrics"]["auc"]["value"] for name in ("model", "logistic", "smoothed_ctr")}
    assert auc["logistic"] > 0.65 and auc["model"] > auc["logistic"] - 0.03 and auc["smoothed_ctr"] == 0.5
    lift = found["arms"]["runs"]["model"]["lift_above_mean"]
    assert lift["low"] > 1.1  # which ads do better than their campaign's mean is known
    assert found["arms"]["runs"]["model"]["ordered_rightly"]["value"] > 0.9


@pytest.mark.skipif(not KAG.exists(), reason="the export of another's campaigns is not here")
def test_an_export_of_facebook_is_judged_with_an_interval(tmp_path):
    rows = pa.csv.read_csv(KAG)
    rows = rows.append_column("user_id", rows["ad_id"].cast(pa.string())).append_column(
        "title", rows["interest"].cast(pa.string())
    )
    pa.csv.write_csv(rows, tmp_path / "report.csv")
    columns = {"impressions": "Impressions", "clicks": "Clicks", "conversions": "Approved_Conversion", "spend": "Spent"}
    found = cycle(tmp_path, tmp_path / "report.csv", columns, ["age", "gender", "interest"], arms="xyz_campaign_id")
    told = found["arms"]
    lift = told["runs"]["model"]["lift_above_mean"]
    assert found["counts"]["drawn"] == "ads" and told["tests"] == 3
    assert 0.7 < lift["low"] < lift["value"] < lift["high"] < 1.4
