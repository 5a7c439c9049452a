"""Names out of data are words: no markup of theirs is obeyed, and no escape of theirs reaches the terminal."""

import io
import json
import sys

import pytest
import typer
from rich.table import Table
from rich.text import Text

from adrec.cli.options import faults_shown
from adrec.errors import DataError, visible
from adrec.terminal import Terminal

NASTY = [
    "[red]",
    "[/]",
    "[/red]x",
    "[bold",
    ":smile:",
    "[link=http://x]y[/link]",
    "a\x1b[31mb",
    "a\x9b31mb",
    "\x01bell\x7f",
    "\\[red]",
]


class Screen(io.StringIO):
    def isatty(self):
        return True


class Result:
    def as_dict(self):
        return {name: name for name in NASTY}

    def render(self):
        for name in NASTY:
            table = Table(f"head {name}", title=f"title {name}", caption=f"caption {name}")
            table.add_row(f"cell {name}")
            table.add_row(Text(f"text {name}"))
            yield table
            yield f"line {name}"


def acts(text):
    """Escapes that our own drawing does not use."""
    return any(character in text for character in ("\x1b[31m", "\x9b", "\x01", "\x7f"))


@pytest.mark.parametrize("kind", ["pipe", "terminal"])
def test_tables_lines_notes_warnings_and_bars(kind, monkeypatch):
    out, err = (io.StringIO(), io.StringIO()) if kind == "pipe" else (Screen(), Screen())
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm-256color")
    terminal = Terminal()
    terminal.show(Result())
    for name in NASTY:
        terminal.warn(f"warned {name}")
        terminal.note(f"noted {name}")
        with terminal.progress(f"doing {name}", 2) as advance:
            advance(1, note=f"bar {name}")
    plain = Text.from_ansi(out.getvalue()).plain if kind == "terminal" else out.getvalue()
    for name in NASTY:
        for where in ("head", "title", "caption", "cell", "text", "line"):
            assert f"{where} {visible(name)}" in plain, (where, name)
        assert f"warned {visible(name)}" in Text.from_ansi(err.getvalue()).plain
    assert not acts(out.getvalue())
    assert not acts(err.getvalue())


def test_json_is_whole_and_does_not_act(capsys):
    Terminal(json_output=True).show(Result())
    text = capsys.readouterr().out
    assert json.loads(text) == Result().as_dict()
    assert not acts(text)
    assert "\x1b" not in text


def test_errors(capsys):
    for name in NASTY:
        with pytest.raises(typer.Exit), faults_shown(Terminal()):
            raise DataError(f"log.csv: column '{name}' is missing.")
        shown = capsys.readouterr().err
        assert shown == f"error: log.csv: column '{visible(name)}' is missing.\n"
        assert not acts(shown)


def test_a_fault_of_the_system_is_one_line(capsys):
    import errno

    with pytest.raises(typer.Exit) as caught, faults_shown(Terminal()):
        raise OSError(errno.ENAMETOOLONG, "File name too long", "x" * 10)
    assert caught.value.exit_code == 1
    assert capsys.readouterr().err == "error: xxxxxxxxxx: File name too long.\n"
