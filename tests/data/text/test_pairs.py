"""Pairs of texts read off a prepared folder, against a plain loop over its rows."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import make_corpus

from adrec.data.prepared import open_prepared
from adrec.data.text.pairs import Pairs, text_pairs
from adrec.errors import DataError
from adrec.schema import INDICES


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder whose training rows have histories of none to six ads, and whose ads have categories."""
    folder = make_corpus(tmp_path_factory.mktemp("pairs") / "prepared", count=60)
    rng = np.random.default_rng(0)
    shard = next((folder / "impressions" / "train").glob("*.parquet"))
    rows = pq.read_table(shard)
    history = [rng.integers(0, 60, rng.integers(0, 7)).tolist() for _ in range(rows.num_rows)]
    rows = rows.set_column(rows.column_names.index("history_index"), "history_index", pa.array(history, INDICES))
    pq.write_table(rows, shard, row_group_size=90)
    ads = pq.read_table(folder / "ads.parquet")
    named = [None if row % 10 == 0 else f"topic {row % 3}" for row in range(60)]
    pq.write_table(ads.append_column("category", pa.array(named, pa.string())), folder / "ads.parquet")
    return open_prepared(folder)


def found(pairs):
    return {(pairs.texts[left], pairs.texts[right]) for left, right in zip(pairs.left, pairs.right, strict=True)}


@pytest.mark.parametrize("window", [1, 2, 5, 100])
def test_clicks_of_one_user_at_most_so_many_apart(prepared, window):
    texts = prepared.ads()["text"].to_pylist()
    expected = set()
    for batch in prepared.iter("train", ["click", "ad_index", "history_index"]):
        for row in batch.to_pylist():
            clicks = [*row["history_index"], row["ad_index"]] if row["click"] else []
            for place, earlier in enumerate(clicks):
                expected |= {(texts[earlier], texts[later]) for later in clicks[place + 1 : place + 1 + window]}
    expected = {pair for pair in expected if pair[0] != pair[1]}
    pairs = text_pairs(prepared, frozenset({"clicks"}), window=window)
    assert found(pairs) == expected and len(pairs) == len(expected)


def test_categories_of_all_ads_that_have_one(prepared):
    ads = prepared.ads().to_pylist()
    pairs = text_pairs(prepared, frozenset({"categories"}))
    assert found(pairs) == {(ad["text"], ad["category"]) for ad in ads if ad["category"]}


def test_parts_are_title_and_rest_and_no_click_is_read(prepared, tmp_path):
    folder = shutil.copytree(prepared.path, tmp_path / "parts")
    shutil.rmtree(folder / "impressions" / "train")  # parts and categories need no log at all
    ads = pq.read_table(folder / "ads.parquet")
    texts = [
        None if row == 3 else "only a title" if row == 4 else f"title {row} [SEP] rest {row} [SEP] more" for row in range(60)
    ]
    pq.write_table(ads.set_column(ads.column_names.index("text"), "text", pa.array(texts)), folder / "ads.parquet")
    expected = {(f"title {row}", f"rest {row} [SEP] more") for row in range(60) if row not in {3, 4}}
    opened = open_prepared(folder)
    assert found(text_pairs(opened, frozenset({"parts"}))) == expected
    both = found(text_pairs(opened, frozenset({"parts", "categories"})))
    assert expected < both and ("only a title", "topic 1") in both


def test_share_is_how_often_each_text_is_drawn_on_the_right(prepared):
    pairs = text_pairs(prepared, frozenset({"clicks", "categories"}), window=3)
    drawn = np.bincount(pairs.right, minlength=len(pairs.texts))
    assert np.allclose(pairs.share, drawn / drawn.sum())


def test_held_out_pairs_are_a_share_or_the_most_allowed():
    numbers = np.arange(100)
    pairs = Pairs(numbers.astype(str), numbers, np.roll(numbers, 1), np.full(100, 0.01))
    for most, expected in ((1000, 20), (7, 7)):
        train, held = pairs.split(0.2, most=most, seed=0)
        assert len(held) == expected and len(train) == 100 - expected
        assert not set(train.left) & set(held.left)


def test_a_folder_without_pairs_says_so(prepared, tmp_path):
    folder = make_corpus(tmp_path / "prepared", count=20)
    with pytest.raises(DataError, match="no pairs of kind categories"):
        text_pairs(open_prepared(folder), frozenset({"categories"}))
