import json

import pytest
from scored_world import write_scored
from typer.testing import CliRunner

from adrec.cli.app import app
from adrec.config.evaluation.compare import CompareConfig
from adrec.config.evaluation.evaluate import EvaluateConfig
from adrec.errors import DataError
from adrec.stages.evaluation.compare import run
from adrec.stages.evaluation.evaluate import run as evaluate
from adrec.terminal import Terminal

QUIET = Terminal(quiet=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three evaluations: good, bad, and one of fewer rows in a folder below."""
    folder = tmp_path_factory.mktemp("runs")
    for place, options, seed in (("good", {}, 1), ("bad", {"noise": 3.0}, 2), ("deep/fewer", {"requests": 200}, 1)):
        scored = write_scored(folder / f"{place.replace('/', '_')}.parquet", **options)
        few = {"replicates": 30}
        evaluate(EvaluateConfig(scored=scored, output=folder / place, seed=seed, bootstrap=few, report=False), QUIET)
    return folder


def test_runs_are_sorted_best_first_with_their_intervals(runs):
    result = run(CompareConfig(runs=[runs / "bad", runs / "good"]), QUIET)
    assert [found.name for found in result.runs] == ["good", "bad"]
    stored = json.loads((runs / "good" / "metrics.json").read_text())["tasks"]["click"]["runs"]["model"]["metrics"]["auc"]
    assert result.runs[0].values["auc"] == stored["value"]
    assert result.runs[0].half_widths["auc"] == pytest.approx((stored["high"] - stored["low"]) / 2)
    by_loss = run(CompareConfig(runs=[runs / "bad", runs / "good"], sort="log_loss"), QUIET)
    assert [found.name for found in by_loss.runs] == ["good", "bad"]


def test_settings_that_differ_are_named(runs):
    result = run(CompareConfig(runs=[runs / "good", runs / "bad"]), QUIET)
    assert result.differing == {"seed": [1, 2]}


def test_a_folder_is_every_run_below_it_and_other_rows_are_warned_of(runs):
    result = run(CompareConfig(runs=[runs]), QUIET)
    assert {found.name for found in result.runs} == {"good", "bad", "fewer"}
    assert len(result.warnings) == 1
    assert "different rows" in result.warnings[0]


def test_bundles_stand_beside_evaluations(runs, tmp_path):
    (tmp_path / "bundle").mkdir()
    metrics = {"split": "valid", "models": {"adrec": {"auc": 0.99, "log_loss": 0.1}, "item_rate": {"auc": 0.6}}}
    (tmp_path / "bundle" / "metrics.json").write_text(json.dumps(metrics))
    result = run(CompareConfig(runs=[tmp_path / "bundle", runs / "good"]), QUIET)
    assert [found.name for found in result.runs] == ["bundle", "good"]
    assert "different splits (test, valid)" in result.warnings[0]


def test_a_private_bundle_says_where_its_figures_are(tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps({"split": "valid", "measured": "as shipped", "models": {}}))
    with pytest.raises(DataError, match=r"is private.*'adrec evaluate'"):
        run(CompareConfig(runs=[tmp_path]), QUIET)


def test_figures_of_conversions_do_not_stand_among_those_of_clicks(runs, tmp_path):
    for name, tasks in (("buys", "[{name: conversion}, {name: click}]"), ("clicks", "[{name: click}]")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text(json.dumps({"split": "valid", "models": {"adrec": {"auc": 0.99}}}))
        (tmp_path / name / "config.yaml").write_text(f"tasks: {tasks}\n")
    result = run(CompareConfig(runs=[tmp_path / "buys", tmp_path / "clicks", runs / "good"]), QUIET)
    assert (result.task, {found.name for found in result.runs}) == ("click", {"clicks", "good"})
    result = run(CompareConfig(runs=[tmp_path / "buys"]), QUIET)
    assert (result.task, [found.name for found in result.runs]) == ("conversion", ["buys"])


def test_the_command_line_writes_only_what_it_is_asked_to(runs, tmp_path):
    output = tmp_path / "table.json"
    shown = CliRunner().invoke(app, ["compare", str(runs / "good"), str(runs / "bad"), "-o", str(output), "--metric", "auc"])
    assert shown.exit_code == 0, shown.output
    assert "good" in shown.stdout
    assert json.loads(output.read_text())["metrics"] == ["auc"]


def test_faults(runs, tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        run(CompareConfig(runs=[tmp_path / "none"]), QUIET)
    with pytest.raises(DataError, match=r"no metrics.json below"):
        run(CompareConfig(runs=[tmp_path]), QUIET)
    with pytest.raises(DataError, match="no run has the task 'rating'"):
        run(CompareConfig(runs=[runs / "good"], task="rating"), QUIET)
    with pytest.raises(DataError, match="none of the metrics"):
        run(CompareConfig(runs=[runs / "good"], metrics=["beauty"]), QUIET)
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read as JSON"):
        run(CompareConfig(runs=[tmp_path]), QUIET)


def test_files_that_are_no_metrics_are_passed_over_and_told(runs, tmp_path, capsys):
    (tmp_path / "page.html").write_text("<html>")
    (tmp_path / "metrics.json").write_text('{"tasks": {"click": 3}}')
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    (encoder / "metrics.json").write_text('{"held_out": {}}')
    result = run(
        CompareConfig(runs=[tmp_path / "page.html", tmp_path, runs / "good", encoder, runs / "good"]), Terminal(quiet=True)
    )
    assert [found.name for found in result.runs] == ["good"]
    told = capsys.readouterr().err
    assert told.count("passed over") == 3 and "page.html: cannot be read as JSON" in told


def test_runs_of_other_rows_have_a_table_and_a_best_of_their_own(runs, monkeypatch):
    result = run(CompareConfig(runs=[runs]), QUIET)
    assert [[found.name for found in group] for group in result.groups] == [["good", "bad"], ["fewer"]]
    first, second, *_ = result.render()
    assert [str(cell) for cell in first.columns[1].cells][0].endswith("*")
    assert not str(next(iter(second.columns[1].cells))).endswith("*")  # alone it is no best
    assert result.differing == {"seed": [1, 2, 1]}


def test_each_file_is_read_once(runs, monkeypatch):
    from pathlib import Path

    read, whole = [], Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path, *a, **k: read.append(path) or whole(path, *a, **k))
    run(CompareConfig(runs=[runs]), QUIET)
    assert sorted(path.name for path in read) == ["config.yaml"] * 3 + ["metrics.json"] * 3
