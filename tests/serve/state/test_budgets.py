"""Even pacing and daily budgets in a server: by its clock, with what events paid."""

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from served import make_bundle, settings_of

from adrec.errors import ConfigError
from adrec.serve.engine import Engine
from adrec.serve.intake.messages import EventIn, RankRequest

DAY = datetime(2030, 5, 1, tzinfo=UTC)
BUDGET = 2.0
USERS = [{"user_id": f"u{number}"} for number in range(12)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("budgets")
    make_bundle(path)
    file = path / "prepared" / "ads.parquet"
    ads = pq.read_table(file).drop_columns(["budget"])
    from_, until = (pa.array([DAY.replace(day=day)] * len(ads), pa.timestamp("us", "UTC")) for day in (1, 11))
    ads = ads.append_column("budget", pa.array(np.full(len(ads), BUDGET)))
    pq.write_table(ads.append_column("starts_at", from_).append_column("ends_at", until), file)
    return path


def engine_of(folder, tmp_path, monkeypatch, **limits):
    """A server whose clock `at` sets."""
    policies = {"default": {"top_n": 8, "value": {"kind": "revenue"}, "limits": limits, "rules": {"clicked": "keep"}}}
    engine = Engine(settings_of(folder, tmp_path / "s.sqlite", policies=policies))

    def at(moment):
        monkeypatch.setattr(engine, "now", lambda: int(moment.timestamp() * 1_000_000))

    return engine, at


def lists(engine):
    [answer] = engine.rank([RankRequest(requests=USERS)])
    assert not isinstance(answer, Exception), answer
    return [ad for one in answer["lists"] for ad in one["ads"]]


def reserved(ads):
    spent = {}
    for ad in ads:
        spent[ad["ad_id"]] = spent.get(ad["ad_id"], 0.0) + ad["price"] * ad["score"]
    return spent


def pay(engine, ads, moment, price):
    ads = sorted(set(ads))
    answer = engine.record([EventIn(user_id="u1", ad_id=ad, kind="click", at=moment, price=price) for ad in ads])
    assert answer.recorded == len(ads)


@pytest.mark.parametrize(("period", "moments"), [("day", [(1, 0.02), (1, 0.5)]), ("total", [(1, 0.2), (6, 0.0)])])
def test_an_even_pace_follows_the_clock(folder, tmp_path, monkeypatch, period, moments):
    """2 % and half of a day; 2 % and half of the ten days that the ads run."""
    engine, at = engine_of(folder, tmp_path, monkeypatch, pacing="even", budget_period=period)
    free, at_any = engine_of(folder, tmp_path / "free", monkeypatch, budget_period=period)
    for (day, share), released in zip(moments, (0.02, 0.5), strict=True):
        moment = datetime.fromtimestamp(DAY.replace(day=day).timestamp() + share * 86_400, UTC)
        at(moment), at_any(moment)
        shown, unpaced = lists(engine), lists(free)
        assert all(spent <= BUDGET * released + 1e-6 for spent in reserved(shown).values())
        assert max(reserved(unpaced).values()) > BUDGET * 0.02, "else the pace would bind nobody"
    pay(engine, [ad["ad_id"] for ad in shown], moment, 0.5 * BUDGET)
    assert not {ad["ad_id"] for ad in shown} & {ad["ad_id"] for ad in lists(engine)}, "half is released, and half is spent"


def test_a_daily_budget_begins_anew_at_midnight_of_its_zone(folder, tmp_path, monkeypatch):
    engine, at = engine_of(folder, tmp_path, monkeypatch, budget_period="day", time_zone="Asia/Shanghai")
    at(DAY.replace(hour=10))
    some = sorted({ad["ad_id"] for ad in lists(engine)})
    pay(engine, some, DAY.replace(hour=9), BUDGET)
    assert not set(some) & {ad["ad_id"] for ad in lists(engine)}
    at(DAY.replace(hour=15, minute=59))
    assert not set(some) & {ad["ad_id"] for ad in lists(engine)}
    at(DAY.replace(hour=16))  # midnight in Shanghai
    assert set(some) & {ad["ad_id"] for ad in lists(engine)}
    again = Engine(engine.config)
    monkeypatch.setattr(again, "now", lambda: int(DAY.replace(hour=15).timestamp() * 1_000_000))
    assert not set(some) & {ad["ad_id"] for ad in lists(again)}, "after a restart too"


def test_policies_share_one_ledger_and_so_one_period(folder, tmp_path):
    policies = {"default": {"limits": {"budget_period": "day"}}, "email": {}}
    with pytest.raises(ConfigError, match=r"limits\.budget_period: all policies need the same one, found day, total"):
        Engine(settings_of(folder, tmp_path / "s.sqlite", policies=policies))
