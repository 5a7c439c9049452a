"""Config of `adrec sign`."""

from pydantic import model_validator

from adrec.config.base import ConfigPath, StageConfig


class SignConfig(StageConfig):
    """Vouch for a bundle, so that others can tell whose it is."""

    key: ConfigPath
    """PEM file of the Ed25519 secret key. Keep it from everyone; its `.pub` file is for everyone."""
    bundle: ConfigPath | None = None
    """Folder made by `adrec finetune`, `distill` or `daily`."""
    make_key: bool = False
    """Make the key first."""

    @model_validator(mode="after")
    def _does_something(self) -> "SignConfig":
        if self.bundle is None and not self.make_key:
            raise ValueError("give a 'bundle' to sign, or 'make_key'")
        return self
