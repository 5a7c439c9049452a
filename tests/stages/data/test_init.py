"""adrec init on files as people have them: it finds the tables, names the columns, and its configs validate and run."""

import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from adrec.asof.spec import counter_names
from adrec.config.base import load_config
from adrec.config.commands import config_model
from adrec.config.data.init import InitConfig
from adrec.config.training.features import resolve_counters
from adrec.errors import ConfigError, DataError, ResourceError
from adrec.explore import guess, look_at
from adrec.stages.data import init, preprocess
from adrec.terminal import Terminal

SHARED = Path(__file__).resolve().parents[3] / "../shared/data"
QUIET = Terminal(quiet=True)
TITLES = ["Trail shoes, half price", "Espresso beans with free delivery", "Folding phone, new season", "越野跑鞋，限时五折"]


def run(tmp_path, *data, **more):
    return init.run(InitConfig(data=list(data), output=tmp_path / "configs" / "mine", runs=tmp_path / "runs", **more), QUIET)


def meanings(result):
    return {(finding.table, finding.column): finding.meaning for finding in result.findings}


def wide_table(rows=400, time=None) -> dict:
    generator = np.random.default_rng(0)
    ad = generator.integers(0, 40, rows)
    moments = 1_760_000_000 + np.sort(generator.integers(0, 10 * 86_400, rows))
    return {
        "uid": [f"user-{n}" for n in generator.integers(0, 50, rows)],
        "advertisement_id": [f"ad-{n}" for n in ad],
        "headline": [f"{TITLES[n % 4]} {n}" for n in ad],
        "genre": [["sport", "food", "tech"][n % 3] for n in ad],
        "event_time": moments if time is None else [time(int(moment)) for moment in moments],
        "clk": (generator.random(rows) < 0.3).astype(int),
        "price": np.round(generator.random(rows) * 100, 2),
        "device": generator.choice(["phone", "desktop"], rows),
        "purchase_value": generator.random(rows),
        "session_key": [f"{n:08x}" for n in generator.integers(0, 2**31, rows)],
    }


def write_csv(path, columns):
    pyarrow.csv.write_csv(pa.table(columns), path)
    return path


def test_one_wide_csv_with_unix_seconds(tmp_path):
    result = run(tmp_path, write_csv(tmp_path / "log.csv", wide_table()))
    found = meanings(result)
    assert found["impressions", "uid"] == "user_id"
    assert found["impressions", "advertisement_id"] == "ad_id"
    assert found["impressions", "headline"] == "title"
    assert found["impressions", "genre"] == "category"
    assert found["impressions", "event_time"] == "shown_at"
    assert found["impressions", "clk"] == "click"
    assert found["impressions", "price"] == "number"
    assert found["impressions", "device"] == "category"
    assert found["impressions", "purchase_value"] == "not used"  # known only after the click
    assert found["impressions", "session_key"] == "not used"  # an id
    assert result.configs == ["preprocess", "finetune", "score", "evaluate", "rank", "serve", "daily", "tune"]
    assert any("40 different texts" in note for note in result.notes)  # too few to pretrain on, and that is said


def test_the_written_configs_run_as_they_stand(tmp_path):
    run(tmp_path, write_csv(tmp_path / "log.csv", wide_table()))
    folder = tmp_path / "configs" / "mine"
    config = load_config(folder / "preprocess.yaml", config_model("preprocess"))
    done = preprocess.run(config, QUIET).as_dict()
    assert json.dumps(done)
    assert (tmp_path / "runs" / "prepared" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("form", "key"),
    [
        ("%Y-%m-%d %H:%M:%S", None),
        ("%Y-%m-%dT%H:%M:%S+08:00", None),
        ("%m/%d/%Y %I:%M:%S %p", "time_format"),
        ("%d.%m.%Y %H:%M", "time_format"),
        ("%Y%m%d%H%M%S", "time_format"),
        ("%Y年%m月%d日 %H:%M", "time_format"),
    ],
)
def test_times_in_many_spellings(tmp_path, form, key):
    columns = wide_table(time=lambda second: datetime.fromtimestamp(second, UTC).strftime(form))
    run(tmp_path, write_csv(tmp_path / "log.csv", columns))
    config = load_config(tmp_path / "configs/mine/preprocess.yaml", config_model("preprocess"))
    assert config.source.impressions.columns["shown_at"] == "event_time"
    assert config.source.impressions.time_format == (form if key else None)
    preprocess.run(config, QUIET)


@pytest.mark.parametrize(("factor", "unit"), [(1, "seconds"), (1_000, "milliseconds"), (1_000_000, "microseconds")])
def test_units_of_numeric_times(tmp_path, factor, unit):
    columns = wide_table()
    columns["event_time"] = columns["event_time"] * factor
    run(tmp_path, write_csv(tmp_path / "log.csv", columns))
    config = load_config(tmp_path / "configs/mine/preprocess.yaml", config_model("preprocess"))
    assert config.source.impressions.time_unit == unit


def test_three_tables_with_chinese_headers(tmp_path):
    wide = wide_table()
    names = {"uid": "用户ID", "advertisement_id": "广告ID", "event_time": "曝光时间", "clk": "是否点击"}
    write_csv(tmp_path / "logs.csv", {new: wide[old] for old, new in names.items()})
    ads = {"广告ID": [f"ad-{n}" for n in range(40)], "标题": [f"{TITLES[3]} {n}" for n in range(40)], "出价": np.ones(40)}
    write_csv(tmp_path / "ads.csv", ads)
    write_csv(tmp_path / "people.csv", {"用户ID": [f"user-{n}" for n in range(50)], "兴趣": ["跑步|咖啡", "手机"] * 25})
    result = run(tmp_path, tmp_path)
    found = meanings(result)
    assert found["impressions", "曝光时间"] == "shown_at"
    assert found["ads", "标题"] == "title" and found["ads", "出价"] == "bid"
    assert found["users", "兴趣"] == "interests"
    config = load_config(tmp_path / "configs/mine/preprocess.yaml", config_model("preprocess"))
    assert config.source.users.list_separator == "|"
    preprocess.run(config, QUIET)
    assert "revenue" in (tmp_path / "configs/mine/rank.yaml").read_text()


def test_columns_without_telling_names_are_told_by_their_values(tmp_path):
    wide = wide_table()
    odd = {"user_id": wide["uid"], "item_id": wide["advertisement_id"], "a": wide["event_time"], "b": wide["clk"],
           "c": wide["headline"]}  # fmt: skip
    found = meanings(run(tmp_path, write_csv(tmp_path / "log.csv", odd)))
    assert found["impressions", "a"] == "shown_at"
    assert found["impressions", "b"] == "click"
    assert found["impressions", "c"] == "title"


def test_a_name_that_its_values_contradict_is_not_believed(tmp_path):
    columns = wide_table()
    columns["label"] = np.arange(len(columns["uid"]))  # a label of 0, 1, 2, ... is no click
    columns["timestamp"] = np.arange(len(columns["uid"]))
    found = meanings(run(tmp_path, write_csv(tmp_path / "log.csv", columns)))
    assert found["impressions", "clk"] == "click"
    assert found["impressions", "event_time"] == "shown_at"


def test_the_classic_csv_without_text_and_time(tmp_path):
    generator = np.random.default_rng(1)
    columns = {
        "user_id": generator.integers(0, 30, 300), "advertisement_id": generator.integers(0, 20, 300),
        "label": generator.integers(0, 2, 300), "feature1": generator.random(300), "feature2": generator.random(300),
    }  # fmt: skip
    result = run(tmp_path, write_csv(tmp_path / "clicks.csv", columns))
    assert "pretrain" not in result.configs
    assert {gap.canonical for gap in result.gaps} == {"shown_at", "title"}
    preprocess.run(load_config(tmp_path / "configs/mine/preprocess.yaml", config_model("preprocess")), QUIET)


def test_numbered_parts_are_one_table_and_named_parts_a_split(tmp_path):
    table = pa.table(wide_table())
    (tmp_path / "log").mkdir()
    for number in range(5):
        pq.write_table(table.slice(number * 80, 80), tmp_path / "log" / f"part-{number}.parquet")
    look = look_at([tmp_path / "log"])
    assert [len(found.files) for found in look.tables] == [5]
    for name, start in (("train", 0), ("valid", 200), ("test", 300)):
        (tmp_path / "parts").mkdir(exist_ok=True)
        pq.write_table(table.slice(start, 100), tmp_path / "parts" / f"{name}.parquet")
    run(tmp_path, tmp_path / "parts")
    config = load_config(tmp_path / "configs/mine/preprocess.yaml", config_model("preprocess"))
    assert config.split.method == "column" and config.split.test == ["test.parquet"]
    preprocess.run(config, QUIET)


def test_a_table_that_is_neither_is_named(tmp_path):
    write_csv(tmp_path / "log.csv", wide_table())
    write_csv(tmp_path / "weather.csv", {"day": ["mon", "tue"], "rain": [1.5, 2.5]})
    assert any("weather.csv" in note for note in run(tmp_path, tmp_path / "log.csv", tmp_path / "weather.csv").notes)


def said(result) -> str:
    console = Console(width=80, file=io.StringIO())
    for part in result.render():
        console.print(part)
    return console.file.getvalue()


def test_what_is_missing_is_a_gap_with_the_command_that_fills_it(tmp_path):
    columns = wide_table()
    columns["cookie_hash"] = columns.pop("uid")
    result = run(tmp_path, write_csv(tmp_path / "log.csv", {"adgrp": columns.pop("advertisement_id"), **columns}))
    assert {gap.canonical for gap in result.gaps} == set()
    odd = {"who": columns.pop("cookie_hash"), "creative_code": [f"c{n % 40}" for n in range(400)], "clk": columns["clk"]}
    odd |= {"session_token": odd.pop("who")}
    result = run(tmp_path / "odd", write_csv(tmp_path / "odd.csv", odd))
    gaps = {gap.canonical: gap for gap in result.gaps}
    assert "session_token" in gaps["user_id"].candidates and set(gaps) >= {"user_id", "shown_at"}
    text = said(result)
    assert "--set columns.user_id=session_token" in " ".join(text.split()) and "rename" not in text.lower()
    config = (tmp_path / "odd/configs/mine/preprocess.yaml").read_text()
    assert "# CHOOSE user_id: session_token?" in config
    again = run(tmp_path / "again", tmp_path / "odd.csv", columns={"user_id": "session_token"})
    assert meanings(again)["impressions", "session_token"] == "user_id"
    assert "user_id" not in {gap.canonical for gap in again.gaps}


def test_no_column_of_that_name(tmp_path):
    log = write_csv(tmp_path / "log.csv", wide_table())
    with pytest.raises(DataError, match="columns.ad_id: no table has 'banner'. There are log.csv: uid"):
        run(tmp_path, log, columns={"ad_id": "banner"})
    with pytest.raises(ConfigError, match="Did you mean .ad_id.?"):
        load_config(None, InitConfig, [f"output={tmp_path}", f"data=[{log}]", "columns.ad_ids=banner"])


def test_missing_and_empty_files_and_a_full_folder(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        run(tmp_path, tmp_path / "none.csv")
    (tmp_path / "empty.csv").touch()
    with pytest.raises(DataError, match="the file is empty"):
        run(tmp_path, tmp_path / "empty.csv")
    (tmp_path / "head.csv").write_text("user_id,ad_id,click\n")
    with pytest.raises(DataError, match="holds no rows"):
        run(tmp_path, tmp_path / "head.csv")
    log = write_csv(tmp_path / "log.csv", wide_table())
    run(tmp_path, log)
    with pytest.raises(ResourceError, match="holds files already"):
        run(tmp_path, log)


def test_no_data_named(tmp_path):
    with pytest.raises(ConfigError, match="data"):
        load_config(None, InitConfig, [f"output={tmp_path}", "data=[]"])


def test_user_segments_are_counted_by_category(tmp_path):
    run(tmp_path, Path(__file__).resolve().parents[3] / "data" / "sample")
    config = load_config(tmp_path / "configs/mine/preprocess.yaml", config_model("preprocess"))
    names = counter_names(resolve_counters(config.counters, {"category"}))
    assert {"counter_age_band_x_category_rate", "counter_region_x_category_rate", "counter_ad_rate"} <= set(names)


def test_the_sample_is_guessed_whole():
    tables = look_at([Path(__file__).resolve().parents[3] / "data" / "sample"]).tables
    found = guess(tables)
    assert set(found.tables) == {"impressions", "ads", "users"}
    assert {"user_id", "ad_id", "shown_at", "click", "propensity", "query", "scenario"} <= set(found.names["impressions"])
    used = {finding.column: finding.meaning for finding in found.findings if finding.table == "impressions"}
    assert used["true_probability"] == "not used"
    assert found.names["impressions"]["converted_at"] == "converted_at"


def test_the_moment_of_a_label_is_known_as_such(tmp_path):
    """A click, a conversion counts from its own moment on, so `history` names the columns that hold it."""
    shown = [datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=n) for n in range(400)]
    bought = np.arange(400) % 5 == 0
    table = pa.table(
        {
            "user_id": [f"u{n % 30}" for n in range(400)], "ad_id": [f"a{n % 11}" for n in range(400)], "time": shown,
            "click": (np.arange(400) % 3 == 0).astype(int), "click_time": [at + timedelta(seconds=9) for at in shown],
            "purchase": bought.astype(int),
            "purchase_time": [at + timedelta(hours=5) if yes else None for at, yes in zip(shown, bought, strict=True)],
        }
    )  # fmt: skip
    pq.write_table(table, tmp_path / "log.parquet")
    run(tmp_path, tmp_path / "log.parquet")
    config = load_config(tmp_path / "configs/mine/preprocess.yaml", config_model("preprocess"))
    assert (config.history.clicked_at, config.history.converted_at) == ("clicked_at", "converted_at")
    preprocess.run(config, Terminal(quiet=True))


def test_long_logs_are_not_read_whole(tmp_path):
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    rows = 60_000
    table = pa.table(
        {
            "user_id": np.arange(rows), "ad_id": np.zeros(rows, int), "click": np.tile([0, 1], rows // 2),
            "time": [moment + timedelta(seconds=n) for n in range(rows)], "title": ["one ad of many"] * rows,
        }
    )  # fmt: skip
    pq.write_table(table, tmp_path / "log.parquet")
    assert look_at([tmp_path / "log.parquet"]).tables[0].rows == 20_000


@pytest.mark.skipif(not (SHARED / "mind5k").is_dir(), reason="no shared data beside the checkout")
def test_mind_is_recognised_and_movielens_guessed(tmp_path):
    result = run(tmp_path, SHARED / "mind5k")
    assert result.format == "mind"
    config = load_config(tmp_path / "configs/mine/preprocess.yaml", config_model("preprocess"))
    assert config.source.format == "mind"
    found = guess(look_at([SHARED / "ml1m_ctr"]).tables)
    assert found.names["impressions"] == {"user_id": "user_id", "ad_id": "ad_id", "shown_at": "timestamp", "click": "label"}
    assert found.names["ads"]["description"] == "plot"
