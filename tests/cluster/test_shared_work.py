"""What the commands share out gives what one machine gives, here without Ray: each piece of work by itself, through pickles."""

import json
from contextlib import nullcontext
from functools import partial

import pyarrow.parquet as pq
import pytest
from cluster_work import InlinePool
from raw_worlds import config as raw_config
from raw_worlds import tables, write
from scored_world import write_ads, write_scored
from worlds import make_market

from adrec.asof.attach import Attach
from adrec.config.data.inspect import InspectConfig
from adrec.config.evaluation.evaluate import EvaluateConfig
from adrec.config.inference.encode import EncodeConfig
from adrec.config.inference.rank import RankConfig
from adrec.config.inference.score import ScoreConfig
from adrec.errors import DataError
from adrec.stages.data import inspect, preprocess
from adrec.stages.evaluation import evaluate
from adrec.stages.evaluation.measuring import Piece, shares
from adrec.stages.inference import encode, rank, score
from adrec.terminal import Terminal

QUIET = Terminal(quiet=True)


@pytest.fixture(autouse=True)
def _inline(monkeypatch):
    for module in ("inference.shards", "inference.lists.blocks", "stages.inference.encode", "stages.evaluation.measuring"):
        monkeypatch.setattr(f"adrec.{module}.Pool", InlinePool)
    monkeypatch.setattr("adrec.prepare.staging.parts.Pool", InlinePool)
    monkeypatch.setattr("adrec.prepare.log.sharing.Pool", InlinePool)
    monkeypatch.setattr("adrec.prepare.log.impressions.Attach", partial(Attach, partition_rows=40, batch_rows=48))
    monkeypatch.setattr("adrec.stages.data.preprocess.ROWS_PER_SHARD", 70)
    monkeypatch.setattr("adrec.stages.data.preprocess.session", lambda cluster: nullcontext())
    monkeypatch.setattr("adrec.stages.inference.rank.REQUEST_BLOCK", 16)
    monkeypatch.setattr("adrec.stages.inference.encode.BATCH_ROWS", 16)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_market(tmp_path_factory.mktemp("shared"), requests=300)


def files_of(folder, *, but=()):
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name not in but
    }


def test_score_rank_and_encode(world, tmp_path):
    own = {"bundle": world / "bundle", "prepared": world / "prepared"}
    budgets = {"value": {"kind": "revenue"}, "limits": {"pacing": "even", "user_ad": 2}, "diversity": {"method": "mmr"}}
    free = {"limits": {"budget": False}, "exploration": {"method": "thompson"}}
    for number, (run, model, more) in enumerate(
        [
            (score.run, ScoreConfig, {"split": "train", "chunk_rows": 64, "shard_rows": 192, "batch_rows": 16}),
            (rank.run, RankConfig, {"policies": {"default": budgets}, "top_n": 5}),
            (rank.run, RankConfig, {"policies": {"default": free}, "top_n": 5}),
            (encode.run, EncodeConfig, {}),
        ]
    ):
        outputs = tmp_path / f"{number}-alone", tmp_path / f"{number}-shared"
        alone, shared = (
            run(model.model_validate({**own, **more, "output": output, "cluster": cluster}), QUIET).as_dict()
            for output, cluster in zip(outputs, (None, {}), strict=True)
        )
        told = alone.keys() - {"output", "seconds"}
        assert {key: alone[key] for key in told} == {key: shared[key] for key in told}
        if outputs[0].is_dir():
            assert files_of(outputs[0], but=["config.yaml"]) == files_of(outputs[1], but=["config.yaml"])
        else:
            assert outputs[0].read_bytes() == outputs[1].read_bytes()


def test_evaluate(tmp_path):
    write_scored(tmp_path / "scored.parquet")
    write_ads(tmp_path / "ads.parquet")
    write_scored(tmp_path / "other.parquet", seed=3)
    few = {"replicates": 620}  # three lots, of which three workers share out those of two columns
    for name, cluster in (("single", None), ("shared", {})):
        evaluate.run(
            EvaluateConfig(
                scored=tmp_path / "scored.parquet", against=[tmp_path / "other.parquet"], ads=tmp_path / "ads.parquet",
                output=tmp_path / name, bootstrap=few, report=False, cluster=cluster,
            ),
            QUIET,
        )  # fmt: skip
    assert (tmp_path / "single" / "metrics.json").read_bytes() == (tmp_path / "shared" / "metrics.json").read_bytes()
    assert json.loads((tmp_path / "single" / "metrics.json").read_text())["tasks"]
    config = EvaluateConfig(scored=tmp_path / "scored.parquet", output=tmp_path / "none", bootstrap=few)
    for most in range(1, 5):
        found = shares(config, Piece(0, "adrec", 7), most)
        assert len(found) == min(most, 3) and [lot for share in found for lot in share.lots] == [0, 1, 2]


def write_log(folder, kind, *, bad=False, parts=4):
    """A log in several files, of which one has its columns in another order; `bad`: cells and lines that are none."""
    made = tables(requests=120)
    write(made["ads"], folder / "ads.parquet")
    write(made["users"], folder / "users.parquet")
    log = made["impressions"]
    for number in range(parts):
        first, last = number * len(log) // parts, (number + 1) * len(log) // parts
        piece = log.slice(first, last - first)
        if number == 2:
            piece = piece.select(piece.column_names[::-1])
        file = write(piece, folder / "log" / f"day={number}" / f"part.{kind}")
        if bad and number in (1, 3):
            lines = file.read_text().splitlines()
            lines[3] = lines[3].replace("2026-", "yesterday ") if number == 1 else lines[3].replace('"a', '"unknown')
            lines[5] = lines[5] + ',"one cell too many"'
            file.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("kind", "bad", "more"),
    [
        ("csv", False, {}),
        ("csv", True, {"validation": {"max_rejected_fraction": 0.2}}),
        ("csv.gz", False, {"privacy": {"pseudonymise": True}}),
        ("jsonl", False, {}),
        ("parquet", False, {"split": {"method": "user", "test_fraction": 0.4}}),
        ("parquet", False, {"history": {"max_skipped": 3}}),
    ],
)
def test_preprocess_gives_the_same_folder_to_the_bit(tmp_path, monkeypatch, kind, bad, more):
    monkeypatch.setenv("ADREC_PRIVACY_KEY", "0123456789abcdef0123456789abcdef")
    write_log(tmp_path, kind, bad=bad)
    source = {
        "format": "tables", "ads": {"files": str(tmp_path / "ads.parquet")},
        "users": {"files": str(tmp_path / "users.parquet")},
        "impressions": {"files": str(tmp_path / "log")},
    }  # fmt: skip
    for name, cluster in (("single", None), ("shared", {})):
        settings = {**more, "output": str(tmp_path / name), "source": source, "cluster": cluster}
        preprocess.run(raw_config(tmp_path, **settings), QUIET)
    alone, shared = (files_of(tmp_path / name, but=["config.yaml"]) for name in ("single", "shared"))
    assert alone.keys() == shared.keys()
    assert [name for name in alone if alone[name] != shared[name]] == []
    if bad:
        assert len(pq.read_table(tmp_path / "single" / "rejected.parquet")) == 4
    same = inspect.run(InspectConfig(path=tmp_path / "single", against=tmp_path / "shared"), QUIET)
    assert same.identical


def test_preprocess_tells_the_faults_of_one_machine(tmp_path):
    write_log(tmp_path, "csv", bad=True)
    source = {
        "format": "tables",
        "ads": {"files": str(tmp_path / "ads.parquet")},
        "users": {"files": str(tmp_path / "users.parquet")},
        "impressions": {"files": str(tmp_path / "log")},
    }
    said = []
    for cluster in (None, {}):
        with pytest.raises(DataError) as fault:
            preprocess.run(raw_config(tmp_path, source=source, cluster=cluster), QUIET)
        said.append(str(fault.value))
    assert said[0] == said[1] and "row" in said[0]
