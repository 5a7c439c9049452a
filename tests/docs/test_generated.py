"""The pages of commands and the tables of the data contract are what the code says, and the site holds together."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from adrec.schema import RANKED, SCORED, TABLES

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


def test_the_pages_are_up_to_date(tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("generate.py", "data/contract.md"):  # it writes beside itself; a process of its own, as `make docs` is one
        shutil.copy(DOCS / name, tmp_path / name)
    subprocess.run([sys.executable, tmp_path / "generate.py"], check=True, stdout=subprocess.DEVNULL)
    made, kept = (
        {page.relative_to(folder): page.read_text(encoding="utf-8") for page in folder.glob("*/*.md")}
        for folder in (tmp_path, DOCS)
    )
    assert made == {name: kept.get(name) for name in made}, "run `make docs`"
    assert {name for name in kept if name.parent.name == "commands"} <= set(made)


def test_every_column_of_every_table_is_told():
    page = (DOCS / "data/contract.md").read_text(encoding="utf-8")
    for spec in (*TABLES, *(spec.stored for spec in TABLES), SCORED, RANKED):
        for column in spec.columns:
            assert column.meaning, (spec.name, column.name)
            assert f"| `{column.name}` | " in page, (spec.name, column.name)
    assert "| `ad_id` | text | identifier, unique. Required |" in page
    assert "| `click` | 0 or 1 | empty where unknown" in page
    assert "An outcome: a label, never a feature |" in page


def test_every_command_and_nested_setting_is_on_it():
    pages = {page.stem: page.read_text(encoding="utf-8") for page in (DOCS / "commands").glob("*.md")}
    assert {"preprocess", "pretrain-mlm", "finetune", "evaluate", "score", "rank", "serve", "daily"} < set(pages)
    assert "| `training.learning_rate` | number > 0 ≤ 1000 | `0.001` |" in pages["finetune"]
    assert "| `text.lexical` | integer ≥ 0 ≤ 4096 | `0` |" in pages["finetune"]
    # of a section that may be missing, of one of several kinds, of one with a name of the user's
    assert "| `privacy.k_anonymity.k` | integer ≥ 2 | `5` |" in pages["preprocess"]
    assert "| `source.positive_rating` (format: recbole) | number | `4.0` |" in pages["preprocess"]
    assert "| `policies.NAME.limits.per_advertiser` |" in pages["serve"]


def test_what_is_named_in_docs_is_there():
    """Every `docs/....md` that code, configs or pages name."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no git here")
    for name in listed.stdout.split("\n"):
        file = ROOT / name
        if file.suffix in {".py", ".yaml", ".md", ".toml"} and file.is_file():
            for page in re.findall(r"\bdocs/[\w/-]+\.md", file.read_text(encoding="utf-8")):
                assert (ROOT / page).is_file(), f"{name} names {page}"


def test_the_site_builds_without_a_broken_link(tmp_path):
    pytest.importorskip("mkdocs")
    build = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})
    assert done.returncode == 0, done.stderr
    home = (tmp_path / "site/index.html").read_text(encoding="utf-8")
    assert 'href="how-to/your-log.html"' in home and 'href="commands/finetune.html"' in home
    assert (tmp_path / "site/examples/first_steps.ipynb").is_file()
    pages = [page.read_text(encoding="utf-8") for page in (tmp_path / "site").rglob("*.html")]
    assert len(pages) > 50
    # It is read without a network: nothing is loaded from elsewhere.
    assert not [url for page in pages for url in re.findall(r'(?:src|<link[^>]* href)="(https?:[^"]+)"', page)]
