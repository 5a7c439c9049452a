"""The page of commands and the tables of the data contract are what the code says."""

import shutil
import subprocess
import sys
from pathlib import Path

from adrec.schema import RANKED, SCORED, TABLES

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_pages_are_up_to_date(tmp_path):
    for name in ("generate.py", "data.md"):  # it writes beside itself; a process of its own, as `make docs` is one
        shutil.copy(DOCS / name, tmp_path)
    subprocess.run([sys.executable, tmp_path / "generate.py"], check=True, stdout=subprocess.DEVNULL)
    for name in ("commands.md", "data.md"):
        made, kept = (folder / name for folder in (tmp_path, DOCS))
        assert made.read_text(encoding="utf-8") == kept.read_text(encoding="utf-8"), "run `make docs`"


def test_every_column_of_every_table_is_told():
    page = (DOCS / "data.md").read_text(encoding="utf-8")
    for spec in (*TABLES, *(spec.stored for spec in TABLES), SCORED, RANKED):
        for column in spec.columns:
            assert column.meaning, (spec.name, column.name)
            assert f"| `{column.name}` | " in page, (spec.name, column.name)
    assert "| `ad_id` | text | identifier, unique. Required |" in page
    assert "| `click` | 0 or 1 | empty where unknown" in page
    assert "An outcome: a label, never a feature |" in page


def test_every_command_and_nested_setting_is_on_it():
    page = (DOCS / "commands.md").read_text(encoding="utf-8")
    for heading in ("preprocess", "pretrain-mlm", "finetune", "evaluate", "score", "rank", "serve"):
        assert f"## adrec {heading}\n" in page
    assert "| `training.learning_rate` | number > 0 ≤ 1000 | `0.001` |" in page
    assert "| `text.lexical` | integer ≥ 0 ≤ 4096 | `0` |" in page
