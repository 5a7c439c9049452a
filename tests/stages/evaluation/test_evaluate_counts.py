"""Evaluating rows of counts: the figures of the expanded rows, intervals that hold, arms of a test compared."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adrec.config.evaluation.evaluate import EvaluateConfig
from adrec.errors import DataError
from adrec.metrics.intervals.bootstrap import bootstrap, of_sums, point
from adrec.metrics.intervals.significance import interval
from adrec.stages.evaluation.evaluate import run
from adrec.terminal import Terminal

QUIET = Terminal(quiet=True)


def arms(seed=0, *, tests=30, per_test=4, shown=(300, 3000), spread=0.5):
    """Arms of tests with known rates: a prediction that knows part of them, and how often each was shown and clicked."""
    rng = np.random.default_rng(seed)
    test = np.repeat(np.arange(tests), per_test)
    level, own = rng.normal(-3.2, 0.4, tests)[test], rng.normal(0, spread, len(test))
    rate = 1 / (1 + np.exp(-(level + own)))
    impressions = rng.integers(*shown, len(test))
    guess = 1 / (1 + np.exp(-(level + 0.7 * own + rng.normal(0, 0.2, len(test)))))
    return {"test": test, "rate": rate, "impressions": impressions, "clicks": rng.binomial(impressions, rate), "guess": guess}


def scored(world):
    """Rows as `score` writes them: an outcome of an arm each, with its weight."""
    count = len(world["test"])
    row = np.repeat(np.arange(count), 2)
    click = np.tile([1, 0], count).astype(np.int8)
    weight = np.where(click == 1, world["clicks"][row], (world["impressions"] - world["clicks"])[row]).astype(float)
    table = pa.table(
        {
            "user_id": [f"row{r}" for r in row],
            "ad_id": [f"ad{r}" for r in row],
            "request_id": [f"test{t}" for t in world["test"][row]],
            "experiment": [f"x{t}" for t in world["test"][row]],
            "click": click,
            "weight": weight,
            "score": world["guess"][row],
            "baseline_smoothed_ctr": (world["guess"][row] ** 1.2).astype(np.float32),
            "true_probability": world["rate"][row],
            "scenario": np.where(row % 2 == 0, "search", "social"),
        }
    )
    return table.filter(pa.array(weight > 0))


def expanded(table):
    """One row an impression, as a log without counts, the same users in the place of the tests."""
    times = table["weight"].to_numpy().astype(int)
    rows = table.take(pa.array(np.repeat(np.arange(len(table)), times))).drop_columns(["weight", "request_id", "user_id"])
    return rows.append_column("user_id", rows["experiment"])


def judged(tmp_path, table, name="s", **settings):
    pq.write_table(table, tmp_path / f"{name}.parquet")
    config = EvaluateConfig(
        scored=tmp_path / f"{name}.parquet", output=tmp_path / name,
        **({"bootstrap": {"replicates": 200}, "report": False} | settings),
    )  # fmt: skip
    result = run(config, QUIET)
    return json.loads((tmp_path / name / "metrics.json").read_text()), result


def test_every_figure_is_that_of_the_expanded_rows(tmp_path):
    table = scored(arms(shown=(50, 400)))
    few, _ = judged(tmp_path, table, "few")
    many, _ = judged(tmp_path, expanded(table), "many")
    one, other = few["tasks"]["click"], many["tasks"]["click"]
    assert one["counts"]["impressions"] == other["counts"]["rows"]
    assert one["counts"]["positives"] == other["counts"]["positives"]
    for run_name, values in one["runs"].items():
        assert {"auc", "pr_auc", "log_loss", "ece", "accuracy"} <= set(values["metrics"])
        for metric, value in values["metrics"].items():
            whole = other["runs"][run_name]["metrics"][metric]
            # Tests are drawn here, and there the users that stand for them: the same draws.
            for name in ("value", "low", "high"):
                assert value[name] == whole[name] or value[name] == pytest.approx(whole[name], rel=1e-9), metric
        for name in ("predicted", "observed", "low", "high", "rows"):
            np.testing.assert_allclose(values["reliability"][name], other["runs"][run_name]["reliability"][name], rtol=1e-9)
    by_value = {(part["column"], part["value"]): part for part in other["slices"]}
    for part in one["slices"]:
        for metric, value in part["metrics"].items():
            assert value["value"] == pytest.approx(
                by_value[part["column"], part["value"]]["metrics"][metric]["value"], rel=1e-9
            )
        assert part["positives"] == by_value[part["column"], part["value"]]["positives"]
    assert not {"auc_request", "auc_user", "gauc", "mrr"} & set(one["runs"]["model"]["metrics"])


@pytest.mark.parametrize(("tests", "ads", "drawn"), [(30, 4, "tests"), (4, 8, "ads"), (3, 3, "counts")])
def test_what_is_drawn_is_said(tmp_path, tests, ads, drawn):
    found, result = judged(tmp_path, scored(arms(tests=tests, per_test=ads)))
    assert found["tasks"]["click"]["counts"]["drawn"] == drawn
    metrics = found["tasks"]["click"]["runs"]["model"]["metrics"]
    assert metrics["auc"]["low"] < metrics["auc"]["value"] < metrics["auc"]["high"]
    assert any("figures per request" in str(getattr(part, "caption", "")) for part in result.render())


def _covered(truth, make, replicates=60, **draw):
    """How often the interval of a simulated value holds the truth."""
    hits = 0
    for seed in range(replicates):
        measure, units, counts = make(seed)
        value = point([measure], units)["value"]
        draws = bootstrap({"": [measure]}, users=units, replicates=200, generator=np.random.default_rng(seed), counts=counts)
        found = interval(value, draws[""]["value"])
        hits += found.low <= truth <= found.high
    return hits / replicates


def _ratio(observed, predicted, units, count):
    """Predicted over observed, a function of sums."""
    return of_sums({"p": predicted, "o": observed}, units, count, lambda sums: {"value": sums["p"] / sums["o"]})


def test_drawing_ads_covers_what_further_ads_would_give():
    """Ads of a population: predicted over observed of all of them is 1 / 1.0."""

    def make(seed):
        world = arms(seed, tests=60, per_test=1, shown=(800, 1200))
        predicted = world["impressions"] * float(
            np.mean(1 / (1 + np.exp(-np.random.default_rng(0).normal(-3.2, 0.64, 200_000))))
        )
        return _ratio(world["clicks"], predicted, np.arange(60), 60), 60, None

    assert 0.85 <= _covered(1.0, make) <= 1.0


def test_drawing_counts_covers_what_these_ads_would_give():
    fixed = arms(1, tests=5, per_test=1, shown=(800, 1200))
    expected = fixed["impressions"] * fixed["rate"]

    def make(seed):
        clicks = np.random.default_rng(1000 + seed).binomial(fixed["impressions"], fixed["rate"])
        weights = np.concatenate([clicks, fixed["impressions"] - clicks]).astype(float)
        observed, predicted = np.repeat([1.0, 0.0], 5) * weights, np.tile(expected / fixed["impressions"], 2) * weights
        return _ratio(observed, predicted, np.arange(10), 10), 10, weights

    assert 0.87 <= _covered(1.0, make) <= 1.0


def test_drawing_rows_as_if_they_were_impressions_would_not_cover():
    """What the choice is for: ads differ, and an interval from single impressions does not know it."""

    def make(seed):
        world = arms(seed, tests=60, per_test=1, shown=(20_000, 30_000))
        predicted = world["impressions"] * float(
            np.mean(1 / (1 + np.exp(-np.random.default_rng(0).normal(-3.2, 0.64, 200_000))))
        )
        clicks, misses = world["clicks"].astype(float), (world["impressions"] - world["clicks"]).astype(float)
        share = np.tile(predicted / world["impressions"], 2) * np.concatenate([clicks, misses])
        observed = np.concatenate([clicks, np.zeros(60)])
        return _ratio(observed, share, np.arange(120), 120), 120, np.concatenate([clicks, misses])

    assert _covered(1.0, make) < 0.6


def test_arms_of_a_test_are_compared(tmp_path):
    world = arms(3, tests=40, per_test=3, shown=(4000, 9000))
    found, result = judged(tmp_path, scored(world))
    told = found["tasks"]["click"]["arms"]
    assert (told["by"], told["tests"], told["arms"], told["pairs"]) == ("request_id", 40, 120, 120)
    assert 20 < told["sure"] < 120 and len(told["pairs_told"]) == 120
    rate = world["clicks"] / world["impressions"]
    first = told["pairs_told"][0]
    one, other = int(first["arm"][2:]), int(first["other"][2:])
    assert first["difference"] == pytest.approx(rate[one] - rate[other]) and first["low"] > 0 and first["adjusted_p"] < 1e-6
    runs = told["runs"]
    assert runs["oracle"]["ordered_rightly"]["value"] > 0.97  # nearly: a sure difference may go the other way by chance
    ordered = runs["model"]["ordered_rightly"]
    assert 0.7 < ordered["value"] < 1.0 and ordered["low"] < ordered["value"] < ordered["high"]
    lift = runs["model"]["lift_above_mean"]
    assert 1.0 < lift["low"] < lift["value"] <= runs["oracle"]["lift_above_mean"]["high"]
    assert "Arms of 40 tests" in "".join(str(getattr(part, "title", part)) for part in result.render())


def test_arms_by_hand(tmp_path):
    """Two tests of two arms: one sure difference, ordered the wrong way; one that chance explains."""
    world = {"test": np.array([0, 0, 1, 1]), "rate": np.full(4, 0.03), "impressions": np.array([5000, 5000, 5000, 5000]),
             "clicks": np.array([150, 300, 100, 101]), "guess": np.array([0.05, 0.02, 0.02, 0.03])}  # fmt: skip
    found, _ = judged(tmp_path, scored(world), arms="experiment")
    told = found["tasks"]["click"]["arms"]
    assert (told["by"], told["pairs"], told["sure"], told["sure_tests"], told["drawn"]) == ("experiment", 2, 1, 1, "counts")
    ordered = told["runs"]["model"]["ordered_rightly"]
    assert ordered["value"] == 0.0 and ordered["high"] > 0.7  # one test says little
    # Put above: ads 0 and 3. Their clicks over what their tests' rates give.
    assert told["runs"]["model"]["lift_above_mean"]["value"] == pytest.approx((150 + 101) / (5000 * 0.045 + 5000 * 0.0201))
    first = told["pairs_told"][0]
    assert (first["test"], first["arm"], first["other"], first["agrees"]) == ("x0", "ad1", "ad0", 0.0)


def test_arms_of_a_log_of_rows(tmp_path):
    """A column may name tests where rows are impressions too, and gives what the counts give."""
    table = scored(arms(4, tests=25, per_test=2, shown=(200, 400)))
    few, _ = judged(tmp_path, table, "few", arms="experiment")
    many, _ = judged(tmp_path, expanded(table), "many", arms="experiment")
    one, other = (part["tasks"]["click"]["arms"] for part in (few, many))
    assert one["pairs_told"] == other["pairs_told"] and one["runs"] == other["runs"]


def test_a_log_of_rows_has_no_arms_unless_a_column_is_named(tmp_path):
    found, _ = judged(tmp_path, expanded(scored(arms(shown=(30, 60)))))
    assert "arms" not in found["tasks"]["click"]


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan")])
def test_a_weight_that_is_none_is_refused(tmp_path, bad):
    table = scored(arms())
    weights = table["weight"].to_numpy().copy()
    weights[3] = bad
    table = table.set_column(table.column_names.index("weight"), "weight", pa.array(weights))
    with pytest.raises(DataError, match="column 'weight', row 3"):
        judged(tmp_path, table)


def test_the_report_draws_counts(tmp_path):
    _, result = judged(tmp_path, scored(arms(3, shown=(2000, 4000))), report=True)
    page = (result.output / "report.html").read_text()
    assert "Arms of 30 tests" in page and "intervals by drawing tests whole" in page and page.count("<svg") >= 6
