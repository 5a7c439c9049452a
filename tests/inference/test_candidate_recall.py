"""Candidate recall against an oracle that scores every pair by the public door; told by finetune, rank and evaluate alike."""

import json
import tracemalloc

import numpy as np
import pyarrow as pa
import pytest
from worlds import make_bundle, make_world

from adrec.config.evaluation.evaluate import EvaluateConfig
from adrec.config.inference.rank import Policy, RankConfig
from adrec.config.inference.score import ScoreConfig
from adrec.data.arrays import unit_rows
from adrec.data.prepared import open_prepared
from adrec.errors import ResourceError
from adrec.inference.known import known_of
from adrec.inference.lists.ranker import Ranker
from adrec.inference.lists.recall import candidate_recall, sample_requests
from adrec.inference.lists.requests import split_requests
from adrec.inference.predictor import Predictor
from adrec.schema import TIMESTAMP
from adrec.stages.evaluation import evaluate
from adrec.stages.inference import rank, score
from adrec.terminal import Terminal

ADS, CANDIDATES, BEST = 300, 30, 5
IN_BATCH = "loss.terms=[{kind: bce}, {kind: in_batch, weight: 0.3}]"


@pytest.fixture(scope="module", params=["one", "ensemble"])
def world(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("recall")
    make_world(folder / "prepared", users=60, ads=ADS, requests=700)
    seeds = ["seeds=2", "ensemble=true"] if request.param == "ensemble" else []
    make_bundle(folder, "model.user.max_history=20", "recall_requests=20", IN_BATCH, *seeds)
    return folder


def made(world, **policy):
    prepared = open_prepared(world / "prepared")
    predictor = Predictor.load(world / "bundle", device="cpu")
    ads, users = prepared.ads(), prepared.users()
    catalogs = predictor.catalogs(ads, users)
    retrieval = {"candidates": CANDIDATES, "channels": ["model", "popular"]}
    chosen = Policy.model_validate({"top_n": BEST, "retrieval": retrieval, **policy})
    known = known_of(prepared, catalogs.ad_table)
    return prepared, predictor, Ranker(predictor, catalogs, ads, users, {"default": chosen}, always="default", known=known)


def sampled(prepared, ranker, count):
    drawn = sample_requests(split_requests(prepared, "test"), ranker.policy_of, requests=count, ads=ADS)
    assert drawn is not None
    return drawn


def test_the_recall_is_that_of_scoring_every_pair(world):
    """Rules: no category c1, nothing clicked before. The two channels have equal turns."""
    retrieval = {"candidates": CANDIDATES, "channels": ["model", "popular"], "shares": {"model": 1, "popular": 1}}
    prepared, predictor, ranker = made(world, rules={"blocked_categories": ["c1"]}, retrieval=retrieval)
    requests = sampled(prepared, ranker, 12)
    (found,) = candidate_recall(ranker, requests)
    ads = prepared.ads()
    ids = ads["ad_id"].to_pylist()
    histories = [[ids[one] for one in row] for row in requests["history_index"].to_pylist()]
    seen = predictor.packed.seen_ads
    clicks = dict(zip(seen["id"].to_pylist(), seen["clicks"].to_pylist(), strict=True))
    blocked = np.array(ads["category"].to_pylist()) == "c1"
    shares = {"model": [], "popular": [], "all": []}
    for row in range(len(requests)):
        one = {name: requests[name][row].as_py() for name in ("user_id", "shown_at", "scenario")}
        table = pa.table(
            {
                "user_id": [one["user_id"]] * ADS,
                "ad_id": ids,
                "shown_at": pa.array([one["shown_at"]] * ADS, TIMESTAMP),
                "scenario": [one["scenario"]] * ADS,
                "history": pa.array([histories[row]] * ADS, pa.list_(pa.string())),
            }
        )
        allowed = ~blocked & ~np.isin(ids, histories[row])
        logit = np.where(allowed, predictor.score(table, ads, prepared.users())["logit"].to_numpy(), -np.inf)
        best = set(np.argsort(-logit, kind="stable")[:BEST].tolist())
        user = predictor.encode_users(table.slice(0, 1), ads, prepared.users())[0]
        near = np.argsort(-np.where(allowed, predictor.encode_ads(ads) @ user, -np.inf), kind="stable")[:CANDIDATES]
        count = np.array([np.log1p(np.float32(clicks.get(ad, 0))) for ad in ids])
        popular = np.argsort(-np.where(allowed, count, -np.inf), kind="stable")[:CANDIDATES]
        woven = [ad for pair in zip(near.tolist(), popular.tolist(), strict=True) for ad in pair]
        shares["model"].append(len(best & set(near.tolist())) / BEST)
        shares["popular"].append(len(best & set(popular.tolist())) / BEST)
        shares["all"].append(len(best & set(list(dict.fromkeys(woven))[:CANDIDATES])) / BEST)
    assert found.requests == 12 and found.k == BEST and found.candidates == CANDIDATES
    assert found.channels == {name: pytest.approx(np.mean(shares[name])) for name in ("model", "popular")}
    assert found.recall == pytest.approx(np.mean(shares["all"]))


def test_a_sample_does_not_depend_on_how_the_requests_come(world):
    prepared, _, ranker = made(world)
    whole = pa.concat_tables(split_requests(prepared, "test"))
    backwards = whole.take(pa.array(np.arange(len(whole))[::-1]))
    tables = [backwards.slice(start, 7) for start in range(0, len(whole), 7)]
    one, other = (sample_requests(parts, ranker.policy_of, requests=9, ads=ADS) for parts in ([whole], tables))
    assert len(one) == 9 and sorted(one["request_id"].to_pylist()) == sorted(other["request_id"].to_pylist())


def test_finetune_writes_it_and_evaluate_shows_it_without_the_model(world, tmp_path):
    (measured,) = json.loads((world / "bundle" / "metrics.json").read_text())["candidate_recall"]
    assert measured["requests"] == 20 and measured["candidates"] == 200 and 0 < measured["recall"] <= 1
    assert set(measured["channels"]) == {"model", "text", "popular"} == set(measured["shares"])
    assert json.loads((world / "bundle" / "retrieval.json").read_text()) == {"shares": measured["shares"]}
    assert Predictor.load(world / "bundle").packed.shares == measured["shares"]
    values = {
        "bundle": world / "bundle",
        "prepared": world / "prepared",
        "output": tmp_path / "scored.parquet",
        "split": "test",
    }
    score.run(ScoreConfig.model_validate(values), Terminal(quiet=True))
    for file in (world / "bundle").glob("*.safetensors"):
        file.rename(file.with_suffix(".away"))
    try:
        config = EvaluateConfig(scored=tmp_path / "scored.parquet", training=world / "bundle", output=tmp_path / "evaluation")
        result = evaluate.run(config, Terminal(quiet=True))
    finally:
        for file in (world / "bundle").glob("*.away"):
            file.rename(file.with_suffix(".safetensors"))
    assert result.as_dict()["candidate_recall"] == [measured]
    page = (tmp_path / "evaluation" / "report.html").read_text(encoding="utf-8")
    assert "Candidate recall" in page and f"{measured['recall']:.3f}" in page


def rank_config(world, output, **changes):
    policies = {"default": {"top_n": BEST, "retrieval": {"candidates": 10, "channels": ["popular"]}}}
    values = {"bundle": world / "bundle", "prepared": world / "prepared", "output": output, "policies": policies, **changes}
    return RankConfig.model_validate(values)


def test_rank_warns_of_low_recall_and_leaves_it_beside_the_lists(world, tmp_path, capsys):
    result = rank.run(rank_config(world, tmp_path / "lists.csv"), Terminal(quiet=True))
    (found,) = result.candidate_recall
    assert found.recall < 0.8
    said = " ".join(capsys.readouterr().err.split())
    assert f"only {found.recall:.2f} of the scorer's 5 best ads are among the 10 candidates" in said
    beside = json.loads((tmp_path / "lists.csv.recall.json").read_text())
    assert beside == {"candidate_recall": [found.as_dict()]}
    rank.run(rank_config(world, tmp_path / "lists.parquet"), Terminal(quiet=True))
    judged = evaluate.run(EvaluateConfig(scored=tmp_path / "lists.parquet", output=tmp_path / "e"), Terminal(quiet=True))
    assert judged.candidate_recall == (found,)


def test_who_wants_no_recall_pays_nothing_and_strangers_files_stay(world, tmp_path):
    none = rank.run(rank_config(world, tmp_path / "a.parquet", recall_requests=0), Terminal(quiet=True))
    assert none.candidate_recall == [] and [file.name for file in tmp_path.iterdir()] == ["a.parquet"]
    rank.run(rank_config(world, tmp_path / "a.parquet"), Terminal(quiet=True))
    assert (tmp_path / "a.parquet.recall.json").exists()
    rank.run(rank_config(world, tmp_path / "a.parquet", recall_requests=0), Terminal(quiet=True))
    assert not (tmp_path / "a.parquet.recall.json").exists(), "that of the earlier lists"
    (tmp_path / "b.parquet.recall.json").write_text('{"mine": 1}')
    with pytest.raises(ResourceError, match="is not a record of candidate recall that adrec wrote"):
        rank.run(rank_config(world, tmp_path / "b.parquet"), Terminal(quiet=True))
    assert (tmp_path / "b.parquet.recall.json").read_text() == '{"mine": 1}' and not (tmp_path / "b.parquet").exists()


def test_shares_in_a_policy_go_before_the_measured_ones(world):
    shares = {"model": 0, "popular": 1}
    retrieval = {"candidates": CANDIDATES, "channels": ["model", "popular"], "shares": shares}
    prepared, _, ranker = made(world, retrieval=retrieval)
    (found,) = candidate_recall(ranker, sampled(prepared, ranker, 10))
    assert found.shares == shares and found.recall == found.channels["popular"]
    with pytest.raises(ValueError, match="shares: names each of the channels"):
        Policy.model_validate({"retrieval": {"channels": ["model"], "shares": {"text": 1}}})


def test_scaling_a_catalogue_to_unit_length_takes_one_copy():
    """What unit vectors need beside themselves is a piece of them."""
    vectors = np.random.default_rng(0).normal(size=(200_000, 16)).astype(np.float32)
    vectors[7] = 0
    tracemalloc.start()
    scaled = unit_rows(vectors)
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert taken < 1.5 * vectors.nbytes
    lengths = np.linalg.norm(scaled, axis=1)
    assert lengths[7] == 0 and np.allclose(np.delete(lengths, 7), 1, atol=1e-6)
