"""What is deployed agrees with what is there: metrics, paths, configs, files; and each file passes its own linter."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from adrec.config.inference.serve import ServeConfig
from adrec.config.training.daily import DailyConfig
from adrec.stages.registry.daily import REFUSED

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))


def _expressions() -> list[str]:
    dashboard = json.loads((DEPLOY / "grafana/dashboards/adrec.json").read_text())
    panels = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    groups = yaml.safe_load((DEPLOY / "prometheus/alerts.yaml").read_text())["groups"]
    return panels + [rule["expr"] for group in groups for rule in group["rules"]]


def _metrics() -> set[str]:
    from adrec.serve.watch import Watch

    watch = Watch()
    names = set()
    for family in watch.registry.collect():
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
        names |= {family.name + suffix for suffix in suffixes}
    return names


def test_every_panel_and_alert_asks_for_a_metric_that_the_server_has() -> None:
    pytest.importorskip("prometheus_client")
    asked = {name for expression in _expressions() for name in re.findall(r"\b(?:adrec|process)_\w+", expression)}
    assert len(asked) > 10
    assert asked <= _metrics()


def test_every_path_that_is_asked_for_is_a_route() -> None:
    pytest.importorskip("fastapi")
    from adrec.serve.app import create_app

    routes = {route.path for route in create_app(ServeConfig(bundle=ROOT, ads=ROOT)).routes}
    expressions = " ".join(_expressions())
    paths = set(re.findall(r'path="([^"]+)"', expressions)) | {"/health/live", "/health/ready", "/metrics"}
    for manifest in MANIFESTS:
        paths |= set(re.findall(r"httpGet: \{path: ([^,]+),", manifest.read_text()))
    paths |= set(re.findall(r"127.0.0.1:8080(/[\w/]+)", (DEPLOY / "Dockerfile").read_text()))
    assert paths <= routes


def test_what_the_image_is_made_of_is_there_and_not_ignored() -> None:
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    sources = {name for line in copied for name in line.split()}
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert sources == allowed
    assert all((ROOT / name).exists() for name in sources)


def test_the_pods_config_is_one_and_its_server_reads_what_is_mounted() -> None:
    documents = list(yaml.safe_load_all((DEPLOY / "kubernetes/server.yaml").read_text()))
    by_kind: dict[str, Any] = {document["kind"]: document for document in documents}
    config = ServeConfig.model_validate(yaml.safe_load(by_kind["ConfigMap"]["data"]["serve.yaml"]))
    pod = by_kind["Deployment"]["spec"]["template"]["spec"]
    container = pod["containers"][0]
    mounts = [Path(mount["mountPath"]) for mount in container["volumeMounts"]]
    assert config.prepared is not None
    for path in (config.bundle, config.prepared, Path(container["args"][-1])):
        assert any(mount in path.parents for mount in mounts)
    assert config.port == container["ports"][0]["containerPort"]
    # Kubernetes kills what has not ended by then.
    sleeps = int(container["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert pod["terminationGracePeriodSeconds"] > config.drain_seconds + sleeps
    assert by_kind["PodDisruptionBudget"]["spec"]["minAvailable"] < by_kind["Deployment"]["spec"]["replicas"]


def test_the_daily_jobs_config_is_one_and_a_refusal_is_not_tried_again() -> None:
    config, job = yaml.safe_load_all((DEPLOY / "kubernetes/daily.yaml").read_text())
    daily = DailyConfig.model_validate(yaml.safe_load(config["data"]["daily.yaml"]))
    spec = job["spec"]["jobTemplate"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    mounts = {Path(mount["mountPath"]): mount.get("readOnly", False) for mount in container["volumeMounts"]}
    for path in (daily.preprocess, daily.finetune, Path(container["args"][-1])):
        assert mounts[path.parent]
    assert daily.prepared is not None
    assert all(not mounts[path.parent] for path in (daily.prepared, daily.registry))
    names = {volume["name"] for volume in spec["template"]["spec"]["volumes"]}
    assert names == {mount["name"] for mount in container["volumeMounts"]}
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["values"] == [REFUSED] and rule["onExitCodes"]["containerName"] == container["name"]
    assert job["spec"]["concurrencyPolicy"] == "Forbid"  # two at once would be refused by the lock of the output
    server = yaml.safe_load_all((DEPLOY / "kubernetes/server.yaml").read_text())
    (service,) = (part for part in server if part["kind"] == "Service")
    assert daily.reload == [f"http://{service['metadata']['name']}"] and service["spec"]["ports"][0]["port"] == 80


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda path: path.stem)
def test_kubernetes_takes_the_manifests(manifest: Path) -> None:
    checker = pytest.importorskip("kubernetes_validate")
    for document in yaml.safe_load_all(manifest.read_text()):
        checker.validate(document, "1.31", strict=True)


def test_compose_and_the_dockerfile_pass_their_linters() -> None:
    pytest.importorskip("check_jsonschema")
    schema = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(DEPLOY / "compose.yaml")]
    assert subprocess.run(schema, capture_output=True, text=True).stdout.startswith("ok")
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("no hadolint here")
    found = subprocess.run([hadolint, str(DEPLOY / "Dockerfile")], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
