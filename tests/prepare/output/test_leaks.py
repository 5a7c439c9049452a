"""Features that know the click are told by name, and innocent ones are not, however small the log or odd the column."""

import numpy as np
import pyarrow as pa
import pytest
from raw_worlds import prepare, tables, write

from adrec.config.training.finetune import FinetuneConfig
from adrec.models.text.text_vectors import TextReader
from adrec.stages.training import finetune
from adrec.terminal import Terminal
from adrec.training.click_data import load_click_data


def log(columns, *, seed=0, requests=300, **more):
    made = tables(seed, requests=requests)
    click = made["impressions"]["click"].to_numpy() == 1
    rng = np.random.default_rng(seed)
    for name, make in columns.items():
        made["impressions"] = made["impressions"].append_column(name, make(click, rng))
    return made | more


def told(folder, made, **features):
    for name, table in made.items():
        write(table, folder / f"{name}.parquet")
    split = {"method": "time", "valid_fraction": 0, "test_fraction": 0}
    _, result = prepare(folder, features={"impressions": features}, split=split)
    return {finding["column"]: finding["message"] for finding in result.manifest["findings"] if finding["kind"] == "leak"}


def cost(click, rng):
    return pa.array(np.where(click, rng.uniform(0.1, 1, len(click)), 0.0))


def only_where_clicked(click, rng):
    return pa.array(rng.normal(size=len(click)), mask=~(click & (rng.random(len(click)) < 0.3)))


def empty_where_clicked(click, rng):
    return pa.array(rng.normal(size=len(click)), mask=click & (rng.random(len(click)) < 0.3))


def landing(click, rng):
    pages = np.where(click, "shop", rng.choice(["home", "news"], len(click)))
    return pa.array(pages)


def noise(click, rng):
    return pa.array(rng.normal(size=len(click)))


def sparse(click, rng):
    return pa.array(rng.normal(size=len(click)), mask=rng.random(len(click)) < 0.9)


def identifier(click, rng):
    return pa.array([f"{'y' if hit else 'n'}{number}" for number, hit in enumerate(click)])


@pytest.mark.parametrize(
    ("make", "key", "problem"),
    [
        (cost, "numeric", "alone ranks the training rows at an AUC of 1.0000"),
        (lambda click, rng: pa.array(-cost(click, rng).to_numpy()), "numeric", "AUC of 1.0000"),
        (only_where_clicked, "numeric", "is filled only where there is a click"),
        (empty_where_clicked, "numeric", "is empty only where there is a click"),
        (landing, "categorical", "AUC of 1.0000"),
        (landing, "hashed", "AUC of 1.0000"),
    ],
)
def test_a_column_that_knows_the_click_is_told_with_the_cure(tmp_path, make, key, problem):
    found = told(tmp_path, log({"odd": make}), **{key: ["odd"]})
    assert problem in found["odd"]
    assert found["odd"].startswith("features.impressions: 'odd' ")
    assert found["odd"].endswith("leave it out of `features.impressions`.")


@pytest.mark.parametrize(
    ("make", "key"), [(noise, "numeric"), (sparse, "numeric"), (identifier, "categorical"), (identifier, "hashed")]
)
def test_an_innocent_column_is_not(tmp_path, make, key):
    assert not told(tmp_path, log({"plain": make}), **{key: ["plain"]})


def test_only_declared_features_are_looked_at(tmp_path):
    assert not told(tmp_path, log({"cost": cost}), numeric=["counter_*", "price_seen"])


@pytest.mark.parametrize("seed", range(5))
def test_a_small_log_does_not_cry_wolf(tmp_path, seed):
    """A few rows and many columns: some of them separate the clicks by chance."""
    columns = {f"c{number}": [noise, sparse][number % 2] for number in range(60)}
    assert not told(tmp_path, log(columns, seed=seed, requests=20), numeric=list(columns))


def test_an_attribute_of_the_ad_that_knows_the_click_is_told(tmp_path):
    made = tables(0, requests=300)
    good = {f"a{number}": number % 3 == 0 for number in range(15)}
    click = pa.array([int(good[ad]) for ad in made["impressions"]["ad_id"].to_pylist()], pa.int8())
    made["impressions"] = made["impressions"].set_column(4, "click", click)
    made["ads"] = made["ads"].append_column("ctr", pa.array([float(good[ad]) for ad in made["ads"]["ad_id"].to_pylist()]))
    for name, table in made.items():
        write(table, tmp_path / f"{name}.parquet")
    _, result = prepare(tmp_path, features={"ads": {"numeric": ["ctr"]}})
    assert [finding["column"] for finding in result.manifest["findings"]] == ["ctr"]
    assert result.manifest["findings"][0]["message"].startswith("features.ads: 'ctr' alone ranks")


def test_finetune_tells_it_too_and_trains_on_labels_as_of_the_cut(tmp_path, capsys):
    made = log({"cost": cost})
    rows = made["impressions"]
    converted = rows["click"].to_numpy() == 1
    moment = rows["shown_at"].cast(pa.int64()).to_numpy() + 36 * 3_600_000_000
    rows = rows.append_column("conversion", pa.array(converted).cast(pa.int8()))
    made["impressions"] = rows.append_column("converted_at", pa.array(moment, mask=~converted).cast(pa.timestamp("us", "UTC")))
    for name, table in made.items():
        write(table, tmp_path / f"{name}.parquet")
    features = {"impressions": {"numeric": ["cost"]}}
    split = {"method": "time", "valid_from": "2026-03-03", "test_from": "2026-03-04"}
    prepared, result = prepare(tmp_path, features=features, split=split, history={"converted_at": "converted_at"})
    capsys.readouterr()
    config = FinetuneConfig.model_validate(
        {
            "prepared": str(prepared.path),
            "output": str(tmp_path / "bundle"),
            "text": {"reference": None},
            "tasks": [{"name": "click"}, {"name": "conversion"}],
            "model": {"width": 8, "hidden": [8]},
            "training": {"epochs": 1, "batch_rows": 64, "loggers": []},
            "baselines": {"names": []},
            "hybrid": {"kind": "none"},
        }
    )
    finetune.run(config, Terminal(quiet=True))
    lines = [line for line in capsys.readouterr().err.splitlines() if "'cost'" in line]
    assert len(lines) == 1 and lines[0].startswith("warning: features.impressions: 'cost' alone ranks")
    data = load_click_data(config, prepared, TextReader(None), Terminal(quiet=True))
    immature = result.manifest["immature"]["train"]["conversion"]
    assert 0 < immature["rows"] < immature["of"]
    assert data.train.labels["conversion"].sum() == immature["of"] - immature["rows"]
    late = result.manifest["immature"]["valid"]["conversion"]
    assert data.valid.labels["conversion"].sum() == late["of"] - late["rows"]
