"""What slots do to clicks is learned apart, in a world where it is known: no ranker knows a slot before it has ranked."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from worlds import make_world, word_encoder

from adrec.config.evaluation.evaluate import EvaluateConfig
from adrec.config.inference.rank import RankConfig
from adrec.config.inference.score import ScoreConfig
from adrec.config.training.finetune import FinetuneConfig
from adrec.data.features import FeatureSet
from adrec.data.prepared import open_prepared
from adrec.errors import ConfigError
from adrec.inference.predictor import Predictor
from adrec.schema import ANY_SLOT
from adrec.specs import CategorySpec, FeatureSpec
from adrec.stages.evaluation import evaluate
from adrec.stages.inference import rank, score
from adrec.stages.training import finetune
from adrec.terminal import Terminal

QUIET = Terminal(quiet=True)
SLOTS = {"social": (0.6, 0.2, -0.1, -0.4), "search": (1.2, 0.0, -1.0, -2.0)}


@pytest.fixture(scope="module", params=["network", "hybrid"])
def world_of_slots(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(f"slots-{request.param}")
    is_hybrid = request.param == "hybrid"
    world = make_world(folder / "prepared", requests=2500 if is_hybrid else 4000, slots=SLOTS)
    config = FinetuneConfig(
        prepared=world.path,
        output=folder / "bundle",
        text={"reference": str(word_encoder(folder / "words")), "cache": folder / "cache"},
        model={"width": 16, "hidden": [16], "position_bias": True},
        training={"epochs": 4, "batch_rows": 256, "learning_rate": 4e-3, "loggers": []},
        baselines={"names": ["logistic"] if is_hybrid else []},
        hybrid={"kind": "weighted" if is_hybrid else "none"},
        seeds=2 if is_hybrid else 1,
        ensemble=is_hybrid,
        refit=is_hybrid,
    )
    finetune.run(config, QUIET)
    return world, config, folder


def _scored(config, folder, split):
    settings = ScoreConfig(
        bundle=config.output, prepared=config.prepared, split=split, output=folder / f"{split}.parquet", cache=config.text.cache
    )
    score.run(settings, QUIET)
    return pq.read_table(folder / f"{split}.parquet")


def test_predicted_clicks_of_every_slot_are_those_observed(world_of_slots):
    world, config, folder = world_of_slots
    table = _scored(config, folder, "test")
    truth = world.probability["test"]
    scenario, slot = np.array(table["scenario"].to_pylist()), table["position"].to_numpy()
    placed, any_slot = (table[name].to_numpy().astype(float) for name in ("score", ANY_SLOT))
    for name in SLOTS:
        for number in range(1, 5):
            rows = (scenario == name) & (slot == number)
            expected = truth[rows].sum()  # as many validation rows as test rows say what a slot does
            assert placed[rows].sum() == pytest.approx(expected, abs=2.5 * expected**0.5), (name, number)
    first = slot == 1
    assert any_slot[first].sum() < 0.85 * truth[first].sum(), "an average over slots promises the first less than it gets"
    assert any_slot.sum() == pytest.approx(truth.sum(), rel=0.08)


def test_rows_without_a_slot_are_scored_for_any(world_of_slots):
    world, config, folder = world_of_slots
    predictor = Predictor.load(config.output, cache=config.text.cache)
    prepared = open_prepared(world.path)
    table = pa.Table.from_batches(list(prepared.iter("test"))).slice(0, 400)
    catalogs = predictor.catalogs(prepared.ads(), prepared.users())
    known, unknown = (
        predictor.score_examples(predictor.examples_of(rows), catalogs) for rows in (table, table.drop_columns(["position"]))
    )
    assert np.array_equal(unknown.score, unknown.any_slot) and np.array_equal(known.any_slot, unknown.score)
    assert np.array_equal(known.logit, unknown.logit), "the raw output knows no slot"
    first = table["position"].to_numpy() == 1
    assert (known.score[first] > unknown.score[first]).all()


def test_metrics_without_slots_stand_beside_the_logged_ones(world_of_slots):
    _, config, folder = world_of_slots
    _scored(config, folder, "test")
    judged = evaluate.run(
        EvaluateConfig(scored=folder / "test.parquet", output=folder / "judged", bootstrap={"replicates": 20}), QUIET
    )
    runs = judged.as_dict()["tasks"]["click"]["runs"]
    logged, without = (runs[name]["metrics"]["auc"]["value"] for name in ("model", "any_slot"))
    assert logged > without + 0.01 > 0.6
    assert "any_slot" in (folder / "judged" / "report.html").read_text(encoding="utf-8")
    reported = json.loads((config.output / "metrics.json").read_text(encoding="utf-8"))["models"]
    assert reported["adrec"]["auc"] > reported["any_slot"]["auc"]


def test_baselines_are_compared_with_the_model_that_knows_as_little(world_of_slots):
    """They read no slots: the lead that the slots give is not the model's."""
    _, config, folder = world_of_slots
    _scored(config, folder, "test")
    table = pq.read_table(folder / "test.parquet")
    pq.write_table(table.append_column("baseline_twin", table[ANY_SLOT]), folder / "twin.parquet")
    judged = evaluate.run(
        EvaluateConfig(scored=folder / "twin.parquet", output=folder / "twin", bootstrap={"replicates": 20}), QUIET
    )
    compared = judged.as_dict()["tasks"]["click"]["comparisons"]
    gaps = [line["value"] for line in compared if line["against"] == "twin"]
    assert gaps and all(gap == 0 for gap in gaps)


def test_the_report_is_that_of_score_and_evaluate(world_of_slots):
    _, config, folder = world_of_slots
    if config.refit:
        return  # the bundle has learned these rows since
    _scored(config, folder, "valid")
    judged = evaluate.run(
        EvaluateConfig(scored=folder / "valid.parquet", output=folder / "judged_valid", bootstrap={"replicates": 20}), QUIET
    )
    runs = judged.as_dict()["tasks"]["click"]["runs"]
    reported = json.loads((config.output / "metrics.json").read_text(encoding="utf-8"))["models"]
    for row, run in (("adrec", "model"), ("any_slot", "any_slot")):
        for metric, value in reported[row].items():
            assert value == pytest.approx(runs[run]["metrics"][metric]["value"], abs=1e-9)


@pytest.mark.parametrize("kind", ["score", "revenue"])
def test_lists_promise_what_their_slots_give(world_of_slots, kind):
    """Ads of lists are clicked with the true probability in their slot; the promise of each slot is what comes."""
    world, config, folder = world_of_slots
    prepared = open_prepared(world.path)
    bids = np.random.default_rng(0).uniform(0.5, 2.0, 60)
    ads = prepared.ads().append_column("bid", pa.array(bids)).append_column("budget", pa.array(np.full(60, 30.0)))
    pq.write_table(ads, folder / "ads.parquet")
    result = rank.run(
        RankConfig(
            bundle=config.output,
            prepared=world.path,
            split="test",
            ads=folder / "ads.parquet",
            output=folder / "ranked.parquet",
            policies={"default": {"top_n": 4, "value": {"kind": kind}, "diversity": {"method": "none"}}},
        ),
        QUIET,
    )
    ranked = pq.read_table(folder / "ranked.parquet")
    truth = _truth(world, ranked)
    promised, slot = ranked["score"].to_numpy().astype(float), ranked["rank"].to_numpy()
    for number in range(1, 5):
        rows = slot == number
        assert promised[rows].mean() == pytest.approx(truth[rows].mean(), rel=0.2), number
    assert ranked[ANY_SLOT].to_numpy()[slot == 1].mean() < 0.9 * truth[slot == 1].mean()
    if kind == "revenue":
        price = ranked["price"].to_numpy()
        spent = pc.sum(pa.array(price * promised)).as_py()
        assert result.expected_spend == pytest.approx(spent, rel=1e-5)
        place = np.array([int(name[1:]) for name in ranked["ad_id"].to_pylist()])
        assert (np.bincount(place, price * promised, 60) <= 30.0 + 1e-4).all(), "no budget is overspent in expectation"
        assert (price * truth).sum() == pytest.approx(spent, rel=0.2)


def _truth(world, ranked):
    """True click probability of every listed ad in its slot."""
    table = pa.Table.from_batches(list(open_prepared(world.path).iter("test", ["request_id", "scenario"])))
    scenario_of = dict(zip(table["request_id"].to_pylist(), table["scenario"].to_pylist(), strict=True))
    ad, user = (np.array([int(name[1:]) for name in ranked[column].to_pylist()]) for column in ("ad_id", "user_id"))
    likes = (world.liked[user] == world.topic_of_ad[ad][:, None]).any(axis=1)
    slots = [
        SLOTS[scenario_of[name]][rank - 1]
        for name, rank in zip(*(ranked[c].to_pylist() for c in ("request_id", "rank")), strict=True)
    ]
    return 1 / (1 + np.exp(-(-2.0 + 2.5 * likes + world.appeal[ad] + np.array(slots))))


def test_a_log_without_slots_is_refused(tmp_path):
    world = make_world(tmp_path / "prepared", requests=200)
    config = FinetuneConfig(
        prepared=world.path, output=tmp_path / "bundle", model={"width": 8, "hidden": [8], "position_bias": True},
        training={"epochs": 1, "loggers": []}, baselines={"names": []},
    )  # fmt: skip
    for name in ("train", "valid", "test"):
        for file in (world.path / "impressions" / name).glob("*.parquet"):
            pq.write_table(pq.read_table(file).drop_columns(["position"]), file)
    with pytest.raises(ConfigError, match=r"position_bias: .* has no column 'position'"):
        finetune.run(config, QUIET)
    assert not config.output.exists()


def test_a_slot_among_the_features_is_warned_of(tmp_path, capsys):
    world = make_world(tmp_path / "prepared", requests=200)
    train = pa.concat_tables(pq.read_table(file) for file in sorted((world.path / "impressions" / "train").glob("*.parquet")))
    features = json.loads((world.path / "features.json").read_text())
    features["impressions"] = FeatureSet.fit(
        FeatureSpec(categorical=(CategorySpec("scenario"), CategorySpec("position"))), [train]
    ).to_json()
    (world.path / "features.json").write_text(json.dumps(features))
    config = FinetuneConfig(
        prepared=world.path, output=tmp_path / "bundle", model={"width": 8, "hidden": [8]},
        training={"epochs": 1, "loggers": []}, baselines={"names": []},
    )  # fmt: skip
    finetune.run(config, Terminal())
    assert "'position' is a feature, but no slot is known when ads are ranked" in " ".join(capsys.readouterr().err.split())
