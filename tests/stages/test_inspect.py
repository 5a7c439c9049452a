"""`adrec inspect`: prepared folders, bundles and tables, in the terminal and as a page."""

import io
import json
import re

import pyarrow as pa
import pytest
from raw_worlds import prepare, world, write
from rich.console import Console

from adrec.bundle import save_bundle
from adrec.config.inspect import InspectConfig
from adrec.errors import AdrecError
from adrec.stages.inspect import run
from adrec.terminal import Terminal


def inspect(path, **changes):
    return run(InspectConfig(path=path, **changes), Terminal(quiet=True))


def drawn(result):
    console = Console(file=io.StringIO(), width=200)
    for part in result.render():
        console.print(part)
    return console.file.getvalue()


def test_a_prepared_folder(tmp_path):
    made = world(tmp_path)
    prepared, _ = prepare(tmp_path)
    result = inspect(prepared.path, rows=2)
    assert result.kind == "prepared"
    by_name = {table.name: table for table in result.tables}
    impressions = by_name["impressions"]
    assert impressions.rows == made["impressions"].num_rows
    assert sum(day["rows"] for day in impressions.days) == impressions.rows
    assert sum(day["clicks"] for day in impressions.days) == prepared.manifest["clicks"]
    assert sum(count for _, count in impressions.history) == impressions.rows
    assert set(by_name["ads"].texts["text"]["languages"]) == {"en", "zh"}
    assert len(impressions.first) == 2
    columns = {column.name: column for column in impressions.columns}
    assert columns["user_id"].distinct == len(set(made["impressions"]["user_id"].to_pylist()))
    text = drawn(result)
    for word in ("click rate", "cold, of rows", "history_length", "languages", "2026-03-01"):
        assert word in text
    assert json.dumps(result.as_dict())


def test_figures_of_a_table(tmp_path):
    table = pa.table(
        {
            "n": [1.0, 3.0, None, float("nan")],
            "word": ["a", "bcd", "bcd", None],
            "tags": pa.array([["x"], [], ["x", "y"], None]),
            "title": ["[b]Sale[/b]", "Sale", "促销活动", None],
        }
    )
    write(table, tmp_path / "some.parquet")
    result = inspect(tmp_path / "some.parquet")
    columns = {column.name: column for column in result.tables[0].columns}
    assert (columns["n"].missing, columns["n"].low, columns["n"].middle, columns["n"].high) == (0.5, "1", "2", "3")
    assert (columns["word"].missing, columns["word"].distinct, columns["word"].high) == (0.25, 2, "3")
    assert columns["tags"].high == "2"
    assert result.tables[0].texts["title"]["languages"] == pytest.approx({"en": 2 / 3, "zh": 1 / 3})
    assert "[b]Sale[/b]" in drawn(result), "text of the data is no markup"


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_tables_of_other_formats(tmp_path, ending):
    made = world(tmp_path)
    write(made["ads"], tmp_path / "t" / f"ads.{ending}")
    result = inspect(tmp_path / "t")
    assert (result.kind, result.tables[0].rows) == ("table", 15)


def test_a_bundle(tmp_path):
    with save_bundle(tmp_path / "bundle", seed=7) as folder:
        (folder / "metrics.json").write_text(json.dumps({"split": "valid", "models": {"adrec": {"auc": 0.75}}}))
        (folder / "features.json").write_text("{}")
    result = inspect(tmp_path / "bundle")
    text = drawn(result)
    assert result.kind == "bundle"
    assert "0.7500" in text
    assert "features.json" in text
    (tmp_path / "bundle" / "features.json").write_text("[]")
    with pytest.raises(AdrecError, match="altered"):
        inspect(tmp_path / "bundle")


def test_the_page_stands_by_itself(tmp_path):
    world(tmp_path)
    prepared, _ = prepare(tmp_path)
    result = inspect(prepared.path, html=tmp_path / "out" / "page.html")
    page = result.page.read_text(encoding="utf-8")
    assert page.count("<svg") >= 5
    assert "<script" not in page
    assert not re.findall(r'(?:src|href)="https?:', page)
    assert "click rate by day" in page
    with save_bundle(tmp_path / "bundle") as folder:
        (folder / "x.json").write_text("{}")
    assert "x.json" in inspect(tmp_path / "bundle", html=tmp_path / "b.html").page.read_text()


@pytest.mark.parametrize("name", ["nothing", "empty", "half"])
def test_what_is_nothing_of_these(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "manifest.json").write_text("{}")
    with pytest.raises(AdrecError):
        inspect(tmp_path / name)
