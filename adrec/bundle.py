"""The bundle: one folder that holds a trained model and all it needs to score, checked by sha256, with no pickle.

`bundle.json` lists the size and digest of every other file; loading refuses a folder with a missing or altered one, with a
link, with a file that it does not list where a library would read it, and with files of a kind that adrec never writes: a
bundle of a stranger is data, and opening it runs no code. Where keys are trusted (`trusting`), one of them must have signed
`bundle.json`. Layout: docs/using/bundle.md.
"""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adrec import __version__
from adrec.data.disk.formats import other_format
from adrec.data.disk.outputs import BUNDLE
from adrec.data.disk.signatures import SUFFIX, PublicKey, SignatureError, check_signature, read_public_key
from adrec.data.disk.writing import folder_aside
from adrec.errors import BundleError
from adrec.privacy.ledger import KEY as LEDGER
from adrec.privacy.ledger import unaccounted

FORMAT_VERSION = 1
MANIFEST = "bundle.json"
CARD = "README.md"
_FIX = "Run 'adrec finetune' again, or copy the whole folder."
_STRANGE = "Do not trust this bundle."
_KINDS = frozenset({".json", ".yaml", ".safetensors", ".parquet", ".npz", ".npy", ".txt", ".model", ".jinja", ".md"})
"""Endings of the files that adrec writes into a bundle. None of them can hold code; pickles (.bin, .pt, .pkl) can."""
_READ_ELSEWHERE = frozenset({"adapter_config.json"})
"""Files that send a library on to another folder or to the network."""
_MOST_MANIFEST_BYTES = 64_000_000
_trusted: tuple[PublicKey, ...] = ()
"""Whose bundles are opened; empty: anyone's."""


@dataclass(frozen=True)
class Bundle:
    """An opened, verified bundle folder."""

    path: Path
    manifest: dict[str, Any]
    """format_version, adrec_version, data_fingerprint, seed, files, and what the writer added."""

    @property
    def fingerprint(self) -> str:
        """Changes with any byte of any file of the bundle."""
        listing = json.dumps(self.manifest["files"], sort_keys=True).encode()
        return hashlib.sha256(listing).hexdigest()[:16]

    def file(self, name: str) -> Path:
        """Path of a file the bundle must have. Raises BundleError where it was never part of it."""
        if name not in self.manifest["files"]:
            raise BundleError(f"{self.path}: the bundle has no {name}. {_FIX}")
        return self.path / name

    def has(self, name: str) -> bool:
        """Whether the file (or, ending in '/', the folder) is part of the bundle."""
        files = self.manifest["files"]
        return name in files or (name.endswith("/") and any(file.startswith(name) for file in files))

    @property
    def card(self) -> str:
        """The model card, what a stranger should know of the bundle, in Markdown; empty in bundles of before there was one."""
        return self.file(CARD).read_text(encoding="utf-8") if self.has(CARD) else ""

    @property
    def verdict(self) -> str:
        """The line that the card begins with, below its front matter and its title."""
        lines = (line for line in self.card.split("\n---\n", 1)[-1].splitlines() if line and not line.startswith("#"))
        return next(lines, "")

    def json(self, name: str) -> Any:
        """A JSON file of the bundle, parsed."""
        return json.loads(self.file(name).read_text(encoding="utf-8"))


@contextmanager
def save_bundle(path: Path, **facts: Any) -> Iterator[Path]:
    """Yield an empty folder to fill; on success seal it with `bundle.json` and put it at `path` in one step.

    `facts` (data_fingerprint, seed, ...) are stored in the manifest. A failure leaves an earlier bundle untouched.
    """
    with folder_aside(path, BUNDLE) as folder:
        yield folder
        files = {
            file.relative_to(folder).as_posix(): {"sha256": _digest(file), "bytes": file.stat().st_size}
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        }
        for name in files:
            _check_kind(folder, name)
        _check_ledger(path, facts, files)
        manifest = {"format_version": FORMAT_VERSION, "adrec_version": __version__, **facts, "files": files}
        write_json(manifest, folder / MANIFEST)


def open_bundle(path: Path, *, verify: bool = True) -> Bundle:
    """Read and check a bundle. Raises BundleError naming the first missing, altered or strange file, or the wrong version.

    `verify` False skips the digests (not the presence and sizes) of files: for a bundle that was just checked.
    """
    path = path.resolve() if path.is_symlink() else path  # once: the link may be moved while files are read
    manifest_path = path / MANIFEST
    if not manifest_path.is_file():
        raise BundleError(f"{path}: not a bundle ({MANIFEST} is missing). Run 'adrec finetune' to make one.")
    try:
        if manifest_path.stat().st_size > _MOST_MANIFEST_BYTES:
            raise ValueError("too large")
        content = manifest_path.read_bytes()
        manifest = json.loads(content.decode("utf-8"))
        version, files = manifest["format_version"], manifest["files"]
        listed = {str(name): (str(facts["sha256"]), int(facts["bytes"])) for name, facts in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BundleError(f"{manifest_path}: cannot be read ({type(error).__name__}). {_FIX}") from None
    if _trusted:
        try:
            check_signature(content, manifest_path.with_name(MANIFEST + SUFFIX), _trusted)
        except SignatureError as error:
            raise BundleError(f"{path}: {error}, and only signed bundles are trusted here. {_STRANGE}") from None
    if version != FORMAT_VERSION:
        is_student = "distilled_from" in manifest  # its config is that of the training it stands for
        command, config = ("adrec distill", None) if is_student else ("adrec finetune", path / "config.yaml")
        raise BundleError(other_format(path, version=version, ours=FORMAT_VERSION, command=command, config=config))
    for name, (digest, size) in listed.items():
        _check_file(path, name, digest if verify else None, size)
    _check_ledger(path, manifest, files)
    _refuse_unlisted(path, listed)
    return Bundle(path, manifest)


def open_trusted(path: Path, keys: Sequence[Path]) -> Bundle:
    """`open_bundle`, of a bundle that one of these public keys signed, where any is named."""
    with trusting(keys):
        return open_bundle(path)


@contextmanager
def trusting(keys: Sequence[Path]) -> Iterator[None]:
    """Within it, and in its threads, only bundles signed by one of these public keys are opened; any where none is named."""
    global _trusted
    before = _trusted
    _trusted = tuple(map(read_public_key, keys)) or before
    try:
        yield
    finally:
        _trusted = before


def write_json(value: Any, path: Path) -> None:
    """Write JSON for people and machines: indented, UTF-8, ending in a newline."""
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _check_file(path: Path, name: str, digest: str | None, size: int) -> None:
    file = path / name
    if "\0" in name or not file.resolve().is_relative_to(path.resolve()):
        raise BundleError(f"{path}: {MANIFEST} names a file outside the folder ({name!r}). {_STRANGE}")
    _check_kind(path, name)
    if any(part.is_symlink() for part in (file, *file.parents) if part.is_relative_to(path) and part != path):
        raise BundleError(f"{path}: {name} is a link, and a bundle holds none. Copy the files themselves.")
    if not file.is_file():
        raise BundleError(f"{path}: {name} is missing. {_FIX}")
    if file.stat().st_size != size or (digest is not None and _digest(file) != digest):
        raise BundleError(f"{path}: {name} was altered since the bundle was made. {_FIX}")


def _check_kind(path: Path, name: str) -> None:
    file = Path(name)
    if file.suffix not in _KINDS or file.name in _READ_ELSEWHERE:
        raise BundleError(f"{path}: holds {name!r}, a kind of file that no bundle may have. {_STRANGE}")


def _check_ledger(path: Path, manifest: Mapping[str, Any], files: Collection[str]) -> None:
    """A bundle that claims to be private says of every file how."""
    if manifest.get(LEDGER) is None:
        return
    try:
        strange = unaccounted(manifest[LEDGER], files)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"{path}: its ledger of privacy cannot be read ({error}). {_STRANGE}") from None
    if strange:
        epsilon = manifest[LEDGER]["epsilon"]
        raise BundleError(
            f"{path}: claims an epsilon of {epsilon:g}, but its ledger does not account for {strange[0]!r}. Train it again."
        )


def _refuse_unlisted(path: Path, listed: Collection[str]) -> None:
    """Libraries read a folder's files by their usual names: what nobody vouches for must not lie there."""
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path).as_posix()
        is_read = "/" in name and not file.name.startswith(".") and not file.is_dir()
        if is_read and name not in listed:
            raise BundleError(f"{path}: {MANIFEST} does not list {name!r}. Remove it, or copy the whole bundle again.")


def _digest(file: Path) -> str:
    with open(file, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
