"""What rank and serve log, with clicks drawn from a planted truth, tells what another policy would have earned."""

import itertools
import json

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import raw_worlds
from worlds import make_bundle, make_world

from adrec.config.evaluation.evaluate import EvaluateConfig
from adrec.config.inference.rank import RankConfig
from adrec.config.inference.serve import EventsConfig, ServeConfig
from adrec.serve.engine import Engine
from adrec.serve.intake.messages import EventIn, RankRequest
from adrec.stages.evaluation import evaluate
from adrec.stages.inference import events, rank
from adrec.terminal import Terminal

QUIET = Terminal(quiet=True)
ADS, SLOTS, REQUESTS = 6, 2, 4000
CHANCE = np.random.default_rng(3).uniform(0.02, 0.5, (2, ADS))
"""Click probability by kind of user and ad; half of it in the second slot."""
LOGGING = {"top_n": SLOTS, "rules": {"clicked": "keep"}, "exploration": {"method": "epsilon", "epsilon": 0.7}}
OTHER = {"top_n": SLOTS, "rules": {"clicked": "keep"}, "value": {"kind": "revenue"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A bundle, a catalogue of six ads with bids, and requests of users whose kind is odd or even."""
    made = tmp_path_factory.mktemp("cycle")
    make_world(made / "prepared", users=40, requests=300)
    make_bundle(made, "model.user.max_history=20")
    ads = pq.read_table(made / "prepared" / "ads.parquet").slice(0, ADS)
    bids = pa.array(np.random.default_rng(1).uniform(0.5, 2, ADS))
    ads = ads.select(["ad_id", "title", "category"]).append_column("bid", bids)
    pq.write_table(ads, made / "ads.parquet")
    number, rng = np.arange(REQUESTS), np.random.default_rng(2)
    requests = {
        "request_id": [f"r{n}" for n in number], "user_id": [f"u{n % 1000}" for n in number],
        "shown_at": pa.array(1_750_000_000_000_000 + number * 60_000_000, pa.timestamp("us", "UTC")),
        "history": [[f"a{ad}" for ad in rng.integers(0, 60, 4)] for _ in number],
    }  # fmt: skip
    pq.write_table(pa.table(requests), made / "requests.parquet")
    return made


def true_chance(lists):
    """(N,) click probability of each row of lists: `user_id`, `ad_id` and `rank`."""
    kind, ad = (lists[name].str.slice(1).cast(pl.Int64).to_numpy() for name in ("user_id", "ad_id"))
    places = {int(name[1:]): place for place, name in enumerate(sorted(set(lists["ad_id"])))}
    assert len(places) <= ADS
    return CHANCE[kind % 2, np.array([places[one] for one in ad])] / lists["rank"].to_numpy()


def ranked(folder, name, policy, seed):
    config = {
        "bundle": str(folder / "bundle"), "ads": str(folder / "ads.parquet"), "requests": str(folder / "requests.parquet"),
        "output": str(folder / f"{name}.parquet"), "policies": {"default": policy}, "seed": seed,
    }  # fmt: skip
    rank.run(RankConfig.model_validate(config), QUIET)
    return pl.read_parquet(folder / f"{name}.parquet")


def judged(scored, policy, output, **settings):
    config = EvaluateConfig(
        scored=scored, output=output, report=False, off_policy={"policy": policy, **settings}, bootstrap={"replicates": 300}
    )
    evaluate.run(config, QUIET)
    return json.loads((output / "metrics.json").read_text())["off_policy"]


def check(found, truth, logged):
    assert found["refused"] == "" and found["propensity"] == {"column": "propensity_given_above", "is": "given_above"}
    for name in ("ips", "snips"):
        estimate = found["estimates"][name]
        assert estimate["low"] <= truth <= estimate["high"], (name, estimate, truth)
    assert abs(truth - logged) > 0.02  # another question than how the log did


def test_ranked_lists_with_clicks_tell_another_policys_rate(folder, tmp_path):
    shown, other = ranked(folder, "shown", LOGGING, 7), ranked(folder, "other", OTHER, 8)
    click = np.random.default_rng(0).random(len(shown)) < true_chance(shown)
    pq.write_table(shown.with_columns(click=pl.Series(click.astype(np.int8))).to_arrow(), tmp_path / "log.parquet")
    source = {
        "format": "tables", "ads": {"files": str(folder / "ads.parquet")},
        "impressions": {"files": str(tmp_path / "log.parquet"), "columns": {"position": "rank"}},
    }  # fmt: skip
    split = {"method": "time", "valid_fraction": 0.02, "test_fraction": 0.93}
    prepared, _ = raw_worlds.prepare(tmp_path, source=source, counters=[], features={}, split=split)
    assert "propensity_given_above" in prepared.columns and "propensity" not in prepared.columns
    log = tmp_path / "prepared" / "impressions" / "test"
    requests = pl.read_parquet(log / "*.parquet")["request_id"].unique()
    assert len(requests) > 0.9 * REQUESTS
    found = judged(log, folder / "other.parquet", tmp_path / "out")
    check(found, true_chance(other.filter(pl.col("request_id").is_in(requests))).mean(), click.mean())


def test_the_servers_events_tell_another_policys_rate(folder, tmp_path, monkeypatch):
    fresh, draws = np.random.default_rng, itertools.count(100)
    monkeypatch.setattr(np.random, "default_rng", lambda seed=None: fresh(next(draws) if seed is None else seed))

    def lists_of(policy, store):
        config = {
            "bundle": str(folder / "bundle"), "ads": str(folder / "ads.parquet"), "store": str(store),
            "policies": {"default": policy}, "device": "cpu",
        }  # fmt: skip
        engine = Engine(ServeConfig.model_validate(config))
        history = pl.read_parquet(folder / "requests.parquet")["history"].to_list()
        users = [{"user_id": f"u{n}", "history": history[n]} for n in range(REQUESTS)]
        answer = engine.rank([RankRequest(requests=users[start : start + 1000]) for start in range(0, REQUESTS, 1000)])
        return engine, [one for some in answer for one in some["lists"]]

    engine, shown = lists_of(LOGGING, tmp_path / "store.sqlite")
    _, other = lists_of(OTHER, tmp_path / "other.sqlite")
    rows = pl.DataFrame(
        [{"user_id": one["user_id"], "request_id": one["request_id"], **ad} for one in shown for ad in one["ads"]]
    )
    click = fresh(0).random(len(rows)) < true_chance(rows)
    told = [
        {
            "kind": kind, "user_id": row["user_id"], "ad_id": row["ad_id"], "request_id": row["request_id"],
            "position": row["rank"], "score": row["score"], "propensity_given_above": row["propensity_given_above"],
        }
        for row, clicked in zip(rows.to_dicts(), click, strict=True) for kind in ("impression", "click")[: 1 + clicked]
    ]  # fmt: skip
    assert engine.record([EventIn.model_validate(event) for event in told]).recorded == len(told)
    engine.store.close()
    events.run(EventsConfig(store=tmp_path / "store.sqlite", output=tmp_path / "served.parquet"), QUIET)

    request_of = {one["user_id"]: one["request_id"] for one in shown}
    lists = pl.DataFrame(
        [
            {**ad, "user_id": one["user_id"], "request_id": request_of[one["user_id"]], "policy": one["policy"]}
            for one in other for ad in one["ads"]
        ]
    )  # fmt: skip
    pq.write_table(lists.to_arrow(), tmp_path / "lists.parquet")
    found = judged(tmp_path / "served.parquet", tmp_path / "lists.parquet", tmp_path / "out")
    assert len(found["estimates"]) == 7
    check(found, true_chance(lists).mean(), click.mean())
