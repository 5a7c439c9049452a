"""`adrec preprocess` end to end on small worlds: inputs, order, history, splits, a second run, append."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from raw_worlds import DAY, START, prepare, rows, tables, world, write

from adrec.errors import DataError
from adrec.schema import PREPARED_ADS, PREPARED_IMPRESSIONS, PREPARED_USERS


def test_the_prepared_folder_keeps_its_contract(tmp_path):
    made = world(tmp_path)
    prepared, _ = prepare(tmp_path)
    table = rows(prepared, with_split=False)
    for spec, found in ((PREPARED_IMPRESSIONS, table), (PREPARED_ADS, prepared.ads()), (PREPARED_USERS, prepared.users())):
        for column in spec.columns:
            if column.name in found.column_names:
                assert found[column.name].type == column.type, column.name
            else:
                assert not column.required, column.name
    assert table["row_id"].to_pylist() == list(range(made["impressions"].num_rows))
    assert prepared.ads()["ad_id"].take(table["ad_index"]).equals(table["ad_id"])
    assert prepared.users()["user_id"].take(table["user_index"]).equals(table["user_id"])
    assert prepared.manifest["rows"] == made["impressions"].num_rows
    assert prepared.manifest["clicks"] == pc.sum(made["impressions"]["click"]).as_py()
    assert not list(tmp_path.glob(".*")), "scratch files are left"


def test_rows_are_in_time_order_and_requests_are_contiguous(tmp_path, monkeypatch):
    monkeypatch.setattr("adrec.stages.data.preprocess.ROWS_PER_SHARD", 20)
    made = world(tmp_path)
    shuffled = made["impressions"].take(np.random.default_rng(1).permutation(made["impressions"].num_rows))
    write(shuffled, tmp_path / "impressions.parquet")
    prepared, _ = prepare(tmp_path)
    for split in ("train", "valid", "test"):
        files = prepared.split_files(split)
        assert len(files) > 1 or split != "train"
        requests = [pq.read_table(file)["request_id"].to_pylist() for file in files]
        runs = [[one for at, one in enumerate(part) if at == 0 or part[at - 1] != one] for part in requests]
        flat = [one for part in runs for one in part]
        assert len(flat) == len(set(flat)), "a request is cut or lies in two shards"
    table = rows(prepared)
    starts = {}
    for request, moment in zip(table["request_id"].to_pylist(), table["shown_at"].to_pylist(), strict=True):
        starts.setdefault(request, moment)
    assert list(starts.values()) == sorted(starts.values())


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "csv.gz", "tsv.zst", "jsonl.gz", "parquet"])
def test_every_format_gives_the_same_rows(tmp_path, ending):
    made = world(tmp_path / "plain")
    expected, _ = prepare(tmp_path / "plain")
    for name, table in made.items():
        write(table, tmp_path / "other" / f"{name}.{ending}")
    source = {name: {"files": str(tmp_path / "other" / f"{name}.{ending}")} for name in made}
    found, _ = prepare(tmp_path / "other", source={"format": "tables", **source})
    assert rows(found).equals(rows(expected))
    assert found.ads().equals(expected.ads())
    assert found.users().equals(expected.users())


@pytest.mark.parametrize("how", ["folder", "glob", "list", "partitioned"])
def test_files_may_be_many(tmp_path, how):
    made = world(tmp_path)
    expected, _ = prepare(tmp_path, output=str(tmp_path / "whole"))
    folder = tmp_path / "log"
    cuts = [0, 30, 31, 90, made["impressions"].num_rows]
    for number, (begin, end) in enumerate(zip(cuts, cuts[1:], strict=False)):
        place = folder / f"day={number}" if how == "partitioned" else folder
        write(made["impressions"].slice(begin, end - begin), place / f"part-{number}.parquet")
    files = {
        "folder": str(folder),
        "partitioned": str(folder),
        "glob": str(folder / "part-*.parquet"),
        "list": [str(folder / f"part-{number}.parquet") for number in range(4)],
    }[how]
    source = {
        "format": "tables",
        "ads": {"files": str(tmp_path / "ads.parquet")},
        "users": {"files": str(tmp_path / "users.parquet")},
        "impressions": {"files": files},
    }
    found, _ = prepare(tmp_path, source=source, keep=["day"] if how == "partitioned" else [])
    table = rows(found)
    assert ("day" in table.column_names) == (how == "partitioned")
    assert table.select(rows(expected).column_names).equals(rows(expected))


def test_users_may_be_absent_and_their_table_too(tmp_path):
    made = world(tmp_path)
    with_table, result = prepare(tmp_path)
    assert result.manifest["unlisted_users"] == 2
    ids = with_table.users()["user_id"].to_pylist()
    assert ids[:10] == made["users"]["user_id"].to_pylist()
    source = {
        "format": "tables",
        "ads": {"files": str(tmp_path / "ads.parquet")},
        "impressions": {"files": str(tmp_path / "impressions.parquet")},
    }
    without, _ = prepare(tmp_path, source=source, features={}, output=str(tmp_path / "without"))
    table = rows(without)
    firsts = list(dict.fromkeys(table["user_id"].to_pylist()))
    assert set(without.users()["user_id"].to_pylist()) == set(firsts)
    assert rows(with_table)["history_index"].equals(table["history_index"])


def test_one_wide_table_carries_ads_and_users(tmp_path):
    made = world(tmp_path)
    three, _ = prepare(tmp_path)
    wide = made["impressions"].join(made["ads"], "ad_id").join(made["users"], "user_id").sort_by("request_id")
    write(wide, tmp_path / "wide.csv")
    source = {"format": "tables", "impressions": {"files": str(tmp_path / "wide.csv")}}
    found, _ = prepare(tmp_path, source=source, output=str(tmp_path / "wide"))
    ads = {row["ad_id"]: row for row in three.ads().to_pylist()}
    for row in found.ads().to_pylist():
        assert row == ads[row["ad_id"]]
    ages = dict(zip(three.users()["user_id"].to_pylist(), three.users()["age"].to_pylist(), strict=True))
    for row in found.users().to_pylist():
        assert row["age"] == ages[row["user_id"]]
    assert found.manifest["clicks"] == three.manifest["clicks"]


def test_mapping_defaults_and_units(tmp_path):
    made = world(tmp_path)
    seconds = pc.divide(made["impressions"]["shown_at"].cast(pa.int64()), 1_000_000)
    own = pa.table(
        {
            "uid": made["impressions"]["user_id"],
            "item": made["impressions"]["ad_id"],
            "ts": seconds,
            "label": made["impressions"]["click"],
            "price_seen": made["impressions"]["price_seen"],
            "session": made["impressions"]["request_id"],
        }
    )
    write(own, tmp_path / "own.csv")
    mapping = {"user_id": "uid", "ad_id": "item", "shown_at": "ts", "click": "label", "request_id": "session"}
    source = {
        "format": "tables",
        "ads": {"files": str(tmp_path / "ads.parquet")},
        "users": {"files": str(tmp_path / "users.parquet")},
        "impressions": {"files": str(tmp_path / "own.csv"), "columns": mapping, "defaults": {"scenario": "social"}},
    }
    found, _ = prepare(tmp_path, source=source)
    table = rows(found)
    assert set(table["scenario"].to_pylist()) == {"social"}
    expected, _ = prepare(tmp_path, output=str(tmp_path / "plain"))
    shared = ["user_id", "ad_id", "shown_at", "click", "history_index", "counter_ad_rate_6h"]
    assert table.select(shared).equals(rows(expected).select(shared))


def test_time_zones_of_naive_text(tmp_path):
    write(pa.table({"ad_id": ["a"], "title": ["t"]}), tmp_path / "ads.parquet")
    moments = ["2026-03-01 08:00:00", "2026-03-01T08:00:00+02:00", "2026-03-01T08:00:00Z", "2026-03-02"]
    (tmp_path / "log.csv").write_text("user_id,ad_id,shown_at\n" + "".join(f"u,a,{moment}\n" for moment in moments))
    source = {
        "format": "tables",
        "ads": {"files": str(tmp_path / "ads.parquet")},
        "impressions": {"files": str(tmp_path / "log.csv"), "time_zone": "Asia/Shanghai"},
    }
    found, _ = prepare(
        tmp_path, source=source, counters=[], features={}, split={"method": "time", "valid_fraction": 0, "test_fraction": 0}
    )
    hours = [moment.isoformat() for moment in rows(found)["shown_at"].to_pylist()]
    assert hours == [
        "2026-03-01T00:00:00+00:00",
        "2026-03-01T06:00:00+00:00",
        "2026-03-01T08:00:00+00:00",
        "2026-03-01T16:00:00+00:00",
    ]


def test_a_second_run_does_nothing_and_a_changed_input_builds_anew(tmp_path):
    world(tmp_path)
    prepared, first = prepare(tmp_path)
    stamp = (prepared.path / "manifest.json").stat().st_mtime_ns
    _, second = prepare(tmp_path)
    assert (first.done, second.done) == ("built", "unchanged")
    assert (prepared.path / "manifest.json").stat().st_mtime_ns == stamp
    assert first.manifest == second.manifest
    world(tmp_path, seed=5)
    _, third = prepare(tmp_path)
    assert third.done == "built"
    assert third.manifest["fingerprint"] != first.manifest["fingerprint"]
    shutil.rmtree(prepared.path / "impressions" / "test")
    _, fourth = prepare(tmp_path)
    assert fourth.done == "built", "a folder that lost a file is not taken for whole"
    _, fifth = prepare(tmp_path, history={"max_clicks": 3})
    assert fifth.done == "built"
    assert (first.why, fifth.why) == ("", "the config has changed")


@pytest.mark.parametrize(
    ("split", "wide", "why"),
    [
        ({"method": "random"}, False, "new rows move old ones to another part of this split"),
        ({"method": "leave_last_out"}, False, "new rows move old ones to another part of this split"),
        ({"method": "time"}, False, "new rows move old ones to another part of this split"),
        ({"method": "user", "test_fraction": 0.4}, True, "the impressions describe the ads, and may describe old ones anew"),
    ],
)
def test_what_cannot_be_appended_is_built_anew_and_says_why(tmp_path, split, wide, why):
    made = tables(1)
    log = made["impressions"]
    if wide:
        log = log.append_column("title", pc.binary_join_element_wise("Offer", log["ad_id"], " "))
    source = {"format": "tables", "impressions": {"files": str(tmp_path / "log")}}
    if not wide:
        source["ads"] = {"files": str(write(made["ads"], tmp_path / "ads.parquet"))}
    changes = {"source": source, "features": {}, "counters": [], "split": split}
    half = log.num_rows // 2
    write(log.slice(0, half), tmp_path / "log" / "a.parquet")
    prepare(tmp_path, **changes)
    write(log.slice(half), tmp_path / "log" / "b.parquet")
    found, result = prepare(tmp_path, **changes)
    assert (result.done, result.why) == ("built", why)
    assert f"Everything was built anew, because {why}." in list(result.render())
    assert result.as_dict()["why"] == why
    rebuilt, _ = prepare(tmp_path, **changes, output=str(tmp_path / "rebuilt"))
    assert rows(found).equals(rows(rebuilt))


def test_equal_inputs_give_equal_bytes(tmp_path):
    for name in ("one", "two"):
        world(tmp_path / name, requests=300)
        prepare(tmp_path / name, threads=1 if name == "one" else 2, memory_limit_gb=0.5 if name == "one" else 1.0)
    files = sorted(
        file.relative_to(tmp_path / "one" / "prepared") for file in (tmp_path / "one" / "prepared").rglob("*.parquet")
    )
    assert files
    for file in files:
        assert (tmp_path / "one" / "prepared" / file).read_bytes() == (tmp_path / "two" / "prepared" / file).read_bytes(), file


def split_by_day(made, folder, days):
    moments = made["impressions"]["shown_at"].cast(pa.int64()).to_numpy() - START.astype(np.int64)
    for day in range(days):
        part = made["impressions"].filter(pa.array(moments // DAY == day))
        write(part, folder / f"day={day}" / "part.parquet")


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "split",
    [
        {"method": "time", "valid_from": "2026-03-01 12:00", "test_from": "2026-03-02"},
        {"method": "user", "test_fraction": 0.4},
    ],
)
def test_appending_a_day_equals_a_rebuild(tmp_path, seed, split, monkeypatch):
    monkeypatch.setattr("adrec.stages.data.preprocess.ROWS_PER_SHARD", 25)
    made = tables(seed, requests=90)
    for name in ("ads", "users"):
        write(made[name], tmp_path / f"{name}.parquet")
    split_by_day(made, tmp_path / "all", 4)
    source = {
        "format": "tables",
        "ads": {"files": str(tmp_path / "ads.parquet")},
        "users": {"files": str(tmp_path / "users.parquet")},
        "impressions": {"files": str(tmp_path / "log")},
    }
    for day in range(4):
        shutil.copytree(tmp_path / "all" / f"day={day}", tmp_path / "log" / f"day={day}")
        if day == 0:
            continue
        found, result = prepare(tmp_path, source=source, split=split)
        assert result.done == ("built" if day == 1 else "appended")
    rebuilt, _ = prepare(tmp_path, source=source, split=split, output=str(tmp_path / "rebuilt"))
    assert rows(found).equals(rows(rebuilt))
    assert found.ads().equals(rebuilt.ads())
    assert found.users().equals(rebuilt.users())
    assert found.corpus().equals(rebuilt.corpus())
    assert (found.path / "features.json").read_bytes() == (rebuilt.path / "features.json").read_bytes()
    for key in (
        "rows",
        "requests",
        "clicks",
        "first",
        "last",
        "history",
        "source_rows",
        "rejected",
        "unlisted_users",
        "fingerprint",
    ):
        assert found.manifest[key] == rebuilt.manifest[key], key
    for name, counts in found.manifest["splits"].items():
        assert {**counts, "shards": 0} == {**rebuilt.manifest["splits"][name], "shards": 0}


def test_new_ads_and_new_titles_are_appended_and_what_counters_are_kept_by_builds_anew(tmp_path):
    made = tables(3, requests=90)
    moments = made["impressions"]["shown_at"].cast(pa.int64()).to_numpy() - START.astype(np.int64)
    late = pc.is_in(made["impressions"]["ad_id"], pa.array(["a13", "a14"]))
    made["impressions"] = made["impressions"].filter(pc.or_(pc.invert(late), pa.array(moments >= 3 * DAY)))
    split_by_day(made, tmp_path / "all", 4)
    write(made["users"], tmp_path / "users.parquet")
    split = {"method": "time", "valid_from": "2026-03-02", "test_from": "2026-03-03"}
    source = {
        "format": "tables",
        "ads": {"files": str(tmp_path / "ads.parquet")},
        "users": {"files": str(tmp_path / "users.parquet")},
        "impressions": {"files": str(tmp_path / "log")},
    }
    for day in range(3):
        shutil.copytree(tmp_path / "all" / f"day={day}", tmp_path / "log" / f"day={day}")
    write(made["ads"].slice(0, 13), tmp_path / "ads.parquet")
    prepare(tmp_path, source=source, split=split)
    shutil.copytree(tmp_path / "all" / "day=3", tmp_path / "log" / "day=3")
    write(made["ads"], tmp_path / "ads.parquet")
    found, result = prepare(tmp_path, source=source, split=split)
    assert result.done == "appended"
    renamed = made["ads"].set_column(1, "title", pa.array([f"new title {number}" for number in range(15)]))
    moved = renamed.set_column(2, "category", pa.array(["news"] * 15))
    last = made["impressions"].slice(made["impressions"].num_rows - 1)
    for day, ads, why in ((4, renamed, ""), (5, moved, "'category' of earlier ads has changed, which counters are kept by")):
        write(ads, tmp_path / "ads.parquet")
        later = last.set_column(3, "shown_at", pa.array(np.array([START + (5 + day) * DAY]), pa.timestamp("us", "UTC")))
        write(later.set_column(0, "request_id", pa.array([f"later{day}"])), tmp_path / "log" / f"day={day}" / "part.parquet")
        again, result = prepare(tmp_path, source=source, split=split)
        assert (result.done, result.why) == ("built" if why else "appended", why)
        assert again.ads()["title"].to_pylist()[0] == "new title 0"
        rebuilt, _ = prepare(tmp_path, source=source, split=split, output=str(tmp_path / f"rebuilt{day}"))
        for name in ("ads", "users", "corpus"):
            assert getattr(again, name)().equals(getattr(rebuilt, name)())
        assert rows(again).equals(rows(rebuilt))
    assert found.path == again.path


def test_earlier_rows_in_a_new_file_build_anew(tmp_path):
    made = tables(1)
    write(made["ads"], tmp_path / "ads.parquet")
    half = made["impressions"].num_rows // 2
    source = {
        "format": "tables",
        "ads": {"files": str(tmp_path / "ads.parquet")},
        "impressions": {"files": str(tmp_path / "log")},
    }
    changes = {"source": source, "features": {}, "split": {"method": "user", "test_fraction": 0.4}}
    write(made["impressions"].slice(half), tmp_path / "log" / "a.parquet")
    prepare(tmp_path, **changes)
    write(made["impressions"].slice(0, half), tmp_path / "log" / "b.parquet")
    found, result = prepare(tmp_path, **changes)
    assert result.done == "built"
    assert found.manifest["rows"] == made["impressions"].num_rows


def test_an_appended_fault_counts_with_the_earlier_rows(tmp_path):
    made = tables(2, requests=120)
    for name in ("ads", "users"):
        write(made[name], tmp_path / f"{name}.parquet")
    split_by_day(made, tmp_path / "all", 4)
    source = {
        "format": "tables",
        "ads": {"files": str(tmp_path / "ads.parquet")},
        "users": {"files": str(tmp_path / "users.parquet")},
        "impressions": {"files": str(tmp_path / "log")},
    }
    changes = {
        "source": source,
        "split": {"method": "user", "test_fraction": 0.4},
        "validation": {"max_rejected_fraction": 0.02},
    }
    for day in range(2):
        shutil.copytree(tmp_path / "all" / f"day={day}", tmp_path / "log" / f"day={day}")
    prepare(tmp_path, **changes)
    part = pq.read_table(tmp_path / "all" / "day=2" / "part.parquet", partitioning=None)
    clicks = part["click"].to_pylist()
    write(part.set_column(4, "click", pa.array([7, *clicks[1:]], pa.int8())), tmp_path / "log" / "day=2" / "part.parquet")
    found, result = prepare(tmp_path, **changes)
    assert result.done == "appended"
    assert result.manifest["source_rows"]["impressions"]["rejected"] == 1
    rejected = pq.read_table(found.path / "rejected.parquet").to_pylist()
    assert rejected == [
        {
            "table": "impressions",
            "source_file": "day=2/part.parquet",
            "source_row": 1,
            "column": "click",
            "reason": "is not 0 or 1",
        }
    ]
    rebuilt, _ = prepare(tmp_path, **changes, output=str(tmp_path / "rebuilt"))
    assert rows(found).equals(rows(rebuilt))


def test_a_wide_table_is_typed_and_checked_like_three(tmp_path):
    log = "user_id,ad_id,shown_at,title,starts_at,bid,interests,age\n"
    rows_of_it = [
        "u1,a1,2026-03-01,One,2026-02-01,0.5,run|bike,30",
        "u2,a2,2026-03-02,Two,,,,",
        "u1,a2,2026-03-03,Two,2026-02-02 10:00:00,2,run,30",
    ]
    (tmp_path / "wide.csv").write_text(log + "\n".join(rows_of_it) + "\n")
    source = {"format": "tables", "impressions": {"files": str(tmp_path / "wide.csv")}}
    changes = {"source": source, "counters": [], "features": {"users": {"numeric": ["age"]}}}
    split = {"method": "time", "valid_fraction": 0, "test_fraction": 0}
    prepared, _ = prepare(tmp_path, **changes, split=split)
    ads = prepared.ads()
    assert ads["bid"].to_pylist() == [0.5, 2.0]
    assert [moment.isoformat() for moment in ads["starts_at"].to_pylist()] == [
        "2026-02-01T00:00:00+00:00",
        "2026-02-02T10:00:00+00:00",
    ]
    assert prepared.users()["interests"].to_pylist() == [["run"], None], "the latest known"
    assert prepared.users()["age"].to_pylist() == [30, None]
    (tmp_path / "wide.csv").write_text((log + "\n".join(rows_of_it)).replace("2026-02-01", "soon").replace(",0.5,", ",-1,"))
    with pytest.raises(DataError) as caught:
        prepare(tmp_path, **changes, split=split)
    assert "column 'starts_at', row 1: 'soon' is not a timestamp" in str(caught.value)
    assert "column 'bid', row 1: '-1' is negative" in str(caught.value)


def test_a_column_that_changes_its_type_is_not_appended(tmp_path):
    made = tables(1)
    write(made["ads"], tmp_path / "ads.parquet")
    source = {
        "format": "tables",
        "ads": {"files": str(tmp_path / "ads.parquet")},
        "impressions": {"files": str(tmp_path / "log")},
    }
    changes = {
        "source": source,
        "counters": [],
        "features": {},
        "split": {"method": "user", "test_fraction": 0.4},
        "keep": ["depth"],
    }
    log = made["impressions"].drop_columns(["price_seen"])
    half = log.num_rows // 2
    while (
        log["request_id"][half].as_py() == log["request_id"][half - 1].as_py()
        or log["shown_at"][half] == log["shown_at"][half - 1]
    ):
        half += 1
    write(log.slice(0, half).append_column("depth", pa.array(range(half))), tmp_path / "log" / "a.parquet")
    prepare(tmp_path, **changes)
    write(log.slice(half).append_column("depth", pa.array([0.5] * (log.num_rows - half))), tmp_path / "log" / "b.parquet")
    found, result = prepare(tmp_path, **changes)
    assert result.done == "built"
    assert rows(found)["depth"].type == pa.float64()


def test_a_new_file_without_a_good_row_is_no_fault_of_all_files(tmp_path):
    made = tables(1)
    write(made["ads"], tmp_path / "ads.parquet")
    write(made["impressions"], tmp_path / "log" / "a.csv")
    source = {
        "format": "tables",
        "ads": {"files": str(tmp_path / "ads.parquet")},
        "impressions": {"files": str(tmp_path / "log")},
    }
    changes = {"source": source, "features": {}, "split": {"method": "user", "test_fraction": 0.4}}
    first, _ = prepare(tmp_path, **changes)
    header = (tmp_path / "log" / "a.csv").read_text().partition("\n")[0]
    (tmp_path / "log" / "b.csv").write_text(header + "\n")
    found, result = prepare(tmp_path, **changes)
    assert result.done == "built"
    assert rows(found).equals(rows(first))


def test_the_manifest_is_plain_json_and_lists_every_file(tmp_path):
    world(tmp_path)
    prepared, result = prepare(tmp_path)
    on_disk = json.loads((prepared.path / "manifest.json").read_text())
    assert on_disk == result.manifest
    files = {str(file.relative_to(prepared.path)) for file in prepared.path.rglob("*") if file.is_file()}
    assert set(on_disk["files"]) == files - {"manifest.json"}
    assert [item["table"] for item in on_disk["inputs"]] == ["ads", "users", "impressions"]
    shown = result.as_dict()
    assert shown["done"] == "built"
    assert list(result.render())


def test_two_users_cannot_share_a_request(tmp_path):
    made = world(tmp_path)
    one = pa.array(["r"] * made["impressions"].num_rows)
    write(made["impressions"].set_column(0, "request_id", one), tmp_path / "impressions.parquet")
    with pytest.raises(DataError, match="belongs to more than one user"):
        prepare(tmp_path)


def test_an_output_may_be_called_like_a_pattern(tmp_path):
    made = tables(3)
    write(made["ads"], tmp_path / "ads.parquet")
    source = {
        "format": "tables",
        "ads": {"files": str(tmp_path / "ads.parquet")},
        "impressions": {"files": str(tmp_path / "log")},
    }
    changes = {
        "source": source,
        "features": {},
        "split": {"method": "user", "test_fraction": 0.4},
        "output": str(tmp_path / "out [v1]*"),
    }
    log = made["impressions"]
    half = next(n for n in range(log.num_rows // 2, log.num_rows) if log["shown_at"][n] != log["shown_at"][n - 1])
    write(log.slice(0, half), tmp_path / "log" / "a.parquet")
    prepare(tmp_path, **changes)
    write(log.slice(half), tmp_path / "log" / "b.parquet")
    found, result = prepare(tmp_path, **changes)
    assert result.done == "appended"
    assert found.manifest["rows"] == log.num_rows
