"""`start_from`: training that goes on from an earlier bundle."""

import copy

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from worlds import make_world, word_encoder

from adrec.bundle import open_bundle
from adrec.config.training.baselines import BaselinesConfig
from adrec.config.training.finetune import FinetuneConfig
from adrec.data.batches.dataset import Replay
from adrec.data.examples import load_examples
from adrec.data.prepared import open_prepared
from adrec.errors import AdrecError, BundleError
from adrec.inference.packing import unpack
from adrec.inference.predictor import Predictor
from adrec.inference.starting import open_start
from adrec.models.text.text_encoder import TextEncoder
from adrec.stages.training import finetune
from adrec.terminal import Terminal

QUIET = Terminal(quiet=True)
SMALL = {
    "model": {"width": 16, "hidden": [16], "identities": ["ads"]},
    "training": {"epochs": 3, "batch_rows": 256, "learning_rate": 4e-3, "loggers": []},
}


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start")
    world = make_world(folder / "prepared", requests=1200)
    config = FinetuneConfig(
        prepared=world.path, output=folder / "first", **SMALL, baselines=BaselinesConfig(names=["lightgbm"])
    )
    finetune.run(config, QUIET)
    return config


def _next(first, output, **changes):
    training = first.training.model_copy(update=changes.pop("training", {}))
    return FinetuneConfig.model_validate(
        {**first.model_dump(), "output": output, "start_from": first.output, "training": training.model_dump(), **changes}
    )


def test_a_step_of_no_size_leaves_the_network_as_it_was(first, tmp_path):
    finetune.run(_next(first, tmp_path / "next", training={"epochs": 1, "learning_rate": 1e-12}), QUIET)
    before, after = (unpack(open_bundle(path)) for path in (first.output, tmp_path / "next"))
    for name, tensor in before.model.state_dict().items():
        assert torch.allclose(tensor, after.model.state_dict()[name], atol=1e-6), name
    manifest = open_bundle(tmp_path / "next").manifest
    assert manifest["started_from"] == open_bundle(first.output).fingerprint
    assert after.baselines["lightgbm"].trees.count > 0


def test_a_small_market_starts_as_the_bundle_scores_it_on_the_bundles_scales(first, tmp_path):
    """Another log of few rows: without a step what was carried scores its rows as the earlier bundle does, as it is."""
    market = make_world(tmp_path / "market", requests=60, seed=3)
    prepared, still = open_prepared(market.path), {"training": {"epochs": 1, "learning_rate": 1e-12}}
    raw, none = {}, BaselinesConfig(names=[])
    own = {"model": first.model.model_copy(update={"identities": []}), "output": tmp_path / "old", "baselines": none}
    old = first.model_copy(update=own)  # without vectors of ads, which mean others in another market
    finetune.run(old, QUIET)
    for scales in (None, False):
        config = _next(old, tmp_path / str(scales), prepared=market.path, carried_scales=scales, **copy.deepcopy(still))
        finetune.run(config, QUIET)
        raw[scales] = _raw(config.output, prepared)
    assert np.allclose(raw[None], _raw(old.output, prepared), atol=1e-4)
    assert np.abs(raw[False] - raw[None]).max() > 1e-2
    before, after = (unpack(open_bundle(path)).calibrations["click"] for path in (old.output, tmp_path / "None"))
    assert before.rows > 500 and after == before, "a map of few clicks is the earlier bundle's"
    assert unpack(open_bundle(tmp_path / "False")).calibrations["click"].rows < 100, "on scales of its own it has its own"
    own = _next(old, tmp_path / "platt", prepared=market.path, calibration="platt", **copy.deepcopy(still))
    finetune.run(own, QUIET)
    assert unpack(open_bundle(own.output)).calibrations["click"].rows < 100, "unless one is asked for by name"


def test_networks_of_several_markets_take_turns(first, tmp_path):
    """Each bundle has a network that goes on from it, and the ensemble of them scores as their mean."""
    other = make_world(tmp_path / "other", requests=300, seed=5)
    second = first.model_copy(update={"prepared": other.path, "output": tmp_path / "second", "seed": 9})
    finetune.run(second, QUIET)
    both = [first.output, second.output]
    with pytest.raises(ValueError, match="Set seeds to 2 or more"):
        _next(first, tmp_path / "next", start_from=both)
    still = {"training": {"epochs": 1, "learning_rate": 1e-12}, "seeds": 2, "ensemble": True, "carried_scales": False}
    finetune.run(_next(first, tmp_path / "next", start_from=both, **still), QUIET)
    bundle = open_bundle(tmp_path / "next")
    assert bundle.manifest["started_from"] == "+".join(open_bundle(path).fingerprint for path in both)
    members = unpack(bundle).model.members
    for member, path in zip(members, both, strict=True):
        state = unpack(open_bundle(path)).model.state_dict()
        same = [name for name, tensor in member.state_dict().items() if torch.allclose(tensor, state[name], atol=1e-6)]
        assert len(same) > 0.8 * len(state), path


def _raw(bundle, prepared):
    """The network's outputs on the test rows."""
    predictor = Predictor.load(bundle, device="cpu")
    rows = pa.concat_tables([pq.read_table(file) for file in prepared.split_files("test")])
    catalogs = predictor.catalogs(prepared.ads(), prepared.users())
    return predictor.raw(predictor.matched(predictor.examples_of(rows), catalogs), catalogs)


def test_hashed_vectors_of_ads_are_carried_and_packed_though_others_have_become_frequent(first, tmp_path):
    model = {**SMALL["model"], "identity_rows": 8, "identity_min_count": 3}
    own = first.model_copy(update={"model": first.model.model_validate(model), "output": tmp_path / "hashed"})
    finetune.run(own, QUIET)
    again = {"training": {"epochs": 1, "learning_rate": 1e-12}, "start_from": own.output, "refit": True, "model": model}
    finetune.run(_next(first, tmp_path / "next", **again), QUIET)  # on more rows: other counts, other ranks
    before, after = (unpack(open_bundle(path)) for path in (own.output, tmp_path / "next"))
    names = [name for name in before.model.state_dict() if ".identity." in name]
    assert names == ["ad_encoder.identity.first.weight", "ad_encoder.identity.second.weight"]
    for name in names:
        assert torch.allclose(before.model.state_dict()[name], after.model.state_dict()[name], atol=1e-6), name
    ids = before.seen_ads["id"].combine_chunks()
    same = before.own_vectors("ads").codes(ids) == after.own_vectors("ads").codes(ids)
    assert same.mean() > 0.9, "but for those that have become frequent enough since"


def test_the_last_moment_learned_is_written_down(first):
    prepared = open_prepared(first.prepared)
    train = load_examples(prepared, "train")
    assert open_bundle(first.output).manifest["learned_until"] == train.shown_at.max()
    assert open_start([first.output]).learned_until == train.shown_at.max()


def test_replay_learns_all_later_requests_and_a_share_of_the_others(first):
    train = load_examples(open_prepared(first.prepared), "train")
    after = int(np.quantile(train.shown_at, 0.9))
    chosen = Replay(after, 0.25, seed=1).of(train)
    later = train.shown_at > after
    assert (chosen.shown_at > after).sum() == later.sum()
    assert (chosen.shown_at <= after).sum() / (~later).sum() == pytest.approx(0.25, abs=0.05)
    whole = {code: (train.request == code).sum() for code in np.unique(train.request)}
    assert all((chosen.request == code).sum() == whole[code] for code in np.unique(chosen.request))
    assert len(Replay(int(train.shown_at.max()), 1e-12, seed=1).of(train)) == len(train), "nothing to learn is everything again"


@pytest.mark.parametrize("rows", [2_000_000, 0])
def test_replay_of_rows_in_memory_and_streamed(first, tmp_path, rows):
    config = _next(first, tmp_path / "next", replay=0.2, training={"epochs": 1, "in_memory_rows": rows})
    result = finetune.run(config, QUIET)
    assert result.models["adrec"]["auc"] > 0.6


def test_a_kept_start_is_better_than_a_fresh_one(first, tmp_path):
    little = {"training": {"epochs": 1, "learning_rate": 2e-4}, "baselines": {"names": []}}
    warm = finetune.run(_next(first, tmp_path / "warm", **copy.deepcopy(little)), QUIET)
    cold = finetune.run(_next(first, tmp_path / "cold", start_from=None, **copy.deepcopy(little)), QUIET)
    assert warm.models["adrec"]["auc"] > cold.models["adrec"]["auc"] + 0.02


def test_members_of_an_ensemble_go_on_each_from_its_own(first, tmp_path):
    many = {"seeds": 2, "ensemble": True}
    finetune.run(_next(first, tmp_path / "two", start_from=None, **many), QUIET)
    still = {"epochs": 1, "learning_rate": 1e-12}
    finetune.run(_next(first, tmp_path / "next", start_from=tmp_path / "two", training=still, **many), QUIET)
    before, after = (unpack(open_bundle(tmp_path / name)) for name in ("two", "next"))
    for name, tensor in before.model.state_dict().items():
        assert torch.allclose(tensor, after.model.state_dict()[name], atol=1e-6), name


def test_the_words_of_the_earlier_encoder_are_read_on(first, tmp_path):
    text = {"text": {"reference": str(word_encoder(tmp_path / "words")), "lexical": 4, "cache": tmp_path / "cache"}}
    finetune.run(_next(first, tmp_path / "with", start_from=None, **text), QUIET)
    start = open_start([tmp_path / "with"])
    config = _next(first, tmp_path / "next", start_from=tmp_path / "with", **text)
    finetune.run(config, QUIET)
    assert open_start([tmp_path / "next"]).sources[0].described.text_space == start.sources[0].described.text_space
    plain = FinetuneConfig.model_validate({**config.model_dump(), "text": {**config.text.model_dump(), "lexical": 0}})
    own = start.encoder
    assert isinstance(own, TextEncoder)
    assert start.encoder_for(plain, own.without_lexical()) is None, "another width of words is another encoder"


def test_a_trained_encoder_goes_on_where_it_was(first, tmp_path):
    text = {"text": {"reference": str(word_encoder(tmp_path / "words")), "train": "full", "learning_rate": 1e-2}}
    config = _next(first, tmp_path / "one", start_from=None, training={"max_steps": 4}, **text)
    finetune.run(config, QUIET)
    still = {"max_steps": 1, "learning_rate": 1e-12}
    text["text"]["learning_rate"] = 1e-12
    finetune.run(_next(first, tmp_path / "two", start_from=tmp_path / "one", training=still, **text), QUIET)
    one, two = (unpack(open_bundle(tmp_path / name)).encoder for name in ("one", "two"))
    for (name, before), after in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
        assert torch.allclose(before, after, atol=1e-5), name


def test_a_start_that_knows_the_validation_rows_is_warned_of(first, tmp_path, capsys):
    still = {"training": {"epochs": 1}, "baselines": {"names": []}}
    finetune.run(_next(first, tmp_path / "next", **copy.deepcopy(still)), Terminal())
    assert "has learned validation rows" not in capsys.readouterr().err
    finetune.run(_next(first, tmp_path / "knows", start_from=None, refit=True, **copy.deepcopy(still)), QUIET)
    finetune.run(_next(first, tmp_path / "warned", start_from=tmp_path / "knows", **copy.deepcopy(still)), Terminal())
    assert "has learned validation rows" in capsys.readouterr().err


def test_faults_are_told(first, tmp_path):
    with pytest.raises(BundleError, match="not a bundle"):
        finetune.run(_next(first, tmp_path / "next", start_from=tmp_path), QUIET)
    with pytest.raises(ValueError, match="replay: needs `start_from`"):
        _next(first, tmp_path / "next", start_from=None, replay=0.5)
    assert issubclass(BundleError, AdrecError)
