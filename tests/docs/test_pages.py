"""Every command line that README and docs print is run, in order, page by page, on small files of the kinds that they name.

test_how_to.py runs the tutorial and the pages of docs/how-to that go on from it; test_your_log.py, test_plugin_package.py and
stages/test_object_storage.py run theirs.
"""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import yaml
from daily_world import DailyWorld
from example_logs import write_logs
from pages import ROOT, arguments_of, command_lines, python_blocks, write_mind
from typer.testing import CliRunner

from adrec.cli.app import app
from adrec.sample import generate_sample

ELSEWHERE = {"tutorial.md", "log.md"} | {
    f"how-to/{name}.md"
    for name in (
        "cluster", "gbk", "hub-encoder", "numeric-feature", "object-storage", "plugins", "several-gpus", "tomorrow", "your-log",
    )
}  # fmt: skip
EVERY_PAGE = {name: ROOT / name for name in ("README.md", "README.zh-CN.md", "CONTRIBUTING.md")}
EVERY_PAGE |= {page.relative_to(ROOT / "docs").as_posix(): page for page in sorted((ROOT / "docs").glob("**/*.md"))}
PAGES = {name: page for name, page in EVERY_PAGE.items() if name not in ELSEWHERE and command_lines(page)}


def invoke(line: str) -> None:
    """Run one printed line. Fails with its output."""
    if line.startswith("make "):
        assert re.search(rf"^{shlex.split(line, comments=True)[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
        return
    if line.startswith("python "):
        script = ROOT / shlex.split(line)[1]
        options = re.findall(r"(--[a-z-]+)", line)
        assert all(f'"{option}"' in script.read_text(encoding="utf-8") for option in options), line
        return
    arguments, piped = arguments_of(line)
    done = CliRunner().invoke(app, arguments, input=Path(piped).read_text(encoding="utf-8") if piped else None)
    assert done.exit_code == 0, f"{line}\n{done.output}"


def answer_two_requests(server) -> None:
    """In place of listening for ever: a list is asked for, and its first ad clicked."""
    from starlette.testclient import TestClient

    server.started = True
    with TestClient(server.config.app, base_url="http://127.0.0.1") as client:
        answer = client.post("/v1/rank", json={"requests": [{"user_id": "u0000017", "top_n": 3}]})
        assert answer.status_code == 200, answer.text
        shown = answer.json()["lists"][0]
        events = [
            {
                "event_id": f"e{ad['rank']}", "kind": "impression", "user_id": "u0000017", "request_id": shown["request_id"],
                "ad_id": ad["ad_id"], "position": ad["rank"], "score": ad["score"], "arm": shown["arm"],
                "propensity_given_above": ad["propensity_given_above"],
            }
            for ad in shown["ads"]
        ]  # fmt: skip
        events.append({**events[0], "event_id": "e0", "kind": "click"})
        answer = client.post("/v1/events", json={"events": events})
        assert answer.status_code == 200, answer.text
        for page in (ROOT / "README.md", *(ROOT / "docs").glob("**/*.md")):
            for path, body in re.findall(
                r"^curl .*127\.0\.0\.1:8080(/\S*) .*-d '(.*)'$", page.read_text("utf-8"), re.MULTILINE
            ):
                answer = client.post(path, content=body, headers={"content-type": "application/json"})
                assert answer.status_code == 200, (page.name, path, answer.text)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A clone with a small sample that went through the README's commands, and files of the kinds that pages name."""
    root = tmp_path_factory.mktemp("clone") / "adrec"
    shutil.copytree(ROOT / "configs", root / "configs")
    generate_sample(root / "data/sample", impressions=4_000, seed=42)
    write_mind(root.parent / "shared/data/mind5k")
    shutil.copy(root.parent / "shared/data/mind5k/news_zh.tsv", root)
    write_logs(root)
    shown = pq.read_table(root / "data/sample/impressions")
    keep = ["user_id", "ad_id", "shown_at", "request_id", "click", "scenario", "query"]
    pq.write_table(shown.select(keep), root / "clicks.parquet")
    ads = pq.read_table(root / "data/sample/ads.parquet")
    pyarrow.csv.write_csv(ads.select(["ad_id", "title", "category", "bid"]), root / "ads.csv")
    return root


@pytest.fixture(scope="module")
def clone(made):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        patch.setenv("ADREC_CACHE", str(made / "cache"))
        patch.setattr("uvicorn.Server.run", answer_two_requests)
        for command in ("preprocess", "pretrain", "finetune", "score", "evaluate", "rank"):
            invoke(f"adrec {command} --config configs/sample/{command}.yaml")
        invoke("adrec serve --config configs/sample/serve.yaml")  # makes the store
        yield made


SLOW = {f"commands/{name}.md" for name in ("audit", "distill", "explain", "export", "pretrain-graph", "tune")} | {
    "how-to/privacy.md"
}
"""Most have their commands on other pages too."""


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in PAGES])
def test_the_commands_run_as_printed(name, clone):
    prepare = PREPARATIONS.get(name)
    if prepare is not None:
        prepare(clone)
    for line in command_lines(PAGES[name]):
        invoke(line)


PYTHON = {name: python_blocks(page) for name, page in EVERY_PAGE.items() if name not in ELSEWHERE}
PYTHON = {name: blocks for name, blocks in PYTHON.items() if blocks and name != "how-to/existing-service.md"}


@pytest.mark.parametrize("name", PYTHON)
def test_the_python_runs_as_printed(name, clone, monkeypatch):
    """With what a page takes for granted: frames, tables, arrays, a trained bundle."""
    _own_bundle(clone)
    for command, base in (("preprocess", "sample/preprocess"), ("finetune", "sample/finetune")):
        config = (clone / f"configs/{base}.yaml").read_text(encoding="utf-8").replace("runs/sample/", "runs/python/")
        config = config.replace("runs/python/encoder", "runs/sample/encoder")
        (clone / "configs/mine").mkdir(exist_ok=True)
        (clone / f"configs/mine/{command}.yaml").write_text(config, encoding="utf-8")
    random = np.random.default_rng(0)
    rows = pq.read_table(clone / "new.parquet")
    names = {
        "frame": rows.slice(0, 20).to_pandas(),
        "impressions": rows,
        "ads": pq.read_table(clone / "data/sample/ads.parquet"),
        "users": pq.read_table(clone / "data/sample/users.parquet"),
        "logits": random.normal(size=400),
        "new_logits": random.normal(size=9),
        "labels": random.integers(0, 2, 400),
        "request": np.arange(400) // 4,
    }
    for block in PYTHON[name]:
        exec(block.replace("training__epochs=4", "training__epochs=1, seeds=1, ensemble=False"), names)


def _own_files(root: Path) -> None:
    """`adrec init` begins anew."""
    shutil.rmtree(root / "configs/mine", ignore_errors=True)
    shutil.rmtree(root / "runs/mine", ignore_errors=True)


def _own_bundle(root: Path) -> None:
    (root / "runs/mine").mkdir(parents=True, exist_ok=True)
    if not (root / "runs/mine/bundle").exists():
        shutil.copytree(root / "runs/sample/bundle", root / "runs/mine/bundle")
        shutil.copytree(root / "runs/sample/prepared", root / "runs/mine/prepared")
    rows = pq.read_table(root / "data/sample/impressions").slice(0, 200).drop_columns(["click", "conversion", "converted_at"])
    pq.write_table(rows, root / "new.parquet")
    frame = rows.to_pandas()
    frame.to_csv(root / "new.csv", index=False)
    frame.to_json(root / "new.jsonl", orient="records", lines=True, date_format="iso")


def _runs(root: Path) -> None:
    for name in ("a", "b"):
        (root / "runs" / name).mkdir()
        shutil.copy(root / "runs/sample/scored.parquet", root / "runs" / name)
    shutil.copy(root / "runs/sample/ranked.parquet", root / "runs/a")
    shutil.copytree(root / "runs/sample/prepared", root / "runs/a/prepared")


def _importance(root: Path) -> None:
    """Nothing to prepare but what an earlier page may have left."""
    for name in ("why", "overall"):
        shutil.rmtree(root / "runs/sample" / name, ignore_errors=True)


def _clicks_alone(root: Path) -> None:
    invoke("adrec init --output configs/alone purchases.csv products.csv")


def _linked(root: Path) -> None:
    """A prepared folder of a sample with links."""
    for line in command_lines(EVERY_PAGE["data/graph.md"])[:2]:
        invoke(line.replace("runs/makers", "runs/graph"))


def _mind(root: Path) -> None:
    invoke("adrec preprocess --config configs/mind/preprocess.yaml")
    invoke("adrec finetune --config configs/mind/finetune.yaml --set text.reference=runs/sample/encoder")


def _days(root: Path) -> None:
    """A log that grows by a file a day, and a registry after two of them."""
    if (root / "daily.yaml").exists():
        return
    world = DailyWorld(root, impressions=4000, daily={"registry": "runs/registry", "gate": {"least": {"auc": -1.0}}})
    for days in (6, 1):
        world.arrive(days)
        invoke("adrec daily --config daily.yaml")
        if days == 6:
            shutil.copytree(root / "prepared", root / "runs/old/prepared")
    shutil.copytree(root / "prepared", root / "runs/new/prepared")
    shutil.copytree(root / "runs/registry", root / "runs/sample/registry", symlinks=True)
    for name, rows in zip(("yesterday", "today"), world.days[5:7], strict=True):
        pq.write_table(rows, root / f"{name}.parquet")


def _forgetful(root: Path) -> None:
    """A preprocess config that remembers who is forgotten."""
    sample = yaml.safe_load((root / "configs/sample/preprocess.yaml").read_text(encoding="utf-8"))
    own = {**sample, "output": "../../runs/forgetful", "privacy": {"forgotten": "forgotten.txt"}}
    (root / "configs/mine").mkdir(exist_ok=True)
    (root / "configs/mine/preprocess.yaml").write_text(yaml.safe_dump(own), encoding="utf-8")


def _other_run(root: Path) -> None:
    (root / "runs/other").mkdir()
    shutil.copy(root / "runs/sample/scored.parquet", root / "runs/other")


def _store(root: Path) -> None:
    shutil.copy(root / "runs/sample/store.sqlite", root / "adrec-store.sqlite")


def _log_as_csv(root: Path) -> None:
    _own_files(root)
    pyarrow.csv.write_csv(pq.read_table(root / "clicks.parquet"), root / "logs.csv")


def _no_key(root: Path) -> None:
    for key in root.glob("release.key*"):
        key.unlink()


PREPARATIONS = {
    "README.md": _own_files,
    "README.zh-CN.md": _own_files,
    "commands/daily.md": _days,
    "commands/distill.md": _mind,
    "commands/evaluate.md": _other_run,
    "commands/events.md": _store,
    "commands/forget.md": _forgetful,
    "commands/init.md": _log_as_csv,
    "commands/pretrain-graph.md": _linked,
    "commands/registry.md": _days,
    "how-to/daily.md": _days,
    "how-to/forget.md": _forgetful,
    "judging/evaluate.md": _runs,
    "using/bundle.md": _no_key,
    "using/explain.md": _importance,
    "data/implicit.md": _clicks_alone,
    "training/pretrain.md": _mind,
    "using/score.md": _own_bundle,
}
