"""The table of matches equals loops over rows; a network with a trained encoder makes the same columns itself."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from baseline_worlds import catalog, genres, inputs, planted
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct
from sklearn.metrics.pairwise import cosine_similarity

from adrec.data.batches.collate import Collator, Texts
from adrec.data.features import vectors as vectors_module
from adrec.data.features.vectors import FittedVector, Modality
from adrec.data.vectors import Vectors
from adrec.models.baselines.content import EncoderCosine
from adrec.models.baselines.tabular.design import design
from adrec.models.match import nearness as nearness_module
from adrec.models.match.nearness import STATISTICS
from adrec.models.match.table import SCALE, Matcher, MatchSpec
from adrec.models.net.matches import Matches

RNG = np.random.default_rng(0)
ADS = RNG.normal(size=(6, 7)).astype(np.float32)
ADS[5] = 0  # an ad without text
INTERESTS = RNG.normal(size=(4, 3, 7)).astype(np.float32)
INTERESTS[1, 2:] = 0  # two interests
INTERESTS[2] = 0  # none
QUERIES = {"": np.zeros(7, np.float32), "shoes": RNG.normal(size=7).astype(np.float32)}


def _cosine(one, other):
    size = np.linalg.norm(one) * np.linalg.norm(other)
    return one @ other / size if size else 0.0


def _statistics(target, listed):
    """The seven columns of one candidate, written out."""
    listed = [vector for vector in listed if vector.any()]
    if not listed:
        return [0.0] * 7
    cosine = cosine_similarity(target[None], listed)[0]
    unit = np.array(listed) / np.linalg.norm(listed, axis=1, keepdims=True)
    weight = 0.5 ** (np.arange(len(listed))[::-1] / 10)
    expected = {
        "mean": _cosine(unit.mean(axis=0), target),
        "max": cosine.max(),
        "top3": np.sort(cosine)[-3:].mean(),
        "last1": cosine[-1],
        "last5": cosine[-5:].mean(),
        "soft": np.log(np.exp(10 * cosine).mean()) / 10,
        "recent": cosine @ weight / weight.sum(),
    }
    return [expected[name] for name in STATISTICS]


@pytest.fixture
def rows():
    listed = [(user, RNG.integers(6, size=user * 4).tolist(), [(ad, 0) for ad in range(6)]) for user in (3, 0, 2, 1, 0)]
    ads = catalog([f"a{i}" for i in range(6)], vectors=ADS, categorical=[[1], [1], [2], [0], [3], [1]])
    given = inputs(listed, replace(ads, lists={"tags": genres([[1, 2], [2], [], [3, 0], [1], [2]])}), catalog(range(4)))
    asked = np.arange(len(given)) % 2
    skipped = {"skipped_offsets": np.array([0, 2, 2, 7, 8, 8]), "skipped_values": np.array([0, 5, 1, 2, 3, 4, 5, 0], np.int32)}
    return replace(given, examples=replace(given.examples, query=asked.astype(np.int32), queries=("", "shoes"), **skipped))


def _matcher(rows, parts=(7,)):
    spec = MatchSpec(categories=1, lists=1, parts=parts, interests=True, queries=True, skips=True, taste=True)
    return Matcher(
        spec,
        rows.ads,
        rows.users,
        lambda users: Texts(torch.from_numpy(INTERESTS[users])),
        lambda texts: Texts(torch.from_numpy(np.stack([QUERIES[text] for text in texts]))),
    )


def _columns(rows, parts=(7,)):
    matcher = _matcher(rows, parts)
    return dict(zip(matcher.names(["category"]), matcher.columns(rows.examples).T, strict=True))


@pytest.mark.parametrize("parts", [(7,), (3, 4)])
def test_equal_to_a_loop_in_any_blocks(rows, monkeypatch, parts):
    whole = _columns(rows, parts)
    monkeypatch.setattr(nearness_module, "_BLOCK_CELLS", 60)
    cut = _columns(rows, parts)
    examples = rows.examples
    for row, (user, ad) in enumerate(zip(examples.user_index, examples.ad_index, strict=True)):
        of_row = examples.history_of_row[[row]]
        history, skipped = (lists.take(of_row).values for lists in (examples.histories, examples.skipped))
        asked = QUERIES[examples.queries[examples.query[row]]]
        start = 0
        for number, width in enumerate(parts, start=1):
            piece, suffix = slice(start, start + width), f"_{number}" if len(parts) > 1 else ""
            start += width
            told = [one for one in INTERESTS[user][:, piece] if one.any()]
            near = [_cosine(one, ADS[ad, piece]) for one in told]
            mean = np.sum([one / np.linalg.norm(one) for one in told], axis=0) if told else np.zeros(width)
            target = ADS[ad, piece]
            expected = {
                **dict(zip((f"cosine_{name}" for name in STATISTICS), _statistics(target, ADS[history, piece]))),
                **dict(zip((f"skipped_{name}" for name in STATISTICS), _statistics(target, ADS[skipped, piece]))),
                "interest_mean": _cosine(mean, target),
                "interest_nearest": max(near, default=0.0),
                "query": _cosine(asked[piece], target),
            }
            for found in (whole, cut):
                own = {name: found[f"{name}{suffix}"][row] for name in expected}
                assert own == pytest.approx(expected, abs=1e-6)


def test_shares_and_rates(rows):
    found, examples = _columns(rows), rows.examples
    category = rows.ads.categorical[:, 0]
    for row, ad in enumerate(examples.ad_index):
        of_row = examples.history_of_row[[row]]
        history, skipped = (lists.take(of_row).values for lists in (examples.histories, examples.skipped))
        same = (category[history] == category[ad]).sum() * bool(category[ad])
        assert found["share_category"][row] == pytest.approx(same / max(len(history), 1))
        own = (len(history) + 1) / (len(history) + len(skipped) + 2)
        missed = (category[skipped] == category[ad]).sum()
        rate = (same + 3 * own) / (same + missed + 3) if category[ad] else own
        assert found["like_category"][row] == pytest.approx(rate)


def test_a_large_world_and_the_plain_cosine():
    world = planted(120, seed=3)
    found = Matcher(MatchSpec.of(world.ads, world.users), world.ads, world.users)
    columns = dict(zip(found.names(["category"]), found.columns(world.examples).T, strict=True))
    for row in range(0, len(world), 7):
        history = world.examples.histories.take(world.examples.history_of_row[[row]]).values
        expected = _statistics(world.ads.vectors[world.examples.ad_index[row]], world.ads.vectors[history])
        np.testing.assert_allclose([columns[f"cosine_{name}"][row] for name in STATISTICS], expected, atol=1e-5)
    np.testing.assert_allclose(EncoderCosine().score(world), columns["cosine_mean"], atol=1e-5)


def test_a_row_knows_no_other(rows):
    """Nor how many ads a catalog holds."""
    whole = _matcher(rows)(rows.examples)
    some = rows.examples.take(np.arange(12, 18))
    np.testing.assert_allclose(_matcher(rows).columns(some), whole.matches[12:18], atol=1e-7)
    given = replace(rows, examples=whole, matched=_matcher(rows).names(["category"]))
    table = design(given.take(np.arange(12, 18)).compact())
    column = table.dense[:, table.names.index("interest_nearest")]
    np.testing.assert_array_equal(column, _columns(rows)["interest_nearest"][12:18])


def test_no_text_without_vectors(rows):
    blank = replace(rows, ads=replace(rows.ads, vectors=None))
    assert list(_columns(blank)) == ["share_category", "share_tags", "like_category", "like_tags"]


def test_nothing_about_skipped_ads_where_a_log_keeps_none(rows):
    matcher = replace(_matcher(rows), spec=replace(_matcher(rows).spec, skips=False))
    assert not [name for name in matcher.names(["category"]) if name.startswith(("like_", "skipped_"))]
    assert matcher.columns(rows.examples).shape[1] == len(matcher.names(["category"])) == matcher.spec.width


@pytest.mark.parametrize("parts", [(7,), (3, 4)])
def test_a_trained_encoder_makes_the_same_columns(rows, parts):
    """Of whatever its vectors are at that step; gradients reach it."""
    matcher = _matcher(rows, parts)
    whole = matcher(rows.examples)
    collate = Collator(
        rows.ads,
        rows.users,
        lambda used: Texts(torch.from_numpy(ADS[used]).requires_grad_()),
        lambda used: Texts(torch.from_numpy(INTERESTS[used])),
        matcher.queries,
    )
    module = Matches(matcher.spec).eval()
    some = np.array([25, 3, 3, 8, 17, 29, 12, 0])
    table = collate(whole, some)
    spec = matcher.spec
    plain = collate(replace(whole, matches=whole.matches[:, : spec.width - spec.of_text]), some)
    given = module(table, None, None, None)
    made = module(plain, plain.ads.texts.vectors, plain.users.texts.vectors, plain.queries.vectors)
    torch.testing.assert_close(made, given, atol=1e-5 * SCALE, rtol=0)
    made.sum().backward()
    gradient = plain.ads.texts.vectors.grad
    assert torch.isfinite(gradient).all() and gradient.any()


def test_interests_count_each_by_itself():
    """A user who likes two things is as near to an ad of one of them as who likes that alone; order and padding are nothing."""
    eye = torch.eye(3)
    interests = torch.stack([torch.stack([eye[0], eye[1]]), torch.stack([eye[1], torch.zeros(3)]), torch.zeros(2, 3)])
    near = nearness_module.interest_nearness
    mean, nearest = near(eye[[1, 1, 1]][:, None], interests)[:, 0].T
    torch.testing.assert_close(mean, torch.tensor([1 / 2**0.5, 1.0, 0.0]))
    torch.testing.assert_close(nearest, torch.tensor([1.0, 1.0, 0.0]))
    padded = torch.cat([interests.flip(1), torch.zeros(3, 2, 3)], 1)
    torch.testing.assert_close(near(eye[None].expand(3, 3, 3), padded), near(eye[None].expand(3, 3, 3), interests))


def test_histories_that_hold_nothing_are_zero():
    empty = nearness_module.nearness(torch.eye(3)[None], torch.zeros(1, 2, 3), torch.zeros(1, 2, dtype=torch.bool))
    assert torch.equal(empty, torch.zeros(1, 3, 7))


@pytest.mark.parametrize(
    ("likes", "dislikes"), [([0, 1, 2, 2], [3, 4]), ([1], []), ([0, 3, 4, 1, 2, 0, 1], [2, 2, 3, 5, 4, 0])]
)
def test_taste_is_ridge_regression_with_a_level_of_ones_own(likes, dislikes):
    listed = [(0, likes, [(ad, 0) for ad in range(6)])]
    given = inputs(listed, catalog([f"a{i}" for i in range(6)], vectors=ADS), catalog(range(1)))
    examples = replace(
        given.examples, skipped_offsets=np.array([0, len(dislikes)]), skipped_values=np.array(dislikes, np.int32)
    )
    matcher = Matcher(MatchSpec(parts=(7,), skips=True, taste=True), given.ads, given.users)
    found = dict(zip(matcher.names([]), matcher.columns(examples).T, strict=True))["taste"]
    unit = ADS / np.maximum(np.linalg.norm(ADS, axis=1, keepdims=True), 1e-9)
    shown = [ad for ad in likes + dislikes if ADS[ad].any()]
    answers = [1.0] * sum(ADS[ad].any() for ad in likes) + [0.0] * sum(ADS[ad].any() for ad in dislikes)
    process = GaussianProcessRegressor(DotProduct(1e-9, "fixed") + ConstantKernel(100.0, "fixed"), alpha=6.0, optimizer=None)
    process.fit(unit[shown], answers)
    level = process.predict(np.zeros((1, 7)))
    np.testing.assert_allclose(found, process.predict(unit) - level, atol=1e-6)
    assert abs(found[5]) < 1e-9  # an ad without text


def test_taste_tells_no_user_from_another():
    """Who likes everything, or nothing, likes nothing more than the rest."""
    for likes, dislikes in (([0, 1, 2, 3], []), ([], [0, 1, 2, 3])):
        given = inputs([(0, likes, [(ad, 0) for ad in range(6)])], catalog(range(6), vectors=ADS), catalog(range(1)))
        skipped = {"skipped_offsets": np.array([0, len(dislikes)]), "skipped_values": np.array(dislikes, np.int32)}
        matcher = Matcher(MatchSpec(parts=(7,), skips=True, taste=True), given.ads, given.users)
        columns = dict(zip(matcher.names([]), matcher.columns(replace(given.examples, **skipped)).T, strict=True))
        assert np.abs(columns["taste"]).max() < 0.02


def test_a_catalogue_held_against_one_history_is_never_copied_whole(monkeypatch):
    """Cosines of 20,000 candidates take less than half of one float32 copy of their vectors, columns and all."""
    monkeypatch.setattr(nearness_module, "_BLOCK_CELLS", 200_000)
    monkeypatch.setattr(vectors_module, "_PIECE_ROWS", 512)
    ads, width = 20_000, 256
    stored = np.random.default_rng(0).normal(size=(ads, width)).astype(np.float16)
    held = Vectors(stored, np.zeros((0, width), np.float32), np.arange(ads))
    fitted = FittedVector("photo", "photo", np.zeros(width, np.float32), np.ones(width, np.float32), np.eye(2, width))
    named = replace(catalog(range(ads)), modalities={"photo": Modality(held, fitted)})
    given = inputs([(0, [3, 5, 7], [(ad, 0) for ad in range(ads)])], named, catalog(range(1)))
    matcher = Matcher(MatchSpec.of(named, given.users), named, given.users)
    tracemalloc.start()
    found = matcher.columns(given.examples)
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert taken < 0.5 * ads * width * 4
    some = np.array([0, 5, 4_321, 19_999])
    few = replace(given, examples=given.examples.take(some))
    assert np.allclose(found[some], matcher.columns(few.examples), atol=1e-6)
