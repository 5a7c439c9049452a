"""Broken input: one clear line a fault, naming file, column, row and the fix; earlier output untouched; quarantine."""

import gzip
import os

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from raw_worlds import prepare, rows, world, write

from adrec.data.prepared import open_prepared
from adrec.errors import AdrecError, ConfigError, DataError

SPLIT = {"method": "user", "test_fraction": 0.4}


@pytest.fixture
def made(tmp_path):
    return world(tmp_path)


def put(folder, made, table, column, at, value, kind=None):
    """The table with one cell replaced."""
    values = made[table][column].to_pylist()
    values[at] = value
    changed = made[table].set_column(made[table].column_names.index(column), column, pa.array(values, kind))
    write(changed, folder / f"{table}.parquet")


def fault(folder, **changes):
    with pytest.raises(AdrecError) as caught:
        prepare(folder, **changes)
    assert not (folder / "prepared").exists()
    assert not list(folder.glob(".prepared*"))
    return str(caught.value)


def test_a_missing_column(tmp_path, made):
    write(made["impressions"].drop_columns(["shown_at"]), tmp_path / "impressions.parquet")
    line = fault(tmp_path)
    assert "impressions.parquet: column 'shown_at' is missing" in line
    assert "which split.method time and every counter need" in line
    assert "--set source.impressions.columns.shown_at=COLUMN" in line


def test_every_missing_column_is_listed_at_once(tmp_path, made):
    write(made["impressions"].drop_columns(["shown_at", "ad_id", "price_seen"]), tmp_path / "impressions.parquet")
    text = fault(tmp_path)
    assert len(text.splitlines()) == 3
    assert all(f"column '{name}' is missing" in text for name in ("shown_at", "ad_id", "price_seen"))


def test_a_mapped_column_that_the_file_lacks(tmp_path, made):
    source = {
        "format": "tables",
        "ads": {"files": str(tmp_path / "ads.parquet")},
        "impressions": {"files": str(tmp_path / "impressions.parquet"), "columns": {"click": "clicked"}},
    }
    assert "'clicked' (for click) is missing" in fault(tmp_path, source=source, features={})


def test_a_string_where_a_timestamp_should_be(tmp_path, made):
    moments = pc.strftime(made["impressions"]["shown_at"], format="%Y-%m-%d %H:%M:%S").to_pylist()
    moments[16] = "yesterday"
    write(made["impressions"].set_column(3, "shown_at", pa.array(moments)), tmp_path / "impressions.parquet")
    line = fault(tmp_path)
    assert "impressions.parquet: column 'shown_at', row 17: 'yesterday' is not a timestamp. Write ISO 8601" in line


def test_row_numbers_are_those_of_the_file(tmp_path, made):
    for number, (begin, length) in enumerate([(0, 40), (40, 60), (100, 1000)]):
        part = made["impressions"].slice(begin, length)
        if number == 1:
            clicks = part["click"].to_pylist()
            clicks[4] = 9
            part = part.set_column(4, "click", pa.array(clicks, pa.int8()))
        write(part, tmp_path / "log" / f"{number}.csv")
    source = {
        "format": "tables",
        "ads": {"files": str(tmp_path / "ads.parquet")},
        "users": {"files": str(tmp_path / "users.parquet")},
        "impressions": {"files": str(tmp_path / "log")},
    }
    assert "1.csv: column 'click', row 5: '9' is not 0 or 1" in fault(tmp_path, source=source)


def test_an_empty_file(tmp_path, made):
    (tmp_path / "impressions.parquet").write_bytes(b"")
    assert fault(tmp_path).endswith("impressions.parquet: the file is empty.")


def test_a_file_with_a_header_only(tmp_path, made):
    (tmp_path / "log.csv").write_text("user_id,ad_id,shown_at\n")
    source = {
        "format": "tables",
        "ads": {"files": str(tmp_path / "ads.parquet")},
        "impressions": {"files": str(tmp_path / "log.csv")},
    }
    assert "log.csv: holds no rows" in fault(tmp_path, source=source, features={})


@pytest.mark.parametrize("share", [0.05, 0.5, 0.99])
def test_a_truncated_parquet_file(tmp_path, made, share):
    whole = (tmp_path / "impressions.parquet").read_bytes()
    (tmp_path / "impressions.parquet").write_bytes(whole[: int(len(whole) * share)])
    line = fault(tmp_path)
    assert "impressions.parquet: not a whole Parquet file" in line
    assert "Write the file again." in line


def test_a_file_that_is_not_there(tmp_path, made):
    (tmp_path / "impressions.parquet").unlink()
    assert "impressions.parquet: no such file" in fault(tmp_path)


def test_an_ad_that_no_table_knows(tmp_path, made):
    put(tmp_path, made, "impressions", "ad_id", 3, "a999")
    assert "impressions.parquet: column 'ad_id', row 4: 'a999' is no ad's ad_id. Add the ad to the ads table." in fault(
        tmp_path
    )


@pytest.mark.parametrize(("table", "key"), [("ads", "ad_id"), ("users", "user_id")])
def test_a_duplicate_key(tmp_path, made, table, key):
    value = made[table][key][0].as_py()
    put(tmp_path, made, table, key, 5, value)
    line = fault(tmp_path)
    assert f"{table}.parquet: column '{key}', row 1: '{value}' occurs again in row 6" in line


def test_a_label_of_two(tmp_path, made):
    put(tmp_path, made, "impressions", "click", 7, 2, pa.int8())
    assert "column 'click', row 8: '2' is not 0 or 1" in fault(tmp_path)


def test_a_nan_feature_unless_it_is_declared_missing(tmp_path, made):
    put(tmp_path, made, "impressions", "price_seen", 2, float("nan"))
    assert "column 'price_seen', row 3: 'nan' is NaN or infinite. Leave the cell empty, or set" in fault(tmp_path)
    prepared, _ = prepare(tmp_path, validation={"nan_is_missing": True})
    assert rows(prepared)["price_seen"].null_count == 1


def test_every_fault_is_told_at_once(tmp_path, made):
    put(tmp_path, made, "ads", "ad_id", 0, None)
    table = made["impressions"]
    clicks, prices = table["click"].to_pylist(), table["price_seen"].to_pylist()
    clicks[0], clicks[9], prices[0] = 3, 4, float("inf")
    table = table.set_column(4, "click", pa.array(clicks, pa.int8())).set_column(6, "price_seen", pa.array(prices))
    write(table, tmp_path / "impressions.parquet")
    text = fault(tmp_path)
    assert "ads.parquet: column 'ad_id', row 1: is missing" in text
    assert "column 'click', row 1: '3' is not 0 or 1 (2 rows in all)" in text
    assert "column 'price_seen', row 1: 'inf' is NaN or infinite" in text


def test_ranges(tmp_path, made):
    table = made["impressions"].append_column(
        "propensity", pa.array([0.5] * 20 + [0.0] + [0.5] * 1000)[: len(made["impressions"])]
    )
    positions = made["impressions"]["position"].to_pylist()
    positions[1] = 0
    write(table.set_column(5, "position", pa.array(positions, pa.int32())), tmp_path / "impressions.parquet")
    text = fault(tmp_path)
    assert "column 'propensity', row 21: '0.0' is not in (0, 1]" in text
    assert "column 'position', row 2: '0' is below 1" in text


def test_the_quarantine_keeps_reason_and_row_up_to_the_limit(tmp_path, made):
    put(tmp_path, made, "impressions", "click", 7, 2, pa.int8())
    count = made["impressions"].num_rows
    prepared, result = prepare(tmp_path, validation={"max_rejected_fraction": 1 / count}, split=SPLIT)
    assert prepared.manifest["rows"] == count - 1
    assert pq.read_table(prepared.path / "rejected.parquet").to_pylist() == [
        {
            "table": "impressions",
            "source_file": "impressions.parquet",
            "source_row": 8,
            "column": "click",
            "reason": "is not 0 or 1",
        }
    ]
    assert result.manifest["rejected"]["reasons"] == [
        {"table": "impressions", "column": "click", "reason": "is not 0 or 1", "rows": 1}
    ]
    assert any("1 of" in str(part) and "rejected" in str(part) for part in result.render())
    with pytest.raises(DataError, match="rows are rejected"):
        prepare(tmp_path, validation={"max_rejected_fraction": 0.5 / count}, split=SPLIT)


def test_rejected_rows_leave_no_trace_in_histories_and_counters(tmp_path, made):
    clean = made["impressions"].filter(pc.not_equal(made["impressions"]["user_id"], "u1"))
    bad = made["impressions"].filter(pc.equal(made["impressions"]["user_id"], "u1"))
    bad = bad.set_column(1, "user_id", pa.array(["u2"] * len(bad))).set_column(
        5, "position", pa.array([0] * len(bad), pa.int32())
    )
    write(clean, tmp_path / "impressions.parquet")
    expected, _ = prepare(tmp_path, split=SPLIT)
    write(pa.concat_tables([bad, clean]), tmp_path / "impressions.parquet")
    found, _ = prepare(tmp_path, split=SPLIT, validation={"max_rejected_fraction": 0.9}, output=str(tmp_path / "other"))
    assert rows(found).drop_columns(["row_id"]).equals(rows(expected).drop_columns(["row_id"]))


def test_earlier_output_stays_whole_after_a_fault(tmp_path, made):
    prepared, _ = prepare(tmp_path)
    before = rows(prepared)
    put(tmp_path, made, "impressions", "click", 7, 2, pa.int8())
    with pytest.raises(DataError):
        prepare(tmp_path)
    assert rows(prepared).equals(before)
    assert not list(tmp_path.glob(".prepared*"))


BROKEN = {
    3: (b"u1,a1,2026-03-01,1,extra", "has too many cells"),
    5: (b"u1,a1", "has too few cells"),
    8: (b'"u2"x,a1,2026-03-02,1', "has a broken quote"),
    11: (b"u\xff,a1,2026-03-01,1", "is not UTF-8 text"),
    14: (b"u1,a1,2026-03-01,1,x,y", "has too many cells"),
}


def broken_log(path, lines=20, broken=BROKEN, clicks=None):
    """A header and `lines - 1` rows, some of which are no rows."""
    made = [b"user_id,ad_id,shown_at,click"]
    for line in range(2, lines + 1):
        click = (clicks or {}).get(line, 0)
        made.append(broken[line][0] if line in broken else f"u{line},a1,2026-03-{line:02d},{click}".encode())
    data = b"\n".join(made) + b"\n"
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def csv_source(folder, files):
    return {"format": "tables", "ads": {"files": str(folder / "ads.parquet")}, "impressions": {"files": files}}


@pytest.mark.parametrize("ending", ["csv", "csv.gz"])
def test_malformed_lines_are_set_aside_with_line_and_reason(tmp_path, made, ending):
    log = broken_log(tmp_path / f"log.{ending}", clicks={10: 7})
    source = csv_source(tmp_path, str(log))
    prepared, _ = prepare(tmp_path, source=source, features={}, split=SPLIT, validation={"max_rejected_fraction": 0.4})
    assert prepared.manifest["source_rows"]["impressions"] == {"rows": 19, "rejected": 6}
    assert sorted(rows(prepared)["user_id"].to_pylist()) == sorted(
        f"u{line}" for line in range(2, 21) if line not in BROKEN and line != 10
    )
    rejected = pq.read_table(prepared.path / "rejected.parquet").to_pylist()
    found = {row["source_row"] + 1: (row["column"], row["reason"]) for row in rejected}
    assert found == {line: ("(line)", reason) for line, (_, reason) in BROKEN.items()} | {10: ("click", "is not 0 or 1")}
    assert {row["source_file"] for row in rejected} == {log.name}


def test_malformed_lines_stop_the_run_where_none_is_allowed_for(tmp_path, made):
    (tmp_path / "logs").mkdir()
    broken_log(tmp_path / "logs" / "1.csv", broken={})
    broken_log(tmp_path / "logs" / "2.csv", broken={7: BROKEN[3]})
    source = csv_source(tmp_path, str(tmp_path / "logs"))
    assert fault(tmp_path, source=source, features={}) == (
        "2.csv: line 7: has too many cells. Mend that line, or allow for some (validation.max_rejected_fraction)."
    )
    broken_log(tmp_path / "logs" / "1.csv", broken=BROKEN)
    lines = fault(tmp_path, source=source, features={}).splitlines()
    assert lines[0].startswith("1.csv: line 3: has too many cells (3 rows in all). Mend that line")
    assert len(lines) == 4, "a line a kind of fault"


def test_malformed_lines_of_an_appended_file_are_those_of_a_rebuild(tmp_path, made):
    (tmp_path / "logs").mkdir()
    changes = {
        "source": csv_source(tmp_path, str(tmp_path / "logs")),
        "features": {},
        "split": SPLIT,
        "validation": {"max_rejected_fraction": 0.5},
    }
    broken_log(tmp_path / "logs" / "1.csv", broken={4: BROKEN[3]}, lines=12)
    prepare(tmp_path, **changes)
    log = broken_log(tmp_path / "logs" / "2.csv")
    log.write_text(log.read_text(errors="surrogateescape").replace("2026-03", "2026-04"), errors="surrogateescape")
    found, result = prepare(tmp_path, **changes)
    assert result.done == "appended"
    rebuilt, _ = prepare(tmp_path, **changes, output=str(tmp_path / "rebuilt"))
    assert rows(found).equals(rows(rebuilt))
    assert pq.read_table(found.path / "rejected.parquet").equals(pq.read_table(rebuilt.path / "rejected.parquet"))
    assert found.manifest["rejected"] == rebuilt.manifest["rejected"]
    assert found.manifest["source_rows"] == rebuilt.manifest["source_rows"]


def test_a_quote_that_never_ends(tmp_path, made):
    source = csv_source(tmp_path, str(broken_log(tmp_path / "log.csv", lines=9, broken={6: (b'u1,"a1,2026-03-01,0', "")})))
    assert "log.csv: line 6: a lone quote would join this line" in fault(tmp_path, source=source, features={})
    source["impressions"]["quote"] = '"'
    assert fault(tmp_path, source=source, features={}).startswith("log.csv: line 6: has a broken quote.")


def test_a_file_of_malformed_lines_only(tmp_path, made):
    source = csv_source(tmp_path, str(broken_log(tmp_path / "log.csv", lines=3, broken=dict.fromkeys((2, 3), BROKEN[5]))))
    assert "no row passed the checks" in fault(tmp_path, source=source, features={}, validation={"max_rejected_fraction": 1})


def test_a_truncated_compressed_file_is_told_by_its_own_name(tmp_path, made):
    (tmp_path / "logs").mkdir()
    for name in ("1.csv.gz", "2.csv.gz"):
        broken_log(tmp_path / "logs" / name, broken={})
    whole = (tmp_path / "logs" / "2.csv.gz").read_bytes()
    (tmp_path / "logs" / "2.csv.gz").write_bytes(whole[: len(whole) * 2 // 3])
    line = fault(tmp_path, source=csv_source(tmp_path, str(tmp_path / "logs")), features={})
    assert "2.csv.gz: cannot be read" in line and len(line.splitlines()) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_output(tmp_path, made):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(AdrecError, match="cannot be written"):
        prepare(tmp_path, output=str(tmp_path / "locked" / "prepared"))


def test_unknown_counter_columns_and_reserved_names(tmp_path, made):
    assert "column 'brand' is neither" in fault(tmp_path, counters=[{"by": ["brand"], "measures": ["clicks"]}], features={})
    twice = ["usual", {"by": ["ad"], "measures": ["rate"], "prior_strength": 3}]
    assert "'counter_ad_rate' is declared twice" in fault(tmp_path, counters=twice, features={})
    with pytest.raises(ConfigError, match="made by preprocess itself"):
        prepare(tmp_path, keep=["row_id"])


def test_a_column_split_must_name_every_value_and_keep_time_order(tmp_path, made):
    count = made["impressions"].num_rows
    parts = ["test"] * 5 + ["train"] * (count - 5)
    write(made["impressions"].append_column("part_of", pa.array(parts)), tmp_path / "impressions.parquet")
    split = {"method": "column", "column": "part_of"}
    assert "training rows lie after the first test row" in fault(tmp_path, split=split)
    prepared, _ = prepare(tmp_path, split={**split, "in_time_order": False})
    assert prepared.rows("test") == 5
    assert "'train' names no part" in fault_of(tmp_path, {**split, "train": ["training"]})


def fault_of(folder, split):
    with pytest.raises(DataError) as caught:
        prepare(folder, split=split, output=str(folder / "unmade"))
    return str(caught.value)


def test_a_folder_that_another_version_made_is_told_in_one_line(tmp_path, made):
    prepared, _ = prepare(tmp_path)
    assert prepared.config.counters
    file = prepared.path / "config.yaml"
    file.write_text(file.read_text().replace("stop_words:", "longest:"))
    with pytest.raises(DataError) as caught:
        _ = open_prepared(prepared.path).config
    known = "ad_template, extra_stop_words, stop_words, user_dictionary, user_template"
    assert str(caught.value) == (
        f"{file}: made by another version (text.longest: unknown key. Known keys: {known}). Run 'adrec preprocess' again."
    )
