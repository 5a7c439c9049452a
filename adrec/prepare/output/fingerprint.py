"""Fingerprints of inputs and config: whether there is anything to do, and what a prepared folder was made from."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from adrec import __version__
from adrec.config.data.preprocess import PreprocessConfig
from adrec.errors import DataError
from adrec.prepare.staging.privacy import load_key

_WITHOUT_EFFECT = {"output", "device", "memory_limit_gb", "threads", "append", "append_fitted", "cluster"}
"""Config keys that change where or how fast, not what; what an append kept is in the manifest."""


def describe_inputs(
    tables: Mapping[str, Sequence[Path]],
    earlier: Sequence[dict[str, Any]] = (),
    digests: Callable[[list[Path]], Mapping[Path, str]] | None = None,
) -> list[dict[str, Any]]:
    """Table, path, size, moment of change and BLAKE2b digest of each file; `digests` reads files elsewhere.

    A file whose path, size and moment of change are those of `earlier` keeps its digest without being read.
    """
    known = {(item["path"], item["bytes"], item["changed_ns"]): item["digest"] for item in earlier}
    described: list[dict[str, Any]] = []
    for table, file in ((table, file) for table, files in tables.items() for file in files):
        try:
            stat = file.stat()
        except OSError as error:
            raise DataError(f"{file}: cannot be read ({error.strerror}).") from None
        described.append({"table": table, "path": str(file), "bytes": stat.st_size, "changed_ns": stat.st_mtime_ns})
    unread = [Path(item["path"]) for item in described if (item["path"], item["bytes"], item["changed_ns"]) not in known]
    read = digests(unread) if digests is not None else {file: digest_of(file) for file in unread}
    return [
        {**item, "digest": read.get(Path(item["path"])) or known[item["path"], item["bytes"], item["changed_ns"]]}
        for item in described
    ]


def config_digest(config: PreprocessConfig) -> str:
    """Digest of everything in the config that changes the output, and of the files that it names beside the tables."""
    plain = config.model_dump(mode="json", exclude=_WITHOUT_EFFECT)
    named = [config.text.extra_stop_words, config.text.user_dictionary, config.privacy.forgotten]
    contents = [digest_of(path) if path is not None and path.is_file() else None for path in named]
    if config.privacy.pseudonymise:  # under another key the earlier pseudonyms are of no use
        contents.append(hashlib.blake2b(load_key(config.privacy), digest_size=16).hexdigest())
    text = json.dumps([__version__, plain, contents], sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def fingerprint(inputs: Sequence[dict[str, Any]], config: str) -> str:
    """One digest for the contents of the inputs, in order, and the config."""
    text = json.dumps([[[item["table"], item["digest"]] for item in inputs], config])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def digest_of(file: Path) -> str:
    """BLAKE2b of a file's bytes. Raises DataError where it cannot be read."""
    try:
        with open(file, "rb") as handle:
            return hashlib.file_digest(handle, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}).") from None
