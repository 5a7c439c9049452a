"""A real server over the registry's champion: a promotion reaches it by one call, a roll-back too."""

import shutil

import pytest
from served import call, make_bundle, start

from adrec.bundle import open_bundle, save_bundle
from adrec.config.training.daily import RegistryConfig
from adrec.stages.registry import show
from adrec.stages.registry.folder import Registry
from adrec.stages.storage import run_guarded
from adrec.terminal import Terminal

pytest.importorskip("fastapi")


def test_a_server_follows_the_champion(tmp_path, monkeypatch):
    monkeypatch.setenv("ADREC_API_KEY", "secret")
    make_bundle(tmp_path)
    registry = Registry(tmp_path / "registry")
    registry.start()
    for name in ("one", "two"):
        with save_bundle(registry.bundle(name), **{"seed": 1, "data_fingerprint": name}) as made:
            shutil.copytree(tmp_path / "bundle", made, dirs_exist_ok=True, ignore=shutil.ignore_patterns("bundle.json"))
            (made / "metrics.json").write_text(f'{{"of": "{name}"}}\n')
    registry.promote("one", "by hand")
    marks = {name: open_bundle(registry.bundle(name)).fingerprint for name in ("one", "two")}
    key = {"x-api-key": "secret"}
    server, address = start(tmp_path, tmp_path / "store.sqlite", key, bundle=str(registry.path / "champion"))
    try:
        config = {"path": registry.path, "reload": [address]}
        for change, name in (({"promote": "two"}, "two"), ({"roll_back": True}, "one")):
            done = run_guarded(show.run, RegistryConfig(**config, **change), Terminal(quiet=True))
            assert done.champion == name and done.reloaded == [address]
            answer = call(address, "/admin/reload", {}, key)
            assert marks[name] in answer["detail"]
    finally:
        server.terminate()
        server.wait(30)
