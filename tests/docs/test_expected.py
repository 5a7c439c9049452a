"""Figures in README and docs that name a key are those of benchmarks/expected.json, and their judge can say no."""

import importlib.util
import json
import re
import shlex

import pytest
from pages import ROOT

EXPECTED = json.loads((ROOT / "benchmarks/expected.json").read_text(encoding="utf-8"))
PAGES = [ROOT / "README.md", ROOT / "README.zh-CN.md", *sorted((ROOT / "docs").glob("**/*.md"))]
MARKED = re.compile(r"([−+-]?\d*\.?\d+)(\s*%)?\W*<!--=([\w.]+)-->")


def _quality():
    spec = importlib.util.spec_from_file_location("quality_benchmark", ROOT / "benchmarks/quality.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def marked() -> list[tuple[str, str, str, str]]:
    """Page, figure as printed, percent sign or none, key."""
    return [
        (page.relative_to(ROOT).as_posix(), *found)
        for page in PAGES
        for found in MARKED.findall(page.read_text(encoding="utf-8"))
    ]


def test_every_mark_is_read():
    """None is malformed, so that it would be passed over."""
    marks = sum(page.read_text(encoding="utf-8").count("<!--=") for page in PAGES)
    assert len(marked()) == marks > 10


@pytest.mark.parametrize(("page", "figure", "percent", "key"), marked())
def test_a_figure_in_docs_is_the_expected_one(page, figure, percent, key):
    value = EXPECTED["figures"][key]["value"] * (100 if percent else 1)
    digits = len(figure.partition(".")[2])
    assert float(figure.replace("−", "-")) == pytest.approx(value, abs=0.5 * 10**-digits + 1e-9), f"{page}: {key}"


def printed() -> dict[tuple[str, str], str]:
    """Run and metric → figure, in the table of `adrec evaluate` that README prints."""
    block = (ROOT / "README.md").read_text(encoding="utf-8").split("$ adrec evaluate", 1)[1].split("```", 1)[0]
    rows = re.findall(r"^ (\w+) +(\d\.\d+) +(\d\.\d+) .* (\d\.\d+|–)$", block, re.MULTILINE)
    columns = ("auc", "auc_request", "predicted_over_observed")
    return {(run, column): figure for run, *figures in rows for column, figure in zip(columns, figures, strict=True)}


def test_the_printed_table_is_the_expected_one():
    table = printed()
    assert ("oracle", "auc") in table and ("model", "predicted_over_observed") in table
    for key, figure in EXPECTED["figures"].items():
        place = (figure.get("run"), figure.get("metric"))
        if key.startswith("sample.") and "slice" not in figure and place in table:
            assert float(table[place]) == figure["value"], key


def test_every_expected_figure_stands_in_docs():
    table = {place for place, figure in printed().items() if figure != "–"}
    in_table = {key for key, figure in EXPECTED["figures"].items() if (figure.get("run"), figure.get("metric")) in table}
    assert set(EXPECTED["figures"]) == {key for *_, key in marked()} | in_table


def test_every_set_names_its_commands_data_and_seeds():
    for name, settings in EXPECTED["sets"].items():
        assert settings["needs"] and settings["seeds"] and settings["result"].endswith("metrics.json")
        for command in settings["commands"]:
            words = shlex.split(command)
            assert (ROOT / words[words.index("--config") + 1]).is_file(), (name, command)
        assert any(key.startswith(f"{name}.") for key in EXPECTED["figures"])


def test_the_judge_tells_what_is_off_and_what_is_missing():
    def of(value: float) -> dict:
        return {"metrics": {"auc": {"value": value}}}

    figures = {
        "w.auc": {"run": "model", "metric": "auc", "value": 0.8, "tolerance": 0.01},
        "w.cold": {"run": "model", "metric": "auc", "slice": {"cold_ad": "yes"}, "value": 0.7, "tolerance": 0.01},
        "w.share": {"share": "w.auc", "of": "w.most", "value": 0.75, "tolerance": 0.04},
        "w.most": {"run": "oracle", "metric": "auc", "value": 0.9, "tolerance": 0.01},
        "other.auc": {"run": "model", "metric": "auc", "value": 0.1, "tolerance": 0.01},
    }
    slices = [{"column": "cold_ad", "value": "no", **of(0.1)}, {"column": "cold_ad", "value": "yes", **of(0.7)}]
    task = {"runs": {"model": of(0.8), "oracle": of(0.9)}, "slices": slices}
    judge = _quality().judge
    assert [holds for _, holds in judge({"tasks": {"click": task}}, "w", figures)] == [True] * 4
    worse = {"tasks": {"click": {"runs": {"model": of(0.78)}, "slices": []}}}
    lines = judge(worse, "w", figures)
    assert [holds for _, holds in lines] == [False] * 4
    assert lines[0][0] == "OFF w.auc: 0.7800, expected 0.8 ± 0.01" and "w.cold: missing" in lines[1][0]
