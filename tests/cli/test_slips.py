"""Slips of a first day: nothing given, a config in the wrong place, of another command, a misspelt value, a port in use."""

import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml
from test_command_line import ROOT, adrec, commands

from adrec.cli.app import app
from adrec.commands import command_named
from adrec.config.base import load_config
from adrec.config.commands import config_model, config_models
from adrec.errors import ConfigError

SAMPLE = sorted((ROOT / "configs" / "sample").glob("*.yaml"))
CLICK = typer.main.get_command(app)


def options_of(name):
    return {option for parameter in CLICK.get_command(None, name).params for option in parameter.opts}


@pytest.mark.parametrize("name", [name for name in commands() if name != "doctor"])
def test_nothing_given_is_one_line_that_names_what_is_needed(name, tmp_path):
    done = adrec(name, cwd=tmp_path)
    required = [key for key, field in config_model(name).model_fields.items() if field.is_required()]
    assert done.returncode == (2 if required else 1)
    assert done.stdout == "" and done.stderr.count("\n") == 1 and done.stderr.startswith("error: ")
    assert all(key in done.stderr for key in required)
    if required:
        assert f"See 'adrec {command_named(name).key} --help'" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [name for name in commands() if name != "doctor"])
def test_a_config_given_without_its_option(name, tmp_path):
    (tmp_path / "mine.yaml").write_text("seed: 3\n")
    done = adrec(name, "mine.yaml", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"adrec {name} --config mine.yaml" in done.stderr


@pytest.mark.parametrize("path", SAMPLE, ids=lambda path: path.stem)
def test_the_config_of_another_command_is_one_line(path):
    own = command_named(path.stem.removesuffix("-private")).key
    keys = set(yaml.safe_load(path.read_text()))
    load_config(path, config_model(own))
    refused = 0
    for name, model in config_models().items():
        if keys <= model.model_fields.keys():
            continue  # this command may well be meant
        with pytest.raises(ConfigError) as caught:
            load_config(path, model)
        (line,) = str(caught.value).splitlines()
        whose = re.search(r"a config of (.*), not of (.*)\. Run: adrec (\S+) --config", line)
        assert whose and own in whose[1].split(" or ") and whose[2] == name and whose[3] in whose[1]
        refused += 1
    assert refused > 10


@pytest.mark.parametrize(
    ("command", "setting", "near"),
    [
        ("finetune", "model.interaction=dnc", "dcn"),
        ("finetune", "loss.terms=[{kind: bcee}]", "bce"),
        ("finetune", "training.monitor=auk", "auc"),
        ("finetune", "device=cude", "cuda"),
        ("finetune", "ensemble=ture", "true"),
        ("finetune", "modle={width: 3}", "model"),
        ("preprocess", "source.format=tabels", "tables"),
        ("preprocess", "split.method=tmie", "time"),
        ("preprocess", "counters=[usaul]", "usual"),
        ("rank", "policy=defualt", "default"),
        ("rank", "policies.default.value.kind=revenu", "revenue"),
        ("score", "split=tset", "test"),
    ],
)
def test_a_misspelt_value_is_told_with_the_nearest_one(command, setting, near):
    path = ROOT / "configs" / "sample" / f"{command}.yaml"
    with pytest.raises(ConfigError) as caught:
        load_config(path, config_model(command), [setting])
    for line in str(caught.value).splitlines():
        assert f"Did you mean '{near}'?" in line
        assert line.count(f"'{setting.split('=')[1]}'") <= 1


def test_a_misspelt_file_and_a_folder(tmp_path):
    (tmp_path / "finetune.yaml").write_text("")
    with pytest.raises(ConfigError, match=r"no such config file\. Did you mean 'finetune\.yaml'\?"):
        load_config(tmp_path / "fintune.yaml", config_model("finetune"))
    with pytest.raises(ConfigError, match=r"is a folder\. Name one of its files: finetune\.yaml\."):
        load_config(tmp_path, config_model("finetune"))


@pytest.mark.parametrize("name", [name for name in commands() if name != "doctor"])
def test_shared_options_are_there_where_they_act_and_nowhere_else(name):
    fields, options = config_model(name).model_fields, options_of(name)
    for key in ("seed", "device", "output", "bundle", "trusted_keys"):
        option = "--trusted-key" if key == "trusted_keys" else f"--{key}"
        assert (key in fields) == (option in options), option
    assert {"--config", "--set", "--json", "--quiet"} <= options


@pytest.mark.parametrize("name", commands())
def test_help_prints_the_words_of_the_table_brackets_too(name):
    command = command_named(name)
    told = "".join(adrec(name, "--help", COLUMNS="500").stdout.split())
    text = f"The same as {command.name}." if name == command.alias else command.text
    assert "".join(text.split()) in told


def test_a_port_in_use_is_told_before_anything_is_loaded(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = adrec("serve", "--bundle", str(tmp_path / "none"), "--set", "prepared=none", "--port", str(port), cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: 127.0.0.1:{port}: cannot listen there (Address already in use).")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "asked", [["--output", "rows.parquet"], ["--keep-days", "3"], ["--erase-user", "u"], ["--backup", "b"]]
)
def test_events_never_makes_a_store(asked, tmp_path):
    done = adrec("events", "--store", "none.sqlite", *asked, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "none.sqlite: no such store" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_init_has_a_place_of_its_own(tmp_path):
    rows = "".join(f"u{n % 5},a{n % 7},{n % 2},word {n % 7}\n" for n in range(50))
    (tmp_path / "log.csv").write_text(f"user_id,ad_id,click,title\n{rows}")
    done = adrec("init", "log.csv", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "configs" / "mine" / "preprocess.yaml").exists()


def test_old_name_of_the_samples_folder(tmp_path):
    done = adrec("sample", "--out", "x", "--impressions", "500", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["output"] == str(tmp_path / "x")
    (tmp_path / "old.yaml").write_text("out: y\n")
    line = adrec("sample", "--config", "old.yaml", "--output", "z", cwd=tmp_path).stderr
    assert "out: no longer a key. It is called `output` here too." in line
    assert not Path(tmp_path / "z").exists()


def test_daily_makes_nothing_where_a_config_is_missing(tmp_path):
    settings = ["preprocess=a.yaml", "finetune=b.yaml", "registry=r"]
    done = adrec("daily", *(word for setting in settings for word in ("--set", setting)), cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "a.yaml: no such config file" in done.stderr
    assert not (tmp_path / "r").exists()


def test_a_fault_of_several_options_says_what_to_give():
    assert adrec("serve", "--bundle", "x").stderr == "error: give 'prepared' or 'ads'.\n"


@pytest.mark.parametrize("arguments", [["config", "schema", "finetune"], ["--help"], ["doctor"], ["doctor", "--json"]])
def test_a_reader_that_has_seen_enough_is_no_fault(arguments):
    """As `adrec ... | head -1` does, whose pipe is closed before all is written."""
    process = subprocess.Popen(
        [sys.executable, "-m", "adrec", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()
    told = process.stderr.read()
    assert process.wait(60) in (0, 1, 141)
    assert told == ""
