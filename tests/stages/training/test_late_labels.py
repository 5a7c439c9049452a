"""Conversions that come late, from config to judged scores, in a planted world where all of them are known."""

import json
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from worlds import make_world

from adrec.config.evaluation.evaluate import EvaluateConfig
from adrec.config.inference.score import ScoreConfig
from adrec.config.training.finetune import FinetuneConfig
from adrec.data.examples import load_examples
from adrec.data.labels import LabelCut
from adrec.data.prepared import open_prepared
from adrec.errors import ConfigError, DataError
from adrec.metrics.classification import auc
from adrec.schema import TIMESTAMP
from adrec.stages.evaluation import evaluate
from adrec.stages.inference import score
from adrec.stages.training import finetune
from adrec.terminal import Terminal

HOUR = 3_600_000_000
MODEL = {"width": 16, "hidden": [16], "user": {"parts": ["soft"], "max_history": 10}}
TRAINING = {"epochs": 3, "batch_rows": 256, "learning_rate": 6e-3, "monitor": "auc"}


def delayed(path, mean_hours):
    """The prepared folder's conversions, each at a moment of its own, exponential after the showing."""
    generator, first = np.random.default_rng(3), {}
    for split in ("train", "valid", "test"):
        for file in sorted((path / "impressions" / split).glob("*.parquet")):
            table = pq.read_table(file)
            shown = table["shown_at"].cast(pa.int64()).to_numpy()
            first.setdefault(split, int(shown[0]))
            at = shown + (generator.exponential(mean_hours, len(shown)) * HOUR).astype(np.int64)
            moments = pa.array(at, mask=table["conversion"].to_numpy() == 0).cast(TIMESTAMP)
            pq.write_table(table.append_column("converted_at", moments), file, row_group_size=400)
    manifest = json.loads((path / "manifest.json").read_text())
    cuts = {split: datetime.fromtimestamp(first[split] / 1e6, UTC).isoformat() for split in ("valid", "test")}
    manifest |= {"label_moments": {"conversion": "converted_at"}, "cuts": cuts}
    (path / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    path = tmp_path_factory.mktemp("late") / "prepared"
    make_world(path, requests=5000, users=150, conversions=True, max_history=10)
    delayed(path, 100.0)  # of 830 hours
    return path


def configured(world, output, **settings):
    own = {"tasks": [{"name": "conversion"}], "model": MODEL, "training": TRAINING, "recall_requests": 0}
    own |= {"text": {"reference": None}, "baselines": {"names": []}, "hybrid": {"kind": "none"}}
    return FinetuneConfig(prepared=world, output=output, **own | settings)


def scored(world, config, tmp_path):
    output = tmp_path / "scored.parquet"
    score.run(ScoreConfig(bundle=config.output, output=output, prepared=world, split="test"), Terminal(quiet=True))
    return pq.read_table(output)


def level(world, tmp_path, column="score", **settings):
    """Predicted over what came in the end, on test rows, and the AUC."""
    config = configured(world, tmp_path / "bundle", **settings)
    finetune.run(config, Terminal(quiet=True))
    table = scored(world, config, tmp_path)
    label, scores = table["conversion"].to_numpy(), table[column].to_numpy()
    return scores.sum() / label.sum(), auc(label, scores)


def test_probabilities_are_of_what_comes_in_the_end(world, tmp_path):
    plain, _ = level(world, tmp_path / "none")
    assert plain < 0.75, "validation rows are 125 hours old at most: a third of their conversions has not come"
    for method in ("dfm", "es_dfm"):
        found, sharpness = level(world, tmp_path / method, delay={"method": method, "wait_hours": 50})
        assert found == pytest.approx(1, abs=0.13), method
        assert sharpness > 0.6, method


def test_streamed_and_as_a_second_task_and_after_a_refit(world, tmp_path):
    found, _ = level(
        world, tmp_path, "score_conversion", delay={"method": "dfm"}, refit=True,
        tasks=[{"name": "click"}, {"name": "conversion", "after": "click"}], training={**TRAINING, "in_memory_rows": 0},
    )  # fmt: skip
    assert found == pytest.approx(1, abs=0.13)


def test_labels_are_timed_as_of_the_cut_and_end_with_the_window(world):
    prepared = open_prepared(world)
    cut = prepared.timed_cut(["train"], 48.0)
    rows = load_examples(prepared, "train", cut=cut)
    table = pa.concat_tables([pq.read_table(file) for file in prepared.split_files("train")])
    shown = table["shown_at"].cast(pa.int64()).to_numpy()
    at = table["converted_at"].cast(pa.int64()).fill_null(0).to_numpy()
    ends = int(cut.moment.timestamp() * 1e6)
    happened = (table["conversion"].to_numpy() == 1) & (at < ends) & (at - shown <= 48 * HOUR)
    np.testing.assert_array_equal(rows.labels["conversion"], happened)
    np.testing.assert_allclose(rows.elapsed, (ends - shown) / HOUR, rtol=1e-6)
    np.testing.assert_allclose(rows.delays["conversion"], np.where(happened, (at - shown) / HOUR, np.nan), rtol=1e-5)
    assert "click" not in rows.delays
    few = rows.take(np.array([5, 900]))
    assert few.elapsed.tolist() == rows.elapsed[[5, 900]].tolist()
    # Where nothing follows, the log's last showing is the cut.
    whole = prepared.timed_cut(["train", "valid", "test"], None)
    assert whole.moment == max(pc.max(pq.read_table(f)["shown_at"]).as_py() for f in prepared.split_files("test"))


def test_a_cut_without_times_is_what_it_was(world):
    prepared = open_prepared(world)
    cut = prepared.label_cut(["train"])
    assert cut == LabelCut(cut.moment, {"conversion": "converted_at"})
    assert load_examples(prepared, "train", cut=cut).elapsed is None


def test_what_cannot_be_is_told(world, tmp_path):
    make_world(tmp_path / "plain", requests=300, conversions=True)
    with pytest.raises(DataError, match="history.converted_at"):
        finetune.run(configured(tmp_path / "plain", tmp_path / "b", delay={"method": "dfm"}), Terminal(quiet=True))
    asked = configured(world, tmp_path / "b", delay={"method": "dfm"}, training={**TRAINING, "monitor": "log_loss"})
    with pytest.raises(ConfigError, match=r"training\.monitor"):
        finetune.run(asked, Terminal(quiet=True))
    with pytest.raises(ValueError, match="negative_rate"):
        configured(world, tmp_path / "b", delay={"method": "fnw"}, loss={"negative_rate": 0.5})


def test_evaluation_leaves_out_what_is_too_young_and_says_what_is_still_to_come(world, tmp_path):
    table = pa.concat_tables([pq.read_table(file) for file in open_prepared(world).split_files("train")])
    truth = table["conversion"].to_numpy()
    rate = np.where(table["click"].to_numpy() == 1, truth[table["click"].to_numpy() == 1].mean(), 1e-6)
    pq.write_table(table.append_column("score_conversion", pa.array(rate)), tmp_path / "s.parquet")

    def judged(**delay):
        settings = {"report": False, "bootstrap": {"replicates": 20}, "delay": delay}
        config = EvaluateConfig(scored=tmp_path / "s.parquet", output=tmp_path / "out", **settings)
        result = evaluate.run(config, Terminal(quiet=True))
        assert any("will come" in str(line) for line in result.render())
        return result.as_dict()["tasks"]["conversion"]

    shown = table["shown_at"].cast(pa.int64()).to_numpy()
    at = table["converted_at"].cast(pa.int64()).fill_null(0).to_numpy()
    end = shown.max()
    old = end - shown >= 100 * HOUR
    inside = (truth == 1) & (at < end) & (at - shown <= 100 * HOUR)
    found = judged(window_hours=100)
    assert found["counts"]["rows"] == old.sum() == found["delay"]["judged"]
    assert found["counts"]["unlabelled_rows"] == (~old).sum()
    assert found["counts"]["positives"] == (inside & old).sum()
    assert found["delay"]["come"] == inside.sum()
    # All rows without a window: what has come is too little, and the level of what should have come is right.
    found = judged()
    come = (truth == 1) & (at < end)
    assert found["counts"]["positives"] == come.sum()
    assert found["runs"]["model"]["metrics"]["predicted_over_observed"]["value"] > 1.1
    assert found["delay"]["predicted_over_come"] == pytest.approx(1, abs=0.06)
    assert found["delay"]["seen"] == pytest.approx(come.sum() / truth.sum(), abs=0.05)
    with pytest.raises(DataError, match=r"delay\.moments"):
        judged(moments={"conversion": "absent"})
