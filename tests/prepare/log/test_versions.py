"""Versions of ads and users: which row of a key counts, what is refused, and what an append does."""

from datetime import UTC

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from raw_worlds import DAY, START, prepare, rows, tables, write

from adrec.asof.versions import Versions
from adrec.data.disk.engine import open_memory_engine
from adrec.errors import ConfigError, DataError
from adrec.prepare.log.versions import join_versions
from adrec.schema import ADS

SPLIT = {"method": "time", "valid_from": "2026-03-03", "test_from": "2026-03-04"}
FEATURES = {"impressions": {"numeric": ["counter_*"]}, "ads": {"numeric": ["price"]}, "users": {"numeric": ["age"]}}


def moment(days):
    return (START + np.int64(days * DAY)).item().replace(tzinfo=UTC)


def versioned(made, days=(None, 1.5, 3.5)):
    """Each ad with a price, title, category and bid of its own from each of the moments on."""
    count = len(made["ads"])
    parts = []
    for number, since in enumerate(days):
        ads = made["ads"].set_column(1, "title", pa.array([f"Title {number} of {ad}" for ad in range(count)]))
        ads = ads.append_column("price", pa.array(np.arange(count) + 100.0 * number))
        ads = ads.append_column("bid", pa.array(np.full(count, float(number))))
        known = None if since is None else moment(since)
        parts.append(ads.append_column("known_from", pa.array([known] * count, pa.timestamp("us", "UTC"))))
    made["ads"] = pa.concat_tables(parts)
    return made


def put(folder, made):
    for name, table in made.items():
        write(table, folder / f"{name}.parquet")


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_the_catalogue_is_as_known_when_training_ends_and_bids_are_the_latest(tmp_path, suffix):
    made = versioned(tables(0, requests=150))
    put(tmp_path, made)
    write(made["ads"], tmp_path / f"ads.{suffix}")
    source = {
        "format": "tables",
        **{name: {"files": str(tmp_path / f"{name}.parquet")} for name in ("users", "impressions")},
        "ads": {"files": str(tmp_path / f"ads.{suffix}")},
    }
    prepared, _ = prepare(tmp_path, split=SPLIT, features=FEATURES, source=source)
    ads = prepared.ads()
    assert ads["title"].to_pylist() == [f"Title 1 of {ad}" for ad in range(len(ads))]
    assert set(ads["bid"].to_pylist()) == {2.0}
    assert "known_from" not in ads.column_names
    table = rows(prepared)
    days = (table["shown_at"].cast(pa.int64()).to_numpy() - START.astype(np.int64)) / DAY
    expected = table["ad_index"].to_numpy() + 100 * ((days >= 1.5).astype(int) + (days >= 3.5))
    assert table["ad@price"].to_pylist() == expected.tolist()


def test_two_rows_of_one_moment_are_refused(tmp_path):
    made = versioned(tables(0))
    made["ads"] = pa.concat_tables([made["ads"], made["ads"].slice(15, 1)])
    put(tmp_path, made)
    with pytest.raises(DataError, match=r"ads.parquet: column 'ad_id', row 16: 'a0' occurs again in row 46 .*same known_from"):
        prepare(tmp_path)
    made["ads"] = made["ads"].drop_columns(["known_from"])
    put(tmp_path, made)
    with pytest.raises(DataError, match=r"'a0' occurs again .* say in a column 'known_from' since when each row holds"):
        prepare(tmp_path)


def test_names_of_as_of_columns_are_reserved(tmp_path):
    put(tmp_path, tables(0))
    with pytest.raises(ConfigError, match="'ad@price' is made by preprocess itself"):
        prepare(tmp_path, keep=["ad@price"])


def test_a_column_made_k_anonymous_has_one_value(tmp_path):
    made = versioned(tables(0, requests=150))
    users = made["users"].append_column("band", pa.array(["young"] * len(made["users"])))
    later = users.set_column(1, "age", pa.array(np.arange(len(users)) + 100)).set_column(
        2, "band", pa.array(["old"] * len(users))
    )
    since = [pa.array([at] * len(users), pa.timestamp("us", "UTC")) for at in (None, moment(1))]
    made["users"] = pa.concat_tables(
        [table.append_column("known_from", at) for table, at in zip((users, later), since, strict=True)]
    )
    put(tmp_path, made)
    features = FEATURES | {"users": {"numeric": ["age"], "categorical": ["band"]}}
    privacy = {"k_anonymity": {"columns": ["band"], "k": 2, "enforce": "generalise"}}
    prepared, _ = prepare(tmp_path, features=features, privacy=privacy)
    table = rows(prepared)
    assert "user@age" in table.column_names and "user@band" not in table.column_names
    assert prepared.features()["users"].columns == ["band"]
    listed = pc.is_in(table["user_id"], users["user_id"])
    assert table.filter(pc.invert(listed))["user@age"].null_count == pc.sum(pc.invert(listed)).as_py()  # nothing known of them


def test_texts_of_ads_known_only_after_the_cut_are_later(tmp_path):
    made = tables(0, requests=150)
    ads = made["ads"]
    new = ads.slice(0, 1).set_column(0, "ad_id", pa.array(["new"])).set_column(1, "title", pa.array(["Of tomorrow"]))
    since = pa.array([None] * len(ads) + [moment(3)], pa.timestamp("us", "UTC"))
    made["ads"] = pa.concat_tables([ads, new]).append_column("known_from", since)
    put(tmp_path, made)
    prepared, _ = prepare(tmp_path, split=SPLIT)
    corpus = prepared.corpus()
    assert corpus.filter(corpus["later"])["text"].to_pylist()[0].startswith("Of tomorrow")


def test_a_version_of_tomorrow_is_appended_and_one_of_yesterday_builds_anew(tmp_path):
    made = versioned(tables(0, requests=150))
    log = made["impressions"]
    for day in range(4):
        of_day = pc.and_(pc.greater_equal(log["shown_at"], moment(day)), pc.less(log["shown_at"], moment(day + 1)))
        folder = "impressions" if day < 3 else "waiting"
        write(log.filter(of_day), tmp_path / folder / f"day-{day}.parquet")
    source = {
        "format": "tables",
        **{name: {"files": str(tmp_path / f"{name}.parquet")} for name in ("ads", "users")},
        "impressions": {"files": str(tmp_path / "impressions" / "*.parquet")},
    }
    split = {"method": "time", "valid_from": "2026-03-02", "test_from": "2026-03-03"}
    changes = {"split": split, "features": FEATURES | {"ads": {"numeric": ["price"]}}, "source": source}
    known = pc.fill_null(pc.less(made["ads"]["known_from"], moment(3)), True)
    money = made["ads"].drop_columns(["bid"])
    write(money.filter(known), tmp_path / "ads.parquet")
    write(made["users"], tmp_path / "users.parquet")
    prepare(tmp_path, **changes)
    (tmp_path / "waiting" / "day-3.parquet").rename(tmp_path / "impressions" / "day-3.parquet")
    write(money, tmp_path / "ads.parquet")
    prepared, result = prepare(tmp_path, **changes)
    assert result.done == "appended", result.why
    fresh, _ = prepare(tmp_path, output=str(tmp_path / "fresh"), **changes)
    assert rows(prepared).equals(rows(fresh))
    assert pq.read_table(prepared.path / "ad_versions.parquet").equals(pq.read_table(fresh.path / "ad_versions.parquet"))
    assert pc.max(rows(prepared)["ad@price"]).as_py() >= 200

    (tmp_path / "impressions" / "day-3.parquet").rename(tmp_path / "waiting" / "day-3.parquet")
    prepare(tmp_path, output=str(tmp_path / "again"), **changes)
    (tmp_path / "waiting" / "day-3.parquet").rename(tmp_path / "impressions" / "day-3.parquet")
    moved = money.set_column(money.column_names.index("price"), "price", pc.add(money["price"], 1.0))
    write(moved, tmp_path / "ads.parquet")
    _, result = prepare(tmp_path, output=str(tmp_path / "again"), **changes)
    assert result.done == "built"


@pytest.mark.parametrize("seed", range(3))
def test_the_engine_and_the_arrays_choose_the_same_version(tmp_path, seed):
    """Ties in time, keys without versions, versions that always held: one answer in both."""
    rng = np.random.default_rng(seed)
    count = 400
    index = rng.integers(0, 30, count)
    since = rng.integers(0, 20, count)
    _, first = np.unique(np.stack([index, since]), axis=1, return_index=True)
    index, since = index[first], since[first]
    order = np.lexsort((since, index))
    index, since = index[order], since[order]
    always = (np.diff(index, prepend=-1) != 0) & (rng.random(len(index)) < 0.5)
    versions = pa.table(
        {
            "ad_index": pa.array(index, pa.int32()),
            "known_from": pa.array(since * 1_000_000, mask=always).cast(pa.timestamp("us")),
            "price": pa.array(rng.normal(size=len(index)), mask=rng.random(len(index)) < 0.2),
            "tags": pa.array([[str(number)] for number in rng.integers(0, 9, len(index))]),
        }
    )
    events = pa.table(
        {
            "ad_index": pa.array(rng.integers(0, 40, 1000), pa.int32()),
            "started": pa.array(np.sort(rng.integers(-1, 22, 1000)) * 1_000_000).cast(pa.timestamp("us")),
        }
    )
    with open_memory_engine() as connection:
        for name, table in (("ad_versions", versions), ("raw_events", events)):
            connection.register(f"{name}_rows", table)
            connection.execute(f"CREATE TABLE {name.removeprefix('raw_')} AS SELECT * FROM {name}_rows")
        join_versions(connection, {"ads": ["price", "tags"]})
        joined = connection.sql("SELECT * FROM events ORDER BY rowid").to_arrow_table()
    assert joined["started"].to_pylist() == events["started"].to_pylist()
    pq.write_table(versions, tmp_path / "ad_versions.parquet")
    ads = pa.table({"ad_id": [f"a{number}" for number in range(40)]})
    loaded = Versions.load(tmp_path, ADS, ads)
    moments = events["started"].cast(pa.int64()).to_numpy()
    for column in ("price", "tags"):
        found = loaded.column(column, ads, events["ad_index"].to_numpy().astype(np.int64), moments)
        assert found.to_pylist() == joined[f"ad@{column}"].to_pylist()


def test_a_fast_append_gives_the_versions_of_ads_that_moved_their_new_numbers(tmp_path):
    """Ads put before earlier ones go behind them, with their versions; those that have gone keep what they were."""
    made = versioned(tables(0, requests=150))
    log = made["impressions"]
    late = pc.greater_equal(log["shown_at"], moment(3))
    source = {
        "format": "tables",
        **{name: {"files": str(tmp_path / f"{name}.parquet")} for name in ("ads", "users")},
        "impressions": {"files": str(tmp_path / "impressions" / "*.parquet")},
    }
    split = {"method": "time", "valid_from": "2026-03-02", "test_from": "2026-03-03"}
    changes = {"split": split, "features": FEATURES, "source": source, "append": "fast"}
    put(tmp_path, {"ads": made["ads"], "users": made["users"]})
    write(log.filter(pc.invert(late)), tmp_path / "impressions" / "day-0.parquet")
    prepare(tmp_path, **changes)
    new = made["ads"].slice(0, 1).set_column(0, "ad_id", pa.array(["new"]))
    kept = made["ads"].filter(pc.not_equal(made["ads"]["ad_id"], "a3"))
    write(pa.concat_tables([new, kept]), tmp_path / "ads.parquet")
    write(log.filter(late), tmp_path / "impressions" / "day-1.parquet")
    prepared, result = prepare(tmp_path, **changes)
    assert result.done == "appended", result.why
    ads = prepared.ads()
    assert ads["ad_id"].to_pylist() == [*made["ads"]["ad_id"].to_pylist()[:15], "new"]
    assert "Title 0 of 3" in ads["title"].to_pylist()[3]  # of the cut, and there still
    table = rows(prepared)
    days = (table["shown_at"].cast(pa.int64()).to_numpy() - START.astype(np.int64)) / DAY
    expected = table["ad_index"].to_numpy() + 100.0 * ((days >= 1.5).astype(int) + (days >= 3.5))
    other = ~((days >= 3) & (table["ad_index"].to_numpy() == 3))
    assert other.sum() < len(other)
    assert table["ad@price"].filter(pa.array(other)).to_pylist() == expected[other].tolist()
