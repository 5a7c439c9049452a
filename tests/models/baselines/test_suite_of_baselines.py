"""What every baseline promises: learns the planted world, saves without pickle, serves strangers, rows do not interact."""

import pickle
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from baseline_worlds import catalog, genres, inputs, planted

from adrec.config.training.baselines import BaselineName
from adrec.errors import BundleError
from adrec.metrics.classification import auc
from adrec.metrics.ranking import auc_request
from adrec.models.baselines import BASELINES, fit_all, load_all, save_all, score_all
from adrec.models.baselines.base import Columns, Inputs, sampled_requests


def with_recent_clicks(rows):
    """The planted world, and the counter that recent popularity reads."""
    numeric = np.concatenate([rows.examples.numeric, rows.examples.numeric[:, :1]], axis=1)
    columns = replace(rows.columns, numeric=(*rows.columns.numeric, "counter_ad_clicks_24h"))
    return replace(rows, examples=replace(rows.examples, numeric=numeric), columns=columns)


TRAIN, VALID, TEST = (with_recent_clicks(planted(count, seed=seed)) for count, seed in ((400, 1), (150, 2), (200, 3)))


@pytest.fixture(scope="module")
def suite():
    return fit_all(list(BASELINES), TRAIN, VALID, seed=0)


def test_the_registry_and_the_config_name_the_same_baselines(suite):
    assert list(BASELINES) == list(BaselineName.__args__) == list(suite.fitted)
    assert suite.left_out == {}


def test_words_listed_as_a_feature_speak_one_by_one(tmp_path):
    """Clicks depend on one word of three hundred; its ads in the test rows were never seen."""
    rng = np.random.default_rng(0)

    def world(first: int) -> Inputs:
        words = [rng.choice(np.arange(2, 301), 5, replace=False).tolist() + [1] * int(rng.random() < 0.3) for _ in range(200)]
        ads = catalog([f"a{first + i}" for i in range(200)], lists={"words": genres(words)})
        shown = [rng.choice(200, 5, replace=False) for _ in range(800)]
        chance = np.array([0.6 if 1 in of_ad else 0.1 for of_ad in words])
        rows = [(r % 50, [], [(int(ad), int(rng.random() < chance[ad])) for ad in ads_of]) for r, ads_of in enumerate(shown)]
        return inputs(rows, ads, catalog([f"u{i}" for i in range(50)]))

    train, valid, test = world(0), world(1000), world(2000)
    suite = fit_all(["logistic", "lightgbm", "lightgbm_ranker"], train, valid)
    ceiling = auc_request(test.clicks, np.array([1 in list(row) for row in _words(test)], float), test.examples.request)
    for name, scores in score_all(suite.fitted, test).items():
        assert auc_request(test.clicks, scores, test.examples.request) > ceiling - 0.03, name
    save_all(suite.fitted, tmp_path / "baselines")
    fewer = test.take(np.arange(10)).compact()  # rows whose ads hold fewer words than were learned
    for name, scores in score_all(load_all(tmp_path / "baselines"), fewer).items():
        np.testing.assert_array_equal(scores, score_all(suite.fitted, test)[name][:10], err_msg=name)


@pytest.mark.parametrize("values", [40, 3000])
def test_every_value_of_a_category_is_learned_and_a_pure_chance_one_is_not(values, tmp_path):
    """Clicks depend on a category of many values; another, of as many, says nothing, and must not be learned by heart."""
    appeal = np.random.default_rng(9).normal(0, 1.5, values)

    def world(requests: int, seed: int) -> Inputs:
        rng = np.random.default_rng(seed)
        site = (
            np.minimum(rng.zipf(1.3, requests * 2) - 1, values - 1) if values > 100 else rng.integers(0, values, requests * 2)
        )
        clicks = rng.random(len(site)) < 1 / (1 + np.exp(1 - appeal[site]))
        rows = [(r, [], [(0, int(clicks[2 * r])), (0, int(clicks[2 * r + 1]))]) for r in range(requests)]
        codes = np.stack([site, rng.integers(0, values, len(site))], axis=1) + 1
        columns = Columns(categorical=("site", "chance"))
        return inputs(rows, catalog(["a"]), catalog(range(requests)), columns=columns, categorical=codes)

    train, valid, test = world(6000, 1), world(1000, 2), world(3000, 3)
    ceiling = auc(test.clicks, appeal[test.examples.categorical[:, 0] - 1])
    names = ["logistic", "conditional_logit", "mlp", "lightgbm"]
    suite = fit_all(names, train, valid)
    for name, scores in score_all(suite.fitted, test).items():
        assert auc(test.clicks, scores) > ceiling - (0.06 if name == "mlp" else 0.04), name
    save_all(suite.fitted, tmp_path / "baselines")
    for name, scores in score_all(load_all(tmp_path / "baselines"), test).items():
        np.testing.assert_array_equal(scores, score_all(suite.fitted, test)[name], err_msg=name)


@pytest.mark.parametrize("rows", [60, 250])
def test_few_rows_teach_trees_and_regression_a_line(rows):
    rng = np.random.default_rng(rows)

    def world(count: int) -> Inputs:
        x = rng.normal(size=(count, 2))
        clicks = (x @ [1.0, -1.0] + 0.2 * rng.normal(size=count) > 0).astype(int)
        listed = [(0, [], [(0, int(click))]) for click in clicks]
        return inputs(listed, catalog(["a"]), catalog(["u"]), columns=Columns(numeric=("first", "second")), numeric=x)

    train, valid, test = world(rows), world(rows // 4), world(2000)
    suite = fit_all(["logistic", "conditional_logit", "lightgbm"], train, valid)
    for name, scores in score_all(suite.fitted, test).items():
        assert auc(test.clicks, scores) > (0.9 if name == "lightgbm" else 0.97), name


def _words(given: Inputs) -> list[np.ndarray]:
    """The codes of each row's ad."""
    lists = given.ads.lists["words"].take(given.examples.ad_index)
    return np.split(lists.values, lists.offsets[1:-1])


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_beats_chance_on_the_planted_world(suite, name):
    scores = suite.fitted[name].score(TEST)
    assert scores.dtype == np.float32 and scores.shape == (len(TEST),) and np.isfinite(scores).all()
    floor = 0.55 if name in {"popularity", "recent_popularity", "smoothed_ctr", "item_rate"} else 0.65
    assert auc_request(TEST.clicks, scores, TEST.examples.request) > floor
    if BASELINES[name].is_probability:
        assert ((scores >= 0) & (scores <= 1)).all()
        assert scores.mean() == pytest.approx(TEST.clicks.mean(), abs=0.06)


def test_saved_and_loaded_they_score_identically_and_nothing_is_pickled(suite, tmp_path):
    save_all(suite.fitted, tmp_path / "baselines")
    loaded = load_all(tmp_path / "baselines")
    before, after = score_all(suite.fitted, TEST), score_all(loaded, TEST)
    assert list(before) == list(after) == list(BASELINES)
    for name in before:
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)
    for file in (tmp_path / "baselines").rglob("*"):
        if file.suffix == ".npz":
            with zipfile.ZipFile(file) as stored:
                for entry in stored.namelist():
                    header = stored.read(entry)[:200]
                    assert b"'descr': '|O'" not in header, "object arrays are pickled"
        elif file.is_file():
            assert file.suffix in {".json", ".safetensors", ".txt"}
            with pytest.raises(Exception), file.open("rb") as handle:
                pickle.load(handle)


@pytest.mark.parametrize("name", BASELINES)
def test_strangers_get_finite_scores(suite, name):
    strangers = with_recent_clicks(planted(30, seed=5, prefix="new-"))
    scores = suite.fitted[name].score(strangers)
    assert np.isfinite(scores).all()
    if name in {"logistic", "mlp", "lightgbm", "content", "tfidf", "encoder_cosine"}:
        assert auc_request(strangers.clicks, scores, strangers.examples.request) > 0.65


@pytest.mark.parametrize("name", BASELINES)
def test_a_row_does_not_depend_on_the_other_rows(suite, name):
    rows = np.sort(np.random.default_rng(0).choice(len(TEST), 101, replace=False))
    np.testing.assert_allclose(suite.fitted[name].score(TEST.take(rows)), suite.fitted[name].score(TEST)[rows], atol=2e-6)


def test_ads_and_users_that_do_not_occur_cost_nothing_and_change_nothing(suite):
    few = TEST.take(np.arange(12))
    small = few.compact()
    assert len(small.ads) < len(few.ads) and len(small.users) == len(np.unique(few.examples.user_index))
    for name, baseline in suite.fitted.items():
        np.testing.assert_allclose(baseline.score(small), baseline.score(few), atol=2e-6, err_msg=name)


def test_the_same_seed_gives_the_same_scores(suite):
    again = score_all(fit_all(list(BASELINES), TRAIN, VALID, seed=0).fitted, TEST)
    for name, scores in score_all(suite.fitted, TEST).items():
        np.testing.assert_allclose(scores, again[name], atol=1e-6, err_msg=name)


def test_what_the_data_lacks_is_left_out_with_a_reason():
    bare = replace(TRAIN.ads, vectors=None, categorical=np.zeros((len(TRAIN.ads), 0), np.int32))
    poor = replace(TRAIN, ads=bare, columns=replace(TRAIN.columns, numeric=("x", "noise"), ad_categorical=()))
    suite = fit_all(["item_rate", "category_affinity", "encoder_cosine", "popularity"], poor)
    assert list(suite.fitted) == ["popularity"]
    assert suite.left_out["item_rate"] == "the data lacks the impression feature 'counter_ad_rate'"


def test_sampling_keeps_whole_requests():
    part = sampled_requests(TRAIN, 1000, np.random.default_rng(0))
    assert len(part) == 996  # 166 requests of 6
    assert np.bincount(part.examples.request)[np.unique(part.examples.request)].tolist() == [6] * 166
    assert sampled_requests(TRAIN, 10_000, np.random.default_rng(0)) is TRAIN


def test_a_broken_folder_is_a_bundle_error(suite, tmp_path):
    assert load_all(tmp_path / "none") == {}
    save_all({"tfidf": suite.fitted["tfidf"], "lightgbm": suite.fitted["lightgbm"]}, tmp_path / "b")
    (tmp_path / "b" / "tfidf" / "arrays.npz").write_bytes(b"PK broken")
    with pytest.raises(BundleError):
        load_all(tmp_path / "b")


@pytest.mark.parametrize("name", ["logistic", "lightgbm"])
def test_shuffled_labels_leave_chance(name):
    found = []
    for seed in range(10):  # one shuffle may point either way; their mean may not
        labels = {"click": np.random.default_rng(seed).permutation(TRAIN.clicks)}
        shuffled = replace(TRAIN, examples=replace(TRAIN.examples, labels=labels))
        fitted = fit_all([name], shuffled, seed=0).fitted
        found.append(auc_request(TEST.clicks, fitted[name].score(TEST), TEST.examples.request))
    assert abs(np.mean(found) - 0.5) < 0.06
