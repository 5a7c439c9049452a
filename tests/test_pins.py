"""A release is pinned by version and digest, agrees with the versions that are tested, and lists its parts."""

import json
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PINS = ROOT / "deploy" / "pins.txt"
SHA256 = re.compile(r"--hash=sha256:([0-9a-f]{64})")


def pinned():
    """Name → requirements of that name (one a platform) and how many digests each has."""
    found: dict[str, list[tuple[Requirement, int]]] = {}
    for entry in PINS.read_text().replace("\\\n", " ").splitlines():
        text, *options = entry.split(" --hash", 1)
        requirement = Requirement(text.strip())
        hashes = SHA256.findall(" --hash" + "".join(options))
        assert len(hashes) == entry.count("--hash") > 0, entry[:80]
        found.setdefault(canonicalize_name(requirement.name), []).append((requirement, len(hashes)))
    return found


def constraints():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {canonicalize_name(line.split("==")[0]): line.split("==")[1].strip() for line in lines if "==" in line}


def requirements_of(name):
    """Of an installed package; adrec's own as its source says, for what is installed may be older."""
    if name != "adrec":
        return [Requirement(text) for text in metadata.requires(name) or []]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].items()
    return [
        *map(Requirement, project["dependencies"]),
        *(Requirement(f"{text.partition(';')[0]}; extra == '{extra}'") for extra, texts in extras for text in texts),
    ]


def needed(names, extras=()):
    """Names of everything that these packages need here, themselves among them."""
    found, ahead = set(), [(name, tuple(extras)) for name in names]
    while ahead:
        name, own = ahead.pop()
        if (name, own) in found:
            continue
        found.add((name, own))
        for requirement in requirements_of(name):
            if any(requirement.marker is None or requirement.marker.evaluate({"extra": extra}) for extra in ("", *own)):
                ahead.append((canonicalize_name(requirement.name), tuple(sorted(requirement.extras))))
    return {name for name, _ in found}


def test_every_pin_has_digests_and_the_version_that_is_constraints():
    versions = constraints()
    for name, entries in pinned().items():
        for requirement, _ in entries:
            [specifier] = requirement.specifier
            assert specifier.operator == "=="
            assert name not in versions or specifier.version == versions[name], name


def test_all_that_adrec_installs_is_pinned_and_constraints():
    names = needed(["adrec"], ["all"]) - {"adrec"}
    assert len(names) > 80
    assert names - pinned().keys() - {"setuptools"} == set()
    assert names - constraints().keys() - {"setuptools"} == set()


def test_the_parts_of_a_release_are_listed(tmp_path):
    pytest.importorskip("cyclonedx_py")
    listing = tmp_path / "adrec.cdx.json"
    command = ["-m", "cyclonedx_py", "requirements", PINS, "--pyproject", ROOT / "pyproject.toml", "--output-file", listing]
    subprocess.run([sys.executable, *map(str, command)], check=True, capture_output=True)
    made = json.loads(listing.read_text())
    assert made["bomFormat"] == "CycloneDX" and made["metadata"]["component"]["name"] == "adrec"
    parts = {canonicalize_name(part["name"]): part["version"] for part in made["components"]}
    assert parts.keys() == pinned().keys() and parts["pyarrow"] == constraints()["pyarrow"]
