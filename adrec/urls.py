"""Addresses of object stores and web servers as paths of a config: each stands for a place in a local mirror, and back again.

`s3://bucket/key` is `<mirror>/s3/bucket/key` wherever a path is needed, so that every command reads and writes local files;
`adrec.data.disk.remote` fetches and publishes what lies there. Nothing here opens a connection.
"""

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

SCHEMES = ("s3", "gs", "az", "hdfs", "http", "https")
WEB = ("http", "https")
VARIABLE = "ADREC_REMOTE_CACHE"

# A path library takes the second slash away.
_ADDRESS = re.compile(rf"({'|'.join(SCHEMES)}):/+(?=[^/])")
_QUERIES: dict[str, str] = {}
"""Mirror of an address with a query -> the address, in this process: the query may hold a key, which no path should show."""


def is_remote(text: str) -> bool:
    """Whether a path of a config is an address."""
    return _ADDRESS.match(text) is not None


def mirror() -> Path:
    """The folder of all mirrors: `$ADREC_REMOTE_CACHE`, else below the user's cache folder."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adrec" / "remote"


def local_of(address: str) -> Path:
    """Where an address lies in the mirror. Raises ValueError where it names no place."""
    scheme, rest = _ADDRESS.split(address, maxsplit=1)[1:]
    if scheme not in WEB:
        parts = [part for part in rest.split("/") if part]
        if not parts or {".", ".."} & set(parts):
            raise ValueError(f"is no address of the kind {scheme}://bucket/folder/file")
        return mirror().joinpath(scheme, *parts)
    split = urlsplit(f"{scheme}://{rest}")
    parts = [part for part in split.path.split("/") if part]
    if not split.netloc or not parts or {".", ".."} & set(parts):
        raise ValueError(f"is no address of the kind {scheme}://host/folder/file")
    digest = hashlib.sha256(split.query.encode()).hexdigest()[:12] if split.query else "-"
    path = mirror().joinpath(scheme, split.netloc.rpartition("@")[2], digest, *parts)
    _QUERIES[str(path)] = f"{scheme}://{rest}"
    return path


def address_of(path: Path | str) -> str | None:
    """The address whose mirror a path is; None for other paths. Of a web server, what `local_of` was asked for."""
    root = f"{mirror()}{os.sep}"
    text = str(path)
    if not text.startswith(root):
        return None
    scheme, _, rest = text.removeprefix(root).partition(os.sep)
    if scheme in WEB:
        return _QUERIES.get(text)
    return f"{scheme}://{rest}" if scheme in SCHEMES and rest else None


def shown(text: str) -> str:
    """`text` with every place in the mirror called by its address (a query, which may hold a key, left out)."""
    root = str(mirror())
    if root not in text:
        return text
    pattern = rf"{re.escape(root)}/({'|'.join(SCHEMES)})/([^/\s]+)(/[0-9a-f]{{12}}(?=/)|/-(?=/))?"
    return re.sub(pattern, lambda match: _named(*match.groups(default="")), text)


def addressed(value: Any, named: Callable[[str], str] = shown) -> Any:
    """Plain values with every string as `named` has it: by default places in the mirror as addresses, for other machines."""
    if isinstance(value, dict):
        return {key: addressed(item, named) for key, item in value.items()}
    if isinstance(value, list):
        return [addressed(item, named) for item in value]
    return named(value) if isinstance(value, str) else value


def _named(scheme: str, host: str, digest: str) -> str:
    return f"{scheme}://{host}" + (digest if scheme not in WEB else "")
