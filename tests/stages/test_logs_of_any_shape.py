"""Logs that do not say who, what, when, with which words, or what was shown together: from the raw file to an evaluation.

Each of the 32 subsets is prepared; a handful goes the whole way: learned, scored as prepared and as rows of one's own, judged,
explained and, where there are ads, ranked.
"""

from itertools import combinations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from raw_worlds import prepare, rows, write

from adrec.config.evaluation.evaluate import EvaluateConfig
from adrec.config.inference.explain import ExplainConfig
from adrec.config.inference.rank import RankConfig
from adrec.config.inference.score import ScoreConfig
from adrec.config.inference.serve import ServeConfig
from adrec.config.training.finetune import FinetuneConfig
from adrec.errors import DataError
from adrec.models.baselines.suite import BASELINES
from adrec.schema import NOBODY
from adrec.stages.evaluation import evaluate
from adrec.stages.inference import explain, rank, score
from adrec.stages.training import finetune
from adrec.terminal import Terminal

PARTS = {"user": "user_id", "ad": "ad_id", "time": "shown_at", "text": "title", "request": "request_id"}
SUBSETS = [frozenset(some) for size in range(6) for some in combinations(PARTS, size)]
WHOLE_WAY = [
    set(),
    {"user"},
    {"ad", "text"},
    {"time"},
    {"text"},
    {"request"},
    {"user", "time"},
    {"user", "request"},
    set(PARTS),
]
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
QUIET = Terminal(quiet=True)
SEEN = ["counter_", "history_", "skipped_"]


def _log(seed=0, requests=90):
    """A wide table whose clicks follow the device and the ad; two to four rows a request."""
    rng = np.random.default_rng(seed)
    request = np.repeat(np.arange(requests), rng.integers(2, 5, requests))
    count = len(request)
    ad, device = rng.integers(0, 9, count), rng.integers(0, 3, count)
    chance = 0.15 + 0.3 * (device == 1) + 0.3 * (ad % 3 == 0)
    moments = np.datetime64("2026-03-01T00:00:00", "us") + np.sort(rng.integers(0, 6 * 24, requests))[request] * 3_600_000_000
    return pa.table(
        {
            "user_id": np.char.add("u", rng.integers(0, 12, requests).astype(str))[request],
            "ad_id": np.char.add("a", ad.astype(str)),
            "shown_at": pa.array(moments, pa.timestamp("us", "UTC")),
            "title": np.array([f"offer {word} today" for word in WORDS])[ad],
            "request_id": np.char.add("r", request.astype(str)),
            "click": pa.array((rng.random(count) < chance).astype(np.int8)),
            "device": np.array(["phone", "desk", "tv"])[device],
            "price": rng.normal(10, 2, count).round(2),
        }
    )


def _config(folder, missing):
    split = {"method": "random", "valid_fraction": 0.2, "test_fraction": 0.2, "unit": "request"}
    return {
        "source": {"format": "tables", "impressions": {"files": str(folder / "log.csv")}},
        "split": split if "time" in missing else {"method": "time", "valid_fraction": 0.2, "test_fraction": 0.2},
        "counters": "usual",
        "features": {"impressions": {"categorical": ["device"], "numeric": ["price", "counter_*"]}},
    }


def _written(folder, missing):
    """The log without what is missing. An ad that is not named has no title either."""
    log = _log()
    gone = {*missing, *(["text"] if "ad" in missing else [])}
    log = log.drop_columns([PARTS[part] for part in gone])
    write(log, folder / "log.csv")
    return log, gone


@pytest.mark.parametrize("missing", SUBSETS, ids=lambda some: "+".join(sorted(some)) or "all there")
def test_every_log_is_prepared_and_says_what_it_names(tmp_path, missing):
    log, gone = _written(tmp_path, missing)
    prepared, result = prepare(tmp_path, **_config(tmp_path, missing))
    found = rows(prepared)
    assert result.manifest["has"] == {part: part not in gone for part in ("user", "ad", "time", "text")}
    assert found.num_rows == log.num_rows
    assert pc.sum(found["click"]).as_py() == pc.sum(log["click"]).as_py()
    for part in ("user", "ad", "time"):
        assert (PARTS[part] in found.column_names) == (part not in missing)
    distinct = found["request_id"].unique()
    if "request" not in missing:
        assert sorted(distinct.to_pylist()) == sorted(log["request_id"].unique().to_pylist())
    elif missing & {"user", "time"}:
        assert len(distinct) == log.num_rows  # nobody's rows are no one's together
    else:
        assert len(distinct) == log.group_by(["user_id", "shown_at"]).aggregate([]).num_rows
    lengths = found["history_length"].to_numpy()
    assert (lengths.max() > 0) == (not missing & {"user", "time"})
    counters = [name for name in found.column_names if name.startswith("counter_")]
    assert bool(counters) == ("time" not in missing and not {"user", "ad"} <= missing)
    assert not any("user" in name for name in counters) or "user" not in missing
    assert not any("ad_" in name for name in counters) or "ad" not in missing
    users = prepared.users()["user_id"].to_pylist()
    assert users == [NOBODY] if "user" in missing else NOBODY not in users


@pytest.mark.parametrize("missing", WHOLE_WAY, ids=lambda some: "+".join(sorted(some)) or "all there")
def test_the_whole_way(tmp_path, missing):
    _, gone = _written(tmp_path, missing)
    prepared, _ = prepare(tmp_path, **_config(tmp_path, missing))
    learned = {
        "prepared": str(prepared.path),
        "output": str(tmp_path / "bundle"),
        "text": {"reference": None},
        "model": {"width": 8, "hidden": [8]},
        "training": {"epochs": 1, "batch_rows": 32},
        "baselines": {"names": list(BASELINES)},
    }
    result = finetune.run(FinetuneConfig.model_validate(learned), QUIET)
    assert ("popularity" in result.left_out) == ("ad" in missing)
    both = {"bundle": str(tmp_path / "bundle"), "prepared": str(prepared.path)}
    scored = tmp_path / "scored.parquet"
    score.run(ScoreConfig.model_validate({**both, "split": "test", "output": str(scored)}), QUIET)
    table = pq.read_table(scored)
    assert np.isfinite(table["score"].to_numpy()).all()
    assert ("cold_user" in table.column_names) == ("user" not in missing)
    assert ("cold_ad" in table.column_names) == ("ad" not in missing)

    own = pa.concat_tables([pq.read_table(file) for file in prepared.split_files("test")])
    own = own.drop_columns([name for name in own.column_names if name.startswith(tuple(SEEN)) or name.endswith("_index")])
    shuffled = np.random.default_rng(1).permutation(len(own))
    pq.write_table(own.take(pa.array(shuffled)), tmp_path / "own.parquet")
    again = tmp_path / "again.parquet"
    asked = {**both, "impressions": str(tmp_path / "own.parquet"), "output": str(again)}
    score.run(ScoreConfig.model_validate(asked), QUIET)
    np.testing.assert_allclose(pq.read_table(again)["logit"].to_numpy(), table["logit"].to_numpy()[shuffled], atol=1e-5)

    judged = {"scored": str(scored), "output": str(tmp_path / "out"), "report": False, "bootstrap": {"replicates": 20}}
    found = evaluate.run(EvaluateConfig.model_validate(judged), QUIET).as_dict()["tasks"]["click"]
    assert ("users" in found["counts"]) == ("user" not in missing)
    assert ("requests_with_both_classes" in found["counts"]) == ("auc_request" in found["runs"]["model"]["metrics"])
    told = {**both, "split": "test", "rows": 1, "output": str(tmp_path / "why")}
    assert len(explain.run(ExplainConfig.model_validate(told), QUIET).rows) == 1
    lists = RankConfig.model_validate({**both, "split": "test", "output": str(tmp_path / "ranked.parquet")})
    if "ad" in missing:
        with pytest.raises(DataError, match="names no ads"):
            rank.run(lists, QUIET)
    else:
        rank.run(lists, QUIET)
        ranked = pq.read_table(tmp_path / "ranked.parquet")
        assert ranked["ad_id"].null_count == 0 and (ranked["user_id"].null_count > 0) == ("user" in missing)
    assert gone >= missing
    served(both, own, pq.read_table(again)["logit"].to_numpy()[np.argsort(shuffled)], missing, tmp_path / "store.sqlite")


def served(both, own, logits, missing, store):
    """Over HTTP the same rows get the same logits, and messages need not say what the log does not name."""
    pytest.importorskip("fastapi")
    from fastapi.testclient import TestClient

    from adrec.serve.app import create_app

    settings = ServeConfig.model_validate({**both, "store": str(store), "policies": {"default": {"value": {"kind": "score"}}}})
    named = [name for name in ("user_id", "ad_id", "shown_at") if name in own.column_names]
    asked = []
    for row in own.select([*named, "device", "price"]).to_pylist()[:40]:
        context = {"device": row.pop("device"), "price": row.pop("price")}
        asked.append({**row, "context": context, **({"shown_at": row["shown_at"].isoformat()} if "shown_at" in row else {})})
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        answer = client.post("/v1/score", json={"rows": asked})
        assert answer.status_code == 200, answer.text
        np.testing.assert_allclose([row["logit"] for row in answer.json()["rows"]], logits[:40], atol=1e-5)
        who = {} if "user" in missing else {"user_id": "u1"}
        lists = client.post("/v1/rank", json={"requests": [{**who, "context": asked[0]["context"]}]})
        explained = client.post("/v1/explain", json={"user": who, **{k: v for k, v in asked[0].items() if k != "user_id"}})
        assert explained.status_code == 200, explained.text
        if "user" not in missing:
            assert client.post("/v1/rank", json={"requests": [{}]}).status_code == 422
        if "ad" in missing:
            assert lists.status_code == 400 and "names no ads" in lists.text
            return
        assert lists.status_code == 200 and lists.json()["lists"][0]["ads"], lists.text
        event = {**who, "ad_id": "a1", "kind": "click"}
        assert client.post("/v1/events", json={"events": [event]}).status_code == 200
        assert client.get("/v1/ads/a1").status_code == 200
        assert client.post("/v1/rank", json={"requests": [who]}).status_code == 200


def test_rows_of_nobody_among_those_of_users_share_nothing(tmp_path):
    """Some rows say who, some do not: the former are what they are without the latter, which know nothing of anybody."""
    log = _log().drop_columns(["request_id"])
    nobody = np.random.default_rng(3).random(len(log)) < 0.4
    mixed = log.set_column(0, "user_id", pa.array(log["user_id"].to_pylist(), mask=nobody))
    write(mixed, tmp_path / "log.csv")
    config = _config(tmp_path, {"request"})
    config["counters"] = [{"by": ["user"]}, {"by": ["user", "ad"], "measures": ["impressions"]}]
    prepared, result = prepare(tmp_path, **config)
    found = rows(prepared)
    is_nobody = found["user_id"].is_null().to_numpy(zero_copy_only=False)
    assert is_nobody.sum() == nobody.sum()
    assert result.manifest["users"] == len(set(log["user_id"].to_pylist()))
    assert not found["history_length"].to_numpy()[is_nobody].any()
    assert not found["counter_user_impressions"].to_numpy()[is_nobody].any()
    alone = found.filter(pa.array(is_nobody))["request_id"].to_pylist()
    assert len(set(alone)) == len(alone)
    write(log.filter(pa.array(~nobody)), tmp_path / "log.csv")
    others, _ = prepare(tmp_path, **config, output=str(tmp_path / "others"))
    theirs = rows(others)
    for column in (
        "user_id",
        "ad_id",
        "shown_at",
        "history_length",
        "counter_user_impressions",
        "counter_user_x_ad_impressions",
    ):
        assert found.filter(pa.array(~is_nobody))[column].to_pylist() == theirs[column].to_pylist()


def test_own_rows_of_nobody_score_as_prepared_ones_do(tmp_path):
    """Where some rows of a request say whose it is and some do not, it is theirs, in own files too; else it is nobody's."""
    log = _log()
    nobody = np.random.default_rng(3).random(len(log)) < 0.4
    mixed = log.set_column(0, "user_id", pa.array(log["user_id"].to_pylist(), mask=nobody))
    mixed = mixed.append_column("row", pa.array(np.arange(len(log))))
    write(mixed, tmp_path / "log.csv")
    config = _config(tmp_path, set())
    config["features"]["impressions"]["numeric"].append("row")
    prepared, _ = prepare(tmp_path, **config)
    learned = {
        "prepared": str(prepared.path), "output": str(tmp_path / "bundle"), "text": {"reference": None},
        "model": {"width": 8, "hidden": [8]}, "training": {"epochs": 1, "batch_rows": 32}, "baselines": {"names": []},
    }  # fmt: skip
    finetune.run(FinetuneConfig.model_validate(learned), QUIET)
    both = {"bundle": str(tmp_path / "bundle"), "prepared": str(prepared.path)}

    def scored(**rows):
        file = tmp_path / f"{len(list(tmp_path.iterdir()))}.parquet"
        score.run(ScoreConfig.model_validate({**both, **rows, "output": str(file)}), QUIET)
        return {row["row"]: (row["user_id"], row["logit"]) for row in pq.read_table(file).to_pylist()}

    expected, own = scored(split="test"), scored(impressions=str(tmp_path / "log.csv"))
    assert None in {user for user, _ in expected.values()}
    assert any(nobody[int(row)] and user for row, (user, _) in expected.items()), "named by another row of its request"
    for row, (user, logit) in expected.items():
        assert own[row] == (user, pytest.approx(logit, abs=1e-5))
    clicks = scored(impressions=str(tmp_path / "log.csv"), history=str(tmp_path / "log.csv"))
    assert {row: user for row, (user, _) in clicks.items()} == {row: user for row, (user, _) in own.items()}
    asked = mixed.group_by("request_id", use_threads=False).aggregate([("user_id", "first"), ("shown_at", "first")])
    write(asked.rename_columns(["request_id", "user_id", "shown_at"]), tmp_path / "asked.csv")
    lists = {**both, "requests": str(tmp_path / "asked.csv"), "output": str(tmp_path / "ranked.parquet")}
    rank.run(RankConfig.model_validate(lists), QUIET)
    ranked = pq.read_table(tmp_path / "ranked.parquet")["user_id"]
    assert 0 < ranked.null_count < len(ranked)


@pytest.mark.parametrize(
    ("missing", "changes", "message"),
    [
        ({"time"}, {"split": {"method": "time"}}, "column 'shown_at' is missing, which split.method time needs"),
        ({"time"}, {"counters": [{"by": ["ad"]}]}, "column 'shown_at' is missing, which every counter needs"),
        ({"user"}, {"counters": [{"by": ["user"]}]}, "column 'user_id' is missing, which a counter by 'user' needs"),
        ({"user"}, {"split": {"method": "user"}}, "column 'user_id' is missing, which split.method user needs"),
        ({"user"}, {"features": {"users": {"numeric": ["price"]}}}, "'price' of the users needs.*under features.impressions"),
        ({"ad", "text"}, {"features": {"ads": {"numeric": ["price"]}}}, "'price' of the ads needs.*under features.impressions"),
        ({"ad"}, {}, "column 'ad_id' is missing, which 'title' needs.*columns.ad_id=COLUMN"),
        ({"ad", "text"}, {"split": {"method": "cold_ad"}}, "column 'ad_id' is missing, which split.method cold_ad needs"),
    ],
)
def test_what_needs_more_than_the_log_names_is_refused_in_one_line(tmp_path, missing, changes, message):
    write(_log().drop_columns([PARTS[part] for part in missing]), tmp_path / "log.csv")
    with pytest.raises(DataError, match=message) as fault:
        prepare(tmp_path, **{**_config(tmp_path, missing), **changes})
    assert len(str(fault.value).splitlines()) == 1


@pytest.mark.parametrize(("label", "message"), [(1, "is 1 in all .* set `negatives`"), (0, "is 0 in all .*nothing to learn")])
def test_labels_of_one_class_are_refused(tmp_path, label, message):
    """In training: the last requests, which are for testing, have both."""
    log = _log()
    clicks = np.where(np.arange(len(log)) < 0.9 * len(log), label, 1 - label)
    write(log.set_column(5, "click", pa.array(clicks.astype(np.int8))), tmp_path / "log.csv")
    prepared, _ = prepare(tmp_path, **_config(tmp_path, set()))
    learned = {"prepared": str(prepared.path), "output": str(tmp_path / "bundle"), "text": {"reference": None}}
    with pytest.raises(DataError, match=message):
        finetune.run(FinetuneConfig.model_validate(learned), QUIET)
    assert not (tmp_path / "bundle").exists()
