"""A client of a federated training: asks the server for work, answers with masked sums, and keeps the model that comes of it.

Its rows never leave this process; what it says are its keys, sealed shares of its masks, and vectors under masks.
"""

import os
import time
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from adrec.config.training.federate import FederateConfig
from adrec.data.features import FeatureSet
from adrec.errors import AdrecError, ConfigError, ResourceError
from adrec.models.blend.calibration import Calibration
from adrec.serve.door.keys import KEY_VARIABLE
from adrec.stages.training.federating.owner import Owner
from adrec.stages.training.federating.private import write_copy
from adrec.stages.training.federating.result import FederateResult
from adrec.stages.training.federating.sides import Side
from adrec.terminal import Terminal
from adrec.training.federated.exchange import Message
from adrec.training.federated.features import OwnColumns
from adrec.training.federated.remote import Summand

_RETRY_SECONDS = 1.0
_TIMEOUT_SECONDS = 120.0


def join_rounds(config: FederateConfig, terminal: Terminal) -> FederateResult:
    """Answer the server until it says what came of it; write the same bundle here."""
    side = Side(config, terminal)
    if side.fitting is None:
        client = Owner(side, side.data.train, side.data.valid)
    else:
        client = Owner(side, None, None, OwnColumns.of(side.fitting, side.prepared))
    summand = Summand(client.vector)
    done: Message | None = None
    with _Line(config) as line, terminal.progress("Answering the server", None, unit="questions") as advance:
        while done is None:
            question = line.next()
            match question.facts.get("phase"):
                case "hello":
                    if question.facts.get("agreed") != side.agreed:
                        line.answer(Message({"agreed": side.agreed}, {}))
                        raise ConfigError(
                            f"{config.joining.server}: its network, features, ads or encoder are not those of"
                            f" {side.prepared.path}."
                            " Give all sides the same finetune settings, and folders with the same features.json and ads."
                        )
                    line.answer(Message({"agreed": side.agreed}, {}))
                case "features":
                    side.fit({name: FeatureSet.from_json(values) for name, values in question.facts["features"].items()})
                    client.rows, client.valid = side.data.train, side.data.valid
                    line.answer(Message({}, {}))
                case "done":
                    line.answer(Message({}, {}))
                    done = question
                case _:
                    line.answer(summand.answer(question))
            advance()
    module = client.module_of(done)
    packed, held_out = side.packed(module)
    calibrations = {name: Calibration.from_json(values) for name, values in done.facts["calibrations"].items()}
    if done.facts.get("ledger") is not None:
        return write_copy(
            side, replace(packed, calibrations=calibrations), held_out, done.facts["ledger"], int(done.facts["clients"])
        )
    figures = side.write(packed, calibrations, held_out, int(done.facts["clients"]), [])
    rows = side.data.rows
    return FederateResult(str(config.output), int(done.facts["clients"]), rows, rows, config.rounds, 0, figures)


class _Line:
    """The connection to the server: asked again where it breaks, until patience ends."""

    def __init__(self, config: FederateConfig) -> None:
        try:
            import httpx
        except ImportError as error:
            raise ResourceError(f"adrec federate --role client needs {error.name}. Run: pip install 'adrec[serve]'") from None
        joining = config.joining
        parts = urlsplit(joining.server)
        if parts.scheme != "https" and parts.hostname not in {"127.0.0.1", "localhost", "::1"}:
            raise ConfigError(f"joining.server: {joining.server} is asked over a network without TLS. Use https://.")
        key = _key()
        if not key:
            raise ConfigError(
                f"the environment variable {KEY_VARIABLE} holds no key, and the server knows its clients by theirs."
            )
        self._errors: tuple[type[Exception], ...] = (httpx.TransportError,)
        self._patience, self._server, self._step = joining.patience_seconds, joining.server, 0
        verify: Any = True
        if joining.authority is not None:
            import ssl

            try:
                verify = ssl.create_default_context(cafile=str(joining.authority))
            except OSError as error:
                raise ConfigError(f"joining.authority: {joining.authority} cannot be read ({error}).") from None
        self._http = httpx.Client(
            base_url=joining.server, headers={"authorization": f"Bearer {key}"}, timeout=_TIMEOUT_SECONDS, verify=verify
        )

    def __enter__(self) -> "_Line":
        return self

    def __exit__(self, *error: object) -> None:
        self._http.close()

    def next(self) -> Message:
        """The next question, as soon as there is one."""
        until = time.monotonic() + self._patience
        while time.monotonic() < until:
            reply = self._sent("GET", "/work", until, params={"after": self._step})
            if reply.status_code == 200:
                self._step = int(reply.headers["x-step"])
                return Message.from_bytes(reply.content)
        raise AdrecError(
            f"{self._server}: no word for {self._patience:g} seconds. Ask who runs it; raise joining.patience_seconds."
        )

    def answer(self, message: Message) -> None:
        """Send what was asked for; an answer that came too late is dropped by the server, which goes on without it."""
        self._sent("POST", f"/answers/{self._step}", time.monotonic() + self._patience, content=message.to_bytes())

    def _sent(self, method: str, path: str, until: float, **more: Any) -> Any:
        while True:
            try:
                reply = self._http.request(method, path, **more)
            except self._errors as error:
                if "CERTIFICATE_VERIFY_FAILED" in str(error):
                    raise AdrecError(
                        f"{self._server}: its certificate is signed by nobody we trust. Set joining.authority."
                    ) from None
                if time.monotonic() > until:
                    raise AdrecError(f"{self._server}: cannot be reached ({type(error).__name__}).") from None
                time.sleep(_RETRY_SECONDS)
                continue
            if reply.status_code == 401:
                raise ConfigError(f"{self._server}: does not know the key of {KEY_VARIABLE}. Ask who runs it for one.")
            if reply.status_code not in {200, 204, 409}:
                raise AdrecError(f"{self._server}: answered {reply.status_code}. Run the same adrec on all sides.")
            return reply


def _key() -> str | None:
    return os.environ.get(KEY_VARIABLE)
