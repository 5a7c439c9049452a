"""What the user sees: progress and notes on stderr, results (tables, or JSON for machines) on stdout.

Stages receive a `Terminal` and never print by themselves. Progress is drawn only on a real terminal, so a
pipe gets the result and nothing else.
"""

import contextlib
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.text import Text

from adrec.errors import visible
from adrec.urls import shown

T = TypeVar("T")
Advance = Callable[..., None]


class StageResult(Protocol):
    """What every stage returns: plain data for `--json`, and tables for people."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-safe values."""

    def render(self) -> Iterable[RenderableType]:
        """What to draw on a terminal, in order."""


class _RateColumn(ProgressColumn):
    """`12,345 rows/s`, or nothing before the first step."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        unit = task.fields.get("unit", "it")
        if not speed:
            return Text("", style="progress.data.speed")
        return Text(f"{speed:,.{0 if speed >= 10 else 1}f} {unit}/s", style="progress.data.speed")


class _PlainConsole(Console):
    """Words are words: `[red]` and `:smile:` in a name are no markup, and an escape in data never reaches the terminal."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

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
        self.quiet = quiet
        self.json_output = json_output
        self._out = _PlainConsole(file=sys.stdout, soft_wrap=not sys.stdout.isatty())
        self._err = _PlainConsole(file=sys.stderr, stderr=True)
        self._live: Progress | None = None

    @property
    def shows_progress(self) -> bool:
        """True where bars are drawn: a real terminal on stderr, and not quiet."""
        return self._err.is_terminal and not self.quiet

    @contextlib.contextmanager
    def progress(self, description: str, total: float | None = None, *, unit: str = "rows") -> Iterator[Advance]:
        """Show a bar while the block runs. Yields `advance(steps=1, **, note="")`.

        `total` None draws a spinner. Bars may be nested.
        """
        if not self.shows_progress:
            yield lambda steps=1, note="": None
            return
        owner = self._live is None
        live = self._live or Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f}" if total is not None else "{task.completed:,.0f}"),
            _RateColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=self._err,
            transient=True,
        )
        if owner:
            self._live = live
            live.start()
        task = live.add_task(description, total=total, unit=unit, note="")

        def advance(steps: float = 1, note: str | None = None) -> None:
            live.update(task, advance=steps)
            if note is not None:
                live.update(task, note=note)

        try:
            yield advance
        finally:
            live.remove_task(task)
            if owner:
                live.stop()
                self._live = None

    def note(self, message: str) -> None:
        """One line for people; silent when quiet or in a pipe."""
        if self.shows_progress:
            self._err.print(message, style="dim")

    def warn(self, message: str) -> None:
        """One line that must be seen, piped or not."""
        self._err.print(f"warning: {message}", style="yellow", highlight=False, soft_wrap=True)

    def leave_stdout(self) -> None:
        """Show the result on stderr: stdout carries rows."""
        self._out = self._err

    def show(self, result: StageResult) -> None:
        """Print a stage's result on stdout, as JSON or as tables."""
        if self.json_output:
            text = shown(json.dumps(_finite(result.as_dict()), ensure_ascii=False, indent=2))
            # JSON leaves these as they are, and they would act on a terminal or not go out at all.
            text = re.sub("[\x7f-\x9f\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)
            self._out.file.write(text + "\n")
            return
        for part in result.render():
            self._out.print(part)


def _finite(value: Any) -> Any:
    """JSON has no NaN or infinity: they become null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
