"""A reload reads catalogue, users and log of a folder that has grown, and counts the store's events over them."""

import shutil

import pyarrow as pa
import pyarrow.parquet as pq
from served import make_bundle, settings_of

from adrec.serve.engine import Engine
from adrec.serve.intake.messages import EventIn
from adrec.serve.state.tally import user_numbers


def test_a_grown_folder_is_read_by_a_reload(tmp_path):
    make_bundle(tmp_path)
    engine = Engine(settings_of(tmp_path, tmp_path / "s.sqlite"))
    engine.record(
        [EventIn(user_id="u1", ad_id="a3", kind="impression"), EventIn(user_id="u1", ad_id="a3", kind="click", price=2)]
    )
    same = engine.tally
    engine.reload(None)
    assert engine.tally is same  # nothing has changed: nothing is counted anew
    grown = tmp_path / "grown"
    shutil.copytree(tmp_path / "prepared", grown)
    for name, key in (("ads", "ad_id"), ("users", "user_id")):
        table = pq.read_table(grown / f"{name}.parquet")
        new = table.slice(0, 1).set_column(table.column_names.index(key), key, pa.array([f"{key[0]}-new"]))
        pq.write_table(pa.concat_tables([table, new]), grown / f"{name}.parquet")
    shutil.rmtree(tmp_path / "prepared")
    grown.rename(tmp_path / "prepared")
    assert "a-new" not in engine.live
    engine.reload(None)
    assert "a-new" in engine.live and "u-new" in engine.live.users["user_id"].to_pylist()
    row = engine.live.rows(pa.array(["a3"]))
    assert engine.tally is not same and engine.tally.ledger.seen(user_numbers(pa.array(["u1"])), row).tolist() == [1]
    assert engine.tally.ledger.spent[row].tolist() == [2_000_000]
