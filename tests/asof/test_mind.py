"""History and counters on real impressions: nothing after a moment matters before it, and rows agree with the definition."""

from datetime import UTC, datetime
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from point_in_time_reference import HOUR, assert_same

from adrec.asof.attach import Attach
from adrec.data.examples import run_codes
from adrec.specs import CounterSpec, HistorySpec, usual_counters

MIND = Path(__file__).resolve().parents[2] / "../shared/data/mind5k"
pytestmark = pytest.mark.skipif(not MIND.exists(), reason="the MIND sample is not beside this checkout")


@pytest.fixture(scope="module")
def mind():
    """(ads, impressions in time order)"""
    news = [line.split("\t")[:2] for line in (MIND / "news.tsv").read_text(encoding="utf-8").splitlines()]
    ads = pa.table({"ad_id": [item[0] for item in news], "category": [item[1] for item in news]})
    index = {item[0]: at for at, item in enumerate(news)}
    requests = []
    for line in (MIND / "behaviors.tsv").read_text(encoding="utf-8").splitlines():
        name, user, when, history, shown = line.split("\t")
        moment = datetime.strptime(when, "%m/%d/%Y %I:%M:%S %p").replace(tzinfo=UTC)
        requests.append((int(moment.timestamp()) * 1_000_000, name, user, history.split(), shown.split()))
    requests.sort(key=lambda request: (request[0], request[1]))
    users = {request[2]: None for request in requests}
    users = {user: at for at, user in enumerate(users)}
    rows = [(r[0], r[1], users[r[2]], r[3], index[item[:-2]], int(item[-1])) for r in requests for item in r[4]]
    columns = list(zip(*rows, strict=True))
    table = pa.table(
        {
            "user_index": pa.array(columns[2], pa.int32()),
            "ad_index": pa.array(columns[4], pa.int32()),
            "shown_at": pa.array(columns[0], pa.int64()).cast(pa.timestamp("us", tz="UTC")),
            "request_id": pa.array(columns[1]),
            "click": pa.array(columns[5], pa.int8()),
            "history": pa.array(columns[3], pa.list_(pa.string())),
        }
    )
    return ads, table


def attach(ads, table, work, **options):
    counters = [*usual_counters(["category"]), CounterSpec(by=("ad",), measures=("rate",), half_lives_hours=(1.0, 4.0))]
    people = pc.max(table["user_index"]).as_py() + 1
    users = pa.table({"user_id": [f"u{number}" for number in range(people)]})
    rows = table.append_column("request", pa.array(run_codes(table["request_id"])))
    with duckdb.connect(config={"threads": 1}) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.register("rows", rows.append_column("started", table["shown_at"]))
        connection.execute("CREATE TABLE events AS SELECT * FROM rows")
        past = Attach(
            connection, ads=ads, users=users, history=HistorySpec(**options), counters=counters, state=work,
            partition_rows=20_000,
        )  # fmt: skip
        return pa.Table.from_batches(list(past.run())), past.report


def test_counts_of_the_given_histories(mind, tmp_path):
    ads, table = mind
    out, report = attach(ads, table, tmp_path, max_clicks=1000)
    assert (report.requests, report.rows, report.empty, report.unknown_items) == (5000, 189_359, 107, 0)
    assert out["history_length"].to_pylist() == [len(history) for history in table["history"].to_pylist()]


@pytest.mark.parametrize("day", [11, 13])
def test_later_events_change_nothing(mind, tmp_path, day):
    ads, table = mind
    moment = int(datetime(2019, 11, day, 9, 30, tzinfo=UTC).timestamp()) * 1_000_000
    before = int((table["shown_at"].cast(pa.int64()).to_numpy() < moment).sum())
    whole, _ = attach(ads, table, tmp_path / "whole", source="clicks", max_skipped=5)
    alone, _ = attach(ads, table.slice(0, before), tmp_path / "alone", source="clicks", max_skipped=5)
    assert_same(whole.slice(0, before), alone)


def test_rows_agree_with_the_definition(mind, tmp_path):
    ads, table = mind
    out, _ = attach(ads, table, tmp_path, source="clicks")
    time = table["shown_at"].cast(pa.int64()).to_numpy()
    ad, user, click = (table[name].to_numpy() for name in ("ad_index", "user_index", "click"))
    category = ads["category"].combine_chunks().dictionary_encode().indices.to_numpy()[ad]
    for row in np.random.default_rng(0).choice(len(time), 150, replace=False):
        earlier = time < time[row]
        same_ad, same_user = earlier & (ad == ad[row]), earlier & (user == user[row])
        pair = same_user & (category == category[row])
        overall = (click[earlier].sum() + 1) / (earlier.sum() + 20)
        fade = 2.0 ** (-(time[row] - time[same_ad]) / HOUR / 4)
        expected = {
            "counter_ad_clicks": np.log1p(click[same_ad].sum()),
            "counter_user_x_ad_impressions": np.log1p((same_ad & same_user).sum()),
            "counter_user_x_category_rate": (click[pair].sum() + 20 * overall) / (pair.sum() + 20),
            "counter_ad_rate_4h": (fade[click[same_ad] == 1].sum() + 20 * overall) / (fade.sum() + 20),
        }
        for name, value in expected.items():
            assert out[name][int(row)].as_py() == pytest.approx(value, rel=1e-6), name
        clicked = np.flatnonzero(same_user & (click == 1))
        assert out["history_index"][int(row)].as_py() == ad[clicked][-50:].tolist()
