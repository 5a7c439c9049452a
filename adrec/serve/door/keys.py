"""API keys: names, scopes and rates. A file of several is read again when it changes, so that keys rotate without a restart.

Keys are compared by their SHA-256, and a file need not hold more than that.
"""

import hashlib
import ipaddress
import os
import re
import time
from collections.abc import Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml
from pydantic import Field, ValidationError, model_validator

from adrec.config.base import Config
from adrec.config.faults import describe
from adrec.config.inference.access import Access
from adrec.errors import ConfigError

KEY_VARIABLE = "ADREC_API_KEY"
"""Environment variable of a key that may do everything; empty: none."""
SCOPES = ("read", "write", "admin")
"""What a key may do, and all that stands before it: `read` asks, `write` records events and changes ads, `admin` reloads."""
Scope = Literal["read", "write", "admin"]
_ASCII = re.compile(r"[\x21-\x7e]+")


class Key(NamedTuple):
    """Who asks."""

    name: str
    scope: Scope
    requests_per_second: float | None = None
    until: date | None = None
    """first day on which it no longer holds"""

    def may(self, scope: str) -> bool:
        """Whether it covers a scope."""
        return SCOPES.index(self.scope) >= SCOPES.index(scope)


class _Entry(Config):
    """A key of the file."""

    name: str = Field(min_length=1, max_length=100, pattern=r"^[\w.-]+$")
    key: str | None = None
    sha256: str | None = Field(None, pattern=r"^[0-9a-fA-F]{64}$")
    scope: Scope = "read"
    requests_per_second: float | None = Field(None, gt=0)
    until: date | None = None

    @model_validator(mode="after")
    def _says_the_key(self) -> "_Entry":
        if (self.key is None) == (self.sha256 is None):
            raise ValueError("give either 'key' or 'sha256'")
        return self


class Keys:
    """The keys in force. Usable from one thread."""

    def __init__(self, access: Access, environment: Mapping[str, str] = os.environ) -> None:
        """Raises ConfigError where a key cannot be sent in a header, or the file cannot be read."""
        self._file = access.keys
        self._own: dict[bytes, Key] = {}
        own = environment.get(KEY_VARIABLE) or ""
        if own:
            self._own[_digest(own, KEY_VARIABLE)] = Key("environment", "admin")
        self._seen: tuple[int, int] | None = None
        self._asked = float("-inf")
        self._by_digest = dict(self._own)
        if self._file is not None:
            self._seen = _stamp(self._file)
            self._by_digest |= _read(self._file)

    def __bool__(self) -> bool:
        return bool(self._by_digest) or self._file is not None

    @property
    def names(self) -> set[str]:
        """Of the keys in force."""
        return {key.name for key in self._by_digest.values()}

    def who(self, given: str) -> Key | None:
        """The key that was given, None where there is none of these."""
        self._follow()
        key = self._by_digest.get(hashlib.sha256(given.encode("utf-8", "replace")).digest())
        return None if key is None or (key.until is not None and datetime.now(UTC).date() >= key.until) else key

    def _follow(self) -> None:
        """Read the file again where it has changed; a broken one changes nothing."""
        if self._file is None or time.monotonic() - self._asked < 1.0:
            return
        self._asked = time.monotonic()
        try:
            stamp = _stamp(self._file)
            if stamp != self._seen:
                self._by_digest = self._own | _read(self._file)
                self._seen = stamp
        except ConfigError:
            return  # a file that is being written, or gone: the keys that were read hold


def refuse_open_server(host: str, keys: Keys, access: Access) -> None:
    """Raises ConfigError where others could reach a server that asks for no key, unless the config says so in words."""
    if keys or access.without_key == "anyone":
        return
    try:
        is_own = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_own = host == "localhost"
    if not is_own:
        raise ConfigError(
            f"host: {host} can be reached from other machines, and no key is set. Set {KEY_VARIABLE} or 'access.keys', or say "
            "--set access.without_key=anyone."
        )


def _read(file: Path) -> dict[bytes, Key]:
    try:
        raw: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = type(error).__name__
        raise ConfigError(f"access.keys: {file} cannot be read ({reason}). Write it as docs/using/serve.md shows.") from None
    if not isinstance(raw, list) or not all(isinstance(entry, dict) for entry in raw):
        raise ConfigError(f"access.keys: {file} holds no list of keys. Write it as docs/using/serve.md shows.")
    entries = []
    for number, entry in enumerate(raw, start=1):
        try:
            entries.append(_Entry.model_validate(entry))
        except ValidationError as error:
            where = f"access.keys: {file}: key {number}"
            raise ConfigError("\n".join(f"{where}: {line}" for line in describe(error, _Entry, entry))) from None
    keys: dict[bytes, Key] = {}
    for entry in entries:
        where = f"{file}: {entry.name}"
        digest = _digest(entry.key, where) if entry.key is not None else bytes.fromhex(entry.sha256 or "")
        if digest in keys:
            raise ConfigError(f"access.keys: {where}: the key of {keys[digest].name} again. Give each its own.")
        keys[digest] = Key(entry.name, entry.scope, entry.requests_per_second, entry.until)
    return keys


def _stamp(file: Path) -> tuple[int, int]:
    try:
        status = file.stat()
    except OSError as error:
        raise ConfigError(f"access.keys: {file} cannot be read ({error.strerror}).") from None
    return status.st_mtime_ns, status.st_size


def _digest(key: str, where: str) -> bytes:
    if not _ASCII.fullmatch(key):
        raise ConfigError(
            f"{where}: the key holds characters that no header carries. Use letters, digits and signs of ASCII, such as "
            "'openssl rand -hex 32' gives."
        )
    return hashlib.sha256(key.encode()).digest()
