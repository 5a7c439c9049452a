"""What every command writes, and the one gate before it: outputs are looked at, locked and restored before any work begins."""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from adrec.bundle import trusting
from adrec.commands import Command, command_named
from adrec.config.base import OpensBundle, StageConfig
from adrec.config.commands import command_of
from adrec.data.disk import outputs
from adrec.data.disk.lock import output_lock
from adrec.data.disk.outputs import OutputKind
from adrec.data.disk.row_files import STANDARD_OUTPUT
from adrec.data.disk.writing import restore
from adrec.ranks import is_first
from adrec.terminal import Terminal
from adrec.urls import address_of


@contextmanager
def writing(
    config: StageConfig, terminal: Terminal, before: Callable[[OutputKind], None] = lambda kind: None
) -> Iterator[None]:
    """Run a command in this block. Raises ResourceError before any work where its output is not its to replace, or is taken.

    What an earlier run that was killed left half renamed is put back first. `before` is called with the kind of output when
    the output is held.
    """
    keys = config.trusted_keys if isinstance(config, OpensBundle) else ()  # others open what they make too
    with trusting(keys), _writing(config, terminal, before):
        yield


@contextmanager
def _writing(config: StageConfig, terminal: Terminal, before: Callable[[OutputKind], None]) -> Iterator[None]:
    command, path = _command(config), output_of(config)
    if command.writes is None or path is None or not is_first_process():
        yield
        return
    key, kind = command.writes[0], kind_of(config)
    target = outputs.guard_place(path)
    with ExitStack() as held:
        if not command.is_server:
            held.enter_context(output_lock(target))
            restore(target)
        before(kind)
        outputs.guard_output(path, kind, inputs_of(config, except_key=key))
        if target != path:
            terminal.note(f"{path} is a link: {target} is written, and the link stays.")
        yield


def names_addresses(config: StageConfig) -> bool:
    """Whether any of its paths stands for an address in a store or on a web server."""
    return any(address_of(path) for path in _paths(config.model_dump(mode="python")))


def output_of(config: StageConfig) -> Path | None:
    """Where a command writes; None where it writes nothing, or a pipe."""
    writes = _command(config).writes
    return None if writes is None else _path(config, writes[0])


def kind_of(config: StageConfig) -> OutputKind:
    """What a command writes. Only of one that writes."""
    command = _command(config)
    assert command.writes is not None, "of a command that writes"
    other = command.or_writes
    name = command.writes[1] if other is None or not getattr(config, other[0]) else other[1]
    kind: OutputKind = getattr(outputs, name)
    return kind


def paths_of(config: StageConfig) -> list[str]:
    """Every path and pattern that a command may read."""
    command = _command(config)
    left_out = {command.writes[0]} if command.writes is not None else set()
    if command.name == "init":
        left_out.add("runs")  # where other commands will write
    return list(dict.fromkeys(_paths(config.model_dump(mode="python", exclude=left_out))))


def node_paths(config: StageConfig) -> set[Path]:
    """What a training on another node may read; text vectors are kept by each node for itself."""
    cache = getattr(getattr(config, "text", None), "cache", None)
    return {Path(path) for path in paths_of(config)} - {cache}


def is_first_process() -> bool:
    """False in the other processes of one training."""
    return is_first()


def inputs_of(config: StageConfig, *, except_key: str) -> list[Path]:
    """Every existing file and folder that the config names, links resolved; of a pattern, the files it matches."""
    found: dict[Path, None] = {}
    for text in _paths(config.model_dump(mode="python", exclude={except_key})):
        for path in _matches(text):
            found.setdefault(path.resolve())
    return list(found)


def _command(config: StageConfig) -> Command:
    command = command_named(command_of(type(config)))
    assert command is not None, "every config is a command's"
    return command


def _path(config: Any, key: str) -> Path | None:
    if command_of(type(config)) == "evaluate":
        return config.output or evaluation_folder(config.scored)
    if command_of(type(config)) == "serve" and config.redis is not None:
        return None
    value: Path | None = getattr(config, key)
    return None if value == STANDARD_OUTPUT else value


def evaluation_folder(scored: Path) -> Path:
    """Where `adrec evaluate` writes when it is not told."""
    return scored.with_name(f"{scored.stem}_evaluation")


def _paths(value: Any) -> Iterator[str]:
    """Paths, and strings that may be one: patterns and encoders are kept as strings, made absolute when they were read."""
    if isinstance(value, Path):
        yield str(value)
    elif isinstance(value, str) and value.startswith("/"):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _paths(item)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from _paths(item)


def _matches(text: str) -> Iterator[Path]:
    path = Path(text)
    try:
        if path.exists():
            yield path
        elif re.search(r"[*?\[]", text):
            yield from Path("/").glob(text.lstrip("/"))
    except (OSError, ValueError):  # no path at all: a template that begins with a slash
        return
