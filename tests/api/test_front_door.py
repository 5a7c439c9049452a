"""The Python front door: light to import, frames of every kind in and out, and the same numbers as the commands."""

import json
import subprocess
import sys
from datetime import datetime, timedelta

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from daily_world import FINETUNE, DailyWorld

import adrec
from adrec.api.frames import from_arrow, to_arrow
from adrec.config.inference.explain import ExplainConfig
from adrec.config.inference.rank import RankConfig
from adrec.config.inference.score import ScoreConfig
from adrec.stages.inference import explain, rank, score
from adrec.terminal import Terminal

QUIET = Terminal(quiet=True)
HEAVY = ("torch", "pandas", "polars", "pyarrow", "numpy", "pydantic", "duckdb", "transformers", "rich", "yaml")


def test_importing_adrec_imports_nothing_of_weight():
    program = f"import sys, adrec; print([name for name in {HEAVY!r} if name in sys.modules]); print(len(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    loaded, count = done.stdout.splitlines()
    assert loaded == "[]"
    typer = subprocess.run([sys.executable, "-c", "import sys, typer; print(len(sys.modules))"], capture_output=True, text=True)
    assert int(count) < int(typer.stdout)
    assert {"load", "preprocess", "finetune", "evaluate"} <= set(dir(adrec))
    with pytest.raises(AttributeError, match="has no attribute 'fly'. It offers"):
        adrec.fly  # noqa: B018


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A bundle trained through the front door, over paths as text."""
    world = DailyWorld(tmp_path_factory.mktemp("front"), impressions=3000)
    world.arrive(6)
    made = adrec.preprocess(str(world.folder / "preprocess.yaml"))
    bundle = str(world.folder / "bundle")
    tuned = adrec.finetune({**FINETUNE, "prepared": made.output}, output=bundle, training__epochs=1)
    return world, made, tuned, adrec.load(bundle)


def test_commands_return_their_tables(trained):
    _, made, tuned, model = trained
    assert made.frame["split"].tolist() == ["train", "valid", "test"] and made.frame["rows"].sum() == made.manifest["rows"]
    assert tuned.frame["model"].tolist()[0] == "adrec" and 0 < tuned.frame["auc"][0] < 1
    assert tuned.epochs == pytest.approx(1, abs=0.2), "training__epochs is training.epochs"
    assert model.prepared == made.output, "the folder it was trained on stands behind it"
    assert json.dumps(tuned.as_dict())


def rows_of(world):
    table = world.days[6].slice(0, 60)
    return table.drop_columns([name for name in ("click", "conversion", "dwell_seconds") if name in table.column_names])


@pytest.mark.parametrize("kind", ["pandas", "polars", "arrow", "path"])
def test_scores_are_those_of_the_command_in_the_kind_that_came(trained, tmp_path, kind):
    world, made, _, model = trained
    rows = rows_of(world)
    path = tmp_path / "rows.parquet"
    pq.write_table(rows, path)
    config = ScoreConfig(bundle=model.bundle, prepared=made.output, impressions=path, output=tmp_path / "scored.parquet")
    score.run(config, QUIET)
    expected = pq.read_table(config.output)
    given = {"pandas": rows.to_pandas, "polars": lambda: pl.from_arrow(rows), "arrow": lambda: rows, "path": lambda: str(path)}
    frame = given[kind]()
    if kind == "pandas":
        frame.index = np.arange(100, 100 + len(frame))
    found = model.score(frame)
    of_kind = {"pandas": pd.DataFrame, "polars": pl.DataFrame, "arrow": pa.Table, "path": pd.DataFrame}[kind]
    assert isinstance(found, of_kind)
    assert np.allclose(np.asarray(found["logit"]), expected["logit"].to_numpy(), atol=1e-6)
    assert list(np.asarray(found["ad_id"])) == expected["ad_id"].to_pylist()
    if kind == "pandas":
        assert found.index.tolist() == frame.index.tolist()


def test_lists_are_those_of_the_command(trained, tmp_path):
    _, made, _, model = trained
    users = pq.read_table(f"{made.output}/users.parquet")["user_id"].to_pylist()[:5]
    requests, end = tmp_path / "requests.parquet", datetime.fromisoformat(made.manifest["last"]) + timedelta(microseconds=1)
    pq.write_table(pa.table({"user_id": users}), requests)
    config = RankConfig(
        bundle=model.bundle, prepared=made.output, requests=requests, output=tmp_path / "l.parquet", top_n=4, at=end
    )
    rank.run(config, QUIET)
    expected = pq.read_table(config.output)
    found = model.rank(users, top_n=4)
    for name in ("user_id", "ad_id", "rank"):
        assert found[name].tolist() == expected[name].to_pylist()
    as_polars = model.rank(pl.DataFrame({"user_id": users}), top_n=4)
    assert isinstance(as_polars, pl.DataFrame) and as_polars["ad_id"].to_list() == expected["ad_id"].to_pylist()
    assert len(model.rank(["nobody knows me"], top_n=3)) == 3


def test_explanations_add_up_and_are_those_of_the_command(trained, tmp_path):
    world, made, _, model = trained
    rows = rows_of(world).slice(0, 2)
    found = model.explain(rows.to_pandas())
    sums = found.parts.groupby("row")["contribution"].sum().to_numpy()
    assert np.allclose(sums + found.rows["baseline"], found.rows["logit"], atol=1e-4)
    assert len(found.sentences) == 2
    path = tmp_path / "rows.parquet"
    pq.write_table(rows, path)
    config = ExplainConfig(bundle=model.bundle, prepared=made.output, impressions=path, output=tmp_path / "why")
    assert found.sentences == [told.sentence for told in explain.run(config, QUIET).rows]
    assert isinstance(model.explain(pl.from_arrow(rows), rows=1).rows, pl.DataFrame)


def test_evaluate_takes_what_score_gives(trained, tmp_path):
    world, _, _, model = trained
    scored = model.score(world.days[6].to_pandas())
    found = adrec.evaluate(scored=scored, bootstrap__replicates=50)
    auc = found.frame.query("metric == 'auc' and run == 'model'")["value"].iloc[0]
    assert 0 < auc < 1 and found.output is None
    worse = scored.assign(logit=-scored["logit"], score=1 - scored["score"])
    kept = adrec.evaluate(scored=scored, against=worse, bootstrap__replicates=50, output=str(tmp_path / "out"), report=False)
    gap = kept.frames["comparisons"].query("metric == 'auc'")["value"].iloc[0]
    assert gap == pytest.approx(2 * auc - 1, abs=1e-6)
    assert (tmp_path / "out" / "metrics.json").exists()


def test_raw_frames_go_through_preprocess(trained, tmp_path):
    world, *_ = trained
    tables = {"impressions": pa.concat_tables(world.days[:4]).to_pandas()}
    tables["users"] = str(world.folder / "whole" / "users.parquet")
    tables["ads"] = pl.read_parquet(world.folder / "whole" / "ads.parquet")
    made = adrec.preprocess(**tables, output=str(tmp_path / "prepared"), split={"method": "rolling"}, tokenizer__kind="none")
    assert made.manifest["rows"] == len(tables["impressions"])
    again = adrec.preprocess(**tables, output=str(tmp_path / "prepared"), split={"method": "rolling"}, tokenizer__kind="none")
    assert again.done == "unchanged"


def test_faults_are_one_clear_line(trained):
    world, *_, model = trained
    with pytest.raises(adrec.AdrecError, match="no column|missing|needs"):
        model.score(pd.DataFrame({"x": [1]}))
    with pytest.raises(adrec.AdrecError, match="impressions: column 'ad_id' mixes kinds"):
        model.score(pd.DataFrame({"user_id": ["a", "b"], "ad_id": ["a", 3]}))
    with pytest.raises(adrec.AdrecError, match="impressions: has no rows"):
        model.score(rows_of(world).slice(0, 0))
    with pytest.raises(adrec.AdrecError, match="two columns are called 'user_id'"):
        model.score(pd.DataFrame([["a", "b"]], columns=["user_id", "user_id"]))
    with pytest.raises(adrec.AdrecError, match="not a bundle"):
        adrec.load(world.folder)
    with pytest.raises(adrec.AdrecError, match="trainin"):
        adrec.finetune({"prepared": "x", "output": "y"}, trainin__epochs=2)


def test_categories_moments_and_lists_keep_their_values():
    frame = pd.DataFrame(
        {
            "kind": pd.Categorical(["a", "b"]),
            "at": pd.to_datetime(["2026-01-01T00:00:00.000000000", "2026-01-02T03:04:05.123456789"]),
            "words": [["x"], ["y", "z"]],
            "count": pd.array([1, None], "Int64"),
        }
    )
    table = to_arrow(frame)
    assert table["kind"].to_pylist() == ["a", "b"] and table["count"].to_pylist() == [1, None]
    assert table.schema.field("at").type == pa.timestamp("us")
    assert from_arrow(table, "polars")["words"].to_list() == [["x"], ["y", "z"]]
    assert to_arrow(pl.DataFrame({"a": [1]}).lazy())["a"].to_pylist() == [1]
