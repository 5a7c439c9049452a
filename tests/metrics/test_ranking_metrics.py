import itertools
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adrec.metrics import ranking
from adrec.metrics.classification import auc
from adrec.metrics.ties import descending_keys, group_codes

DEPTH_FREE = ("auc", "mrr", "mrr_all")
AT_DEPTH = ("ndcg", "hit_rate", "precision", "recall", "average_precision")


def in_order(labels, metric, k):
    """The textbook metric of labels that stand in ranked order."""
    n, clicks = len(labels), labels.sum()
    ranks = np.arange(1, n + 1)
    top = labels[:k]
    if metric == "auc":
        return np.mean([i < j for i in np.flatnonzero(labels) for j in np.flatnonzero(labels == 0)])
    if metric == "mrr":
        return 1 / ranks[labels > 0][0]
    if metric == "mrr_all":
        return (labels / ranks).sum() / clicks
    if metric == "ndcg":
        discounts = 1 / np.log2(ranks + 1)
        return (top * discounts[:k]).sum() / (np.sort(labels)[::-1][:k] * discounts[:k]).sum()
    if metric == "hit_rate":
        return float(top.any())
    if metric == "precision":
        return top.sum() / k
    if metric == "recall":
        return top.sum() / clicks
    return sum(labels[: i + 1].sum() / (i + 1) for i in np.flatnonzero(top)) / clicks


def over_all_orders(labels, scores, metric, k):
    """Mean of the textbook metric over every order that the scores allow."""
    orders = (np.array(order) for order in itertools.permutations(range(len(labels))))
    return np.mean([in_order(labels[order], metric, k) for order in orders if (np.diff(scores[order]) <= 0).all()])


@st.composite
def small_groups(draw):
    count = draw(st.integers(1, 4))
    labels, scores, groups = [], [], []
    for group in range(count):
        size = draw(st.integers(1, 6))
        labels += draw(st.lists(st.integers(0, 1), min_size=size, max_size=size))
        scores += draw(st.lists(st.integers(-2, 2), min_size=size, max_size=size))
        groups += [group * 3] * size
    return np.array(labels), np.array(scores) / 2, np.array(groups)


@settings(max_examples=60, deadline=None)
@given(small_groups(), st.integers(1, 7), st.sampled_from(DEPTH_FREE + AT_DEPTH))
def test_ties_are_the_mean_over_all_orders(case, k, metric):
    y, s, g = case
    ranked = ranking.RankedGroups(y, s, g)
    values = getattr(ranked, metric)() if metric in DEPTH_FREE else getattr(ranked, metric)(k)
    for value, group in zip(values, np.unique(g), strict=True):
        labels = y[g == group]
        if labels.min() == labels.max():
            assert np.isnan(value)
        else:
            assert value == pytest.approx(over_all_orders(labels, s[g == group], metric, k), abs=1e-12)
    assert ranked.skipped == sum(y[g == group].min() == y[g == group].max() for group in np.unique(g))


def random_requests(seed, requests=200, steps=None, dtype=np.float64):
    rng = np.random.default_rng(seed)
    size = rng.integers(1, 40, requests)
    group = np.repeat(rng.permutation(requests), size)
    labels = rng.random(len(group)) < 0.2
    scores = rng.random(len(group)) if steps is None else rng.integers(0, steps, len(group)) / steps
    order = rng.permutation(len(group))
    return labels[order].astype(int), scores[order].astype(dtype), group[order]


def mind_metrics(labels, scores):
    """The formulas of MIND's published evaluation script (evaluate.py of the MIND news recommendation competition)."""

    def dcg(y, s, k):
        y = np.take(y, np.argsort(s)[::-1][:k])
        return np.sum((2.0**y - 1) / np.log2(np.arange(len(y)) + 2))

    y = np.take(labels, np.argsort(scores)[::-1])
    return {
        "auc": auc(labels, scores),
        "mrr": np.sum(y / (np.arange(len(y)) + 1)) / np.sum(y),
        "ndcg5": dcg(labels, scores, 5) / dcg(labels, labels, 5),
        "ndcg10": dcg(labels, scores, 10) / dcg(labels, labels, 10),
    }


def test_equals_minds_published_formulas():
    y, s, g = random_requests(0)
    kept = [group for group in np.unique(g) if 0 < y[g == group].mean() < 1]
    expected = {
        name: np.mean([mind_metrics(y[g == r], s[g == r])[name] for r in kept]) for name in ("auc", "mrr", "ndcg5", "ndcg10")
    }
    assert ranking.auc_request(y, s, g) == pytest.approx(expected["auc"], abs=1e-12)
    assert ranking.mrr_all(y, s, g) == pytest.approx(expected["mrr"], abs=1e-12)
    assert ranking.ndcg(y, s, g, 5) == pytest.approx(expected["ndcg5"], abs=1e-12)
    assert ranking.ndcg(y, s, g, 10) == pytest.approx(expected["ndcg10"], abs=1e-12)


def informative(y, s, g):
    kept = np.isin(g, [group for group in np.unique(g) if 0 < y[g == group].mean() < 1])
    return y[kept], s[kept], g[kept]


def trec_lists(y, s, g):
    docs = [f"d{i}" for i in range(len(y))]
    qrels = {str(q): {docs[i]: int(y[i]) for i in np.flatnonzero(g == q)} for q in np.unique(g)}
    run = {str(q): {docs[i]: float(s[i]) for i in np.flatnonzero(g == q)} for q in np.unique(g)}
    return qrels, run


def test_equals_trec_eval():
    ir = pytest.importorskip("ir_measures")
    y, s, g = informative(*random_requests(1))
    qrels, run = trec_lists(y, s, g)
    found = ir.calc_aggregate([ir.RR, ir.nDCG @ 5, ir.P @ 5, ir.R @ 5, ir.AP @ 5, ir.AP, ir.Success @ 5], qrels, run)
    ours = {
        ir.RR: ranking.mrr(y, s, g),
        ir.nDCG @ 5: ranking.ndcg(y, s, g, 5),
        ir.P @ 5: ranking.precision(y, s, g, 5),
        ir.R @ 5: ranking.recall(y, s, g, 5),
        ir.AP @ 5: ranking.mean_average_precision(y, s, g, 5),
        ir.AP: ranking.mean_average_precision(y, s, g),
        ir.Success @ 5: ranking.hit_rate(y, s, g, 5),
    }
    for measure, value in ours.items():
        assert value == pytest.approx(found[measure], abs=1e-9), measure


@pytest.mark.slow
def test_equals_ranx():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ranx = pytest.importorskip("ranx")
    y, s, g = informative(*random_requests(2))
    qrels, run = trec_lists(y, s, g)
    names = ["mrr", "ndcg@10", "hit_rate@5", "precision@5", "recall@5", "map@5", "map"]
    found = ranx.evaluate(ranx.Qrels(qrels), ranx.Run(run), names)
    ours = [
        ranking.mrr(y, s, g), ranking.ndcg(y, s, g, 10), ranking.hit_rate(y, s, g, 5), ranking.precision(y, s, g, 5),
        ranking.recall(y, s, g, 5), ranking.mean_average_precision(y, s, g, 5), ranking.mean_average_precision(y, s, g),
    ]  # fmt: skip
    for name, value in zip(names, ours, strict=True):
        assert value == pytest.approx(found[name], abs=1e-9), name


def test_graded_labels_equal_scikit_learn():
    from sklearn.metrics import ndcg_score

    rng = np.random.default_rng(3)
    labels, scores = rng.integers(0, 4, (50, 12)), rng.random((50, 12))
    labels[:, 0], labels[:, 1] = 0, 2
    group = np.repeat(np.arange(50), 12)
    for k in (1, 5, 12):
        expected = ndcg_score(2.0**labels - 1, scores, k=k)
        assert ranking.ndcg(labels.ravel(), scores.ravel(), group, k) == pytest.approx(expected, abs=1e-12)


def test_graded_ties_equal_scikit_learns_average():
    from sklearn.metrics import ndcg_score

    rng = np.random.default_rng(4)
    labels, scores = rng.integers(0, 3, (50, 9)), rng.integers(0, 3, (50, 9)).astype(float)
    labels[:, 0], labels[:, 1] = 0, 2
    group = np.repeat(np.arange(50), 9)
    assert ranking.ndcg(labels.ravel(), scores.ravel(), group, 4) == pytest.approx(
        ndcg_score(2.0**labels - 1, scores, k=4), abs=1e-12
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("steps", [None, 4])
def test_order_of_rows_names_of_groups_and_scale_of_scores_do_not_matter(dtype, steps):
    y, s, g = random_requests(5, steps=steps, dtype=dtype)
    rng = np.random.default_rng(6)
    base = ranking.RankedGroups(y, s, g)
    order = rng.permutation(len(y))
    shuffled = ranking.RankedGroups(y[order], s[order], g[order])
    grown = ranking.RankedGroups(y, (np.exp(2 * s) * 5 - 100).astype(np.float64), g)
    words = ranking.RankedGroups(y, s, np.array([f"{value:05d}" for value in g]))
    for metric in DEPTH_FREE + AT_DEPTH:
        expected = getattr(base, metric)()
        for other in (shuffled, grown, words):
            np.testing.assert_allclose(getattr(other, metric)(), expected, atol=1e-12)


def test_auc_inside_a_group_is_the_auc_of_its_rows():
    y, s, g = random_requests(7, steps=5)
    values = ranking.RankedGroups(y, s, g).auc()
    for value, group in zip(values, np.unique(g), strict=True):
        assert value == pytest.approx(auc(y[g == group], s[g == group]), nan_ok=True)


def test_one_huge_tie_has_a_closed_form():
    """All scores equal: position is uniform, so precision@k is the rate and the AUC one half."""
    n, clicks = 200_000, 5_000
    y = np.zeros(n)
    y[:clicks] = 1
    ranked = ranking.RankedGroups(y, np.zeros(n), np.zeros(n))
    assert ranked.auc()[0] == pytest.approx(0.5)
    assert ranked.precision(10)[0] == pytest.approx(clicks / n)
    assert ranked.recall(100)[0] == pytest.approx(100 / n)
    misses = np.prod([(n - clicks - i) / (n - i) for i in range(10)])
    assert ranked.hit_rate(10)[0] == pytest.approx(1 - misses, abs=1e-9)


def test_nothing_to_rank():
    for values in ([], [0.5]):
        ranked = ranking.RankedGroups([1] * len(values), values, [0] * len(values))
        for metric in DEPTH_FREE + AT_DEPTH:
            assert np.isnan(getattr(ranked, metric)()).all()
    assert np.isnan(ranking.auc_request([], [], []))


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="NaN"):
        ranking.ndcg([0, 1], [0.1, float("nan")], [0, 0])
    with pytest.raises(ValueError, match="groups"):
        ranking.ndcg([0, 1], [0.1, 0.2], [0])


@given(st.lists(st.floats(allow_nan=False, width=32), min_size=1, max_size=50))
def test_sort_keys_order_like_the_scores(values):
    for dtype in (np.float32, np.float64):
        s = np.array(values, dtype=dtype)
        key = descending_keys(s).astype(np.int64)
        np.testing.assert_array_equal(np.sign(np.subtract.outer(key, key)), np.sign(np.where(
            np.equal.outer(s, s), 0, np.where(np.greater.outer(s, s), -1, 1))))  # fmt: skip


def test_group_codes_follow_sorted_values():
    for values in (np.array([5, 5, 2, 9, 2]), np.array(["b", "b", "a", "c", "a"]), np.array([1, 1, 3, 7, 7])):
        codes, count = group_codes(values)
        np.testing.assert_array_equal(codes, np.unique(values, return_inverse=True)[1])
        assert count == 3
