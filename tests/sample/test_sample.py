"""The built-in sample keeps what docs/data/sample.md promises: exact propensities, honest clicks, meaning only in the words."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from adrec.data.disk.tables import read_table
from adrec.sample import catalogue, clicks, generate_sample, policy
from adrec.sample.generate import SLICE_ROWS, make_world, slices
from adrec.sample.world import DAYS, LANES
from adrec.schema import ADS, IMPRESSIONS, USERS

COMMITTED = Path(__file__).resolve().parents[2] / "data" / "sample"


@pytest.fixture(scope="module")
def world():
    return make_world(60_000, 5)


@pytest.fixture(scope="module")
def log(world):
    return pa.concat_tables(slices(world, 60_000)).to_pandas()


def numbers(column):
    return column.str[1:].astype(int).to_numpy()


def test_written_tables_keep_the_contract(tmp_path):
    summary = generate_sample(tmp_path, impressions=3_000, seed=1, rows_per_file=1_000)
    ads, users = read_table(tmp_path / "ads.parquet", ADS), read_table(tmp_path / "users.parquet", USERS)
    log = read_table(tmp_path / "impressions", IMPRESSIONS)
    assert (len(ads), len(users), len(log)) == (summary.ads, summary.users, summary.impressions)
    assert len(log) == 3_000
    assert len(list((tmp_path / "impressions").iterdir())) > 1
    assert pc.sum(log["click"]).as_py() == summary.clicks
    assert len(log["request_id"].unique()) == summary.requests
    assert set(log["ad_id"].to_pylist()) <= set(ads["ad_id"].to_pylist())
    assert set(log["user_id"].to_pylist()) <= set(users["user_id"].to_pylist())
    assert log["shown_at"].to_pylist() == sorted(log["shown_at"].to_pylist())


def test_the_committed_copy_is_what_the_generator_writes(tmp_path):
    generate_sample(tmp_path, impressions=95_000, seed=42)
    for name in ("ads.parquet", "users.parquet", "impressions"):
        made, kept = (ds.dataset(folder / name).to_table().to_pandas() for folder in (tmp_path, COMMITTED))
        floats = made.select_dtypes("floating").columns
        assert np.allclose(made[floats], kept[floats], equal_nan=True, rtol=1e-9)
        for column in made.columns.difference(floats):
            same = made[column].map(str) == kept[column].map(str)
            assert same.all(), column
    assert sum(file.stat().st_size for file in COMMITTED.rglob("*.parquet")) < 3_000_000


@settings(max_examples=15, deadline=None)
@given(rows=st.integers(1, 3_000), seed=st.integers(0, 2**31))
def test_any_size_and_seed_is_filled_exactly_and_repeatable(rows, seed):
    first = pa.concat_tables(slices(make_world(rows, seed), rows))
    again = pa.concat_tables(slices(make_world(rows, seed), rows))
    assert first.num_rows == rows
    assert first.equals(again)
    assert np.isfinite(first["propensity"].to_numpy()).all()
    assert (first["propensity"].to_numpy() > 0).all() and (first["propensity"].to_numpy() <= 1).all()


def test_memory_is_bounded_by_slices():
    world = make_world(3 * DAYS * SLICE_ROWS, 0)
    first_two = [table.num_rows for _, table in zip(range(2), slices(world, 3 * DAYS * SLICE_ROWS), strict=False)]
    assert max(first_two) <= SLICE_ROWS


def test_only_running_ads_are_shown_and_none_twice_in_a_request(world, log):
    ads = world.ads.table.to_pandas().set_index("ad_id")
    shown = log.join(ads[["starts_at", "ends_at"]], on="ad_id")
    assert (shown.starts_at <= shown.shown_at).all() and (shown.shown_at < shown.ends_at).all()
    assert not log.duplicated(["request_id", "ad_id"]).any()
    slots = dict(zip(clicks.SCENARIOS, clicks.SLOTS, strict=True))
    sizes = log.groupby("request_id", sort=False).agg(scenario=("scenario", "first"), slots=("position", "max"))
    assert (sizes.slots.iloc[:-1] == sizes.scenario.map(slots).iloc[:-1]).sum() >= len(sizes) - 1 - DAYS


def test_a_vertical_shows_one_category_and_search_has_a_query(world, log):
    category = world.ads.table.to_pandas().set_index("ad_id").category
    vertical = log[log.scenario == "vertical"]
    assert (vertical.groupby("request_id").ad_id.agg(lambda ids: category[ids].nunique()) == 1).all()
    assert (log["query"].notna() == (log.scenario == "search")).all()


def test_propensity_matches_the_formula_written_out(world):
    """One user, every ad: the formula of docs/data/sample.md in loops, and it sums to 1 over the catalogue at each slot."""
    ads, users, effects = world.ads, world.users, world.effects
    day, user, query_topic, draws = 6, 11, 17, 40_000
    running = policy.ads_of_day(ads, day)
    expected = {}
    for lane in range(LANES):
        members = [ad for ad in range(len(ads.topic)) if ads.first_day[ad] <= day <= ads.last_day[ad] and ads.lane[ad] == lane]
        numerator = {}
        for ad in members:
            score = policy.NOISE_WEIGHT * float(users.taste_noise[user] @ effects.policy_noise[:, ads.topic[ad]])
            for liked, strength in zip(users.liked[user], users.strength[user], strict=True):
                score += policy.RELEVANCE_WEIGHT * strength * (liked == ads.topic[ad])
            score += policy.QUERY_WEIGHT * (query_topic == ads.topic[ad])
            score += policy.OWN_LANGUAGE * (users.language[user] == ads.language[ad])
            new = ads.first_day[ad] >= 0 and day - ads.first_day[ad] < policy.LAUNCH_DAYS
            numerator[ad] = np.exp(score) * ads.bid[ad] ** policy.BID_POWER * (policy.LAUNCH_BOOST if new else 1)
        for ad, value in numerator.items():
            chosen = (1 - policy.EXPLORATION) * value / sum(numerator.values()) + policy.EXPLORATION / len(members)
            expected[ad] = chosen / LANES
    assert sum(expected.values()) == pytest.approx(1)

    many = np.full(draws, user)
    ad, propensity = policy.draw_ads(
        running, ads, users, effects,
        user=many, vertical=np.full(draws, -1), query_topic=np.full(draws, query_topic),
        request=np.arange(draws), position=np.full(draws, 2), generator=np.random.default_rng(0),
    )  # fmt: skip
    assert np.allclose(propensity, [expected[number] for number in ad], rtol=1e-5)
    seen = np.bincount(ad, minlength=len(ads.topic)) / draws
    truth = np.array([expected.get(number, 0.0) for number in range(len(seen))])
    spread = np.sqrt(truth * (1 - truth) / draws)
    assert (np.abs(seen - truth) <= 5 * spread + 1e-12).all()


def test_clicks_follow_the_true_probability(log):
    edges = np.quantile(log.true_probability, np.linspace(0, 1, 11))
    bins = np.clip(np.searchsorted(edges, log.true_probability, side="right") - 1, 0, 9)
    for number in range(10):
        rows = log[bins == number]
        error = np.sqrt((rows.true_probability * (1 - rows.true_probability)).sum()) / len(rows)
        assert abs(rows.click.mean() - rows.true_probability.mean()) < 4 * error
    assert 0.08 < log.click.mean() < 0.15
    assert 0.75 < roc_auc_score(log.click, log.true_probability) < 0.82


def test_lower_slots_are_looked_at_less():
    position = np.arange(1, 6)
    for number in range(len(clicks.SCENARIOS)):
        looked = clicks.examination(np.full(5, number), position)
        assert looked[0] == 1
        assert (np.diff(looked) <= 0).all() and (looked > 0).all()


def test_conversions_follow_clicks_and_come_late(log):
    assert (log.conversion <= log.click).all()
    assert (log.converted_at.notna() == (log.conversion == 1)).all()
    assert (log.dwell_seconds.notna() == (log.click == 1)).all()
    hours = (log.converted_at - log.shown_at).dropna().dt.total_seconds() / 3600
    assert (hours > 0).all() and (hours <= clicks.DELAY_LIMIT_HOURS).all()
    assert 0.7 * clicks.DELAY_MEDIAN_HOURS < hours.median() < 1.4 * clicks.DELAY_MEDIAN_HOURS


def test_new_ads_and_new_users_come_at_the_end(log):
    late = log.shown_at >= log.shown_at.min().normalize() + np.timedelta64(DAYS - 2, "D")
    new_ads = set(log[late].ad_id) - set(log[~late].ad_id)
    new_users = set(log[late].user_id) - set(log[~late].user_id)
    assert 0.05 < log[late].ad_id.isin(new_ads).mean() < 0.3
    assert 0.02 < log[late].user_id.isin(new_users).mean() < 0.3


def test_the_topic_is_in_the_words_and_nowhere_else(world):
    table = world.ads.table.to_pandas()
    topics = catalogue.topics()
    text = (table.title + " " + table.description).str.lower()
    for number, topic in enumerate(topics):
        own = [word.lower() for language in catalogue.LANGUAGES for word in topic.words[language]]
        mine = world.ads.topic == number
        assert text[mine].map(lambda body, own=own: sum(word in body for word in own) >= 3).all()
        assert topic.name not in set(table.category) | set(table.advertiser_id)
    assert table.groupby("category").apply(lambda rows: len(set(world.ads.topic[rows.index]))).min() == 5
    # Interests are named by words that are not those of the products.
    named = {name for topic in topics for language in catalogue.LANGUAGES for name in topic.names[language]}
    sold = {word for topic in topics for language in catalogue.LANGUAGES for word in topic.words[language]}
    assert not named & sold
    stated = world.users.table["interests"].combine_chunks()
    assert set(stated.flatten().to_pylist()) <= named
    assert 0.02 < np.mean(pc.list_value_length(stated).to_numpy() == 0) < 0.12


def test_reading_the_words_beats_reading_the_category(world, log):
    """A logistic regression on 'the ad's topic is stated' is far ahead of one on 'its category is stated'."""
    topic_of = {name: n for n, topic in enumerate(catalogue.topics()) for names in topic.names.values() for name in names}
    stated = np.zeros((len(world.users.age), len(catalogue.topics())), bool)
    for user, names in enumerate(world.users.table["interests"].to_pylist()):
        stated[user, [topic_of[name] for name in names]] = True
    ad, user = numbers(log.ad_id), numbers(log.user_id)
    by_category = stated.reshape(len(stated), -1, 5).any(axis=2)
    half = len(log) // 2

    def auc(match):
        features = np.column_stack([match, log.position, log.scenario == "search"]).astype(float)
        model = LogisticRegression().fit(features[:half], log.click[:half])
        return roc_auc_score(log.click[half:], model.predict_proba(features[half:])[:, 1])

    assert auc(stated[user, world.ads.topic[ad]]) > auc(by_category[user, world.ads.category[ad]]) + 0.03


def test_other_seeds_make_other_worlds(tmp_path):
    generate_sample(tmp_path / "a", impressions=500, seed=1)
    generate_sample(tmp_path / "b", impressions=500, seed=2)
    assert not pq.read_table(tmp_path / "a" / "ads.parquet").equals(pq.read_table(tmp_path / "b" / "ads.parquet"))


def test_longer_delays_change_nothing_but_the_moments_of_conversions():
    usual, longer = (
        pa.concat_tables(slices(make_world(30_000, 2, delays=delays), 30_000))
        for delays in (clicks.Delays(), clicks.Delays(3.0, 0.5))
    )
    assert usual.drop_columns(["converted_at"]).equals(longer.drop_columns(["converted_at"]))
    hours = []
    for log in (usual, longer):
        converted = log.filter(pc.equal(log["conversion"], 1))
        delay = pc.subtract(pc.cast(converted["converted_at"], pa.int64()), pc.cast(converted["shown_at"], pa.int64()))
        hours.append(delay.to_numpy() / 3.6e9)
    numbers_of_ads = np.asarray([int(name[1:]) for name in converted["ad_id"].to_pylist()])
    price = make_world(30_000, 2).ads.price_z[numbers_of_ads]
    free = (hours[0] < clicks.DELAY_LIMIT_HOURS - 0.01) & (hours[1] < 3 * clicks.DELAY_LIMIT_HOURS - 0.01)
    np.testing.assert_allclose((hours[1] / hours[0])[free], 3 * np.exp(0.5 * price[free]), rtol=1e-4)
    assert free.mean() > 0.95 and len(free) > 100
