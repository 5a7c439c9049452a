"""A table beside the three comes from its spec alone: input, checks, privacy, prepared folder, bundle, inspect."""

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError
from raw_worlds import config, prepare, world, write

from adrec import schema
from adrec.bundle import open_bundle
from adrec.config.data.inspect import InspectConfig
from adrec.config.training.finetune import FinetuneConfig
from adrec.errors import BundleError, DataError
from adrec.inference.packing import unpack
from adrec.schema import Column, TableSpec, TextSpec
from adrec.stages.data.inspect import run as inspect
from adrec.stages.training.finetune import run as finetune
from adrec.terminal import Terminal

SHOPS = TableSpec(
    "shops",
    (
        Column("shop_id", pa.string(), True, "identifier, unique", "id"),
        Column("name", pa.string(), True, "what people call it"),
        Column("owner_id", pa.string(), False, "who keeps it", "person"),
        Column("founded_at", schema.TIMESTAMP, False, "when it began", "moment"),
        Column("followers", pa.int32(), False, "people who follow it", "number"),
    ),
    key="shop_id",
    meaning="One row a company, place or person that texts speak of.",
)
ROWS = pa.table(
    {
        "shop_id": ["007", "2024-01-02T10:00:00", "320_50"],
        "label": ["Café, Ltd.", "write to b@x.org", "跑鞋"],
        "owner_id": ["o1", None, "o1"],
        "founded_at": pa.array([0, None, 86_400_000_000], schema.TIMESTAMP),
        "followers": [12, None, 0],
    }
)


@pytest.fixture
def shops(tmp_path, monkeypatch):
    """Config of a source that gives shops too, as CSV."""
    monkeypatch.setattr(schema, "TABLES", (*schema.TABLES, SHOPS))
    world(tmp_path)
    write(ROWS, tmp_path / "shops.csv")
    source = config(tmp_path).source.model_dump(mode="json")
    return {**source, "tables": {"shops": {"files": "shops.csv", "columns": {"name": "label"}}}}


def test_from_csv_to_the_prepared_folder_and_inspect(tmp_path, shops):
    prepared, result = prepare(tmp_path, source=shops)
    table = prepared.table(SHOPS)
    assert table.schema.names == list(SHOPS.names)
    assert table["shop_id"].to_pylist() == ROWS["shop_id"].to_pylist()
    assert table["name"].to_pylist() == ROWS["label"].to_pylist()
    assert [table.schema.field(column.name).type for column in SHOPS.columns] == [column.type for column in SHOPS.columns]
    assert table["founded_at"].to_pylist() == ROWS["founded_at"].to_pylist()
    assert result.manifest["shops"] == 3
    assert result.manifest["source_rows"]["shops"] == {"rows": 3, "rejected": 0}
    assert set(result.manifest["schema"]["shops"]) == set(SHOPS.names)
    assert {item["table"] for item in result.manifest["inputs"]} == {"ads", "users", "impressions", "shops"}
    views = {view.name: view for view in inspect(InspectConfig(path=prepared.path), Terminal(quiet=True)).tables}
    assert views["shops"].rows == 3
    assert [column.name for column in views["shops"].columns] == list(SHOPS.names)


def test_a_table_without_a_key_keeps_every_row(tmp_path, shops, monkeypatch):
    visits = TableSpec("visits", (Column("ad_id", pa.string(), True, "", "id"), Column("shop_id", pa.string(), True, "", "id")))
    monkeypatch.setattr(schema, "TABLES", (*schema.TABLES, visits))
    table = pa.table({"ad_id": ["a1", "a1", "a0", "a1"], "shop_id": ["007", "320_50", "007", "007"]})
    write(table, tmp_path / "visits.parquet")
    shops["tables"]["visits"] = {"files": "visits.parquet"}
    prepared, _ = prepare(tmp_path, source=shops)
    assert prepared.table(visits).equals(table)
    assert [spec.name for spec in prepared.tables()] == ["ads", "users", "shops", "visits"]


def test_a_day_is_appended_and_the_table_read_anew(tmp_path, shops):
    log = pq.read_table(tmp_path / "impressions.parquet").sort_by("shown_at")
    day = log["shown_at"][-1].as_py().replace(hour=0)
    late = pc.greater_equal(log["shown_at"], pa.scalar(day, log["shown_at"].type))
    for file, table in (("1", log.filter(pc.invert(late))), ("2", log.filter(late))):
        (tmp_path / "impressions.parquet").unlink(missing_ok=True)
        write(table, tmp_path / "log" / f"{file}.parquet")
        shops["impressions"] = {"files": "log"}
        prepared, result = prepare(tmp_path, source=shops, split={"method": "user", "test_fraction": 0.5})
        shops_then = prepared.table(SHOPS)
        write(pa.concat_tables([ROWS, ROWS.slice(0, 1).set_column(0, "shop_id", pa.array(["new"]))]), tmp_path / "shops.csv")
    assert result.done == "appended", result.why
    assert shops_then["shop_id"].to_pylist() == [*ROWS["shop_id"].to_pylist(), "new"]
    assert prepared.manifest["source_rows"]["shops"] == {"rows": 4, "rejected": 0}


def test_privacy_goes_by_role(tmp_path, shops, monkeypatch):
    monkeypatch.setenv("ADREC_PRIVACY_KEY", "k" * 16)
    prepared, _ = prepare(tmp_path, source=shops, privacy={"pseudonymise": True, "mask_contacts": True})
    table = prepared.table(SHOPS)
    first, missing, third = table["owner_id"].to_pylist()
    assert missing is None
    assert first == third
    assert len(first) == 64
    assert table["shop_id"].to_pylist() == ROWS["shop_id"].to_pylist()
    assert table["name"].to_pylist()[1] == "write to [EMAIL]"


def test_its_texts_join_the_corpus_where_it_says_so(tmp_path, shops, monkeypatch):
    made = (Column("text", pa.string(), True), Column("segmented", pa.string(), True), Column("tongue", pa.string(), True))
    spec = TableSpec(
        "shops", SHOPS.columns, "shop_id", text=TextSpec("ad_template", "shop", "tongue"),
        prepared=TableSpec("shops", (*SHOPS.columns, *made), "shop_id"),
    )  # fmt: skip
    monkeypatch.setattr(schema, "TABLES", (*schema.TABLES[:3], spec))
    prepared, _ = prepare(tmp_path, source=shops, text={"ad_template": "{title}{name}"})
    assert prepared.table(spec)["text"].to_pylist() == ROWS["label"].to_pylist()
    assert prepared.table(spec)["tongue"].to_pylist() == ["en", "en", "zh"]
    corpus = prepared.corpus()
    assert set(corpus.filter(pc.equal(corpus["kind"], "shop"))["text"].to_pylist()) == set(ROWS["label"].to_pylist())


def test_a_bundle_holds_the_tables_that_models_read(tmp_path, shops, monkeypatch):
    """One line in TABLES: packed, read again as it was, shown by inspect; a table that no model reads stays at home."""
    visits = TableSpec("visits", (Column("ad_id", pa.string(), True), Column("shop_id", pa.string(), True)), packed=True)
    monkeypatch.setattr(schema, "TABLES", (*schema.TABLES, visits))
    rows = pa.table({"ad_id": ["a1", "a1", "a0"], "shop_id": ["007", "320_50", "007"]})
    write(rows, tmp_path / "visits.parquet")
    shops["tables"]["visits"] = {"files": "visits.parquet"}
    prepared, _ = prepare(tmp_path, source=shops)
    config = FinetuneConfig(
        prepared=prepared.path, output=tmp_path / "bundle", baselines={"names": []},
        model={"width": 8, "hidden": [8]}, training={"epochs": 1}, device="cpu", recall_requests=0,
    )  # fmt: skip
    finetune(config, Terminal(quiet=True))
    (prepared.path / "visits.parquet").unlink()
    packed = unpack(open_bundle(config.output))
    assert list(packed.tables) == ["visits"] and packed.tables["visits"].equals(rows)
    views = inspect(InspectConfig(path=config.output), Terminal(quiet=True)).tables
    assert [(view.name, view.rows) for view in views] == [("visits", 3)]
    other = TableSpec("visits", (Column("ad_id", pa.string(), True), Column("weight", pa.float64(), True)), packed=True)
    monkeypatch.setattr(schema, "TABLES", (*schema.TABLES[:-1], other))
    with pytest.raises(BundleError, match=r"visits.parquet.*'weight'.*Run 'adrec finetune' again"):
        unpack(open_bundle(config.output))


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ({"shop_id": ["a", "b", "a"]}, "shops.csv: column 'shop_id', row 1: 'a' occurs again in row 3"),
        ({"founded_at": ["1", "x", "2"]}, "shops.csv: column 'founded_at', row 2: 'x' is not a timestamp"),
        ({"followers": ["1", "2", "3.5"]}, "shops.csv: column 'followers', row 3: '3.5' is not a number of its range"),
    ],
)
def test_its_faults_are_told_like_those_of_the_others(tmp_path, shops, cells, words):
    table = ROWS
    for column, values in cells.items():
        table = table.set_column(table.column_names.index(column), column, pa.array(values))
    write(table, tmp_path / "shops.csv")
    with pytest.raises(DataError) as fault:
        prepare(tmp_path, source=shops)
    assert words in str(fault.value)


def test_a_table_without_a_spec_is_refused(tmp_path):
    world(tmp_path)
    source = config(tmp_path).source.model_dump(mode="json")
    with pytest.raises(ValidationError, match="'shops' is no further table of the data contract"):
        config(tmp_path, source={**source, "tables": {"shops": {"files": "shops.csv"}}})
