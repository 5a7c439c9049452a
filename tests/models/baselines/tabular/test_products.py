"""Products of users' features and ads' vectors: a planted one is found, labels are not, and trees and linear models read it."""

from dataclasses import replace

import numpy as np
import pytest
from baseline_worlds import catalog, inputs

from adrec.data.features.vectors import FittedVector, Modality
from adrec.data.vectors import Vectors
from adrec.metrics.classification import auc
from adrec.models.baselines.base import Columns
from adrec.models.baselines.suite import fit_all, load_all, save_all, score_all
from adrec.models.baselines.tabular.linear import LogisticRegression
from adrec.models.baselines.tabular.products import Products
from adrec.models.baselines.tabular.trees import LightGbm

AGES, WIDTH = 4, 6


def world(requests=1500, *, seed=0, strength=2.5, missing=0.0, own_taste=False):
    """Each age likes another direction of the ads' vectors; with `own_taste` each user does, whose vector says it."""
    rng, fixed = np.random.default_rng(seed), np.random.default_rng(3)
    vectors = fixed.normal(size=(60, WIDTH)).astype(np.float32)
    age = fixed.integers(0, AGES, 90)
    liked = fixed.normal(size=(90 if own_taste else AGES, WIDTH))
    liked /= np.linalg.norm(liked, axis=1, keepdims=True)
    taste = liked if own_taste else liked[age]
    held = np.where(fixed.random((60, 1)) < missing, np.nan, vectors).astype(np.float32)
    listed = []
    for _ in range(requests):
        user, shown = int(rng.integers(90)), rng.choice(60, 4, replace=False)
        logit = -0.5 + strength * np.nan_to_num(held[shown]) @ taste[user]
        listed.append((user, [], list(zip(shown.tolist(), (rng.random(4) < 1 / (1 + np.exp(-logit))).astype(int).tolist()))))
    ads = replace(catalog(range(60)), modalities={"picture": modality(held)})
    users = catalog(range(90), categorical=age[:, None] + 1)
    if own_taste:
        users = replace(catalog(range(90)), modalities={"taste": modality(liked.astype(np.float32))})
    return inputs(listed, ads, users, columns=Columns(user_categorical=() if own_taste else ("age",)))


def modality(vectors):
    column = Vectors(vectors, np.zeros((0, vectors.shape[1]), np.float32), np.arange(len(vectors)))
    known = np.flatnonzero(np.isfinite(vectors).all(axis=1))
    return Modality(column, FittedVector.fit("picture", column, known, space="picture", components=16, seed=0))


@pytest.mark.parametrize("own_taste", [False, True])
def test_trees_and_regression_reach_what_only_a_product_says(own_taste):
    train, test = world(own_taste=own_taste), world(500, seed=1, own_taste=own_taste)
    fitted = fit_all(["logistic", "lightgbm", "conditional_logit"], train).fitted
    for name, score in score_all(fitted, test).items():
        assert auc(test.clicks, score) > 0.8, name
    assert fitted["lightgbm"].linear is fitted["logistic"]  # one solution serves both


def test_a_training_row_does_not_find_its_label():
    """Labels drawn at random: a column fitted on the rows themselves would tell them, and one of other requests cannot."""
    train = world(60)
    labels = np.random.default_rng(5).integers(0, 2, len(train)).astype(np.float32)
    train = replace(train, examples=replace(train.examples, labels={"click": labels}))
    products, own = Products.fit(train, seed=0)
    assert auc(labels, products.columns(train)["picture_for_user"]) > 0.6
    assert auc(labels, own["picture_for_user"]) < 0.53


def test_rows_stand_for_themselves_and_survive_a_bundle(tmp_path):
    train, test = world(400, missing=0.3), world(50, seed=1, missing=0.3)
    fitted = fit_all(["logistic", "lightgbm", "conditional_logit"], train).fitted
    save_all(fitted, tmp_path / "baselines")
    loaded = load_all(tmp_path / "baselines")
    whole, again = score_all(fitted, test), score_all(loaded, test)
    few = np.arange(40, 60)
    alone = score_all(loaded, test.take(few))
    for name, score in whole.items():
        assert np.array_equal(score, again[name]), name
        np.testing.assert_allclose(alone[name], score[few], atol=1e-6)
    column = fitted["logistic"].products.columns(test)["picture_for_user"]
    known = test.ads.modalities["picture"].known(test.examples.ad_index)
    assert not known.all() and (column[~known] == 0).all() and (column[known] != 0).all()


def test_weights_are_repetition():
    plain = world(150)
    weights = np.random.default_rng(0).integers(1, 5, len(plain)).astype(float)
    few = replace(plain, examples=replace(plain.examples, weight=weights))
    many = plain.take(np.repeat(np.arange(len(plain)), weights.astype(int)))
    scales = Products.fit(many, seed=0)[0]
    one, other = Products.fit(few, seed=0)[0].columns(plain), scales.columns(plain)
    assert np.corrcoef(one["picture_for_user"], other["picture_for_user"])[0, 1] > 0.99


def test_nothing_is_fitted_where_there_is_nothing_to_multiply():
    train = world(100)
    no_vectors = replace(train, ads=replace(train.ads, modalities={}))
    nobody_told = replace(train, users=catalog(range(90)), columns=Columns())
    for rows in (no_vectors, nobody_told):
        assert Products.fit(rows, seed=0) == (None, {})
    model = LightGbm()
    model.fit(no_vectors)
    assert model.linear is None
    plain = LogisticRegression()
    plain.fit(nobody_told)
    assert np.isfinite(plain.score(nobody_told)).all()
