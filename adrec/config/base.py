"""Load a YAML config into a frozen pydantic model, and report every fault at once with the nearest known name."""

import os
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from adrec.config.faults import describe, keys_of, retired_key
from adrec.errors import ConfigError, did_you_mean
from adrec.urls import addressed, is_remote, local_of, shown

_MOST = 1e15
_DEEPEST = 50
"""Levels of nesting that a config may have; the deepest of adrec's own has 8."""
_MOST_VALUES = 100_000
"""Values of a config, those that aliases repeat counted as often as they stand there."""
_LONGEST_NAME, _LONGEST_PATH = 255, 4095
"""Bytes that file systems allow."""


class Config(BaseModel):
    """Base of every config section: unknown keys are refused, values cannot be changed after loading."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    @field_validator("*")
    @classmethod
    def _conceivable(cls, value: Any) -> Any:
        """Whatever a number counts, there are not so many of it: a slip is told, and not left to the memory of the machine."""
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) > _MOST:
            raise ValueError(f"is more than anything that could be meant ({_MOST:g})")
        return value


class StageConfig(Config):
    """What every command's config extends."""


class Seeded(StageConfig):
    """A command that draws at random."""

    seed: int = Field(42, ge=0, le=2**32 - 1)
    """Seeds every random choice of the command."""


class Paged(StageConfig):
    """A command that writes a page."""

    language: Literal["en", "zh"] = "en"
    """Language of the page: en or zh."""


class OnDevice(StageConfig):
    """A command that runs a network."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where tensors live; `auto` takes a GPU when there is one."""


class _Typed(str):
    """Text of an override: where it names a path, that is not relative to the config file."""


def _anchored(value: Any, info: ValidationInfo) -> Any:
    """An address as its place in the mirror; a path that an override names, made absolute. `~` is left to whoever reads it."""
    if isinstance(value, str | Path) and is_remote(str(value)):
        return str(local_of(str(value)))
    if not isinstance(value, _Typed) or value.startswith("~") or value == "-":
        return value
    return str((info.context or {}).get("typed_base", Path.cwd()) / value)


def _resolve(path: Path, info: ValidationInfo) -> Path:
    if str(path) == "-":  # standard input or output
        return path
    base = (info.context or {}).get("base", Path.cwd())
    try:
        found = Path(os.path.normpath(base / path.expanduser()))
    except RuntimeError:
        raise ValueError("names the home folder of a user whom this machine does not know") from None
    longest = max((len(os.fsencode(name)) for name in found.parts), default=0)
    if longest > _LONGEST_NAME or len(os.fsencode(found)) > _LONGEST_PATH:
        raise ValueError(f"a path has at most {_LONGEST_PATH} bytes, and each name in it {_LONGEST_NAME}")
    return found


def _resolve_pattern(pattern: str, info: ValidationInfo) -> str:
    return str(_resolve(Path(pattern), info))


def _resolve_reference(reference: Any, info: ValidationInfo) -> Any:
    """A local folder becomes absolute; `package:...` and hub names stay as they are."""
    if not isinstance(reference, str) or reference.startswith("package:"):
        return reference
    candidate = _resolve(Path(_anchored(reference, info)), info)
    is_path = reference.startswith((".", "/", "~")) or candidate.exists()
    return str(candidate) if is_path else str(reference)


def _in_utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


ConfigPath = Annotated[Path, BeforeValidator(_anchored), AfterValidator(_resolve)]
"""A path; relative ones are relative to the config file, those of `--set` and other options to the working folder."""
ConfigPattern = Annotated[str, BeforeValidator(_anchored), AfterValidator(_resolve_pattern)]
"""A file, folder or glob pattern, resolved like ConfigPath."""
Moment = Annotated[datetime, AfterValidator(_in_utc)]
"""ISO 8601 date or moment; UTC unless an offset is given."""
EncoderReference = Annotated[str, BeforeValidator(_resolve_reference)]
"""A text encoder: a local folder, `package:module/path` inside an installed package, or a hub name."""

ModelT = TypeVar("ModelT", bound=Config)


class TrustsKeys(StageConfig):
    """A command that opens bundles."""

    trusted_keys: list[ConfigPath] = []
    """Public keys of `adrec sign` or minisign, one of which must have signed a bundle, or it is refused. Empty: any bundle is
    opened."""


class OpensBundle(TrustsKeys):
    """A command that opens bundles of others alone."""


def load_config(
    path: Path | None, model: type[ModelT], overrides: Sequence[str] = (), *, overrides_base: Path | None = None
) -> ModelT:
    """Read `path` (YAML), apply `dotted.key=value` overrides (values are YAML), validate as `model`.

    `path` None starts from the overrides alone. Paths of the file are relative to it, those of overrides to
    `overrides_base`, which is the working folder where it is None.
    Raises ConfigError with one line a fault: dotted path, what was found, what is allowed, the nearest known key.
    """
    raw = _read_yaml(path) if path is not None else {}
    in_file = set(raw)
    where = str(path) if path is not None else "--set"
    for override in overrides:
        _apply_override(raw, override)
    _check_characters(raw, where)
    base = path.resolve().parent if path is not None else Path.cwd()
    if path is not None:
        _refuse_of_another(in_file, model, path)
    return _validated(raw, model, where=where, context={"base": base, "typed_base": overrides_base or Path.cwd()})


def load_stored_config(path: Path, model: type[ModelT], *, command: str) -> ModelT:
    """The config that `command` stored beside its output. It says how the output was made: what it names need not be here any
    more, and keys that have retired since are passed over where they no longer matter. Raises ConfigError as load_config does.
    """
    return stored_section(_read_yaml(path), model, where=str(path), command=command, base=path.resolve().parent)


def stored_section(raw: dict[str, Any], model: type[ModelT], *, where: str, command: str, base: Path | None = None) -> ModelT:
    """A section of a stored config, as `load_stored_config` reads it. `raw` loses its retired keys."""
    context = {"base": base or Path.cwd(), "of_an_output": True}
    try:
        return model.model_validate(raw, context=context)
    except ValidationError as error:
        for fault in error.errors():
            gone = retired_key(fault, model, raw)
            if gone is not None:
                *parents, key = keys = keys_of(fault["loc"], raw, also_last=False)
                node: Any = raw
                for parent in parents:
                    node = node[int(parent)] if isinstance(node, list) else node[parent]
                if gone.went_by not in (..., node[key]):
                    went = f"{'.'.join(keys)} is {node[key]!r}, and adrec knows nothing but {gone.went_by!r} any more"
                    raise ConfigError(f"{where}: {went}. Run 'adrec {command}' again.") from None
                del node[key]
    return _validated(raw, model, where=where, context=context)


def save_config(config: Config, path: Path) -> None:
    """Write the resolved config as YAML, the home folder as `~`, for the file may travel; loading it gives an equal one."""
    text = yaml.safe_dump(addressed(config.model_dump(mode="json"), _as_others_read), sort_keys=False, allow_unicode=True)
    path.write_text(text, encoding="utf-8")


def _as_others_read(text: str) -> str:
    """A place in the mirror of remote files by its address, and the home folder as `~`."""
    address, home = shown(text), str(Path.home())
    is_home = home not in ("~", "/") and (address == home or address.startswith(home + os.sep))
    return "~" + address[len(home) :] if is_home else address


def _validated(raw: dict[str, Any], model: type[ModelT], *, where: str, context: dict[str, Any]) -> ModelT:
    try:
        return model.model_validate(raw, context=context)
    except ValidationError as error:
        raise ConfigError("\n".join(_placed(line, where) for line in describe(error, model, raw))) from None


def _placed(line: str, where: str) -> str:
    """A fault and where it is; of several options together it says enough by itself."""
    return line if where == "--set" and line.startswith("give ") else f"{where}: {line}"


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = did_you_mean(path.name, _configs_in(path.parent))
        cure = near or " 'adrec init' writes one for your data."
        raise ConfigError(f"{path}: no such config file.{cure}") from None
    except IsADirectoryError:
        inside = ", ".join(_configs_in(path))
        cure = f"Name one of its files: {inside}." if inside else "Name a file."
        raise ConfigError(f"{path}: is a folder. {cure}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    raw = _parse_yaml(text, where=str(path))
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected keys and values at the top, found a {type(raw).__name__}.")
    return raw


def _configs_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.glob("*.y*ml")) if folder.is_dir() else []


def _refuse_of_another(keys: set[str], model: type[BaseModel], path: Path) -> None:
    """Raise ConfigError where a file is a whole config of other commands and none of this one: one line for many."""
    if not issubclass(model, StageConfig) or keys <= model.model_fields.keys():
        return
    from adrec.config.commands import command_of, config_models

    models = config_models()
    owners = [name for name, other in models.items() if _may_be(other, keys)]
    if not owners or command_of(model) not in models:
        return
    owners.sort(key=lambda name: name not in path.stem)  # finetune.yaml is most likely one of finetune
    whose = " or ".join(owners[:3])
    raise ConfigError(f"{path}: a config of {whose}, not of {command_of(model)}. Run: adrec {owners[0]} --config {path}")


def _may_be(model: type[BaseModel], keys: set[str]) -> bool:
    """Whether a whole config may have these top keys: all of them its own, none that it requires missing."""
    fields = model.model_fields
    required = {name for name, field in fields.items() if field.is_required()}
    return bool(keys) and keys <= fields.keys() and required <= keys


def _parse_yaml(text: str, *, where: str, below: str = "") -> Any:
    """The value of one YAML text. A key that is given twice is refused: YAML itself would silently keep the last."""
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_size(node, where)
        faults = [
            f"{where}: {path}: given twice, in line {first} and in line {again}. Keep one."
            for path, first, again in _repeated_keys(node, below, set())
        ]
        if faults:
            raise ConfigError("\n".join(faults))
        return loader.construct_document(node)
    except RecursionError:
        raise ConfigError(f"{where}: nested deeper than {_DEEPEST} levels. No config of adrec is.") from None
    except ValueError as error:  # a date that does not exist, a number of thousands of digits
        raise ConfigError(f"{where}: a value cannot be read ({error}). Put it in quotes if it is text.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from None
    finally:
        loader.dispose()


def _repeated_keys(node: yaml.Node, path: str, seen: set[int]) -> Iterator[tuple[str, int, int]]:
    """Dotted path and both lines of each repeated key below a node. An anchored node is looked at once."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            yield from _repeated_keys(item, f"{path}.{number}".lstrip("."), seen)
    elif isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            inner = f"{path}.{name}".lstrip(".")
            if name in lines:
                yield inner, lines[name], line
            lines.setdefault(name, line)
            yield from _repeated_keys(value, inner, seen)


def _check_size(root: yaml.Node, where: str) -> None:
    """Refuse what only looks small: deep nesting, aliases of aliases that grow a thousandfold, a value inside itself."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: yaml.Node, depth: int) -> int:
        if depth > _DEEPEST:
            raise RecursionError
        if id(node) in open_nodes:
            raise ConfigError(f"{where}: line {node.start_mark.line + 1}: an alias stands inside what it repeats.")
        if id(node) not in sizes:
            open_nodes.add(id(node))
            below = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
            sizes[id(node)] = 1 if isinstance(below, str) else 1 + sum(size(part, depth + 1) for part in below)
            open_nodes.remove(id(node))
        if sizes[id(node)] > _MOST_VALUES:
            raise ConfigError(f"{where}: aliases (`*name`) repeat more than {_MOST_VALUES:,} values. Write the config out.")
        return sizes[id(node)]

    size(root, 0)


def _check_characters(raw: Any, where: str, path: str = "") -> None:
    """Refuse NUL in keys and values: no path, column or text of a table can hold it."""
    if isinstance(raw, str) and "\0" in raw:
        raise ConfigError(f"{where}: {path or '(top)'}: holds the character NUL. Take it out.")
    if isinstance(raw, dict):
        for key, value in raw.items():
            _check_characters(str(key), where, f"{path}.{key}".lstrip(".").replace("\0", "\\0"))
            _check_characters(value, where, f"{path}.{key}".lstrip("."))
    elif isinstance(raw, list):
        for number, value in enumerate(raw):
            _check_characters(value, where, f"{path}.{number}".lstrip("."))


def _apply_override(raw: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set {override}: expected dotted.key=value.")
    # YAML takes a lone dash for a list of nothing; here it is standard input.
    value = "-" if text == "-" else _typed(_parse_yaml(text, where=f"--set {override}", below=key))
    node: Any = raw
    *parents, last = key.split(".")
    if len(parents) > _DEEPEST:
        raise ConfigError(f"--set {key[:40]}...: nested deeper than {_DEEPEST} levels. No config of adrec is.")
    for parent in parents:
        if isinstance(node, list):
            node = _list_item(node, parent, override)
            continue
        if not isinstance(node.get(parent), dict | list):
            node[parent] = {}
        node = node[parent]
    if isinstance(node, list):
        _list_item(node, last, override)
        node[int(last)] = value
    else:
        node[last] = value


def _typed(value: Any) -> Any:
    """The value with every text in it marked as typed on the command line."""
    if isinstance(value, str):
        return _Typed(value)
    if isinstance(value, dict):
        return {key: _typed(item) for key, item in value.items()}
    return [_typed(item) for item in value] if isinstance(value, list) else value


def _list_item(items: list[Any], key: str, override: str) -> Any:
    if not key.isdigit() or int(key) >= len(items):
        raise ConfigError(f"--set {override}: '{key}' is not an index of a list of {len(items)}.")
    return items[int(key)]
