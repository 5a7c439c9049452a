"""Codes of values: the same whatever the pieces they are hashed in, so that states of other machines and runs add up."""

import numpy as np
import pyarrow as pa
import pytest

from adrec.asof import keys
from adrec.errors import DataError


def test_codes_know_no_pieces(monkeypatch):
    values = ["a", "bb", None, "", "a", "19" * 10, "bb", "用户", "a"]
    whole = keys.codes_of(pa.array(values), "user_id")
    assert whole[0] == whole[4] == whole[8] and whole[1] == whole[6] and (whole[[2, 3]] == keys.NO_CODE).all()
    assert len(set(whole[[0, 1, 5, 7]])) == 4 and (whole[[0, 1, 5, 7]] >= 0).all()
    monkeypatch.setattr(keys, "_ROWS_AT_ONCE", 2)
    for column in (pa.array(values), pa.chunked_array([values[:3], [], values[3:]]), pa.array(values).dictionary_encode()):
        assert np.array_equal(keys.codes_of(column, "user_id"), whole)
    assert len(keys.codes_of(pa.array([], pa.string()), "user_id")) == 0


def test_what_holds_no_categories_is_refused_where_it_has_no_rows_too():
    with pytest.raises(DataError, match="column 'tags'"):
        keys.codes_of(pa.array([], pa.list_(pa.string())), "tags")
