"""Phrases that were planted often are heard from the language model, those planted once hardly, under privacy none."""

import json

import pyarrow.parquet as pq
import pytest
import yaml
from corpora import make_corpus
from pydantic import ValidationError

from adrec.config.evaluation.audit import AuditConfig
from adrec.stages.evaluation import audit
from adrec.terminal import Terminal


def test_what_is_said_often_is_remembered(tmp_path):
    prepared = make_corpus(tmp_path / "prepared", count=200)
    before = pq.read_table(prepared / "corpus.parquet")
    settings = {
        "prepared": str(prepared),
        "output": str(tmp_path / "never"),
        "batches": {"max_tokens": 32, "batch_tokens": 1024},
        "training": {"epochs": 16, "learning_rate": 3e-3, "patience": None, "loggers": []},
    }
    (tmp_path / "pretrain.yaml").write_text(yaml.safe_dump(settings))
    canaries = {"pretrain": tmp_path / "pretrain.yaml", "count": 3, "repeats": [1, 50], "candidates": 150}
    found = audit.run(AuditConfig(canaries=canaries, output=tmp_path / "audit.json"), Terminal(quiet=True)).canaries
    once, often = found.exposures
    assert often.mean > 5.0 and often.likeliest >= 1  # of log2(151) = 7.2 bits
    assert often.extracted >= 1 and once.extracted == 0
    assert once.mean < often.mean - 1.0
    assert json.loads((tmp_path / "audit.json").read_text())["canaries"]["exposures"][1]["repeats"] == 50
    assert pq.read_table(prepared / "corpus.parquet").equals(before) and not (tmp_path / "never").exists()


@pytest.mark.slow
@pytest.mark.parametrize("epsilon, low, high", [(1000.0, 4.0, 7.3), (1.0, 0.0, 3.2)])
def test_what_users_wrote_is_remembered_as_far_as_epsilon_lets_it(tmp_path, epsilon, low, high):
    prepared = make_corpus(tmp_path / "prepared", count=200)
    settings = {
        "prepared": str(prepared),
        "output": str(tmp_path / "never"),
        "batches": {"max_tokens": 32, "batch_tokens": 1024},
        "training": {"epochs": 30, "learning_rate": 3e-3, "loggers": []},
        "privacy": {"epsilon": epsilon, "delta": 1e-4, "public": ["tokenizer"], "users_per_step": 8, "secure": False},
    }
    (tmp_path / "pretrain.yaml").write_text(yaml.safe_dump(settings))
    before = sorted((prepared / "impressions" / "train").iterdir())
    canaries = {"pretrain": tmp_path / "pretrain.yaml", "count": 4, "repeats": [10], "candidates": 150}
    found = audit.run(AuditConfig(canaries=canaries, output=tmp_path / "audit.json"), Terminal(quiet=True)).canaries
    [often] = found.exposures
    assert low < often.mean < high  # of 7.2 bits
    assert epsilon > 1.0 or often.extracted == 0
    assert sorted((prepared / "impressions" / "train").iterdir()) == before


def test_an_audit_attacks_something(tmp_path):
    with pytest.raises(ValidationError, match="name the `finetune` config to attack"):
        AuditConfig(output=tmp_path / "audit.json")
