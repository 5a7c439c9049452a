"""`adrec inspect A --against B`: says first whether two things are the same, then what differs and what has drifted."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from worlds import make_world

from adrec.config.data.inspect import InspectConfig
from adrec.config.training.finetune import FinetuneConfig
from adrec.errors import DataError
from adrec.stages.data import inspect
from adrec.stages.storage import run_guarded
from adrec.stages.training import finetune
from adrec.terminal import Terminal

QUIET = Terminal(quiet=True)


def _compared(before, after, **settings):
    return run_guarded(inspect.run, InspectConfig(path=before, against=after, **settings), QUIET)


def _rows(seed=0, count=3000, rate=0.1):
    rng = np.random.default_rng(seed)
    return pa.table(
        {
            "user_id": [f"u{number}" for number in rng.integers(0, 500, count)],
            "kind": rng.choice(["a", "b", "<b>c</b>"], count, p=[0.5, 0.3, 0.2]),
            "click": (rng.random(count) < rate).astype(np.int64),
            "score": rng.beta(2, 18, count),
        }
    )


def _written(path, table):
    pq.write_table(table, path)
    return path


def test_tables_that_are_the_same_say_so_first(tmp_path):
    table = _rows()
    before = _written(tmp_path / "a.parquet", table)
    after = _written(tmp_path / "b.parquet", table.take(np.random.default_rng(0).permutation(len(table))))
    found = _compared(before, after)
    assert found.identical and next(iter(found.render())) == "Identical: the same rows in every table, in whatever order."
    assert json.dumps(found.as_dict())


def test_another_sample_of_one_world_differs_and_has_not_drifted(tmp_path):
    found = _compared(_written(tmp_path / "a.parquet", _rows(0)), _written(tmp_path / "b.parquet", _rows(1)))
    assert found.verdict().startswith("Not identical: values differ in user_id, kind, click, score.")
    assert found.verdict().endswith("Nothing has drifted beyond chance and far enough to matter.")


def test_a_label_that_doubled_is_told_in_words_and_on_a_page(tmp_path):
    before, after = _written(tmp_path / "a.parquet", _rows(0)), _written(tmp_path / "b.parquet", _rows(1, rate=0.2))
    found = _compared(before, after, html=tmp_path / "page.html")
    assert found.drifted == ["table.click"] and "Drifted: table.click." in found.verdict()
    page = (tmp_path / "page.html").read_text()
    assert "Drifted: table.click." in page and "<b>c</b>" not in page and "&lt;b&gt;c" in page
    _compared(before, after, html=tmp_path / "page.html")  # a page of its own kind may be replaced
    role = {drift.column: drift.role for drift in found.tables[0].columns}
    assert role == {"click": "label", "score": "score", "kind": "column"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("against")
    planted = make_world(folder / "prepared", requests=400)
    for seed in (0, 1):
        config = FinetuneConfig(
            prepared=planted.path,
            output=folder / f"bundle{seed}",
            seed=seed,
            model={"width": 8, "hidden": [8]},
            training={"epochs": 1, "loggers": []},
            baselines={"names": []},
        )
        finetune.run(config, QUIET)
    return folder


def test_prepared_folders_are_compared_table_by_table(world, tmp_path):
    shutil.copytree(world / "prepared", tmp_path / "same")
    assert _compared(world / "prepared", tmp_path / "same").identical
    make_world(tmp_path / "other", requests=400, seed=3)
    found = _compared(world / "prepared", tmp_path / "other")
    assert not found.identical and {table.name for table in found.tables} >= {"impressions", "ads", "users"}
    assert "ads not identical" in found.verdict()


def test_bundles_say_which_facts_and_files_differ(world, tmp_path):
    shutil.copytree(world / "bundle0", tmp_path / "same")
    assert _compared(world / "bundle0", tmp_path / "same").verdict() == "Identical: the same files."
    found = _compared(world / "bundle0", world / "bundle1")
    assert not found.identical and "seed" in found.facts and "file model.safetensors" in found.facts
    assert "file features.json" not in found.facts


def test_two_kinds_are_refused(world, tmp_path):
    with pytest.raises(DataError, match="compare two of one kind"):
        _compared(world / "bundle0", world / "prepared")
