"""Bundles in MLflow's registry, where MLflow is installed; a plain refusal where it is not."""

import pytest
from daily_world import DailyWorld

from adrec.config.base import load_config
from adrec.config.training.daily import DailyConfig
from adrec.errors import ResourceError
from adrec.stages.registry import daily, tracking
from adrec.stages.registry.folder import Registry
from adrec.terminal import Terminal


def test_each_bundle_is_a_version_once_and_the_alias_is_the_champion(tmp_path):
    mlflow = pytest.importorskip("mlflow")
    address = f"sqlite:///{tmp_path}/mlflow.db"
    registry = Registry(tmp_path / "registry")
    registry.start()
    for name in ("one", "two"):
        figures = [{"metric": "auc", "new": 0.7}, {"metric": "ndcg@10", "new": 0.5}]
        record = registry.record(name, {"data": {"fingerprint": name}, "verdict": "promoted", "figures": figures})
        registry.events.append({"what": "promoted", "name": name, "at": "", "why": ""})
        for _ in range(2):
            tracking.register(address, registry, record)
    client = mlflow.MlflowClient(address, address)
    versions = client.search_model_versions(f"name='{tracking.MODEL}'")
    assert sorted(version.tags["adrec.name"] for version in versions) == ["one", "two"]
    assert client.get_model_version_by_alias(tracking.MODEL, "champion").tags["adrec.name"] == "two"
    assert client.get_run(versions[0].run_id).data.metrics == {"auc": 0.7, "ndcg_at_10": 0.5}


def test_without_mlflow_nothing_is_begun(tmp_path, monkeypatch):
    world = DailyWorld(tmp_path, impressions=300)
    monkeypatch.setitem(__import__("sys").modules, "mlflow", None)
    with pytest.raises(ResourceError, match="pip install mlflow"):
        daily.run(load_config(world.config, DailyConfig, ["mlflow=sqlite:///x.db"]), Terminal(quiet=True))
    assert not world.registry.exists()
