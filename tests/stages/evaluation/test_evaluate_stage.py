import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from scored_world import scored_columns, write_ads, write_scored
from sklearn.metrics import average_precision_score, log_loss, roc_auc_score
from typer.testing import CliRunner

from adrec.cli.app import app
from adrec.config.base import load_config
from adrec.config.evaluation.evaluate import EvaluateConfig
from adrec.errors import DataError
from adrec.metrics import ranking
from adrec.metrics.calibration import wilson_interval
from adrec.stages.evaluation.evaluate import run
from adrec.terminal import Terminal

FEW = {"bootstrap": {"replicates": 60}, "report": False}


def judged(tmp_path, scored, **settings):
    config = EvaluateConfig(scored=scored, output=tmp_path / "out", **(FEW | settings))
    run(config, Terminal(quiet=True))
    return json.loads((tmp_path / "out" / "metrics.json").read_text())


def test_metrics_equal_oracles_and_stand_inside_their_intervals(tmp_path):
    found = judged(tmp_path, write_scored(tmp_path / "s.parquet"))
    columns = scored_columns()
    y, s, request, user = (columns[name] for name in ("click", "score", "request_id", "user_id"))
    metrics = found["tasks"]["click"]["runs"]["model"]["metrics"]
    expected = {
        "auc": roc_auc_score(y, s),
        "pr_auc": average_precision_score(y, s),
        "log_loss": log_loss(y, s.astype(np.float64)),
        "auc_request": ranking.auc_request(y, s, request),
        "auc_user": ranking.auc_request(y, s, user),
        "ndcg@5": ranking.ndcg(y, s, request, 5),
        "predicted_over_observed": s.sum() / y.sum(),
        "accuracy": ((s >= 0.5) == y).mean(),
    }
    for name, value in expected.items():
        assert metrics[name]["value"] == pytest.approx(value, rel=1e-6), name
        assert metrics[name]["low"] <= value <= metrics[name]["high"], name
    assert metrics["ece"]["low"] <= metrics["ece"]["value"] <= metrics["ece"]["high"]
    counts = found["tasks"]["click"]["counts"]
    assert counts["rows"] == len(y)
    assert counts["positives"] == y.sum()
    assert counts["requests_of_one_class"] == ranking.RankedGroups(y, s, request).skipped


def test_the_baselines_called_probabilities_are_those_that_say_so():
    from adrec.models.baselines.suite import BASELINES

    default = EvaluateConfig(scored="x").probability_baselines
    assert set(default) == {name for name, baseline in BASELINES.items() if baseline.is_probability}


def test_baselines_and_oracle_stand_beside_the_model(tmp_path):
    scored = write_scored(tmp_path / "s.parquet")
    runs = judged(tmp_path, scored, probability_baselines=["item"])["tasks"]["click"]["runs"]
    assert {name: found["role"] for name, found in runs.items()} == {
        "model": "model", "item": "baseline", "cosine": "baseline", "oracle": "oracle",
    }  # fmt: skip
    assert runs["oracle"]["metrics"]["auc"]["value"] > runs["model"]["metrics"]["auc"]["value"]
    assert "log_loss" in runs["item"]["metrics"]
    assert "log_loss" not in runs["cosine"]["metrics"]


def test_against_another_run_is_paired_and_directed(tmp_path):
    good, bad = write_scored(tmp_path / "s.parquet"), write_scored(tmp_path / "bad.parquet", noise=2.5, seed=3)
    same = write_scored(tmp_path / "same.parquet")
    comparisons = judged(tmp_path, good, against=[bad, same])["tasks"]["click"]["comparisons"]
    by_key = {(item["against"], item["metric"]): item for item in comparisons}
    assert by_key["bad", "auc"]["verdict"] == "better"
    assert by_key["bad", "log_loss"]["verdict"] == "better"
    assert by_key["bad", "log_loss"]["value"] < 0
    assert by_key["same", "auc"]["p_value"] == 1
    assert by_key["same", "auc"]["verdict"] == "no difference"
    assert by_key["bad", "auc"]["adjusted_p"] >= by_key["bad", "auc"]["p_value"]


def test_other_run_in_another_order_is_aligned_by_row_id(tmp_path):
    scored = write_scored(tmp_path / "s.parquet")
    table = pq.read_table(scored)
    order = np.random.default_rng(0).permutation(table.num_rows)
    pq.write_table(table.take(pa.array(order)), tmp_path / "shuffled.parquet")
    comparisons = judged(tmp_path, scored, against=[tmp_path / "shuffled.parquet"])["tasks"]["click"]["comparisons"]
    assert all(item["value"] == 0 for item in comparisons if item["role"] == "against")


def test_the_same_command_gives_the_same_bytes_and_another_seed_other_intervals(tmp_path):
    scored = write_scored(tmp_path / "s.parquet")
    judged(tmp_path, scored, report=True)
    first = {name: (tmp_path / "out" / name).read_bytes() for name in ("metrics.json", "report.html", "config.yaml")}
    judged(tmp_path, scored, report=True)
    for name, content in first.items():
        assert (tmp_path / "out" / name).read_bytes() == content
    other = judged(tmp_path, scored, seed=1)["tasks"]["click"]["runs"]["model"]["metrics"]["auc"]
    was = json.loads(first["metrics.json"])["tasks"]["click"]["runs"]["model"]["metrics"]["auc"]
    assert other["value"] == was["value"]
    assert other["low"] != was["low"]


def test_a_run_can_be_repeated_from_the_config_it_wrote(tmp_path):
    judged(tmp_path, write_scored(tmp_path / "s.parquet"))
    was = (tmp_path / "out" / "metrics.json").read_bytes()
    run(load_config(tmp_path / "out" / "config.yaml", EvaluateConfig), Terminal(quiet=True))
    assert (tmp_path / "out" / "metrics.json").read_bytes() == was


def test_a_slice_whose_scores_are_noise_raises_an_alarm_and_no_other_does(tmp_path):
    columns = scored_columns(requests=4000, noise=0.1)
    broken = columns["scenario"] == "search"
    score = np.where(broken, np.random.default_rng(0).permutation(columns["score"]), columns["score"])
    scored = write_scored(tmp_path / "s.parquet", requests=4000, noise=0.1, score=score)
    alarms = judged(tmp_path, scored)["tasks"]["click"]["alarms"]
    ranking_alarms = {(alarm["column"], alarm["value"]) for alarm in alarms if alarm["kind"] == "ranking"}
    assert ranking_alarms == {("scenario", "search")}


def test_a_slice_that_is_predicted_too_high_raises_a_calibration_alarm(tmp_path):
    columns = scored_columns(requests=3000, noise=0.01)
    score = np.where(columns["cold_ad"], np.minimum(1, 1.7 * columns["score"]), columns["score"]).astype(np.float32)
    scored = write_scored(tmp_path / "s.parquet", requests=3000, noise=0.01, score=score)
    alarms = judged(tmp_path, scored)["tasks"]["click"]["alarms"]
    assert ("calibration", "cold_ad", "yes") in {(alarm["kind"], alarm["column"], alarm["value"]) for alarm in alarms}


def test_slices_cut_every_usual_column_and_the_declared_ones(tmp_path):
    ads = write_ads(tmp_path / "ads.parquet")
    rows = len(scored_columns()["click"])
    scored = write_scored(
        tmp_path / "s.parquet", price=np.arange(rows) / rows, device=["phone", "desk"] * (rows // 2) + ["phone"] * (rows % 2)
    )
    found = judged(tmp_path, scored, ads=ads, slices={"columns": ["device", "price"]})
    cut = {}
    for part in found["tasks"]["click"]["slices"]:
        cut.setdefault(part["column"], []).append(part)
    assert set(cut) == {
        "cold_ad", "cold_user", "history_length", "category", "scenario", "language", "position", "day", "device", "price",
    }  # fmt: skip
    for column, parts in cut.items():
        assert sum(part["rows"] for part in parts) == rows, column
    assert [part["value"] for part in cut["history_length"]] == ["none", "1 to 4", "5 to 19", "20 to 49", "50 or more"]
    assert len(cut["price"]) == 4
    with pytest.raises(DataError, match="slice column 'colour' is in none"):
        judged(tmp_path, scored, slices={"columns": ["colour"]})


def test_tables_without_requests_or_with_one_row_each_have_no_list_metrics(tmp_path):
    found = judged(tmp_path, write_scored(tmp_path / "s.parquet", without=["request_id", "row_id"]))
    metrics = found["tasks"]["click"]["runs"]["model"]["metrics"]
    assert "auc_user" in metrics
    assert "auc_request" not in metrics
    assert found["lists"] is None


def test_tasks_beside_the_click(tmp_path):
    columns = scored_columns()
    rows, rng = len(columns["click"]), np.random.default_rng(0)
    rating = np.where(columns["click"] == 1, rng.integers(1, 6, rows), np.nan)
    guess = np.nan_to_num(rating, nan=3.0) + rng.normal(0, 1, rows)
    scored = write_scored(
        tmp_path / "s.parquet", conversion=columns["click"] * (rng.random(rows) < 0.4), score_conversion=columns["score"] * 0.4,
        rating=rating, score_rating=guess,
    )  # fmt: skip
    tasks = judged(tmp_path, scored)["tasks"]
    assert set(tasks) == {"click", "conversion", "rating"}
    known = ~np.isnan(rating)
    counts = tasks["rating"]["counts"]
    assert (counts["rows"], counts["unlabelled_rows"]) == (known.sum(), (~known).sum())
    assert counts["mean"] == pytest.approx(rating[known].mean())
    assert tasks["rating"]["runs"]["model"]["metrics"]["rmse"]["value"] == pytest.approx(
        np.sqrt(np.mean((rating - guess)[known] ** 2))
    )
    only = judged(tmp_path, scored, tasks=[{"label": "rating", "score": "score_rating", "kind": "regression"}])["tasks"]
    assert set(only) == {"rating"}


def test_a_task_in_which_nothing_happened_yet_does_not_keep_the_click_from_being_judged(tmp_path, capsys):
    columns = scored_columns()
    made = {"conversion": columns["click"] * 0, "score_conversion": columns["score"] * 0.4}
    scored = write_scored(tmp_path / "s.parquet", **made)
    run(EvaluateConfig(scored=scored, output=tmp_path / "out", **FEW), Terminal())
    assert set(json.loads((tmp_path / "out" / "metrics.json").read_text())["tasks"]) == {"click"}
    assert "'conversion' is 0 in all" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(DataError, match="metrics need both classes"):  # who asks for it by name is told
        judged(tmp_path, scored, tasks=[{"label": "conversion", "score": "score_conversion"}])


def test_labels_can_come_from_the_impressions(tmp_path):
    whole = write_scored(tmp_path / "whole.parquet")
    table = pq.read_table(whole)
    # One row for each pair of request and ad, so that the join is exact.
    first = np.unique(
        [f"{r} {a}" for r, a in zip(table["request_id"].to_pylist(), table["ad_id"].to_pylist(), strict=True)],
        return_index=True,
    )[1]
    table = table.take(pa.array(np.sort(first)))
    pq.write_table(table, whole)
    pq.write_table(
        table.select(["user_id", "request_id", "ad_id", "click"]).take(pa.array(np.arange(table.num_rows)[::-1])),
        tmp_path / "truth.parquet",
    )
    pq.write_table(table.drop_columns(["click"]), tmp_path / "bare.parquet")
    expected = judged(tmp_path, whole)["tasks"]["click"]
    found = judged(tmp_path, tmp_path / "bare.parquet", labels=tmp_path / "truth.parquet")["tasks"]["click"]
    assert found["counts"] == expected["counts"]
    assert found["runs"] == expected["runs"]


def ranked_lists(path, lists, **columns):
    """lists: {user: [ads in order]}."""
    rows = [(user, ad, rank) for user, ads in lists.items() for rank, ad in enumerate(ads, 1)]
    table = {
        "user_id": [row[0] for row in rows], "request_id": [row[0] for row in rows], "ad_id": [row[1] for row in rows],
        "rank": pa.array([row[2] for row in rows], pa.int32()), "score": np.linspace(0.5, 0.1, len(rows)).astype(np.float32),
        "value": np.linspace(0.5, 0.1, len(rows)), "reason": ["best"] * len(rows), **columns,
    }  # fmt: skip
    pq.write_table(pa.table(table), path)
    return path


def test_ranked_lists_against_clicks_by_hand(tmp_path):
    lists = {"u1": ["a", "b", "c"], "u2": ["a", "c", "d"], "u3": ["a", "b", "d"], "u4": ["a", "b", "c"]}
    ranked = ranked_lists(tmp_path / "r.parquet", lists, price=np.full(12, 2.0))
    # u1 clicked its 2nd ad; u2 one listed and one that was not; u3 only one that was not listed; u4 nothing; u5 has no list.
    clicks = [("u1", "b"), ("u2", "a"), ("u2", "z"), ("u3", "c"), ("u5", "a")]
    table = {"user_id": [c[0] for c in clicks] + ["u4"], "ad_id": [c[1] for c in clicks] + ["a"], "click": [1] * 5 + [0]}
    pq.write_table(pa.table(table), tmp_path / "clicks.parquet")
    found = judged(tmp_path, ranked, labels=tmp_path / "clicks.parquet", cutoffs=[1, 3])["lists"]
    metrics = {name: item["value"] for name, item in found["metrics"].items()}
    assert metrics["hit_rate@1"] == pytest.approx((0 + 1 + 0) / 3)
    assert metrics["hit_rate@3"] == pytest.approx((1 + 1 + 0) / 3)
    assert metrics["recall@3"] == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert metrics["coverage"] == pytest.approx(4 / 4)
    assert metrics["expected_revenue_per_thousand"] == pytest.approx(1000 * 2 * np.linspace(0.5, 0.1, 12).mean(), rel=1e-6)
    assert found["skipped"] == {"lists_without_a_click": 1, "clicked_requests_without_a_list": 1}
    assert found["lists"] == 4


def test_lists_use_ads_and_vectors(tmp_path):
    ads = write_ads(tmp_path / "ads.parquet")
    vectors = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    table = pa.table({"ad_id": [f"a{a}" for a in range(40)], "vector": list(vectors)})
    pq.write_table(table, tmp_path / "vectors.parquet")
    found = judged(tmp_path, write_scored(tmp_path / "s.parquet"), ads=ads, vectors=tmp_path / "vectors.parquet")["lists"]
    assert 0.8 < found["metrics"]["intra_list_diversity"]["value"] < 1.2
    assert {"advertiser_top_share", "category_diversity", "observed_revenue_per_thousand"} <= set(found["metrics"])
    pq.write_table(table.slice(0, 30), tmp_path / "vectors.parquet")
    with pytest.raises(DataError, match="no vector for ad"):
        judged(tmp_path, tmp_path / "s.parquet", vectors=tmp_path / "vectors.parquet")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"without": ["click"]}, "no label column"),
        ({"click": lambda y: y * 2}, "is neither 0 nor 1"),
        ({"click": lambda y: y * 0}, "metrics need both classes"),
        ({"click": lambda y: [None] * len(y)}, "null in every row"),
        ({"score": lambda s: np.where(np.arange(len(s)) == 5, np.nan, s)}, "row 5: nan is not a score"),
        ({"score": lambda s: s * 0 + 1.5}, "row 0: 1.5 is not a probability"),
        ({"score": lambda s: s.astype(str)}, "is string, expected numbers"),
        ({"baseline_item": lambda s: s * np.inf}, "column 'baseline_item', row 0: inf is not a score"),
    ],
)
def test_faults_are_named_and_earlier_output_is_kept(tmp_path, change, message):
    judged(tmp_path, write_scored(tmp_path / "good.parquet"))
    before = (tmp_path / "out" / "metrics.json").read_bytes()
    columns = scored_columns()
    made = {name: make(columns[name]) if callable(make) else make for name, make in change.items()}
    with pytest.raises(DataError, match=message) as caught:
        judged(tmp_path, write_scored(tmp_path / "bad.parquet", **made))
    assert "bad.parquet" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "out" / "metrics.json").read_bytes() == before


def test_empty_and_broken_files(tmp_path):
    pq.write_table(pq.read_table(write_scored(tmp_path / "s.parquet")).slice(0, 0), tmp_path / "none.parquet")
    with pytest.raises(DataError, match="no rows"):
        judged(tmp_path, tmp_path / "none.parquet")
    (tmp_path / "zero.parquet").touch()
    with pytest.raises(DataError, match="empty"):
        judged(tmp_path, tmp_path / "zero.parquet")
    (tmp_path / "half.parquet").write_bytes((tmp_path / "s.parquet").read_bytes()[:500])
    with pytest.raises(DataError, match="not a whole Parquet file"):
        judged(tmp_path, tmp_path / "half.parquet")


def test_other_rows_cannot_be_compared(tmp_path):
    scored = write_scored(tmp_path / "s.parquet")
    table = pq.read_table(scored)
    pq.write_table(table.slice(1), tmp_path / "short.parquet")
    with pytest.raises(DataError, match="rows, but"):
        judged(tmp_path, scored, against=[tmp_path / "short.parquet"])
    other = write_scored(tmp_path / "other.parquet", row_id=np.arange(table.num_rows) + 5)
    with pytest.raises(DataError, match="no row with row_id 0"):
        judged(tmp_path, scored, against=[other])
    swapped = np.where(np.arange(table.num_rows) == 3, "a99", scored_columns()["ad_id"])
    other = write_scored(tmp_path / "other.parquet", ad_id=swapped)
    with pytest.raises(DataError, match="row 3 has ad_id 'a99'"):
        judged(tmp_path, scored, against=[other])


def test_the_command_line(tmp_path):
    scored, other = write_scored(tmp_path / "s.parquet"), write_scored(tmp_path / "o.parquet", seed=1)
    command = ["evaluate", str(scored), "--against", str(other), "--set", "bootstrap.replicates=30", "--set", "report=false"]
    shown = CliRunner().invoke(app, [*command, "-q"])
    assert shown.exit_code == 0, shown.output
    assert "AUC" in shown.stdout
    assert (tmp_path / "s_evaluation" / "metrics.json").exists()
    as_json = CliRunner().invoke(app, [*command, "--json", "-q", "-o", str(tmp_path / "again")])
    assert json.loads(as_json.stdout)["tasks"]["click"]["runs"]["o"]["role"] == "against"
    missing = CliRunner().invoke(app, ["evaluate", str(tmp_path / "nowhere.parquet")])
    assert missing.exit_code == 1
    assert "no such file" in missing.stderr


def test_bins_of_one_class_are_drawn(tmp_path):
    """Wilson's ends cross a rate of 0 or 1 by rounding; matplotlib refuses the negative bar (seen on 9 of 15 real logs)."""
    ends = {}
    for rows in range(1, 400):
        count = np.full(2, rows)
        low, high = wilson_interval(np.array([0.0, 1.0]), count)
        ends[rows] = (low[0], high[1], bool((low <= [0, 1]).all() and (high >= [0, 1]).all()))
    assert all(fine for *_, fine in ends.values())
    score = np.linspace(0.01, 0.99, 45)
    table = {"user_id": [f"u{i % 9}" for i in range(45)], "ad_id": [f"a{i % 9}" for i in range(45)], "score": score}
    pq.write_table(pa.table({**table, "click": (score > 0.5).astype(np.int8)}), tmp_path / "s.parquet")
    found = judged(tmp_path, tmp_path / "s.parquet", report=True)
    assert "Reliability" in (tmp_path / "out" / "report.html").read_text()
    bins = found["tasks"]["click"]["runs"]["model"]["reliability"]
    assert 0.0 in bins["observed"]
    assert 1.0 in bins["observed"]
    assert sum(bins["rows"]) == 45
    assert all(low <= rate <= high for low, rate, high in zip(bins["low"], bins["observed"], bins["high"], strict=True))


def test_a_picture_that_fails_takes_no_number_with_it(tmp_path, monkeypatch, capsys):
    def broken(*_):
        assert (tmp_path / "out" / "metrics.json").exists()
        raise ValueError("'yerr' must not contain negative values")

    monkeypatch.setattr("adrec.stages.evaluation.report.plots.reliability_plot", broken)
    found = judged(tmp_path, write_scored(tmp_path / "s.parquet"), report=True)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Score distributions" in page
    assert ">Reliability<" not in page
    assert "picture could not be drawn" in capsys.readouterr().err
    assert found["tasks"]["click"]["runs"]["model"]["metrics"]["auc"]["value"] > 0.5


def test_figures_stay_where_the_page_cannot_be_written(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("adrec.stages.evaluation.report.page.write_report", killed)
    with pytest.raises(KeyboardInterrupt):
        judged(tmp_path, write_scored(tmp_path / "s.parquet"), report=True)
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["tasks"]["click"]


@pytest.mark.parametrize("timed", [True, False])
def test_rows_without_a_request_are_no_request(tmp_path, timed):
    """Grouped by user and moment where these are known, as preprocess does; else in no figure per request, and counted."""
    columns = scored_columns(requests=100)
    known = np.array([int(name[1:]) < 50 for name in columns["request_id"]])
    names = pa.array(np.where(known, columns["request_id"], "x"), mask=~known)
    without = () if timed else ("shown_at",)
    found = judged(tmp_path, write_scored(tmp_path / "s.parquet", requests=100, request_id=names, without=without))
    whole = judged(tmp_path, write_scored(tmp_path / "s.parquet", requests=100))["tasks"]["click"]
    half = {name: pc.filter(pa.array(values), pa.array(known)) for name, values in columns.items()}
    pq.write_table(pa.table(half), tmp_path / "half.parquet")
    half = judged(tmp_path, tmp_path / "half.parquet")["tasks"]["click"]
    counts, expected = found["tasks"]["click"]["counts"], (whole if timed else half)
    assert counts["requests"] == expected["counts"]["requests"]
    assert counts["requests_of_one_class"] == expected["counts"]["requests_of_one_class"]
    assert counts.get("rows_without_request", 0) == (0 if timed else (~known).sum())
    for name in ("auc_request", "mrr", "ndcg@5", "precision@5"):
        value = found["tasks"]["click"]["runs"]["model"]["metrics"][name]["value"]
        assert value == pytest.approx(expected["runs"]["model"]["metrics"][name]["value"]), name
    assert found["lists"]["lists"] == (100 if timed else 50)


def test_names_with_dollar_signs_are_drawn(tmp_path):
    columns = scored_columns()
    scenario = np.where(columns["scenario"] == "social", r"$\frac", "5$ to 10$ [red]")
    judged(tmp_path, write_scored(tmp_path / "s.parquet", scenario=scenario), report=True)
    assert r"$\frac" in (tmp_path / "out" / "report.html").read_text()
