"""Noise is what it says, and what is released of two logs that differ by one user can hardly be told apart."""

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adrec.models.blend.calibration_sums import LEVEL_STEPS, LineFit, line_sums
from adrec.privacy.accounting import Event, epsilon_of
from adrec.privacy.ledger import Ledger, Line, unaccounted
from adrec.privacy.mechanisms import (
    FINER,
    FIXED_POINT,
    LEVEL_SENSITIVITY,
    LINE_SENSITIVITY,
    Releases,
    one_of_each,
    some_of_each,
)
from adrec.privacy.noise import Noise


@pytest.mark.parametrize("deviation", [0.7, 3.0, 41.5])
def test_the_discrete_gaussian_has_its_probabilities(deviation):
    drawn = Noise(seed=1).discrete_gaussian(200_000, deviation)
    values = np.arange(-math.ceil(4 * deviation), math.ceil(4 * deviation) + 1)
    weights = np.exp(-(values.astype(float) ** 2) / (2 * deviation**2))
    total = np.exp(-(np.arange(-2000, 2001).astype(float) ** 2) / (2 * deviation**2)).sum()
    counts = np.array([(drawn == value).sum() for value in values])
    expected = 200_000 * weights / total
    enough = expected > 20
    chi = ((counts - expected)[enough] ** 2 / expected[enough]).sum()
    assert chi < enough.sum() + 5 * math.sqrt(2 * enough.sum())
    assert drawn.dtype == np.int64


def test_the_gaussian_is_standard_and_the_system_never_repeats_itself():
    from scipy.stats import kstest

    drawn = Noise(seed=2).gaussian(100_000)
    assert kstest(drawn, "norm").pvalue > 1e-3
    assert Noise().is_secure and not Noise(seed=2).is_secure
    assert not np.array_equal(Noise().uniform(100), Noise().uniform(100))
    assert np.array_equal(Noise(seed=5).gaussian(9), Noise(seed=5).gaussian(9))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(-1, 6), min_size=1, max_size=60), st.integers(0, 1000))
def test_one_row_of_each_unit(units, seed):
    unit = np.array(units)
    picked = one_of_each(unit, Noise(seed=seed))
    assert sorted(unit[picked]) == sorted(set(units) - {-1})


def bound(epsilon, delta):
    """What (epsilon, delta) allows: P(a) <= e^epsilon P(b) + delta."""
    return lambda a, b: a <= math.exp(epsilon) * b + delta


def test_a_thousand_releases_of_neighbours_are_within_the_bound():
    """Vocabulary, counts, rate and calibration cells, of logs with and without one user who has a value of his own."""
    noise, delta, runs = 1.0, 1e-3, 1000
    epsilon = epsilon_of([Event(noise)], delta)
    with_user = pa.array(["a"] * 40 + ["b"] * 5 + ["mine"])
    without = with_user.slice(0, len(with_user) - 1)
    seen = {"with": [], "without": []}
    for name, values in (("with", with_user), ("without", without)):
        for run in range(runs):
            releases = Releases(Noise(seed=run + (name == "with") * runs), noise, delta)
            words = releases.vocabulary("v", values, min_count=1, files=())
            counted = releases.counts("c", np.array([len(values), 3]), sensitivity=1.0, files=())
            rate = releases.rate("r", np.array([0.0, 1.0] * 20 + [1.0] * (name == "with")), files=())
            seen[name].append(("mine" in words.to_pylist(), "b" in words.to_pylist(), counted[0] > 45, rate > 0.5))
    shares = {name: np.mean(values, axis=0) for name, values in seen.items()}
    error = 3 * 0.5 / math.sqrt(runs)
    assert shares["with"][0] <= delta + 3 * math.sqrt(delta / runs) and shares["without"][0] == 0
    allowed = bound(epsilon, delta + error)
    for a, b in zip(shares["with"], shares["without"], strict=True):
        assert allowed(a, b) and allowed(b, a) and allowed(1 - a, 1 - b) and allowed(1 - b, 1 - a)
    assert 0.05 < shares["without"][2] < 0.95  # the counts do say something


def test_what_is_released_is_near_where_there_are_many():
    random = np.random.default_rng(0)
    releases = Releases(Noise(seed=3), 4.0, 1e-7)
    values = np.stack([random.normal(0.3, 0.2, 50_000), random.normal(-0.5, 0.1, 50_000)], axis=1)
    values[::4, 1] = np.nan
    means, deviations = releases.scales("m", values, files=())
    assert means == pytest.approx([0.3, -0.5], abs=0.01) and deviations == pytest.approx([0.2, 0.1], rel=0.05)
    drowned = releases.scales("m", values[:200], files=())  # and it knows
    assert drowned[0].tolist() == [0, 0] and drowned[1].tolist() == [1, 1]
    assert releases.rate("r", (random.random(50_000) < 0.03).astype(float), files=()) == pytest.approx(0.03, abs=0.003)
    words = pa.array(random.choice(["x", "y", "z"], 50_000, p=[0.5, 0.3, 0.2]))
    assert releases.vocabulary("v", words, min_count=2, files=()).to_pylist() == ["x", "y", "z"]
    assert [line.event.noise for line in releases.lines] == [4.0, 4.0, 4.0 / FINER, 4.0] and releases.lines[-1].delta == 1e-7


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.floats(-50, 50), st.booleans()), min_size=1, max_size=8), st.floats(0.1, 3), st.floats(-5, 5))
def test_what_one_unit_says_of_a_line_is_within_its_sensitivity(rows, slope, intercept):
    logits, labels = np.array([x for x, _ in rows]), np.array([y for _, y in rows])
    said = line_sums(logits, labels, (slope, intercept)).sum(axis=0) / len(rows)
    assert np.linalg.norm(said) <= LINE_SENSITIVITY + 1e-9


@pytest.mark.parametrize("noise, near", [(0.001, 0.03), (20.0, 0.25)])
def test_a_line_through_noised_sums_brings_the_level_back(noise, near):
    random = np.random.default_rng(1)
    logits = random.normal(-2.5, 1.0, 20_000)
    clicks = random.random(20_000) < 1 / (1 + np.exp(-(0.7 * (logits + 1.2) - 1.0)))
    fit = LineFit(noise * LINE_SENSITIVITY)
    for step in range(3):
        releases = Releases(Noise(seed=step), noise, 1e-7)
        fit.step(releases.line_sums("line", line_sums(logits, clicks, fit.line), files=()))
    line = fit.line
    predicted = fit.calibration().apply(logits)
    assert predicted.mean() / clicks.mean() == pytest.approx(1.0, abs=near / 3)
    assert line[0] == pytest.approx(0.7, abs=near)
    lost = LineFit(1e6)
    lost.step(random.normal(0, 1e6, 5))  # nothing but noise: nearly as it was
    assert lost.line[0] == pytest.approx(1.0, abs=0.35) and abs(lost.line[1]) < 1.5


def test_three_noised_steps_are_surer_than_one():
    random = np.random.default_rng(2)
    logits = random.normal(-2.5, 0.7, 3000)
    clicks = random.random(3000) < 1 / (1 + np.exp(-logits))
    levels = {1: [], 3: []}
    for _ in range(100):
        for steps, found in levels.items():
            fit = LineFit(45.0)
            for _ in range(steps):
                fit.step(line_sums(logits, clicks, fit.line).sum(axis=0) + random.normal(0, 45.0, 5))
            found.append(fit.calibration().apply(logits).mean() / clicks.mean())
    assert np.std(levels[3]) < 0.85 * np.std(levels[1])
    assert np.mean(levels[3]) == pytest.approx(1.0, abs=0.1)


def test_the_level_is_found_where_the_curvature_drowns():
    """A thousand units, noise of 45: the sums of a line say less than that, the level alone brings half the clicks back."""
    random = np.random.default_rng(4)
    clicks = random.random(1000) < 0.1
    logits = np.log(0.05 / 0.95) + random.normal(0, 0.3, 1000)
    ratios, releases = {"level": [], "line": []}, Releases(Noise(seed=0), 45.0, 1e-7)
    for _ in range(100):
        for name, found in ratios.items():
            fit = LineFit(45.0 * LINE_SENSITIVITY)
            for _ in range(LEVEL_STEPS * (name == "level")):
                lacks = line_sums(logits, clicks, fit.line)[:, 0]
                lack, predicted, deviation = releases.level("level", lacks, clicks - lacks, most=1.0, files=())
                assert deviation == 45.0 / FINER * LEVEL_SENSITIVITY
                fit.level(lack, predicted, 0.1, deviation)
            for _ in range(3):
                fit.step(releases.line_sums("line", line_sums(logits, clicks, fit.line), files=()))
            found.append(np.log(fit.calibration().apply(logits).mean() / clicks.mean()))
    off = {name: np.mean(np.square(found)) ** 0.5 for name, found in ratios.items()}
    assert off["level"] < 0.75 * off["line"] and off["level"] < 0.45, off
    assert releases.lines[0].event == Event(45.0 / FINER) and releases.lines[0].sensitivity == FIXED_POINT * LEVEL_SENSITIVITY


def test_units_of_many_rows_say_more_of_the_level():
    """Two thousand users of sixteen rows, scores that promise twice the clicks: sums cut to three each tell more than means."""
    random = np.random.default_rng(5)
    rates = np.clip(random.lognormal(np.log(0.1), 0.4, (2000, 1)), 0.0, 0.3)
    clicks = random.random((2000, 16)) < rates
    logits = np.log(2 * rates / (1 - 2 * rates)) + random.normal(0, 0.3, clicks.shape)
    ratios = {"sums": [], "means": []}
    for seed in range(30):
        for name, most, share in (("sums", 3.0, 1.0), ("means", 1.0, 1 / 16)):
            releases, fit = Releases(Noise(seed=seed), 40.0, 1e-7), LineFit(40.0 * LINE_SENSITIVITY)
            for _ in range(LEVEL_STEPS):
                lacks = line_sums(logits.ravel(), clicks.ravel(), fit.line)[:, 0].reshape(clicks.shape)
                said = lacks.sum(axis=1) * share, (clicks - lacks).sum(axis=1) * share
                lack, predicted, deviation = releases.level("level", *said, most=most, files=())
                fit.level(lack, predicted, 0.1, deviation)
            ratios[name].append(np.log(fit.calibration().apply(logits.ravel()).mean() / clicks.mean()))
    off = {name: np.mean(np.square(found)) ** 0.5 for name, found in ratios.items()}
    assert off["sums"] < 0.6 * off["means"] and off["sums"] < 0.08, off


def test_what_one_unit_says_of_a_level_is_within_its_sensitivity():
    random = np.random.default_rng(6)
    lacks, clicks = random.normal(0, 3, 400), random.exponential(4, 400)
    releases = Releases(Noise(seed=0), 1e-9, 1e-7)
    whole = np.array(releases.level("level", lacks, clicks, most=3.0, files=())[:2])
    for number in range(400):
        others = np.arange(400) != number
        less = np.array(releases.level("level", lacks[others], clicks[others], most=3.0, files=())[:2])
        assert np.linalg.norm((whole - less) / [3.0, 12.0]) <= LEVEL_SENSITIVITY + 2 / FIXED_POINT


def test_some_rows_of_each_unit():
    unit = np.array([3, -1, 3, 0, 3, 0, 3])
    rows = some_of_each(unit, 2, Noise(seed=0))
    assert unit[rows].tolist() == [0, 0, 3, 3] and len(set(rows)) == 4


def ledger(**changes):
    lines = (
        Line("weights", "noised", "DP-SGD", ("model.safetensors",), "Gaussian", 1.0, Event(1.0, 0.01, 1000)),
        Line("vocabulary", "noised", "counts", ("features.json",), "discrete Gaussian", 1.0, Event(20.0), 1e-6),
        Line("encoder", "public", "declared", ("encoder/",)),
        Line("trees", "left out", "not needed", ("baselines/",)),
    )
    usual = {"unit": "user", "epsilon": 3.0, "delta": 1e-5, "accountant": "rdp", "is_secure": True, "lines": lines}
    return Ledger(**{**usual, **changes})


def test_a_ledger_counts_all_lines_together_and_knows_its_files():
    stored = ledger().to_json()
    assert stored["spent"] == pytest.approx(epsilon_of([Event(1.0, 0.01, 1000), Event(20.0)], 1e-5 - 1e-6), abs=1e-3)
    assert stored["lines"][0]["epsilon_alone"] < stored["spent"]
    assert unaccounted(stored, ["model.safetensors", "features.json", "encoder/vocab.txt"]) == []
    strange = unaccounted(stored, ["encoder.json", "baselines/trees.txt", "features.json"])
    assert strange == ["baselines/trees.txt", "encoder.json"]
    with pytest.raises(ValueError, match="was spent"):
        unaccounted({**stored, "epsilon": 1.0}, [])
