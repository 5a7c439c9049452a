"""Features that know the click are told by name, and innocent ones are not, however small the log or odd the column."""

import numpy as np
import pyarrow as pa
import pytest
from raw_worlds import prepare, tables, write


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
