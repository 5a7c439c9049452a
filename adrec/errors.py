"""Faults a user can mend. Each message names what is wrong, where, and the fix; the CLI prints it as it stands."""

import re

_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class AdrecError(Exception):
    """A fault the user can mend. `exit_code` is what the process returns (1; 2 for usage)."""

    exit_code = 1


class UsageError(AdrecError):
    """The command line itself is wrong (exit code 2)."""

    exit_code = 2


class ConfigError(AdrecError):
    """A config file or a `--set` override is wrong. The message lists every fault, a line each."""


class DataError(AdrecError):
    """A table is missing, unreadable, or breaks the contract of `adrec.schema`."""


class BundleError(AdrecError):
    """A bundle folder is missing, incomplete, altered, or of another format version."""


class ResourceError(AdrecError):
    """The machine lacks something: disk space, a writable folder, an optional package, a device."""


def visible(text: str) -> str:
    """`text` as a terminal may show it: escapes and other control characters as their pictures, so that data cannot act.

    Line ends and tabs stay.

    >>> visible("a\\x1b[31mb")
    'a␛[31mb'
    """
    return _UNSEEN.sub(_picture, text)


def _picture(match: re.Match[str]) -> str:
    code = ord(match[0])
    return chr(0x2400 + code) if code < 0x20 else "␡" if code == 0x7F else "�"
