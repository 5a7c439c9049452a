"""A training that learns its users by heart is found out, a private one is not, and planted phrases are heard."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from worlds import make_world

from adrec.config.evaluation.audit import AuditConfig
from adrec.data.prepared import open_prepared
from adrec.data.subset import write_subset
from adrec.stages.evaluation import audit
from adrec.terminal import Terminal

QUIET = Terminal(quiet=True)


def write_finetune(folder, **settings):
    usual = {
        "prepared": str(folder / "prepared"),
        "output": str(folder / "never"),
        "model": {"width": 16, "hidden": [16], "dropout": 0.0},
        "training": {"epochs": 10, "batch_rows": 256, "learning_rate": 1e-2, "loggers": [], "patience": None},
        "baselines": {"names": []},
        "hybrid": {"kind": "none"},
    }
    file = folder / "finetune.yaml"
    file.write_text(yaml.safe_dump({**usual, **settings}))
    return file


LEARNS_USERS = {"width": 16, "hidden": [16], "dropout": 0.0, "identities": ["users", "ads"], "user": {"max_history": 1}}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit")
    make_world(folder / "prepared", users=150, requests=2500, per_request=4)
    return folder


def test_a_model_that_knows_its_users_is_found_out(world):
    finetune = write_finetune(world, model=LEARNS_USERS)
    found = audit.run(AuditConfig(finetune=finetune, output=world / "audit.json", models=3), QUIET)
    membership = found.membership
    assert membership.threshold_auc > 0.6 and membership.claimed is None
    assert 120 < membership.units <= 150 and membership.unit == "user"
    assert json.loads((world / "audit.json").read_text())["membership"]["lira_auc"] == membership.lira_auc
    assert not (world / "never").exists() and not (world / ".audit.json.work").exists()


@pytest.mark.slow
def test_a_private_one_claims_and_is_not_refuted(world):
    private = {"epsilon": 3.0, "delta": 1e-4, "unit": "user", "units_per_step": 15}
    model = {**LEARNS_USERS, "identities": []}
    finetune = write_finetune(world, privacy=private, model=model)
    membership = audit.run(AuditConfig(finetune=finetune, output=world / "private.json", models=2), QUIET).membership
    assert membership.claimed == 3.0 and not membership.refutes
    assert abs(membership.threshold_auc - 0.5) < 0.12  # 150 users, two models: two deviations are 0.07


def test_a_claim_that_is_refuted_is_said(world, monkeypatch, capsys):
    def attacked(base, prepared, rows, own, member, unit, folder, number):
        return member + 0.1 * np.random.default_rng(number).random(len(member)), 0.5

    monkeypatch.setattr(audit, "_attacked", attacked)
    finetune = write_finetune(world)
    found = audit.run(AuditConfig(finetune=finetune, output=world / "lie.json", models=2), Terminal(quiet=True))
    assert found.membership.refutes and found.membership.threshold_auc == 1.0
    assert "Do not publish" in capsys.readouterr().err


def test_a_killed_audit_goes_on_after_the_last_model(world, monkeypatch):
    seen = []

    def attacked(base, prepared, rows, own, member, unit, folder, number):
        seen.append(number)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return member + 0.0, None

    monkeypatch.setattr(audit, "_attacked", attacked)
    config = AuditConfig(finetune=write_finetune(world), output=world / "again.json", models=3)
    with pytest.raises(KeyboardInterrupt):
        audit.run(config, QUIET)
    audit.run(config, QUIET)
    assert seen == [0, 1, 1, 2]


def test_a_subset_holds_its_rows_and_all_else(world, tmp_path):
    prepared = open_prepared(world / "prepared")
    keep = np.arange(prepared.rows("train")) % 3 == 0
    half = write_subset(prepared, tmp_path / "half", {"train": keep})
    whole = pa.concat_tables([pq.read_table(file) for file in prepared.split_files("train")])
    own = pa.concat_tables([pq.read_table(file) for file in half.split_files("train")])
    assert own.equals(whole.filter(pa.array(keep)))
    assert half.rows("train") == keep.sum() and half.rows("test") == prepared.rows("test")
    assert half.fingerprint != prepared.fingerprint and half.ads().equals(prepared.ads())
    assert whole.equals(pa.concat_tables([pq.read_table(file) for file in prepared.split_files("train")]))
