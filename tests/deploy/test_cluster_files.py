"""The files to copy for a cluster, and the page that shows them: parsed by what would run them, and held against the code."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from pages import command_lines

from adrec.config.base import load_config
from adrec.config.cluster import ClusterConfig
from adrec.config.inference.score import ScoreConfig
from adrec.config.training.finetune import FinetuneConfig
from adrec.config.training.loop import TrainingConfig

ROOT = Path(__file__).parents[2]
FILES = ROOT / "deploy" / "cluster"
PAGE = ROOT / "docs" / "how-to" / "cluster.md"
SCRIPTS = sorted(FILES.glob("*.sh"))


def lines_of(text):
    """Lines of a script or a page, continued ones joined."""
    return [line.strip() for line in text.replace("\\\n", " ").splitlines()]


def torchrun_of(text):
    """The words behind `torchrun` of every line that holds one, variables replaced by a word."""
    found = [re.sub(r"\$\{?\w+\}?", "2", line.split("torchrun", 1)[1]) for line in lines_of(text) if "torchrun --" in line]
    return [shlex.split(line) for line in found]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_bash_that_stops_at_a_fault(script):
    assert subprocess.run(["bash", "-n", script], capture_output=True).stderr == b""
    assert "set -euo pipefail" in script.read_text()


@pytest.mark.parametrize("file", [FILES / "slurm-train.sh", PAGE], ids=lambda path: path.name)
def test_torchrun_takes_its_options_and_finetune_its_settings(file):
    from torch.distributed.run import get_args_parser

    (words,) = torchrun_of(file.read_text(encoding="utf-8"))
    parsed = get_args_parser().parse_args(words)
    assert parsed.training_script == "adrec" and parsed.module
    command, *rest = parsed.training_script_args
    settings = [value for option, value in zip(rest, rest[1:], strict=False) if option == "--set"]
    loaded = load_config(None, FinetuneConfig, ["prepared=p", "output=o", *settings])
    assert command == "finetune" and str(loaded.training.devices) in {parsed.nproc_per_node, "1"}
    assert "--config" in rest


def test_ray_takes_the_options_of_the_scripts():
    scripts = pytest.importorskip("ray.scripts.scripts")
    for script in (FILES / "slurm-ray.sh", FILES / "ssh-hosts.sh"):
        starts = re.findall(r'(?:ray|"\$ray_of") (start [^&\n]*)', script.read_text().replace("\\\n", " "))
        assert len(starts) == 2, script
        for start in starts:
            words = [re.sub(r"\$\{?\w+\}?", "1", word) for word in shlex.split(start)]
            scripts.start.make_context("start", words[1:], resilient_parsing=False)


def test_the_pods_hold_adrec_and_the_job_names_the_cluster():
    cluster, job = yaml.safe_load_all((FILES / "raycluster.yaml").read_text())
    assert (cluster["kind"], cluster["apiVersion"], job["kind"]) == ("RayCluster", "ray.io/v1", "Job")
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    pods = [group["template"]["spec"] for group in groups]
    images = {container["image"] for pod in [*pods, job["spec"]["template"]["spec"]] for container in pod["containers"]}
    daily = (ROOT / "deploy/kubernetes/daily.yaml").read_text()
    assert images == set(re.findall(r"image: (\S+)", daily))
    (container,) = job["spec"]["template"]["spec"]["containers"]
    command, *rest = container["args"]
    options = dict(zip(rest[::2], rest[1::2], strict=True))
    assert command == "score" and options["--cluster"] == f"ray://{cluster['metadata']['name']}-head-svc:10001"
    ports = {port["containerPort"] for pod in pods[:1] for held in pod["containers"] for port in held["ports"]}
    assert 10001 in ports
    ClusterConfig(address=options["--cluster"])


def test_the_kinds_of_kubernetes_itself_are_valid():
    validate = pytest.importorskip("kubernetes_validate")
    cluster, job = yaml.safe_load_all((FILES / "raycluster.yaml").read_text())
    validate.validate(job, "1.31", strict=True)
    for group in [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": group["template"]["spec"]}
        validate.validate(pod, "1.31", strict=True)


def test_the_page_shows_configs_that_load_and_files_that_are_there():
    text = PAGE.read_text(encoding="utf-8")
    shared, trained = (yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    ClusterConfig.model_validate(shared["cluster"])
    TrainingConfig.model_validate(trained["training"])
    assert {FILES / name for name in re.findall(r"deploy/cluster/([\w.-]+)", text)} == set(FILES.iterdir())
    score, finetune = [line for line in command_lines(PAGE) if " --cluster " in line]
    words = shlex.split(finetune)
    assert words[:4] == ["adrec", "finetune", "--config", "finetune.yaml"] and words[4] == "--cluster"
    own = ["prepared=p", "output=o", f"cluster.address={words[5]}", *words[7::2]]
    assert load_config(None, FinetuneConfig, own).cluster == ClusterConfig(address="head:6379", cpus=16, gpus=8)
    words = shlex.split(score)
    options = {"--bundle": "bundle", "--output": "output", "--cluster": "cluster.address"}
    settings = [
        value if option == "--set" else f"{options[option]}={value}"
        for option, value in zip(words[2::2], words[3::2], strict=True)
    ]
    assert load_config(None, ScoreConfig, settings).cluster == ClusterConfig(address="local")
