"""What the user sees: progress and notes on stderr, results (tables, or JSON for machines) on stdout.

Stages receive a `Terminal` and never print by themselves. Progress is drawn only on a real terminal, so a
pipe gets the result and nothing else.
"""

import contextlib
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any, Protocol, TypeVar

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from adrec.errors import visible
from adrec.ranks import is_first
from adrec.tables import fitted
from adrec.urls import shown

T = TypeVar("T")
Advance = Callable[..., None]


class StageResult(Protocol):
    """What every stage returns: plain data for `--json`, and tables for people."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-safe values."""

    def render(self) -> Iterable[RenderableType]:
        """What to draw on a terminal, in order."""


_UNLIMITED = 10_000
"""Columns of a pipe: whoever reads it gets whole tables."""


class _Bar(BarColumn):
    """A bar, where there is something to count."""

    def render(self, task: Task) -> ProgressBar | Text:  # type: ignore[override]
        return Text("") if task.fields["is_idle"] else super().render(task)


class _Count(ProgressColumn):
    """`1,200/5,603`; `1,200` where nobody knows of how many; nothing where nothing is counted."""

    def render(self, task: Task) -> Text:
        if task.total is None:
            return Text(f"{task.completed:,.0f}" if task.completed else "")
        return Text(f"{task.completed:,.0f}/{task.total:,.0f}")


class _Rate(ProgressColumn):
    """`12,345 rows/s` lately, or nothing before the first step."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if not speed:
            return Text("")
        return Text(f"{speed:,.{0 if speed >= 10 else 1}f} {task.fields['unit']}/s", style="progress.data.speed")


class _Time(ProgressColumn):
    """Time left, at the mean pace since the bar began: pauses count, and what an earlier run had done does not.

    Where there is nothing to count, the time since the beginning.
    """

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        elapsed = task.elapsed or 0.0
        if task.total is None:
            return Text(str(timedelta(seconds=int(elapsed))), style="progress.elapsed")
        done = task.completed - task.fields["before"]
        if done <= 0:
            return Text("-:--:--", style="progress.remaining")
        left = max(task.total - task.completed, 0) * elapsed / done
        return Text(f"{timedelta(seconds=math.ceil(left))} left", style="progress.remaining")


class _PlainConsole(Console):
    """Words are words: `[red]` and `:smile:` in a name are no markup, and an escape in data never reaches the terminal."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def on_broken_pipe(self) -> None:
        """Whoever read the output has seen enough: the command line ends quietly."""
        raise BrokenPipeError

    def render_str(self, text: str, **options: Any) -> Text:
        """A string as text, its pictures of control characters in place before its width is measured."""
        return super().render_str(visible(shown(text)), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of a renderable; those of the terminal's own controls stay as they are."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))


class Terminal:
    """Progress, notes and warnings on stderr; results on stdout.

    `quiet` silences all but warnings and results; `json_output` prints results as one JSON object.
    """

    def __init__(self, *, quiet: bool = False, json_output: bool = False) -> None:
        # A helper process of a distributed run: the first one speaks for all.
        self.is_silent = not is_first()
        self.quiet = quiet or self.is_silent
        self.json_output = json_output
        is_pipe = not sys.stdout.isatty()
        width = _UNLIMITED if is_pipe and not os.environ.get("COLUMNS") else None
        self._out = _PlainConsole(file=sys.stdout, soft_wrap=is_pipe, width=width)
        self._err = _PlainConsole(file=sys.stderr, stderr=True)
        self._live: Progress | None = None
        self._idle: TaskID | None = None
        self._bars = 0
        self._warned: set[str] = set()

    @property
    def shows_progress(self) -> bool:
        """True where bars are drawn: a real terminal on stderr, and not quiet."""
        return self._err.is_terminal and not self.quiet

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """A spinner and the time from here on, wherever no bar is drawn: loading libraries takes seconds too."""
        if not self.shows_progress:
            yield
            return
        self._live = self._new_live()
        self._live.start()
        self._idle = self._add("starting", None, "", 0, is_idle=True)
        try:
            yield
        finally:
            self.rest()

    def rest(self) -> None:
        """No spinner and no bar from here on: the command has ended, or runs until it is stopped."""
        if self._live is not None:
            self._live.stop()
        self._live = self._idle = None

    @contextlib.contextmanager
    def progress(
        self, description: str, total: float | None = None, *, unit: str = "rows", done: float = 0
    ) -> Iterator[Advance]:
        """Show a bar while the block runs. Yields `advance(steps=1, **, note="")`.

        `total` None draws a spinner; `done` is what an earlier run had done. Bars may be nested.
        """
        if not self.shows_progress:
            yield lambda steps=1, note="": None
            return
        owner = self._live is None
        live = self._live = self._live or self._new_live()
        if owner:
            live.start()
        task = self._add(description, total, unit, done)
        self._bars += 1
        if self._idle is not None:
            live.update(self._idle, visible=False)

        def advance(steps: float = 1, note: str | None = None) -> None:
            live.update(task, advance=steps)
            if note is not None:
                live.update(task, note=note)

        try:
            yield advance
        finally:
            live.remove_task(task)
            self._bars -= 1
            if owner:
                self.rest()
            elif self._idle is not None and not self._bars:
                live.update(self._idle, visible=True, description="working")

    def note(self, message: str) -> None:
        """One line for people; silent when quiet or in a pipe."""
        if self.shows_progress:
            self._err.print(message, style="dim")

    def tell(self, message: str) -> None:
        """One line for people and for logs, piped or not; silent when quiet."""
        if not self.quiet:
            self._err.print(message, highlight=False, soft_wrap=True)

    def warn(self, message: str) -> None:
        """One line that must be seen, piped or not; once, however often it is said."""
        if not self.is_silent and message not in self._warned:
            self._warned.add(message)
            self._err.print(f"warning: {message}", style="yellow", highlight=False, soft_wrap=True)

    def leave_stdout(self) -> None:
        """Show the result on stderr: stdout carries rows."""
        self._out = self._err

    def show(self, result: StageResult) -> None:
        """Print a stage's result on stdout, as JSON or as tables."""
        self.rest()
        if self.json_output:
            is_unicode = (getattr(self._out.file, "encoding", None) or "utf-8").lower().startswith("utf")
            text = shown(json.dumps(_finite(result.as_dict()), ensure_ascii=not is_unicode, indent=2))
            # JSON leaves these as they are, and they would act on a terminal or not go out at all.
            text = re.sub("[\x7f-\x9f\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)
            self._out.file.write(text + "\n")
            return
        for part in result.render():
            self._out.print(fitted(part, self._out) if isinstance(part, Table) else part)

    def _new_live(self) -> Progress:
        columns = (
            SpinnerColumn(), TextColumn("{task.description}", markup=False), _Bar(), _Count(), _Rate(), _Time(),
            TextColumn("{task.fields[note]}", markup=False),
        )  # fmt: skip
        return Progress(*columns, console=self._err, transient=True, redirect_stdout=False)

    def _add(self, description: str, total: float | None, unit: str, done: float, *, is_idle: bool = False) -> TaskID:
        assert self._live is not None
        fields: dict[str, Any] = {"unit": unit, "note": "", "before": done, "is_idle": is_idle}
        return self._live.add_task(description, total=total, completed=int(done), **fields)


def _finite(value: Any) -> Any:
    """JSON has no NaN or infinity: they become null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
