"""One definition: for the same user, ad, moment and candidates every command has the features and the logit of training."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from adrec.config.data.preprocess import PreprocessConfig
from adrec.config.inference.rank import Policy
from adrec.config.inference.score import ScoreConfig
from adrec.config.inference.serve import ServeConfig
from adrec.config.training.finetune import FinetuneConfig
from adrec.data.examples import examples_from_table
from adrec.data.prepared import open_prepared
from adrec.inference.known import known_of
from adrec.inference.lists.ranker import Ranker
from adrec.inference.lists.requests import split_requests
from adrec.inference.predictor import Predictor
from adrec.inference.score_source import open_source
from adrec.sample import generate_sample
from adrec.serve.engine import Engine
from adrec.serve.intake.messages import EventIn, ExplainRequest, RankRequest, ScoreRequest, UserIn
from adrec.stages.data import preprocess
from adrec.stages.training import finetune
from adrec.terminal import Terminal

MIND = Path(__file__).resolve().parents[2] / "../shared/data/mind5k"
QUIET = Terminal(quiet=True)
COUNTERS = [
    "usual",
    {"by": ["age_band", "category"], "measures": ["rate"]},
    {"by": ["user_language", "language"], "measures": ["rate"]},
]
FEATURES = {
    "impressions": {
        "numeric": ["counter_*", {"column": "history_length", "transform": "log1p"}],
        "categorical": ["scenario"],
        "calendar": {},
    },
    "ads": {"categorical": ["category", "language"]},
    "users": {"categorical": ["age_band"]},
}
SPLIT = {"method": "time", "valid_fraction": 0.15, "test_fraction": 0.25}
POLICY = {"top_n": 10, "rules": {"clicked": "keep", "active": False}, "diversity": {"method": "none"}}
KEPT = ("user_id", "ad_id", "shown_at", "request_id", "scenario", "query")
USER = {"parts": ["soft", "sasrec", "hstu", "target"], "heads": 2, "search": "category", "search_top": 3}
TRAINING = {
    "text": {"reference": None, "lexical": 8}, "hybrid": {"kind": "none"},
    "model": {"width": 8, "hidden": [8], "user": USER, "taste": True},
    "loss": {"terms": [{"kind": "bce"}, {"kind": "next_click"}]},
    "training": {"epochs": 2, "batch_rows": 256, "learning_rate": 0.01}, "baselines": {"names": []},
}  # fmt: skip


def prepare(raw, output, impressions, **changes):
    tables = {name: {"files": str(raw / f"{name}.parquet")} for name in ("ads", "users")}
    config = {
        "output": output, "source": {"format": "tables", "impressions": {"files": str(impressions)}, **tables},
        "tokenizer": {"kind": "none"}, "counters": COUNTERS, "features": FEATURES, "split": SPLIT,
        "history": {"max_clicks": 20, "max_skipped": 5}, **changes,
    }  # fmt: skip
    preprocess.run(PreprocessConfig.model_validate(config), QUIET)
    return open_prepared(output)


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """A log whose slots are forgotten: a ranker cannot know them."""
    folder = tmp_path_factory.mktemp("parity")
    generate_sample(folder / "raw", impressions=5000, seed=3)
    rows = pq.read_table(folder / "raw" / "impressions").drop_columns(["position"])
    pq.write_table(rows, folder / "rows.parquet")
    prepared = prepare(folder / "raw", folder / "prepared", folder / "rows.parquet")
    training = {"prepared": str(prepared.path), "output": str(folder / "bundle"), **TRAINING}
    finetune.run(FinetuneConfig.model_validate(training), QUIET)
    return folder, prepared, Predictor.load(folder / "bundle", device="cpu")


def trained_rows(prepared, predictor, split="test"):
    """The prepared rows of a split as training reads them, and their logits."""
    table = pa.Table.from_batches(list(prepared.iter(split)))
    limit = predictor.packed.config.model.user.max_history
    examples = examples_from_table(table, predictor.packed.features["impressions"], max_history=limit, labels=())
    catalogs = predictor.catalogs(prepared.ads(), prepared.users())
    return table, examples, predictor.score_examples(examples, catalogs, baselines=False)


def assert_same_inputs(found, expected):
    np.testing.assert_allclose(found.numeric, expected.numeric, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(found.categorical, expected.categorical)
    np.testing.assert_array_equal(found.history_length, expected.history_length)
    for row in range(0, len(expected), 7):
        lists = [side.histories.take(side.history_of_row[row : row + 1]).values for side in (found, expected)]
        np.testing.assert_array_equal(*lists)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("shuffled", [False, True])
def test_score_of_own_rows(sample, tmp_path, split, shuffled):
    folder, prepared, predictor = sample
    table, examples, scores = trained_rows(prepared, predictor, split)
    order = np.random.default_rng(0).permutation(len(table)) if shuffled else np.arange(len(table))
    rows = table.select([name for name in KEPT if name in table.column_names]).take(pa.array(order))
    score_agrees(folder, prepared, predictor, tmp_path, rows, order, examples, scores.logit)


def score_agrees(folder, prepared, predictor, tmp_path, rows, order, examples, logit):
    """`score` of own `rows`, each of which is row `order` of the examples: the same logits, and in order the same inputs."""
    pq.write_table(rows, tmp_path / "rows.parquet")
    config = {
        "bundle": str(folder / "bundle"), "prepared": str(prepared.path), "impressions": str(tmp_path / "rows.parquet"),
        "output": str(tmp_path / "scored.parquet"), "chunk_rows": 700,
    }  # fmt: skip
    source = open_source(ScoreConfig.model_validate(config), predictor)
    start = 0
    for chunk in source.chunks():
        here = order[start : start + len(chunk.examples)]
        if (np.diff(here) == 1).all():
            assert_same_inputs(chunk.examples, examples.take(here))
        found = predictor.score_examples(chunk.examples, source.catalogs, baselines=False)
        np.testing.assert_allclose(found.logit, logit[here], atol=1e-6)
        start += len(chunk.examples)
    assert start == len(rows)


def test_ranker(sample):
    _, prepared, predictor = sample
    table, examples, scores = trained_rows(prepared, predictor)
    ads, users = prepared.ads(), prepared.users()
    catalogs = predictor.catalogs(ads, users)
    known = known_of(prepared, catalogs.ad_table)
    ranker = Ranker(predictor, catalogs, ads, users, {"default": Policy()}, known=known)
    done = 0
    for requests in split_requests(prepared, "test", batch_rows=400):
        bare = requests.select(["user_id", "request_id", "user_index", "shown_at", "scenario"])
        table_of_requests = ranker.attached(bare)
        own = predictor.examples_of(table_of_requests)
        place = pc.index_in(table["request_id"], value_set=requests["request_id"].combine_chunks()).to_numpy(
            zero_copy_only=False
        )
        here = np.flatnonzero(~np.isnan(place.astype(float)))
        row, ad = place[here].astype(np.int64), examples.ad_index[here].astype(np.int64)
        pairs = ranker.pairs(table_of_requests, own, row, ad)
        assert_same_inputs(pairs, examples.take(here))
        found = predictor.score_examples(pairs, catalogs, baselines=False)
        if "query" not in table.column_names:
            np.testing.assert_allclose(found.logit, scores.logit[here], atol=1e-6)
        done += len(here)
    assert done == len(table)


def engine_over(folder, prepared, tmp_path):
    config = {
        "bundle": str(folder / "bundle"), "prepared": str(prepared.path), "store": str(tmp_path / "store.sqlite"),
        "policies": {"default": POLICY}, "device": "cpu",
    }  # fmt: skip
    return Engine(ServeConfig.model_validate(config))


def asked(table, rows):
    def row(place):
        cells = table.slice(place, 1).to_pylist()[0]
        return {
            name: cells[name] for name in ("user_id", "ad_id", "shown_at", "scenario", "query") if cells.get(name) is not None
        }

    return [row(int(place)) for place in rows]


def answers_agree(engine, table, scores, rows):
    """score, rank and explain of the server over rows of one request."""
    found = engine.score([ScoreRequest(rows=asked(table, rows))])[0]
    np.testing.assert_allclose([row["logit"] for row in found["rows"]], scores.logit[rows], atol=1e-6)
    first = asked(table, rows[:1])[0]
    ads = table["ad_id"].take(pa.array(rows)).to_pylist()
    request = {"user_id": first["user_id"], "shown_at": first["shown_at"], "candidates": ads, "top_n": 10}
    request |= {name: first[name] for name in ("scenario", "query") if name in first}
    ranked = engine.rank([RankRequest(requests=[request])])[0]["lists"][0]["ads"]
    expected = dict(zip(ads, scores.score[rows].tolist(), strict=True))
    assert {ad["ad_id"] for ad in ranked} == set(ads)
    for ad in ranked:
        assert ad["score"] == pytest.approx(expected[ad["ad_id"]], abs=1e-6)


def test_server_at_logged_moments(sample, tmp_path):
    folder, prepared, predictor = sample
    table, _, scores = trained_rows(prepared, predictor)
    engine = engine_over(folder, prepared, tmp_path)
    codes = pc.rank(table["shown_at"], tiebreaker="dense").to_numpy()
    for number in np.unique(codes)[::40]:
        answers_agree(engine, table, scores, np.flatnonzero(codes == number))
    row = 11
    cells = table.slice(row, 1).to_pylist()[0]
    item = ExplainRequest(
        user=UserIn(user_id=cells["user_id"]), ad_id=cells["ad_id"], shown_at=cells["shown_at"], scenario=cells["scenario"],
        query=cells.get("query"),
    )  # fmt: skip
    assert engine.explain(item).logit == pytest.approx(float(scores.logit[row]), abs=1e-5)


def test_server_after_live_events_is_a_preprocess_of_the_log_with_them(sample, tmp_path):
    folder, whole, predictor = sample
    log = pq.read_table(folder / "rows.parquet")
    table, _, scores = trained_rows(whole, predictor)
    cut = table["shown_at"][0]
    earlier = log.filter(pc.less(log["shown_at"], cut))
    pq.write_table(earlier, tmp_path / "earlier.parquet")
    prepared = prepare(folder / "raw", tmp_path / "prepared", tmp_path / "earlier.parquet")
    engine = engine_over(folder, prepared, tmp_path)
    requests = pc.rank(table["shown_at"], tiebreaker="dense").to_numpy()
    for number in np.unique(requests)[:120]:
        rows = np.flatnonzero(requests == number)
        if number % 10 == 1:
            answers_agree(engine, table, scores, rows)
        events = []
        for cells in table.take(pa.array(rows)).to_pylist():
            told = {name: cells[name] for name in ("user_id", "ad_id", "scenario")} | {
                "at": cells["shown_at"],
                "request_id": cells["request_id"],
            }
            events.append(EventIn(kind="impression", **told))
            if cells["click"]:
                events.append(EventIn(kind="click", **told))
        engine.record(events)


@pytest.mark.skipif(not MIND.exists(), reason="the MIND sample is not beside this checkout")
def test_mind_rows_score_as_they_were_trained(tmp_path):
    config = {
        "output": tmp_path / "prepared",
        "history": {"max_clicks": 1000},
        "source": {"format": "mind", "behaviors": str(MIND / "behaviors.tsv"), "news": str(MIND / "news.tsv")},
        "split": {"method": "time", "valid_from": "2019-11-13 12:00:00", "test_from": "2019-11-14 00:00:00"},
        "text": {"ad_template": "{title}"}, "tokenizer": {"kind": "none"},
        "counters": [
            {"by": ["ad"], "measures": ["clicks", "rate"], "half_lives_hours": [None, 4]},
            {"by": ["category"], "measures": ["rate", "history_share"]},
            {"by": ["user", "category"], "measures": ["rate"]},
        ],
        "features": {"impressions": {"numeric": ["counter_*"]}, "ads": {"categorical": ["category"]}},
    }  # fmt: skip
    preprocess.run(PreprocessConfig.model_validate(config), QUIET)
    prepared = open_prepared(tmp_path / "prepared")
    training = {
        "prepared": str(prepared.path),
        "output": str(tmp_path / "bundle"),
        **TRAINING,
        "model": {**TRAINING["model"], "taste": False},
        "training": {"epochs": 1, "batch_rows": 4096},
    }
    finetune.run(FinetuneConfig.model_validate(training), QUIET)
    predictor = Predictor.load(tmp_path / "bundle", device="cpu")
    table, _, scores = trained_rows(prepared, predictor)
    ads = prepared.ads()["ad_id"].combine_chunks()
    lists = table["history_index"].combine_chunks()
    given = pa.ListArray.from_arrays(lists.offsets, ads.take(lists.values))
    rows = table.select(["user_id", "ad_id", "shown_at", "request_id"]).append_column("history", given).slice(0, 4000)
    pq.write_table(rows, tmp_path / "rows.parquet")
    own = {
        "bundle": str(tmp_path / "bundle"),
        "prepared": str(prepared.path),
        "impressions": str(tmp_path / "rows.parquet"),
        "output": "o.parquet",
    }
    source = open_source(ScoreConfig.model_validate(own), predictor)
    logits = [predictor.score_examples(chunk.examples, source.catalogs, baselines=False).logit for chunk in source.chunks()]
    np.testing.assert_allclose(np.concatenate(logits), scores.logit[:4000], atol=1e-6)
    engine = engine_over(tmp_path, prepared, tmp_path)
    first = np.flatnonzero(pc.equal(table["request_id"], table["request_id"][0]).to_numpy(zero_copy_only=False))
    user = {"user_id": table["user_id"][0].as_py(), "history": given[0].as_py()}
    found = engine.score([ScoreRequest(rows=asked(table, first), users=[user])])[0]
    np.testing.assert_allclose([row["logit"] for row in found["rows"]], scores.logit[first], atol=1e-6)
