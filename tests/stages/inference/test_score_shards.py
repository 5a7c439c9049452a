"""Scoring shard by shard: what a kill leaves, several workers, no rows at all."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from killing import run_stage, survives_kills
from pydantic import ValidationError
from worlds import make_bundle, make_world

from adrec.config.inference.score import ScoreConfig
from adrec.data.disk.outputs import SCORES, guard_output
from adrec.data.disk.tables import read_table
from adrec.data.prepared import open_prepared
from adrec.errors import BundleError, DataError, ResourceError
from adrec.inference.scored import with_scores
from adrec.inference.shards import part_path
from adrec.stages.inference import score
from adrec.terminal import Terminal


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    make_world(folder / "prepared", users=40, requests=600)
    make_bundle(folder)
    return folder


def config_of(world, output, **changes):
    values = {"bundle": world / "bundle", "prepared": world / "prepared", "split": "train", "output": output}
    return ScoreConfig(**{**values, "chunk_rows": 64, "shard_rows": 192, "batch_rows": 16, **changes})


@pytest.fixture(scope="module")
def expected(world):
    score.run(config_of(world, world / "scored.parquet"), Terminal(quiet=True))
    return pq.read_table(world / "scored.parquet")


def test_several_workers_give_what_one_gives(world, expected, tmp_path):
    result = score.run(config_of(world, tmp_path / "s.parquet", workers=2), Terminal(quiet=True))
    assert result.rows == expected.num_rows
    assert (tmp_path / "s.parquet").read_bytes() == (world / "scored.parquet").read_bytes()
    assert [file.name for file in tmp_path.iterdir()] == ["s.parquet"]


def test_a_score_that_is_none_is_one_line_and_no_file(world, tmp_path, monkeypatch):
    """Row 200 of the split, which is in the second shard."""

    def poisoned(table, *others):
        logit = (table := with_scores(table, *others))["logit"].to_numpy().copy()
        logit[table["row_id"].to_numpy() == 199] = np.nan
        return table.set_column(table.column_names.index("logit"), "logit", pa.array(logit))

    monkeypatch.setattr("adrec.inference.shards.with_scores", poisoned)
    output = tmp_path / "s.parquet"
    with pytest.raises(DataError) as fault:
        score.run(config_of(world, output), Terminal(quiet=True))
    assert str(fault.value).startswith(f"{output}: column 'logit', row 200: nan is not a finite number. The bundle gives that")
    assert "\n" not in str(fault.value)
    assert not output.exists()


@pytest.mark.slow
def test_a_fault_in_a_worker_is_one_line_of_ours(world, tmp_path):
    prepared = open_prepared(world / "prepared")
    rows = pa.Table.from_batches(prepared.iter("test", ["user_id", "ad_id", "shown_at"])).slice(0, 100)
    strange = rows.set_column(1, "ad_id", pa.array(["nobody"] * 100))
    pq.write_table(pa.concat_tables([rows, strange.cast(rows.schema)]), tmp_path / "rows.parquet")
    config = config_of(
        world, tmp_path / "s.parquet", split=None, impressions=tmp_path / "rows.parquet", workers=2, shard_rows=50
    )
    with pytest.raises(DataError, match=r"row 1(01|51): ad_id 'nobody' is not in the ads table"):
        score.run(config, Terminal(quiet=True))
    (world / "bundle" / "model.safetensors").rename(world / "hidden")
    try:
        with pytest.raises(BundleError):
            score.run(config_of(world, tmp_path / "s.parquet", workers=2), Terminal(quiet=True))
    finally:
        (world / "hidden").rename(world / "bundle" / "model.safetensors")


def test_only_missing_parts_are_scored_again_whoever_made_them(world, expected, tmp_path, monkeypatch):
    class Stopped(BaseException):
        pass

    def stop(*_):
        raise Stopped

    config = config_of(world, tmp_path / "s.parquet")
    monkeypatch.setattr(score, "_join", stop)
    with pytest.raises(Stopped):
        score.run(config, Terminal(quiet=True))
    monkeypatch.undo()
    work = tmp_path / ".s.parquet.work"
    for number in (1, 3):  # as if two of several workers had not come to their end
        part_path(work, number).unlink()
    result = score.run(config.model_copy(update={"threads": 1}), Terminal(quiet=True))
    assert result.resumed_rows == expected.num_rows - 2 * 192
    assert pq.read_table(tmp_path / "s.parquet").equals(expected)


def test_no_rows_are_scored_to_no_rows(world, expected, tmp_path):
    rows = pa.Table.from_batches(open_prepared(world / "prepared").iter("test", ["user_id", "ad_id", "shown_at"])).slice(0, 0)
    pq.write_table(rows, tmp_path / "rows.parquet")
    result = score.run(
        config_of(world, tmp_path / "s.parquet", split=None, impressions=tmp_path / "rows.parquet"), Terminal(quiet=True)
    )
    assert result.rows == 0
    assert {"logit", "score", "cold_ad"} <= set(pq.read_schema(tmp_path / "s.parquet").names)


def test_parts_and_a_manifest_in_place_of_a_file(world, expected, tmp_path):
    result = score.run(config_of(world, tmp_path / "scores", parts=True), Terminal(quiet=True))
    manifest = json.loads((tmp_path / "scores" / "manifest.json").read_text())
    assert result.rows == manifest["rows"] == sum(manifest["scored"].values()) == expected.num_rows
    files = [tmp_path / "scores" / name for name in manifest["files"]]
    assert sorted(path.name for path in (tmp_path / "scores").iterdir()) == ["manifest.json", *manifest["files"]]
    assert pa.concat_tables(map(pq.read_table, files)).equals(expected)
    assert [file.name for file in tmp_path.iterdir()] == ["scores"]
    again = score.run(config_of(world, tmp_path / "scores", parts=True, split="test"), Terminal(quiet=True))
    assert again.rows < result.rows and read_table(tmp_path / "scores").num_rows == again.rows
    with pytest.raises(ResourceError, match="is a folder, and the output is a table of scores"):
        guard_output(tmp_path / "scores", SCORES)
    with pytest.raises(ValidationError, match="`parts` writes a folder"):
        config_of(world, tmp_path / "scores.parquet", parts=True)


@pytest.mark.slow
def test_kill_9_at_twenty_moments(world, expected, tmp_path):
    output = tmp_path / "out" / "s.parquet"

    def check():
        assert pq.read_table(output).equals(expected)

    survives_kills("inference.score", config_of(world, output), check, kills=20, expected_resumes=5)


@pytest.mark.slow
def test_workers_end_with_a_killed_parent(world, expected, tmp_path):
    output = tmp_path / "s.parquet"
    config = config_of(world, output, workers=2)
    process = multiprocessing.get_context("spawn").Process(target=run_stage, args=("inference.score", config))
    process.start()
    workers = wait_for(lambda: found if len(found := children(process.pid)) >= 2 else None)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
    score.run(config, Terminal(quiet=True))
    assert pq.read_table(output).equals(expected)


def children(pid):
    """Its workers."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


def wait_for(condition):
    for _ in range(1200):
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError("waited two minutes")
