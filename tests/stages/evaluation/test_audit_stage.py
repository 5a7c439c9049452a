"""A training that learns its users by heart is found out, a private one is not, and planted phrases are heard."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from worlds import make_world

from adrec.config.evaluation.audit import AuditConfig
from adrec.data.features import FeatureSet
from adrec.data.prepared import open_prepared
from adrec.data.subset import write_subset
from adrec.errors import ConfigError
from adrec.specs import CategorySpec, FeatureSpec
from adrec.stages.evaluation import audit
from adrec.stages.evaluation.auditing.leaks import reconstruct
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
    taken = found.leaks.reconstruction  # a plain bundle's counts give everybody's clicks away
    assert taken.is_published and taken.auc > 0.999 and taken.recovered > 0.99 > taken.by_rate
    assert json.loads((world / "audit.json").read_text())["leaks"]["reconstruction"]["auc"] == taken.auc
    assert not (world / "never").exists() and not (world / ".audit.json.work").exists()


@pytest.mark.slow
def test_a_private_one_claims_and_is_not_refuted(world):
    private = {"epsilon": 3.0, "delta": 1e-4, "unit": "user", "units_per_step": 15}
    model = {**LEARNS_USERS, "identities": []}
    finetune = write_finetune(world, privacy=private, model=model)
    membership = audit.run(AuditConfig(finetune=finetune, output=world / "private.json", models=2), QUIET).membership
    assert membership.claimed == 3.0 and not membership.refutes
    assert abs(membership.threshold_auc - 0.5) < 0.12  # 150 users, two models: two deviations are 0.07


def counted(noise, seed=0):
    """Published clicks of 40 ads by 300 users, each of whom counts an ad once; and the rows."""
    random = np.random.default_rng(seed)
    user, ad = np.repeat(np.arange(300), 12), random.integers(0, 40, 3600)
    clicked = random.random(3600) < 0.2
    pairs = np.unique(user * 40 + ad, return_index=True)[1]
    exact = np.bincount(ad[pairs], weights=clicked[pairs], minlength=40)
    return exact + np.round(random.normal(0, noise, 40)), user[pairs], ad[pairs], clicked[pairs]


@pytest.mark.parametrize("noise, low, high", [(0.0, 1.0, 1.0), (0.3, 0.9, 1.0), (40.0, 0.45, 0.56)])
def test_a_planted_users_clicks_come_out_of_exact_counts_alone(noise, low, high):
    published, user, ad, clicked = counted(noise)
    found = reconstruct(published, user, ad, clicked, once=True)
    assert low <= found.auc <= high and found.pairs == len(user)
    assert (found.recovered == 1.0) == (noise == 0.0)


def test_repeated_showings_are_told_apart_too():
    random = np.random.default_rng(1)
    user, ad, clicked = random.integers(0, 50, 4000), random.integers(0, 20, 4000), random.random(4000) < 0.1
    published = np.bincount(ad, weights=clicked, minlength=20)
    assert reconstruct(published, user, ad, clicked, once=False).recovered == 1.0
    assert not reconstruct(np.zeros(20), user, ad, clicked, once=False).is_published


@pytest.mark.slow
def test_what_a_user_is_can_be_guessed_from_his_clicks(tmp_path):
    make_world(tmp_path / "prepared", users=100, requests=2500, per_request=4)
    users = pq.read_table(tmp_path / "prepared" / "users.parquet")
    users = users.append_column("taste", users["text"])
    pq.write_table(users, tmp_path / "prepared" / "users.parquet")
    features = json.loads((tmp_path / "prepared" / "features.json").read_text())
    features["users"] = FeatureSet.fit(FeatureSpec(categorical=(CategorySpec("taste"),)), [users]).to_json()
    (tmp_path / "prepared" / "features.json").write_text(json.dumps(features))
    finetune = write_finetune(tmp_path, model={**LEARNS_USERS, "identities": ["ads"]})
    asked = {"finetune": finetune, "output": tmp_path / "guessed.json", "models": 2}
    [guessed] = audit.run(AuditConfig(**asked, attributes=["taste"]), QUIET).leaks.attributes
    assert guessed.values > 2 and guessed.members > 1.3 / guessed.values and guessed.others > 1.3 / guessed.values
    with pytest.raises(ConfigError, match="'shoe_size' is no column of users that the model reads: taste"):
        audit.run(AuditConfig(**asked, attributes=["shoe_size"]), QUIET)


def test_a_claim_that_is_refuted_is_said(world, monkeypatch, capsys):
    def attacked(base, prepared, rows, own, member, unit, folder, number, attributes):
        return audit.Attack(member + 0.1 * np.random.default_rng(number).random(len(member)), 0.5)

    monkeypatch.setattr(audit, "_attacked", attacked)
    finetune = write_finetune(world)
    found = audit.run(AuditConfig(finetune=finetune, output=world / "lie.json", models=2), Terminal(quiet=True))
    assert found.membership.refutes and found.membership.threshold_auc == 1.0
    assert "Do not publish" in capsys.readouterr().err


def test_a_killed_audit_goes_on_after_the_last_model(world, monkeypatch):
    seen = []

    def attacked(base, prepared, rows, own, member, unit, folder, number, attributes):
        seen.append(number)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return audit.Attack(member + 0.0, None)

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
