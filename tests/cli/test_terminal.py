"""Names out of data are words: no markup of theirs is obeyed, and no escape of theirs reaches the terminal."""

import io
import json
import sys

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from adrec.cli.options import faults_shown
from adrec.errors import DataError, visible
from adrec.tables import fitted
from adrec.terminal import Terminal, _Time

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


@given(
    width=st.integers(44, 120),
    columns=st.integers(2, 9),
    name=st.text("abcdefgh_", min_size=1, max_size=14),
    value=st.floats(0, 1e6, allow_nan=False),
)
def test_a_table_keeps_names_and_digits_and_names_the_columns_that_it_leaves_out(width, columns, name, value):
    table = Table(title="a title")
    table.add_column("run")
    for number in range(1, columns):
        table.add_column(f"measure {number}", justify="right")
    figure = f"{value:.4f} ±0.0123"
    table.add_row(name, *([figure] * (columns - 1)))
    out = io.StringIO()
    console = Console(file=out, width=width)
    console.print(fitted(table, console))
    text = out.getvalue()
    assert "…" not in text and name in text
    shown = text.count(figure)
    assert shown >= 1
    assert max(map(len, text.splitlines())) <= width
    left_out = " ".join(text.split()).partition("--json: ")[2]
    assert left_out == ", ".join(f"measure {number}" for number in range(shown + 1, columns))


def test_a_pipe_gets_every_column_and_columns_are_kept_where_they_are_asked_for(monkeypatch, capsys):
    class Wide:
        def as_dict(self):
            return {}

        def render(self):
            table = Table("run", *(f"measure {number}" for number in range(40)))
            table.add_row("a", *("0.1234" for _ in range(40)))
            yield table

    monkeypatch.delenv("COLUMNS", raising=False)
    Terminal().show(Wide())
    assert capsys.readouterr().out.count("0.1234") == 40
    monkeypatch.setenv("COLUMNS", "60")
    Terminal().show(Wide())
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines if line[0] in "┏┃┡│└") <= 60


def test_a_spinner_from_the_start_and_no_bar_after_the_end(monkeypatch):
    out, err = io.StringIO(), Screen()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    terminal = Terminal()
    with terminal.working():
        assert "starting" in err.getvalue()
        with terminal.progress("Counting", None), terminal.progress("of rows", 10, done=4) as advance:
            advance(2)
        terminal.show(Result())
        before = err.getvalue()
        terminal.tell("goes on")
        assert err.getvalue()[len(before) :].strip() == "goes on"


def test_time_left_is_at_the_pace_of_this_run(monkeypatch):
    """60 of 100 were done before; 10 more in 20 seconds leave 30, which take 60 seconds, however fast the last one was."""
    now = [0.0]
    live = Progress(_Time(), get_time=lambda: now[0], disable=True)
    task = live.add_task("x", total=100, completed=60, before=60, is_idle=False, unit="rows", note="")
    assert str(_Time().render(live.tasks[0])) == "-:--:--"
    now[0] = 20.0
    live.update(task, advance=10)
    assert str(_Time().render(live.tasks[0])) == "0:01:00 left"


def test_helpers_of_a_distributed_run_say_nothing(monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", "1")
    terminal = Terminal()
    terminal.warn("once is enough")
    terminal.tell("once is enough")
    with pytest.raises(typer.Exit), faults_shown(terminal):
        raise KeyboardInterrupt
    assert capsys.readouterr() == ("", "")


def test_json_for_a_pipe_of_another_encoding_is_whole(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="latin-1", errors="replace"))
    terminal = Terminal(json_output=True)

    class Chinese:
        def as_dict(self):
            return {"title": "春季特惠"}

    terminal.show(Chinese())
    sys.stdout.flush()
    assert json.loads(raw.getvalue()) == {"title": "春季特惠"}
