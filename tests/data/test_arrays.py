"""Small array helpers against the loops that they replace."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adrec.data.arrays import ends, integers, lengths_of, newest, places, ranges

LISTS = st.lists(st.lists(st.integers(0, 9), max_size=5), max_size=12)


def test_ranges_of_no_length_leave_nothing() -> None:
    assert ranges(np.array([5, 0, 9]), np.array([2, 0, 3])).tolist() == [5, 6, 9, 10, 11]
    assert ranges(np.zeros(0, int), np.zeros(0, int)).tolist() == []


@given(LISTS, st.integers(0, 4), st.data())
def test_newest_keeps_the_ends_of_lists(lists: list[list[int]], limit: int, data: st.DataObject) -> None:
    offsets, values = ends(np.array([len(some) for some in lists], int)), np.array(sum(lists, []), int)
    rows = data.draw(st.lists(st.integers(0, len(lists) - 1), max_size=6)) if lists else []
    for chosen, expected in [(slice(None), lists), (np.array(rows, int), [lists[row] for row in rows])]:
        kept, at = newest(offsets, limit, chosen)
        cut = [values[at][start:end].tolist() for start, end in zip(kept[:-1], kept[1:], strict=True)]
        assert cut == [some[max(len(some) - limit, 0) :] for some in expected]


def test_places_are_rows_of_the_ids_and_minus_one_elsewhere() -> None:
    ids = pa.chunked_array([["b", None], ["a"]])
    assert places(pa.chunked_array([["a"], ["c", None, "b"]]), ids).tolist() == [2, -1, -1, 0]
    assert places(pa.array([3, 4]), pa.array(["4", "03"])).tolist() == [-1, 0]  # as text, so a leading zero counts
    assert places(pa.array(["a", "b"]).dictionary_encode(), ids).tolist() == [2, 0]
    assert places(pa.array([], pa.string()), pa.array([], pa.string())).tolist() == []


def test_nulls_become_the_missing_value() -> None:
    column = pa.chunked_array([[1, None], [3]])
    assert integers(column, missing=-7).tolist() == [1, -7, 3]
    assert integers(column, 0, np.int32).dtype == np.int32
    assert lengths_of(pa.chunked_array([[[1, 2], None], [[]]])).tolist() == [2, 0, 0]
    with pytest.raises(ValueError):
        integers(pa.array([1.0, None]).cast(pa.string()).fill_null("no number"))
