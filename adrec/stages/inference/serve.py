"""`adrec serve`: run the HTTP interface until SIGTERM or Ctrl-C, then let running requests end."""

import contextlib
import errno
import gc
import os
import socket
import sys
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.text import Text

from adrec.config.inference.serve import ServeConfig
from adrec.data.availability import ALWAYS, NEVER
from adrec.errors import ResourceError, install_hint
from adrec.prepare.staging.privacy import KEY_VARIABLE
from adrec.terminal import Terminal

if TYPE_CHECKING:
    from adrec.inference.lists.ranker import Ranker

_SWITCH_SECONDS = 0.0005
_GRACE_SECONDS = 1.0
_OTHER_FILES = 256
"""Open files beside the connections."""


@dataclass
class ServeResult:
    """Where it served."""

    host: str
    port: int

    def as_dict(self) -> dict[str, Any]:
        """JSON-safe values."""
        return vars(self)

    def render(self) -> Iterable[Text]:
        """One line."""
        yield Text(f"Served on http://{self.host}:{self.port}; stopped.")


def run(config: ServeConfig, terminal: Terminal) -> ServeResult:
    """Load, listen, serve. Returns after the server has stopped."""
    try:
        import uvicorn

        from adrec.serve.app import create_app
        from adrec.serve.door.connections import bounded
        from adrec.serve.door.keys import Keys, refuse_open_server
        from adrec.serve.engine import Engine
        from adrec.serve.intake.names import pseudonymises
        from adrec.serve.watch import Watch, log_to_stderr
    except ImportError as error:
        raise ResourceError(f"adrec serve needs {error.name}. Install it with: {install_hint('serve')}") from None
    _refuse_taken(config.host, config.port)
    log_to_stderr()
    keys, watch = Keys(config.access), Watch()
    refuse_open_server(config.host, keys, config.access)
    _allow_files(config.connections.max_connections)
    with terminal.progress("Loading the bundle and the catalogue", None, unit="ads"):
        engine = Engine(config)
    scheme = "https" if config.tls is not None else "http"
    terminal.warn(f"serving {len(engine.live.row_of_ad):,} ads on {scheme}://{config.host}:{config.port} (Ctrl-C stops)")
    if getattr(engine.store, "forgetful", False):
        terminal.warn("this Redis writes no log (appendonly no): its restart loses events. Set 'appendonly yes'.")
    for arm, live in engine.lives.items():
        if not live.predictor.checked:
            terminal.warn(f"arm {arm}: the bundle's logits were not checked (no golden requests, or scored by onnxruntime)")
    if pseudonymises(engine.lives) and not engine.names.has_key:
        terminal.warn(
            f"the log was pseudonymised and {KEY_VARIABLE} is not set: users are known by their pseudonyms alone, and events"
            " that name others are refused"
        )
    _warn_of_unpaced(engine.live.ranker, terminal)
    settings = uvicorn.Config(
        create_app(config, engine, keys=keys, watch=watch),
        host=config.host,
        port=config.port,
        log_level="warning",
        access_log=False,
        timeout_keep_alive=75,  # longer than clients and balancers keep idle connections
        timeout_graceful_shutdown=int(config.drain_seconds) or None,
        http=bounded(
            config.connections,
            max_body_bytes=config.intake.max_body_bytes,
            refused=lambda status: watch.requests.labels("unread", str(status)).inc(),
        ),
        ws="none",
        server_header=False,
        ssl_certfile=config.tls.certificate if config.tls is not None else None,
        ssl_keyfile=config.tls.key if config.tls is not None else None,
    )
    # Every time that HTTP is to be answered during a pass of the model, it waits this long for the interpreter: 5 ms is
    # Python's default, and a request needs the interpreter several times.
    sys.setswitchinterval(_SWITCH_SECONDS)
    gc.freeze()  # what is loaded stays: garbage collection need not walk it again and again
    server = uvicorn.Server(settings)
    _end_after(server, config.drain_seconds)
    terminal.rest()
    with contextlib.suppress(SystemExit):  # uvicorn's answer where it cannot listen; it has said why
        server.run()
    if not server.started:
        raise ResourceError(f"{config.host}:{config.port}: cannot listen there. Give another 'port' or 'host'.")
    return ServeResult(config.host, config.port)


def _refuse_taken(host: str, port: int) -> None:
    """Raise ResourceError where nobody can listen there: better told now than after the bundle is loaded."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        cure = "Stop what runs there, or give another --port." if error.errno == errno.EADDRINUSE else "Give another address."
        raise ResourceError(f"{host}:{port}: cannot listen there ({error.strerror or error}). {cure}") from None


def _end_after(server: Any, seconds: float) -> None:
    """From the signal to stop on, end the process after so long and a little, whatever is still in flight: a pass, an
    explanation and a reload cannot be broken off, and what was acknowledged is on disk.
    """
    stop = server.handle_exit

    def ends(number: int, frame: Any) -> None:
        timer = threading.Timer(seconds + _GRACE_SECONDS, os._exit, (0,))
        timer.daemon = True
        timer.start()
        stop(number, frame)

    server.handle_exit = ends


def _warn_of_unpaced(ranker: "Ranker", terminal: Terminal) -> None:
    """Say how many budgets an even pace cannot be kept for, because nobody knows when they should be spent."""
    if ranker.clock.daily or not any(policy.even_pacing for policy in ranker.list_policies):
        return
    ads = ranker.ads
    has_budget = ads.budget < np.iinfo(np.int64).max
    unknown = int((has_budget & ((ads.starts == ALWAYS) | (ads.ends == NEVER))).sum())
    if unknown:
        terminal.warn(
            f"limits.pacing: {unknown:,} of {int(has_budget.sum()):,} ads with a budget have no 'starts_at' or no 'ends_at', so"
            " that theirs is released at once. Give both, or set limits.budget_period to day."
        )


def _allow_files(connections: int) -> None:
    """As many open files as the connections need, where the machine lets this process raise its limit."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
