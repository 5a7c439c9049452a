"""A day's append: exact ones give what a rebuild gives, fast ones keep what they say they keep, and neither reads old rows."""

from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from raw_worlds import DAY, START, prepare, rows, tables, write

from adrec.data.prepared import open_prepared
from adrec.errors import DataError
from adrec.prepare.output.leaks import leaking_features
from adrec.prepare.staging.validate import stage_table

USERS_SPLIT = {"method": "user", "test_fraction": 0.4}


class Days:
    """A log that comes day by day, with tables of ads and users that may change in between."""

    def __init__(self, folder, seed=0, **sizes):
        self.folder, self.made = folder, tables(seed, **sizes)
        self.day = -1
        self.write("ads", self.made["ads"])
        self.write("users", self.made["users"])
        self.source = {
            "format": "tables",
            "ads": {"files": str(folder / "ads.parquet")},
            "users": {"files": str(folder / "users.parquet")},
            "impressions": {"files": str(folder / "log")},
        }

    def write(self, name, table):
        write(table, self.folder / f"{name}.parquet")

    def log_of(self, day):
        log = self.made["impressions"]
        moments = log["shown_at"].cast(pa.int64()).to_numpy() - START.astype(np.int64)
        return log.filter(pa.array(moments // DAY == day))

    def next(self, log=None):
        self.day += 1
        write(self.log_of(self.day) if log is None else log, self.folder / "log" / f"day={self.day}.parquet")

    def prepare(self, output="prepared", **changes):
        return prepare(self.folder, source=self.source, output=str(self.folder / output), **changes)

    def rebuilt(self, **changes):
        return self.prepare(f"rebuilt{self.day}", **changes)[0]


def known(prepared):
    """What rows know, with ids in place of indices."""
    table, ads = rows(prepared), prepared.ads()["ad_id"].to_pylist()
    named = pa.array([[ads[index] for index in history] for history in table["history_index"].to_pylist()])
    counters = [column for column in table.column_names if column.startswith("counter_")]
    columns = ["row_id", "ad_id", "user_id", "shown_at", *counters, "split", "history_length"]
    return table.select(columns).append_column("history", named)


def inodes(prepared):
    return {file.relative_to(prepared.path): file.stat().st_ino for file in prepared.path.glob("impressions/*/*.parquet")}


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_changed_bids_and_new_users_are_appended(tmp_path, mode):
    days = Days(tmp_path, requests=90)
    days.write("users", days.made["users"].slice(0, 6))
    days.write("ads", days.made["ads"].append_column("bid", pa.array(np.arange(15.0))))
    # Who is listed later comes later, and nobody is in the log alone: else users would be numbered anew.
    listed = [days.made["users"]["user_id"].slice(0, count).combine_chunks() for count in (6, 6, 10, 10)]
    logs = [days.log_of(day).filter(pc.is_in(days.log_of(day)["user_id"], listed[day])) for day in range(4)]
    days.made["impressions"] = pa.concat_tables(logs)
    days.next()
    days.next()
    before, _ = days.prepare(split=USERS_SPLIT, append=mode)
    shards = inodes(before)
    days.write("users", days.made["users"])
    days.write("ads", days.made["ads"].append_column("bid", pa.array(np.arange(15.0) * 2)))
    days.next()
    found, result = days.prepare(split=USERS_SPLIT, append=mode)
    assert (result.done, result.why) == ("appended", "")
    assert inodes(found).items() >= shards.items(), "earlier shards are linked"
    rebuilt = days.rebuilt(split=USERS_SPLIT)
    assert rows(found).equals(rows(rebuilt))
    assert found.ads().equals(rebuilt.ads())
    assert found.users().equals(rebuilt.users())
    kept = [] if mode == "exact" else ["vocabularies and scalers (append_fitted)"]
    assert result.manifest["kept"] == kept
    assert (found.path / "features.json").read_bytes() == (
        (rebuilt if mode == "exact" else found).path / "features.json"
    ).read_bytes()


def test_new_ads_in_the_middle_are_built_anew_or_go_behind(tmp_path):
    days = Days(tmp_path, requests=90)
    early = pc.invert(pc.is_in(days.made["impressions"]["ad_id"], pa.array(["a3", "a7"])))
    late = pa.array(days.made["impressions"]["shown_at"].cast(pa.int64()).to_numpy() - START.astype(np.int64) >= 2 * DAY)
    days.made["impressions"] = days.made["impressions"].filter(pc.or_(early, late))
    without = days.made["ads"].filter(pc.invert(pc.is_in(days.made["ads"]["ad_id"], pa.array(["a3", "a7"]))))
    days.write("ads", without)
    days.next()
    days.next()
    for output, mode in (("slow", "exact"), ("quick", "fast")):
        days.prepare(output, split=USERS_SPLIT, append=mode)
    days.write("ads", days.made["ads"])
    days.next()
    slow, result = days.prepare("slow", split=USERS_SPLIT, append="exact")
    assert (result.done, result.why) == ("built", "ads were put before earlier ones")
    quick, result = days.prepare("quick", split=USERS_SPLIT, append="fast")
    assert result.done == "appended"
    assert "the numbers of the ads; new ones go behind, whatever their place in the table" in result.manifest["kept"]
    assert "Kept from before: vocabularies and scalers (append_fitted)." in list(result.render())
    assert quick.ads()["ad_id"].to_pylist() == [*without["ad_id"].to_pylist(), "a3", "a7"]
    assert known(quick).equals(known(slow))
    again, result = days.prepare("quick", split=USERS_SPLIT, append="exact")
    assert (result.done, result.why) == ("built", "fast appends kept what a rebuild gives otherwise")
    assert rows(again).equals(rows(slow))


def test_ads_that_have_gone_stay_in_a_fast_append(tmp_path):
    days = Days(tmp_path, requests=90)
    days.next()
    days.next()
    before = days.prepare(split=USERS_SPLIT, append="fast")[0].ads()
    days.write("ads", days.made["ads"].slice(1))
    days.next()
    found, result = days.prepare(split=USERS_SPLIT, append="fast")
    assert result.done == "appended"
    assert found.ads().equals(before)
    assert "ads that the table no longer has, as they were" in result.manifest["kept"]


def test_a_category_that_changes_holds_for_new_rows_of_a_fast_append(tmp_path):
    days = Days(tmp_path, requests=90)
    days.next()
    days.next()
    before = rows(days.prepare(split=USERS_SPLIT, append="fast")[0])
    days.write("ads", days.made["ads"].set_column(2, "category", pa.array(["cars"] * 15)))
    days.next()
    found, result = days.prepare(split=USERS_SPLIT, append="fast")
    assert "counters of earlier rows, by the 'category' that their ads had then" in result.manifest["kept"]
    first = len(before)
    assert rows(found).slice(0, first).equals(before)
    new = rows(found).slice(first)
    counts = new["counter_user_x_category_impressions"].to_pylist()
    seen = {}
    for user, moment, count in zip(new["user_id"].to_pylist(), new["shown_at"].to_pylist(), counts, strict=True):
        assert count == sum(at < moment for at in seen.get(user, [])), "nothing was counted by 'cars' before that day"
        seen.setdefault(user, []).append(moment)


def test_a_request_that_goes_on_the_next_day(tmp_path):
    days = Days(tmp_path, requests=60)
    days.next()
    for output in ("slow", "quick"):
        days.prepare(output, split=USERS_SPLIT, append="fast" if output == "quick" else "exact")
    log = days.log_of(1)
    last = days.log_of(0)["request_id"][-1].as_py(), days.log_of(0)["user_id"][-1].as_py()
    log = log.set_column(0, "request_id", pa.array([last[0], *log["request_id"].to_pylist()[1:]]))
    days.next(log.set_column(1, "user_id", pa.array([last[1], *log["user_id"].to_pylist()[1:]])))
    _, slow = days.prepare("slow", split=USERS_SPLIT)
    assert (slow.done, slow.why) == ("built", "a request goes on in the new files")
    _, quick = days.prepare("quick", split=USERS_SPLIT, append="fast")
    assert quick.done == "appended"
    assert "requests that go on in new files, whose new rows are a request of their own" in quick.manifest["kept"]


@pytest.mark.parametrize("split", [{"method": "time"}, {"method": "random"}])
def test_shares_of_a_growing_log_keep_their_bounds_in_a_fast_append(tmp_path, split):
    days = Days(tmp_path, requests=120)
    days.next()
    days.next()
    before, cuts = rows(days.prepare(split=split, append="fast")[0]), open_prepared(tmp_path / "prepared").manifest["cuts"]
    days.next()
    found, result = days.prepare(split=split, append="fast")
    assert result.done == "appended"
    first = len(before)
    assert rows(found).slice(0, first).equals(before)
    if split["method"] == "time":
        assert set(rows(found).slice(first)["split"].to_pylist()) == {"test"}
        assert found.manifest["cuts"] == cuts
        assert (
            "the moments at which validation and test begin; shares of the rows are no longer those of the config"
            in (result.manifest["kept"])
        )


def test_never_builds_everything_and_refit_fits_again(tmp_path):
    days = Days(tmp_path, requests=90)
    tokenizer = {"kind": "wordpiece", "vocab_size": 200}
    days.next()
    days.next()
    for output in ("never", "kept", "refit"):
        days.prepare(output, split=USERS_SPLIT, tokenizer=tokenizer, append="never" if output == "never" else "fast")
    new = pa.table({"ad_id": ["a99"], "title": ["Zebra quartz voyage, zebra quartz"], "category": ["news"]})
    days.write("ads", pa.concat_tables([days.made["ads"], new]))
    days.next()
    never, result = days.prepare("never", split=USERS_SPLIT, tokenizer=tokenizer, append="never")
    assert (result.done, result.why) == ("built", "append is set to never")
    kept, result = days.prepare("kept", split=USERS_SPLIT, tokenizer=tokenizer, append="fast")
    assert "the tokenizer (append_fitted)" in result.manifest["kept"]
    refit, result = days.prepare("refit", split=USERS_SPLIT, tokenizer=tokenizer, append="fast", append_fitted="refit")
    assert result.manifest["kept"] == []
    for file in ("tokenizer/tokenizer.json", "features.json"):
        assert (refit.path / file).read_bytes() == (never.path / file).read_bytes()
        assert (kept.path / file).read_bytes() != (never.path / file).read_bytes()


@pytest.mark.parametrize("valid_last", ["12 hours", None])
def test_a_rolling_split_moves_with_the_log(tmp_path, valid_last, monkeypatch):
    monkeypatch.setattr("adrec.stages.data.preprocess.ROWS_PER_SHARD", 25)
    days = Days(tmp_path, requests=150)
    log = days.made["impressions"]
    rng = np.random.default_rng(0)
    late = log["shown_at"].cast(pa.int64()).to_numpy() + rng.integers(0, DAY, log.num_rows)
    happened = pc.and_(pc.equal(log["click"], 1), pa.array(rng.random(log.num_rows) < 0.5))
    moments = pc.if_else(happened, pa.array(late).cast(log["shown_at"].type), pa.scalar(None, log["shown_at"].type))
    queries = pa.array([f"query {number}" for number in np.sort(rng.integers(0, 40, log.num_rows))])
    days.made["impressions"] = (
        log.append_column("conversion", happened.cast(pa.int8()))
        .append_column("converted_at", moments)
        .append_column("query", queries)
    )
    changes = {
        "split": {"method": "rolling", "test_last": "1 day", "valid_last": valid_last},
        "history": {"converted_at": "converted_at"},
        "tokenizer": {"kind": "wordpiece", "vocab_size": 200},
    }
    days.next()
    days.next()
    days.prepare(**changes)
    for _ in range(2):
        days.next()
        trained = {file: file.stat().st_ino for file in (tmp_path / "prepared" / "impressions" / "train").iterdir()}
        found, result = days.prepare(**changes)
        assert (result.done, result.why) == ("appended", "")
        assert all(file.stat().st_ino == inode for file, inode in trained.items()), "training shards are linked"
        rebuilt = days.rebuilt(**changes)
        assert rows(found).equals(rows(rebuilt))
        assert found.corpus().equals(rebuilt.corpus())
        for file in ("features.json", "tokenizer/tokenizer.json"):
            assert (found.path / file).read_bytes() == (rebuilt.path / file).read_bytes()
        for key in ("rows", "requests", "clicks", "cuts", "immature", "history"):
            assert found.manifest[key] == rebuilt.manifest[key], key
        for split, counts in found.manifest["splits"].items():
            assert {**counts, "shards": 0} == {**rebuilt.manifest["splits"][split], "shards": 0}
        assert found.manifest["cuts"]["test"].startswith(f"2026-03-0{days.day + 1}T00:00")
        assert found.manifest["immature"]["train"]["conversion"]["rows"] > 0


def test_a_span_that_is_none_and_a_log_that_is_too_short_are_refused(tmp_path):
    days = Days(tmp_path)
    days.next()
    with pytest.raises(DataError, match=r"the train part has no rows.*split.test_last and split.valid_last"):
        days.prepare(split={"method": "rolling"})
    with pytest.raises(ValueError, match=r"'1 moon' is no span of time. Write `1 day`"):
        days.prepare(split={"method": "rolling", "test_last": "1 moon"})


def catalogue(prepared):
    """Inodes of the files beside the impressions."""
    return {name: (prepared.path / f"{name}.parquet").stat().st_ino for name in ("ads", "users")}


def halves(log):
    """A day's rows before and after noon."""
    is_early = pa.array(log["shown_at"].cast(pa.int64()).to_numpy() % DAY < DAY // 2)
    return log.filter(is_early), log.filter(pc.invert(is_early))


def told(manifest):
    """What a manifest says of the data, not of the run."""
    said = (
        "source_rows",
        "unlisted_users",
        "rejected",
        "notes",
        "findings",
        "ads",
        "users",
        "texts",
        "vocabulary",
        "learnt_texts",
    )
    return {key: manifest[key] for key in said}


@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("new_people", [False, True], ids=["known people", "new people"])
def test_tables_whose_files_are_as_they_were_are_neither_staged_nor_written(tmp_path, monkeypatch, mode, new_people):
    days = Days(tmp_path, requests=120)
    interests = pa.array([["running", "跑鞋"], ["news"], None, ["food", "running"], []] * 2)
    users = days.made["users"].append_column("interests", interests)
    days.write("users", users.append_column("since", pa.array([datetime(2025, 1, day + 1) for day in range(10)])))
    days.write("ads", days.made["ads"].append_column("starts_at", pa.array([datetime(2026, 3, 1 + n % 4) for n in range(15)])))
    in_order = [f"u{number}" for number in range(12)]
    if new_people:  # the first of the log's own users on the second day, the other on the third
        log = days.made["impressions"]
        since = {"u10": 1, "u11": 2.5}
        day = (log["shown_at"].cast(pa.int64()).to_numpy() - START.astype(np.int64)) / DAY
        kept = [since.get(user, 0) <= at for user, at in zip(log["user_id"].to_pylist(), day, strict=True)]
        days.made["impressions"] = log.filter(pa.array(kept))
    else:
        days.made["impressions"] = days.made["impressions"].filter(
            pc.is_in(days.made["impressions"]["user_id"], users["user_id"])
        )
    settings = {
        "split": {"method": "time", "valid_from": "2026-03-02", "test_from": "2026-03-03"},
        "tokenizer": {"kind": "wordpiece", "vocab_size": 200}, "text": {"user_template": "{interests}"},
        "user_columns": ["since"], "append": mode,
    }  # fmt: skip
    days.next()
    days.next()
    morning, afternoon = halves(days.log_of(2))
    days.next(morning)
    before, _ = days.prepare(**settings)
    linked, staged = catalogue(before), []

    def noted(connection, raw, spec, target, **more):
        staged.append(target)
        return stage_table(connection, raw, spec, target, **more)

    monkeypatch.setattr("adrec.prepare.stager.stage_table", noted)
    days.next(afternoon)
    days.next(days.log_of(3))
    found, result = days.prepare(**settings)
    assert (result.done, result.why, staged) == ("appended", "", ["staged_impressions"])
    rebuilt = days.rebuilt(**settings)
    same = {"ads"} if new_people else {"ads", "users"}
    assert {name for name, inode in catalogue(found).items() if inode == linked[name]} == same
    assert rows(found).equals(rows(rebuilt))
    assert found.ads().equals(rebuilt.ads())
    assert found.users().equals(rebuilt.users())
    assert found.users()["user_id"].to_pylist() == (in_order if new_people else in_order[:10])
    assert found.corpus().equals(rebuilt.corpus())
    assert found.corpus()["later"].to_pylist().count(True) > 0
    if mode == "exact":
        assert told(found.manifest) == told(rebuilt.manifest)
    again, result = days.prepare(**settings)
    assert result.done == "unchanged"


def test_tables_with_faults_and_words_for_nothing_are_read_and_told_again(tmp_path):
    days = Days(tmp_path, requests=90)
    log = days.made["impressions"]
    days.made["impressions"] = log.filter(pc.is_in(log["user_id"], pa.array([f"u{number}" for number in range(9)])))
    users = days.made["users"].set_column(1, "age", pa.array([str(number) for number in range(20, 29)] + ["none of it"]))
    days.write("users", users)
    days.write("ads", days.made["ads"].set_column(2, "category", pa.array(["NULL"] + ["news"] * 14)))
    settings = {"split": USERS_SPLIT, "validation": {"max_rejected_fraction": 0.5}}
    days.next()
    days.next()
    days.prepare(**settings)
    days.next()
    found, result = days.prepare(**settings)
    assert (result.done, result.why) == ("appended", "")
    rebuilt = days.rebuilt(**settings)
    assert told(found.manifest) == told(rebuilt.manifest)
    assert found.manifest["source_rows"]["users"] == {"rows": 10, "rejected": 1}
    assert "'NULL' is read as a missing value" in found.manifest["notes"][0]
    assert pq.read_table(found.path / "rejected.parquet").equals(pq.read_table(rebuilt.path / "rejected.parquet"))


def test_leaks_are_looked_for_again_where_training_rows_or_the_catalogue_changed(tmp_path, monkeypatch):
    days = Days(tmp_path, requests=400)
    log = days.made["impressions"]
    days.made["impressions"] = log.append_column("paid", pc.if_else(pc.equal(log["click"], 1), 1.0, 0.0))
    listed = pc.is_in(log["user_id"], days.made["users"]["user_id"])
    days.made["impressions"] = days.made["impressions"].filter(listed)
    settings = {
        "split": {"method": "time", "valid_from": "2026-03-02", "test_from": "2026-03-03"},
        "features": {"impressions": {"numeric": ["paid"]}},
    }
    days.next()
    days.next()
    morning, afternoon = halves(days.log_of(2))
    days.next(morning)
    days.prepare(**settings)
    looked = []
    monkeypatch.setattr(
        "adrec.stages.data.preprocess.leaking_features", lambda *given: looked.append(days.day) or leaking_features(*given)
    )
    days.next(afternoon)
    same = days.prepare(**settings)[0].manifest["findings"]
    days.write("ads", days.made["ads"].append_column("bid", pa.array(np.arange(15.0))))
    days.next(days.log_of(3))
    found, result = days.prepare(**settings)
    assert (result.done, looked) == ("appended", [days.day])
    assert same == found.manifest["findings"]
    assert [finding["column"] for finding in same if finding["kind"] == "leak"] == ["paid"]
