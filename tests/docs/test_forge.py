"""What a forge reads beside the code, each by its own schema: issue forms, the citation; and the package agrees with them."""

import re
import subprocess
import sys
import tomllib

import pytest
import yaml
from pages import ROOT

import adrec
from adrec.config.commands import config_models

FORMS = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))
SCHEMAS = {
    "github-issue-forms": [str(form) for form in FORMS if form.stem != "config"],
    "github-issue-config": [str(form) for form in FORMS if form.stem == "config"],
    "citation-file-format": [str(ROOT / "CITATION.cff")],
}


@pytest.mark.parametrize("schema", SCHEMAS)
def test_it_is_what_its_schema_says(schema):
    pytest.importorskip("check_jsonschema")
    assert SCHEMAS[schema]
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", *SCHEMAS[schema]]
    if schema == "citation-file-format":
        check += ["--force-filetype", "yaml"]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_issue_forms_name_commands_that_there_are():
    named = {name for form in FORMS for name in re.findall(r"`adrec ([a-z-]+)", form.read_text(encoding="utf-8"))}
    assert named and named <= set(config_models())


def test_the_citation_and_the_package_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert citation["version"] == adrec.__version__ and citation["license"] == project["license"]
    for minor in (11, 12, 13):
        assert f"Programming Language :: Python :: 3.{minor}" in project["classifiers"]
    assert project["requires-python"] == ">=3.11,<3.14"
