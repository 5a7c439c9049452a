"""Folders of another version: one line, and the command in it makes the folder again."""

import json
import shlex

import pytest
from raw_worlds import prepare, world
from typer.testing import CliRunner

from adrec.bundle import FORMAT_VERSION, open_bundle, save_bundle
from adrec.cli.app import app
from adrec.data.prepared import FORMAT, open_prepared
from adrec.errors import BundleError, DataError


def edited(file, **changes):
    """A manifest as an earlier version would have written it."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def told(error):
    (line,) = str(error.value).splitlines()
    return line


def test_the_command_that_is_named_makes_an_older_prepared_folder_again(tmp_path):
    folder = tmp_path / "with a blank"
    world(folder)
    prepared, _ = prepare(folder)
    edited(prepared.path / "manifest.json", format=FORMAT - 1)
    (prepared.path / "users.parquet").unlink()  # it need not have had the same files
    with pytest.raises(DataError) as fault:
        open_prepared(prepared.path)
    line = told(fault)
    refused, _, command = line.partition(" Make it again: ")
    assert refused == f"{prepared.path}: format {FORMAT - 1} is of an earlier adrec, this one reads {FORMAT}."
    name, *arguments = shlex.split(command.removeprefix("`").removesuffix("`."))
    assert name == "adrec"
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert open_prepared(prepared.path).manifest["format"] == FORMAT


def test_every_command_that_reads_it_says_the_same(tmp_path):
    world(tmp_path)
    prepared, _ = prepare(tmp_path)
    edited(prepared.path / "manifest.json", format=FORMAT - 1)
    for arguments in (
        ["inspect", str(prepared.path)],
        ["finetune", "--set", f"prepared={prepared.path}", "--set", f"output={tmp_path / 'b'}"],
    ):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 1
        output = " ".join(result.output.split())
        assert f"format {FORMAT - 1} is of an earlier adrec" in output
        assert "adrec preprocess --config" in output


def test_one_without_its_config(tmp_path):
    (tmp_path / "manifest.json").write_text('{"format": null}')
    with pytest.raises(DataError, match=r"Make it again: `adrec preprocess` with the config that made it\."):
        open_prepared(tmp_path)


def test_one_of_a_later_version(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({"format": FORMAT + 1}))
    with pytest.raises(DataError, match=f"format {FORMAT + 1} is of a later adrec, this one reads {FORMAT}. Update it"):
        open_prepared(tmp_path)


@pytest.mark.parametrize(
    ("facts", "again"),
    [
        ({}, "`adrec finetune --config {}/config.yaml`"),
        ({"distilled_from": "x"}, "`adrec distill` with the config that made it"),
    ],
)
def test_an_older_bundle(tmp_path, facts, again):
    path = tmp_path / "bundle"
    with save_bundle(path, seed=1, **facts) as folder:
        (folder / "config.yaml").write_text("seed: 1\n")
    edited(path / "bundle.json", format_version=FORMAT_VERSION - 1)
    with pytest.raises(BundleError) as fault:
        open_bundle(path)
    refused = f"{path}: format {FORMAT_VERSION - 1} is of an earlier adrec, this one reads {FORMAT_VERSION}."
    assert told(fault) == f"{refused} Make it again: {again.format(path)}."
