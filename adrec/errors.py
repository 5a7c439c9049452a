"""Faults a user can mend. Each message names what is wrong, where, and the fix; the CLI prints it as it stands."""

import difflib
import json
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.metadata import PackageNotFoundError, distribution
from urllib.parse import urlsplit
from urllib.request import url2pathname

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


class PeerLostError(ResourceError):
    """Another process of the same training has ended; what is wrong, if anything, that one knows."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, or a signal that asks the process to end. The message says what is left to do; exit code 128 + the signal."""

    def __init__(self, number: int = 2, message: str = "") -> None:
        said = message or "earlier output is untouched; run the same command again to finish."
        super().__init__(f"{'terminated' if number == 15 else 'interrupted'}: {said}")
        self.exit_code = 128 + number


_CONCEALED: ContextVar[bool] = ContextVar("concealed", default=False)
_QUOTED = re.compile(r"""'[^'\n]*'|"[^"\n]*\"""")


@contextmanager
def concealed(wanted: bool = True) -> Iterator[None]:
    """Within it, data is personal: no message shows a cell, and a fault of ours is logged without its message."""
    token = _CONCEALED.set(wanted or _CONCEALED.get())
    try:
        yield
    except Exception as error:
        if _CONCEALED.get():
            error.__dict__["concealed"] = True
        raise
    finally:
        _CONCEALED.reset(token)


def is_concealed(error: Exception | None = None) -> bool:
    """Whether data is personal here, or was where `error` came from."""
    return _CONCEALED.get() if error is None else bool(error.__dict__.get("concealed", False))


def reason_of(error: Exception, most: int = 200) -> str:
    """A library's fault in one short line: its kind, and what it says."""
    said = " ".join(str(error).split())
    return visible(f"{type(error).__name__}: {said[:most]}" if said else type(error).__name__)


def listed(names: Iterable[str], most: int = 300) -> str:
    """Names of columns for a message; only how many where data is personal, for a file without a header has a row there."""
    names = [name for name in names if not name.startswith("source_")]
    return f"{len(names)} that are not shown" if _CONCEALED.get() else ", ".join(names)[:most]


def did_you_mean(name: str, known: Collection[str]) -> str:
    """` Did you mean 'auc'?`, or nothing where no known name is near.

    >>> did_you_mean("auk", ["auc", "log_loss"])
    " Did you mean 'auc'?"
    """
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean '{near[0]}'?" if near else ""


def without_cells(text: str) -> str:
    """Another program's message, without what it quotes where data is personal."""
    return _QUOTED.sub("'…'", text) if _CONCEALED.get() else text


def install_hint(extra: str) -> str:
    """The command that adds an optional part to this installation: from the clone, wheel or address that adrec came from."""
    try:
        origin = distribution("adrec").read_text("direct_url.json")
    except PackageNotFoundError:  # run from a folder of sources
        origin = None
    if origin is None:
        return f"pip install 'adrec[{extra}]'"
    source = json.loads(origin)
    if source.get("dir_info", {}).get("editable"):
        return f"pip install --editable '{url2pathname(urlsplit(source['url']).path)}[{extra}]'"
    kind = f"{source['vcs_info']['vcs']}+" if "vcs_info" in source else ""
    return f"pip install 'adrec[{extra}] @ {kind}{source['url']}'"


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
