"""Write the sample: ads.parquet, users.parquet and impressions/part-*.parquet in time order.

The log is made slice by slice of a day, each from its own seed, so memory does not grow with the number of impressions and
the same (impressions, seed) always gives the same rows.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from adrec.sample import catalogue, clicks, creatives, jingles, makers, policy
from adrec.sample.world import (
    DAYS,
    START,
    Ads,
    Floats,
    Integers,
    Users,
    counts,
    flat_phrases,
    identifiers,
    make_ads,
    make_users,
)
from adrec.schema import IMPRESSIONS, TIMESTAMP, TRUE_PROBABILITY

SLICE_ROWS = 100_000
_HOUR = 3_600_000_000
# Requests by hour of the day (UTC): quiet nights, a peak in the evening.
_HOURS = np.array([3, 2, 1, 1, 1, 2, 4, 6, 8, 9, 9, 10, 10, 9, 9, 9, 10, 11, 13, 14, 14, 12, 9, 6], np.float64)
_BINS = 4096

SCHEMA = pa.schema(
    [
        *(
            pa.field(name, IMPRESSIONS[name].type)
            for name in ("request_id", "user_id", "ad_id", "shown_at", "scenario", "query", "position", "propensity")
        ),
        pa.field("click", IMPRESSIONS["click"].type),
        pa.field("conversion", IMPRESSIONS["conversion"].type),
        pa.field("converted_at", TIMESTAMP),
        pa.field("dwell_seconds", IMPRESSIONS["dwell_seconds"].type),
        pa.field(TRUE_PROBABILITY, pa.float64()),
    ]
)


@dataclass(frozen=True)
class SampleSummary:
    """What was written. `oracle_auc` is the AUC of the true click probability against the drawn clicks."""

    ads: int
    users: int
    requests: int
    impressions: int
    clicks: int
    conversions: int
    oracle_auc: float


@dataclass(frozen=True)
class World:
    """Everything hidden: ads, users and effects."""

    ads: Ads
    users: Users
    effects: clicks.Effects
    seed: int
    delays: clicks.Delays = clicks.USUAL


def make_world(
    impressions: int,
    seed: int,
    *,
    looks: bool = False,
    keys: bool = False,
    graph: bool = False,
    delays: clicks.Delays = clicks.USUAL,
) -> World:
    """The world behind a log of `impressions` rows. Equal arguments give equal worlds.

    `looks`: ads are pictures too. `keys`: sounds, too. `graph`: who makes what they sell counts. `delays`: how late
    conversions come.
    """
    ad_count, user_count = counts(impressions)
    advertisers = len(catalogue.categories()) * max(2, round(ad_count / 100))
    effects = clicks.draw_effects(advertisers, _generator(seed, 0))
    ads = make_ads(ad_count, effects.advertiser, _generator(seed, 1))
    if looks:
        ads = replace(ads, look=creatives.draw_looks(ad_count, _generator(seed, 5)))
    if keys:
        ads = replace(ads, key=jingles.draw_keys(ad_count, _generator(seed, 7)))
    if graph:
        ads = replace(ads, maker=makers.draw_makers(ad_count, _generator(seed, 6)))
    return World(ads, make_users(user_count, _generator(seed, 2)), effects, seed, delays)


def generate_sample(
    out: Path,
    *,
    impressions: int,
    seed: int,
    rows_per_file: int = 1_000_000,
    advance: Callable[[int], None] | None = None,
    pictures: float = 0.0,
    sounds: float = 0.0,
    delays: clicks.Delays = clicks.USUAL,
    graph: float = 0.0,
) -> SampleSummary:
    """Write the sample's three tables below the folder `out`. `advance(rows)` is called after every slice.

    `pictures`: the share of ads whose picture is written, with an encoder that sees it; 0: looks count for nothing.
    `sounds`: the same of what they sound like.
    `graph`: the share of ads whose links are written; 0: makers count for nothing. `delays`: how late conversions come.
    """
    world = make_world(impressions, seed, looks=pictures > 0, keys=sounds > 0, graph=graph > 0, delays=delays)
    (out / "impressions").mkdir(parents=True, exist_ok=True)
    ads = world.ads.table
    if world.ads.look is not None:
        ads = ads.append_column("image", creatives.write_pictures(out, ads["ad_id"], world.ads.look, pictures, seed))
        creatives.write_encoder(out / creatives.ENCODER)
    if world.ads.key is not None:
        ads = ads.append_column("audio", jingles.write_sounds(out, ads["ad_id"], world.ads.key, sounds, seed))
        jingles.write_encoder(out / jingles.ENCODER)
    if world.ads.maker is not None:
        makers.write_graph(out, ads["ad_id"].combine_chunks(), world.ads.maker, graph, seed)
    pq.write_table(ads, out / "ads.parquet", compression="zstd")
    pq.write_table(world.users.table, out / "users.parquet", compression="zstd")
    positives, negatives = np.zeros(_BINS), np.zeros(_BINS)
    requests = conversions = written = 0
    with contextlib.closing(_Shards(out / "impressions", rows_per_file)) as shards:
        for table in slices(world, impressions):
            shards.write(table)
            written += table.num_rows
            requests += len(table["request_id"].unique())
            conversions += int(table["conversion"].to_numpy().sum())
            click, bins = table["click"].to_numpy(), (table[TRUE_PROBABILITY].to_numpy() * _BINS).astype(np.int64)
            positives += np.bincount(bins[click == 1], minlength=_BINS)
            negatives += np.bincount(bins[click == 0], minlength=_BINS)
            if advance is not None:
                advance(table.num_rows)
    return SampleSummary(
        len(world.ads.topic), len(world.users.age), requests, written, int(positives.sum()), conversions,
        _auc(positives, negatives),
    )  # fmt: skip


def slices(world: World, impressions: int) -> Iterator[pa.Table]:
    """The log in time order, in tables of at most SLICE_ROWS rows that end with a whole request (the very last may not)."""
    first_request = 0
    for day in range(DAYS):
        rows_of_day = impressions * (day + 1) // DAYS - impressions * day // DAYS
        if rows_of_day == 0:
            continue
        running = policy.ads_of_day(world.ads, day)
        pieces = -(-rows_of_day // SLICE_ROWS)
        for piece in range(pieces):
            rows = rows_of_day * (piece + 1) // pieces - rows_of_day * piece // pieces
            generator = _generator(world.seed, 3, day, piece)
            table = _slice(world, running, day, (piece / pieces, (piece + 1) / pieces), rows, first_request, generator)
            first_request += len(table["request_id"].unique())
            yield table


class _Shards:
    """Writes tables one after the other into part-00000.parquet, part-00001.parquet, ... of `rows` rows each."""

    def __init__(self, folder: Path, rows: int) -> None:
        self._folder, self._rows = folder, rows
        self._writer: pq.ParquetWriter | None = None
        self._parts = self._filled = 0

    def write(self, table: pa.Table) -> None:
        """Append a table."""
        while table.num_rows:
            if self._writer is None:
                self._writer = pq.ParquetWriter(self._folder / f"part-{self._parts:05d}.parquet", SCHEMA, compression="zstd")
            piece = table.slice(0, self._rows - self._filled)
            self._writer.write_table(piece)
            self._filled += piece.num_rows
            table = table.slice(piece.num_rows)
            if self._filled == self._rows:
                self.close()

    def close(self) -> None:
        """Finish the part that is being written."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            self._parts, self._filled = self._parts + 1, 0


def _slice(
    world: World, running: policy.DayOfAds, day: int, span: tuple[float, float], rows: int, first_request: int,
    generator: np.random.Generator,
) -> pa.Table:  # fmt: skip
    """`rows` impressions between the quantiles `span` of the day's traffic."""
    ads, users, effects = world.ads, world.users, world.effects
    scenario, request, position = _draw_requests(rows, generator)
    count = len(scenario)
    shown = _draw_times(day, span, count, generator)
    user = _draw_users(users, day, count, generator)
    query_topic, query = _draw_queries(users, user, scenario, generator)
    groups = len(catalogue.categories())
    is_vertical = scenario == clicks.SCENARIOS.index("vertical")
    vertical = np.where(is_vertical, generator.integers(0, groups, count), -1)
    ad, propensity = policy.draw_ads(
        running, ads, users, effects,
        user=user, vertical=vertical, query_topic=query_topic, request=request, position=position, generator=generator,
    )  # fmt: skip
    viewer, hour = user[request], (shown // _HOUR % 24)[request]
    pleases = clicks.attraction(
        ads, users, effects,
        user=viewer, ad=ad, scenario=scenario[request], query_topic=query_topic[request], hour=hour,
    )  # fmt: skip
    probability = clicks.examination(scenario[request], position) * pleases
    outcome = clicks.draw_outcome(
        probability, ads, users, effects, user=viewer, ad=ad, generator=generator, delays=world.delays
    )
    converted = shown[request] + np.nan_to_num(outcome.delay_hours * _HOUR).astype(np.int64)
    columns = {
        "request_id": identifiers("r", count, first_request).take(pa.array(request)),
        "user_id": users.table["user_id"].combine_chunks().take(pa.array(viewer)),
        "ad_id": ads.table["ad_id"].combine_chunks().take(pa.array(ad)),
        "shown_at": pa.array(shown[request]).cast(TIMESTAMP),
        "scenario": pa.array(clicks.SCENARIOS).take(pa.array(scenario[request])),
        "query": query.take(pa.array(request)),
        "position": position.astype(np.int32),
        "propensity": propensity,
        "click": outcome.click.astype(np.int8),
        "conversion": outcome.conversion.astype(np.int8),
        "converted_at": pa.array(converted, mask=~outcome.conversion).cast(TIMESTAMP),
        "dwell_seconds": pa.array(outcome.dwell_seconds, mask=~outcome.click),
        TRUE_PROBABILITY: probability,
    }
    return pa.table(columns, schema=SCHEMA)


def _draw_requests(rows: int, generator: np.random.Generator) -> tuple[Integers, Integers, Integers]:
    """Scenario (R,), and request and position (rows,), of as many requests as fill `rows`; the last may be cut short."""
    mean = float(np.dot(clicks.SCENARIO_SHARE, clicks.SLOTS))
    scenario = generator.choice(len(clicks.SCENARIOS), int(rows / mean * 1.1) + 100, p=clicks.SCENARIO_SHARE)
    ends = np.cumsum(clicks.SLOTS[scenario])
    used = int(np.searchsorted(ends, rows)) + 1
    scenario = scenario[:used]
    slots = clicks.SLOTS[scenario]
    request = np.repeat(np.arange(used), slots)[:rows]
    position = (np.arange(len(request)) - (ends[:used] - slots)[request]) + 1
    return scenario, request, position


def _draw_times(day: int, span: tuple[float, float], count: int, generator: np.random.Generator) -> Integers:
    """`count` sorted moments (microseconds since 1970) of `day`."""
    quantile = np.sort(generator.uniform(span[0], span[1], count))
    edges = np.concatenate([[0.0], np.cumsum(_HOURS) / _HOURS.sum()])
    hours = np.interp(quantile, edges, np.arange(25.0))
    start = int(START.timestamp() * 1_000_000)
    moment = np.minimum(((24 * day + hours) * _HOUR).astype(np.int64), 24 * (day + 1) * _HOUR - 1)
    return np.asarray(start + moment, np.int64)


def _draw_users(users: Users, day: int, count: int, generator: np.random.Generator) -> Integers:
    """Who asks, in proportion to activity, among those who have appeared by `day`."""
    known = int(np.searchsorted(users.first_day, day, side="right"))
    cumulative = np.cumsum(users.activity[:known])
    pick = np.searchsorted(cumulative, generator.random(count) * cumulative[-1], side="right")
    return np.asarray(np.minimum(pick, known - 1), np.int64)


def _draw_queries(
    users: Users, user: Integers, scenario: Integers, generator: np.random.Generator
) -> tuple[Integers, pa.Array]:
    """Topic (-1 outside search) and words of each request's query; three in four ask for a liked topic."""
    count = len(user)
    searching = scenario == clicks.SCENARIOS.index("search")
    own = users.liked[user, generator.integers(0, users.liked.shape[1], count)]
    wanders = (own < 0) | (generator.random(count) < 0.25)
    topic = np.where(wanders, generator.integers(0, len(catalogue.topics()), count), own)
    by_name = generator.random(count) < 0.5
    language = users.language[user]
    pieces = []
    for kind in ("names", "words"):
        phrases, base, per = flat_phrases(kind)
        pieces.append(phrases.take(pa.array(base[language, topic] + generator.integers(0, per, count))))
    text = pa.compute.if_else(pa.array(by_name), pieces[0], pieces[1])
    text = pa.compute.if_else(pa.array(searching), text, pa.scalar(None, pa.string()))
    return np.where(searching, topic, -1), text


def _auc(positives: Floats, negatives: Floats) -> float:
    """AUC from histograms over score bins, ties counting half; NaN with one class."""
    if not positives.sum() or not negatives.sum():
        return float("nan")
    below = np.cumsum(negatives) - negatives
    return float((positives * (below + negatives / 2)).sum() / (positives.sum() * negatives.sum()))


def _generator(seed: int, *key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(entropy=seed, spawn_key=key))
