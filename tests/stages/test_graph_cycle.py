"""A graph of entities from raw tables to the served answer: what only links tell is learned, of ads never shown too."""

import json

import graph_worlds
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from served import client_of
from typer.testing import CliRunner

from adrec.bundle import open_bundle
from adrec.cli.app import app
from adrec.config.inference.rank import RankConfig
from adrec.config.inference.serve import ServeConfig
from adrec.data.device import moved
from adrec.data.prepared import open_prepared
from adrec.errors import AdrecError, DataError
from adrec.inference.explain.explainer import Explainer
from adrec.inference.onnx.backend import onnx_predictor
from adrec.inference.onnx.exporting import export
from adrec.inference.packing import unpack
from adrec.inference.predictor import Predictor
from adrec.metrics.classification import auc
from adrec.metrics.intervals.paired import around, auc_difference
from adrec.stages.inference import rank
from adrec.terminal import Terminal

QUIET = Terminal(quiet=True)


@pytest.fixture(scope="module")
def cycle(tmp_path_factory):
    """A world, its folder with vectors of entities trained here, a bundle, and the same without a graph."""
    folder = tmp_path_factory.mktemp("graph")
    world = graph_worlds.make(folder / "raw", unlinked=3)
    first = graph_worlds.prepare(world, folder / "first")
    line = [
        "pretrain-graph",
        "--device",
        "cpu",
        "--json",
        "--set",
        f"prepared={first.path}",
        "--set",
        f"output={folder / 'entities'}",
    ]
    done = CliRunner().invoke(app, [*line, "--set", "width=16", "--set", "epochs=60", "--set", "test_fraction=0.1"])
    assert done.exit_code == 0, done.output
    vectors = [{"column": "entity", "entities": str(folder / "entities")}]
    lists = [{"column": "graph", "paths": 2, "max_items": 16}]
    prepared = graph_worlds.prepare(world, folder / "prepared", features={"ads": {"lists": lists, "vectors": vectors}})
    config, _ = graph_worlds.train(prepared, folder / "bundle", baselines={"names": ["lightgbm"]})
    return world, prepared, config, Predictor.load(config.output), json.loads(done.stdout)


def _test_rows(prepared):
    return pa.concat_tables([pq.read_table(file) for file in prepared.split_files("test")])


def _scores(predictor, prepared, ads=None):
    catalogs = predictor.catalogs(prepared.ads() if ads is None else ads, prepared.users())
    return predictor.score_examples(predictor.examples_of(_test_rows(prepared)), catalogs)


def test_cold_ads_gain_by_what_they_are_linked_to(cycle, tmp_path):
    """Paired, on ads that training never showed; without links nothing is known of them."""
    world, prepared, _, predictor, _ = cycle
    blind = graph_worlds.prepare(world, tmp_path / "blind", tables=(), hops=0)
    config, _ = graph_worlds.train(blind, tmp_path / "blind_bundle")
    rows = _test_rows(prepared)
    cold = world.cold[[int(name[1:]) for name in rows["ad_id"].to_pylist()]]
    label, users = rows["click"].to_numpy()[cold], rows["user_id"].to_numpy()[cold]
    scores = _scores(predictor, prepared)
    without = _scores(Predictor.load(config.output), blind).logit[cold]
    oracle, reached = auc(label, rows["true_probability"].to_numpy()[cold]), auc(label, scores.logit[cold])
    assert auc(label, without) < 0.6 and reached > 0.5 + 0.7 * (oracle - 0.5)
    low, _ = around(*auc_difference(label, scores.logit[cold], without, users), clusters=len(np.unique(users)))
    assert low > 0.1
    assert auc(label, scores.baselines["lightgbm"][cold]) > 0.5 + 0.7 * (oracle - 0.5)


def test_the_folder_and_the_bundle_hold_it(cycle):
    world, prepared, config, predictor, report = cycle
    ads = prepared.ads()
    place = 40
    maker = world.maker[place]
    expected = {f"made_by=m{maker}", f"shown_in=p{place % graph_worlds.PLACES}", f"made_by>country=c{world.country[maker]}"}
    assert set(ads["graph"][place].as_py()) == expected and ads["graph"][0].as_py() == []
    assert {spec.name for spec in prepared.tables()} == {"ads", "users", "entities", "links", "ad_links"}
    assert set(predictor.packed.tables) == {"entities", "links", "ad_links"}
    assert report["held_out"] > 5 and 0 < report["mrr"] <= report["hits_at_10"] <= 1
    vectors = np.stack(predictor.packed.entity_vectors["entity"].vectors)
    assert vectors.shape == (graph_worlds.MAKERS + graph_worlds.COUNTRIES + graph_worlds.PLACES, 16)


def test_what_a_table_of_ads_does_not_say_the_bundle_knows(cycle):
    """Raw ads have no list and no vector: both are looked up. Unknown entities, new ads and ads of no links are no crash."""
    world, prepared, _, predictor, _ = cycle
    raw = pq.read_table(world.folder / "ads.parquet")
    expected = _scores(predictor, prepared).logit
    assert np.allclose(_scores(predictor, prepared, raw).logit, expected, atol=1e-5)
    wild = [["made_by=nobody", "no path", "=", ""] if number % 2 else None for number in range(len(raw))]
    changed = _scores(predictor, prepared, raw.append_column("graph", pa.array(wild, pa.list_(pa.string())))).logit
    odd = np.array([int(name[1:]) % 2 == 1 for name in _test_rows(prepared)["ad_id"].to_pylist()])
    assert np.isfinite(changed).all() and not np.allclose(changed[odd], expected[odd], atol=1e-3)


def test_links_alone_say_the_same(cycle, tmp_path):
    """One table whose heads are ads or entities."""
    world, prepared, _, _, _ = cycle
    links, of_ads = (pq.read_table(world.folder / f"{name}.parquet") for name in ("links", "ad_links"))
    both = pa.concat_tables([of_ads.rename_columns(links.column_names), links])
    pq.write_table(both, tmp_path / "all.parquet")
    source = graph_worlds.source(world) | {"tables": {"links": {"files": str(tmp_path / "all.parquet")}}}
    other = graph_worlds.prepare(world, tmp_path / "prepared", source=source)
    assert other.ads()["graph"].to_pylist() == prepared.ads()["graph"].to_pylist()


def test_a_list_names_the_click_of_the_same_maker(cycle, tmp_path):
    world, prepared, config, _, _ = cycle
    rank.run(
        RankConfig(bundle=config.output, prepared=prepared.path, split="test", output=tmp_path / "r.parquet", device="cpu"),
        QUIET,
    )
    told = pq.read_table(tmp_path / "r.parquet", columns=["ad_id", "reason"]).to_pylist()
    by_maker = [row for row in told if "the same made by: Maker" in row["reason"]]
    assert len(by_maker) > 50
    for row in by_maker:
        assert row["reason"].endswith(f"Maker {world.maker[int(row['ad_id'][1:])]}.")


def test_an_explanation_gives_links_their_part(cycle):
    _, prepared, _, predictor, _ = cycle
    rows = _test_rows(prepared)
    examples = predictor.examples_of(rows)
    row = int(np.flatnonzero(rows["history_length"].to_numpy() > 3)[0])
    found = Explainer(predictor, predictor.catalogs(prepared.ads(), prepared.users()), {}).explain(examples, row)
    assert "graph" in {part.name for part in found.parts}
    assert found.baseline + sum(part.contribution for part in found.parts) == pytest.approx(found.logit, abs=1e-4)


@pytest.mark.slow
def test_the_exported_graph_agrees(cycle, tmp_path):
    _, prepared, config, predictor, _ = cycle
    catalogs = predictor.catalogs(prepared.ads(), prepared.users())
    examples = predictor.examples_of(_test_rows(prepared))
    batch = moved(next(predictor._batches(examples.take(np.arange(64)), catalogs, 64)), predictor.device)
    export(predictor, batch, tmp_path, int8=False)
    onnx = onnx_predictor(unpack(open_bundle(config.output)), tmp_path)
    expected = predictor.score_examples(examples, catalogs).logit
    assert np.allclose(
        onnx.score_examples(examples, onnx.catalogs(prepared.ads(), prepared.users())).logit, expected, atol=1e-4
    )


def test_an_ad_put_with_its_links_is_scored_by_them_at_once(cycle, tmp_path):
    world, prepared, config, _, _ = cycle
    settings = ServeConfig.model_validate(
        {"bundle": str(config.output), "prepared": str(prepared.path), "store": str(tmp_path / "s.sqlite"), "device": "cpu"}
    )
    users, makers = 30, graph_worlds.MAKERS
    with client_of(settings) as client:
        for maker in range(makers):
            body = {"title": "the same words", "links": [f"made_by=m{maker}"]}
            assert client.put(f"/v1/ads/n{maker}", json=body).status_code == 200
            links = [f"made_by=m{maker}", f"made_by>country=c{world.country[maker]}"]
            assert client.get(f"/v1/ads/n{maker}").json()["links"] == links
        assert client.put("/v1/ads/plain", json={"title": "the same words"}).status_code == 200
        rows = [{"user_id": f"u{user}", "ad_id": f"n{maker}"} for user in range(users) for maker in range(makers)]
        answer = client.post("/v1/score", json={"rows": [*rows, {"user_id": "u0", "ad_id": "plain"}]}).json()["rows"]
        scores = np.array([row["score"] for row in answer[:-1]]).reshape(users, makers)
        assert np.isfinite(scores).all() and np.isfinite(answer[-1]["score"])
        assert scores[np.arange(users), world.liked_maker[:users]].mean() > 1.3 * scores.mean()
        assert client.put("/v1/ads/a40", json={"title": "the same words"}).status_code == 200  # its links are known
        assert set(client.get("/v1/ads/a40").json()["links"]) == set(prepared.ads()["graph"][40].as_py())
        for bad in (["Acme"], "made_by=Acme", ["=x"], [7]):
            assert client.put("/v1/ads/n0", json={"title": "the same words", "links": bad}).status_code == 422


def test_training_goes_on_from_a_graph_of_yesterday(cycle, tmp_path):
    """Entities are known by their names: a network that goes on has theirs. What came whole may learn slowly, or stay."""
    _, prepared, config, predictor, _ = cycle
    before = predictor.model.state_dict()
    moved_by = {}
    for rate in (1.0, 0.1, 0.0):
        later, _ = graph_worlds.train(
            prepared, tmp_path / f"next{rate}", start_from=config.output, carried_rate=rate, training={"epochs": 1}
        )
        after = Predictor.load(later.output).model.state_dict()
        moved_by[rate] = {name: float((after[name] - before[name]).abs().mean()) for name in before}
    for name in ("neighbours.entities.weight", "wide.weight", "ad_encoder.features.weight"):
        assert moved_by[1.0][name] > 2 * moved_by[0.1][name] > 0 == moved_by[0.0][name]
    assert moved_by[0.0]["heads.0.weight"] > 0
    with pytest.raises(ValueError, match="needs `start_from`"):
        graph_worlds.train(prepared, tmp_path / "none", carried_rate=0.5)


@pytest.mark.parametrize(
    ("features", "words"),
    [
        ({"ads": {"lists": [{"column": "a", "paths": 1}, {"column": "b", "paths": 2}]}}, "'a' and 'b' both have paths"),
        ({"ads": {"lists": [{"column": "a", "paths": 1, "buckets": 9}]}}, "leave buckets out"),
        ({"ads": {"vectors": [{"column": "v", "entities": "x"}]}}, "give lists a column with paths too"),
        ({"users": {"lists": [{"column": "a", "paths": 1}]}}, "paths are of ads"),
        (
            {"ads": {"lists": [{"column": "a", "paths": 1}], "vectors": [{"column": "v", "entities": "x"}]}},
            "no vectors of entities",
        ),
    ],
)
def test_slips_are_told(cycle, tmp_path, features, words):
    world = cycle[0]
    with pytest.raises((AdrecError, ValueError), match=words):
        graph_worlds.prepare(world, tmp_path / "prepared", features=features)


def test_a_folder_without_links_has_nothing_to_learn_from(cycle, tmp_path):
    blind = graph_worlds.prepare(cycle[0], tmp_path / "blind", tables=("entities",), hops=0)
    done = CliRunner().invoke(app, ["pretrain-graph", "--set", f"prepared={blind.path}", "--set", f"output={tmp_path / 'e'}"])
    assert done.exit_code == 1 and "holds no links" in done.stderr and not (tmp_path / "e").exists()
    with pytest.raises(DataError, match="'graph' is missing|column 'graph'"):
        graph_worlds.prepare(cycle[0], tmp_path / "none", tables=("entities",))


def test_recbole_and_mind_bring_their_graphs(tmp_path):
    """An item of a .link file is its entity, and reaches what that is linked to; MIND's news name entities of Wikidata."""
    folder = tmp_path / "recbole"
    folder.mkdir()
    inter = "".join(f"u{row % 7}\ti{row % 5}\t{row % 3 // 2}\t{row * 3600}\n" for row in range(60))
    (folder / "x.inter").write_text(f"user_id:token\titem_id:token\tlabel:float\ttimestamp:float\n{inter}")
    (folder / "x.link").write_text("item_id:token\tentity_id:token\ni0\tm.0\ni1\tm.1\ni9\tm.9\n")
    (folder / "x.kg").write_text("head_id:token\trelation_id:token\ttail_id:token\nm.0\tgenre\tm.7\nm.5\tmade\tm.1\n")
    prepared = _prepared({"format": "recbole", "folder": str(folder)}, tmp_path / "r")
    graph = dict(zip(prepared.ads()["ad_id"].to_pylist(), prepared.ads()["graph"].to_pylist(), strict=True))
    assert graph == {"i0": ["is=m.0", "is>genre=m.7"], "i1": ["is=m.1", "is>~made=m.5"], "i2": [], "i3": [], "i4": []}
    assert any("1 ads are not in the ads table" in note for note in prepared.manifest["notes"])
    entities = json.dumps([{"Label": "Ford", "Type": "O", "WikidataId": "Q44294", "Confidence": 1.0}])
    cells = [(entities, "[]"), ("", entities), ("{broken", '{"a": 1}')]
    news = [
        f"N{row}\tautos\tcars\tTitle {row}\tText\thttps://x\t{title}\t{abstract}\n"
        for row, (title, abstract) in enumerate(cells)
    ]
    (tmp_path / "news.tsv").write_text("".join(news))
    rows = [f"{row}\tU{row % 4}\t11/{11 + row // 6}/2019 {row % 6 + 1}:00:00 AM\t\tN0-1 N1-0 N2-0\n" for row in range(24)]
    (tmp_path / "behaviors.tsv").write_text("".join(rows))
    mind = {
        "format": "mind",
        "behaviors": str(tmp_path / "behaviors.tsv"),
        "news": str(tmp_path / "news.tsv"),
        "entities": True,
    }
    prepared = _prepared(mind, tmp_path / "m")
    graph = dict(zip(prepared.ads()["ad_id"].to_pylist(), prepared.ads()["graph"].to_pylist(), strict=True))
    assert graph == {"N0": ["title=Q44294"], "N1": ["abstract=Q44294"], "N2": []}
    table = pq.read_table(prepared.path / "entities.parquet").to_pylist()
    assert table == [{"entity_id": "Q44294", "name": "Ford", "kind": "O"}]


def _prepared(source, output):
    from adrec.config.data.preprocess import PreprocessConfig
    from adrec.stages.data import preprocess

    lists = {"ads": {"lists": [{"column": "graph", "paths": 2}]}}
    split = {"method": "time", "valid_fraction": 0.2, "test_fraction": 0.2}
    preprocess.run(
        PreprocessConfig(output=output, source=source, features=lists, tokenizer={"kind": "none"}, split=split, threads=1),
        QUIET,
    )
    return open_prepared(output)
