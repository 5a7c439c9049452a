"""No command replaces what adrec did not write: the same refusals for every command, before it has read anything."""

import json
import os
import socket
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from raw_worlds import prepare, rows, tables, write
from typer.testing import CliRunner

from adrec.bundle import open_bundle, save_bundle
from adrec.cli.app import app
from adrec.commands import COMMANDS as TABLE
from adrec.commands import command_named
from adrec.config.commands import config_model, config_models
from adrec.stages.writing import kind_of as kind_written

# What each command needs to have a valid config; none of the inputs is there, so nothing can have been done before the refusal.
NEEDS = {
    "audit": {"finetune": "finetune.yaml"},
    "compare": {"runs": ["runs"]},
    "distill": {"prepared": "prep", "teacher": "./encoder"},
    "encode": {"bundle": "bundle", "prepared": "prep"},
    "evaluate": {"scored": "scored.parquet"},
    "daily": {"preprocess": "preprocess.yaml", "finetune": "finetune.yaml"},
    "events": {},
    "explain": {"bundle": "bundle", "prepared": "prep", "split": "test"},
    "export": {"bundle": "bundle", "prepared": "prep", "split": "test"},
    "federate": {"finetune": "finetune.yaml"},
    "finetune": {"prepared": "prep"},
    "init": {"data": ["log.csv"]},
    "inspect": {"path": "log.csv"},
    "preprocess": {"source": {"format": "tables", "impressions": {"files": "log.csv"}}},
    "pretrain-graph": {"prepared": "prep"},
    "pretrain-mlm": {"prepared": "prep"},
    "rank": {"bundle": "bundle", "prepared": "prep"},
    "sample": {},
    "score": {"bundle": "bundle", "prepared": "prep", "split": "test"},
    "serve": {"bundle": "bundle", "prepared": "prep"},
    "train-reranker": {"bundle": "bundle", "prepared": "prep", "reference": "./encoder"},
    "tune": {"base": "finetune.yaml", "space": {"training.learning_rate": {"low": 0.001, "high": 0.01}}},
}
READS_NOTHING = {"sample", "events"}
COMMANDS = sorted(NEEDS)


def entry(command):
    return command_named(command).writes


def kind_of(command):
    return kind_written(config_model(command).model_validate({**NEEDS[command], entry(command)[0]: "x"}))


FOLDERS = [command for command in COMMANDS if kind_of(command).is_folder]
FILES = [command for command in COMMANDS if not kind_of(command).is_folder]


def refused(command, output, folder, **more):
    """The one line of a refusal."""
    config = {**NEEDS[command], entry(command)[0]: str(output), **more}
    (folder / "conf").mkdir(exist_ok=True)
    (folder / "conf" / f"{command}.yaml").write_text(json.dumps(config))
    found = CliRunner().invoke(app, [command, "--config", str(folder / "conf" / f"{command}.yaml")])
    assert found.exit_code == 1, found.output
    lines = found.stderr.strip().splitlines()
    assert len(lines) == 1, found.output
    assert lines[0].startswith("error: ")
    assert "should not" not in lines[0]
    return lines[0]


def snapshot(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def test_every_command_that_writes_is_here():
    # `registry` only changes a registry that is there (stages/registry).
    writing = {command.name for command in TABLE if command.writes is not None}
    assert writing - {"registry"} == set(COMMANDS)
    # sign adds its signature to a bundle, and replaces nothing; forget has preprocess write, and takes rows out of tables.
    assert {command_named(name).key for name in (*writing, "doctor", "forget", "sign")} == set(config_models())


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_of_a_stranger_stays(command, tmp_path):
    theirs = tmp_path / "theirs"
    (theirs / "deep").mkdir(parents=True)
    (theirs / "deep" / "thesis.tex").write_text("years of work")
    (theirs / "manifest.json").write_text("{}")
    before = snapshot(theirs)
    assert "Name another output" in refused(command, theirs, tmp_path)
    assert snapshot(theirs) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["conf", "theirs"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_of_a_stranger_stays(command, tmp_path):
    theirs = tmp_path / "ideas.txt"
    theirs.write_text("buy low, sell high")
    assert "Name another output" in refused(command, theirs, tmp_path)
    assert theirs.read_text() == "buy low, sell high"


@pytest.mark.parametrize("command", FILES)
@pytest.mark.parametrize("name", ["theirs.parquet", "theirs.json", "theirs.html", "theirs.sqlite"])
def test_a_file_of_the_same_format_is_still_a_strangers(command, name, tmp_path):
    import sqlite3

    theirs = tmp_path / name
    if name.endswith("parquet"):
        pq.write_table(pa.table({"user_id": ["u"], "score": [0.5]}), theirs)
    elif name.endswith("json"):
        theirs.write_text('{"task": "dishes"}')
    elif name.endswith("html"):
        theirs.write_text("<!doctype html>\n<title>My page about adrec</title>")
    else:
        with sqlite3.connect(theirs) as database:
            database.execute("CREATE TABLE recipes (name TEXT)")
    before = theirs.read_bytes()
    refused(command, theirs, tmp_path)
    assert theirs.read_bytes() == before


@pytest.mark.parametrize("command", COMMANDS)
def test_devices_pipes_sockets_and_mounts(command, tmp_path):
    assert "a device" in refused(command, "/dev/null", tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "a device, pipe or socket" in refused(command, tmp_path / "pipe", tmp_path)
    with socket.socket(socket.AF_UNIX) as listening:
        os.chdir(tmp_path)
        listening.bind("socket")
        assert "a device, pipe or socket" in refused(command, tmp_path / "socket", tmp_path)
    assert "mount point" in refused(command, "/proc", tmp_path)
    assert Path("/dev/null").is_char_device()


@pytest.fixture(autouse=True)
def _back():
    here = Path.cwd()
    yield
    os.chdir(here)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_working_folder_its_parents_home_and_root(command, tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    assert "is the working folder" in refused(command, tmp_path / "a" / "b", tmp_path)
    assert "holds the working folder" in refused(command, tmp_path / "a", tmp_path)
    (tmp_path / "home" / "me").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home" / "me"))
    assert "is the home folder" in refused(command, tmp_path / "home" / "me", tmp_path)
    assert "holds the home folder" in refused(command, tmp_path / "home", tmp_path)
    refused(command, "/", tmp_path)


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in READS_NOTHING])
def test_an_input_and_a_folder_that_holds_one(command, tmp_path):
    named = {
        "compare": "runs",
        "evaluate": "scored",
        "init": "data",
        "inspect": "path",
        "tune": "base",
        "audit": "finetune",
        "federate": "finetune",
        "daily": "finetune",
    }.get(command, "prepared")
    read = tmp_path / "in" / "data.csv"
    read.parent.mkdir()
    read.write_text("user_id,ad_id\n")
    value = [str(read)] if named in ("runs", "data") else str(read)
    more = {named: value}
    if command == "preprocess":
        more = {"source": {"format": "tables", "impressions": {"files": str(read.parent / "*.csv")}}}
    assert "is read by this command" in refused(command, read, tmp_path, **more)
    if command in FOLDERS:
        assert "which this command reads" in refused(command, read.parent, tmp_path, **more)
    assert read.read_text() == "user_id,ad_id\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_links_are_followed_once_and_guarded_alike(command, tmp_path):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "thesis.tex").write_text("years of work")
    (tmp_path / "link").symlink_to("theirs")
    (tmp_path / "second").symlink_to("link")
    refused(command, tmp_path / "link", tmp_path)
    assert "a link to a link" in refused(command, tmp_path / "second", tmp_path)
    assert (tmp_path / "link").is_symlink()
    assert (theirs / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_name_too_long_is_told(command, tmp_path):
    assert "longer than 200 bytes" in refused(command, tmp_path / ("x" * 250), tmp_path)


def sample(*arguments):
    return CliRunner().invoke(app, ["sample", "--impressions", "3000", *map(str, arguments)])


def test_an_earlier_output_is_replaced_through_a_link_and_with_what_a_file_manager_left(tmp_path):
    assert sample("--out", tmp_path / "s").exit_code == 0
    (tmp_path / "s" / ".DS_Store").write_text("icons")
    (tmp_path / "link").symlink_to("s")
    assert sample("--out", tmp_path / "link", "--seed", "7").exit_code == 0
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "s" / ".DS_Store").read_text() == "icons"
    assert "seed: 7" in (tmp_path / "s" / "config.yaml").read_text()
    (tmp_path / "s" / "notes.md").write_text("what I saw")
    again = sample("--out", tmp_path / "s")
    assert again.exit_code == 1
    assert "holds notes.md, which adrec did not write" in again.stderr
    assert (tmp_path / "s" / "notes.md").read_text() == "what I saw"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "s"]


def test_a_sample_of_a_version_that_kept_no_config_is_replaced(tmp_path):
    assert sample("--out", tmp_path / "s").exit_code == 0
    (tmp_path / "s" / "config.yaml").unlink()
    assert sample("--out", tmp_path / "s").exit_code == 0


def test_tables_of_earlier_versions_are_known_by_their_columns(tmp_path):
    from adrec.data.disk.outputs import LISTS, SCORES, guard_output, marked
    from adrec.errors import ResourceError

    ids = {"user_id": ["u"], "ad_id": ["a"], "score": [0.5]}
    old_scores, old_lists = pa.table({**ids, "logit": [0.0]}), pa.table({**ids, "rank": [1], "reason": [""]})
    for table, kind in ((old_scores, SCORES), (old_lists, LISTS)):
        pq.write_table(table, tmp_path / "t.parquet")
        assert guard_output(tmp_path / "t.parquet", kind) == tmp_path / "t.parquet"
    other = old_scores.replace_schema_metadata(marked(old_scores.schema, "ranked").metadata)
    pq.write_table(other, tmp_path / "t.parquet")
    with pytest.raises(ResourceError, match="is not a table of scores"):
        guard_output(tmp_path / "t.parquet", SCORES)
    (tmp_path / "empty").touch()
    assert guard_output(tmp_path / "empty", SCORES)


STRAYS = (".DS_Store", "impressions/train/._part-00000.parquet", "impressions/Thumbs.db", "desktop.ini")


def test_what_a_file_manager_leaves_in_a_prepared_folder_rebuilds_nothing_and_stays(tmp_path):
    made = tables(3, requests=90)
    log = made.pop("impressions").sort_by("shown_at")
    for name, table in made.items():
        write(table, tmp_path / f"{name}.parquet")
    (tmp_path / "log").mkdir()
    write(log.slice(0, 100), tmp_path / "log" / "1.parquet")
    source = {
        "format": "tables",
        "ads": {"files": str(tmp_path / "ads.parquet")},
        "users": {"files": str(tmp_path / "users.parquet")},
        "impressions": {"files": str(tmp_path / "log")},
    }
    options = {"source": source, "split": {"method": "time", "valid_fraction": 0.2, "test_fraction": 0.2}}
    clean, _ = prepare(tmp_path, **options)
    before = rows(clean)
    for stray in STRAYS:
        (clean.path / stray).write_bytes(b"\0\0\0\1Bud1")
    again, result = prepare(tmp_path, **options)
    assert result.done == "unchanged"
    assert rows(again).equals(before)
    write(log.slice(100), tmp_path / "log" / "2.parquet")
    _, result = prepare(tmp_path, **options)
    assert result.done in ("appended", "built")
    assert all((clean.path / stray).read_bytes() == b"\0\0\0\1Bud1" for stray in STRAYS)
    assert not set(STRAYS) & set(result.manifest["files"])


def test_what_a_file_manager_leaves_in_a_bundle_stays(tmp_path):
    for text in ("one", "two"):
        with save_bundle(tmp_path / "bundle", seed=1) as folder:
            (folder / "config.yaml").write_text(text)
        (tmp_path / "bundle" / ".DS_Store").write_text("icons")
        assert list(open_bundle(tmp_path / "bundle").manifest["files"]) == ["config.yaml"]
    with save_bundle(tmp_path / "bundle", seed=1) as folder:
        (folder / "config.yaml").write_text("three")
    assert (tmp_path / "bundle" / ".DS_Store").read_text() == "icons"
