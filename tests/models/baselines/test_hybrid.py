"""The hybrid: joins, chooses by cross-fitting, saves without pickle, and never lets a row see its neighbours."""

from dataclasses import replace

import numpy as np
import pytest
from baseline_worlds import planted

from adrec.config.training.baselines import HybridConfig
from adrec.metrics.ranking import auc_request
from adrec.models.baselines import fit_all, score_all
from adrec.models.blend.hybrid import KINDS, Hybrid, fit_hybrid

TRAIN, VALID, TEST = planted(400, seed=1), planted(400, seed=2), planted(400, seed=3)


def network(world, *, noise=1.0, seed=0):
    """A stand-in for the network: it knows the topic match, which the trees get to see as cosines too, and is noisy."""
    topic = world.ads.categorical[world.examples.ad_index, 0] - 1
    rng = np.random.default_rng(seed)
    return (3.0 * (topic == world.examples.user_index % 4) - 2 + noise * rng.normal(size=len(world))).astype(np.float32)


@pytest.fixture(scope="module")
def fitted():
    return fit_all(["popularity", "lightgbm", "lightgbm_ranker"], TRAIN, VALID, seed=0).fitted


@pytest.fixture(scope="module")
def scores(fitted):
    return {name: score_all(fitted, world) for name, world in (("valid", VALID), ("test", TEST))}


def fit(kind, fitted, scores, **settings):
    return fit_hybrid(kind, network(VALID), fitted, scores["valid"], VALID, **settings)[0]


def test_config_knows_the_kinds():
    allowed = HybridConfig.model_fields["kind"].annotation.__args__
    assert set(allowed) == {*KINDS, "auto"}


@pytest.mark.parametrize("kind", ["average", "weighted", "stack", "auto"])
def test_joining_beats_both_parts(kind, fitted, scores):
    hybrid = fit(kind, fitted, scores)
    own, joined = network(TEST, seed=1), hybrid.logit(network(TEST, seed=1), scores["test"], TEST)
    request = TEST.examples.request
    alone = [auc_request(TEST.clicks, x, request) for x in (own, scores["test"]["lightgbm"])]
    assert auc_request(TEST.clicks, joined, request) > max(alone) + 0.005
    assert joined.dtype == np.float32 and np.isfinite(joined).all()


def test_average_is_the_mean_of_standardised_scores(fitted, scores):
    hybrid = fit("average", fitted, scores)
    assert hybrid.names == ("network", "lightgbm", "lightgbm_ranker")
    np.testing.assert_allclose(np.array(hybrid.weights) / sum(hybrid.weights), [0.5, 0.25, 0.25])
    p = scores["valid"]["lightgbm"].astype(float)
    parts = [network(VALID), np.log(p / (1 - p)), scores["valid"]["lightgbm_ranker"]]
    standard = [(x - np.mean(x)) / np.std(x) for x in parts]
    expected = 0.5 * standard[0] + 0.25 * standard[1] + 0.25 * standard[2]
    joined = hybrid.logit(network(VALID), scores["valid"], VALID)
    np.testing.assert_allclose(joined, sum(hybrid.weights) * expected + hybrid.intercept, atol=1e-5)
    assert (1 / (1 + np.exp(-joined))).mean() == pytest.approx(VALID.clicks.mean(), abs=1e-3)


def test_auto_weighs_the_members_unless_another_kind_is_clearly_better(fitted, scores):
    hybrid = fit("auto", fitted, scores)
    assert set(hybrid.quality) == set(KINDS)
    assert hybrid.kind == "weighted" or hybrid.quality[hybrid.kind] > hybrid.quality["weighted"]


@pytest.mark.parametrize("requests", [12, 60, 400])
def test_auto_is_not_below_its_best_member(requests, fitted, scores):
    """Over many small validation sets: the mean loss against the member that is truly best is near 0."""
    lost = []
    for seed in range(24):
        rows = np.flatnonzero(np.isin(VALID.examples.request, np.random.default_rng(seed).choice(400, requests, replace=False)))
        few, own = VALID.take(rows), (network(VALID)[rows] if seed % 2 else np.random.default_rng(seed).normal(size=len(rows)))
        part = {name: values[rows] for name, values in scores["valid"].items()}
        hybrid, _ = fit_hybrid("auto", own.astype(np.float32), fitted, part, few)
        theirs = network(TEST, seed=1) if seed % 2 else np.random.default_rng(99).normal(size=len(TEST)).astype(np.float32)
        members = [theirs, *(scores["test"][name] for name in ("lightgbm", "lightgbm_ranker"))]
        request = TEST.examples.request
        best = max(auc_request(TEST.clicks, member, request) for member in members)
        lost.append(best - auc_request(TEST.clicks, hybrid.logit(theirs, scores["test"], TEST), request))
    assert np.mean(lost) < {12: 0.02, 60: 0.01, 400: 0.003}[requests], lost


def test_single_is_one_of_the_simple_models(fitted, scores):
    hybrid = fit("single", fitted, scores)
    joined = hybrid.logit(network(TEST), scores["test"], TEST)
    ranks = {name: np.corrcoef(np.argsort(np.argsort(joined)), np.argsort(np.argsort(values)))[0, 1]
             for name, values in scores["test"].items() if name != "popularity"}  # fmt: skip
    assert max(ranks.values()) > 0.9999 and hybrid.weights[0] == 0


def test_folds_do_not_lower_the_measured_order_of_a_separable_handful():
    """40 rows that one member orders perfectly: cross-fitted logits of different folds still stand in that order."""
    few = VALID.take(np.flatnonzero(VALID.examples.request < 40))
    models = fit_all(["logistic", "conditional_logit"], TRAIN).fitted
    sure = (4.0 * few.clicks - 2 + 0.1 * np.random.default_rng(0).normal(size=len(few))).astype(np.float32)
    part = {"logistic": (1 / (1 + np.exp(-sure))).astype(np.float32), "conditional_logit": sure}
    hybrid, held_out = fit_hybrid("weighted", sure, models, part, few, metric="auc")
    assert hybrid.quality["weighted"] > 0.999


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("rare", [0.0, 1.0])
def test_a_label_that_one_fold_alone_has_gives_finite_weights(rare, fitted, scores):
    """The rows outside that fold then hold no click, or nothing else."""
    few = VALID.take(np.flatnonzero(VALID.examples.request < 40))
    clicks = np.where(np.arange(len(few)) == 0, rare, 1 - rare).astype(np.float32)
    few = replace(few, examples=replace(few.examples, labels={"click": clicks}))
    part = {name: values[: len(few)] for name, values in scores["valid"].items()}
    hybrid, held_out = fit_hybrid("weighted", network(few), fitted, part, few)
    assert np.isfinite([*hybrid.weights, hybrid.intercept, *held_out]).all()


def test_a_useless_network_gets_no_weight(fitted, scores):
    noise = np.random.default_rng(0).normal(size=len(VALID)).astype(np.float32)
    hybrid, _ = fit_hybrid("weighted", noise, fitted, scores["valid"], VALID)
    assert abs(hybrid.weights[0]) < 0.1 < max(hybrid.weights)
    assert min(hybrid.weights) >= 0


def test_cross_fitting_is_not_fooled_by_rows_learned_by_heart(fitted):
    labels = {"click": np.random.default_rng(0).permutation(VALID.clicks)}
    shuffled = replace(VALID, examples=replace(VALID.examples, labels=labels))
    noise = {name: np.random.default_rng(1).random(len(VALID)).astype(np.float32) for name in fitted}
    hybrid, outside = fit_hybrid("stack", noise["lightgbm"], fitted, noise, shuffled)
    assert auc_request(shuffled.clicks, outside, shuffled.examples.request) == pytest.approx(hybrid.quality["stack"])
    inside = hybrid.logit(noise["lightgbm"], noise, shuffled)
    assert auc_request(shuffled.clicks, inside, shuffled.examples.request) > 0.58
    assert abs(hybrid.quality["stack"] - 0.5) < 0.04


def test_rows_without_a_label_get_a_logit_too(fitted, scores):
    clicks = VALID.clicks.copy()
    clicks[::7] = np.nan
    partly = replace(VALID, examples=replace(VALID.examples, labels={"click": clicks}))
    hybrid, logits = fit_hybrid("average", network(VALID), fitted, scores["valid"], partly)
    np.testing.assert_array_equal(logits[::7], hybrid.logit(network(VALID), scores["valid"], partly)[::7])
    assert np.isfinite(logits).all()


def test_without_trees_the_network_stays_alone(fitted, scores):
    hybrid, _ = fit_hybrid("auto", network(VALID), {"popularity": fitted["popularity"]}, scores["valid"], VALID)
    assert hybrid.kind == "none"
    np.testing.assert_array_equal(hybrid.logit(network(TEST), {}, TEST), network(TEST))
    named, _ = fit_hybrid("weighted", network(VALID), fitted, scores["valid"], VALID, also=["popularity"])
    assert set(named.names) == {"network", "popularity", "lightgbm", "lightgbm_ranker"}


@pytest.mark.parametrize("kind", [*KINDS])
def test_saved_and_loaded_it_scores_identically(kind, fitted, scores, tmp_path):
    hybrid = fit(kind, fitted, scores)
    hybrid.save(tmp_path / "hybrid")
    loaded = Hybrid.load(tmp_path / "hybrid")
    own = network(TEST, seed=1)
    np.testing.assert_array_equal(hybrid.logit(own, scores["test"], TEST), loaded.logit(own, scores["test"], TEST))
    assert loaded.quality == hybrid.quality
    assert {file.suffix for file in (tmp_path / "hybrid").rglob("*") if file.is_file()} <= {".json", ".txt"}


def test_no_folder_is_the_network_alone(tmp_path):
    assert Hybrid.load(tmp_path / "none") == Hybrid()


@pytest.mark.parametrize("kind", ["average", "stack"])
def test_a_row_does_not_depend_on_the_others(kind, fitted, scores):
    hybrid = fit(kind, fitted, scores)
    own, rows = network(TEST, seed=1), np.arange(7, 900, 13)
    part = hybrid.logit(own[rows], {name: values[rows] for name, values in scores["test"].items()}, TEST.take(rows))
    np.testing.assert_allclose(part, hybrid.logit(own, scores["test"], TEST)[rows], atol=1e-5)
