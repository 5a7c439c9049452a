"""`adrec daily`: a file a day, bundles judged beside the champion, and a kill at every step."""

import contextlib
import http.server
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from daily_world import DailyWorld
from safetensors.numpy import load_file
from worlds import make_world

from adrec.bundle import open_bundle
from adrec.config.base import load_config
from adrec.config.training.daily import DailyConfig, GateSettings, RegistryConfig
from adrec.config.training.finetune import FinetuneConfig
from adrec.errors import AdrecError, DataError, ResourceError
from adrec.stages.data import preprocess
from adrec.stages.evaluation import evaluate
from adrec.stages.inference import score
from adrec.stages.registry import daily, folder, show
from adrec.stages.registry.folder import Registry
from adrec.stages.registry.gate import Figure, judge, verdict
from adrec.stages.storage import run_guarded
from adrec.stages.training import finetune
from adrec.terminal import Terminal

QUIET = Terminal(quiet=True)
LENIENT = {"gate": {"least": {"auc": -1.0}}}


def _run(config, *overrides):
    return run_guarded(daily.run, load_config(config, DailyConfig, overrides), QUIET)


@pytest.fixture(scope="module")
def two_days(tmp_path_factory):
    """A registry after two days, both promoted."""
    world = DailyWorld(tmp_path_factory.mktemp("two"), daily=LENIENT)
    world.arrive(6)
    first = _run(world.config)
    world.arrive()
    return world, first, _run(world.config)


def test_a_day_goes_on_from_the_day_before(two_days):
    world, first, second = two_days
    assert (first.verdict, second.verdict, second.exit_code) == ("promoted", "promoted", 0)
    registry = Registry.open(world.registry)
    assert registry.champion == second.name != first.name
    assert (world.registry / "champion").resolve() == registry.bundle(second.name)
    old, new = (open_bundle(registry.bundle(name)) for name in (first.name, second.name))
    assert new.manifest["started_from"] == old.fingerprint
    assert new.manifest["learned_until"] - old.manifest["learned_until"] == pytest.approx(86_400e6, rel=0.1)
    records = registry.records()
    assert [record["started_from"] for record in records] == [None, first.name]
    assert records[1]["judged_beside"] == first.name and second.name.startswith("2026-03-07")
    assert {"auc", "log_loss"} <= {figure["metric"] for figure in second.figures}
    assert all(figure["gain"] is not None for figure in second.figures)
    assert "promoted" in next(iter(second.render()))


def test_the_same_files_again_train_nothing(two_days, monkeypatch):
    world, _, second = two_days
    monkeypatch.setattr(finetune, "run", None)
    again = _run(world.config)
    assert not again.is_new and again.name == second.name and again.exit_code == 0


def test_roll_back_and_promote_by_hand(two_days, tmp_path):
    world, first, second = two_days
    registry = tmp_path / "registry"
    shutil.copytree(world.registry, registry, symlinks=True)
    back = run_guarded(show.run, RegistryConfig(path=registry, roll_back=True), QUIET)
    assert back.champion == first.name and (registry / "champion").resolve().name == first.name
    assert _run(world.config, f"registry={registry}").champion == first.name, "what was rolled back stays so"
    with pytest.raises(DataError, match="no champion before"):
        run_guarded(show.run, RegistryConfig(path=registry, roll_back=True), QUIET)
    shown = run_guarded(show.run, RegistryConfig(path=registry, promote=second.name), QUIET)
    assert shown.champion == second.name and len(shown.events) == 4
    with pytest.raises(DataError, match="has no bundle 'nobody'"):
        run_guarded(show.run, RegistryConfig(path=registry, promote="nobody"), QUIET)
    with pytest.raises(AdrecError, match="no registry"):
        run_guarded(show.run, RegistryConfig(path=tmp_path / "nowhere"), QUIET)


def test_a_refused_day_has_an_exit_code_and_changes_nothing(two_days, tmp_path):
    world, _, second = two_days
    registry, log = tmp_path / "registry", tmp_path / "log"
    shutil.copytree(world.registry, registry, symlinks=True)
    unreachable = ["--set", f"registry={registry}", "--set", "gate={least: {auc: 0.9}}"]  # more than can be gained
    command = [sys.executable, "-m", "adrec", "daily", "--config", str(world.config), "--json", *unreachable]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    found = json.loads(done.stdout)
    assert found["verdict"] == "refused" and found["champion"] == second.name and "at least +0.9000 asked" in found["why"]
    assert Registry.open(registry).champion == second.name
    again = _run(world.config, *unreachable[1::2])
    assert again.exit_code == 3 and not again.is_new, "the same answer again"
    assert not log.exists()


def test_the_gate_knows_worse_from_better(tmp_path):
    bundles = {}
    for name, shuffled in (("good", False), ("bad", True)):
        world = make_world(tmp_path / name / "prepared", requests=1500, shuffle_labels=shuffled)
        config = FinetuneConfig(
            prepared=world.path,
            output=tmp_path / name / "bundle",
            model={"width": 16, "hidden": [16], "identities": ["ads"]},
            training={"epochs": 4, "batch_rows": 256, "learning_rate": 4e-3, "loggers": []},
            baselines={"names": []},
        )
        finetune.run(config, QUIET)
        bundles[name] = config.output
    settings = GateSettings(least={"auc": -0.002})
    for new, old, expected in (("bad", "good", False), ("good", "bad", True)):
        figures = judge(
            bundles[new],
            bundles[old],
            prepared=tmp_path / "good" / "prepared",
            folder=tmp_path / f"{new}-judged",
            settings=settings,
            report=False,
            seed=0,
            terminal=QUIET,
        )
        for refuse in ("worse", "surely_worse", "unsure"):
            assert verdict(figures, settings.model_copy(update={"refuse": refuse}))[0] is expected, (new, refuse)


@pytest.mark.parametrize(
    ("gain", "low", "high", "expected"),
    [
        (0.01, 0.005, 0.015, (True, True, True)),
        (0.0, -0.01, 0.01, (True, True, False)),
        (-0.005, -0.01, 0.001, (False, True, False)),
        (-0.02, -0.03, -0.01, (False, False, False)),
        (float("nan"), float("nan"), float("nan"), (False, False, False)),
        (0.01, float("nan"), float("nan"), (True, False, False)),
    ],
)
def test_what_each_kind_of_refusal_asks_for(gain, low, high, expected):
    figures = [Figure("auc", 0.7, 0.7 - gain, gain, low, high, -0.002), Figure("mrr", 0.5)]
    for refuse, passes in zip(("worse", "surely_worse", "unsure"), expected, strict=True):
        assert verdict(figures, GateSettings(least={"auc": -0.002}, refuse=refuse))[0] is passes
    assert verdict([Figure("mrr", 0.5)], GateSettings())[0] is False


def test_old_bundles_go_and_champions_stay(tmp_path):
    registry = Registry(tmp_path)
    registry.start()
    for number in range(6):
        name = f"b{number}"
        registry.bundle(name).mkdir(parents=True)
        with pytest.raises(DataError, match="has no bundle"):
            registry.promote(name, "x")
        (registry.bundle(name) / "bundle.json").write_text('{"format_version": 1, "files": {}}')
        registry.record(name, {})
    with contextlib.suppress(AdrecError):  # these bundles are of no version
        registry.promote("b0", "x")
    registry.events = [{"what": "promoted", "name": "b0", "at": "", "why": ""}]
    registry._save()
    assert registry.prune(2) == ["b1", "b2", "b3"]
    assert registry.has_bundle("b0") and registry.has_bundle("b4") and not registry.bundle("b1").exists()


def test_servers_are_told_and_a_deaf_one_is_named(two_days, monkeypatch):
    world, _, second = two_days
    asked = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append((self.path, self.headers["x-api-key"]))
            self.send_response(200 if len(asked) == 1 else 409)
            self.end_headers()
            self.wfile.write(b'{"detail": "no"}')

        def log_message(self, *words):
            pass

    monkeypatch.setenv("ADREC_API_KEY", "secret")
    server = http.server.HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        assert _run(world.config, f"reload=[{address}]").reloaded == [address]
        assert asked == [("/admin/reload", "secret")]
        with pytest.raises(ResourceError, match=f"did not load {second.name} .409: no"):
            _run(world.config, f"reload=[{address}]")
    finally:
        server.shutdown()


def test_a_split_without_a_test_part_is_told(tmp_path):
    world = DailyWorld(tmp_path, impressions=1500)
    text = (tmp_path / "preprocess.yaml").read_text().replace("method: rolling", "method: time\n  test_fraction: 0")
    (tmp_path / "preprocess.yaml").write_text(text)
    world.arrive(4)
    with pytest.raises(DataError, match="no test rows .*method: rolling"):
        _run(world.config)


# ------------------------------------------------------------------------------------------------------- kills


STEPS = [
    (preprocess, "run"),
    (finetune, "run"),
    (score, "run"),
    (evaluate, "run"),
    (folder.Registry, "record"),
    (folder.Registry, "_save"),
    (folder.Registry, "promote"),
    (folder.Registry, "prune"),
]


def _killed_after(config, step):
    """Run, and die where the step has just been done."""
    owner, name = STEPS[step]
    whole = getattr(owner, name)

    def dying(*arguments, **named):
        whole(*arguments, **named)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, dying)
    _run(config)


def test_killed_after_any_step_the_same_command_finishes(tmp_path):
    names = _made(tmp_path, "whole", "killed")
    worlds = {name: DailyWorld(tmp_path / name, impressions=3000, daily=LENIENT) for name in names}
    for world in worlds.values():
        world.arrive(5)
        _run(world.config)
        world.arrive()
    expected = _run(worlds["whole"].config)
    killed = worlds["killed"]
    shutil.copytree(killed.folder, tmp_path / "before", symlinks=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["adrec.stages.registry.daily"])
    for step in range(len(STEPS)):
        shutil.rmtree(killed.folder)
        shutil.copytree(tmp_path / "before", killed.folder, symlinks=True)
        process = context.Process(target=_killed_after, args=(killed.config, step))
        process.start()
        process.join(120)
        assert process.exitcode == -signal.SIGKILL, STEPS[step]
        found = _run(killed.config)
        assert (found.verdict, found.champion) == ("promoted", found.name)
        assert found.name[:10] == expected.name[:10]
        assert _figures(found) == _figures(expected), STEPS[step]
        registries = [Registry.open(world.registry) for world in worlds.values()]
        assert [len(registry.records()) for registry in registries] == [2, 2]
        weights = [load_file(registry.bundle(registry.champion) / "model.safetensors") for registry in registries]
        assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[0])
        assert [event["what"] for event in registries[1].events] == ["promoted", "promoted"]
        left = [path.name for path in killed.registry.rglob(".*")]
        assert not left, left


def _made(path, *names):
    for name in names:
        (path / name).mkdir()
    return names


def _figures(result):
    return [(figure["metric"], figure["new"], figure["gain"]) for figure in result.figures]
