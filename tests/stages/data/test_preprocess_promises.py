"""What preprocess promises at any size: nothing from the future, and a whole output whatever moment it is killed at."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw_worlds import START, config, prepare, rows, tables, world, write

from adrec.data.prepared import open_prepared
from adrec.errors import DataError

SHARED = Path(__file__).resolve().parents[3] / "../shared/data"
COUNTERS = [
    {"by": ["ad"], "measures": ["impressions", "clicks", "rate", "hours_since_first"], "half_lives_hours": [None, 6]},
    {"by": ["user"], "measures": ["impressions", "rate"]},
    {"by": ["user", "ad"], "measures": ["impressions"]},
    {"by": ["position"], "measures": ["rate"]},
    {"by": ["category"], "measures": ["history_share"]},
]


def known_before(table):
    return [name for name in table.column_names if name.startswith(("counter_", "history_", "skipped_"))]


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1000), hours=st.integers(1, 95))
def test_deleting_the_future_changes_nothing_before_it(tmp_path_factory, seed, hours):
    folder = tmp_path_factory.mktemp("leak")
    made = world(folder, seed=seed)
    changes = {
        "counters": COUNTERS,
        "history": {"max_clicks": 5, "max_skipped": 3},
        "split": {"method": "user", "test_fraction": 0.4},
        "features": {},
    }
    whole, _ = prepare(folder, **changes)
    cut = pa.scalar((START + np.timedelta64(hours, "h")).item(), pa.timestamp("us", "UTC"))
    past = made["impressions"].filter(pa.compute.less(made["impressions"]["shown_at"], cut))
    if past.num_rows == 0 or past.num_rows == made["impressions"].num_rows:
        return
    write(past, folder / "impressions.parquet")
    try:
        shorter, _ = prepare(folder, **changes, output=str(folder / "shorter"))
    except DataError as error:  # the hash may leave no user for training in a short past
        assert "part has no rows" in str(error)
        return
    expected = rows(whole).slice(0, past.num_rows)
    found = rows(shorter)
    names = ["ad_id", "user_id", *known_before(found)]
    assert found.select(names).equals(expected.select(names))


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "mind5k").is_dir(), reason="the MIND sample is not beside this checkout")
def test_deleting_the_future_of_mind5k_changes_nothing_before_it(tmp_path):
    folder = (SHARED / "mind5k").resolve()
    lines = (folder / "behaviors.tsv").read_text().splitlines(keepends=True)
    early = [line for line in lines if "11/14/2019" not in line and "11/13/2019" not in line]
    (tmp_path / "behaviors.tsv").write_text("".join(early))
    found = []
    for behaviors, output in ((folder / "behaviors.tsv", "whole"), (tmp_path / "behaviors.tsv", "early")):
        source = {"format": "mind", "behaviors": str(behaviors), "news": str(folder / "news.tsv")}
        prepared, _ = prepare(
            tmp_path, source=source, output=str(tmp_path / output), features={}, threads=0,
            counters=[counter for counter in COUNTERS if counter["by"] != ["position"]],
            split={"method": "time", "valid_from": "2019-11-11", "test_from": "2019-11-12"},
        )  # fmt: skip
        found.append(rows(prepared, with_split=False))
    assert found[1].num_rows > 100_000
    assert found[1].select(known_before(found[1])).equals(found[0].slice(0, found[1].num_rows).select(known_before(found[0])))


def killed_runs(tmp_path, kills):
    world(tmp_path, requests=400)
    plain = config(tmp_path).model_dump(mode="json")
    (tmp_path / "preprocess.yaml").write_text(yaml.safe_dump(plain))
    command = [sys.executable, "-m", "adrec", "preprocess", "--config", str(tmp_path / "preprocess.yaml"), "--quiet"]
    begin = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    whole = time.monotonic() - begin
    expected = {
        file.relative_to(tmp_path / "prepared"): file.read_bytes() for file in (tmp_path / "prepared").rglob("*.parquet")
    }
    first = open_prepared(tmp_path / "prepared").manifest
    rng = np.random.default_rng(0)
    for kill in range(kills):
        other = {**plain, "seed": 1000 + kill} if kill % 2 else {**plain, "output": str(tmp_path / f"new{kill}")}
        (tmp_path / "preprocess.yaml").write_text(yaml.safe_dump(other))
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(float(rng.uniform(0.05, 1.0)) * whole)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        # Whatever is there is whole: the earlier output, or the new one.
        assert open_prepared(tmp_path / "prepared").manifest["rows"] == first["rows"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        output = Path(other["output"])
        found = {file.relative_to(output): file.read_bytes() for file in output.rglob("*.parquet")}
        assert found == expected, kill
        assert not list(tmp_path.glob(".*.aside")), "a killed run's scratch stays"


def test_killed_at_any_moment_it_finishes_when_run_again(tmp_path):
    killed_runs(tmp_path, 1)


@pytest.mark.slow
def test_killed_at_twenty_moments(tmp_path):
    killed_runs(tmp_path, 20)


def test_one_user_with_everything_and_one_moment_for_all(tmp_path):
    made = tables(0, requests=50, users=3)
    same = pa.array(np.full(made["impressions"].num_rows, START), pa.timestamp("us", "UTC"))
    made["impressions"] = made["impressions"].set_column(3, "shown_at", same)
    for name, table in made.items():
        write(table, tmp_path / f"{name}.parquet")
    prepared, _ = prepare(tmp_path, split={"method": "random", "unit": "request", "test_fraction": 0.2}, features={})
    table = rows(prepared)
    assert all(len(history) == 0 for history in table["history_index"].to_pylist()), "ties are not earlier"
    assert set(table["counter_ad_impressions"].to_pylist()) == {0.0}
