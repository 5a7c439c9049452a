"""Settings in pairs, through every command that reads a bundle: no traceback, and one score for one pair of user and ad."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from meetings import Meeting, goes, pairs_of, rows, wanted

from adrec.config.evaluation.evaluate import EvaluateConfig
from adrec.config.inference.encode import EncodeConfig
from adrec.config.inference.explain import ExplainConfig
from adrec.config.inference.rank import RankConfig
from adrec.config.inference.score import ScoreConfig
from adrec.config.inference.serve import ServeConfig
from adrec.config.training.finetune import FinetuneConfig
from adrec.data.prepared import open_prepared
from adrec.inference.predictor import Predictor
from adrec.metrics.classification import auc
from adrec.serve.engine import Engine
from adrec.serve.intake.messages import ExplainRequest, RankRequest, ScoreRequest, UserIn
from adrec.stages.evaluation import evaluate
from adrec.stages.inference import encode, explain, rank, score
from adrec.stages.training import finetune
from adrec.terminal import Terminal

QUIET = Terminal(quiet=True)
CHEAP = {"text": {"none", "words"}, "hybrid": {"none"}, "start": {"none"}}
USUAL = [number for number, row in enumerate(rows()) if all(row[name] in values for name, values in CHEAP.items())][:2]
"""Rows of the usual suite; the others are slow for their encoders, trees and bundles to go on from."""
ASKED = ("user_id", "ad_id", "shown_at", "scenario", "query")
OWN = (*ASKED, "request_id", "position")
POLICY = {
    "top_n": 1000, "retrieval": {"candidates": 1000}, "rules": {"clicked": "keep", "active": False}, "limits": {"budget": False}
}  # fmt: skip


def test_the_rows_hold_every_pair_that_goes():
    assert all(goes(row) for row in rows())
    assert set().union(*map(pairs_of, rows())) >= wanted()


@pytest.fixture(scope="module")
def meeting(tmp_path_factory):
    return Meeting(tmp_path_factory.mktemp("meet"))


@pytest.mark.parametrize(
    "number",
    [pytest.param(number, marks=[] if number in USUAL else pytest.mark.slow) for number in range(len(rows()))],
)
def test_a_bundle_of_settings_that_meet_is_the_same_everywhere(meeting, tmp_path, number):
    settings = meeting.finetune(rows()[number], tmp_path / "bundle")
    result = finetune.run(FinetuneConfig.model_validate(settings), QUIET)
    both = {"bundle": settings["output"], "prepared": settings["prepared"], "cache": settings["text"]["cache"]}
    prepared = open_prepared(Path(settings["prepared"]))
    table = pa.concat_tables([pq.read_table(file) for file in prepared.split_files("test")])
    scored = scores(both, tmp_path / "scored.parquet", split="test")
    figures_are_of_the_bundle(both, settings, result, tmp_path)
    own = table.select([name for name in OWN if name in table.column_names])
    own_rows_get_them(both, own, scored, tmp_path)
    lists_hold_them(both, table, scored, tmp_path)
    explanations_add_up(both, scored, tmp_path)
    the_server_gives_them(both, own, scored, tmp_path)
    told = encode.run(EncodeConfig.model_validate({**both, "output": str(tmp_path / "vectors"), "device": "cpu"}), QUIET)
    vectors = np.load(tmp_path / "vectors" / "ads.npy")
    assert vectors.shape == (len(prepared.ads()), told.width) and np.isfinite(vectors).all()
    assert (np.load(tmp_path / "vectors" / "users.npy") @ vectors.T).shape == (told.users, told.ads)
    onward = {**settings, "start_from": settings["output"], "output": str(tmp_path / "onward"), "recall_requests": 0}
    finetune.run(FinetuneConfig.model_validate({**onward, "replay": 0.5}), QUIET)
    assert Predictor.load(tmp_path / "onward", device="cpu").checked


def scores(both, output, **rows):
    score.run(ScoreConfig.model_validate({**both, **rows, "output": str(output), "chunk_rows": 97}), QUIET)
    table = pq.read_table(output)
    assert ((found := table["score"].to_numpy()) >= 0).all() and (found <= 1).all()
    return table


def unplaced(table):
    """Name of the column with the score of a row whose slot is not known."""
    return "score_any_slot" if "score_any_slot" in table.column_names else "score"


def predicted(table):
    """Columns that the bundle made, which must be the same wherever they are made."""
    return [name for name in table.column_names if name in {"logit", "score"} or name.startswith(("score_", "baseline_"))]


def figures_are_of_the_bundle(both, settings, result, folder):
    """What finetune says of validation rows is what score and evaluate find there."""
    moved = settings["refit"] or settings["model"]["position_bias"] or settings["hybrid"]["kind"] != "none"
    if moved or settings["delay"] != {"method": "none", "wait_hours": 6}:
        return  # measured before the refit, in the slots, on other folds, by what was known then
    label = settings["tasks"][0]["name"]
    table = scores(both, folder / "valid.parquet", split="valid")
    said = result.models["adrec"]
    assert auc(table[label].to_numpy(), table["logit"].to_numpy()) == pytest.approx(said["auc"], abs=1e-6)
    judged = {"scored": str(folder / "valid.parquet"), "output": str(folder / "judged"), "report": False, "split": "valid"}
    found = evaluate.run(EvaluateConfig.model_validate({**judged, "bootstrap": {"replicates": 10}}), QUIET).as_dict()
    metrics = found["tasks"][label]["runs"]["model"]["metrics"]
    for name in metrics.keys() & said.keys():
        assert metrics[name]["value"] == pytest.approx(said[name], abs=1e-5), name


def own_rows_get_them(both, own, scored, folder):
    order = np.random.default_rng(0).permutation(len(own))
    pq.write_table(own.take(pa.array(order)), folder / "own.parquet")
    again = scores(both, folder / "again.parquet", impressions=str(folder / "own.parquet"))
    for name in predicted(again):
        np.testing.assert_allclose(again[name].to_numpy(), scored[name].to_numpy()[order], rtol=2e-6, atol=2e-6, err_msg=name)


def lists_hold_them(both, table, scored, folder):
    """The whole catalogue, ranked for each request: what was shown has the score that it has in `score`."""
    config = {"bundle": both["bundle"], "prepared": both["prepared"], "device": "cpu", "recall_requests": 0}
    output = folder / "lists.parquet"
    rank.run(
        RankConfig.model_validate({**config, "split": "test", "output": str(output), "policies": {"default": POLICY}}), QUIET
    )
    lists = pq.read_table(output)
    assert lists["reason"].null_count == 0
    names = [name for name in predicted(lists) if name != "score" or unplaced(lists) == "score"]
    key = {name: table[name] for name in ("request_id", "ad_id")}
    expected = pa.table({**key, **{f"expected_{name}": scored[name] for name in names}})
    joined = lists.select([*key, *names]).join(expected, list(key), join_type="inner")
    assert len(joined) == len(table)
    for name in names:
        found, wanted_here = joined[name].to_numpy(), joined[f"expected_{name}"].to_numpy()
        np.testing.assert_allclose(found, wanted_here, rtol=2e-6, atol=2e-6, err_msg=name)


def explanations_add_up(both, scored, folder):
    asked = {**both, "split": "test", "rows": 1, "output": str(folder / "why"), "device": "cpu"}
    told = explain.run(ExplainConfig.model_validate(asked), QUIET)
    for place, row in enumerate(told.rows):
        why = row.explanation
        assert why.baseline + sum(part.contribution for part in why.parts) == pytest.approx(why.logit, abs=1e-5)
        assert why.logit == pytest.approx(scored["logit"][place].as_py(), abs=2e-6)
        assert why.score == pytest.approx(scored["score"][place].as_py(), abs=2e-6)


def the_server_gives_them(both, own, scored, folder):
    settings = {**both, "store": str(folder / "store.sqlite"), "device": "cpu", "policies": {"default": POLICY}}
    engine = Engine(ServeConfig.model_validate(settings))
    requests = own["request_id"].to_numpy(zero_copy_only=False)
    for request in dict.fromkeys(requests[[0, -1]]):
        rows = np.flatnonzero(requests == request)
        cells = own.take(pa.array(rows)).to_pylist()
        asked = [{name: row[name] for name in ASKED if row.get(name) is not None} for row in cells]
        [answer] = engine.score([ScoreRequest(rows=asked)])
        for name, expected in (("logit", "logit"), ("score", unplaced(scored)), ("score_conversion", "score_conversion")):
            if expected in scored.column_names:
                found = [row[name] for row in answer["rows"]]
                np.testing.assert_allclose(found, scored[expected].to_numpy()[rows], atol=2e-6, err_msg=name)
        first = dict(asked[0])
        ad, user = first.pop("ad_id"), first.pop("user_id")
        why = engine.explain(ExplainRequest(user=UserIn(user_id=user), ad_id=ad, **first))
        assert why.logit == pytest.approx(scored["logit"][int(rows[0])].as_py(), abs=2e-6)
        assert why.baseline + sum(part["contribution"] for part in why.parts) == pytest.approx(why.logit, abs=1e-5)
        shown = [row["ad_id"] for row in asked]
        [lists] = engine.rank([RankRequest(requests=[{"user_id": user, **first, "candidates": shown, "top_n": len(shown)}])])
        assert {row["ad_id"] for row in lists["lists"][0]["ads"]} == set(shown)
