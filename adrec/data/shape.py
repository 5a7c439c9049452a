"""What a log names: users, ads, moments, texts. Each may be missing; the manifest and the bundle say so under `has`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class LogShape:
    """Whether rows say who, what and when, and whether ads have words."""

    user: bool = True
    ad: bool = True
    time: bool = True
    text: bool = True

    @property
    def lacking(self) -> frozenset[str]:
        """What no counter can be kept by: `user`, `ad`; `time` is what all of them need."""
        return frozenset(name for name in ("user", "ad", "time") if not getattr(self, name))

    def as_dict(self) -> dict[str, bool]:
        """For the manifest and the bundle."""
        return asdict(self)

    @classmethod
    def of(cls, described: Mapping[str, Any]) -> "LogShape":
        """From a manifest or a bundle; those made before anything could be missing do not say."""
        return cls(**described.get("has", {}))
