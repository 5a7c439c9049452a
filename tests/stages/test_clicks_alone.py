"""Clicks alone from the raw file to ranks over the whole catalogue, in a world whose true preferences are known."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adrec.config.data.preprocess import PreprocessConfig
from adrec.config.evaluation.evaluate import EvaluateConfig
from adrec.config.inference.rank import RankConfig
from adrec.config.inference.score import ScoreConfig
from adrec.config.training.finetune import FinetuneConfig
from adrec.data.prepared import open_prepared
from adrec.errors import ConfigError
from adrec.inference.shards import part_path
from adrec.stages.data import preprocess
from adrec.stages.evaluation import evaluate
from adrec.stages.inference import rank, score
from adrec.stages.training import finetune
from adrec.terminal import Terminal

QUIET = Terminal(quiet=True)
USERS, ADS, TOPICS, CLICKS = 60, 48, 6, 2400
START = np.datetime64("2026-03-01T00:00:00", "us")
HOUR = np.timedelta64(3_600_000_000, "us")
TOPIC = np.arange(ADS) % TOPICS


def preferences():
    """(U, A) the probability of each ad given the user: one loved topic, one liked, and the ads' own appeal."""
    rng = np.random.default_rng(1)
    taste = np.full((USERS, TOPICS), 0.05)
    for user in range(USERS):
        loved, liked = rng.choice(TOPICS, 2, replace=False)
        taste[user, loved], taste[user, liked] = 2.0, 0.7
    weight = taste[:, TOPIC] * rng.gamma(2.0, size=ADS)[None, :]
    return weight / weight.sum(axis=1, keepdims=True)


def write_log(folder, keep=CLICKS):
    """The first `keep` clicks of the world's log, an hour apart, and its catalogue."""
    rng = np.random.default_rng(2)
    truth = preferences()
    user = rng.integers(0, USERS, CLICKS)
    ad = np.array([rng.choice(ADS, p=truth[one]) for one in user])
    log = pa.table(
        {
            "user_id": np.char.add("u", user.astype(str)),
            "ad_id": np.char.add("a", ad.astype(str)),
            "shown_at": pa.array(START + np.arange(CLICKS) * HOUR, pa.timestamp("us", "UTC")),
        }
    )
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(log.slice(0, keep), folder / "clicks.parquet")
    ads = pa.table({"ad_id": [f"a{n}" for n in range(ADS)], "title": [f"thing {n}" for n in range(ADS)],
                    "category": [f"topic {n}" for n in TOPIC]})  # fmt: skip
    pq.write_table(ads, folder / "ads.parquet")


def prepare(folder, **settings):
    config = {
        "output": str(folder / "prepared"),
        "source": {"format": "tables", "impressions": {"files": str(folder / "clicks.parquet")},
                   "ads": {"files": str(folder / "ads.parquet")}},
        "negatives": {"per_click": 6}, "counters": ["usual"], "tokenizer": {"kind": "none"},
        "features": {"impressions": {"numeric": ["counter_*"]}, "ads": {"categorical": ["category"]}},
        "split": {"method": "time", "valid_from": "2026-05-10", "test_from": "2026-05-20"},
    }  # fmt: skip
    preprocess.run(PreprocessConfig.model_validate({**config, **settings}), QUIET)
    return folder / "prepared"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clicks_alone")
    write_log(folder)
    prepare(folder)
    finetune.run(
        FinetuneConfig.model_validate(
            {
                "prepared": str(folder / "prepared"), "output": str(folder / "bundle"),
                "model": {"width": 16, "hidden": [16], "identities": ["ads"]},
                "baselines": {"names": ["popularity", "recent_popularity", "item_cf", "ease", "item_transitions"]},
                "training": {"epochs": 6, "batch_rows": 256, "loggers": []},
            }
        ),
        QUIET,
    )  # fmt: skip
    return folder


def config_of(folder, output="scored.parquet", prepared=None, **changes):
    values = {"bundle": folder / "bundle", "prepared": prepared or folder / "prepared", "split": "test",
              "output": folder / output, "chunk_rows": 96, "shard_rows": 480}  # fmt: skip
    return ScoreConfig(**{**values, **changes})


@pytest.fixture(scope="module")
def scored(world):
    result = score.run(config_of(world), QUIET)
    assert result.is_preference and result.ranked_clicks == 480
    return pq.read_table(world / "scored.parquet")


def test_it_ranks_nearly_as_well_as_the_true_preferences(world, scored):
    frame = scored.filter(pa.compute.is_valid(scored["catalogue_rank"])).to_pandas()
    truth = preferences()
    user, ad = (frame[name].str[1:].astype(int).to_numpy() for name in ("user_id", "ad_id"))
    best = 1 + (truth[user] > truth[user, ad][:, None]).sum(axis=1)

    def recall(ranks):
        return (ranks <= 10).mean()

    assert (frame.catalogue_size == ADS).all()
    assert recall(frame.catalogue_rank) > 0.93 * recall(best)
    assert recall(frame.catalogue_rank) > recall(frame.catalogue_rank_popularity) + 0.15
    assert recall(frame.catalogue_rank) > recall(frame.catalogue_rank_item_cf) - 0.02


def test_evaluate_judges_the_ranks_and_no_probability(world, scored):
    config = EvaluateConfig(scored=world / "scored.parquet", output=world / "evaluation", bootstrap={"replicates": 200})
    evaluate.run(config, QUIET)
    metrics = json.loads((world / "evaluation" / "metrics.json").read_text())
    found, ranks = metrics["catalogue"], np.asarray(scored["catalogue_rank"].drop_null())
    model = found["runs"]["model"]
    assert found["clicks"] == 480 and found["unranked_clicks"] == 0 and found["ads"] == ADS
    assert model["recall@10"]["value"] == pytest.approx((ranks <= 10).mean())
    assert model["mrr"]["value"] == pytest.approx((1 / ranks).mean())
    assert model["ndcg@10"]["value"] == pytest.approx(np.where(ranks <= 10, 1 / np.log2(1 + ranks), 0).mean())
    assert model["recall@10"]["low"] < model["recall@10"]["value"] < model["recall@10"]["high"]
    gap = next(c for c in found["comparisons"] if c["against"] == "popularity" and c["metric"] == "recall@10")
    assert gap["low"] > 0 and gap["verdict"] == "better"
    assert not {"log_loss", "ece", "predicted_over_observed"} & set(metrics["tasks"]["click"]["runs"]["model"]["metrics"])
    assert metrics["lists"] is None
    page = (world / "evaluation" / "report.html").read_text()
    assert "Ranks among all ads" in page and "predicted / observed" not in page


def test_ranks_are_those_of_the_pairs_scored_by_themselves(world, scored):
    """Every ad as a row of the user's own, at the moment of a click."""
    clicks = scored.filter(pa.compute.is_valid(scored["catalogue_rank"])).slice(200, 6).to_pandas()
    rows = pa.table(
        {
            "user_id": np.repeat(clicks.user_id.to_numpy(), ADS),
            "ad_id": np.tile([f"a{n}" for n in range(ADS)], len(clicks)),
            "shown_at": pa.array(np.repeat(clicks.shown_at.dt.tz_localize(None).to_numpy("datetime64[us]"), ADS),
                                 pa.timestamp("us", "UTC")),
        }
    )  # fmt: skip
    pq.write_table(rows, world / "pairs.parquet")
    score.run(config_of(world, "own.parquet", split=None, impressions=world / "pairs.parquet", catalogue="none"), QUIET)
    own = pq.read_table(world / "own.parquet").to_pandas()
    assert "catalogue_rank" not in own
    for name, column in (("catalogue_rank", "logit"), ("catalogue_rank_ease", "baseline_ease")):
        grid = own[column].to_numpy().reshape(len(clicks), ADS)
        target = clicks.ad_id.str[1:].astype(int).to_numpy()
        reached = grid[np.arange(len(clicks)), target][:, None]
        low, high = 1 + (grid > reached + 1e-5).sum(axis=1), (grid >= reached - 1e-5).sum(axis=1)
        assert ((low <= clicks[name]) & (clicks[name] <= high)).all()


def test_the_future_changes_no_rank(world, scored, tmp_path):
    write_log(tmp_path, keep=CLICKS - 250)
    prepare(tmp_path)
    score.run(config_of(world, prepared=tmp_path / "prepared", output=tmp_path / "s.parquet"), QUIET)
    before = pq.read_table(tmp_path / "s.parquet")
    columns = [name for name in scored.column_names if name.startswith("catalogue")] + ["ad_id", "user_id", "drawn"]
    assert before.select(columns).equals(scored.select(columns).slice(0, len(before)))


def test_a_killed_run_goes_on_to_the_same_ranks(world, scored, tmp_path, monkeypatch):
    class Stopped(BaseException):
        pass

    def stop(*_):
        raise Stopped

    config = config_of(world, output=tmp_path / "s.parquet")
    monkeypatch.setattr(score, "_join", stop)
    with pytest.raises(Stopped):
        score.run(config, QUIET)
    monkeypatch.undo()
    for number in (0, 2, 5):
        part_path(tmp_path / ".s.parquet.work", number).unlink()
    assert score.run(config, QUIET).resumed_rows > 0
    assert pq.read_table(tmp_path / "s.parquet").equals(scored)
    whole = config_of(world, output=tmp_path / "w.parquet", chunk_rows=100_000, shard_rows=100_000)
    score.run(whole, QUIET)
    assert pq.read_table(tmp_path / "w.parquet")["catalogue_rank"].equals(scored["catalogue_rank"])


def test_a_sample_and_what_was_clicked_before(world, scored):
    score.run(config_of(world, "sample.parquet", catalogue=12), QUIET)
    sample = pq.read_table(world / "sample.parquet")["catalogue_size"].drop_null().to_numpy()
    assert set(sample) <= {12, 13}  # the click itself may be beyond those drawn
    score.run(config_of(world, "again.parquet", catalogue=12), QUIET)
    assert pq.read_table(world / "again.parquet").equals(pq.read_table(world / "sample.parquet"))
    score.run(config_of(world, "fresh.parquet", catalogue_clicked="drop"), QUIET)
    fresh = pq.read_table(world / "fresh.parquet").to_pandas().dropna(subset=["catalogue_rank"])
    log = pq.read_table(world / "clicks.parquet").to_pandas()
    for row in fresh.iloc[::40].itertuples():
        mine = log[(log.user_id == row.user_id) & (log.shown_at < row.shown_at)].ad_id.tail(50)
        assert row.catalogue_size == ADS - len(set(mine) - {row.ad_id})


def test_lists_come_out_of_it(world):
    config = RankConfig.model_validate(
        {"bundle": str(world / "bundle"), "prepared": str(world / "prepared"), "split": "test",
         "output": str(world / "ranked.parquet")}
    )  # fmt: skip
    rank.run(config, QUIET)
    ranked = pq.read_table(world / "ranked.parquet")
    assert len(ranked) and ranked["rank"].to_numpy().min() == 1


def test_draws_by_popularity_join_no_hybrid(tmp_path):
    write_log(tmp_path)
    prepare(tmp_path, negatives={"per_click": 4, "draw": "popularity"})
    values = {"prepared": str(tmp_path / "prepared"), "output": str(tmp_path / "bundle"), "training": {"loggers": []}}
    with pytest.raises(ConfigError, match=r"hybrid: .*Set hybrid.kind to none, or negatives.draw to uniform"):
        finetune.run(FinetuneConfig.model_validate({**values, "hybrid": {"kind": "weighted"}}), QUIET)
    assert open_prepared(tmp_path / "prepared").drawn_by == 0.75
