"""The package of docs/how-to/plugins.md: what the page shows is what lies in examples/ad_shop, and it works once installed."""

import re
import shutil
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from pages import ROOT, arguments_of, command_lines
from typer.testing import CliRunner

from adrec.bundle import open_bundle
from adrec.cli.app import app

PAGE = ROOT / "docs/how-to/plugins.md"
PACKAGE = ROOT / "examples/ad_shop"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_the_page_shows_the_package():
    shown = blocks("python")
    assert shown == [(PACKAGE / f"ad_shop/{name}.py").read_text(encoding="utf-8") for name in ("source", "baseline", "parts")]
    (points,) = blocks("toml")
    assert points in (PACKAGE / "pyproject.toml").read_text(encoding="utf-8")


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """The package installed by pip, the page's two configs, and a log of sessions."""
    shutil.copytree(PACKAGE, tmp_path / "package")  # a build writes beside what it builds
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*pip, "--target", str(tmp_path / "site"), str(tmp_path / "package")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    for name in [name for name in sys.modules if name.partition(".")[0] == "ad_shop"]:  # of another test's package of that name
        monkeypatch.delitem(sys.modules, name)
    (block,) = blocks("yaml")
    for part in block.split("# ")[1:]:
        name, text = part.split("\n", 1)
        config = yaml.safe_load(text)
        config["output"] = str(tmp_path / config["output"])
        if "prepared" in config:
            config["prepared"] = str(tmp_path / config["prepared"])
        file = tmp_path / "configs/shop" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml.safe_dump(config))
    random = np.random.default_rng(0)
    lines = []
    for session in range(600):
        shown = random.permutation(20)[:4]
        wanted = [ad for ad in shown if ad % 4 == 0]  # one section in four is clicked
        clicked = f"a{wanted[0]}" if wanted and random.random() < 0.7 else ""
        lines.append(f"u{session % 50};{1_700_000_000 + 600 * session};{' '.join(f'a{ad}' for ad in shown)};{clicked}")
    (tmp_path / "configs/shop/sessions.txt").write_text("\n".join(lines) + "\n")
    ads = "".join(f"a{ad},title of number {ad},section {ad % 4}\n" for ad in range(20))
    (tmp_path / "configs/shop/shop_ads.csv").write_text(f"ad_id,title,category\n{ads}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_commands_run_as_printed(shop):
    for line in command_lines(PAGE):
        done = CliRunner().invoke(app, arguments_of(line)[0])
        assert done.exit_code == 0, done.output
    bundle = open_bundle(shop / "runs/shop/bundle")
    assert bundle.has("baselines/section_rate/")
    models = bundle.json("metrics.json")["models"]
    # The section says nearly all there is to know, and the baseline knows nothing else.
    assert models["section_rate"]["auc"] > 0.8
    line = "score --bundle runs/shop/bundle --set prepared=runs/shop/prepared --set split=test --output scored.parquet"
    done = CliRunner().invoke(app, line.split())
    assert done.exit_code == 0, done.output
    scored = pq.read_table(shop / "scored.parquet")
    assert len(set(scored["baseline_section_rate"].to_pylist())) == 4
