"""A re-ranker: what it reads, that it learns what words tell, and that rank and the server list by it alike."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from baseline_worlds import catalog, inputs
from corpora import make_corpus
from sklearn.linear_model import LogisticRegression
from transformers import LlamaConfig, LlamaModel
from typer.testing import CliRunner
from worlds import word_encoder

from adrec.bundle import open_bundle
from adrec.cli.app import app
from adrec.config.data.preprocess import PreprocessConfig
from adrec.config.inference.rank import RankConfig
from adrec.config.inference.serve import ServeConfig
from adrec.config.training.finetune import FinetuneConfig
from adrec.config.training.loop import TrainingConfig
from adrec.errors import ConfigError, DataError
from adrec.inference.lists.rerank import Rerank, first_of
from adrec.models.baselines.base import log_odds
from adrec.models.rerank.reranker import Blend, Reranker, fresh_reranker, load_reranker
from adrec.models.rerank.soft_tokens import PairVectors
from adrec.models.rerank.words import words_of
from adrec.models.text.encoder_training import merged, trainable_copy
from adrec.models.text.hugging_face import load_tokenizer
from adrec.models.text.language_model import new_language_model
from adrec.models.text.text_encoder import TextEncoder
from adrec.sample import generate_sample
from adrec.serve.engine import Engine
from adrec.serve.intake.messages import RankRequest
from adrec.stages.data import preprocess
from adrec.stages.inference import rank
from adrec.stages.training import finetune
from adrec.stages.training import train_reranker as train_reranker_stage
from adrec.stages.training.train_reranker import fit_blend, verdict
from adrec.terminal import Terminal
from adrec.training.loop.trainer import open_work
from adrec.training.rerank_training import drawn_requests, train_reranker

QUIET = Terminal(quiet=True)
TITLES = ["roses and soil", "a striker scores", "pasta in the oven", "a quiet flight", "guitar and choir", "loans and stocks"]
WIDTHS = {"encoder": 48, "decoder": 72}
"""Of pairs, in tokens: 41 of the tiny tokenizer's are the question to a decoder."""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A tiny encoder and a tiny decoder of one tokenizer, both random."""
    base = tmp_path_factory.mktemp("models")
    tokenizer = load_tokenizer(make_corpus(base / "corpus", count=80) / "tokenizer")
    torch.manual_seed(0)
    new_language_model("tiny", tokenizer, max_tokens=48).save(base / "encoder", tokenizer)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=128, tie_word_embeddings=True, **sizes)
    LlamaModel(config).save_pretrained(base / "decoder")
    tokenizer.save_pretrained(base / "decoder")
    return {"encoder": str(base / "encoder"), "decoder": str(base / "decoder")}


def world(requests=60, seed=0):
    """Requests of four ads, whose click is always on the ad with `roses` where there is one."""
    rng = np.random.default_rng(seed)
    listed = []
    for number in range(requests):
        shown = [0, *rng.choice(np.arange(1, 6), 3, replace=False).tolist()]
        listed.append((number % 3, rng.integers(6, size=number % 4).tolist(), [(ad, int(ad == 0)) for ad in shown]))
    ads, users = catalog([f"a{i}" for i in range(6)], texts=TITLES), catalog(range(3), texts=["", "opera", "golf"])
    return inputs(listed, ads, users)


def test_the_words_of_a_row_are_its_query_interests_and_newest_clicks():
    ads, users = catalog(range(6), texts=TITLES), catalog(range(2), texts=["", "opera, golf"])
    rows = inputs([(0, [], [(1, 0)]), (1, [0, 1, 2], [(3, 1), (4, 0)])], ads, users)
    asked = replace(rows.examples, query=np.array([0, 1, 0], np.int32), queries=("", "shoes"))
    words = words_of(asked, ads.texts, users.texts, clicks=2)
    newest = "pasta in the oven; a striker scores"
    assert words.contexts == ["", f"shoes; opera, golf; {newest}", f"opera, golf; {newest}"]
    assert words.ads == [TITLES[1], TITLES[3], TITLES[4]]


def test_the_first_of_each_request_equal_a_loop():
    rng = np.random.default_rng(0)
    request, score = np.sort(rng.integers(0, 9, 80)), rng.integers(0, 4, 80) / 4
    expected = []
    for number in np.unique(request):
        rows = np.flatnonzero(request == number)
        expected += sorted(sorted(rows, key=lambda row: (-score[row], row))[:3])
    assert first_of(request, score, 3).tolist() == sorted(expected)


@pytest.mark.parametrize(("kind", "mode"), [("encoder", "full"), ("encoder", "last"), ("decoder", "lora"), ("decoder", "full")])
def test_it_learns_which_words_are_clicked_and_comes_back_as_saved(models, tmp_path, kind, mode):
    if mode == "lora":
        pytest.importorskip("peft")
    rows = world()
    net = fresh_reranker(models[kind], clicks=2, max_tokens=WIDTHS[kind])
    assert net.kind == kind
    net.encoder = trainable_copy(net.encoder, mode, last_layers=1, lora_rank=4)
    open_work(tmp_path / "work", {}, resume=False)
    settings = TrainingConfig(epochs=12, learning_rate=5e-3, loggers=[])
    train_reranker(
        net, rows.examples, rows.ads.texts, rows.users.texts, label="click", negatives=3, batch_rows=40,
        training=settings, seed=0, device="cpu", work=tmp_path / "work", terminal=QUIET,
    )  # fmt: skip
    net.encoder = merged(net.encoder)
    new = world(20, seed=5)
    words = words_of(new.examples, new.ads.texts, new.users.texts, clicks=2)
    logits = net.logits(words.contexts, words.ads)
    best = logits.reshape(20, 4).argmax(axis=1)
    assert (best == 0).mean() > 0.7  # one of four by chance
    alone = [net.logits(words.contexts[row : row + 1], words.ads[row : row + 1])[0] for row in range(0, 80, 9)]
    np.testing.assert_allclose(alone, logits[::9], atol=1e-5)
    net.blend, net.bundle = Blend(0.9, 0.2, -0.1), "f" * 8
    net.save(tmp_path / "saved")
    again = load_reranker(tmp_path / "saved")
    assert (again.blend, again.bundle, again.clicks, again.kind) == (net.blend, net.bundle, 2, kind)
    np.testing.assert_allclose(again.logits(words.contexts, words.ads), logits, atol=1e-5)


@pytest.mark.parametrize(("kind", "mode"), [("encoder", "last"), ("decoder", "lora"), ("decoder", "full")])
def test_soft_tokens_tell_what_no_word_does(models, tmp_path, kind, mode):
    """All ads have one text; which is clicked is in their vectors alone, far from 0 and of another scale than embeddings."""
    if mode == "lora":
        pytest.importorskip("peft")
    rows = world()
    ads, users = catalog([f"a{i}" for i in range(6)], texts=["roses and soil"] * 6), rows.users
    of_ads = np.random.default_rng(1).normal(50, 20, (6, 4)).astype(np.float32)

    def read(examples):
        words = words_of(examples, ads.texts, users.texts, clicks=2)
        of_users = np.ones((len(examples), 4), np.float32)  # all alike: a spread of 0
        return words.contexts, words.ads, PairVectors(of_users, of_ads[examples.ad_index])

    net = fresh_reranker(models[kind], clicks=2, max_tokens=WIDTHS[kind], vectors=4)
    net.encoder = trainable_copy(net.encoder, mode, last_layers=1, lora_rank=4)
    open_work(tmp_path / "work", {}, resume=False)
    settings = TrainingConfig(epochs=8, learning_rate=5e-3, loggers=[])
    train_reranker(
        net, rows.examples, ads.texts, users.texts, label="click", negatives=3, batch_rows=40, training=settings, seed=0,
        device="cpu", work=tmp_path / "work", terminal=QUIET, vectors=read(rows.examples)[2], soft_rate=1e-2,
    )  # fmt: skip
    net.encoder = merged(net.encoder)
    contexts, texts, vectors = read(world(20, seed=5).examples)
    logits = net.logits(contexts, texts, vectors)
    assert (logits.reshape(20, 4).argmax(axis=1) == 0).mean() > 0.9
    some = np.arange(0, 80, 9)
    alone = [net.logits([contexts[row]], [texts[row]], vectors.take(np.array([row])))[0] for row in some]
    np.testing.assert_allclose(alone, logits[some], atol=1e-5)
    net.save(tmp_path / "saved")
    again = load_reranker(tmp_path / "saved")
    np.testing.assert_allclose(again.logits(contexts, texts, vectors), logits, atol=1e-5)
    long = net.token_ids(["roses " * 300], ["pasta " * 300])[0]
    assert len(long) == WIDTHS[kind] and {-1, -2} < set(long), "a long text is cut, not the vectors"


def test_an_untrained_decoder_answers_by_its_own_words(models):
    """Its logit is that of yes less that of no, as its own head has them."""
    net = fresh_reranker(models["decoder"], clicks=2, max_tokens=64)
    ids = net.token_ids(["roses"], ["pasta"])
    with torch.inference_mode():
        input_ids, mask = net.encoder.pad(ids)
        last = net.encoder.backbone(input_ids=input_ids, attention_mask=mask).last_hidden_state[0, -1]
        vocabulary = last @ net.encoder.backbone.get_input_embeddings().weight.T
    yes, no = (net.encoder.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in (" yes", " no"))
    assert net.logits(["roses"], ["pasta"])[0] == pytest.approx(float(vocabulary[yes] - vocabulary[no]), abs=1e-4)
    long = net.token_ids(["roses " * 300], ["pasta"])[0]
    assert len(long) == 64 and long[-8:] == ids[0][-8:], "the question stays whole"


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_a_long_ad_leaves_room_for_the_user_and_the_question(models, kind):
    """A description of hundreds of tokens once took all of a decoder's: it was asked of nobody, and in half a question."""
    net = fresh_reranker(models[kind], clicks=2, max_tokens=WIDTHS[kind])
    long = [net.token_ids([context], ["pasta " * 300])[0] for context in ("roses and soil", "a quiet flight")]
    assert [len(ids) for ids in long] == [WIDTHS[kind]] * 2 and long[0] != long[1]
    both = net.token_ids(["roses " * 300], ["pasta " * 300])[0]
    rose, pasta = (net.encoder.plain_ids([word])[0] for word in ("roses", "pasta"))
    assert set(rose) <= set(both) and set(pasta) <= set(both)
    short = net.token_ids(["roses and soil"], ["pasta"])[0]
    if kind == "decoder":
        asked = net.encoder.plain_ids(["\nWill the same user click on this?", "\nAnswer yes or no:"])
        for part in asked:
            assert " ".join(map(str, part)) in " ".join(map(str, both)), "the question is whole"
        assert short == [*net.encoder.token_ids(["A user clicked on: roses and soil"])[0], *asked[0],
                         *net.encoder.plain_ids([" pasta"])[0], *asked[1]]  # fmt: skip


def test_a_question_that_leaves_no_room_is_refused(models):
    with pytest.raises(ConfigError, match="max_tokens is 9, and the question to a decoder takes"):
        fresh_reranker(models["decoder"], clicks=2, max_tokens=9)
    told = re.search(r"Set it to (\d+)", str(pytest.raises(
        ConfigError, fresh_reranker, models["decoder"], clicks=2, max_tokens=9, vectors=4).value))  # fmt: skip
    assert fresh_reranker(models["decoder"], clicks=2, max_tokens=int(told[1]), vectors=4).soft is not None


def test_yes_and_no_may_begin_with_the_same_token(models, monkeypatch):
    """As where a tokenizer makes a space a token of its own: the head was no difference at all."""
    plain = TextEncoder.plain_ids
    monkeypatch.setattr(TextEncoder, "plain_ids", lambda self, texts: [[7, *ids] for ids in plain(self, texts)])
    net = fresh_reranker(models["decoder"], clicks=2, max_tokens=64)
    assert net.head.weight.abs().sum() > 0


def test_what_has_no_weight_is_not_asked(monkeypatch):
    """It costs some hundred times all the rest of a list."""
    rerank = Rerank(SimpleNamespace(blend=Blend()), 3)
    monkeypatch.setattr(Rerank, "logits", lambda *_: pytest.fail("the language model was asked"))
    rows = world(2)
    scores = SimpleNamespace(score=np.linspace(0.1, 0.8, len(rows.examples)))
    assert rerank(None, rows.examples, None, scores) is scores


def test_the_verdict_is_that_of_the_interval():
    assert [verdict(0.01, 0.2), verdict(-0.1, 0.1), verdict(-0.2, -0.01)] == [
        "yes", "not shown: the interval holds 0", "no: it does harm"
    ]  # fmt: skip


def test_what_does_harm_or_has_no_weight_changes_no_list(shop, tmp_path, monkeypatch):
    """Joined by either half's regression it orders worse, beyond doubt: the folder then keeps the bundle's scores."""
    folder, _ = shop
    clicked = {}

    def against(self, predictor, examples, catalogs):
        clicked["rows"] = examples.labels["click"]
        return np.where(examples.labels["click"] > 0, -3.0, 3.0).astype(np.float32)

    monkeypatch.setattr(Rerank, "logits", against)
    monkeypatch.setattr(train_reranker_stage, "fit_blend", lambda own, logits, clicks: Blend(1.0, 0.5, 0.0))
    output = tmp_path / "reranker"
    told = CliRunner().invoke(
        app, ["train-reranker", "--config", str(folder / "reranker.yaml"), "--set", f"output={output}", "--set", "requests=20"]
    )
    assert told.exit_code == 0 and "no: it does harm" in told.output and "changes no list" in told.output, told.output
    assert load_reranker(output).blend == Blend() and clicked["rows"].any()
    monkeypatch.undo()
    lists = ["--set", f"rerank.reference={output}", "--set", f"output={tmp_path / 'lists.parquet'}"]
    common = ["--set", f"bundle={folder / 'bundle'}", "--set", f"prepared={folder / 'prepared'}", "--set", "recall_requests=0"]
    monkeypatch.setattr(Reranker, "logits", lambda *_, **__: pytest.fail("the language model was asked"))
    told = CliRunner().invoke(app, ["rank", *common, *lists])
    assert told.exit_code == 0 and "changes no list" in told.output, told.output


def test_requests_whose_first_ads_tell_nothing_are_refused_before_training(shop, tmp_path, monkeypatch):
    folder, _ = shop
    monkeypatch.setattr(train_reranker_stage, "train_reranker", lambda *_, **__: pytest.fail("it was trained"))
    monkeypatch.setattr(train_reranker_stage, "first_of", lambda request, score, top: np.unique(request, return_index=True)[1])
    told = CliRunner().invoke(
        app, ["train-reranker", "--config", str(folder / "reranker.yaml"), "--set", f"output={tmp_path / 'r'}"]
    )
    assert told.exit_code == 1 and "Raise top or judged_requests" in told.output and len(told.output.splitlines()) < 5


def test_what_cannot_re_rank_is_told_in_one_line(models, tmp_path):
    with pytest.raises(DataError, match="adrec train-reranker"):
        load_reranker(tmp_path)
    net = fresh_reranker(models["encoder"], clicks=1, max_tokens=None)
    net.save(tmp_path / "saved")
    (tmp_path / "saved" / "head.safetensors").write_bytes(b"1")
    with pytest.raises(DataError, match="cannot be read") as caught:
        load_reranker(tmp_path / "saved")
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(ConfigError, match="plain transformer"):
        fresh_reranker(str(word_encoder(tmp_path / "words")), clicks=1, max_tokens=None)


def test_the_blend_is_a_logistic_regression_that_may_not_turn_anything_round():
    rng = np.random.default_rng(0)
    own, logits = rng.normal(size=(2, 4000))
    clicks = (rng.random(4000) < 1 / (1 + np.exp(-(0.8 * own + 0.5 * logits - 1)))).astype(float)
    blend = fit_blend(own, logits, clicks)
    oracle = LogisticRegression(C=1e6).fit(np.stack([own, logits], 1), clicks)
    assert (blend.own, blend.reranker) == pytest.approx(tuple(oracle.coef_[0]), abs=0.01)
    assert blend.intercept == pytest.approx(float(oracle.intercept_[0]), abs=0.01)
    assert fit_blend(own, -logits, clicks).reranker == 0.0


def test_only_requests_that_tell_something_are_drawn():
    rows = world(10)
    clicks = rows.examples.labels["click"].copy()
    clicks[:4] = 0
    clicks[4:8] = np.nan
    examples = replace(rows.examples, labels={"click": clicks})
    assert np.unique(drawn_requests(examples, "click", 100, 0).request).tolist() == list(range(2, 10))
    assert len(np.unique(drawn_requests(examples, "click", 3, 0).request)) == 3


@pytest.fixture(scope="module")
def shop(tmp_path_factory, models):
    """A small sample, a bundle of features alone, and a re-ranker made by the command."""
    folder = tmp_path_factory.mktemp("shop")
    generate_sample(folder / "raw", impressions=3000, seed=3)
    tables = {name: {"files": str(folder / "raw" / f"{name}.parquet")} for name in ("ads", "users")}
    source = {"format": "tables", "impressions": {"files": str(folder / "raw" / "impressions")}, **tables}
    config = {"output": folder / "prepared", "source": source, "tokenizer": {"kind": "none"}}
    preprocess.run(PreprocessConfig.model_validate(config), QUIET)
    training = {
        "prepared": str(folder / "prepared"), "output": str(folder / "bundle"), "text": {"reference": None},
        "model": {"width": 8, "hidden": [8]}, "hybrid": {"kind": "none"}, "baselines": {"names": []},
        "training": {"epochs": 1, "learning_rate": 0.01},
    }  # fmt: skip
    finetune.run(FinetuneConfig.model_validate(training), QUIET)
    own = {
        "prepared": str(folder / "prepared"), "bundle": str(folder / "bundle"), "reference": models["encoder"],
        "output": str(folder / "reranker"), "requests": 40, "judged_requests": 60, "max_tokens": 32,
        "training": {"epochs": 1, "loggers": []},
    }  # fmt: skip
    (folder / "reranker.yaml").write_text(json.dumps(own))
    told = CliRunner().invoke(app, ["train-reranker", "--config", str(folder / "reranker.yaml"), "--json"])
    assert told.exit_code == 0, told.output
    return folder, json.loads(told.stdout)


def test_the_command_says_gain_and_price(shop):
    folder, told = shop
    assert told["kind"] == "encoder" and told["requests"] == 40 and told["seconds_per_thousand"] > 0
    assert told["gain"] == pytest.approx(told["joined_auc"] - told["bundle_auc"], abs=1e-6)
    assert json.loads((folder / "reranker" / "metrics.json").read_text())["gain_error"] == told["gain_error"]
    net = load_reranker(folder / "reranker")
    assert net.blend.own > 0 and net.bundle == open_bundle(folder / "bundle").fingerprint


def test_rank_and_the_server_list_by_it_alike(shop, tmp_path, monkeypatch):
    """The first ones have the joined probability, the others the bundle's own; the history is read in words."""
    folder, _ = shop
    net = load_reranker(folder / "reranker")
    net.blend = Blend(0.7, 0.5, 0.2)
    net.save(tmp_path / "reranker")
    contexts = []

    def by_length(self, given, ads, *_, **__):
        contexts.extend(given)
        return np.array([len(ad) % 7 for ad in ads], np.float32)

    monkeypatch.setattr(Reranker, "logits", by_length)
    policy = {"top_n": 20, "rules": {"clicked": "keep", "active": False}, "diversity": {"method": "none"}}
    common = {"bundle": str(folder / "bundle"), "prepared": str(folder / "prepared"), "policies": {"default": policy}}
    own = {"rerank": {"reference": str(tmp_path / "reranker"), "top": 5}}
    output = tmp_path / "lists.parquet"
    rank.run(RankConfig.model_validate({**common, **own, "output": output, "recall_requests": 0}), QUIET)
    lists = pq.read_table(output)
    rows = pq.read_table(folder / "prepared" / "impressions" / "test").to_pylist()
    row = next(row for row in rows if len(row["history_index"]) > 2)
    moment = {name: row[name] for name in ("user_id", "shown_at", "scenario", "query") if row.get(name) is not None}
    listed = {ad["ad_id"]: ad["score"] for ad in lists.filter(pc.equal(lists["request_id"], row["request_id"])).to_pylist()}

    def asked(candidates=None, **more):
        config = {**common, **more, "store": str(tmp_path / f"{len(more)}.sqlite"), "device": "cpu"}
        engine = Engine(ServeConfig.model_validate(config))
        request = {**moment, "top_n": 20, **({} if candidates is None else {"candidates": candidates})}
        found = engine.rank([RankRequest(requests=[request])])[0]["lists"][0]["ads"]
        return {ad["ad_id"]: ad["score"] for ad in found}

    contexts.clear()
    served = asked(**own)
    assert served == pytest.approx(listed, abs=1e-6)
    ads = pq.read_table(folder / "prepared" / "ads.parquet").to_pylist()
    newest = ads[row["history_index"][-1]]["text"]
    assert len(contexts) == 5 and all(newest in context for context in contexts)
    some = [ad["ad_id"] for ad in ads[:12]]
    plain, joined = asked(some), asked(some, **own)
    assert set(plain) == set(joined) == set(some)
    first = sorted(plain, key=lambda ad: -plain[ad])[:5]
    length = {ad["ad_id"]: len(ad["text"]) % 7 for ad in ads}
    for ad in some:
        expected = plain[ad]
        if ad in first:
            expected = 1 / (1 + np.exp(-net.blend(log_odds(np.array([plain[ad]])), np.array([length[ad]]))[0]))
        assert joined[ad] == pytest.approx(expected, abs=1e-6)


def test_lists_by_soft_tokens_are_of_their_bundle_alone(shop, tmp_path, models):
    """`rank` and the server give the vectors of the same moment; another bundle is refused by both."""
    folder, _ = shop
    output = str(tmp_path / "reranker")
    own = ["--set", "soft_tokens=true", "--set", f"output={output}"]
    own += ["--set", f"reference={models['decoder']}", "--set", "max_tokens=72"]
    told = CliRunner().invoke(app, ["train-reranker", "--config", str(folder / "reranker.yaml"), "--json", *own])
    assert told.exit_code == 0, told.output
    said = json.loads(told.stdout)
    assert said["soft_tokens"] and said["gain_interval"][0] <= said["gain"] <= said["gain_interval"][1]
    net = load_reranker(tmp_path / "reranker")
    net.blend = Blend(0.7, 0.9, 0.2)
    net.save(tmp_path / "reranker")
    policy = {"top_n": 8, "rules": {"clicked": "keep", "active": False}, "diversity": {"method": "none"}}
    common = {
        "bundle": str(folder / "bundle"), "prepared": str(folder / "prepared"), "policies": {"default": policy},
        "rerank": {"reference": output, "top": 5}, "device": "cpu",
    }  # fmt: skip
    lists = tmp_path / "lists.parquet"
    rank.run(RankConfig.model_validate({**common, "output": lists, "recall_requests": 0}), QUIET)
    listed = pq.read_table(lists)
    engine = Engine(ServeConfig.model_validate({**common, "store": str(tmp_path / "live.sqlite")}))
    rows = pq.read_table(folder / "prepared" / "impressions" / "test").to_pylist()
    for row in [row for row in rows if len(row["history_index"]) > 2][:200:50]:
        moment = {name: row[name] for name in ("user_id", "shown_at", "scenario", "query") if row.get(name) is not None}
        found = engine.rank([RankRequest(requests=[{**moment, "top_n": 8}])])[0]["lists"][0]["ads"]
        expected = listed.filter(pc.equal(listed["request_id"], row["request_id"])).to_pylist()
        assert {ad["ad_id"]: ad["score"] for ad in found} == pytest.approx(
            {ad["ad_id"]: ad["score"] for ad in expected}, abs=1e-5
        )
    net.bundle = "f" * 16
    net.save(tmp_path / "reranker")
    with pytest.raises(ConfigError, match="another bundle"):
        rank.run(RankConfig.model_validate({**common, "output": lists, "recall_requests": 0}), QUIET)
    with pytest.raises(ConfigError, match="another bundle"):
        Engine(ServeConfig.model_validate({**common, "store": str(tmp_path / "other.sqlite")}))
