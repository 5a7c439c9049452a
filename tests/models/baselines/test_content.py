"""Content baselines against scikit-learn's cosine and TF-IDF, and against loops over rows."""

import numpy as np
import pyarrow as pa
import pytest
from baseline_worlds import catalog, genres, inputs, planted
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics.pairwise import cosine_similarity

from adrec.models.baselines.base import Columns
from adrec.models.baselines.content import (
    CategoryAffinity,
    ContentScore,
    TfIdfCosine,
    learned_weights,
)
from adrec.models.baselines.text import TfIdf, terms


def test_given_weights_are_used_as_given():
    world = planted(80, seed=1)
    model = ContentScore(weights={"vector": 2.0, "text": 0.5})
    model.fit(world)
    cosines = model.cosines(world)
    np.testing.assert_allclose(model.score(world), 2.0 * cosines["vector"] + 0.5 * cosines["text"], atol=1e-6)


def test_learned_weights_prefer_what_tells_clicks_and_never_go_below_zero():
    rng = np.random.default_rng(0)
    good, noise, bad = rng.normal(size=(3, 5000)).astype(np.float32)
    clicks = (rng.random(5000) < 1 / (1 + np.exp(-2 * good + bad))).astype(np.float32)
    weights = learned_weights({"good": good, "noise": noise, "bad": bad}, clicks)
    assert weights["good"] > 0.95 and weights["bad"] == 0 and sum(weights.values()) == pytest.approx(1)


TEXTS = ["Red shoes, red hat", "Blue shoes!", "新款手机电池", "手机 sale", ""]


def test_tfidf_equals_sklearn():
    ours = TfIdf.fit(pa.array(TEXTS), stop_words=False).transform(pa.array(TEXTS)).toarray()
    theirs = TfidfVectorizer(analyzer=terms, sublinear_tf=True).fit_transform(TEXTS).toarray()
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_stop_words_of_both_languages_are_left_out():
    texts = pa.array(["the shoes of our town", "我们的手机"])
    assert {"shoes", "town"} <= set(TfIdf.fit(texts).vocabulary)
    assert not {"the", "of", "our", "我们"} & set(TfIdf.fit(texts).vocabulary)
    assert {"the", "我们"} <= set(TfIdf.fit(texts, stop_words=False).vocabulary)


def test_terms_of_many_scripts():
    assert list(terms("Buy 2 新款手机 NOW_ok")) == ["buy", "2", "新款", "款手", "手机", "now", "ok"]
    assert list(terms("买 カメラ")) == ["买", "カメ", "メラ"]


def test_tfidf_cosine_of_history_and_interests():
    ads = catalog(range(5), texts=TEXTS)
    users = catalog(["plain", "keen"], texts=["", "blue hat"])
    world = inputs(
        [(0, [0, 2], [(1, 0), (3, 1)]), (1, [0], [(1, 0), (4, 0)]), (1, [], [(1, 1)]), (0, [], [(1, 1)])], ads, users
    )
    model = TfIdfCosine()
    model.fit(world)
    rows = TfidfVectorizer(analyzer=terms, sublinear_tf=True).fit(TEXTS)
    vectors, interest = rows.transform(TEXTS).toarray(), rows.transform(["blue hat"]).toarray()[0]
    profiles = [vectors[0] + vectors[2]] * 2 + [vectors[0] + interest] * 2 + [interest, np.zeros(vectors.shape[1])]
    expected = [cosine_similarity([p], [vectors[a]])[0, 0] for p, a in zip(profiles, [1, 3, 1, 4, 1, 1])]
    np.testing.assert_allclose(model.score(world), expected, atol=1e-6)


def test_catalog_without_words():
    world = inputs([(0, [0], [(1, 1), (0, 0)])], catalog(range(2), texts=["", "!!"]), catalog(["u"]))
    model = TfIdfCosine()
    model.fit(world)
    assert model.score(world).tolist() == [0, 0]


def test_category_affinity_counts_shares():
    ads = catalog(range(5), categorical=[[1], [1], [2], [0], [3]])
    world = inputs(
        [(0, [0, 1, 2, 3], [(0, 0), (2, 0), (3, 0), (4, 0)]), (0, [], [(0, 1)])],
        ads,
        catalog(["u"]),
        columns=Columns(ad_categorical=("category",)),
    )
    np.testing.assert_allclose(CategoryAffinity().score(world), [2 / 4, 1 / 4, 0, 0, 0])


def test_list_affinity_shares_genres():
    ads = catalog(range(3), lists={"genres": genres([[1, 2], [2], [3, 0]])})
    world = inputs([(0, [0, 1], [(0, 1), (1, 1), (2, 0)])], ads, catalog(["u"]))
    # History: genre 1 in one of two clicks, genre 2 in both. The unknown genre 0 counts nothing.
    np.testing.assert_allclose(CategoryAffinity().score(world), [(1 / 2 + 2 / 2) / 2, 2 / 2, 0])
