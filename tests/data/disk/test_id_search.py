"""A name is found in any form that adrec writes, whole, and wherever a block of text ends."""

import bz2
import gzip
import io
import json
import lzma
import sqlite3
import zipfile

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


@pytest.mark.parametrize("name", ['say "hi"', "O'Brien", "a<b>&c", "张三", "back\\slash"])
@pytest.mark.parametrize("form", ["csv", "jsonl", "ascii", "html"])
def test_quotes_and_letters_are_found_as_each_format_writes_them(tmp_path, name, form):
    from markupsafe import escape

    written = {
        "csv": lambda: f'"{name.replace(chr(34), chr(34) * 2)}",1\n',
        "jsonl": lambda: json.dumps({"user": name}, ensure_ascii=False),
        "ascii": lambda: json.dumps({"user": name}),
        "html": lambda: f"<td>{escape(name)}</td>",
    }[form]()
    (tmp_path / "file.txt").write_text(written, encoding="utf-8")
    assert holds(tmp_path / "file.txt", [name]) and not holds(tmp_path / "file.txt", [f"{name}s", "nobody"])


@pytest.mark.parametrize("kind", [".zst", ".zip", ".xlsx", ".CSV.GZ"])
def test_what_preprocess_opens_is_opened(tmp_path, kind):
    text = f"a,b\n1,{NAME}\n".encode()
    file = tmp_path / f"log{kind}"
    if kind == ".zst":
        file.write_bytes(pa.compress(text, "zstd", asbytes=True))
    elif kind == ".CSV.GZ":
        file.write_bytes(gzip.compress(text))
    else:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("folder/part.csv", text)
    assert holds(file, [NAME]) and not holds(file, ["user-1", OTHER])


def test_a_raw_log_may_write_ids_as_numbers_and_in_other_encodings(tmp_path):
    nested = pa.array([[{"id": 17}], []], pa.list_(pa.struct([("id", pa.int64())])))
    for name, column in (("numbers", pa.array([3, 17])), ("missing", pa.array([None, 17.0])), ("nested", nested)):
        file = tmp_path / f"{name}.parquet"
        pq.write_table(pa.table({"x": column}), file)
        assert holds(file, ["17"], is_raw=True) and not holds(file, ["1", "7", "x"], is_raw=True)
        assert not holds(file, ["17"]), "a figure of adrec's own"
    (tmp_path / "rows.json").write_text('[{"user": 17, "clicked": true}]')
    assert holds(tmp_path / "rows.json", ["17"], is_raw=True) and not holds(tmp_path / "rows.json", ["1"], is_raw=True)
    for encoding in ("gb18030", "utf-16"):
        (tmp_path / "log.csv").write_text("user\n张三\n", encoding=encoding)
        assert holds(tmp_path / "log.csv", ["张三"], is_raw=True) and not holds(tmp_path / "log.csv", ["李四"], is_raw=True)
    (tmp_path / "old.xls").write_bytes(b"\xd0\xcf\x11\xe0\0")
    with pytest.raises(ValueError, match="is not opened"):
        holds(tmp_path / "old.xls", ["17"])


@given(
    st.text("ab -\n", max_size=40), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3), st.integers(1, 7)
)
def test_where_a_block_ends_makes_no_difference(text, names, block):
    words = text.replace("\n", " ").split(" ")
    assert text_holds(io.StringIO(text), names, block=block) == any(name in words for name in names)
