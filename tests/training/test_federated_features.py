"""Scales and vocabularies from masked sums are those that the same rows in one place give."""

import json

import numpy as np
import pyarrow as pa
import pytest
from worlds import make_world

from adrec.data.features import FeatureSet
from adrec.data.features.categorical import Hashed, coder_from_json
from adrec.data.prepared import open_prepared
from adrec.errors import ConfigError
from adrec.specs import CalendarSpec, CategorySpec, FeatureSpec, HashedSpec, ListSpec, NumericSpec, VectorSpec
from adrec.training.federated.features import Fitting, OwnColumns
from adrec.training.federated.sums import Summing

OWNERS, BUCKETS = 10, 1 << 14
IMPRESSIONS = FeatureSpec(
    numeric=(
        NumericSpec("near"),
        NumericSpec("year"),
        NumericSpec("alike"),
        NumericSpec("nowhere"),
        NumericSpec("clicks", "log1p", missing_indicator=True),
        NumericSpec("slot", "quantile"),
        NumericSpec("cents", "quantile"),
        NumericSpec("single", "normal"),
        NumericSpec("price", "normal"),
        NumericSpec("raw", "none"),
    ),
    categorical=(CategorySpec("scenario"), CategorySpec("device", min_count=20)),
    hashed=(HashedSpec("page", 64),),
    calendar=CalendarSpec(),
)
USERS = FeatureSpec(numeric=(NumericSpec("age"),), lists=(ListSpec("tastes", separator=","),))


@pytest.fixture(scope="module")
def log():
    random, rows, users = np.random.default_rng(3), 4000, 60
    clicks = random.poisson(3.0, rows).astype(np.float64)
    clicks[::7] = np.nan
    impressions = pa.table(
        {
            "near": 1e-4 * random.normal(0.3, 2.0, rows),
            "year": random.normal(2_000.0, 5.0, rows),
            "alike": np.full(rows, 0.1),
            "nowhere": pa.nulls(rows, pa.float64()),
            "clicks": pa.array(clicks, from_pandas=True),
            "slot": random.integers(1, 9, rows),
            "cents": np.round(np.maximum(random.normal(0.5, 1.0, rows), 0.0), 2),  # a third is 0
            "single": (random.integers(-9, 9, rows) / 7).astype(np.float32),
            "price": np.exp(random.normal(2.0, 1.5, rows)),
            "raw": random.normal(size=rows),
            "scenario": random.choice(["search", "social", "feed", "once"], rows, p=[0.5, 0.3, 0.1999, 0.0001]),
            "device": [f"d{int(number)}" for number in random.zipf(1.5, rows).clip(max=400)],
            "page": [f"p{number}" for number in random.integers(0, 99, rows)],
            "shown_at": pa.array(np.arange(rows), pa.timestamp("us", "UTC")),
            "user_index": random.integers(0, users, rows).astype(np.int32),
        }
    )
    people = pa.table(
        {
            "age": random.integers(18, 80, users + 5).astype(np.float64),  # five of them are shown nowhere
            "tastes": [",".join(random.choice(["rock", "jazz", "folk", "polka"], 2)) for _ in range(users + 5)],
        }
    )
    return impressions, people


def central(impressions, people):
    shown = people.take(pa.array(np.unique(impressions["user_index"].to_numpy())))
    return {"impressions": FeatureSet.fit(IMPRESSIONS, [impressions]), "users": FeatureSet.fit(USERS, [shown])}


def fit_together(log, summing, owners=OWNERS):
    """The features, and which rows' owners answered."""
    impressions, people = log
    fitting = Fitting({**central(*log), "ads": FeatureSet.fit(FeatureSpec(), [])}, BUCKETS)
    whole = OwnColumns(fitting, {"impressions": impressions, "users": people})
    owner = impressions["user_index"].to_numpy() % owners
    present = []

    def ask(task):
        total, here = summing([whole.take(np.flatnonzero(owner == number)).vector(task) for number in range(owners)])
        present.append(here)
        return total

    return fitting.together(ask), owner, present


def assert_same(found, expected, table):
    for one, other in zip(found[table].numerics, expected[table].numerics, strict=True):
        assert (one.name, one.transform, one.missing_indicator) == (other.name, other.transform, other.missing_indicator)
        assert one.mean == pytest.approx(other.mean, rel=1e-9, abs=1e-12), one.name
        assert one.scale == pytest.approx(other.scale, rel=1e-9, abs=1e-12), one.name


def test_scales_of_masked_sums_are_those_of_all_rows(log):
    sent = []
    found, _, _ = fit_together(log, Summing(True, 0.6, 0.0, np.random.default_rng(1), lambda *note: sent.append(note)))
    expected = central(*log)
    assert_same(found, expected, "impressions")
    assert_same(found, expected, "users")
    numerics = {item.name: item for item in found["impressions"].numerics}
    alone = {item.name: item for item in expected["impressions"].numerics}
    assert numerics["alike"].scale == 1.0 and numerics["raw"] == alone["raw"] and numerics["nowhere"] == alone["nowhere"]
    # Values that share no cell have the ranks of all rows; others are off by their cell at most.
    for name, exact in (("slot", True), ("single", True), ("cents", False), ("price", False)):
        values = log[0][name].to_numpy().astype(np.float64)
        off = np.abs(numerics[name]._ranks(values) - alone[name]._ranks(values))
        assert off.max() < (1e-9 if exact else 0.002), name
        assert name != "cents" or off[values <= 1].max() < 1e-9  # a third are 0; few are as dear as the last cells hold
    # Nothing but masked sums leaves a client.
    assert {what for _, what, _ in sent} == {"keys", "shares", "masked", "revealed"}
    masked = [content for _, what, content in sent if what == "masked"]
    assert len(masked) == 2 * OWNERS
    for words in masked:
        assert len(np.unique(words)) == len(words)  # most of what it hides is zeros
        assert abs(np.mean(words >> np.uint64(63)) - 0.5) < 5 * 0.5 / np.sqrt(len(words))


def test_a_vocabulary_of_buckets_has_the_codes_of_one_of_values(log):
    found, _, _ = fit_together(log, Summing(True, 0.6, 0.0, np.random.default_rng(1)))
    expected = central(*log)
    for table, group in (("impressions", "categories"), ("users", "lists")):
        for coder, named in zip(getattr(found[table], group), getattr(expected[table], group), strict=True):
            if isinstance(named, Hashed):
                assert coder == named  # declared by hash: nothing is fitted
                continue
            assert coder.cardinality == named.cardinality
            codes = coder.apply(named.values)
            assert sorted(codes) == list(range(1, len(named.values) + 1))  # one each: commonest first but for ties
            strangers = pa.array(["never seen", None])
            assert not coder.apply(strangers).any() and not named.apply(strangers).any()
    device = found["impressions"].categories[1]
    assert device.apply(pa.array(["d1", "d2"])).tolist() == [1, 2] and device.value(1).startswith("bucket ")
    again = coder_from_json(json.loads(json.dumps(device.to_json())))
    assert again == device
    rows = FeatureSet.from_json(found["impressions"].to_json()).transform(log[0])
    assert rows.categorical.max(axis=0)[:2].tolist() == [coder.cardinality - 1 for coder in found["impressions"].categories[:2]]


def test_who_falls_out_is_in_no_scale(log):
    class Summed(Summing):
        def present(self, count):
            return [number for number in range(count) if number not in {2, 5}]

    found, owner, present = fit_together(log, Summed(True, 0.6, 0.0, np.random.default_rng(1)))
    assert present == [[0, 1, 3, 4, 6, 7, 8, 9]] * 2
    stayed = log[0].filter(pa.array(~np.isin(owner, [2, 5])))
    expected = central(stayed, log[1])
    assert_same(found, expected, "impressions")
    assert_same(found, expected, "users")
    # Other owners in the second sum than in the first: its mean and spread are those of its own rows.
    gone = iter([{1}, {7, 8}])

    class Changing(Summing):
        def present(self, count):
            out = next(gone)
            return [number for number in range(count) if number not in out]

    found, owner, _ = fit_together(log, Changing(True, 0.6, 0.0, np.random.default_rng(1)))
    assert_same(found, central(log[0].filter(pa.array(~np.isin(owner, [7, 8]))), log[1]), "impressions")


def test_columns_of_one_value_are_scaled_by_one():
    values = np.random.default_rng(5).lognormal(0, 3, 60)
    columns = {f"c{at}": np.full(300, value) for at, value in enumerate(values)}
    rows = pa.table({**columns, "user_index": np.zeros(300, np.int32)})
    features = FeatureSet.fit(FeatureSpec(numeric=tuple(NumericSpec(name) for name in columns)), [rows])
    nothing = FeatureSet.fit(FeatureSpec(), [])
    fitting = Fitting({"impressions": features, "users": nothing, "ads": nothing}, BUCKETS)
    whole, plain = (
        OwnColumns(fitting, {"impressions": rows, "users": pa.table({"age": [1]})}),
        Summing(False, 0.6, 0.0, np.random.default_rng(1)),
    )
    parts = [whole.take(np.arange(at, 300, 3)) for at in range(3)]
    found = fitting.together(lambda task: np.sum([plain([part.vector(task)])[0] for part in parts], axis=0))
    assert [item.scale for item in found["impressions"].numerics] == [1.0] * 60
    assert [item.mean for item in found["impressions"].numerics] == pytest.approx(values, rel=1e-9)


def test_what_sums_cannot_fit_is_refused(tmp_path):
    make_world(tmp_path / "prepared", users=20, requests=40)
    prepared = open_prepared(tmp_path / "prepared")
    fitting = Fitting.of(prepared, BUCKETS, seed=1)
    assert len(OwnColumns.of(fitting, prepared)) == prepared.rows("train")
    features = json.loads((tmp_path / "prepared" / "features.json").read_text())
    features["users"]["spec"] = FeatureSpec(lists=(ListSpec("interests"),), vectors=(VectorSpec("face", 4),)).to_json()
    (tmp_path / "prepared" / "features.json").write_text(json.dumps(features))
    with pytest.raises(ConfigError, match=r"vectors of users \(face\) cannot be fitted from sums"):
        Fitting.of(prepared, BUCKETS, seed=1)
