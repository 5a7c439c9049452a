"""Connections to object stores and web servers, what lies there, and their faults in one line each.

Credentials and endpoints come from the customary environment variables; docs/how-to/object-storage.md lists them.
"""

import fnmatch
import glob
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pyarrow import fs

from adrec.errors import DataError, ResourceError
from adrec.urls import WEB, local_of

RECORD = ".adrec-publishing.json"
"""In a remote folder: its files are being replaced by another version."""
ASIDE = ".adrec-upload-"
"""Names of what is uploaded and not yet in its place begin so."""
THREADS = 8
_TIMEOUT_SECONDS = 60


@dataclass(frozen=True)
class RemoteFile:
    """One object."""

    address: str
    size: int
    identity: str
    """changes with its content"""

    @property
    def local(self) -> Path:
        """Its place in the mirror."""
        return local_of(self.address)


def listed(address: str, *, is_output: bool = False) -> list[RemoteFile]:
    """The files behind an address, sorted; what adrec itself keeps there left out."""
    if address.startswith(WEB):
        return [_of_the_web(address)]
    system, place = store_of(address)
    with told(address):
        pattern = glob.has_magic(place)
        top = place[: re.search(r"[*?\[]", place).start()].rpartition("/")[0] if pattern else place  # type: ignore[union-attr]
        info = system.get_file_info(top)
        if info.type == fs.FileType.NotFound:
            return []
        infos = [info]
        if info.type == fs.FileType.Directory:
            infos = system.get_file_info(fs.FileSelector(top, recursive=True))
        files = {item.path: item for item in infos if item.type == fs.FileType.File}
        if pattern:
            matches = re.compile(_regex(place))
            files = {path: item for path, item in files.items() if matches.fullmatch(path)}
        if any(path.endswith(f"/{RECORD}") for path in files) and not is_output:
            raise ResourceError(f"{address}: is being replaced by another version. Run the command that writes it again.")
        kept = {path: item for path, item in files.items() if ASIDE not in path and not path.endswith(f"/{RECORD}")}
        with ThreadPoolExecutor(THREADS) as pool:
            found = pool.map(lambda item: identity(system, item.path, item.size, item.mtime_ns), kept.values())
            scheme = address.split(":", 1)[0]
            made = [
                RemoteFile(f"{scheme}://{path}", item.size, identity)
                for (path, item), identity in zip(kept.items(), found, strict=True)
            ]
    return sorted(made, key=lambda file: file.address)


def _of_the_web(address: str) -> RemoteFile:
    with told(address), opened(address, "HEAD") as answer:
        facts = answer.headers
        size = int(facts.get("Content-Length") or -1)
        return RemoteFile(address, size, facts.get("ETag") or f"{size} {facts.get('Last-Modified')}")


def identity(system: fs.FileSystem, path: str, size: int, changed: int | None = None) -> str:
    """The ETag of an object, where the store has one."""
    if isinstance(system, fs.HadoopFileSystem):
        return f"{size} {changed or system.get_file_info(path).mtime_ns}"
    with system.open_input_file(path) as handle:
        facts = handle.metadata() or {}
    tag = facts.get("ETag") or facts.get(b"ETag")
    if tag:
        return tag.decode() if isinstance(tag, bytes) else str(tag)
    return f"{size} {changed or system.get_file_info(path).mtime_ns}"


def _regex(pattern: str) -> str:
    """As `Path.glob` reads a pattern: a star stays inside one folder, two stars go through any."""
    parts = []
    for part in pattern.split("/"):
        one = fnmatch.translate(part).removeprefix("(?s:").removesuffix(r")\Z").removesuffix(r")\z")
        parts.append("(?:.*/)?" if part == "**" else one.replace(".*", "[^/]*") + "/")
    return "".join(parts).removesuffix("/")


def store_of(address: str) -> tuple[fs.FileSystem, str]:
    """The file system of an address, and the path in it."""
    scheme, host = address.split("://", 1)[0], address.split("://", 1)[1].split("/", 1)[0]
    with told(address):
        return _connected(scheme, host if scheme == "hdfs" else ""), inside(address)


def inside(address: str) -> str:
    """The path of an address in its store."""
    rest = address.split("://", 1)[1].rstrip("/")
    return f"/{rest.partition('/')[2]}" if address.startswith("hdfs:") else rest


@cache
def _connected(scheme: str, host: str) -> fs.FileSystem:
    """By the customary variables of each store."""
    if scheme == "s3":
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        options: dict[str, Any] = {"endpoint_override": endpoint} if endpoint else {}
        return fs.S3FileSystem(
            region=region or ("us-east-1" if endpoint else None),
            anonymous=os.environ.get("AWS_NO_SIGN_REQUEST", "").upper() in {"1", "YES", "TRUE"},
            connect_timeout=10,
            request_timeout=_TIMEOUT_SECONDS,
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=4),
            **options,
        )
    if scheme == "gs":
        return fs.GcsFileSystem()
    if scheme == "az":
        return fs.AzureFileSystem(
            account_name=os.environ["AZURE_STORAGE_ACCOUNT"], account_key=os.environ.get("AZURE_STORAGE_KEY")
        )
    name, _, port = host.partition(":")
    return fs.HadoopFileSystem(name, int(port or 8020))


@contextmanager
def opened(address: str, method: str) -> Iterator[Any]:
    """The answer of a web server."""
    request = urllib.request.Request(address, method=method, headers={"User-Agent": "adrec"})
    with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as answer:
        yield answer


_CAUSES = (
    (("NO_SUCH_BUCKET", "NoSuchBucket"), "no such bucket. Look at the address, or make the bucket first."),
    (
        (
            "ACCESS_DENIED",
            "INVALID_ACCESS_KEY",
            "SIGNATURE_DOES_NOT_MATCH",
            "HTTP status 403",
            "AccessDenied",
            "InvalidAccessKeyId",
        ),
        "denied. Set the store's credentials (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY of s3), or ask for the right to it.",
    ),
    (
        ("NETWORK_CONNECTION", "curlCode", "Connection refused", "resolve host", "name resolution", "timed out"),
        "cannot be reached. Look at the network, and at AWS_ENDPOINT_URL where the store is not Amazon's.",
    ),
    (("libhdfs", "libjvm"), "needs Hadoop's libhdfs: set HADOOP_HOME and JAVA_HOME."),
)


@contextmanager
def told(address: str) -> Iterator[None]:
    """Faults of a store as one line that names the address, without its query."""
    plain = address.partition("?")[0]
    try:
        yield
    except urllib.error.HTTPError as error:
        raise DataError(f"{plain}: the server answers {error.code} {error.reason}. Look at the address.") from None
    except KeyError as error:
        raise ResourceError(f"{plain}: set {error.args[0]} in the environment.") from None
    except (OSError, NotImplementedError) as error:
        said = str(error)
        for marks, what in _CAUSES:
            if any(mark in said for mark in marks):
                raise ResourceError(f"{plain}: {what}") from None
        raise ResourceError(f"{plain}: {said.splitlines()[0][:200] if said else type(error).__name__}.") from None
