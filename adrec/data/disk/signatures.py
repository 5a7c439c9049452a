"""Ed25519 signatures of files in minisign's format: who has the public key can tell, without a network, who vouches.

Files are signed by their BLAKE2b-512 digest, as minisign does: `minisign -V -p KEY.pub -m FILE` takes what is written here, and
public keys and signatures of minisign are taken. Secret keys are PEM files (PKCS #8), as openssl writes them.
"""

import base64
import binascii
import hashlib
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from adrec.errors import ConfigError, ResourceError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SUFFIX = ".minisig"
"""Behind the name of the signed file."""
_KEY_BYTES, _ID_BYTES = 32, 8
_COMMENT, _TRUSTED = "untrusted comment: ", "trusted comment: "
_LONGEST_FILE = 100_000


class SignatureError(Exception):
    """A signature that is missing, of another key, or of other bytes; says which."""


class PublicKey(NamedTuple):
    """Whose signatures are trusted."""

    id: bytes
    key: bytes
    """(32,)"""

    @property
    def line(self) -> str:
        """As minisign writes it."""
        return base64.b64encode(b"Ed" + self.id + self.key).decode()

    @property
    def name(self) -> str:
        """The key's number, as minisign shows it."""
        return self.id[::-1].hex().upper()


def make_key(path: Path) -> PublicKey:
    """Write a new secret key to `path`, and its public key to `path`.pub. Raises ConfigError where there is a file."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    secret = Ed25519PrivateKey.generate()
    pem = secret.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = _public(secret)
    shared = _beside(path)
    for file in (path, shared):
        if file.exists():
            raise ConfigError(f"{file}: is there already. Sign with it, or name another file.")
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as handle:
            handle.write(pem)
        shared.write_text(f"{_COMMENT}minisign public key {public.name}\n{public.line}\n", encoding="utf-8")
    except OSError as error:
        raise ResourceError(f"{error.filename}: cannot be written ({error.strerror}).") from None
    return public


def sign(file: Path, secret: Path) -> tuple[Path, PublicKey]:
    """Write the signature of `file` beside it. Returns where, and the public key. Raises ConfigError for a key that is none."""
    key = _secret(secret)
    public = _public(key)
    comment = f"timestamp:{int(datetime.now(UTC).timestamp())}\tfile:{file.name}\thashed"
    signature = key.sign(_digest(file.read_bytes()))
    whole = key.sign(signature + comment.encode())
    lines = [
        f"{_COMMENT}signature by adrec, key {public.name}",
        base64.b64encode(b"ED" + public.id + signature).decode(),
        f"{_TRUSTED}{comment}",
        base64.b64encode(whole).decode(),
    ]
    written = file.with_name(file.name + SUFFIX)
    written.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return written, public


def read_public_key(path: Path) -> PublicKey:
    """A public key file of adrec or minisign, or a file that holds its line alone. Raises ConfigError."""
    lines = [line for line in _text(path).splitlines() if line.strip() and not line.startswith(_COMMENT)]
    raw = _decoded(lines[0]) if len(lines) == 1 else b""
    if len(raw) != 2 + _ID_BYTES + _KEY_BYTES or raw[:2] != b"Ed":
        raise ConfigError(f"{path}: is no public key. Name the .pub file that 'adrec sign' or minisign wrote.")
    return PublicKey(raw[2 : 2 + _ID_BYTES], raw[2 + _ID_BYTES :])


def check_signature(content: bytes, signature: Path, trusted: Sequence[PublicKey]) -> PublicKey:
    """The key whose signature of `content` the file `signature` holds. Raises SignatureError where it is none of `trusted`."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        if signature.stat().st_size > _LONGEST_FILE:
            raise SignatureError("its signature is no signature")
        lines = signature.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise SignatureError("it is not signed") from None
    except (OSError, UnicodeDecodeError):
        raise SignatureError("its signature cannot be read") from None
    if len(lines) < 4 or not lines[2].startswith(_TRUSTED):
        raise SignatureError("its signature is no signature")
    raw, whole, comment = _decoded(lines[1]), _decoded(lines[3]), lines[2].removeprefix(_TRUSTED)
    kind, number, signed = raw[:2], raw[2 : 2 + _ID_BYTES], raw[2 + _ID_BYTES :]
    public = next((key for key in trusted if key.id == number), None)
    if public is None:
        raise SignatureError("its signature is by none of the trusted keys")
    if kind not in (b"ED", b"Ed"):
        raise SignatureError("its signature is of an unknown kind")
    key = Ed25519PublicKey.from_public_bytes(public.key)
    try:
        key.verify(signed, _digest(content) if kind == b"ED" else content)
        key.verify(whole, signed + comment.encode())
    except InvalidSignature:
        raise SignatureError("it is not what was signed") from None
    return public


def _beside(secret: Path) -> Path:
    return secret.with_name(secret.name + ".pub")


def _secret(path: Path) -> "Ed25519PrivateKey":
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(_text(path).encode(), None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path}: is no Ed25519 key without a password. Make one with --make-key.")
    return key


def _public(key: "Ed25519PrivateKey") -> PublicKey:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    raw = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return PublicKey(hashlib.blake2b(raw, digest_size=_ID_BYTES).digest(), raw)


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=64).digest()


def _decoded(line: str) -> bytes:
    try:
        return base64.b64decode(line.strip(), validate=True)
    except (binascii.Error, ValueError):
        return b""


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _LONGEST_FILE:
            raise ConfigError(f"{path}: is no key.")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise ConfigError(f"{path}: cannot be read ({reason}). Make a key with: adrec sign --make-key") from None
