"""Options that every command has, and the one way in which a command runs its stage."""

import errno
import importlib
import json
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adrec.commands import Command
from adrec.errors import AdrecError, Interrupted, UsageError, is_concealed, visible
from adrec.urls import is_remote, shown

if TYPE_CHECKING:
    from adrec.terminal import Terminal

ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", help="YAML config file.", show_default=False)]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one config value; may be repeated.", show_default=False),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no notes.")]
SHARED: dict[str, Any] = {
    "config": ConfigOption, "overrides": SetOption, "json_output": JsonOption, "quiet": QuietOption
}  # fmt: skip
"""Options of every command, by the names that `run_stage` has for them."""

CONFIG_ENDINGS = (".yaml", ".yml")

_OF_THE_MACHINE = frozenset(
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EACCES", "EPERM", "EROFS", "ENAMETOOLONG", "ELOOP", "EMFILE", "ENFILE", "EIO", "ESTALE")
    if hasattr(errno, name)
)
"""Faults of the system that say all there is to say; any other is a bug of ours."""


def run_stage(
    command: Command,
    *,
    config: Path | None,
    overrides: Sequence[str] | None,
    json_output: bool,
    quiet: bool,
    options: dict[str, Any],
) -> None:
    """Load the command's config, run its stage, show the result.

    `options` are command-line shorthands: dotted config keys with values that are not None override the file.
    """
    from adrec.terminal import Terminal

    terminal = Terminal(quiet=quiet, json_output=json_output)
    with faults_shown(terminal), ended_by_signal(command), terminal.working():
        from adrec.config.base import load_config
        from adrec.config.commands import config_model

        model = config_model(command.key)
        values = {key: value for key, value in options.items() if value is not None}
        if config is None:
            _refuse_config_as(command, values)
            if not overrides and not values:
                _refuse_nothing(command, model, options)
        elif is_remote(str(config)):
            config = importlib.import_module("adrec.stages.storage").fetched_config(str(config))
        settings = [f"{key}={_as_yaml(value)}" for key, value in values.items()]
        loaded = load_config(config, model, [*(overrides or ()), *settings])
        run = importlib.import_module(f"adrec.stages.{command.stage}").run
        result = importlib.import_module("adrec.stages.storage").run_guarded(run, loaded, terminal)
        terminal.show(result)
        if getattr(result, "exit_code", 0):  # done, and the answer is no
            raise typer.Exit(result.exit_code)


@contextmanager
def ended_by_signal(command: Command) -> Iterator[None]:
    """Within it, SIGTERM ends the command as Ctrl-C does. A server has its own way to end."""
    if command.is_server or threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: object) -> None:
        raise Interrupted(number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _refuse_nothing(command: Command, model: Any, options: dict[str, Any]) -> None:
    """Say what a command needs that was given nothing. Raises UsageError; commands that need nothing pass."""
    required = [key for key, field in model.model_fields.items() if field.is_required()]
    if not required:
        return
    ways = [
        key.upper() if key == command.argument else f"--{key} {key.upper()}" if key in options else f"--set {key}=..."
        for key in required
    ]
    name = command.key
    raise UsageError(
        f"{name} needs {' and '.join(', '.join(required).rsplit(', ', 1))}: adrec {name} {' '.join(ways)}, or"
        f" --config FILE ('adrec init' writes configs for your files). See 'adrec {name} --help'."
    )


def _refuse_config_as(command: Command, values: dict[str, Any]) -> None:
    """Raise UsageError where a config stands in the place of a command's argument."""
    named = values.get(command.argument) if command.argument is not None else None
    for path in named if isinstance(named, list) else [named] if named is not None else []:
        if str(path).lower().endswith(CONFIG_ENDINGS):
            raise UsageError(f"{path} is a config. Name it: adrec {command.key} --config {path}")


class faults_shown:
    """Turn an AdrecError into its lines on stderr and an exit code; Ctrl-C into 130.

    Anything else is a bug of ours: the traceback goes to a log file whose path is printed.
    """

    def __init__(self, terminal: "Terminal") -> None:
        self.terminal = terminal

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, BrokenPipeError):  # the whole command line's: see app.main
            return
        is_click = type(error).__module__.startswith(("click", "typer"))
        if error is None or is_click or isinstance(error, typer.Exit | typer.Abort | SystemExit):
            return
        if isinstance(error, AdrecError):
            for line in visible(shown(str(error))).split("\n"):
                typer.echo(f"error: {line}", err=True)
            raise typer.Exit(error.exit_code) from None
        if isinstance(error, KeyboardInterrupt):
            stopped = error if isinstance(error, Interrupted) else Interrupted()
            if not self.terminal.is_silent:
                typer.echo(str(stopped), err=True)
            raise typer.Exit(stopped.exit_code) from None
        if isinstance(error, MemoryError):
            typer.echo("error: out of memory. Lower the batch size or the rows per shard in the config.", err=True)
            raise typer.Exit(1) from None
        if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
            where = f"{error.filename}: " if error.filename else ""
            typer.echo(visible(f"error: {where}{error.strerror}."), err=True)
            raise typer.Exit(1) from None
        if isinstance(error, Exception):
            log = _write_crash_log(error)
            what = type(error).__name__ if is_concealed(error) else f"{type(error).__name__}: {error}"
            typer.echo(visible(f"error: adrec failed in a way it should not ({what}). Please report {log}."), err=True)
            raise typer.Exit(1) from None


def _write_crash_log(error: Exception) -> str:
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile("w", prefix="adrec-crash-", suffix=".log", delete=False, encoding="utf-8") as handle:
        if is_concealed(error):  # what it says, and what its sources say, may be cells of a log
            handle.write("".join([*traceback.format_tb(error.__traceback__), type(error).__name__]))
        else:
            handle.write("".join(traceback.format_exception(error)))
        return handle.name


def _as_yaml(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
