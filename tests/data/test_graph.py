"""Lists of what ads are linked to, and what clicks share with candidates: against plain loops over any small graph."""

import math
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adrec.data.arrays import ends
from adrec.data.features import FeatureSet
from adrec.data.graph.entity_vectors import EntityVectors
from adrec.data.graph.links import Graph, entity_of, hops_of, relation_of
from adrec.data.graph.paths import Paths
from adrec.data.ragged import Ragged
from adrec.errors import DataError
from adrec.specs import FeatureSpec, ListSpec

ADS = ["a0", "a1", "a2", "a3"]
NAMES = st.sampled_from(["e0", "e1", "e2", "e3", "x=y"])
RELATIONS = st.sampled_from(["r", "s"])
LINKS = st.lists(st.tuples(NAMES, RELATIONS, NAMES), max_size=12)
AD_LINKS = st.lists(st.tuples(st.sampled_from(ADS), RELATIONS, NAMES), max_size=8)


def tables(links, ad_links):
    names = (("head", "relation", "tail"), ("ad_id", "relation", "entity_id"))
    made = {}
    for label, columns, rows in (("links", names[0], links), ("ad_links", names[1], ad_links)):
        cells = list(zip(*rows, strict=True)) or [[], [], []]
        made[label] = pa.table({name: pa.array(values, pa.string()) for name, values in zip(columns, cells, strict=True)})
    return made


@settings(max_examples=60, deadline=None)
@given(LINKS, AD_LINKS, st.integers(1, 2))
def test_lists_hold_what_is_so_many_links_away(links, ad_links, hops):
    graph = Graph.of(tables(links, ad_links), pa.array(ADS))
    found = graph.paths(pa.array([*ADS, "nobody"]), hops=hops, most=99).to_pylist()
    assert found.pop() == []
    for ad, values in zip(ADS, found, strict=True):
        expected = {f"{relation}={entity}" for other, relation, entity in ad_links if other == ad}
        if hops == 2:
            for other, first, entity in ad_links:
                for head, relation, tail in links if other == ad else ():
                    if head == entity != tail:
                        expected.add(f"{first}>{relation}={tail}")
                    if tail == entity != head:
                        expected.add(f"{first}>~{relation}={head}")
        assert set(values) == expected and len(values) == len(expected)
        assert hops_of(pa.array(values, pa.string())).tolist() == sorted(1 + value.split("=")[0].count(">") for value in values)


def test_a_cut_list_keeps_the_near_and_then_what_others_have_too():
    links = [("m", "country", "fr"), ("m", "owner", "h"), ("n", "country", "fr")]
    graph = Graph.of(tables(links, [("a0", "by", "m"), ("a1", "by", "n")]), pa.array(ADS))
    assert graph.paths(pa.array(["a0"]), hops=2, most=2).to_pylist() == [["by=m", "by>country=fr"]]


def test_names_that_ads_have_are_ads_where_no_table_says_so():
    links = tables([("a0", "by", "m"), ("m", "in", "fr"), ("h", "sells", "a1"), ("a0", "like", "a1")], [])["links"]
    graph = Graph.of({"links": links}, pa.array(ADS))
    assert graph.paths(pa.array(ADS), hops=2, most=9).to_pylist() == [["by=m", "by>in=fr"], ["~sells=h"], [], []]
    named = Graph.of({"links": links, "entities": pa.table({"entity_id": ["a0"]})}, pa.array(ADS))
    assert named.paths(pa.array(["a0"]), hops=2, most=9)[0].as_py() == []
    again = Graph.of(graph.tables(), pa.array([], pa.string()))  # as a bundle holds it
    assert again.paths(pa.array(ADS), hops=2, most=9).equals(graph.paths(pa.array(ADS), hops=2, most=9))
    assert Graph.of({}, pa.array(ADS)) is None


def test_paths_are_read_again_whatever_their_entity_is_called():
    paths = pa.array(["r=x=y", "r>~s=e", "no path", None, "=e"])
    assert relation_of(paths).to_pylist() == ["r", "r>~s", "no path", None, ""]
    assert entity_of(paths).to_pylist() == ["x=y", "e", None, None, "e"]


def test_a_list_of_direct_links_is_completed():
    links = [("m", "country", "fr"), ("h", "owns", "m"), ("n", "country", "fr")]
    graph = Graph.of(tables(links, [("a0", "by", "m"), ("a1", "in", "fr")]), pa.array(ADS))
    given = [["by=m"], ["new=m", "by=x", "by=m", "by>country=fr"], None, [], ["by=m", None, "by=m"]]
    found = graph.completed(pa.array(given, pa.list_(pa.string())), most=4).to_pylist()
    assert found[0] == graph.paths(pa.array(["a0"]), hops=2, most=9)[0].as_py()
    assert found[1] == ["new=m", "by=x", "by=m", "by>country=fr"]
    assert found[2:4] == [None, []] and found[4] == ["by=m", None, "by>country=fr", "by>~owns=h"]
    ads = pa.table({"ad_id": ["a0", "b", "c"], "graph": pa.array([None, ["by=n"], []], pa.list_(pa.string()))})
    assert graph.filled(ads, "graph", hops=2, most=9)["graph"].to_pylist() == [found[0], ["by=n", "by>country=fr"], []]


def test_a_hub_is_not_followed_back():
    links = [(f"m{number}", "country", "fr") for number in range(300)]
    graph = Graph.of(tables(links, [("a0", "made_in", "fr"), ("a1", "by", "m7")]), pa.array(ADS))
    assert graph.paths(pa.array(["a0", "a1"]), hops=2, most=999).to_pylist() == [["made_in=fr"], ["by=m7", "by>country=fr"]]


VALUES = st.sampled_from(["r=a", "r=b", "s=a", "s>r=c", "t=rare"])
LISTS = st.lists(st.lists(VALUES, max_size=4, unique=True), min_size=3, max_size=6)


@settings(max_examples=40, deadline=None)
@given(LISTS, st.data())
def test_what_clicks_share_is_counted_by_relation(values, data):
    spec = FeatureSpec(lists=(ListSpec("graph", min_count=1, paths=2),))
    features = FeatureSet.fit(spec, [pa.table({"graph": pa.array(values, pa.list_(pa.string()))})])
    paths = Paths.of(features)
    if paths is None:
        assert not any(values)
        return
    place = st.integers(0, len(values) - 1)
    histories = data.draw(st.lists(st.lists(place, max_size=5), min_size=1, max_size=4))
    context = np.array(data.draw(st.lists(st.integers(0, len(histories) - 1), min_size=1, max_size=6)))
    ad = np.array(data.draw(st.lists(place, min_size=len(context), max_size=len(context))))
    arrays = features.transform(pa.table({"graph": pa.array(values, pa.list_(pa.string()))}))
    lists = Ragged(*arrays.lists["graph"])
    flat = np.array([row for history in histories for row in history], np.int64)
    found = paths.shared(lists, Ragged(ends(np.array([len(h) for h in histories])), flat), context, ad)
    for row in range(len(context)):
        seen = Counter(value for click in histories[context[row]] for value in values[click])
        for column, relation in enumerate(paths.relations):
            count = sum(seen[value] for value in values[ad[row]] if value.split("=")[0] == relation)
            assert found[row, column] == pytest.approx(math.log1p(count), abs=1e-6)


def test_an_ad_is_the_mean_of_its_direct_entities(tmp_path):
    held = EntityVectors(pa.array(["e", "f"]), np.array([[1, 2], [3, 6]], np.float32))
    lists = pa.array([["by=e", "in=f", "by>of=e"], ["by=g"], None, [], ["by=f", "no path"]], pa.list_(pa.string()))
    expected = [[(1 + 3) / 2, (2 + 6) / 2], [np.nan] * 2, [np.nan] * 2, [np.nan] * 2, [3, 6]]
    assert np.array_equal(held.of_paths(lists), np.array(expected, np.float32), equal_nan=True)
    held.save(tmp_path)
    again = EntityVectors.open(tmp_path)
    assert again.fingerprint == held.fingerprint and again.of_paths(lists)[0].tolist() == [2, 4]
    (tmp_path / "entity_embedding.vec").write_text("Q1\t0.5\t-1.25\t\nQ2\t1e-3\t7\t\n")  # MIND ends its lines with a tab
    read = EntityVectors.open(tmp_path / "entity_embedding.vec")
    assert read.ids.to_pylist() == ["Q1", "Q2"] and np.allclose(read.vectors, [[0.5, -1.25], [1e-3, 7]])
    (tmp_path / "words.vec").write_text("Q1\tx\ty\n")
    for path in ("words.vec", "nothing"):
        with pytest.raises(DataError, match=r"holds no vectors of entities .*adrec pretrain-graph"):
            EntityVectors.open(tmp_path / path)
