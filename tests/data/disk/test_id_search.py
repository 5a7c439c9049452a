"""A name is found in any form that adrec writes, whole, and wherever a block of text ends."""

import bz2
import gzip
import io
import json
import lzma
import sqlite3

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adrec.data.disk.id_search import holds, text_holds

NAME, OTHER = "user-17", "user-175"


def written(folder, kind, name):
    """A file of some kind that holds a name beside others."""
    file = folder / f"file{kind}"
    text = f"a,b\n1,{name}\n2,else\n".encode()
    if kind == ".parquet":
        pq.write_table(pa.table({"x": pa.array([["a", name], []]).cast(pa.list_(pa.string()))}), file)
    elif kind == ".npz":
        np.savez(file, ids=np.array(["a", name]), numbers=np.zeros(3))
    elif kind == ".json":
        file.write_text(json.dumps({"rows": [{"of": {name: 1}}]}))
    elif kind == ".sqlite":
        with sqlite3.connect(file) as connection:
            connection.execute("CREATE TABLE t (id TEXT)")
            connection.execute("INSERT INTO t VALUES (?)", [f"{name} was here"])
        connection.close()
    else:
        packed = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
        file.write_bytes(packed.get(kind, bytes)(text))
    return file


@pytest.mark.parametrize("kind", [".parquet", ".npz", ".json", ".sqlite", ".csv", ".gz", ".bz2", ".xz"])
def test_a_name_is_found_whole_in_any_file(tmp_path, kind):
    file = written(tmp_path, kind, NAME)
    assert holds(file, [NAME, "nobody"]) and not holds(file, ["user-2", "nobody"])
    file.unlink()
    assert holds(written(tmp_path, kind, OTHER), [NAME]) == (kind == ".sqlite")  # whose cells touch each other


def test_numbers_name_nobody(tmp_path):
    np.save(tmp_path / "numbers.npy", np.arange(1000))
    assert not holds(tmp_path / "numbers.npy", ["17"])


@given(
    st.text("ab -\n", max_size=40), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3), st.integers(1, 7)
)
def test_where_a_block_ends_makes_no_difference(text, names, block):
    words = text.replace("\n", " ").split(" ")
    assert text_holds(io.StringIO(text), names, block=block) == any(name in words for name in names)
