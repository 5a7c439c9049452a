"""Counters of the user's own rows: those that the prepared folder's log implies, for tables in any order."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from adrec.config.base import save_config
from adrec.config.preprocess import PreprocessConfig
from adrec.data.prepared import open_prepared
from adrec.inference.past_rows import open_past
from adrec.inference.rows import examples_from_rows
from adrec.sample import generate_sample
from adrec.stages.preprocess import run
from adrec.terminal import Terminal


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("past_rows")
    generate_sample(folder / "raw", impressions=4000, seed=1)
    config = PreprocessConfig.model_validate(
        {
            "output": folder / "prepared",
            "source": {
                "format": "tables",
                "impressions": {"files": str(folder / "raw/impressions")},
                "ads": {"files": str(folder / "raw/ads.parquet")},
                "users": {"files": str(folder / "raw/users.parquet")},
            },
            "tokenizer": {"kind": "none"},
            "counters": "usual",
            "features": {"impressions": {"numeric": ["counter_*"]}},
        }
    )
    run(config, Terminal(quiet=True))
    return open_prepared(folder / "prepared")


def log(prepared):
    columns = ["ad_id", "user_id", "shown_at", "click"]
    return pa.concat_tables([pa.Table.from_batches(prepared.iter(split, columns)) for split in ("train", "valid", "test")])


def new_rows(prepared):
    """Two known pairs a day after the log's end, and one of a new ad and a new user."""
    shown = log(prepared)
    moment = pc.max(shown["shown_at"].cast(pa.int64())).as_py() + 24 * 3_600_000_000
    ads = pa.table({"ad_id": ["new"], "title": ["new"]})
    ads = pa.concat_tables([ads, prepared.ads().select(["ad_id", "title", "category"])[::-1]], promote_options="default")
    rows = pa.table(
        {"ad_id": [*shown["ad_id"][:2].to_pylist(), "new"], "user_id": [*shown["user_id"][:2].to_pylist(), "nobody"]}
    )
    return rows.append_column("shown_at", pa.array([moment] * 3).cast(pa.timestamp("us", tz="UTC"))), ads


def test_counters_are_those_of_the_log(prepared):
    rows, ads = new_rows(prepared)
    users = pa.array(["nobody", *prepared.users()["user_id"].to_pylist()[::-1]])
    ad_ids = ads["ad_id"].combine_chunks()
    past = open_past(prepared, ads, None, ad_ids, users)
    ad_index = pc.index_in(rows["ad_id"], value_set=ad_ids)
    table = rows.append_column("ad_index", ad_index).append_column("user_index", pc.index_in(rows["user_id"], value_set=users))
    found = past.attach(table.append_column("history_index", pa.array([[], [], []], pa.list_(pa.int32()))))
    shown = log(prepared)
    same_ad = [(shown["ad_id"].to_numpy() == name) for name in rows["ad_id"].to_pylist()]
    clicked = shown["click"].to_numpy() == 1
    impressions = [int(mask.sum()) for mask in same_ad]
    assert found["counter_ad_impressions"].to_pylist() == pytest.approx(np.log1p(impressions), rel=1e-6)
    overall = (clicked.sum() + 1) / (len(clicked) + 20)
    rates = [(clicked[mask].sum() + 20 * overall) / (mask.sum() + 20) for mask in same_ad]
    assert found["counter_ad_rate"].to_pylist() == pytest.approx(rates, rel=1e-6)
    of_user = [int((shown["user_id"].to_numpy() == name).sum()) for name in rows["user_id"].to_pylist()]
    assert found["counter_user_impressions"].to_pylist() == pytest.approx(np.log1p(of_user), rel=1e-6)


def test_model_inputs_carry_them(prepared):
    rows, ads = new_rows(prepared)
    ad_ids, users = ads["ad_id"].combine_chunks(), pc.unique(rows["user_id"])
    features = prepared.features()["impressions"]
    past = open_past(prepared, ads, None, ad_ids, users)
    bare = examples_from_rows(rows, ad_ids, users, features, max_history=5)
    full = examples_from_rows(rows, ad_ids, users, features, max_history=5, past=past)
    at = features.numeric_names.index("counter_ad_impressions")
    assert not bare.numeric[:, at].any() and full.numeric[:2, at].all()


def test_a_folder_without_counters_gives_none(prepared, tmp_path):
    bare = tmp_path / "prepared"
    bare.mkdir()
    save_config(prepared.config.model_copy(update={"counters": []}), bare / "config.yaml")
    for name in ("manifest.json", "ads.parquet", "users.parquet"):
        (bare / name).write_bytes((prepared.path / name).read_bytes())
    ads = pq.read_table(bare / "ads.parquet")
    assert open_past(open_prepared(bare), ads, None, ads["ad_id"].combine_chunks(), pa.array(["u"])) is None
