"""Every command line of docs/how-to/your-log.md, on files of the kinds that it names."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from example_logs import write_logs
from typer.testing import CliRunner

from adrec.cli.app import app

PAGE = Path(__file__).parents[2] / "docs/how-to/your-log.md"
FAST = {  # the page's commands, with less training
    "finetune": ["--set", "training.epochs=1", "--set", "seeds=1", "--set", "ensemble=false"],
}


def sections() -> dict[str, list[str]]:
    """Heading → its command lines."""
    found: dict[str, list[str]] = {}
    for part in PAGE.read_text(encoding="utf-8").split("\n## ")[1:]:
        blocks = re.findall(r"```bash\n(.*?)```", part, re.DOTALL)
        found[part.split("\n")[0]] = [line for block in blocks for line in block.splitlines() if line]
    return {heading: lines for heading, lines in found.items() if lines}


@pytest.mark.parametrize("heading", sections())
def test_the_commands_run_as_printed(heading, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ADREC_CACHE", str(tmp_path / "cache"))
    write_logs(tmp_path)
    for line in sections()[heading]:
        program, command, *arguments = shlex.split(line)
        assert program == "adrec"
        done = CliRunner().invoke(app, [command, *arguments, *FAST.get(command, [])])
        assert done.exit_code == 0, (line, done.output)
    if heading == "Impressions with clicks":
        assert (tmp_path / "scored.csv").read_text().count("\n") == 30 * 4 + 1
    if heading == "A plain table":
        chosen = yaml.safe_load((tmp_path / "configs/chosen/preprocess.yaml").read_text())
        assert chosen["source"]["impressions"]["columns"]["ad_id"] == "banner"


def test_the_shapes_are_what_the_page_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_logs(tmp_path)

    def source(name: str, *files: str):
        done = CliRunner().invoke(app, ["init", "--output", name, *files])
        assert done.exit_code == 0, done.output
        return yaml.safe_load((tmp_path / name / "preprocess.yaml").read_text())

    assert "on" in source("two", "impressions.csv", "clicks.csv")["source"]["clicks"]
    assert source("alone", "purchases.csv", "products.csv")["negatives"]
    assert {"impressions", "clicks", "spend"} <= set(source("counts", "report.csv")["source"]["impressions"]["columns"])
    assert "at_least" in source("ratings", "ratings.csv")["source"]["impressions"]
    assert source("plain", "table.csv")["split"]["method"] == "random"
