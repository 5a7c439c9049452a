"""Lists logged as `rank` and `serve` log them, with propensities given the slots above, in worlds whose truth is known."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adrec.config.evaluation.evaluate import EvaluateConfig
from adrec.metrics.off_policy import ESTIMATORS
from adrec.stages.evaluation.off_policy.replay import replay
from adrec.stages.evaluation.reading.rows import load_rows

KINDS = 20
"""Kinds of users: what a context is here."""


def epsilon_lists(score, slots, epsilon, rng):
    """Lists (N, K) of different ads, best first, each slot random with probability epsilon; probabilities given the above."""
    rows, free = np.arange(len(score)), np.ones(score.shape, bool)
    ads, chance = np.zeros((len(score), slots), int), np.zeros((len(score), slots))
    for slot in range(slots):
        best = np.where(free, score, -np.inf).argmax(axis=1)
        lots = np.where(free, rng.random(score.shape), -1).argmax(axis=1)
        ads[:, slot] = np.where(rng.random(len(score)) < epsilon, lots, best)
        chance[:, slot] = epsilon / (score.shape[1] - slot) + (1 - epsilon) * (ads[:, slot] == best)
        free[rows, ads[:, slot]] = False
    return ads, chance


def expected_clicks(chance, after_click):
    """(N, K) click probability of each slot, where every click above multiplies it by `after_click`."""
    clicks = np.zeros((len(chance), chance.shape[1] + 1))  # probability of each number of clicks so far
    clicks[:, 0] = 1
    damped = after_click ** np.arange(clicks.shape[1])
    expected = np.zeros_like(chance)
    for slot in range(chance.shape[1]):
        hit = clicks * chance[:, slot, None] * damped
        expected[:, slot] = hit.sum(axis=1)
        clicks += np.roll(hit, 1, axis=1) - hit
    return expected


def drawn_clicks(chance, after_click, rng):
    clicked = np.zeros_like(chance)
    for slot in range(chance.shape[1]):
        clicked[:, slot] = rng.random(len(chance)) < chance[:, slot] * after_click ** clicked[:, :slot].sum(axis=1)
    return clicked


def write(path, ads, users, **columns):
    """A row an ad; `columns` are (N, K)."""
    requests, slots = ads.shape
    request, slot = np.repeat(np.arange(requests), slots), np.tile(np.arange(slots), requests)
    table = {
        "user_id": [f"u{users[r]}" for r in request], "request_id": [f"r{r}" for r in request],
        "ad_id": [f"a{a}" for a in ads.ravel()], "slot": pa.array(slot + 1, pa.int32()),
        **{name: np.asarray(values).ravel() for name, values in columns.items()},
    }  # fmt: skip
    table["rank" if "reason" in columns else "position"] = table.pop("slot")
    pq.write_table(pa.table(table), path)
    return path


def simulate(folder, seed):
    """One world, log and judged policy, all drawn from the seed. Returns what was found, and the policy's true click rate."""
    rng = np.random.default_rng(seed)
    slots = int(rng.choice([1, 1, 1, 2, 2, 2, 3, 3, 5, 10]))  # far lists are refused but where the policies are near
    epsilon, requests = rng.uniform(0.1, 1), int(rng.choice([2500, 8000]))
    ads, after_click = int(rng.integers(max(slots, 3), 25)), float(rng.choice([1.0, 0.5]))
    utility = rng.choice([-3.0, -2.0, -1.0]) + rng.normal(0, 0.8, (KINDS, ads))
    chance, fading = 1 / (1 + np.exp(-utility)), 0.9 ** np.arange(slots)
    logging = utility + rng.normal(0, 0.6, (KINDS, ads))
    judged = logging + rng.normal(0, rng.choice([0.0, 0.05, 0.3, 2.0]), (KINDS, ads))
    drawn = float(rng.choice([0.0, 0.0, 0.3]))
    model = 1 / (1 + np.exp(-utility - rng.normal(0, 0.4, (KINDS, ads))))

    many = np.repeat(np.arange(KINDS), 2000 if drawn else 1)
    lists, _ = epsilon_lists(judged[many], slots, drawn, rng)
    truth = expected_clicks(chance[many[:, None], lists] * fading, after_click).mean()

    users = np.arange(requests) // 4
    kind = rng.integers(0, KINDS, users.max() + 1)[users]
    shown, propensity = epsilon_lists(logging[kind], slots, epsilon, rng)
    wanted, _ = epsilon_lists(judged[kind], slots, drawn, rng)
    click = drawn_clicks(chance[kind[:, None], shown] * fading, after_click, rng)
    log = write(
        folder / "log.parquet", shown, users, click=click.astype(np.int8), propensity_given_above=propensity,
        score=model[kind[:, None], shown],
    )  # fmt: skip
    policy = write(
        folder / "lists.parquet", wanted, users, score=model[kind[:, None], wanted], reason=np.full(wanted.shape, "best")
    )
    return judge(log, policy, rng), truth


def judge(log, policy, rng, replicates=500, **settings):
    config = EvaluateConfig(
        scored=log, off_policy={"policy": policy, **settings}, bootstrap={"replicates": replicates}
    )  # fmt: skip
    return replay(load_rows(log, [name for name in (config.off_policy.propensity_column,) if name]), config, rng)


def covered(folder, seeds):
    """By estimator: of the simulations that print it, how many and which share of its intervals hold the truth."""
    holds = {name: [] for name in ESTIMATORS}
    for seed in seeds:
        found, truth = simulate(folder, seed)
        assert found.refused or found.estimates
        for name, estimate in found.estimates.items():
            holds[name].append(estimate.low <= truth <= estimate.high)
    printed = {name: len(values) for name, values in holds.items()}
    return printed, {name: float(np.mean(values)) for name, values in holds.items()}


def test_intervals_of_logged_lists_hold_the_truth(tmp_path):
    printed, share = covered(tmp_path, range(1000, 1024))
    assert min(printed.values()) >= 6
    assert min(share.values()) >= 0.8


@pytest.mark.slow
def test_intervals_of_200_logs_of_lists_hold_the_truth(tmp_path):
    """Exploration .1 to 1, 1 to 10 slots, judged policies near to the logging one and far from it, drawn ones too."""
    printed, share = covered(tmp_path, range(200))
    print(f"of 200 logs {printed} print an estimate; intervals that hold the truth: {share}")
    assert min(printed.values()) >= 60
    assert min(share.values()) >= 0.9
