"""Every config that is shipped validates, every command's schema is written out, and one table lists the commands."""

import importlib
import pkgutil
import re
from pathlib import Path

import pytest
from pydantic import create_model

import adrec.config
from adrec.commands import COMMANDS
from adrec.config.base import Config, StageConfig, load_config, save_config
from adrec.config.commands import command_of, config_model, config_models
from adrec.data.disk import outputs
from adrec.data.disk.outputs import OutputKind
from adrec.errors import UsageError
from adrec.stages import config_schema

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "configs").rglob("*.yaml"))


def named_by(file: Path) -> str:
    """`finetune-mmoe.yaml` and `finetune_mmoe.yaml` are configs of finetune."""
    stem = file.stem.replace("_", "-")
    fitting = [
        name
        for name in [*config_models(), *(command.name for command in COMMANDS)]
        if stem == name or stem.startswith(f"{name}-")
    ]
    assert fitting, f"{file}: its name must begin with a command"
    return max(fitting, key=len)


@pytest.mark.parametrize("file", FILES, ids=[str(file.relative_to(ROOT)) for file in FILES])
def test_shipped_configs_validate_and_survive_saving(file, tmp_path):
    model = config_model(named_by(file))
    config = load_config(file, model)
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml", model) == config


@pytest.mark.parametrize("file", FILES, ids=[str(file.relative_to(ROOT)) for file in FILES])
def test_shipped_configs_name_no_absolute_path(file):
    assert not re.search(r"(?m)[:\s\[]/(home|root|work|tmp|Users)/", file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("command", config_models())
def test_schema_describes_every_key(command):
    document = config_schema.schema(command).as_dict()
    assert document["additionalProperties"] is False
    assert set(document["properties"]) == set(config_model(command).model_fields)
    for name, entry in document["properties"].items():
        described = "description" in entry or "$ref" in entry or "discriminator" in entry
        assert described, f"{command}: {name} has no docstring under it"


def test_unknown_command_lists_the_known_ones():
    with pytest.raises(UsageError, match=r"'fly' has no config\. Commands with one: .*sample"):
        config_model("fly")


def test_the_table_of_commands_and_the_configs_tell_the_same_story():
    """Every config class that is no base of others is one command's, whose stage can be run and whose options are settings."""
    for command in COMMANDS:
        model = config_model(command.name)
        assert callable(importlib.import_module(f"adrec.stages.{command.stage}").run)
        assert command_of(model) == command.key and config_models()[command.key] is model
        named = [option.field for option in command.own_options]
        named += [entry[0] for entry in (command.writes, command.or_writes) if entry is not None]
        named += [command.argument] if command.argument is not None else []
        assert set(named) <= model.model_fields.keys(), command.name
        kinds = [entry[1] for entry in (command.writes, command.or_writes) if entry is not None]
        assert all(isinstance(getattr(outputs, kind), OutputKind) for kind in kinds)
    known = {*config_models().values()}

    def leaves(model):
        return {leaf for part in model.__subclasses__() for leaf in leaves(part)} or {model}

    for module in pkgutil.walk_packages(adrec.config.__path__, "adrec.config."):
        importlib.import_module(module.name)
    shipped = {model for model in leaves(StageConfig) if model.__module__.startswith("adrec.config.")}
    assert shipped == known


def test_show_prints_defaults_and_absolute_paths():
    document = config_schema.show("sample", None, ["output=/x", "impressions=5"])
    values = {"seed": 42, "output": "/x", "impressions": 5, "pictures": 0.0, "sounds": 0.0}
    assert document.as_dict() == values | {"conversion_delay": 1.0, "conversion_delay_by_price": 0.0, "graph": 0.0}
    assert "impressions: 5" in document.text


@pytest.mark.parametrize("command", config_models())
def test_every_path_of_a_command_may_be_overridden_from_the_working_folder(command, tmp_path, monkeypatch):
    """Each path by itself; what else the command then still misses is no matter."""
    model = config_model(command)
    paths = [name for name, field in model.model_fields.items() if "_anchored" in str(field.metadata) + str(field.annotation)]
    assert paths or not any("Path" in str(field.annotation) for field in model.model_fields.values())
    monkeypatch.chdir(tmp_path)
    for name in paths:
        field = model.model_fields[name]
        probe = create_model("Probe", __base__=Config, **{name: (field.annotation, field)})
        (tmp_path / "configs").mkdir(exist_ok=True)
        (tmp_path / "configs" / "x.yaml").write_text("{}")
        annotation = str(field.annotation)
        form = "[runs/a, runs/b]" if "list" in annotation else "{x: runs/a}" if "dict" in annotation else "runs/a"
        value = getattr(load_config(tmp_path / "configs" / "x.yaml", probe, [f"{name}={form}"]), name)
        first = next(iter(value.values() if isinstance(value, dict) else value)) if isinstance(value, dict | list) else value
        assert str(first) == str(tmp_path / "runs/a"), name
