"""Clicks found in long histories: which they are, and that the rest of the model sees what it would have seen of them alone."""

import dataclasses

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from worlds import make_world, topic_vectors

from adrec.config.training.finetune import FinetuneConfig, ModelSettings, UserEncoderSettings
from adrec.data.batches.collate import Collator, Texts
from adrec.data.examples import catalog_from_table, load_examples
from adrec.data.prepared import open_prepared
from adrec.models.match.table import Matcher
from adrec.models.net.search import CategorySearch, HashedSearch
from adrec.models.net.tasks import Task
from adrec.training.build import Dimensions, FeatureShape, build_model


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    world = make_world(tmp_path_factory.mktemp("world") / "prepared", requests=400, users=12, max_history=40)
    prepared = open_prepared(world.path)
    features = prepared.features()
    examples = load_examples(prepared, "train", max_history=40)
    vectors = np.concatenate([topic_vectors(world), np.random.default_rng(0).normal(size=(60, 8))], axis=1, dtype=np.float32)
    collate = Collator(
        catalog_from_table(prepared.ads(), features["ads"], key="ad_id"),
        catalog_from_table(prepared.users(), features["users"], key="user_id"),
        lambda rows: Texts(torch.from_numpy(vectors[rows])),
        lambda rows: Texts(None),
    )
    shapes = (FeatureShape.of(features[name]) for name in ("impressions", "ads", "users"))
    dimensions = Dimensions(vectors.shape[1], *shapes, category=features["ads"].categorical_names.index("category"))
    matcher = Matcher(dimensions.match, collate.ads.with_vectors(vectors), collate.users)
    return matcher(examples), collate, dimensions


def model_of(dimensions, **user):
    torch.manual_seed(0)
    settings = ModelSettings(width=16, hidden=[8], user=UserEncoderSettings(parts=["soft", "target"], **user))
    return build_model(settings, dimensions, (Task("click"),), text_encoder=None, next_category=False).eval()


def batch_of(planted):
    examples, collate, _ = planted
    long = np.flatnonzero(np.diff(examples.history_offsets)[examples.history_of_row] > 15)
    return collate(examples, np.concatenate([np.arange(12), long[:60]]))


def test_the_newest_of_the_candidates_category(planted):
    batch, column = batch_of(planted), planted[2].category
    places, real = CategorySearch(top=5, category=column)(batch, None)
    codes = batch.ads.categorical[:, column]
    for row, (context, ad) in enumerate(zip(batch.context, batch.ad, strict=True)):
        history = batch.history[context][batch.history_mask[context]]
        same = [place for place, clicked in enumerate(history) if codes[clicked] == codes[ad]]
        assert places[row][real[row]].tolist() == same[::-1][:5]
    assert real.sum(1).max() == 5 and real.sum(1).min() < 5
    unknown = batch._replace(ads=batch.ads._replace(categorical=torch.zeros_like(batch.ads.categorical)))
    assert not CategorySearch(top=5, category=column)(unknown, None)[1].any(), "an unknown category is like no other"


def test_the_clicks_whose_codes_share_most_bits(planted):
    batch = batch_of(planted)
    torch.manual_seed(0)
    search = HashedSearch(top=4, text_width=planted[2].text)
    text = batch.ads.texts.vectors.clone()
    text[batch.history[0, 0]] = 0
    places, real = search(batch, text)
    bits = (text.double() @ search.planes.double() > 0).numpy()
    for row, (context, ad) in enumerate(zip(batch.context, batch.ad, strict=True)):
        history = batch.history[context][batch.history_mask[context]].tolist()
        shared = [
            (int((bits[ad] == bits[clicked]).sum()), place) for place, clicked in enumerate(history) if text[clicked].any()
        ]
        assert places[row][real[row]].tolist() == [place for _, place in sorted(shared, reverse=True)[:4]]


def test_codes_tell_how_near_texts_are(planted):
    """The share of equal bits is 1 - angle / pi, to within chance (Goemans and Williamson 1995)."""
    torch.manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(40, 24), dim=-1)
    bits = (vectors.double() @ HashedSearch(top=1, text_width=24).planes.double() > 0).float()
    equal = (bits[:, None] == bits[None]).float().mean(-1)
    expected = 1 - torch.arccos((vectors @ vectors.T).clamp(-1, 1)) / np.pi
    assert (equal - expected).abs().mean() < 2 * np.sqrt(0.25 / 64)


@pytest.mark.parametrize("search", ["category", "hashed"])
def test_a_search_that_finds_all_changes_nothing(planted, search):
    _, _, dimensions = planted
    batch = batch_of(planted)
    if search == "category":
        categorical = batch.ads.categorical.clone()
        categorical[:, dimensions.category] = 1
        batch = batch._replace(ads=batch.ads._replace(categorical=categorical))
    plain, searched = model_of(dimensions), model_of(dimensions, search=search, search_top=100)
    searched.load_state_dict(plain.state_dict(), strict=False)
    with torch.inference_mode():
        torch.testing.assert_close(searched(batch).logits, plain(batch).logits, atol=1e-5, rtol=0)
        torch.testing.assert_close(searched.encode_users(batch), plain.encode_users(batch), atol=1e-5, rtol=0)


@pytest.mark.parametrize("search", ["category", "hashed"])
def test_a_row_stands_for_itself_and_old_clicks_of_other_kinds_do_not_count(planted, search):
    examples, collate, dimensions = planted
    model = model_of(dimensions, search=search, search_top=3)
    rows = np.flatnonzero(np.diff(examples.history_offsets)[examples.history_of_row] > 10)[:40]
    with torch.inference_mode():
        together = model(collate(examples, rows)).logits
        alone = torch.cat([model(collate(examples, rows[[at]])).logits for at in range(8)])
        torch.testing.assert_close(alone, together[:8], atol=1e-5, rtol=0)
        batch = collate(examples, rows[:1])
        places, real = model.search(batch, batch.ads.texts.vectors)
        read = {*places[real].tolist(), *range(int(batch.history_mask.sum()) - 3, int(batch.history_mask.sum()))}
        unread = [place for place in range(int(batch.history_mask.sum())) if place not in read][0]
        changed = batch._replace(history_hours=batch.history_hours.clone())
        changed.history_hours[0, unread] += 5
        assert torch.equal(model(changed).logits, model(batch).logits)


def test_every_click_that_is_found_can_be_learned_from(planted):
    examples, _, dimensions = planted
    model = model_of(dimensions, search="hashed", search_top=3).train()
    nobody = dataclasses.replace(
        examples,
        history_offsets=np.zeros_like(examples.history_offsets),
        history_values=examples.history_values[:0],
        history_hours=examples.history_hours[:0],
    )
    outputs = model(planted[1](nobody, np.arange(20)))
    outputs.logits.sum().backward()
    assert torch.isfinite(outputs.logits).all()
    assert model.search.planes.grad is None
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_what_cannot_be_searched_is_refused():
    with pytest.raises(ValidationError, match="finds the clicks that target attends to"):
        UserEncoderSettings(parts=["soft"], search="category")
    user = {"parts": ["target"], "search": "hashed"}
    for text in ({}, {"reference": "package:x/y", "train": "last"}):
        with pytest.raises(ValidationError, match="hashed compares vectors of a frozen encoder"):
            FinetuneConfig.model_validate({"prepared": "p", "output": "o", "model": {"user": user}, "text": text})
