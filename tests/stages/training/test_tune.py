"""`adrec tune` on a small prepared folder: the folder it writes, going on, and faults in the space."""

import json

import pytest
import yaml
from tune_world import make_tune_world, tune_config
from worlds import word_encoder

from adrec.bundle import open_bundle
from adrec.config.base import load_config
from adrec.config.training.finetune import FinetuneConfig
from adrec.data.disk.signatures import make_key, sign
from adrec.errors import BundleError, ConfigError
from adrec.stages.training import finetune, tune
from adrec.stages.training.finetuning.material import read_material
from adrec.stages.training.tuning import trial
from adrec.terminal import Terminal
from adrec.training.click_encoder import trained_encoder

SPACE = {
    "training.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
    "model.user.parts": {"choices": [["mean"], ["soft"]]},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tune_world(tmp_path_factory.mktemp("tune"))


def config(folder, name, **settings):
    return tune_config(folder, name, **{"space": SPACE, "trials": 3, **settings})


def run(folder, name, **settings):
    return tune.run(config(folder, name, **settings), Terminal(quiet=True))


def test_it_writes_the_best_config_the_trials_and_the_plot(folder):
    result = run(folder, "whole")
    out = folder / "whole"
    assert {file.name for file in out.iterdir()} == {
        "best.yaml", "config.yaml", "identity.json", "report.html", "study.db", "trials.csv", "tune.json",
    }  # fmt: skip
    best = load_config(out / "best.yaml", FinetuneConfig)
    assert best.training.learning_rate == result.best["training.learning_rate"]
    assert best.model.user.parts == result.best["model.user.parts"]
    assert best.prepared == folder / "prepared"
    assert len(result.trials) == 3 and result.trials[0]["values"]["training.learning_rate"] == 1e-3, "the base comes first"
    assert json.loads((out / "tune.json").read_text())["best_value"] == result.best_value
    assert not list(folder.glob(".whole*")), "the work folder is gone"
    assert "best config" in str(list(result.render())[-1])


def test_more_trials_go_on_from_the_finished_search(folder):
    first = run(folder, "more", trials=2)
    second = run(folder, "more", trials=4)
    assert second.trials[:2] == first.trials and len(second.trials) == 4
    again = run(folder, "more", trials=4)
    assert again.trials == second.trials, "nothing is left to do"


def test_an_interrupted_search_ends_as_an_uninterrupted_one(folder, monkeypatch):
    whole = run(folder, "straight", pruner="none")
    train, calls = trial.train_click_model, []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return train(*args, **kwargs)

    monkeypatch.setattr(trial, "train_click_model", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(folder, "cut", pruner="none")
    assert not (folder / "cut").exists(), "no half output"
    resumed = run(folder, "cut", pruner="none")
    assert [row["values"] for row in resumed.trials] == [row["values"] for row in whole.trials]
    assert resumed.best_value == pytest.approx(whole.best_value)


def test_a_key_that_finetune_does_not_have_is_named(folder):
    with pytest.raises(ConfigError, match="learning_rat: unknown key. Did you mean 'learning_rate'"):
        run(folder, "wrong", space={"training.learning_rat": {"choices": [1e-3]}})


def test_a_base_outside_the_space_is_not_tried(folder):
    chosen = config(folder, "outside", space={"training.learning_rate": {"low": 1e-5, "high": 1e-4, "log": True}})
    assert tune.base_values(chosen, tune.with_values(chosen, {})) is None


def test_a_trial_trains_what_finetune_trains(folder, tmp_path):
    """The text's words beside the encoder, only the layers that are to be trained, one device."""
    base = yaml.safe_load((folder / "finetune.yaml").read_text(encoding="utf-8"))
    base["text"] = {"reference": str(word_encoder(tmp_path / "words")), "lexical": 4, "train": "full"}
    base["training"] |= {"devices": 2}
    (folder / "deep.yaml").write_text(yaml.safe_dump(base), encoding="utf-8")
    chosen = tune.with_values(config(folder, "deep_search", base="deep.yaml"), {})
    assert chosen.training.devices == 1
    material = read_material(chosen, Terminal(quiet=True))
    encoder = trained_encoder(chosen, material.encoder)
    assert encoder is not None and encoder.parts[1] == 4 and material.data.dimensions.text_parts == encoder.parts
    frozen = chosen.model_copy(update={"text": chosen.text.model_copy(update={"train": "frozen"})})
    assert trained_encoder(frozen, material.encoder) is None


def test_trials_go_on_from_the_bundle_of_the_base_which_a_trusted_key_signed(folder, monkeypatch):
    base = load_config(folder / "finetune.yaml", FinetuneConfig, [f"output={folder}/yesterday"])
    finetune.run(base, Terminal(quiet=True))
    make_key(folder / "own.key")
    make_key(folder / "other.key")
    sign(folder / "yesterday" / "bundle.json", folder / "own.key")
    later = yaml.safe_load((folder / "finetune.yaml").read_text(encoding="utf-8")) | {"start_from": "yesterday"}
    (folder / "later.yaml").write_text(yaml.safe_dump(later), encoding="utf-8")
    starts, train = [], trial.train_click_model
    monkeypatch.setattr(
        trial, "train_click_model", lambda *a, start, **more: starts.append(start) or train(*a, start=start, **more)
    )
    with pytest.raises(BundleError, match="trusted"):
        run(folder, "distrusted", base="later.yaml", trusted_keys=["other.key.pub"])
    run(folder, "trusted", base="later.yaml", trials=2, trusted_keys=["own.key.pub"])
    assert [start.fingerprint for start in starts] == [open_bundle(folder / "yesterday").fingerprint] * 2


def test_a_trial_goes_on_from_the_first_of_several_bundles_and_the_best_config_from_all(folder):
    base = yaml.safe_load((folder / "finetune.yaml").read_text(encoding="utf-8"))
    base |= {"start_from": ["north", "south"], "seeds": 2, "ensemble": True, "text": {"reference": None}}
    (folder / "markets.yaml").write_text(yaml.safe_dump(base), encoding="utf-8")
    one = tune.with_values(config(folder, "markets_search", base="markets.yaml"), {})
    assert (one.sources, one.seeds) == ([folder / "north"], 1)
    assert len(load_config(folder / "markets.yaml", FinetuneConfig).sources) == 2


def test_a_search_of_a_private_training_is_refused(folder):
    base = yaml.safe_load((folder / "finetune.yaml").read_text(encoding="utf-8"))
    (folder / "private.yaml").write_text(yaml.safe_dump(base | {"privacy": {"epsilon": 1}}), encoding="utf-8")
    with pytest.raises(ConfigError, match="privacy: a search learns the log once a trial, without noise"):
        run(folder, "private_search", base="private.yaml")
