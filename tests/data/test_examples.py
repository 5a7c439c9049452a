"""Examples against the plain reading of the table, row by row."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import make_world

from adrec.data.batches.collate import padded
from adrec.data.examples import examples_from_table, load_examples
from adrec.data.features import FeatureSet
from adrec.data.prepared import open_prepared
from adrec.data.ragged import Ragged
from adrec.errors import DataError
from adrec.schema import INDICES, TIMESTAMP
from adrec.specs import FeatureSpec


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return open_prepared(make_world(tmp_path_factory.mktemp("world") / "p", requests=200, users=20).path)


def test_every_row_has_its_own_history(prepared):
    table = pa.Table.from_batches(list(prepared.iter("train")))
    examples = load_examples(prepared, "train", max_history=7)
    given_history = table["history_index"].to_pylist()
    skipped = table["skipped_index"].to_pylist()
    hours = table["history_hours"].to_pylist()
    for row in range(len(examples)):
        which = examples.history_of_row[row]
        span = slice(examples.history_offsets[which], examples.history_offsets[which + 1])
        assert examples.history_values[span].tolist() == given_history[row][-7:]
        assert np.allclose(examples.history_hours[span], hours[row][-7:])
        assert examples.skipped.take(np.array([which])).values.tolist() == skipped[row][-7:]
    assert examples.ad_index.tolist() == table["ad_index"].to_pylist()
    assert examples.labels["click"].tolist() == table["click"].to_pylist()
    requests = table["request_id"].to_pylist()
    codes = examples.request.tolist()
    assert all((codes[i] == codes[i + 1]) == (requests[i] == requests[i + 1]) for i in range(len(codes) - 1))


def test_a_history_is_kept_once_a_request(prepared):
    examples = load_examples(prepared, "train")
    assert len(examples.histories) == examples.request.max() + 1


def test_take_keeps_what_rows_mean(prepared):
    examples = load_examples(prepared, "train")
    rows = np.sort(np.random.default_rng(0).choice(len(examples), 50, replace=False))
    part = examples.take(rows)
    for place, row in enumerate(rows):
        before = examples.histories.take(np.array([examples.history_of_row[row]])).values
        after = part.histories.take(np.array([part.history_of_row[place]])).values
        assert before.tolist() == after.tolist()
    assert part.row_id.tolist() == rows.tolist()
    assert len(part.history_offsets) == len(part.skipped_offsets) <= 51


def test_rows_limits_to_whole_requests(prepared):
    assert len(load_examples(prepared, "train", rows=10)) == 8
    assert len(load_examples(prepared, "train", rows=1)) == 4


def test_an_empty_split_is_one_clear_error(prepared, tmp_path):
    world = make_world(tmp_path / "p", requests=30)
    for file in (world.path / "impressions" / "valid").iterdir():
        file.unlink()
    with pytest.raises(DataError, match="the split 'valid' has no rows"):
        load_examples(open_prepared(world.path), "valid")


lists = st.lists(st.one_of(st.none(), st.lists(st.integers(0, 3), max_size=4)), min_size=1, max_size=12)


@settings(max_examples=80, deadline=None)
@given(lists, st.data())
def test_any_lists_any_requests(histories, data):
    rows = len(histories)
    requests = sorted(data.draw(st.lists(st.integers(0, 3), min_size=rows, max_size=rows)))
    limit = data.draw(st.integers(1, 5))
    skipped = data.draw(st.lists(st.lists(st.integers(0, 2), max_size=2), min_size=rows, max_size=rows))
    table = pa.table(
        {
            "request_id": [str(code) for code in requests],
            "user_index": pa.array([0] * rows, pa.int32()),
            "ad_index": pa.array(range(rows), pa.int32()),
            "shown_at": pa.array([1] * rows, TIMESTAMP),
            "history_index": pa.array(histories, INDICES),
            "skipped_index": pa.array(skipped, INDICES),
            "history_length": pa.array([len(h or []) for h in histories], pa.int32()),
        }
    )
    sliced = pa.concat_tables([table, table]).slice(rows)  # offsets that do not start at 0
    for source in (table, sliced):
        examples = examples_from_table(source, FeatureSet.fit(FeatureSpec(), []), max_history=limit)
        for row in range(rows):
            which = np.array([examples.history_of_row[row]])
            assert examples.histories.take(which).values.tolist() == (histories[row] or [])[-limit:]
            assert examples.skipped.take(which).values.tolist() == skipped[row][-limit:]
        assert np.isnan(examples.history_hours).all()


def test_queries_are_coded_with_the_empty_one_first(prepared):
    table = pa.Table.from_batches(list(prepared.iter("train"))).slice(0, 8)
    named = table.append_column("query", pa.array(["b", None, "a", "b", "", "a", None, "c"]))
    features = prepared.features()["impressions"]
    for source in (named, named.slice(2, 2)):
        examples = examples_from_table(source, features)
        assert examples.queries[0] == ""
        assert [examples.queries[code] or None for code in examples.query] == [q or None for q in source["query"].to_pylist()]
        assert len(set(examples.queries)) == len(examples.queries)


def test_padding():
    matrix, mask = padded(Ragged(np.array([0, 2, 2, 3]), np.array([7, 8, 9])), fill=4)
    assert matrix.tolist() == [[7, 8], [4, 4], [9, 4]]
    assert mask.tolist() == [[True, True], [False, False], [True, False]]
    assert padded(Ragged(np.zeros(3, np.int64), np.zeros(0, np.int32)))[0].shape == (2, 1)
