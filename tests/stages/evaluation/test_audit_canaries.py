"""Phrases that were planted often are heard from the language model, those planted once hardly."""

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
    assert often.mean > 5.0 and often.extracted >= 1  # of log2(151) = 7.2 bits
    assert once.mean < often.mean - 1.0
    assert json.loads((tmp_path / "audit.json").read_text())["canaries"]["exposures"][1]["repeats"] == 50
    assert pq.read_table(prepared / "corpus.parquet").equals(before) and not (tmp_path / "never").exists()


def test_an_audit_attacks_something(tmp_path):
    with pytest.raises(ValidationError, match="name the `finetune` config to attack"):
        AuditConfig(output=tmp_path / "audit.json")
