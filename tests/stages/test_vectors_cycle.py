"""Vectors of ads and users from the raw file to the served answer: what no word tells is learned, and every command agrees."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import vector_worlds
import yaml

from adrec.bundle import open_bundle
from adrec.config.base import load_stored_config
from adrec.config.inference.encode import EncodeConfig
from adrec.config.inference.rank import Policy, RankConfig
from adrec.config.inference.score import ScoreConfig
from adrec.config.inference.serve import ServeConfig
from adrec.config.training.finetune import FinetuneConfig
from adrec.data.device import moved
from adrec.data.vectors import file_of
from adrec.errors import DataError
from adrec.inference.explain.explainer import Explainer
from adrec.inference.known import known_of
from adrec.inference.lists.ranker import Ranker
from adrec.inference.onnx.backend import onnx_predictor
from adrec.inference.onnx.exporting import export
from adrec.inference.packing import unpack
from adrec.inference.predictor import Predictor
from adrec.metrics.classification import auc
from adrec.serve.engine import Engine
from adrec.stages.inference import encode, rank, score
from adrec.terminal import Terminal

QUIET = Terminal(quiet=True)


@pytest.fixture(scope="module")
def cycle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vectors")
    world = vector_worlds.make(folder / "raw", missing=0.2)
    prepared = vector_worlds.prepare(world, folder / "prepared", users=({"column": "taste", "space": "taste"},))
    config, _ = vector_worlds.train(prepared, folder / "bundle", baselines={"names": ["lightgbm", "logistic"]})
    return world, prepared, config, Predictor.load(config.output)


def _test_rows(prepared):
    return pa.concat_tables([pq.read_table(file) for file in prepared.split_files("test")])


def _scores(predictor, prepared, rows=None, ads=None, users=None):
    rows = _test_rows(prepared) if rows is None else rows
    catalogs = predictor.catalogs(prepared.ads() if ads is None else ads, prepared.users() if users is None else users)
    return predictor.score_examples(predictor.examples_of(rows), catalogs)


def test_what_only_vectors_tell_is_learned_by_network_and_trees(cycle, tmp_path):
    world, prepared, _, predictor = cycle
    blind = vector_worlds.prepare(world, tmp_path / "blind", ads=())
    blind_config, _ = vector_worlds.train(blind, tmp_path / "blind_bundle")
    rows = _test_rows(prepared)
    label, truth = rows["click"].to_numpy(), rows["true_probability"].to_numpy()
    scores = _scores(predictor, prepared)
    without = auc(label, _scores(Predictor.load(blind_config.output), blind).score)
    oracle = auc(label, truth)
    assert without < 0.6
    assert auc(label, scores.score) > without + 0.8 * (oracle - without)
    assert auc(label, scores.baselines["lightgbm"]) > without + 0.6 * (oracle - without)
    assert auc(label, scores.baselines["logistic"]) > without + 0.4 * (oracle - without)


@pytest.mark.parametrize("fusion", ["gated", "cross_attention", "late"])
def test_other_fusions_learn_it_too(cycle, tmp_path, fusion):
    world, prepared, _, _ = cycle
    config, _ = vector_worlds.train(prepared, tmp_path / fusion, model={"fusion": fusion})
    rows = _test_rows(prepared)
    assert auc(rows["click"].to_numpy(), _scores(Predictor.load(config.output), prepared).score) > 0.7


def test_what_age_makes_of_a_vector_is_found_in_few_rows(tmp_path):
    """Each age likes another direction of the vector: layers side by side have to build that product, `crosses` is one."""
    world = vector_worlds.make(tmp_path / "raw", ages=4)
    prepared = vector_worlds.prepare(world, tmp_path / "prepared", features=AGES)
    rows = _test_rows(prepared)
    label, reached = rows["click"].to_numpy(), {}
    for crosses in (0, 4):
        config, _ = vector_worlds.train(prepared, tmp_path / str(crosses), model={"crosses": crosses})
        reached[crosses] = auc(label, _scores(Predictor.load(config.output), prepared).score)
    oracle = auc(label, rows["true_probability"].to_numpy())
    assert reached[4] > 0.5 + 0.85 * (oracle - 0.5) and reached[4] > reached[0] + 0.02
    stored = yaml.safe_load((tmp_path / "0" / "config.yaml").read_text())
    del stored["model"]["crosses"]  # as bundles were written before there was any
    (tmp_path / "0" / "config.yaml").write_text(yaml.safe_dump(stored))
    assert load_stored_config(tmp_path / "0" / "config.yaml", FinetuneConfig, command="finetune").model.crosses == 0


AGES = {"ads": {"vectors": ["photo"]}, "users": {"categorical": ["age"]}}


def test_finetune_reports_what_each_modality_is_worth(cycle):
    _, _, config, _ = cycle
    found = json.loads((config.output / "metrics.json").read_text())["modalities"]
    assert set(found) == {"photo", "noise"}
    assert found["photo"]["together"] - found["photo"]["without"] > 0.1
    assert abs(found["noise"]["together"] - found["noise"]["without"]) < 0.05 and found["noise"]["share"] == 1
    assert found["photo"]["alone"] > found["noise"]["alone"] + 0.1 and 0.5 < found["photo"]["share"] < 1


def test_the_folder_keeps_them_apart_and_mapped(cycle):
    world, prepared, _, _ = cycle
    assert "photo" not in pq.read_schema(prepared.path / "ads.parquet").names
    raw = pq.read_table(world.folder / "ads.parquet")["photo"].to_pylist()
    stored = np.load(file_of(prepared.path, "ads", "photo"))
    for cell, row in zip(raw, stored, strict=True):
        assert np.isnan(row).all() if cell is None else np.array_equal(row, np.float32(cell))
    column = prepared.ads()["photo"]
    assert column.type == pa.list_(pa.float32(), 8)
    other = prepared.ads()["photo"].chunk(0).values.buffers()[1]
    assert isinstance(np.load(file_of(prepared.path, "ads", "photo"), mmap_mode="r"), np.memmap)
    assert other.size == stored.nbytes and other.parent is None


def test_a_missing_modality_is_neither_a_crash_nor_a_bias(cycle):
    world, prepared, _, predictor = cycle
    rows = _test_rows(prepared)
    scores = _scores(predictor, prepared)
    gone = np.isnan(np.load(file_of(prepared.path, "ads", "photo"))).any(axis=1)[rows["ad_index"].to_numpy()]
    label, truth = rows["click"].to_numpy(), rows["true_probability"].to_numpy()
    assert 0.05 < gone.mean() < 0.5 and np.isfinite(scores.score).all()
    # As many clicks are promised for ads without a picture as for those with one, within what chance allows.
    for part in (gone, ~gone):
        assert abs(scores.score[part].mean() - truth[part].mean()) < 0.06
    everything = _scores(predictor, prepared, ads=prepared.ads().drop_columns(["photo", "noise"]))
    assert np.isfinite(everything.score).all() and abs(everything.score.mean() - label.mean()) < 0.1


def test_own_rows_and_files_are_scored_as_the_prepared_ones(cycle, tmp_path):
    world, prepared, config, predictor = cycle
    raw_ads = pq.read_table(world.folder / "ads.parquet")
    rows = _test_rows(prepared).select(["user_id", "ad_id", "shown_at", "request_id"]).slice(0, 400)
    history = pa.table(
        {"user_id": rows["user_id"].slice(0, 50), "ad_id": rows["ad_id"].slice(0, 50),
         "shown_at": pa.array(np.zeros(50, np.int64)).cast(pa.timestamp("us", "UTC"))}
    )  # fmt: skip
    users = pq.read_table(world.folder / "users.parquet")
    expected = predictor.score(rows, prepared.ads(), prepared.users(), history=history)["logit"].to_numpy()
    assert np.allclose(predictor.score(rows, raw_ads, users, history=history)["logit"].to_numpy(), expected, atol=1e-6)
    pq.write_table(rows, tmp_path / "rows.parquet")
    pq.write_table(history, tmp_path / "history.parquet")
    csv = tmp_path / "ads.csv"
    lines = ["ad_id,title,photo,noise"]
    for ad in raw_ads.to_pylist():
        photo = " ".join(map(repr, ad["photo"])) if ad["photo"] else ""
        lines.append(f'{ad["ad_id"]},{ad["title"]},{photo},"[{", ".join(map(repr, ad["noise"]))}]"')
    csv.write_text("\n".join(lines) + "\n")
    output = tmp_path / "scored.parquet"
    given = {"impressions": str(tmp_path / "rows.parquet"), "ads": str(csv), "users": str(world.folder / "users.parquet")}
    settings = ScoreConfig(bundle=config.output, history=str(tmp_path / "history.parquet"), output=output, **given)
    score.run(settings, QUIET)
    assert np.allclose(pq.read_table(output)["logit"].to_numpy(), expected, atol=1e-6)
    csv.write_text(csv.read_text().replace("[", "[7.5, ", 1))
    with pytest.raises(DataError, match="'noise', row 1: .*is no list of 4 finite numbers"):
        score.run(settings.model_copy(update={"output": tmp_path / "other.parquet"}), QUIET)


def test_frames_of_another_width_are_told(cycle):
    world, prepared, _, predictor = cycle
    ads = pq.read_table(world.folder / "ads.parquet")
    place = ads.column_names.index("photo")
    cells = ads["photo"].to_pylist()
    cells[3] = [1.0, 2.0]
    with pytest.raises(DataError, match="column 'photo', row 4: has another width than 8"):
        predictor.catalogs(ads.set_column(place, "photo", pa.array(cells, pa.list_(pa.float32()))), None)
    with pytest.raises(DataError, match="column 'photo' is string, expected lists of 8 numbers"):
        predictor.catalogs(ads.set_column(place, "photo", pa.array(["x"] * len(ads))), None)


def test_the_picture_has_a_part_of_its_own_in_an_explanation(cycle):
    world, prepared, _, predictor = cycle
    rows = _test_rows(prepared)
    catalogs = predictor.catalogs(prepared.ads(), prepared.users())
    examples = predictor.examples_of(rows)
    known = ~np.isnan(np.load(file_of(prepared.path, "ads", "photo"))).any(axis=1)[rows["ad_index"].to_numpy()]
    row = int(np.flatnonzero(known & (rows["history_length"].to_numpy() > 3))[0])
    found = Explainer(predictor, catalogs, {}).explain(examples, row)
    parts = {part.name: part for part in found.parts if part.kind == "vector"}
    assert "photo" in parts and "taste" in parts
    assert found.baseline + sum(part.contribution for part in found.parts) == pytest.approx(found.logit, abs=1e-4)
    ads = prepared.ads()
    cells = [None if number == rows["ad_index"][row].as_py() else cell for number, cell in enumerate(ads["photo"].to_pylist())]
    ads = ads.set_column(ads.column_names.index("photo"), "photo", pa.array(cells, pa.list_(pa.float32(), 8)))
    alone = predictor.score_examples(examples.take(np.array([row])), predictor.catalogs(ads, prepared.users()), baselines=False)
    if rows["ad_id"][row].as_py() not in {part.name for part in found.parts if part.kind in {"click", "skipped"}}:
        assert parts["photo"].without == pytest.approx(float(alone.score[0]), abs=1e-5)


def test_the_exported_graph_agrees(cycle, tmp_path):
    world, prepared, config, predictor = cycle
    catalogs = predictor.catalogs(prepared.ads(), prepared.users())
    examples = predictor.examples_of(_test_rows(prepared))
    few = predictor.matched(examples.take(np.arange(64)), catalogs)
    batch = moved(next(predictor._batches(few, catalogs, 64)), predictor.device)
    export(predictor, batch, tmp_path, int8=False)
    onnx = onnx_predictor(unpack(open_bundle(config.output)), tmp_path)
    expected = predictor.score_examples(examples, catalogs).logit
    assert np.allclose(
        onnx.score_examples(examples, onnx.catalogs(prepared.ads(), prepared.users())).logit, expected, atol=1e-4
    )


def test_ranked_lists_order_by_the_picture(cycle):
    world, prepared, _, predictor = cycle
    policy = Policy.model_validate(
        {"top_n": 10, "rules": {"clicked": "keep", "active": False}, "diversity": {"method": "none"}}
    )
    ads = prepared.ads()
    catalogs = predictor.catalogs(ads, prepared.users())
    ranker = Ranker(predictor, catalogs, ads, prepared.users(), {"default": policy}, known=known_of(prepared, ads))
    assert len(ranker.ads) == len(ads)
    vectors = predictor.ad_vectors(catalogs)
    assert np.isfinite(vectors).all() and len(np.unique(vectors.round(4), axis=0)) > 40


def test_a_folder_whose_vectors_another_encoder_made_is_refused(cycle, tmp_path):
    """Same name, same width, other meaning: no command feeds it in; tables of the user's own go before the folder's."""
    world, _, config, _ = cycle
    taste = ({"column": "taste", "space": "taste"},)
    other = vector_worlds.prepare(world, tmp_path / "other", ads=({"column": "photo", "space": "new"}, "noise"), users=taste)
    rows = _test_rows(other).select(["user_id", "ad_id", "shown_at"]).slice(0, 50)
    pq.write_table(rows, tmp_path / "rows.parquet")
    common = {"bundle": config.output, "prepared": other.path, "device": "cpu"}
    own = {"impressions": str(tmp_path / "rows.parquet")}
    runs = [
        lambda: score.run(ScoreConfig(**common, split="test", output=tmp_path / "scored.parquet"), QUIET),
        lambda: score.run(ScoreConfig(**common, **own, output=tmp_path / "scored.parquet"), QUIET),
        lambda: rank.run(RankConfig(**common, split="test", output=tmp_path / "ranked.parquet"), QUIET),
        lambda: encode.run(EncodeConfig(**common, output=tmp_path / "vectors"), QUIET),
        lambda: Engine(ServeConfig(**common, store=tmp_path / "store.sqlite")),
    ]
    for run in runs:
        with pytest.raises(DataError, match=r"'photo' of the ads lies in the space 'new', and the bundle reads 'photo'"):
            run()
    ads = str(world.folder / "ads.parquet")
    score.run(ScoreConfig(**common, **own, ads=ads, output=tmp_path / "scored.parquet"), QUIET)
    assert pq.read_metadata(tmp_path / "scored.parquet").num_rows == 50
