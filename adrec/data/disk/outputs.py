"""What adrec may replace: each kind of output knows its earlier ones by a marker; everything else is a stranger's, and refused.

Costs a few calls of the file system a command; nothing of an output is read but its marker.
"""

import fnmatch
import json
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from adrec.errors import ResourceError
from adrec.schema import TRUE_PROBABILITY

_STRAYS = (".DS_Store", "Thumbs.db", "desktop.ini", "._*", ".directory", "Icon\r", ".nfs*", ".fuse_hidden*")
"""What file managers and network disks leave in any folder: nobody's data, and no reason for anything."""
_KIND = b"adrec"
"""Key of the schema's metadata by which a Parquet file says what adrec wrote it as."""
_LONGEST_NAME = 200
"""Bytes of an output's name: file systems allow 255, and what is written aside has a longer name."""


@dataclass(frozen=True)
class OutputKind:
    """A kind of file or folder that commands write."""

    what: str
    """in a sentence: `a prepared folder`"""
    is_earlier: Callable[[Path], bool]
    """whether a file, or a folder that is not empty, is an earlier output of this kind, of any version"""
    is_folder: bool = True
    holds: tuple[str, ...] | Callable[[Path], Sequence[str]] = ("*",)
    """patterns of the relative names of its files (`*` also spans folders), or what tells them from the folder's own list"""


def recall_file(lists: Path) -> Path:
    """Where the candidate recall behind a file of ranked lists lies."""
    return lists.with_name(f"{lists.name}.recall.json")


def guard_output(path: Path, kind: OutputKind, inputs: Iterable[Path] = ()) -> Path:
    """Where an output at `path` is really written (a link is followed once). Raises ResourceError where it may not be.

    Allowed is what does not exist yet, an empty folder or file, and an earlier output of the same kind.
    """
    target = guard_place(path)
    real = target.resolve()
    for source in inputs:
        if source == real:
            raise ResourceError(f"{path}: is read by this command, so it cannot be its output. Name another output.")
        if kind.is_folder and source.is_relative_to(real):
            raise ResourceError(f"{path}: holds {source}, which this command reads. Name another output.")
    if not target.exists():
        return target
    if target.is_dir() != kind.is_folder:
        here = "folder" if target.is_dir() else "file"
        raise ResourceError(f"{path}: is a {here}, and the output is {kind.what}. Name another output.")
    if kind.is_folder:
        _guard_folder(path, target, kind)
    elif target.stat().st_size and not _recognised(target, kind):
        raise ResourceError(f"{path}: this file is not {kind.what} that adrec wrote. Name another output, or move it away.")
    return target


def guard_place(path: Path) -> Path:
    """Like guard_output, for what no kind may replace: devices, mounts, the working and the home folder, links to links."""
    if len(os.fsencode(path.name)) > _LONGEST_NAME:
        raise ResourceError(
            f"{path.name[:40]}...: the output's name is longer than {_LONGEST_NAME} bytes. Choose a shorter one."
        )
    target = followed(path)
    try:
        mode = target.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        mode = None
    except OSError as error:
        raise ResourceError(f"{path}: cannot be looked at ({error.strerror}). Choose another output.") from None
    if mode is not None and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise ResourceError(f"{path}: is a device, pipe or socket, neither a file nor a folder. Name another output.")
    if mode is not None and os.path.ismount(target):
        raise ResourceError(f"{path}: is the root of a disk (a mount point). Name a folder below it.")
    real = target.resolve()
    for held, name in ((Path.cwd(), "the working folder"), (Path.home(), "the home folder")):
        if held.resolve().is_relative_to(real):
            which = "is" if held.resolve() == real else "holds"
            raise ResourceError(f"{path}: {which} {name}. Name another output.")
    return target


def followed(path: Path) -> Path:
    """The target of a link, which is what an output replaces while the link stays; `path` itself where it is none."""
    if not path.is_symlink():
        return path
    target = path.parent.resolve() / path.readlink()
    if target.is_symlink():
        raise ResourceError(f"{path}: is a link to a link ({target}). Name the file or folder itself.")
    return target.resolve()


def is_stray(file: Path) -> bool:
    """Whether this is what a file manager or a network disk left behind."""
    return any(fnmatch.fnmatchcase(file.name, pattern) for pattern in _STRAYS)


def files_of(folder: Path) -> list[Path]:
    """Every file below `folder`, sorted, but strays."""
    return sorted(file for file in folder.rglob("*") if (file.is_symlink() or not file.is_dir()) and not is_stray(file))


def marked(schema: pa.Schema, kind: str) -> pa.Schema:
    """The schema with a note in its metadata that adrec writes the file as `scored`, `ranked`, ..."""
    return schema.with_metadata({**(schema.metadata or {}), _KIND: kind.encode()})


def _guard_folder(path: Path, target: Path, kind: OutputKind) -> None:
    files = files_of(target)
    if not files and not any(file for file in target.iterdir() if not is_stray(file)):
        return
    if not _recognised(target, kind):
        raise ResourceError(
            f"{path}: holds files, and is not {kind.what} that adrec wrote. Name another output, or move them away."
        )
    known = kind.holds if isinstance(kind.holds, tuple) else tuple(kind.holds(target))
    exact, patterns = set(known), [pattern for pattern in known if "*" in pattern]
    for file in files:
        name = file.relative_to(target).as_posix()
        if name not in exact and not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
            raise ResourceError(
                f"{path}: holds {name}, which adrec did not write and would delete. Move it away, or name another output."
            )


def _recognised(target: Path, kind: OutputKind) -> bool:
    try:
        return kind.is_earlier(target)
    except (OSError, ValueError, TypeError, KeyError, pa.ArrowException):
        return False


# ------------------------------------------------------------------------------------------------------------ kinds


def _json(path: Path) -> dict[str, Any]:
    read = json.loads(path.read_text(encoding="utf-8"))
    return read if isinstance(read, dict) else {}


def _has(file: str, *keys: str) -> Callable[[Path], bool]:
    return lambda folder: all(key in _json(folder / file) for key in keys)


def _listed(file: str) -> Callable[[Path], Sequence[str]]:
    return lambda folder: [file, f"{file}.minisig", *_json(folder / file)["files"]]


def _any(*tests: Callable[[Path], bool]) -> Callable[[Path], bool]:
    return lambda path: any(_recognised(path, OutputKind("", test)) for test in tests)


def _all_there(*names: str) -> Callable[[Path], bool]:
    return lambda folder: all((folder / name).is_file() for name in names)


def _is_sample(folder: Path) -> bool:
    return TRUE_PROBABILITY in pq.read_schema(folder / "impressions" / "part-00000.parquet").names


def _is_store(path: Path) -> bool:
    import sqlite3

    with open(path, "rb") as handle:
        if handle.read(16) != b"SQLite format 3\0":
            return False
    with closing(
        sqlite3.connect(path)
    ) as database:  # the tables of a server that was killed may lie in the log beside the file
        try:
            return "events" in {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
        except sqlite3.Error:
            return False


def _rows(kind: str, *columns: str) -> Callable[[Path], bool]:
    """By the note in the schema; by its columns where it is of a version that left none, or text."""

    def is_earlier(path: Path) -> bool:
        if not _starts_with(path, b"PAR1"):
            return set(columns) <= set(_first_names(path))
        schema = pq.read_schema(path)
        noted = (schema.metadata or {}).get(_KIND)
        return noted == kind.encode() if noted is not None else set(columns) <= set(schema.names)

    return is_earlier


def _starts_with(path: Path, magic: bytes) -> bool:
    with open(path, "rb") as handle:
        return handle.read(len(magic)) == magic


def _first_names(path: Path) -> list[str]:
    """The names of the columns in a file of CSV, TSV or lines of JSON."""
    with pa.input_stream(str(path), compression="gzip" if path.suffix == ".gz" else None) as stream:
        line = stream.read(1 << 16).split(b"\n", 1)[0].decode("utf-8").rstrip("\r")
    if line.startswith("{"):
        return list(json.loads(line))
    return [cell.strip('"') for cell in line.split("\t" if "\t" in line else ",")]


_GENERATOR = b'<meta name="generator" content="adrec">'


def _is_page(path: Path) -> bool:
    with open(path, "rb") as handle:
        head = handle.read(1 << 12)
    return head.startswith(b"<!doctype html>") and (_GENERATOR in head or b" adrec inspect</title>" in head)


PREPARED = OutputKind("a prepared folder", _has("manifest.json", "fingerprint", "format"), holds=_listed("manifest.json"))
BUNDLE = OutputKind("a bundle", _has("bundle.json", "format_version", "files"), holds=_listed("bundle.json"))
ENCODER = OutputKind(
    "a text encoder's folder",
    _any(_has("adrec.json", "kind"), _has("adrec.json", "pooling"), _all_there("autoencoder.safetensors", "codes.parquet")),
    holds=(
        "*.json", "*.safetensors", "*.model", "*.jinja", "*.npy", "*.gguf", "vocab.txt", "merges.txt", "codes.parquet",
        "config.yaml", "report.html", "logs/*", "profile/*",
    ),
)  # fmt: skip
SEARCH = OutputKind(
    "a folder of tune",
    _has("tune.json", "metric", "best"),
    holds=(
        "*.json",
        "*.jsonl",
        "config.yaml",
        "best.yaml",
        "trials.csv",
        "search.png",
        "report.html",
        "*.sqlite",
        "*.log",
        "*.db",
    ),
)
EVALUATION = OutputKind(
    "an evaluation", _has("metrics.json", "tasks", "versions"), holds=("metrics.json", "config.yaml", "report.html")
)
EXPLANATION = OutputKind(
    "a folder of explanations",
    _any(_has("explanations.json", "unit", "rows"), _has("importance.json", "importance", "dependence")),
    holds=("explanations.json", "explanations.html", "importance.json", "config.yaml"),
)
EXPORT = OutputKind(
    "an ONNX export", _all_there("onnx.json", "scorer.onnx"), holds=("*.onnx", "*.onnx.data", "*.json", "config.yaml")
)
VECTORS = OutputKind(
    "a folder of vectors", _all_there("ads.npy", "ads.ids.txt", "ads.parquet"), holds=("ads.*", "users.*", "config.yaml")
)
ENTITY_VECTORS = OutputKind(
    "a folder of entity vectors",
    _all_there("entities.npy", "entities.parquet", "relations.parquet"),
    holds=("entities.*", "relations.parquet", "metrics.json", "config.yaml"),
)
SAMPLE = OutputKind(
    "a sample",
    _is_sample,
    holds=(
        "ads.parquet", "users.parquet", "impressions/part-*.parquet", "config.yaml", "entities.parquet", "links.parquet",
        "ad_links.parquet", "pictures/a*.png", "picture_encoder/*",
    ),
)  # fmt: skip
CONFIGS = OutputKind("a new folder: configs are edited by hand, and those", lambda folder: False)
SCORES = OutputKind("a table of scores", _rows("scored", "user_id", "ad_id", "logit", "score"), is_folder=False)
SCORE_PARTS = OutputKind("a folder of scores", _has("manifest.json", "scored", "files"), holds=_listed("manifest.json"))
LISTS = OutputKind("a table of ranked ads", _rows("ranked", "user_id", "ad_id", "rank", "score", "reason"), is_folder=False)
RECALL = OutputKind("a record of candidate recall", _has("", "candidate_recall"), is_folder=False)
AUDIT = OutputKind("the findings of an audit", _has("", "audit", "membership", "canaries"), is_folder=False)
COMPARISON = OutputKind("a comparison", _has("", "task", "metrics", "runs"), is_folder=False)
REGISTRY = OutputKind("a registry of bundles", _has("registry.json", "registry_format", "events"))
PAGE = OutputKind("a page", _is_page, is_folder=False)
STORE = OutputKind("an event store", _is_store, is_folder=False)
