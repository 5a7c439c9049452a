"""Pretraining over several markets: each text of a small one comes more often, none is left out, none held out is learned."""

import numpy as np
import pytest
from corpora import make_corpus

from adrec.config.base import load_config
from adrec.config.training.pretrain import PretrainConfig
from adrec.data.prepared import open_prepared
from adrec.data.text.mixture import Mixture
from adrec.data.text.pairs import part_pairs
from adrec.errors import ConfigError
from adrec.stages.training.pretrain import run
from adrec.terminal import Terminal


@pytest.fixture(scope="module")
def markets(tmp_path_factory):
    """A large market and a small one of other texts."""
    folder = tmp_path_factory.mktemp("markets")
    return [make_corpus(folder / name, count=count, seed=count) for name, count in (("large", 400), ("small", 25))]


@pytest.mark.parametrize("temperature, times", [(1.0, 1), (0.5, 4), (0.0, 16)])
def test_a_small_markets_texts_come_more_often(markets, tmp_path, temperature, times):
    mixture = Mixture.open([open_prepared(path) for path in markets], temperature=temperature, links=tmp_path / "links")
    rows = mixture.balanced(np.arange(425), seed=0)
    counts = np.bincount(rows, minlength=425)
    assert (np.diff(rows) >= 0).all() and (counts[:400] == 1).all() and (counts[400:] == times).all()
    assert list(mixture.markets.values()) == [slice(0, 400), slice(400, 425)]


def test_repeats_that_are_no_whole_number_come_out_on_average(markets, tmp_path):
    mixture = Mixture.open([open_prepared(path) for path in markets], temperature=0.3, links=tmp_path / "links")
    drawn = [np.bincount(mixture.balanced(np.arange(425), seed=seed), minlength=425)[400:] for seed in range(40)]
    assert np.mean(drawn) == pytest.approx((25 / 400) ** -0.7, rel=0.02) and np.ptp(drawn) == 1


def test_pairs_of_all_markets_and_no_held_out_pair_among_those_learned(markets, tmp_path):
    folders = [open_prepared(path) for path in markets]
    train, held = Mixture.open(folders, temperature=0.0, links=tmp_path / "links").pairs(part_pairs, 0.2, most=100, seed=0)
    own = [part_pairs(folder) for folder in folders]
    expected = {(pairs.texts[a], pairs.texts[b]) for pairs in own for a, b in zip(pairs.left, pairs.right)}
    told = [{(pairs.texts[a], pairs.texts[b]) for a, b in zip(pairs.left, pairs.right)} for pairs in (train, held)]
    assert told[0] | told[1] == expected
    # The markets draw from the same words, so that a pair may stand in both.
    assert len(told[0] & told[1]) <= len(expected) * 0.02 and train.share.sum() == pytest.approx(1)
    of_small = train.left >= len(own[0].texts)
    assert of_small.mean() == pytest.approx(0.5, abs=0.05)


def pretrain(markets, output, *overrides):
    given = [
        f"prepared={markets[0]}", f"output={output}", f"mixture.also=[{markets[1]}]", "batches.max_tokens=32",
        "batches.batch_tokens=512", "training.epochs=1", "training.patience=null", *overrides,
    ]  # fmt: skip
    return run(load_config(None, PretrainConfig, given), Terminal(quiet=True))


def test_the_command_learns_them_all_and_tells_each_market_by_itself(markets, tmp_path):
    objectives = 'objectives={"mlm": {}, "nsp": {}, "contrastive": {"positives": ["parts"], "batch_texts": 16}}'
    result = pretrain(markets, tmp_path / "encoder", objectives)
    assert {"1: large", "2: small"} <= set(result.scores)
    scores = {name: found["after"] for name, found in result.scores.items()}
    apart = scores["1: large"].tokens + scores["2: small"].tokens  # a share of each batch is masked, up to a word
    assert scores["all"].tokens == pytest.approx(apart, abs=8) and scores["2: small"].tokens > 0
    assert result.texts == 425 and (tmp_path / "encoder" / "adrec.json").exists()


@pytest.mark.parametrize(
    "override, said",
    [
        ("model={kind: word2vec}", "mixture: is of language models"),
        ("objectives={contrastive: {positives: [clicks]}}", "mixture: pairs made by clicks are of one market's users"),
        ("privacy={epsilon: 8, public: [tokenizer]}", "leave out `mixture`"),
    ],
)
def test_what_does_not_mix_is_refused(markets, tmp_path, override, said):
    with pytest.raises(ConfigError, match=said):
        pretrain(markets, tmp_path / "encoder", override)
