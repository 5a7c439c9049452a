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
SeedOption = Annotated[int | None, typer.Option("--seed", help="Override the config's seed.", show_default=False)]
DeviceOption = Annotated[
    str | None, typer.Option("--device", metavar="auto|cpu|cuda", help="Where tensors live.", show_default=False)
]

CONFIG_ENDINGS = (".yaml", ".yml")

_OF_THE_MACHINE = frozenset(
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EACCES", "EPERM", "EROFS", "ENAMETOOLONG", "ELOOP", "EMFILE", "ENFILE", "EIO", "ESTALE")
    if hasattr(errno, name)
)
"""Faults of the system that say all there is to say; any other is a bug of ours."""

BundleOption = Annotated[Path | None, typer.Option("--bundle", help="Bundle folder.", show_default=False)]
TrustedKeyOption = Annotated[
    list[Path] | None,
    typer.Option("--trusted-key", help="Refuse bundles not signed by this public key (again: or by that).", show_default=False),
]
ClusterOption = Annotated[
    str | None,
    typer.Option("--cluster", metavar="local|auto|ADDRESS", help="Share the work over a Ray cluster.", show_default=False),
]
OutputOption = Annotated[Path | None, typer.Option("--output", "-o", help="Where to write.", show_default=False)]


def run_stage(
    stage: str,
    config_class: str,
    *,
    config: Path | None,
    overrides: Sequence[str] | None,
    json_output: bool,
    quiet: bool,
    seed: int | None = None,
    device: str | None = None,
    options: dict[str, Any] | None = None,
    argument: str | None = None,
) -> None:
    """Load the config (`module:Class` below adrec.config), run `adrec.stages.<stage>` (`data.preprocess`), show its result.

    `options` are command-line shorthands: dotted config keys with values that are not None override the file. `argument` is
    the one of them that is given without a name.
    """
    from adrec.terminal import Terminal

    terminal = Terminal(quiet=quiet, json_output=json_output)
    with faults_shown(terminal), ended_by_signal(stage), terminal.working():
        from adrec.config.base import load_config

        module, name = config_class.split(":")
        model = getattr(importlib.import_module(f"adrec.config.{module}"), name)
        shorthands = {"seed": seed, "device": device, **(options or {})}
        values = {key: value for key, value in shorthands.items() if value is not None}
        if config is None:
            _refuse_config_as(argument, values, model)
            if not overrides and not values:
                _refuse_nothing(model, shorthands, argument)
        elif is_remote(str(config)):
            config = importlib.import_module("adrec.stages.storage").fetched_config(str(config))
        settings = [f"{key}={_as_yaml(value)}" for key, value in values.items()]
        loaded = load_config(config, model, [*(overrides or ()), *settings])
        run = importlib.import_module(f"adrec.stages.{stage}").run
        result = importlib.import_module("adrec.stages.storage").run_guarded(run, loaded, terminal)
        terminal.show(result)
        if getattr(result, "exit_code", 0):  # done, and the answer is no
            raise typer.Exit(result.exit_code)


@contextmanager
def ended_by_signal(stage: str) -> Iterator[None]:
    """Within it, SIGTERM ends the command as Ctrl-C does. A server has its own way to end."""
    if stage == "inference.serve" or threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: object) -> None:
        raise Interrupted(number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _refuse_nothing(model: Any, shorthands: dict[str, Any], argument: str | None) -> None:
    """Say what a command needs that was given nothing. Raises UsageError; commands that need nothing pass."""
    from adrec.config.commands import command_of

    required = [key for key, field in model.model_fields.items() if field.is_required()]
    if not required:
        return
    ways = [
        key.upper() if key == argument else f"--{key} {key.upper()}" if key in shorthands else f"--set {key}=..."
        for key in required
    ]
    command = command_of(model)
    raise UsageError(
        f"{command} needs {' and '.join(', '.join(required).rsplit(', ', 1))}: adrec {command} {' '.join(ways)}, or"
        f" --config FILE ('adrec init' writes configs for your files). See 'adrec {command} --help'."
    )


def _refuse_config_as(argument: str | None, values: dict[str, Any], model: Any) -> None:
    """Raise UsageError where a config stands in the place of a command's argument."""
    from adrec.config.commands import command_of

    named = values.get(argument) if argument is not None else None
    for path in named if isinstance(named, list) else [named] if named is not None else []:
        if str(path).lower().endswith(CONFIG_ENDINGS):
            raise UsageError(f"{path} is a config. Name it: adrec {command_of(model)} --config {path}")


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
