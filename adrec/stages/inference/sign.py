"""`adrec sign`: check a bundle, and sign the list of its files."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.text import Text

from adrec.bundle import MANIFEST, open_bundle
from adrec.config.inference.sign import SignConfig
from adrec.data.disk.signatures import PublicKey, make_key, sign
from adrec.terminal import Terminal


@dataclass
class SignResult:
    """What was signed, and by which key."""

    public_key: PublicKey
    signature: Path | None

    def as_dict(self) -> dict[str, Any]:
        """JSON-safe values."""
        signature = None if self.signature is None else str(self.signature)
        return {"key": self.public_key.name, "public_key": self.public_key.line, "signature": signature}

    def render(self) -> Iterable[Text]:
        """Two lines."""
        if self.signature is not None:
            yield Text(f"Signed: {self.signature}")
        yield Text(f"Public key {self.public_key.name}: {self.public_key.line}")


def run(config: SignConfig, terminal: Terminal) -> SignResult:
    """Sign. Raises BundleError for a bundle that is incomplete or altered, ConfigError for a key that is none."""
    public = make_key(config.key) if config.make_key else None
    signature = None
    if config.bundle is not None:
        open_bundle(config.bundle)  # nobody vouches for a folder that is not whole
        signature, public = sign(config.bundle / MANIFEST, config.key)
    assert public is not None
    return SignResult(public, signature)
