"""Clicks and conversions of files of their own: who gets which, against the plainest loop, and what is told of the rest."""

from datetime import timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from pydantic import ValidationError
from raw_worlds import config, prepare, rows, tables, write

from adrec.errors import DataError

MINUTE = 60_000_000


def _world(folder, seed, *, clicks=80, window=90):
    """Impressions without clicks, some at equal moments, and clicks of the same few users and ads at any moment."""
    made = tables(seed, requests=60, users=4, ads=5, slots=96)
    for name in ("ads", "users"):
        write(made[name], folder / f"{name}.parquet")
    log = made["impressions"].drop_columns(["click"])
    log = log.set_column(log.column_names.index("price_seen"), "price_seen", pa.array(np.arange(len(log)) / 8))
    log = log.append_column("impression_id", pa.array([f"00{number}" for number in range(len(log))]))
    write(log, folder / "impressions.csv")
    rng = np.random.default_rng(seed + 100)
    at = rng.integers(0, len(log), clicks)
    base = log["shown_at"].cast(pa.int64()).to_numpy()[at] + rng.integers(-20, 2 * window, clicks) * MINUTE
    told = pa.table(
        {
            "user_id": log["user_id"].take(pa.array(at)),
            "ad_id": log["ad_id"].take(pa.array(at)),
            "when": pa.array(base, pa.timestamp("us", "UTC")),
            "impression_id": [f"00{number}" for number in np.where(rng.random(clicks) < 0.9, at, 10_000 + at)],
        }
    )
    write(told, folder / "clicks.csv")
    return log, told


def _source(folder, label="clicks", moment="clicked_at", **keys):
    source = config(folder).source.model_dump(mode="json")
    source["impressions"] = {"files": "impressions.csv"}
    source[label] = {"files": "clicks.csv", "columns": {moment: "when"} if moment else {}, **keys}
    return source


def _by_window(log, told, window):
    """Click -> the latest impression of its user and ad at or before it, unless that was longer ago; the first counts."""
    shown = log.to_pylist()
    taken, late, unmatched = {}, 0, 0
    for click in told.to_pylist():
        earlier = [
            (row["shown_at"], -number)
            for number, row in enumerate(shown)
            if row["user_id"] == click["user_id"] and row["ad_id"] == click["ad_id"] and row["shown_at"] <= click["when"]
        ]
        if not earlier:
            unmatched += 1
            continue
        moment, number = max(earlier)
        if click["when"] - moment > timedelta(minutes=window):
            late += 1
            continue
        taken.setdefault(-number, []).append(click["when"])
    return {number: min(moments) for number, moments in taken.items()}, late, unmatched


@pytest.mark.parametrize("seed", range(4))
def test_clicks_within_a_window_are_those_of_the_plainest_loop(tmp_path, seed):
    log, told = _world(tmp_path, seed)
    source = _source(tmp_path, on=["user_id", "ad_id"], within="90 minutes")
    prepared, result = prepare(tmp_path, source=source, counters=[])
    taken, late, unmatched = _by_window(log, told, 90)
    found = {row["price_seen"]: row for row in rows(prepared).to_pylist()}  # the price tells the rows apart
    assert len(found) == len(log)
    for number, row in enumerate(log.to_pylist()):
        got = found[row["price_seen"]]
        assert got["click"] == (number in taken)
        assert got["clicked_at"] == taken.get(number)
    counts = result.manifest["joined"]["clicks"]
    assert (counts["events"], counts["matched"]) == (len(told), len(taken))
    assert (counts["late"], counts["unmatched"]) == (late, unmatched)
    assert counts["matched"] + counts["late"] + counts["unmatched"] + counts["repeated"] == counts["events"]
    assert late and any("came later than 90 minutes" in note for note in result.manifest["notes"])


@pytest.mark.parametrize("label", ["clicks", "conversions"])
def test_by_an_identifier_each_belongs_to_its_impression(tmp_path, label):
    log, told = _world(tmp_path, 1)
    flag, moment = {"clicks": ("click", "clicked_at"), "conversions": ("conversion", "converted_at")}[label]
    prepared, result = prepare(tmp_path, source=_source(tmp_path, label, moment, on=["impression_id"]), counters=[])
    ids = set(told["impression_id"].to_pylist())
    wanted = dict(zip(log["price_seen"].to_pylist(), [one in ids for one in log["impression_id"].to_pylist()], strict=True))
    found = rows(prepared)
    assert dict(zip(found["price_seen"].to_pylist(), map(bool, found[flag].to_pylist()), strict=True)) == wanted
    assert "impression_id" not in found.column_names
    known = set(log["impression_id"].to_pylist())
    counts = result.manifest["joined"][label]
    assert counts["unmatched"] == sum(one not in known for one in told["impression_id"].to_pylist())
    assert counts["matched"] == sum(wanted.values())


def test_without_a_moment_the_label_is_all_there_is(tmp_path):
    _world(tmp_path, 2)
    prepared, _ = prepare(tmp_path, source=_source(tmp_path, moment=None, on=["impression_id"]), counters=[])
    assert "clicked_at" not in rows(prepared).column_names and pc.sum(rows(prepared)["click"]).as_py() > 0


def test_a_click_counts_from_its_own_moment_on_and_labels_end_at_the_cut(tmp_path):
    log, _ = _world(tmp_path, 3, window=2_000)
    source = _source(tmp_path, on=["user_id", "ad_id"], within="3 days")
    prepared, result = prepare(tmp_path, source=source, counters=[{"by": ["ad"], "measures": ["clicks"]}])
    assert prepared.history().clicked_at == "clicked_at"
    assert result.manifest["label_moments"] == {"click": "clicked_at"}
    cut = prepared.label_cut(("train",))
    trained = rows(prepared).filter(pc.equal(rows(prepared)["split"], "train"))
    late = [row for row in trained.to_pylist() if row["click"] and row["clicked_at"] >= cut.moment]
    assert len(late) == result.manifest["immature"]["train"]["click"]["rows"] > 0
    every = rows(prepared).to_pylist()
    started = {}
    for row in every:
        started[row["request_id"]] = min(row["shown_at"], started.get(row["request_id"], row["shown_at"]))
    for row in every:
        before = sum(
            other["click"] and other["ad_id"] == row["ad_id"] and other["clicked_at"] < started[row["request_id"]]
            for other in every
        )
        assert row["counter_ad_clicks"] == before


@pytest.mark.parametrize("append", ["exact", "fast"])
def test_a_day_goes_behind_with_its_clicks(tmp_path, append):
    """Exactly what a rebuild gives, since clicks of a new file may be of old rows; fast, the new rows get theirs."""
    log, told = _world(tmp_path, 5)
    log = log.sort_by("shown_at")
    day = log["shown_at"][-1].as_py().replace(hour=0, minute=0)
    files = {"log": ("shown_at", log), "told": ("when", told)}
    for name, (moment, table) in files.items():
        is_old = pc.less(table[moment], pa.scalar(day, table[moment].type))
        write(table.filter(is_old), tmp_path / name / "1.csv")
        write(table.filter(pc.invert(is_old)), tmp_path / name / "2.csv")
    source = _source(tmp_path, on=["user_id", "ad_id"], within="90 minutes")
    source["impressions"]["files"], source["clicks"]["files"] = str(tmp_path / "log"), str(tmp_path / "told")
    later = {name: (tmp_path / name / "2.csv").read_bytes() for name in files}
    for name in files:
        (tmp_path / name / "2.csv").unlink()
    split = {"method": "time", "test_from": (day - timedelta(days=1)).isoformat()}
    settings = {"source": source, "split": split, "counters": [], "append": append, "output": str(tmp_path / "grown")}
    prepare(tmp_path, **settings)
    for name, content in later.items():
        (tmp_path / name / "2.csv").write_bytes(content)
    grown, result = prepare(tmp_path, **settings)
    whole, _ = prepare(tmp_path, **{**settings, "output": str(tmp_path / "whole")})
    assert result.done == ("built" if append == "exact" else "appended")
    assert (append == "fast") == any("whatever clicks came in later" in line for line in result.manifest["kept"])
    mine, theirs = rows(grown), rows(whole)
    new = pc.greater_equal(theirs["shown_at"], pa.scalar(day, theirs["shown_at"].type))
    for table_of in (lambda table: table.filter(new), *([lambda table: table] if append == "exact" else [])):
        for column in ("price_seen", "click", "clicked_at"):
            assert table_of(mine)[column].to_pylist() == table_of(theirs)[column].to_pylist()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"on": ["session"]}, "impressions.csv: column 'session' is missing"),
        ({"on": ["user_id", "position"]}, "`on` names 'position', which the clicks lack"),
        ({"on": ["request_id"]}, "`on` names 'request_id', which the clicks lack"),
        (
            {"on": ["user_id", "ad_id"], "within": "1 hour", "columns": {}},
            "`within` needs the moment 'clicked_at' of the clicks",
        ),
    ],
)
def test_what_cannot_be_joined_is_refused(tmp_path, keys, message):
    _world(tmp_path, 0)
    with pytest.raises(DataError, match=message):
        prepare(tmp_path, source=_source(tmp_path, **keys), counters=[])


def test_clicks_of_other_impressions_are_refused(tmp_path):
    _, told = _world(tmp_path, 0)
    write(told.set_column(3, "impression_id", pa.array(["x"] * len(told))), tmp_path / "clicks.csv")
    with pytest.raises(DataError, match="none of 80 belongs to an impression. Check `on`"):
        prepare(tmp_path, source=_source(tmp_path, on=["impression_id"]), counters=[])


@pytest.mark.parametrize("keys", [{}, {"on": []}, {"on": ["ad_id"], "within": "soon"}])
def test_keys_that_say_nothing(tmp_path, keys):
    with pytest.raises(ValidationError):
        config(tmp_path, source=_source(tmp_path, **keys))
