"""What a command on another machine has to say: lines of a file there, said again by the terminal that it was started from."""

import contextlib
import json
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from adrec.terminal import Advance, Terminal

_PAUSE_SECONDS = 0.5
"""Between two words of a bar."""


class Relay(Terminal):
    """Writes what it is told to a file, a JSON list a line: what was called, and with what."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._lines = open(file, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 (as long as the process)
        self._made = 0

    @property
    def shows_progress(self) -> bool:
        """Whether the first terminal draws bars is not known here: it is told of them."""
        return not self.is_silent

    @contextlib.contextmanager
    def progress(
        self, description: str, total: float | None = None, *, unit: str = "rows", done: float = 0
    ) -> Iterator[Advance]:
        """As on a terminal; steps travel twice a second."""
        if self.is_silent:
            yield lambda steps=1, note="": None
            return
        self._made += 1
        bar, said_at = self._made, time.monotonic()
        unsaid = 0.0
        last_note: str | None = None
        self._say("open", bar, description, total, unit, done)

        def say() -> None:
            nonlocal unsaid, last_note
            self._say("advance", bar, unsaid, last_note)
            unsaid, last_note = 0.0, None

        def advance(steps: float = 1, note: str | None = None) -> None:
            nonlocal unsaid, last_note, said_at
            unsaid, last_note = unsaid + steps, note if note is not None else last_note
            if time.monotonic() - said_at >= _PAUSE_SECONDS:
                said_at = time.monotonic()
                say()

        try:
            yield advance
        finally:
            say()
            self._say("close", bar)

    def note(self, message: str) -> None:
        """One line for people."""
        self._say("note", message)

    def tell(self, message: str) -> None:
        """One line for people and for logs."""
        self._say("tell", message)

    def warn(self, message: str) -> None:
        """One line that must be seen."""
        self._say("warn", message)

    def _say(self, *words: Any) -> None:
        if not self.is_silent:
            self._lines.write(json.dumps(words, default=float) + "\n")


class Replay:
    """Says the lines of a Relay. Use as a context: bars that are open at its end are closed."""

    def __init__(self, terminal: Terminal) -> None:
        self.terminal = terminal
        self._bars: dict[int, tuple[ExitStack, Advance]] = {}

    def __enter__(self) -> "Replay":
        return self

    def __exit__(self, *fault: Any) -> None:
        for stack, _ in reversed(self._bars.values()):
            stack.close()
        self._bars.clear()

    def say(self, lines: Iterable[str]) -> None:
        """Say them, in order."""
        for line in lines:
            kind, *words = json.loads(line)
            match kind:
                case "open":
                    bar, description, total, unit, done = words
                    stack = ExitStack()
                    shown = self.terminal.progress(description, total, unit=unit, done=done)
                    self._bars[bar] = stack, stack.enter_context(shown)
                case "advance":
                    bar, steps, note = words
                    self._bars[bar][1](steps, **({} if note is None else {"note": note}))
                case "close":
                    self._bars.pop(words[0])[0].close()
                case _:
                    getattr(self.terminal, kind)(*words)
