"""The command line as a user meets it: quick help, clean pipes, exit codes 0, 1 and 2, one line an error."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from adrec.data.disk.lock import output_lock

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "pytorch_lightning", "lightning", "sklearn", "duckdb", "pyarrow", "pandas", "lightgbm")


def adrec(*arguments: str, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "80", "NO_COLOR": "1", "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run(
        [sys.executable, "-m", "adrec", *arguments], capture_output=True, text=True, cwd=cwd, env=environment, timeout=120
    )


def commands() -> list[str]:
    from adrec.commands import COMMANDS

    return [name for command in COMMANDS for name in (command.name, command.alias) if name]


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], [], ["finetune", "--help"], ["sample", "--help"]])
def test_help_and_version_import_nothing_heavy(arguments):
    program = (
        "import sys\n"
        "from adrec.cli.app import main\n"
        f"sys.argv = ['adrec', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print('loaded:', [name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.rstrip().endswith("loaded: []"), done.stdout[-300:]


def test_version():
    from adrec import __version__

    done = adrec("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"adrec {__version__}\n", "")


def test_help_lists_every_command_under_its_panel():
    done = adrec("--help")
    assert done.returncode == 0 and done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0] == "Usage: adrec [OPTIONS] COMMAND [ARGS]..."
    for name in commands():
        assert any(line.startswith(f"  {name} ") for line in lines), name
    for panel in ("Prepare:", "Train:", "System:", "Options:"):
        assert panel in lines
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in done.stdout


def test_no_arguments_print_the_help_and_exit_2():
    done = adrec()
    assert done.returncode == 2
    assert done.stdout == adrec("--help").stdout


@pytest.mark.parametrize("name", commands())
def test_every_command_says_what_it_reads_and_writes_and_gives_an_example(name):
    done = adrec(name, "--help")
    assert done.returncode == 0
    text = " ".join(done.stdout.split())
    assert "Example: adrec" in text or name == "pretrain"
    if name != "pretrain":
        assert "Read" in text and "rite" in text


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["fly"], "No such command 'fly'"),
        (["preproces"], "Did you mean 'preprocess'"),
        (["sample", "--nope"], "No such option"),
        (["sample", "--impressions", "many"], "error: Invalid value for '--impressions'"),
        (["config", "schema", "fly"], "'fly' has no config"),
    ],
)
def test_wrong_usage_exits_2_and_prints_nothing_on_stdout(arguments, part):
    done = adrec(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert part in done.stderr


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["preprocess", "--config", "none.yaml"], ["none.yaml", "no such config file", "adrec init"]),
        (["sample", "--seed", "3"], ["--set: output: required and missing"]),
        (["sample", "--out", "x", "--set", "impresions=3"], ["impresions: unknown key. Did you mean 'impressions'?"]),
        (["sample", "--out", "x", "--set", "impressions=lots"], ["impressions", "found 'lots'"]),
        (["sample", "--out", "x", "--impressions", "0"], ["impressions", "greater than or equal to 1"]),
        (["sample", "--out", "file/x"], ["a file stands where a folder is needed"]),
    ],
)
def test_bad_input_exits_1_with_lines_that_begin_with_error(tmp_path, arguments, parts):
    (tmp_path / "file").write_text("in the way")
    done = adrec(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert all(line.startswith("error: ") for line in done.stderr.splitlines()), done.stderr
    for part in parts:
        assert part in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_read_only_folder_is_one_line(tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    if os.access(closed, os.W_OK):
        pytest.skip("this user may write anywhere")
    done = adrec("sample", "--out", str(closed / "x"))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "cannot be written" in done.stderr


def test_piped_output_is_the_result_and_nothing_else(tmp_path):
    done = adrec("sample", "--out", str(tmp_path / "x"), "--impressions", "700", "--seed", "3", "--json")
    assert done.returncode == 0 and done.stderr == ""
    result = json.loads(done.stdout)
    assert result["impressions"] == 700
    assert (tmp_path / "x" / "config.yaml").exists()


def test_golden_table(tmp_path):
    done = adrec("sample", "--out", "x", "--impressions", "700", "--seed", "3", cwd=tmp_path)
    assert done.stderr == ""
    title, *rows = done.stdout.splitlines()
    assert title.startswith("Sample written to ")
    assert rows[0].startswith("┌") and rows[-1].startswith("└")
    cells = [[cell.strip() for cell in row.strip("│").split("│")] for row in rows[1:-1]]
    assert [name for name, _ in cells] == [
        "ads", "users", "requests", "impressions", "clicks", "conversions", "click rate", "AUC of the true click probability",
    ]  # fmt: skip
    assert dict(cells)["impressions"] == "700"
    assert "\x1b" not in done.stdout


def test_command_line_options_win_over_set_and_file(tmp_path):
    (tmp_path / "sample.yaml").write_text("output: from_file\nimpressions: 100\nseed: 1\n")
    done = adrec(
        "sample", "--config", "sample.yaml", "--set", "impressions=200", "--impressions", "300", "--json", cwd=tmp_path
    )
    result = json.loads(done.stdout)
    assert result["impressions"] == 300
    assert result["output"] == str(tmp_path / "from_file")


def test_doctor_names_python_packages_and_extras():
    done = adrec("doctor", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["machine"]["Python"].startswith(f"{sys.version_info[0]}.{sys.version_info[1]}")
    assert {"torch", "transformers", "pydantic"} <= {package["name"] for package in found["packages"]}
    assert "serve" in found["extras"]


def test_config_schema_and_show_can_be_piped(tmp_path):
    schema = json.loads(adrec("config", "schema", "sample").stdout)
    assert schema["properties"]["impressions"]["minimum"] == 1
    shown = adrec("config", "show", "sample", "--set", "output=x", cwd=tmp_path)
    (tmp_path / "sample.yaml").write_text(shown.stdout)
    again = adrec("config", "show", "sample", "--config", "sample.yaml", cwd=tmp_path)
    assert again.stdout == shown.stdout


def test_a_bug_of_ours_is_one_line_and_a_log(monkeypatch, capsys):
    import typer

    from adrec.cli.options import faults_shown
    from adrec.terminal import Terminal

    with pytest.raises(typer.Exit) as caught, faults_shown(Terminal()):
        raise RuntimeError("boom")
    assert caught.value.exit_code == 1
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "RuntimeError: boom" in line
    log = Path(line.split("Please report ")[1].strip().rstrip("."))
    assert "Traceback" in log.read_text()
    log.unlink()


def test_interrupt_exits_130(capsys):
    import typer

    from adrec.cli.options import faults_shown
    from adrec.terminal import Terminal

    with pytest.raises(typer.Exit) as caught, faults_shown(Terminal()):
        raise KeyboardInterrupt
    assert caught.value.exit_code == 130
    assert "earlier output is untouched" in capsys.readouterr().err


def test_two_commands_do_not_write_one_output(tmp_path):
    held = tmp_path / "out"
    with output_lock(held):
        second = adrec("sample", "--out", str(held), "--impressions", "3000")
        assert second.returncode == 1
        assert second.stderr.startswith(f"error: {held}: another adrec command is writing there")
        assert len(second.stderr.splitlines()) == 1 and not held.exists()
        assert adrec("sample", "--out", str(tmp_path / "other"), "--impressions", "3000").returncode == 0
    assert adrec("sample", "--out", str(held), "--impressions", "3000").returncode == 0


def test_what_needs_no_model_loads_no_torch():
    program = (
        "import sys, adrec.stages.storage, adrec.stages.data.preprocess, adrec.stages.evaluation.evaluate\n"
        "print('loaded:', [name for name in ('torch', 'transformers', 'lightning') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.rstrip().endswith("loaded: []"), done.stdout[-300:] + done.stderr[-300:]
