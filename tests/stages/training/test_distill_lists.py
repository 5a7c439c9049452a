"""A re-ranker teaches a bundle's network its order of lists: of pairs of the past alone, where there is anything to teach."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from corpora import make_corpus
from torch import nn

from adrec.bundle import open_bundle
from adrec.config.base import load_config
from adrec.config.data.preprocess import PreprocessConfig
from adrec.config.training.distill import DistillConfig
from adrec.config.training.finetune import FinetuneConfig
from adrec.config.training.train_reranker import TrainRerankerConfig
from adrec.data.prepared import open_prepared
from adrec.errors import ConfigError
from adrec.inference.lists.rerank import Rerank
from adrec.inference.predictor import Predictor
from adrec.metrics.ranking import RankedGroups
from adrec.models.rerank.reranker import Blend, fresh_reranker
from adrec.models.text.hugging_face import load_tokenizer
from adrec.models.text.language_model import new_language_model
from adrec.sample import generate_sample
from adrec.stages.data import preprocess
from adrec.stages.training import distill, finetune, train_reranker
from adrec.stages.training.pretraining import distill_lists
from adrec.terminal import Terminal
from adrec.training import click_data
from adrec.training.losses import soft_listwise

QUIET = Terminal(quiet=True)
IMPRESSIONS = {"numeric": ["counter_*"]}


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A bundle of features alone, and an untrained re-ranker that has a weight beside it."""
    folder = tmp_path_factory.mktemp("lists")
    generate_sample(folder / "raw", impressions=3000, seed=3)
    tables = {name: {"files": str(folder / "raw" / f"{name}.parquet")} for name in ("ads", "users")}
    source = {"format": "tables", "impressions": {"files": str(folder / "raw" / "impressions")}, **tables}
    config = {"output": folder / "prepared", "source": source, "tokenizer": {"kind": "none"}}
    config["features"] = {"ads": {"categorical": ["category", "advertiser_id"]}, "impressions": IMPRESSIONS}
    config["counters"] = ["usual"]
    preprocess.run(PreprocessConfig.model_validate(config), QUIET)
    training = {
        "prepared": str(folder / "prepared"), "output": str(folder / "bundle"), "text": {"reference": None},
        "model": {"width": 8, "hidden": [8]}, "hybrid": {"kind": "none"}, "baselines": {"names": []},
        "training": {"epochs": 1, "learning_rate": 0.01, "batch_rows": 32},
    }  # fmt: skip
    finetune.run(FinetuneConfig.model_validate(training), QUIET)
    tokenizer = load_tokenizer(make_corpus(folder / "corpus", count=80) / "tokenizer")
    new_language_model("tiny", tokenizer, max_tokens=32).save(folder / "encoder", tokenizer)
    net = fresh_reranker(str(folder / "encoder"), clicks=2, max_tokens=32)
    net.blend, net.bundle = Blend(0.0, 1.0, 0.0), open_bundle(folder / "bundle").fingerprint
    net.save(folder / "reranker")
    return folder


def configured(folder, output, *more):
    return load_config(None, DistillConfig, [
        f"prepared={folder / 'prepared'}", f"bundle={folder / 'bundle'}", f"teacher={folder / 'reranker'}",
        f"output={output}", "lists.requests=60", "lists.ads=12", "lists.soft=0.9", "lists.batch_lists=30",
        "lists.learning_rate=0.01", *more,
    ])  # fmt: skip


def test_the_loss_is_the_cross_entropy_of_softmaxes_within_each_list():
    logits = torch.tensor([1.0, 0.0, 2.0, 5.0, 5.0], requires_grad=True)
    teacher, group = torch.tensor([0.0, 3.0, 1.0, 700.0, 701.0]), torch.tensor([0, 0, 0, 2, 2])
    expected = 0.0
    for rows in ([0, 1, 2], [3, 4]):
        expected = expected + nn.functional.cross_entropy(logits[rows][None], torch.softmax(teacher[rows], 0)[None])
    loss = soft_listwise(logits, teacher, group)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()) / 2, abs=1e-6)
    shifted = soft_listwise(logits + torch.tensor([9.0, 9.0, 9.0, -2.0, -2.0]), teacher, group)
    assert float(shifted.detach()) == pytest.approx(float(loss.detach()), abs=1e-5), "only what is said within a list counts"
    (ours,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (theirs,) = torch.autograd.grad(expected / 2, logits)
    torch.testing.assert_close(ours, theirs)


def test_the_network_learns_the_order_of_lists_that_only_the_past_can_hold(shop, tmp_path, monkeypatch):
    asked = {}

    def by_advertiser(self, predictor, examples, catalogs):
        """A taste of its own, by the advertiser."""
        asked.update(examples=examples, catalogs=catalogs)
        return (3 * (catalogs.ads.categorical[examples.ad_index, 1] % 2)).astype(np.float32)

    monkeypatch.setattr(Rerank, "logits", by_advertiser)
    before = Predictor.load(shop / "bundle", device="cpu")
    result = distill.run(configured(shop, tmp_path / "taught"), QUIET)
    pairs, catalogs = asked["examples"], asked["catalogs"]
    assert result.lists >= 10 and result.pairs == len(pairs) and result.teacher_seconds >= result.student_seconds > 0
    assert result.gain_interval[0] <= result.gain <= result.gain_interval[1]
    assert result.gain == pytest.approx(result.after_auc - result.before_auc, abs=1e-6)
    assert list(result.render()) and json.dumps(result.as_dict(), default=str)

    train = pq.read_table(shop / "prepared" / "impressions" / "train", columns=["ad_index", "shown_at"])
    moments = pc.cast(train["shown_at"], pa.int64()).to_numpy()
    first = np.full(len(catalogs.ads), np.iinfo(np.int64).max)
    np.minimum.at(first, train["ad_index"].to_numpy(), moments)
    assert set(pairs.shown_at.tolist()) <= set(moments.tolist())
    assert (first[pairs.ad_index] <= pairs.shown_at).all(), "an ad that nobody had been shown yet"
    assert (first > moments.min()).any(), "or this shows nothing"
    assert len(set(zip(pairs.request.tolist(), pairs.ad_index.tolist(), strict=True))) == len(pairs)

    after = Predictor.load(tmp_path / "taught", device="cpu")  # its golden rows hold
    teacher = by_advertiser(None, None, pairs, catalogs)

    def agreement(predictor):
        logits = predictor.score_examples(pairs, predictor.catalogs(catalogs.ad_table, catalogs.user_table)).logit
        return np.nanmean(RankedGroups((teacher > 1).astype(float), logits, pairs.request).auc())

    assert agreement(after) > agreement(before) + 0.2
    assert open_bundle(tmp_path / "taught").manifest["distilled_from"] == open_bundle(shop / "bundle").fingerprint


def test_rows_are_read_as_the_bundle_reads_them(shop, tmp_path, monkeypatch):
    """On scales and by vocabularies that it carries from another log; the folder's own are others."""
    config = {"output": tmp_path / "prepared", "tokenizer": {"kind": "none"}}
    generate_sample(tmp_path / "raw", impressions=5000, seed=8)
    tables = {name: {"files": str(tmp_path / "raw" / f"{name}.parquet")} for name in ("ads", "users")}
    config["source"] = {"format": "tables", "impressions": {"files": str(tmp_path / "raw" / "impressions")}, **tables}
    config["features"] = {"ads": {"categorical": ["category", "advertiser_id"]}, "impressions": IMPRESSIONS}
    config["counters"] = ["usual"]
    preprocess.run(PreprocessConfig.model_validate(config), QUIET)
    stored = load_config(shop / "bundle" / "config.yaml", FinetuneConfig, [
        f"prepared={tmp_path / 'prepared'}", f"output={tmp_path / 'bundle'}", f"start_from={shop / 'bundle'}",
        "carried_scales=true",
    ])  # fmt: skip
    finetune.run(stored, QUIET)
    reads = []
    for module in (train_reranker, distill_lists, click_data):
        read = module.load_examples
        monkeypatch.setattr(
            module, "load_examples", lambda *own, read=read, **more: reads.append(read(*own, **more)) or reads[-1]
        )
    monkeypatch.setattr(Rerank, "logits", lambda self, predictor, examples, catalogs: np.zeros(len(examples), np.float32))
    own = [f"prepared={stored.prepared}", f"bundle={stored.output}", "training.epochs=1"]
    train_reranker.run(load_config(None, TrainRerankerConfig, [
        *own, f"reference={shop / 'encoder'}", f"output={tmp_path / 'reranker'}", "requests=20", "max_tokens=32",
    ]), QUIET)  # fmt: skip
    net = fresh_reranker(str(shop / "encoder"), clicks=2, max_tokens=32)
    net.blend = Blend(1.0, 1.0, 0.0)
    net.save(tmp_path / "teacher")
    distill.run(configured(shop, tmp_path / "taught", *own[:2], f"teacher={tmp_path / 'teacher'}"), QUIET)
    tables = [pq.read_table(file) for split in ("train", "valid") for file in open_prepared(stored.prepared).split_files(split)]
    whole = Predictor.load(stored.output, device="cpu").examples_of(pa.concat_tables(tables))
    assert len(reads) == 6, "two of train-reranker; the clicks, and validation rows before and after, of distill"
    for examples in reads:
        place = np.argsort(whole.row_id)[np.searchsorted(np.sort(whole.row_id), examples.row_id)]
        np.testing.assert_allclose(examples.numeric, whole.numeric[place], atol=1e-6)


def test_what_cannot_teach_is_refused_in_one_line(shop, tmp_path):
    net_settings = shop / "reranker" / "reranker.json"
    stored = net_settings.read_text()
    try:
        settings = json.loads(stored)
        settings["blend"]["reranker"] = 0.0
        net_settings.write_text(json.dumps(settings))
        with pytest.raises(ConfigError, match="nothing to teach"):
            distill.run(configured(shop, tmp_path / "taught"), QUIET)
    finally:
        net_settings.write_text(stored)
    for more in (["bundle=null"], ["teacher=null"], ["click.soft=0.5"]):
        with pytest.raises(ConfigError, match="lists"):
            configured(shop, tmp_path / "taught", *more)
    assert not (tmp_path / "taught").exists()
