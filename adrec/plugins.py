"""What other packages add by entry point: sources, model parts, baselines (docs/how-to/plugins.md).

Only what is installed under one of our groups can be named, never an import path: a config may come out of a bundle, and
opening a stranger's bundle must not run code of its choosing. Names are looked up without importing anything.
"""

from collections.abc import Callable, Collection
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal, NamedTuple

from pydantic import AfterValidator, WithJsonSchema

from adrec.errors import ConfigError, did_you_mean

Group = Literal["adrec.sources", "adrec.models", "adrec.baselines"]


class SourceFormat(NamedTuple):
    """What an entry point of `adrec.sources` names."""

    config: type[Any]
    """a subclass of config.sources.SourceConfig: the keys of the config's `source` section"""
    open: Callable[..., Any]
    """(connection, config, skip) -> prepare.sources.RawTables"""


class ModelPart(NamedTuple):
    """What an entry point of `adrec.models` names."""

    kind: Literal["interaction", "user part"]
    build: Callable[..., Any]
    """interaction: (width=, extra=) -> module with `out_width`; user part: (width=) -> module"""


def installed(group: Group) -> dict[str, EntryPoint]:
    """Entry points by `package:name`, and by `name` alone where only one package has it."""
    points = sorted(entry_points(group=group), key=lambda point: (_package(point), point.name))
    names = [point.name for point in points]
    alone = {point.name: point for point in points if names.count(point.name) == 1}
    return alone | {f"{_package(point)}:{point.name}": point for point in points}


def check_name(name: str, group: Group, own: Collection[str], what: str) -> str:
    """`name`, where adrec or an installed package has it. Raises ValueError listing what there is (for pydantic)."""
    if name in own or name in installed(group):
        return name
    raise ValueError(_unknown(name, group, own, what))


def names_of(own: Collection[str], group: Group, what: str) -> AfterValidator:
    """For a config's field: one of `own`, or what an installed package names."""
    return AfterValidator(lambda name: check_name(name, group, own, what))


def own_names(own: Collection[str]) -> WithJsonSchema:
    """Names of ours are listed, others allowed."""
    return WithJsonSchema({"anyOf": [{"enum": list(own), "type": "string"}, {"type": "string"}]})


def load(name: str, group: Group, kind: type[Any], what: str) -> Any:
    """The object that an entry point names. Raises ConfigError where it is not installed, breaks, or is no `kind`."""
    point = installed(group).get(name)
    if point is None:
        raise ConfigError(_unknown(name, group, (), what).rstrip(".") + ".")
    try:
        found = point.load()
    except Exception as error:  # whatever a stranger's module does when it is imported
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ConfigError(f"{what} '{name}': the package {_package(point)} cannot be imported ({reason}). Mend it.") from None
    if not isinstance(found, kind):
        raise ConfigError(f"{what} '{name}': {point.value} of the package {_package(point)} is no {kind.__name__}.")
    return found


def _unknown(name: str, group: Group, own: Collection[str], what: str) -> str:
    others = ", ".join(key for key in installed(group) if ":" in key) or "none"
    ours = f"adrec has {', '.join(own)}; " if own else ""
    near = did_you_mean(name, [*own, *installed(group)])
    return f"no {what} '{name}': {ours}installed under {group}: {others}{'.' if near else ''}{near}"


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "unknown"
