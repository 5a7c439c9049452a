"""Golden requests: whoever loads a bundle gets the logits of its making, or refuses it; they name no person."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file
from worlds import make_world, word_encoder

from adrec.bundle import open_bundle, save_bundle
from adrec.config.base import load_config
from adrec.config.training.finetune import FinetuneConfig
from adrec.data.prepared import open_prepared
from adrec.errors import BundleError
from adrec.inference.golden import CLICKS, ROWS, TOLERANCE, read_golden
from adrec.inference.predictor import Predictor
from adrec.stages.training.finetune import run as finetune
from adrec.terminal import Terminal


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("golden")
    make_world(root / "prepared", requests=300, users=30)
    settings = [
        f"prepared={root / 'prepared'}", f"output={root / 'bundle'}", f"text.reference={word_encoder(root / 'words')}",
        f"text.cache={root / 'cache'}", "model.width=16", "training.epochs=1", "baselines.names=[lightgbm]",
        "hybrid.kind=average",
    ]  # fmt: skip
    finetune(load_config(None, FinetuneConfig, settings), Terminal(quiet=True))
    return root


def resealed(bundle, target, change):
    """A copy of the bundle with a change to its files and digests that fit it."""
    facts = {name: value for name, value in json.loads((bundle / "bundle.json").read_text()).items() if name != "files"}
    facts = {name: value for name, value in facts.items() if not name.endswith("_version")}
    with save_bundle(target, **facts) as folder:
        shutil.copytree(bundle, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("bundle.json"))
        change(folder)
    return target


def test_a_loaded_bundle_gives_the_logits_it_was_made_with(made):
    predictor = Predictor.load(made / "bundle", device="cpu", cache=made / "cache")
    golden = read_golden(open_bundle(made / "bundle"))
    assert predictor.checked and len(golden.logits) == ROWS
    assert np.abs(predictor.golden_scores(golden).logit - golden.logits).max() < TOLERANCE
    assert np.ptp(golden.logits) > 0


def test_they_are_few_short_and_name_no_user(made):
    golden = read_golden(open_bundle(made / "bundle"))
    assert golden.users["user_id"].to_pylist() == [f"golden-{number + 1}" for number in range(ROWS)]
    assert max(map(len, golden.impressions["history_index"].to_pylist())) <= CLICKS
    assert not {"click", "user_id", "ad_id", "true_probability", "row_id"} & set(golden.impressions.column_names)
    known = set(open_prepared(made / "prepared").users()["user_id"].to_pylist())
    for file in (made / "bundle" / "golden").iterdir():
        values = pq.read_table(file).to_pydict().values()
        assert not known & {value for column in values for value in column if isinstance(value, str)}


def test_weights_that_give_other_logits_are_refused_in_one_line(made, tmp_path):
    def nudge(folder):
        weights = load_file(folder / "model.safetensors")
        name = max(weights, key=lambda name: weights[name].size)
        save_file({**weights, name: weights[name] * np.float32(1.05)}, folder / "model.safetensors")

    with pytest.raises(BundleError, match=r"golden requests differ by .* Run 'adrec finetune' again") as refused:
        Predictor.load(resealed(made / "bundle", tmp_path / "nudged", nudge), device="cpu", cache=made / "cache")
    assert "\n" not in str(refused.value)


def test_an_older_bundle_loads_unchecked(made, tmp_path):
    older = resealed(made / "bundle", tmp_path / "older", lambda folder: shutil.rmtree(folder / "golden"))
    assert not Predictor.load(older, device="cpu", cache=made / "cache").checked
