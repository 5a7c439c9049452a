"""The page of commands is what the code says."""

import shutil
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_page_of_commands_is_up_to_date(tmp_path):
    shutil.copy(DOCS / "generate.py", tmp_path)  # it writes beside itself; a process of its own, as `make docs` is one
    subprocess.run([sys.executable, tmp_path / "generate.py"], check=True, stdout=subprocess.DEVNULL)
    made, kept = (folder / "commands.md" for folder in (tmp_path, DOCS))
    assert made.read_text(encoding="utf-8") == kept.read_text(encoding="utf-8"), "run `make docs`"


def test_every_command_and_nested_setting_is_on_it():
    page = (DOCS / "commands.md").read_text(encoding="utf-8")
    for heading in ("preprocess", "pretrain-mlm", "finetune", "evaluate", "score", "rank", "serve"):
        assert f"## adrec {heading}\n" in page
    assert "| `training.learning_rate` | number > 0 | `0.001` |" in page
    assert "| `text.lexical` | integer ≥ 0 ≤ 4096 | `0` |" in page
