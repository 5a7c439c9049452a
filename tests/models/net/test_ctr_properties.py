"""Properties 1, 2 and 8 of the design for every user encoder, interaction and sharing."""

import dataclasses
import itertools
from typing import get_args

import numpy as np
import pytest
import torch
from worlds import make_world, topic_vectors

from adrec.config.training.finetune import ModelSettings, UserEncoderSettings
from adrec.data.batches.collate import LIST_PADDING, Collator, Texts
from adrec.data.examples import catalog_from_table, load_examples
from adrec.data.features.moments import Moments
from adrec.data.prepared import open_prepared
from adrec.models.match.table import Matcher
from adrec.models.net.fields import ListWeights
from adrec.models.net.interaction import INTERACTIONS
from adrec.models.net.multitask import Sharing
from adrec.models.net.tasks import Task
from adrec.models.net.user_encoder import PARTS
from adrec.training.build import Dimensions, FeatureShape, build_model

TASKS = (Task("click"), Task("conversion", after=0), Task("dwell_seconds", is_binary=False))
USERS = [*([part] for part in PARTS), ["soft", "global", "local", "target", "gru", "mean"]]


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    world = make_world(tmp_path_factory.mktemp("world") / "prepared", requests=300, users=30, conversions=True)
    prepared = open_prepared(world.path)
    features = prepared.features()
    examples = load_examples(prepared, "train", max_history=8)
    vectors = topic_vectors(world)
    interests = np.random.default_rng(1).normal(size=(30, 16)).astype(np.float32)
    collate = Collator(
        catalog_from_table(prepared.ads(), features["ads"], key="ad_id"),
        catalog_from_table(prepared.users(), features["users"], key="user_id"),
        lambda rows: Texts(torch.from_numpy(vectors[rows])),
        lambda rows: Texts(torch.from_numpy(interests[rows])),
        tasks=tuple(task.name for task in TASKS),
    )
    dimensions = Dimensions(
        16, *(FeatureShape.of(features[name]) for name in ("impressions", "ads", "users")), interests=True, skips=True
    )
    matcher = Matcher(dimensions.match, collate.ads.with_vectors(vectors), collate.users, collate.user_texts)
    return matcher(examples), collate, dimensions


def _model(dimensions, parts, interaction, sharing, *, skipped=True, position_bias=True):
    torch.manual_seed(0)
    settings = ModelSettings(
        width=16,
        user=UserEncoderSettings(parts=parts, heads=2, window=3, skipped=skipped),
        interaction=interaction,
        sharing=sharing,
        hidden=[12, 8],
        experts=2,
        feature_width=4,
        position_bias=position_bias,
    )
    model = build_model(settings, dimensions, TASKS, text_encoder=None, next_category=True).eval()
    with torch.no_grad():  # away from the zeros of initialisation, so that nothing hides
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def _logits(model, collate, examples, rows):
    with torch.inference_mode():
        return model(collate(examples, np.asarray(rows))).logits.numpy()


@pytest.mark.parametrize(("parts", "interaction", "sharing"), list(itertools.product(USERS, INTERACTIONS, get_args(Sharing))))
def test_a_score_depends_on_its_row_alone(planted, parts, interaction, sharing):
    examples, collate, dimensions = planted
    model = _model(dimensions, parts, interaction, sharing)
    rows = np.arange(400, 460)
    together = _logits(model, collate, examples, rows)
    assert np.isfinite(together).all()
    order = np.random.default_rng(0).permutation(len(rows))
    assert np.allclose(_logits(model, collate, examples, rows[order]), together[order], atol=1e-5)
    singles = np.concatenate([_logits(model, collate, examples, [row]) for row in rows[:6]])
    assert np.allclose(singles, together[:6], atol=1e-5)


@pytest.mark.parametrize("parts", USERS)
def test_more_padding_changes_nothing(planted, parts):
    examples, collate, dimensions = planted
    model = _model(dimensions, parts, "mlp", "shared")
    batch = collate(examples, np.arange(100, 130))
    more = torch.zeros(len(batch.history), 7, dtype=torch.int64)
    padded = batch._replace(
        history=torch.cat([batch.history, more + 3], 1),
        history_mask=torch.cat([batch.history_mask, more > 0], 1),
        history_hours=torch.cat([batch.history_hours, more + 99.0], 1),
        skipped=torch.cat([batch.skipped, more + 2], 1),
        skipped_mask=torch.cat([batch.skipped_mask, more > 0], 1),
    )
    with torch.inference_mode():
        assert torch.allclose(model(batch).logits, model(padded).logits, atol=1e-6)
        assert torch.allclose(model.encode_users(batch), model.encode_users(padded), atol=1e-6)


@pytest.mark.parametrize("parts", USERS)
def test_an_empty_history_and_unknown_values_give_finite_scores_and_gradients(planted, parts):
    examples, collate, dimensions = planted
    nobody = dataclasses.replace(
        examples,
        history_offsets=np.zeros_like(examples.history_offsets),
        history_values=examples.history_values[:0],
        history_hours=examples.history_hours[:0],
        skipped_offsets=np.zeros_like(examples.skipped_offsets),
        skipped_values=examples.skipped_values[:0],
        categorical=np.zeros_like(examples.categorical),
    )
    model = _model(dimensions, parts, "dcn", "ple").train()
    outputs = model(collate(nobody, np.arange(20)))
    outputs.logits.sum().backward()
    assert torch.isfinite(outputs.logits).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("parts", USERS)
def test_other_users_do_not_change_a_user(planted, parts):
    examples, collate, dimensions = planted
    model = _model(dimensions, parts, "mlp", "shared")
    batch = collate(examples, np.arange(200, 240))
    changed = batch._replace(history=batch.history.clone())
    changed.history[1:] = (changed.history[1:] + 1) % len(batch.ads.identity)
    row = batch.context == 0
    with torch.inference_mode():
        assert torch.allclose(model(batch).logits[row], model(changed).logits[row], atol=1e-6)


def test_values_of_an_ads_lists_add_their_weights_and_unknown_ones_nothing():
    weights = ListWeights(cardinalities=(4, 3), tasks=2)
    assert weights((torch.tensor([[1, 2]]), torch.tensor([[1, LIST_PADDING]]))).tolist() == [[0.0, 0.0]]
    with torch.no_grad():
        weights.weights[0].copy_(torch.arange(8.0))  # the pair (2 code, 2 code + 1)
        weights.weights[1].copy_(torch.tensor([9.0, 9.0, 10.0, 20.0, 30.0, 40.0]))
    added = weights((torch.tensor([[1, 3], [0, LIST_PADDING]]), torch.tensor([[1, LIST_PADDING], [2, 0]])))
    assert added.tolist() == [[2.0 + 6.0 + 10.0, 3.0 + 7.0 + 20.0], [30.0, 40.0]]
    squares = weights.squares((torch.tensor([[1, 3], [0, LIST_PADDING]]), torch.tensor([[1, LIST_PADDING], [2, 0]])))
    assert squares.tolist() == [4.0 + 9.0 + 36.0 + 49.0 + 100.0 + 400.0, 900.0 + 1600.0]


def moments_of(labels):
    moments = Moments()
    moments.add(np.array(labels, np.float64))
    return moments


def test_an_untrained_model_starts_at_the_base_rates(planted):
    _, _, dimensions = planted
    click = Task("click").fitted(moments_of([1, 0, 0, 0, 0, 0, 0, 0, 1, np.nan]))
    conversion = Task("conversion", after=0).fitted(moments_of([1, 0, 0, 0, 0, 0, 0, 0, 0]))
    dwell = Task("dwell_seconds", is_binary=False).fitted(moments_of([3, 5]))
    model = build_model(ModelSettings(), dimensions, (click, conversion, dwell), text_encoder=None, next_category=False)
    first, given, mean = (float(head.bias.detach()) for head in model.heads)
    assert 1 / (1 + np.exp(-first)) == pytest.approx(2 / 9) and mean == 0.0
    assert 1 / (1 + np.exp(-given)) == pytest.approx(1 / 2)  # a conversion after the click
    assert Task("click").start() == Task("click").fitted(moments_of([1, 1, 1])).start() == 0.0  # no finite log-odds


def test_position_bias_speaks_in_training_only(planted):
    examples, collate, dimensions = planted
    model = _model(dimensions, ["mean"], "mlp", "shared")
    batch = collate(examples, np.arange(50))
    moved = batch._replace(position=batch.position + 3)
    with torch.inference_mode():
        assert torch.equal(model(batch).logits, model(moved).logits)
        model.train()
        torch.manual_seed(1)
        first = model(batch)
        torch.manual_seed(1)
        second = model(moved)
    assert not torch.equal(first.logits[:, 0], second.logits[:, 0])
    assert torch.equal(second.position_bias, model.position_bias.table()[0][moved.position])


def test_dot_orders_exactly_like_the_vectors(planted):
    examples, collate, dimensions = planted
    model = _model(dimensions, ["soft"], "dot", "shared")
    batch = collate(examples, np.arange(80))
    with torch.inference_mode():
        logits = model(batch).logits[:, 0]
        users, ads = model.encode_users(batch)[batch.context], model.encode_ads(batch.ads)[batch.ad]
    dots = (users * ads).sum(-1) * torch.sign(model.heads[0].weight[0, 0])
    order = torch.argsort(dots)
    assert (torch.diff(logits[order]) >= -1e-6).all()


def test_conversion_after_click_is_the_product_of_both(planted):
    examples, collate, dimensions = planted
    model = _model(dimensions, ["soft"], "mlp", "separate")
    batch = collate(examples, np.arange(30))
    with torch.inference_mode():
        chained = torch.sigmoid(model(batch).logits.double())
        model.presupposes = (None, None, None)
        plain = torch.sigmoid(model(batch).logits.double())
    assert torch.allclose(chained[:, 1], plain[:, 0] * plain[:, 1], atol=1e-6)
    assert (chained[:, 1] <= chained[:, 0]).all()


def test_logits_leave_the_network_in_float32_under_bf16(planted):
    examples, collate, dimensions = planted
    model = _model(dimensions, ["soft", "target"], "mlp", "shared")
    batch = collate(examples, np.arange(40))
    with torch.inference_mode():
        expected = model(batch).logits
        with torch.autocast("cpu", torch.bfloat16):
            found = model(batch).logits
    assert found.dtype == torch.float32
    assert 0 < (found - expected).abs().max() < 0.3
    assert len(found[:, 0].unique()) > 30, "not rounded to the few values of bf16"
