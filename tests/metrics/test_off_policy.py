import csv
import functools
import importlib.util
import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest

from adrec.metrics import off_policy
from adrec.metrics.intervals.bootstrap import bootstrap, point
from adrec.metrics.intervals.significance import bca_interval

HERE = Path(__file__).parent
REFERENCE = json.loads((HERE / "obp_reference.json").read_text())
"""Values that the package obp 0.4.1 computed on the inputs stored beside them (slot-wise policies, 24 choices of 4 actions)."""


def reference_inputs():
    columns = {name: np.array(REFERENCE[name]) for name in ("reward", "propensity", "policy", "predicted")}
    weight = off_policy.importance_weights(columns["policy"], columns["propensity"])
    expected = (np.array(REFERENCE["policy_all"]) * np.array(REFERENCE["predicted_all"])).sum(axis=1)
    return columns["reward"], weight, columns["predicted"], expected


def test_estimates_equal_obp():
    r, w, q, v = reference_inputs()
    found = {
        "ips": off_policy.ips(r, w),
        "snips": off_policy.snips(r, w),
        "direct_method": off_policy.direct_method(v),
        "doubly_robust": off_policy.doubly_robust(r, w, q, v),
        "sn_doubly_robust": off_policy.sn_doubly_robust(r, w, q, v),
        **{f"switch_doubly_robust@{t}": off_policy.switch_doubly_robust(r, w, q, v, t) for t in (0.5, 1.5, 10.0)},
    }
    assert found.keys() == REFERENCE["estimates"].keys()
    for name, value in found.items():
        assert value == pytest.approx(REFERENCE["estimates"][name], abs=1e-9), name


def logs_of(r, w, q=None, v=None, users=None):
    users = np.arange(len(r)) if users is None else users
    count = int(users.max()) + 1
    return off_policy.Logs(np.asarray(r, dtype=float), w, users, count, predicted=q, expected=v)


def test_the_measure_gives_the_same_estimates():
    r, w, q, v = reference_inputs()
    rng = np.random.default_rng(0)
    logs = logs_of(r, w, q, v, rng.integers(0, 6, len(r)))
    found = point([off_policy.estimates(logs, clip=1.5)], logs.user_count)
    assert found["ips"] == pytest.approx(off_policy.ips(r, w))
    assert found["clipped_ips"] == pytest.approx(off_policy.clipped_ips(r, w, 1.5))
    assert found["snips"] == pytest.approx(off_policy.snips(r, w))
    assert found["direct_method"] == pytest.approx(off_policy.direct_method(v))
    assert found["doubly_robust"] == pytest.approx(off_policy.doubly_robust(r, w, q, v))
    assert found["sn_doubly_robust"] == pytest.approx(off_policy.sn_doubly_robust(r, w, q, v))
    assert found["switch_doubly_robust"] == pytest.approx(off_policy.switch_doubly_robust(r, w, q, v, 1.5))
    assert found["supported"] == pytest.approx(w.mean())


def test_judging_the_logging_policy_gives_its_own_mean():
    r, _, q, _ = reference_inputs()
    ones = np.ones(len(r))
    for value in (off_policy.ips(r, ones), off_policy.snips(r, ones), off_policy.clipped_ips(r, ones, 1.0)):
        assert value == pytest.approx(r.mean())
    assert off_policy.doubly_robust(r, ones, q, q) == pytest.approx(r.mean())


def test_clipping_and_switching_at_infinity_change_nothing():
    r, w, q, v = reference_inputs()
    assert off_policy.clipped_ips(r, w, np.inf) == off_policy.ips(r, w)
    assert off_policy.switch_doubly_robust(r, w, q, v, np.inf) == off_policy.doubly_robust(r, w, q, v)
    assert off_policy.switch_doubly_robust(r, w, q, v, -1) == pytest.approx(off_policy.direct_method(v))


def test_effective_sample_size_counts_equal_weights():
    assert off_policy.effective_sample_size(np.r_[np.full(7, 3.0), np.zeros(20)]) == pytest.approx(7)
    assert off_policy.effective_sample_size(np.zeros(3)) == 0


def test_impossible_probabilities_are_refused():
    for propensity in (0.0, 1.2, np.nan):
        with pytest.raises(ValueError, match="propensities"):
            off_policy.importance_weights([0.5], [propensity])
    with pytest.raises(ValueError, match="policy"):
        off_policy.importance_weights([1.5], [0.5])


def test_logs_that_cannot_answer_are_refused():
    clicks = np.arange(200) % 2.0
    of = functools.partial(off_policy.refusal, supported=(1.0, 0.98, 1.02))
    assert of(logs_of(clicks, np.ones(200))) == ""
    assert "no logged row" in of(logs_of(clicks, np.zeros(200)))
    assert "weigh as much as 1.0 users" in of(logs_of(clicks, np.r_[100.0, np.zeros(199)]))
    assert "one user carries 7%" in of(logs_of(clicks, np.r_[15.0, np.ones(199)]))
    assert "weigh as much as 20.0 users" in of(logs_of(clicks, np.ones(200), users=np.arange(200) // 10))
    assert "matching clicks weigh as much as 3.0" in of(logs_of(np.r_[np.ones(3), np.zeros(197)], np.ones(200)))
    assert "rows without a click weigh as much as 0.0" in of(logs_of(np.ones(200), np.ones(200)))
    assert "reach only 40%" in off_policy.refusal(logs_of(clicks, np.ones(200)), (0.4, 0.35, 0.45))
    assert "weigh 5.00 on average" in off_policy.refusal(logs_of(clicks, np.ones(200)), (5.0, 4.9, 5.1))


def test_a_slot_without_support_is_named_and_those_above_can_be_judged():
    slots, clicks = np.tile(np.arange(3), 200), np.tile([0.0, 0.0, 0.0, 1.0, 1.0, 1.0], 100)
    weight = np.where(slots < 2, 1.0, np.where(np.arange(600) < 30, 20.0, 0.0))
    users = np.arange(600) // 3
    told = off_policy.refusal(logs_of(clicks, weight, users=users)._replace(slots=slots), (1.0, 0.9, 1.1))
    assert told.startswith("slot 3: its 200 logged rows weigh as much as 10.0 users")
    assert told.endswith("off_policy.slots=2.")


ADS = 5
CHANCE = np.array([0.9, 0.7, 0.5])[:, None] * np.array([0.05, 0.1, 0.2, 0.3, 0.4])
"""Click probability by slot and ad."""


def every_list(slots):
    """All ordered lists of different ads, as uniform logging without repeats shows them. Ads (L, K), propensities."""
    ads = np.array(list(itertools.permutations(range(ADS), slots)))
    return ads, np.broadcast_to(1 / (ADS - np.arange(slots)), ads.shape)


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_sequential_weights_are_exact_where_propensities_are_given_the_slots_above(slots):
    """Over all lists that the logs could have shown, estimates have no error at all; single ratios as weights do."""
    ads, propensity = every_list(slots)
    best = np.array([4, 2, 3])[:slots]
    request, slot = np.repeat(np.arange(len(ads)), slots), np.tile(np.arange(slots), len(ads))
    ratio = ((ads == best) / propensity).ravel()
    reward = CHANCE[slot, ads.ravel()]
    shuffled = np.random.default_rng(0).permutation(len(request))
    weight = np.empty(len(request))
    weight[shuffled] = off_policy.sequential_weights(ratio[shuffled], request[shuffled], slot[shuffled] + 1)
    model = np.array([0.1, 0.1, 0.3, 0.3, 0.2])
    logs = logs_of(reward, weight, model[ads.ravel()], model[best][slot], request)._replace(slots=slot)
    found = point([off_policy.estimates(logs, clip=np.inf)], logs.user_count)
    truth = CHANCE[np.arange(slots), best].mean()
    assert found["supported"] == pytest.approx(1)
    for name in ("ips", "snips", "doubly_robust", "sn_doubly_robust", "switch_doubly_robust", "clipped_ips"):
        assert found[name] == pytest.approx(truth), name
    as_marginal = point([off_policy.estimates(logs._replace(weight=ratio), clip=np.inf)], logs.user_count)
    assert as_marginal["supported"] == pytest.approx(np.mean(1 - np.arange(slots) / ADS))
    assert slots == 1 or as_marginal["ips"] < truth - 0.01


def test_self_normalisation_is_by_slot():
    """RIPS (McInerney et al. 2020): each slot's weighted mean, slots equally."""
    logs = logs_of([1.0, 0.0, 1.0, 0.0], np.array([1.0, 2.0, 3.0, 1.0]), users=np.array([0, 0, 1, 1]))
    by_slot = point([off_policy.estimates(logs._replace(slots=np.array([0, 1, 0, 1])), clip=1.0)], 2)
    assert by_slot["snips"] == pytest.approx(((1 + 3) / 4 + 0 / 3) / 2)
    assert point([off_policy.estimates(logs, clip=1.0)], 2)["snips"] == pytest.approx((1 + 3) / 7)


def test_requests_with_a_missing_or_repeated_slot_are_not_whole():
    request = np.array([0, 0, 1, 1, 2, 2, 3, 4])
    position = np.array([1.0, 2.0, 1.0, 3.0, 1.0, 1.0, 2.0, np.nan])
    assert off_policy.whole_requests(request, position).tolist() == [True, True] + [False] * 6


def simulated(rng, rounds=1500, actions=5):
    """A contextual bandit whose rewards depend on the action and a context; the judged policy prefers good actions."""
    user = np.repeat(np.arange(rounds // 5), 5)
    context = rng.normal(0, 1, rounds)
    utility = np.linspace(-1.5, 0.5, actions) + np.multiply.outer(context, np.linspace(-0.5, 0.5, actions))
    chance = 1 / (1 + np.exp(-utility))
    logging = np.exp(-0.3 * utility)
    logging /= logging.sum(axis=1, keepdims=True)
    judged = np.exp(1.2 * utility)
    judged /= judged.sum(axis=1, keepdims=True)
    action = (rng.random((rounds, 1)) > logging.cumsum(axis=1)).sum(axis=1)
    rows = np.arange(rounds)
    reward = rng.random(rounds) < chance[rows, action]
    weight = judged[rows, action] / logging[rows, action]
    return context, action, reward.astype(float), weight, user, judged, chance


def fitted_model(rng):
    """A reward model learned from logs of its own: a click rate by action and decile of the context."""
    context, action, reward, _, _, judged, _ = simulated(rng, 200_000)
    edges = np.quantile(context, np.linspace(0, 1, 13)[1:-1])
    cell = np.searchsorted(edges, context)
    hits, tries = np.zeros((12, judged.shape[1])), np.zeros((12, judged.shape[1]))
    np.add.at(hits, (cell, action), reward)
    np.add.at(tries, (cell, action), 1)
    return edges, hits / tries


@pytest.mark.slow
def test_intervals_cover_the_truth():
    """200 simulated logs: every estimator's 95 % interval holds the policy's true click rate in at least 90 %."""
    rng = np.random.default_rng(1)
    _, _, _, _, _, judged, chance = simulated(rng, 2_000_000)
    truth = (judged * chance).sum(axis=1).mean()
    edges, rate = fitted_model(rng)
    covered = dict.fromkeys(off_policy.ESTIMATORS, 0)
    for run in range(200):
        rng = np.random.default_rng(100 + run)
        context, action, reward, weight, user, judged, _ = simulated(rng)
        q = rate[np.searchsorted(edges, context)]
        logs = logs_of(reward, weight, q[np.arange(len(action)), action], (judged * q).sum(axis=1), user)
        measure = [off_policy.estimates(logs, clip=5.0)]
        values = point(measure, logs.user_count)
        draws = bootstrap({"": measure}, users=logs.user_count, replicates=400, generator=rng)[""]
        without = off_policy.left_out(logs, clip=5.0)
        for name in covered:
            found = bca_interval(values[name], draws[name], without[name])
            covered[name] += found.low <= truth <= found.high
    print(f"truth {truth:.4f}; intervals that cover, of 200: {covered}")
    assert min(covered.values()) >= 180


def open_bandit_folder():
    """The Open Bandit sample inside an installed obp (its own environment is fine: name it in ADREC_OBP)."""
    given = os.environ.get("ADREC_OBP")
    spec = importlib.util.find_spec("obp")
    folder = Path(given) if given else Path(spec.origin).parent if spec and spec.origin else None
    if folder is None or not (folder / "dataset/obd").is_dir():
        pytest.skip("the package obp, which carries the Open Bandit sample, is not installed (ADREC_OBP can name its folder)")
    return folder / "dataset/obd"


def bandit_log(folder, policy, campaign):
    with open(folder / policy / campaign / f"{campaign}.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    numbers = {
        name: np.array([float(row[name]) for row in rows]) for name in ("item_id", "position", "click", "propensity_score")
    }
    return numbers["item_id"].astype(int), numbers["position"].astype(int) - 1, numbers["click"], numbers["propensity_score"]


@pytest.mark.parametrize("campaign", ["all", "men", "women"])
def test_random_logs_tell_the_thompson_policys_click_rate(campaign):
    """Open Bandit Dataset (Saito et al. 2021): the interval from the random logs holds the rate that Thompson sampling had."""
    folder = open_bandit_folder()
    policy = np.array(json.loads((HERE / "thompson_policy.json").read_text())[campaign]["action_dist"])
    item, position, click, propensity = bandit_log(folder, "random", campaign)
    observed = bandit_log(folder, "bts", campaign)[2].mean()
    weight = off_policy.importance_weights(policy[item, position], propensity)
    logs = logs_of(click, weight)
    measure = [off_policy.estimates(logs, clip=10.0)]
    values = point(measure, logs.user_count)
    draws = bootstrap({"": measure}, users=logs.user_count, replicates=1000, generator=np.random.default_rng(0))[""]
    without = off_policy.left_out(logs, clip=10.0)
    assert values["supported"] == pytest.approx(1, abs=0.05)
    for name in ("ips", "snips"):
        found = bca_interval(values[name], draws[name], without[name])
        print(f"{campaign} {name}: {found.value:.5f} [{found.low:.5f}, {found.high:.5f}], observed {observed:.5f}")
        assert found.low <= observed <= found.high
