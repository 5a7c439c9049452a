"""A private training from the prepared folder to the bundle: what it holds, what it refuses, and that it still learns."""

import json
from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from worlds import make_world, word_encoder

from adrec.bundle import MANIFEST, open_bundle
from adrec.config.base import Config
from adrec.config.data.inspect import InspectConfig
from adrec.config.training.finetune import FinetuneConfig
from adrec.config.training.private import _RULES, for_privacy
from adrec.data.prepared import open_prepared
from adrec.errors import BundleError, ConfigError, DataError
from adrec.inference.predictor import Predictor
from adrec.privacy.mechanisms import Releases
from adrec.privacy.noise import Noise
from adrec.stages.data import inspect
from adrec.stages.training import finetune
from adrec.stages.training.finetuning.private import _refuse
from adrec.terminal import Terminal
from adrec.training import click_data
from adrec.training.click_data import load_click_data
from adrec.training.click_encoder import open_text_encoder, text_reader
from adrec.training.private.features import Declared, Refitted, planned_releases, private_features

QUIET = Terminal(quiet=True)


def config_of(folder, name="bundle", privacy=None, **settings):
    usual = {
        "prepared": folder / "prepared",
        "output": folder / name,
        "text": {"reference": str(folder / "encoder"), "cache": str(folder / "cache")},
        "model": {"width": 8, "hidden": [8], "dropout": 0.0},
        "training": {"epochs": 8, "batch_rows": 400, "learning_rate": 1e-2, "loggers": []},
        "privacy": {"epsilon": 20, "delta": 1e-4, "public": ["encoder"], **(privacy or {})},
    }
    return FinetuneConfig.model_validate({**usual, **settings})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("private")
    make_world(folder / "prepared", users=200, requests=1500)
    word_encoder(folder / "encoder")
    result = finetune.run(config_of(folder, privacy={"unit": "row", "public": ["encoder", "scenario"], "secure": False}), QUIET)
    return folder, result


def test_it_learns_and_scores_as_it_was_measured(made):
    folder, result = made
    assert result.models["adrec"]["auc"] > 0.6
    prepared = open_prepared(folder / "prepared")
    predictor = Predictor.load(folder / "bundle", device="cpu")
    rows = pq.read_table(prepared.split_files("valid")[0])
    scored = predictor.score(rows.drop_columns(["click"]), prepared.ads(), prepared.users())
    scores = scored["score"].to_numpy()
    assert np.isfinite(scores).all() and scores.min() >= 0 and scores.max() <= 1 and len(np.unique(scores)) > 100


def test_no_file_names_a_user_or_counts_one(made):
    folder, _ = made
    bundle = folder / "bundle"
    users = {f"u{number}" for number in range(200)}
    for file in bundle.rglob("*"):
        if file.suffix == ".parquet":
            table = pq.read_table(file)
            cells = {str(cell) for name in table.column_names for cell in table[name].to_pylist()}
            assert not cells & users, file
            assert set(table["impressions"].to_pylist()) == {0}
        elif file.suffix in {".json", ".yaml", ".md"}:
            words = set(file.read_text().replace('"', " ").replace(",", " ").split())
            assert not words & users, file
    manifest = open_bundle(bundle).manifest
    assert manifest["data_fingerprint"] != open_prepared(folder / "prepared").fingerprint
    assert manifest["learned_until"] is None and not (bundle / "golden").exists()
    assert json.loads((bundle / "metrics.json").read_text())["models"] == {}


def test_the_ledger_has_a_line_for_every_file_and_inspect_prints_it(made):
    folder, result = made
    stored = open_bundle(folder / "bundle").manifest["privacy"]
    assert stored == result.privacy and stored["spent"] <= stored["epsilon"] == 20
    noised = {line["artefact"]: line for line in stored["lines"] if line["treatment"] == "noised"}
    assert {"weights", "rate of click", "calibration of click, step 1", "vocabulary of users.interests"} <= set(noised)
    assert "vocabulary of impressions.scenario" not in noised  # declared public
    assert stored["spent"] < sum(line["epsilon_alone"] for line in noised.values())
    shown = inspect.run(InspectConfig(path=folder / "bundle", html=folder / "page.html"), QUIET)
    assert "weights" in str(shown.as_dict()["about"]["privacy"])
    assert "rate of click" in (folder / "page.html").read_text()


def test_a_file_that_nobody_accounts_for_is_refused(made, tmp_path):
    import hashlib
    import shutil

    copy = tmp_path / "bundle"
    shutil.copytree(made[0] / "bundle", copy)
    (copy / "notes.json").write_text("{}")
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["files"]["notes.json"] = {"sha256": hashlib.sha256(b"{}").hexdigest(), "bytes": 2}
    (copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"claims an epsilon of 20, .* does not account for 'notes.json'"):
        open_bundle(copy)
    manifest["privacy"]["spent"] = 21
    (copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="21 was spent of an epsilon of 20"):
        open_bundle(copy)


@pytest.mark.slow
def test_a_users_bundle_reads_no_counter_of_others(made):
    folder, _ = made
    privacy = {"unit": "user", "clip": "adaptive", "counts": True, "max_rows_per_user": 8}
    result = finetune.run(config_of(folder, "of-users", privacy), QUIET)
    lines = {line["artefact"]: line for line in result.privacy["lines"]}
    assert lines["column counter_appeal"]["treatment"] == "left out"
    assert lines["counts of ads"]["sensitivity"] == pytest.approx(4.0)  # eight ads, each shown and clicked
    assert np.isfinite(result.models["adrec"]["auc"])
    packed = Predictor.load(folder / "of-users", device="cpu").packed
    assert "counter_appeal" not in packed.features["impressions"].columns


def test_a_counter_is_read_on_the_owners_word(made):
    prepared = open_prepared(made[0] / "prepared")
    for public, columns in (((), []), (("counter_appeal",), ["counter_appeal"])):
        releases = Releases(Noise(seed=0), 1.0, 1e-6)
        declared = Declared(frozenset(public), {})
        features, lacking = private_features(prepared, "user", declared, releases, seed=0)
        assert [name for name in features["impressions"].columns if name.startswith("counter_")] == columns
        assert lacking == ([] if public else ["counter_appeal"])
        assert len(releases.lines) == planned_releases(prepared, "user", declared)[0]


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"baselines": {"names": ["lightgbm"]}}, r"baselines\.names must be \[\]"),
        ({"hybrid": {"also": ["item_cf"]}}, r"hybrid\.also must be \[\]"),
        ({"refit": True}, "refit must be False"),
        ({"loss": {"terms": [{"kind": "in_batch"}]}}, r"loss\.terms may only be bce"),
        ({"model": {"identities": ["users"]}}, r"model\.identities must be \[\]"),
        ({"model": {"user": {"parts": ["gru"]}}}, "names gru"),
        ({"text": {"train": "full"}}, r"text\.train must be frozen"),
        ({"calibration": "isotonic"}, "calibration must be platt"),
        ({"tasks": [{"name": "click"}, {"name": "dwell_seconds"}]}, "tasks may only be .* yes or no"),
        # A drawn label is one of two: seconds would be told as they are, under a claim of epsilon 1.
        ({"privacy": {"epsilon": 1, "unit": "label"}, "tasks": [{"name": "click"}, {"name": "rating"}]}, "tasks may only be"),
        ({"training": {"nodes": 2}}, r"training\.nodes must be 1: a step's sample"),
        ({"training": {"strategy": "fsdp"}}, r"training\.strategy must be auto"),
    ],
)
def test_what_cannot_be_counted_is_refused(settings, said, tmp_path):
    with pytest.raises(ConfigError, match=said):
        for_privacy(FinetuneConfig.model_validate({"prepared": "p", "output": "b", "privacy": {"epsilon": 1}, **settings}))


def test_defaults_that_would_tell_are_switched_off():
    changed = for_privacy(FinetuneConfig.model_validate({"prepared": "p", "output": "b", "privacy": {"epsilon": 1}}))
    assert changed.baselines.names == [] and changed.hybrid.kind == "none" and changed.recall_requests == 0
    assert changed.calibration == "platt" and not changed.training.resume and changed.training.precision == "fp32"


def test_an_encoder_of_ones_own_must_be_declared(made):
    with pytest.raises(ConfigError, match=r"may have learned what users wrote.*public=\[encoder\]"):
        finetune.run(config_of(made[0], "other", {"public": []}), QUIET)


def test_noise_that_is_too_little_is_refused(made):
    with pytest.raises(ConfigError, match=r"privacy\.noise 0\.3 costs an epsilon of"):
        finetune.run(config_of(made[0], "other", {"noise": 0.3, "unit": "row"}), QUIET)


def test_labels_alone_are_drawn_and_still_taught(made):
    folder, _ = made
    privacy = {"unit": "label", "epsilon": 2.0, "public": ["encoder", "history"], "secure": False}
    result = finetune.run(
        config_of(folder, "of-labels", privacy, training={"epochs": 6, "learning_rate": 1e-2, "loggers": []}), QUIET
    )
    lines = {line["artefact"]: line for line in result.privacy["lines"]}
    assert result.privacy["spent"] == 2.0 and lines["labels of click"]["mechanism"] == "randomised response"
    assert lines["column counter_appeal"]["treatment"] == "left out"  # it is made of clicks
    assert result.models["adrec"]["auc"] > 0.6
    prepared = open_prepared(folder / "prepared")
    scored = Predictor.load(folder / "of-labels", device="cpu").score(
        rows := pq.read_table(prepared.split_files("valid")[0]), prepared.ads(), prepared.users()
    )
    assert scored["score"].to_numpy().mean() / rows["click"].to_numpy().mean() == pytest.approx(1.0, abs=0.35)


def _settings(model, prefix=""):
    """Dotted names of all settings, those of lists of sections too."""
    for name, field in model.model_fields.items():
        sections = [part for part in (field.annotation, *get_args(field.annotation)) if is_section(part)]
        yield from (f"{prefix}{name}",) if not sections else _settings(sections[0], f"{prefix}{name}.")


def is_section(kind):
    return isinstance(kind, type) and issubclass(kind, Config)


def test_every_setting_was_thought_of():
    """A new setting may make a bundle hold what the ledger does not count: give it a rule in config/training/private.py where
    it does, and name it here where it does not.
    """
    ruled = {rule.key for rule in _RULES} | {"loss.terms.kind", "model.identities", "model.user.parts", "tasks.kind"}
    of_ads_alone = {"model.semantic_ids.levels", "model.semantic_ids.codes", "text.lexical"}  # the catalogue is public
    off = {"model.identity_min_count", "model.identity_rows", "model.identity_optimizer", "baselines.max_rows", "hybrid.also",
           "delay.window_hours", "delay.wait_hours", "replay", "carried_rate", "carried_scales", "text.last_layers",
           "text.lora_rank", "text.learning_rate", "training.patience", "training.monitor", "training.evaluations_per_epoch",
           "training.compile", "training.gradient_checkpointing"}  # of what is switched off  # fmt: skip
    of_the_machine = {"prepared", "output", "seed", "device", "trusted_keys", "text.cache", "text.batch_tokens"} | {
        f"cluster.{name}" for name in ("engine", "address", "workers", "cpus", "gpus", "memory_gb")
    } | {f"training.{name}" for name in ("workers", "checkpoint_minutes", "checkpoint_steps", "loggers", "profile",
                                         "in_memory_rows")}  # in the work folder, which goes  # fmt: skip
    of_the_network = {f"model.{name}" for name in (
        "width", "interaction", "cross_layers", "sharing", "experts", "hidden", "feature_width", "text_match", "taste",
        "fusion", "crosses", "modality_dropout", "graph", "wide", "query", "interests", "dropout")} | {
        f"model.user.{name}" for name in (
        "max_history", "heads", "window", "sequence", "layers", "search", "search_top", "skipped")} | {
        f"text.{name}" for name in ("reference", "pooling", "max_tokens", "prompts", "dimensions")} | {
        f"tasks.{name}" for name in ("name", "weight", "after")} | {"loss.terms.weight"} | {
        f"training.{name}" for name in (
        "epochs", "max_steps", "learning_rate", "weight_decay", "schedule", "warmup_fraction", "batch_rows")}  # fmt: skip
    own = {name for name in _settings(FinetuneConfig) if name.startswith("privacy.")}
    assert set(_settings(FinetuneConfig)) == ruled | of_ads_alone | off | of_the_machine | of_the_network | own


def test_ads_that_impressions_name_must_be_declared(tmp_path):
    make_world(tmp_path / "prepared", users=60, requests=200)
    word_encoder(tmp_path / "encoder")
    manifest = json.loads((tmp_path / "prepared" / "manifest.json").read_text())
    manifest["source_rows"] = {"impressions": {"rows": 800, "rejected": 0}}  # as of one wide table
    (tmp_path / "prepared" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"tells what was shown, if only to one user.*public=\[ads\]"):
        finetune.run(config_of(tmp_path, "other", {"unit": "row"}), QUIET)
    settings = config_of(tmp_path, "other", {"unit": "row", "public": ["encoder", "ads"], "noise": 0.3})
    with pytest.raises(ConfigError, match=r"privacy\.noise 0\.3 costs"):  # the next thing that is wrong
        finetune.run(settings, QUIET)


def test_what_the_data_are_read_by_tells_nothing_of_who_is_there(made, monkeypatch):
    """Neither which validation rows are the first ones, nor whether anyone wrote anything."""
    monkeypatch.setattr(click_data, "VALID_ROWS", 40)
    prepared = open_prepared(made[0] / "prepared")
    silent = Refitted(prepared, prepared.features())
    users = prepared.users()
    blank = pa.array([""] * len(users), pa.string())
    monkeypatch.setattr(silent, "users", lambda: users.set_column(users.column_names.index("text"), "text", blank))
    config = config_of(made[0])
    reader = text_reader(config, open_text_encoder(config, prepared))
    usual, private = (load_click_data(config, silent, reader, QUIET, is_private=is_private) for is_private in (False, True))
    assert len(usual.valid) <= 40 and len(private.valid) == prepared.rows("valid")
    assert not usual.dimensions.interests and private.dimensions.interests


@pytest.mark.parametrize("where", ["train", "valid"])
def test_labels_whose_absence_tells_another_are_refused(tmp_path, where):
    make_world(tmp_path / "prepared", users=60, requests=200, conversions=True)
    word_encoder(tmp_path / "encoder")
    for file in (tmp_path / "prepared" / "impressions" / where).glob("*.parquet"):
        rows = pq.read_table(file)
        told = pc.if_else(pc.equal(rows["click"], 1), rows["conversion"], None)  # empty where nothing was clicked
        pq.write_table(rows.set_column(rows.column_names.index("conversion"), "conversion", told), file)
    tasks = [{"name": "click"}, {"name": "conversion"}]
    privacy = {"unit": "label", "public": ["encoder", "history"], "secure": False}
    with pytest.raises(DataError, match="'conversion' is empty in rows where 'click' is not.*Write 0"):
        finetune.run(config_of(tmp_path, "other", privacy, tasks=tasks), QUIET)


def test_an_encoder_that_counted_users_says_nothing_of_a_row_with_a_query(made):
    prepared = open_prepared(made[0] / "prepared")
    config = config_of(made[0], "other", {"unit": "row", "public": []})
    with pytest.raises(ConfigError, match="may have learned what users wrote"):
        _refuse(config, prepared)
    prepared.__dict__["columns"] = [*prepared.columns, "query"]  # as if it had been read
    with pytest.raises(ConfigError, match="counts users, not what one row of several says"):
        _refuse(config, prepared)


def test_histories_that_a_log_without_users_brings_must_be_declared_too(tmp_path):
    make_world(tmp_path / "prepared", users=60, requests=200)
    file = tmp_path / "prepared" / "manifest.json"
    has = {"user": False, "ad": True, "time": True, "text": True}
    file.write_text(json.dumps({**json.loads(file.read_text()), "has": has, "history": {"source": "given"}}))
    with pytest.raises(ConfigError, match="histories, which are earlier clicks"):
        finetune.run(config_of(tmp_path, "other", {"unit": "label", "public": ["encoder"]}), QUIET)


def test_histories_that_hold_the_secret_clicks_must_be_declared(made):
    with pytest.raises(ConfigError, match=r"histories, which are earlier clicks.*public=\[history\]"):
        finetune.run(config_of(made[0], "other", {"unit": "label", "public": ["encoder"]}), QUIET)
