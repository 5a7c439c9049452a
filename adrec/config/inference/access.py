"""Config of who may ask a server what, and of the connections it takes."""

from typing import Literal

from pydantic import Field

from adrec.config.base import Config, ConfigPath


class Connections(Config):
    """Limits on connections, kept before any work."""

    max_connections: int = Field(1_000, ge=1, le=1_000_000)
    """Connections at once; one more ends the one that has waited longest for a request."""
    max_header_bytes: int = Field(32_768, ge=1_024, le=10_000_000)
    """Request line and headers together; longer ones are answered 431."""
    read_seconds: float = Field(15.0, gt=0, le=3_600)
    """Time in which a request must have come whole; slower ones are answered 408."""


class Tls(Config):
    """Certificate of the server."""

    certificate: ConfigPath
    """PEM file of the certificate and its chain."""
    key: ConfigPath
    """PEM file of its private key."""


class Access(Config):
    """Who may ask what. A key of the environment variable ADREC_API_KEY may do everything."""

    keys: ConfigPath | None = None
    """YAML file of keys: see docs/using/serve.md#who-may-ask-what. It is read again when it changes."""
    without_key: Literal["loopback", "anyone"] = "loopback"
    """Who may ask without a key where none is set: only this machine, or anyone. A server that others can reach and that has no
    key does not start unless told `anyone`."""
    hosts: list[str] = []
    """Names by which the server may be called (`ads.example.com`, `*.example.com`). Default: any with a key; without one only
    addresses and names without a dot, which no foreign site can take."""
    requests_per_second: float | None = Field(None, gt=0, le=1e6)
    """Most requests a second of one key, or of one client address where there is no key; more are answered 429."""
    burst: int = Field(50, ge=1, le=1_000_000)
    """Requests that may come at once before the rate counts."""
