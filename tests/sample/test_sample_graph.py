"""The sample with a graph: what a maker belongs to decides clicks, no column tells it, and two links lead to it."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adrec.data.graph.links import Graph
from adrec.sample import generate_sample
from adrec.sample.generate import make_world, slices
from adrec.sample.makers import GROUPS, MAKERS, TOWNS, fond_of, group_of


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample_graph")
    generate_sample(folder, impressions=6000, seed=5, graph=0.5)
    return folder, {name: pq.read_table(folder / f"{name}.parquet") for name in ("ads", "entities", "links", "ad_links")}


def test_two_links_lead_from_an_ad_to_its_group(drawn):
    _, tables = drawn
    world = make_world(6000, 5, graph=True)
    ids = tables["ads"]["ad_id"].combine_chunks()
    lists = Graph.of(tables, ids).paths(ids, hops=2, most=9).to_pylist()
    linked = np.array([len(values) > 0 for values in lists])
    assert 0.4 < linked.mean() < 0.6 and len(tables["entities"]) == MAKERS + GROUPS + TOWNS
    for ad in np.flatnonzero(linked)[:50]:
        groups = [value for value in lists[ad] if value.startswith("made_by>belongs_to=")]
        assert groups == [f"made_by>belongs_to=g{group_of(world.ads.maker[ad]):07d}"]
    assert "maker" not in tables["ads"].column_names


def test_users_click_the_makers_of_the_group_that_they_are_fond_of(drawn):
    folder, _ = drawn
    world = make_world(6000, 5, graph=True)
    rows = pa.concat_tables(list(slices(world, 6000)))
    user, ad = (np.array([int(name[1:]) for name in rows[column].to_pylist()]) for column in ("user_id", "ad_id"))
    fits = group_of(world.ads.maker[ad]) == fond_of(user)
    truth = rows["true_probability"].to_numpy()
    assert 0.08 < fits.mean() < 0.18 and truth[fits].mean() > 2 * truth[~fits].mean()
    assert pq.read_table(folder / "impressions/part-00000.parquet").equals(rows)


def test_without_a_graph_nothing_is_other(drawn, tmp_path):
    folder, tables = drawn
    generate_sample(tmp_path, impressions=6000, seed=5)
    assert not (tmp_path / "links.parquet").exists()
    assert pq.read_table(tmp_path / "ads.parquet").equals(tables["ads"])
