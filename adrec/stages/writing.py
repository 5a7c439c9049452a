"""What every command writes, and the one gate before it: outputs are looked at, locked and restored before any work begins."""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from adrec.bundle import trusting
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

KINDS: dict[str, tuple[str, OutputKind | Callable[[Any], OutputKind]]] = {
    "audit": ("output", outputs.AUDIT),
    "compare": ("output", outputs.COMPARISON),
    "daily": ("registry", outputs.REGISTRY),
    "distill": ("output", lambda config: outputs.ENCODER if config.bundle is None else outputs.BUNDLE),
    "encode": ("output", outputs.VECTORS),
    "evaluate": ("output", outputs.EVALUATION),
    "events": ("output", outputs.SCORES),
    "explain": ("output", outputs.EXPLANATION),
    "export": ("output", outputs.EXPORT),
    "federate": ("output", outputs.BUNDLE),
    "finetune": ("output", outputs.BUNDLE),
    "init": ("output", outputs.CONFIGS),
    "inspect": ("html", outputs.PAGE),
    "preprocess": ("output", outputs.PREPARED),
    "pretrain": ("output", outputs.ENCODER),
    "pretrain-graph": ("output", outputs.ENTITY_VECTORS),
    "rank": ("output", outputs.LISTS),
    "registry": ("path", outputs.REGISTRY),
    "sample": ("output", outputs.SAMPLE),
    "score": ("output", lambda config: outputs.SCORE_PARTS if config.parts else outputs.SCORES),
    "serve": ("store", outputs.STORE),
    "tune": ("output", outputs.SEARCH),
}
"""Command -> the config key of its output, and what it writes there."""

_SHARED = frozenset({"serve"})
"""Commands that may write one output at once: several servers share a store."""


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
    command = command_of(type(config))
    entry = KINDS.get(command)
    path = None if entry is None else _path(config, entry[0])
    if entry is None or path is None or not is_first_process():
        yield
        return
    key, kind = entry[0], entry[1] if isinstance(entry[1], OutputKind) else entry[1](config)
    target = outputs.guard_place(path)
    with ExitStack() as held:
        if command not in _SHARED:
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
    entry = KINDS.get(command_of(type(config)))
    return None if entry is None else _path(config, entry[0])


def paths_of(config: StageConfig) -> list[str]:
    """Every path and pattern that a command may read."""
    command = command_of(type(config))
    left_out = {KINDS[command][0]} if command in KINDS else set()
    if command == "init":
        left_out.add("runs")  # where other commands will write
    return list(dict.fromkeys(_paths(config.model_dump(mode="python", exclude=left_out))))


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
