"""pretrain-mlm end to end on a small bilingual corpus: every objective, every model kind, kill and resume, bad input."""

import json

import numpy as np
import pytest
import torch
from corpora import make_corpus

from adrec.config.base import load_config
from adrec.config.training.pretrain import PretrainConfig
from adrec.data.prepared import open_prepared
from adrec.errors import AdrecError, ConfigError, DataError
from adrec.models.text.text_encoder import encode_texts, load_text_encoder
from adrec.stages.training.pretrain import run
from adrec.terminal import Terminal
from adrec.training.loop.trainer import work_folder
from adrec.training.mlm_module import PretrainModule


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A prepared folder."""
    return make_corpus(tmp_path_factory.mktemp("pretrain") / "prepared", count=240)


def pretrain(prepared, output, *overrides):
    """Run the stage with small settings."""
    given = [
        f"prepared={prepared}",
        f"output={output}",
        "batches.max_tokens=32",
        "batches.batch_tokens=512",
        "training.epochs=2",
        "training.patience=null",
        *overrides,
    ]
    return run(load_config(None, PretrainConfig, given), Terminal(quiet=True))


@pytest.fixture(scope="module")
def trained(prepared, tmp_path_factory):
    """A model that learned: (result, folder)."""
    folder = tmp_path_factory.mktemp("trained") / "encoder"
    result = pretrain(prepared, folder, "training.epochs=25", "training.learning_rate=0.003")
    return result, folder


def test_learning_beats_the_unigram_in_both_languages_and_the_start(trained):
    result, _ = trained
    assert set(result.scores) == {"all", "en", "zh"}
    for scores in result.scores.values():
        assert scores["after"].loss < scores["unigram"].loss - 0.2
        assert scores["after"].loss < scores["before"].loss
        assert scores["before"].tokens == scores["after"].tokens == scores["unigram"].tokens > 0
    # Words of a topic go together: knowing the others leaves about eight, a unigram has to choose among all.
    assert result.scores["all"]["after"].accuracy > result.scores["all"]["unigram"].accuracy


def test_the_folder_opens_everywhere_and_says_what_it_is(trained):
    from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

    _, folder = trained
    AutoModelForMaskedLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    settings = json.loads((folder / "adrec.json").read_text())
    assert settings == {"kind": "transformer", "pooling": "mean", "template": "{title}", "max_tokens": 32}
    encoder = load_text_encoder(str(folder))
    encoded = tokenizer(["roses and soil"], return_tensors="pt")
    with torch.no_grad():
        states = model(**encoded).last_hidden_state[0].mean(0)
    assert np.allclose(encode_texts(encoder, ["roses and soil"])[0], states, atol=1e-5)


def test_the_report_has_curve_table_and_neighbours(trained):
    result, folder = trained
    page = (folder / "report.html").read_text()
    assert (
        "<svg" in page
        and "unigram" in page
        and "http"
        not in page.replace("http://www.w3.org", "")
        .replace("http://purl.org", "")
        .replace("http://creativecommons.org", "")
        .replace("https://matplotlib.org", "")
    )
    assert len(result.neighbours) == 10 and all(len(item.before) == len(item.after) == 3 for item in result.neighbours)
    assert (
        json.loads((folder / "metrics.json").read_text())["held_out"]["all"]["after"]["loss"]
        == result.scores["all"]["after"].loss
    )
    assert list((folder / "logs").rglob("events.out.tfevents*"))
    assert not work_folder(folder).exists()
    assert list(result.render())


def test_one_seed_one_result_and_another_seed_another(prepared, tmp_path):
    first, again = (pretrain(prepared, tmp_path / name) for name in ("a", "b"))
    other = pretrain(prepared, tmp_path / "c", "seed=7")
    assert first.run.losses == again.run.losses != other.run.losses
    prints = [load_text_encoder(str(tmp_path / name)).fingerprint for name in "abc"]
    assert prints[0] == prints[1] != prints[2]


def test_killed_and_run_again_it_ends_as_if_uninterrupted(prepared, tmp_path, monkeypatch):
    weights = [f"objectives.{name}.weight=0.5" for name in ("contrastive", "dae", "nsp")]
    settings = ("training.checkpoint_steps=5", *weights)
    whole = pretrain(prepared, tmp_path / "whole", *settings)
    step = PretrainModule.training_step

    def dies(self, batch, number):
        if number == 8:
            raise KeyboardInterrupt
        return step(self, batch, number)

    monkeypatch.setattr(PretrainModule, "training_step", dies)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        pretrain(prepared, tmp_path / "cut", *settings)
    assert not (tmp_path / "cut").exists()
    monkeypatch.setattr(PretrainModule, "training_step", step)
    with pytest.raises(ConfigError, match=r"seed"):
        pretrain(prepared, tmp_path / "cut", *settings, "seed=9")
    resumed = pretrain(prepared, tmp_path / "cut", *settings)
    assert resumed.run.resumed_at == 5
    assert resumed.run.losses == whole.run.losses
    assert resumed.scores == whole.scores
    prints = [load_text_encoder(str(tmp_path / name)).fingerprint for name in ("whole", "cut")]
    assert prints[0] == prints[1]


@pytest.mark.parametrize(
    "objectives",
    [
        ["objectives.mlm=null", "objectives.nsp.pairs=parts"],
        ["objectives.mlm=null", "objectives.nsp.pairs=clicks"],
        ["objectives.mlm=null", "objectives.dae.weight=1", "pooling=attention"],
        ["objectives.mlm=null", "objectives.contrastive.weight=1"],
        ["objectives.mlm=null", "objectives.contrastive.positives=[clicks,queries,interests]"],
        ["objectives.mlm=null", "objectives.contrastive.positives=[parts]"],
        ["objectives.mlm.whole_words=false", "batches.packing=false"],
    ],
)
def test_each_objective_learns(prepared, tmp_path, objectives):
    result = pretrain(
        prepared,
        tmp_path / "e",
        *objectives,
        "training.epochs=6",
        "training.learning_rate=0.002",
    )
    losses = result.run.losses
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    encoder = load_text_encoder(str(tmp_path / "e"))
    assert encoder.dimension == 128
    read_clicks = any("clicks" in setting for setting in objectives)
    assert encoder.clicks_of == (open_prepared(prepared).fingerprint if read_clicks else None)


def test_continuing_keeps_tokenizer_and_pooling_and_goes_on_learning(prepared, trained, tmp_path):
    before, folder = trained
    copy = tmp_path / "start"
    encoder = load_text_encoder(str(folder), pooling="cls")
    encoder.save(copy)  # without its head
    result = pretrain(prepared, tmp_path / "e", "model.kind=continue", f"model.reference={copy}", "training.epochs=4")
    assert result.new_parameters > 0
    assert load_text_encoder(str(tmp_path / "e")).pooling == "cls"
    assert result.scores["all"]["after"].loss < result.scores["all"]["before"].loss
    again = pretrain(prepared, tmp_path / "f", "model.kind=continue", f"model.reference={folder}", "training.max_steps=1")
    assert again.new_parameters == 0
    assert again.scores["all"]["before"].loss == pytest.approx(before.scores["all"]["after"].loss, abs=1e-5)


def test_word_vectors(prepared, tmp_path):
    pytest.importorskip("gensim")
    result = pretrain(prepared, tmp_path / "words", "model.kind=word2vec", "model.dimension=12", "model.epochs=3")
    assert result.dimension == 12 and result.coverage > 0.9
    encoder = load_text_encoder(str(tmp_path / "words"))
    vectors = encode_texts(encoder, ["striker goalkeeper", "吉他 歌手"])
    assert vectors.shape == (2, 12) and np.abs(vectors).sum(axis=1).min() > 0
    (tmp_path / "v.txt").write_text("roses 1 2\nnever 3 4\n")
    result = pretrain(prepared, tmp_path / "file", "model.kind=vectors", f"model.file={tmp_path / 'v.txt'}")
    assert result.words == 1 and list(result.render())


def test_faults_come_before_training(prepared, trained, tmp_path):
    _, folder = trained
    with pytest.raises(ConfigError, match="positions for 32 tokens"):
        pretrain(
            prepared, tmp_path / "e", "model.kind=continue", f"model.reference={folder}", "batches.max_tokens=64",
        )  # fmt: skip
    broken = tmp_path / "broken"
    load_text_encoder(str(folder)).save(broken)
    config = json.loads((broken / "config.json").read_text())
    tokenizer = json.loads((broken / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["oneextratoken"] = config["vocab_size"]
    (broken / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(DataError, match="do not belong together"):
        pretrain(prepared, tmp_path / "e", "model.kind=continue", f"model.reference={broken}")
    with pytest.raises(ConfigError, match="`batch_tokens` must be 128 or more"):
        pretrain(prepared, tmp_path / "e", "batches.batch_tokens=100")
    with pytest.raises(ConfigError, match="at least one objective"):
        pretrain(prepared, tmp_path / "e", "objectives.mlm=null")
    with pytest.raises(DataError, match="no such prepared folder"):
        pretrain(tmp_path / "absent", tmp_path / "e")
    assert not (tmp_path / "e").exists()


def test_a_loss_that_explodes_is_one_line(prepared, tmp_path, monkeypatch):
    step = PretrainModule.training_step
    monkeypatch.setattr(PretrainModule, "training_step", lambda self, batch, number: step(self, batch, number) * float("nan"))
    with pytest.raises(AdrecError, match=r"step 0: the loss is nan.*learning_rate"):
        pretrain(prepared, tmp_path / "e")
