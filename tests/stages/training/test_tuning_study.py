"""The search without a network: proposals, pruning, going on after a kill, and what is written."""

import csv
from pathlib import Path

import pytest
from pydantic import ValidationError

from adrec.config.training.tune import Dimension, TuneConfig
from adrec.errors import AdrecError
from adrec.stages.training.tuning.report import write_trials
from adrec.stages.training.tuning.study import Outcome, Study

SPACE = {
    "rate": {"low": 1e-4, "high": 1e-1, "log": True},
    "width": {"low": 16, "high": 64, "step": 16, "integer": True},
    "parts": {"choices": [["soft"], ["soft", "target"]]},
}


def config(**settings) -> TuneConfig:
    return TuneConfig(base=Path("base.yaml"), output=Path("out"), **{"space": SPACE, "trials": 20, **settings})


def study(folder, *, first=None, maximise=True, **settings) -> Study:
    return Study(config(**settings), folder / "study.db", maximise=maximise, first=first)


def quality(values):
    """Best at rate 0.01, width 64, two parts."""
    import math

    return 1 - abs(math.log10(values["rate"]) + 2) / 4 + values["width"] / 640 + 0.2 * (len(values["parts"]) == 2)


def objective(values, report):
    for step in (1, 2, 3):
        report(step, quality(values) * step / 3)
    return quality(values)


def run(one, count):
    while one.finished < count:
        one.run_one(objective)
    return one


def test_values_come_from_the_space(tmp_path):
    rows = run(study(tmp_path, sampler="random"), 12).rows()
    assert len(rows) == 12
    for row in rows:
        assert 1e-4 <= row["values"]["rate"] <= 1e-1
        assert row["values"]["width"] in {16, 32, 48, 64}
        assert row["values"]["parts"] in [["soft"], ["soft", "target"]]
    assert len({row["values"]["rate"] for row in rows}) > 6


def test_the_base_is_tried_first_and_the_search_improves_on_it(tmp_path):
    first = {"rate": 1e-4, "width": 16, "parts": ["soft"]}
    one = run(study(tmp_path, first=first, pruner="none"), 14)
    rows = one.rows()
    assert rows[0]["values"] == first and rows[0]["value"] == pytest.approx(quality(first))
    best, values = one.best()
    assert best == max(row["value"] for row in rows) and best == pytest.approx(quality(values))
    assert best > quality(first) + 0.3


def test_poor_trials_are_pruned(tmp_path):
    rows = run(study(tmp_path, sampler="random"), 14).rows()
    states = [row["state"] for row in rows]
    assert states.count("pruned") >= 2
    pruned = [quality(row["values"]) for row in rows if row["state"] == "pruned"]
    kept = [row["value"] for row in rows if row["state"] == "complete"]
    assert max(kept) > max(pruned)
    assert all(row["evaluations"] < 3 for row in rows if row["state"] == "pruned")


def test_a_killed_search_goes_on_as_if_nothing_had_happened(tmp_path):
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    whole = run(study(tmp_path / "whole"), 7).rows()
    run(study(tmp_path / "cut"), 4)

    def killed(values, report):
        report(1, quality(values) / 3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study(tmp_path / "cut").run_one(killed)
    resumed = run(study(tmp_path / "cut"), 7).rows()
    assert [row["values"] for row in resumed] == [row["values"] for row in whole]
    assert [row["value"] for row in resumed] == [row["value"] for row in whole]


def test_a_lower_loss_is_better_when_asked(tmp_path):
    one = study(tmp_path, maximise=False, pruner="none")
    for _ in range(6):
        one.run_one(lambda values, report: -quality(values))
    assert one.best()[0] == min(row["value"] for row in one.rows())


def test_faults_of_a_trial_are_kept_and_only_all_of_them_stop_the_search(tmp_path):
    def broken(values, report):
        raise AdrecError("the loss is nan. Lower the rate.")

    one = study(tmp_path)
    one.run_one(broken)
    assert one.rows()[0]["state"] == "fail" and one.rows()[0]["fault"] == "the loss is nan. Lower the rate."
    with pytest.raises(AdrecError, match=r"no trial was completed\. the loss is nan"):
        one.best()
    run(one, 3)
    assert one.best()[0] > 0


def test_importance_names_what_matters(tmp_path):
    one = study(tmp_path, sampler="random", pruner="none", space={"rate": SPACE["rate"], "unused": {"low": 0.0, "high": 1.0}})
    while one.finished < 12:
        one.run_one(lambda values, report: values["rate"])
    shares = one.importance()
    assert shares["rate"] > 0.8 and sum(shares.values()) == pytest.approx(1)


def test_the_table_of_trials(tmp_path):
    one = run(study(tmp_path), 8)
    rows = one.rows()
    write_trials(rows, list(SPACE), tmp_path / "trials.csv")
    with (tmp_path / "trials.csv").open(encoding="utf-8") as handle:
        read = list(csv.DictReader(handle))
    assert len(read) == 8 and read[0]["parts"].startswith("[") and float(read[0]["rate"]) == rows[0]["values"]["rate"]


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"choices": []},
        {"choices": [1], "low": 0.0},
        {"low": 2.0, "high": 1.0},
        {"low": 0.0, "high": 1.0, "log": True},
        {"low": 0.5, "high": 2.0, "integer": True},
        {"low": 1.0},
    ],
)
def test_impossible_dimensions_are_refused(wrong):
    with pytest.raises(ValidationError):
        Dimension(**wrong)


def test_fixed_keys_cannot_be_searched():
    with pytest.raises(ValidationError, match="cannot be searched"):
        config(space={"seed": {"choices": [1, 2]}})


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_several_trials_at_once_differ_and_all_count(tmp_path, sampler):
    one = study(tmp_path, sampler=sampler, first={"rate": 1e-2, "width": 16, "parts": ["soft"]})
    for _ in range(3):
        asked = dict(one.ask() for _ in range(4))
        assert len({values["rate"] for values in asked.values()}) == 4
        for number in sorted(asked, reverse=True):  # they end in any order
            for step in (1, 2):
                one.is_hopeless(number, step, quality(asked[number]))
            one.tell(number, Outcome(quality(asked[number]) if number % 4 else None, "no memory." if number == 5 else None))
    rows = one.rows()
    assert [row["trial"] for row in rows] == list(range(12)) and one.finished == 12
    assert [row["trial"] for row in rows if row["state"] == "pruned"] == [0, 4, 8]
    assert [(row["trial"], row["fault"]) for row in rows if row["state"] == "fail"] == [(5, "no memory.")]


def test_trials_that_were_under_way_are_tried_first_when_the_search_goes_on(tmp_path):
    before = study(tmp_path, sampler="random")
    under_way = [before.ask()[1] for _ in range(3)]
    again = study(tmp_path, sampler="random")
    assert [again.ask()[1] for _ in range(3)] == under_way
