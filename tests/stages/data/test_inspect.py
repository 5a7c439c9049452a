"""`adrec inspect`: prepared folders, bundles and tables, in the terminal and as a page."""

import csv
import datetime as dt
import decimal
import io
import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from raw_worlds import prepare, world, write
from rich.console import Console
from typer.testing import CliRunner

from adrec.bundle import save_bundle
from adrec.cli.app import app
from adrec.config.data.inspect import InspectConfig
from adrec.errors import AdrecError
from adrec.stages.data.inspect import run
from adrec.terminal import Terminal


def inspect(path, **changes):
    return run(InspectConfig(path=path, **changes), Terminal(quiet=True))


def drawn(result):
    console = Console(file=io.StringIO(), width=200, markup=False)
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
    assert "Click rate by day" in page
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


ARROW = {
    "bool": pa.array([True, None]),
    "uint64": pa.array([2**64 - 1, None], pa.uint64()),
    "float16": pa.array([1.5, None], pa.float16()),
    "decimal": pa.array([decimal.Decimal(10**30), None], pa.decimal128(38, 0)),
    "decimal256": pa.array([decimal.Decimal("1.10"), None], pa.decimal256(50, 2)),
    "date32": pa.array([dt.date(9999, 12, 31), None]),
    "date64": pa.array([dt.date(2020, 1, 1), None], pa.date64()),
    "time32": pa.array([1000, None], pa.time32("ms")),
    "time64": pa.array([1000, None], pa.time64("ns")),
    "seconds": pa.array([1, None], pa.timestamp("s")),
    "nanoseconds": pa.array([1, None], pa.timestamp("ns")),
    "zone": pa.array([1, None], pa.timestamp("us", "Asia/Shanghai")),
    "far": pa.array([2**62, -(2**62)], pa.timestamp("us")),
    "duration": pa.array([10**15, None], pa.duration("us")),
    "binary": pa.array([b"\x1b\x00x", None]),
    "large_binary": pa.array([b"ab", None], pa.large_binary()),
    "fixed_binary": pa.array([b"\xff\xfe\xfd\xfc", None], pa.binary(4)),
    "binary_view": pa.array([b"ab", None], pa.binary_view()),
    "large_string": pa.array(["a", None], pa.large_string()),
    "string_view": pa.array(["a", None], pa.string_view()),
    "list": pa.array([[1, 2], None]),
    "large_list": pa.array([["a"], None], pa.large_list(pa.string())),
    "fixed_list": pa.array([[1.0, 2.0], None], pa.list_(pa.float32(), 2)),
    "nested": pa.array([[{"a": [1]}], None]),
    "struct": pa.array([{"a": 1, "b": {"c": "x"}}, None]),
    "map": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int32())),
    "dictionary": pa.array(["a", None]).dictionary_encode(),
    "dictionary_of_numbers": pa.array([1, None]).dictionary_encode(),
    "null": pa.nulls(2),
    "list_of_null": pa.array([[None], None]),
    "uuid": pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0" * 16, None], pa.binary(16))),
}


@pytest.mark.parametrize("kind", [*ARROW, "all"])
def test_every_arrow_type_is_opened(kind, tmp_path):
    table = pa.table(ARROW if kind == "all" else {kind: ARROW[kind]})
    pq.write_table(table, tmp_path / "t.parquet")
    for more in ([], ["--json"], ["--html", str(tmp_path / "page.html")]):
        found = CliRunner().invoke(app, ["inspect", str(tmp_path / "t.parquet"), *more])
        assert found.exit_code == 0, found.output
        assert "\x1b" not in found.output
    columns = json.loads(CliRunner().invoke(app, ["inspect", str(tmp_path / "t.parquet"), "--json"]).stdout)["tables"][0][
        "columns"
    ]
    assert [column["name"] for column in columns] == table.column_names


ODD = [
    "[red]",
    "[/]",
    "a\x1b[31mb",
    'a"b',
    "a'b",
    "x" * 250,
    "SELECT",
    "a\nb",
    "rows",
    "rowid",
    "day",
    "present_0",
    "shown_at",
    "click",
]


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
@pytest.mark.parametrize("name", ODD)
def test_columns_of_odd_names_are_columns(name, ending, tmp_path):
    found = CliRunner().invoke(app, ["inspect", str(written(name, tmp_path / f"t.{ending}"))])
    assert found.exit_code == 0, found.output
    assert "\x1b" not in found.output


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_a_column_called_like_our_row_number_is_told(ending, tmp_path):
    found = CliRunner().invoke(app, ["inspect", str(written("adrec_row", tmp_path / f"t.{ending}"))])
    assert found.exit_code == 1
    assert "column 'adrec_row' has a name that adrec counts rows by" in found.stderr
    assert len(found.stderr.splitlines()) == 1


def written(name, path):
    if path.suffix == ".parquet":
        pq.write_table(pa.table({name: ["1", "2"], "k": [1, 2]}), path)
    elif path.suffix == ".csv":
        with open(path, "w", newline="") as handle:
            csv.writer(handle).writerows([[name, "k"], ["1", "2"]])
    else:
        path.write_text(json.dumps({name: "1", "k": 2}) + "\n")
    return path
