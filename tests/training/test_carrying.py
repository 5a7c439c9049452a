"""Weights of one network carried into another: by name, and by the value that each place of an axis stands for."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from adrec.config.training.finetune import ModelSettings, TaskSettings
from adrec.data.batches.collate import Collator, Texts
from adrec.data.examples import Examples, catalog_from_table
from adrec.data.features import FeatureSet
from adrec.data.features.vectors import FittedVector
from adrec.data.identities import OwnVectors
from adrec.models.match.table import Matcher
from adrec.models.net.interaction import INTERACTIONS
from adrec.specs import CategorySpec, FeatureSpec, ListSpec, NumericSpec
from adrec.training.build import Dimensions, FeatureShape, build_model, build_tasks
from adrec.training.carrying import Described, carry_over

WORDS = ["red", "green", "blue", "white"]
COLOURS = ["crimson", "jade", "navy", "ivory"]


def features(ads, users, numbers, vectors):
    """Fitted features: a category, words and vectors of ads, an age of users, numbers of impressions."""
    table = pa.table({"category": [COLOURS[number] for number in ads], "words": [[WORDS[number]] for number in ads]})
    spec = FeatureSpec(categorical=(CategorySpec("category"),), lists=(ListSpec("words"),))
    rows = pa.table({name: np.arange(8.0) for name in numbers})
    plain = [NumericSpec(column=name, transform="none") for name in numbers]
    people = [NumericSpec(column=name, transform="none") for name in users]
    as_they_are = np.zeros(3, np.float32), np.ones(3, np.float32), np.eye(3, dtype=np.float32)
    return {
        "ads": replace(
            FeatureSet.fit(spec, [table]), vectors=tuple(FittedVector(name, name, *as_they_are) for name in vectors)
        ),
        "users": FeatureSet.fit(FeatureSpec(numeric=tuple(people)), [pa.table({name: np.arange(4.0) for name in users})]),
        "impressions": FeatureSet.fit(FeatureSpec(numeric=tuple(plain)), [rows]),
    }


class Made:
    """A network, what its axes mean, and the logits it gives to rows of every ad and user, by identifier."""

    def __init__(self, settings, *, ads, users, numbers, tasks=("click",), seed=0, text=6, seen=(), space="here", vectors=()):
        self.settings = ModelSettings(**{"width": 8, "hidden": [8], "feature_width": 4, "dropout": 0.0, **settings})
        self.features = features(ads, users, numbers, vectors)
        self.ads, self.users, self.numbers, self.text = ads, users, numbers, text
        self.tasks = build_tasks([TaskSettings(name=name) for name in tasks])
        self.seen = pa.array(seen, pa.string())
        dimensions = Dimensions(
            text=text,
            ad_identities=len(seen),
            interests=False,
            **{name: FeatureShape.of(fitted) for name, fitted in self.features.items()},
        )
        torch.manual_seed(seed)
        self.network = build_model(self.settings, dimensions, self.tasks, text_encoder=None, next_category=True).eval()
        with torch.no_grad():  # nothing stands at 0, where a mistake would not show
            for tensor in self.network.parameters():
                tensor.add_(torch.randn_like(tensor) * 0.3)
        nobody = pa.array([], pa.string())
        self.described = Described(self.settings, dimensions, self.features, self.tasks, self.seen, nobody, space)

    def carry(self, earlier):
        """Go on from another one."""
        return carry_over(self.network, self.described, earlier.network.state_dict(), earlier.described)

    def logits(self):
        """By (category of the ad, number of the user): row of logits."""
        count, people = len(self.ads), 3
        ids = [COLOURS[number] for number in self.ads]
        table = pa.table(
            {
                "ad_id": ids,
                "text": [""] * count,
                "category": ids,
                "words": [[WORDS[number]] for number in self.ads],
                **{
                    fitted.name: [
                        np.random.default_rng([len(fitted.name), number]).normal(size=3).tolist() for number in self.ads
                    ]
                    for fitted in self.features["ads"].vectors
                },
            }
        )
        vectors = np.stack([np.random.default_rng(number).normal(size=self.text) for number in self.ads]).astype(np.float32)
        ads = catalog_from_table(table, self.features["ads"], key="ad_id", own=OwnVectors(self.seen))
        ads = ads.with_vectors(vectors)
        rng = np.random.default_rng(5)
        age, price = rng.normal(size=(2, people))
        values = {"age": age, "income": age * 2, "price": price, "hour": age - price}
        someone = pa.table({"user_id": ["a", "b", "c"], "text": [""] * people, **{name: values[name] for name in self.users}})
        users = catalog_from_table(someone, self.features["users"], key="user_id")
        rows = count * people
        ad, user = np.tile(np.arange(count), people), np.repeat(np.arange(people), count)
        shown = pa.table({name: values[name][user] for name in self.numbers} or {"none": np.zeros(rows)})
        past = self.ads.index(1)
        examples = Examples(
            row_id=np.arange(rows),
            request=user.astype(np.int32),
            user_index=user.astype(np.int32),
            ad_index=ad.astype(np.int32),
            shown_at=np.zeros(rows, np.int64),
            position=np.zeros(rows, np.int32),
            labels={},
            numeric=self.features["impressions"].transform(shown).numeric,
            categorical=np.zeros((rows, 0), np.int32),
            lists={},
            query=np.zeros(rows, np.int32),
            queries=("",),
            history_length=np.ones(rows, np.int32),
            history_of_row=user.astype(np.int32),
            history_offsets=np.arange(people + 1),
            history_values=np.full(people, past, np.int32),
            history_hours=np.ones(people, np.float32),
            skipped_offsets=np.zeros(people + 1, np.int64),
            skipped_values=np.zeros(0, np.int32),
        )
        collate = Collator(ads, users, lambda which: Texts(torch.from_numpy(vectors[which])), lambda which: Texts(None))
        batch = collate(Matcher(self.described.dimensions.match, ads, users)(examples), np.arange(rows))
        with torch.inference_mode():
            found = self.network(batch).logits.numpy()
        return {(ids[a], u): found[row] for row, (a, u) in enumerate(zip(ad, user, strict=True))}


OLD = {"ads": [0, 1, 2], "users": ["age"], "numbers": ["price"], "seen": ["crimson", "jade"]}
GROWN = {"ads": [3, 2, 1, 0], "users": ["income", "age"], "numbers": ["hour", "price"], "seen": ["navy", "jade", "crimson"]}
SHAPES = [
    *({"interaction": kind, "user": {"parts": ["mean", "target"]}} for kind in INTERACTIONS),
    {"sharing": "separate", "hidden": [8, 6]},
    {"sharing": "mmoe", "experts": 2},
    {"sharing": "ple", "experts": 2, "hidden": [8, 6]},
    {"user": {"parts": ["soft", "global", "local", "gru", "target"], "window": 3}, "hidden": []},
    {"user": {"parts": ["hstu", "soft", "sasrec"], "sequence": 3}},
]


@pytest.mark.parametrize("settings", SHAPES)
def test_grown_tables_leave_what_was_known_as_it_was(settings):
    tasks = ("click", "conversion")
    old = Made(settings, **OLD, tasks=tasks)
    new = Made(settings, **GROWN, tasks=tasks, seed=1)
    before = new.logits()
    carried = new.carry(old)
    expected, found = old.logits(), new.logits()
    assert set(found) > set(expected)
    for pair, logits in expected.items():
        assert found[pair] == pytest.approx(logits, rel=1e-4, abs=1e-4)
        assert before[pair] != pytest.approx(logits, abs=1e-2)
    assert 0 < carried.copied < carried.numbers


@pytest.mark.parametrize("fusion", ["concatenation", "cross_attention", "late"])
def test_what_features_make_of_vectors_goes_by_the_names_of_both(fusion):
    """Another order of the vectors, and one more that is missing: the logits stay."""
    tasks = ("click", "conversion")
    old = Made({"fusion": fusion, "crosses": 2}, **OLD, tasks=tasks, vectors=("photo", "tone"))
    new = Made({"fusion": fusion, "crosses": 2}, **GROWN, tasks=tasks, seed=1, vectors=("tone", "photo"))
    new.carry(old)
    for pair, logits in old.logits().items():
        assert new.logits()[pair] == pytest.approx(logits, rel=1e-4, abs=1e-4)


def test_tasks_and_user_parts_go_by_name():
    old = Made({"user": {"parts": ["soft", "gru"]}, "sharing": "separate"}, **OLD, tasks=("click", "conversion"))
    new = Made({"user": {"parts": ["gru", "soft"]}, "sharing": "separate"}, **OLD, tasks=("conversion", "click"), seed=1)
    new.carry(old)
    for pair, (click, conversion) in old.logits().items():
        assert new.logits()[pair] == pytest.approx([conversion, click], abs=2e-5)


def test_fewer_columns_and_other_shapes_keep_what_fits():
    old = Made({}, **GROWN)
    new = Made({"interaction": "dcn", "user": {"parts": ["mean"]}}, ads=[2, 1], users=[], numbers=["hour"], seed=1)
    carried = new.carry(old)
    assert carried.copied > 500 and "user_encoder.empty" not in carried.fresh
    assert all(np.isfinite(logits).all() for logits in new.logits().values())
    kept, source = (made.network.state_dict()["ad_encoder.fields.tables.0.weight"] for made in (new, old))
    codes = [made.features["ads"].categories[0].values.tolist() for made in (new, old)]
    for place, value in enumerate(codes[0], start=1):
        assert torch.equal(kept[place], source[codes[1].index(value) + 1])


def test_another_text_encoder_is_read_afresh():
    old, new = Made({}, **OLD), Made({}, **OLD, seed=1, space="there")
    own = new.network.state_dict()["ad_encoder.text.1.weight"].clone()
    carried = new.carry(old)
    assert torch.equal(new.network.state_dict()["ad_encoder.text.1.weight"], own)
    assert {"ad_encoder.text.0.weight", "ad_encoder.text.1.weight"} <= set(carried.fresh)
    assert torch.equal(
        new.network.state_dict()["user_encoder.join.weight"], old.network.state_dict()["user_encoder.join.weight"]
    )


def test_another_width_shares_next_to_nothing():
    old, new = Made({}, **OLD), Made({"width": 12}, **OLD, seed=1)
    carried = new.carry(old)
    assert 0 < carried.copied < 0.1 * carried.numbers
    assert all(np.isfinite(logits).all() for logits in new.logits().values())
