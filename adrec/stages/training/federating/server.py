"""The server of a federated training: asks clients over HTTPS, sees sums under masks, moves the weights, writes the bundle.

Clients ask for work and answer it, so that only the server listens. Flower's protocol (flwr 1.42) would do as well, but wants
protobuf, grpcio and cryptography at versions of its own; what is said here is four questions and arrays.
"""

import contextlib
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from adrec.bundle import open_bundle
from adrec.config.inference.access import Access
from adrec.config.training.federate import FederateConfig, Listening
from adrec.errors import AdrecError, ConfigError, ResourceError
from adrec.models.blend.calibration_sums import calibration_of
from adrec.serve.door.keys import Keys
from adrec.stages.training.federating.private import train_with_noise
from adrec.stages.training.federating.result import FederateResult
from adrec.stages.training.federating.sides import Side
from adrec.terminal import Terminal
from adrec.training.ctr_training import raw_outputs
from adrec.training.federated.exchange import Boxes, Message
from adrec.training.federated.features import TABLES
from adrec.training.federated.remote import RemoteSums
from adrec.training.federated.rounds import Rounds, flat
from adrec.training.federated.sums import Summing

POLL_SECONDS = 20.0
"""A client's question for work is answered by then, with work or without."""
MOST_BYTES = 1 << 31
"""Of an answer."""
_LOOKS = 10
_FAREWELL_SECONDS = 60.0


def serve_rounds(config: FederateConfig, terminal: Terminal) -> FederateResult:
    """Wait for clients, train, send them what came of it, and write the bundle."""
    side = Side(config, terminal)
    listening = config.listening
    keys = Keys(Access(keys=listening.clients), environment={})
    if listening.clients is None:
        raise ConfigError("listening.clients: name the file of the clients' keys; nobody may send anything without one.")
    if listening.certificate is None and listening.host not in {"127.0.0.1", "localhost", "::1"}:
        raise ConfigError(f"listening: {listening.host} can be reached from other machines. Set listening.certificate and key.")
    boxes = Boxes(keys.names)
    sums = RemoteSums(boxes, config.threshold, listening.patience_seconds)
    with _listening(listening, boxes, keys):
        terminal.warn(f"waiting for {len(boxes.names)} clients on {listening.host}:{listening.port}")
        present = boxes.present(len(boxes.names), listening.wait_seconds)
        present = _alike(boxes, present, side.agreed, listening.patience_seconds, terminal)
        if len(present) < 2:
            raise AdrecError(
                f"federated: {len(present)} client came; a sum hides nobody among fewer than two. Start more clients."
            )
        if side.fitting is not None:
            present = _fitted(side, boxes, sums, present, listening.patience_seconds)
        if config.privacy is not None:
            return _with_noise(config, side, boxes, sums, present)
        total, _ = sums(present, Message({"task": "counts"}, {}))
        side.take(total)
        module, data = side.module(), side.data
        means = [task.mean for task in data.tasks]
        unused = Summing(True, config.threshold, 0.0, np.random.default_rng(config.seed))
        rounds = Rounds(module, data.collate, data.sampling, side.local(), side.server(), unused, config.seed)
        random, curve = np.random.default_rng(config.seed), []
        with terminal.progress("Federated training", config.rounds, unit="rounds") as advance:
            for number in range(config.rounds):
                before = flat(module)
                drawn = [str(name) for name in random.permutation(present)[: config.clients_per_round]]
                total, _ = sums(drawn, Message({"task": "change", "round": number, "means": means}, {"weights": before}))
                rounds.move(before, total[:-1] / max(total[-1], 1e-9))
                if (number + 1) % max(1, config.rounds // _LOOKS) == 0:
                    metrics = module.metrics(raw_outputs(module, data.batches(data.valid), side.base.device))
                    curve.append({"round": float(number + 1), **metrics})
                advance()
        final = {"weights": flat(module)}
        total, _ = sums(present, Message({"task": "cells", "means": means}, final))
        cells = total.reshape(len(data.tasks), -1)
        packed, held_out = side.packed(module)
        calibrations = {task.name: calibration_of(own) for task, own in zip(data.tasks, cells, strict=True)}
        figures = side.write(packed, calibrations, held_out, len(present), curve)
        said = {name: calibration.to_json() for name, calibration in calibrations.items()}
        goodbye = Message({"phase": "done", "means": means, "calibrations": said, "clients": len(present)}, final)
        boxes.ask(dict.fromkeys(present, goodbye), _FAREWELL_SECONDS)
    return FederateResult(str(config.output), len(present), 0, 0, config.rounds, sums.fallen, figures, curve)


def _with_noise(config: FederateConfig, side: Side, boxes: Boxes, sums: RemoteSums, present: list[str]) -> FederateResult:
    """Under `privacy`: all clients in every round, since masks do not hide one alone."""
    if config.clients_per_round < len(present):
        raise ConfigError(f"clients_per_round: under `privacy` all {len(present)} clients take part in every round. Raise it.")
    data = side.data
    unused = Summing(True, config.threshold, 0.0, np.random.default_rng(config.seed))
    rounds = Rounds(side.module(), data.collate, data.sampling, side.local(), side.server(), unused, config.seed)
    result = train_with_noise(config, side, present, lambda names, task: sums(names, task)[0], rounds)
    facts = {
        "phase": "done",
        "means": [task.mean for task in side.data.tasks],
        "calibrations": open_bundle(config.output).json("calibration.json"),
        "clients": len(present),
        "ledger": result.privacy,
    }
    goodbye = Message(facts, {"weights": flat(rounds.module)})
    boxes.ask(dict.fromkeys(present, goodbye), _FAREWELL_SECONDS)
    return replace(result, fallen=sums.fallen)


def _fitted(side: Side, boxes: Boxes, sums: RemoteSums, names: list[str], seconds: float) -> list[str]:
    """Fit the features with all clients, and tell them; those who have read their rows by them."""
    assert side.fitting is not None
    features = side.fitting.together(lambda task: sums(names, task)[0])
    side.fit(features)
    told = Message({"phase": "features", "features": {table: features[table].to_json() for table in TABLES}}, {})
    ready = sorted(boxes.ask(dict.fromkeys(names, told), seconds))
    if len(ready) < 2:
        raise AdrecError(f"federated: {len(ready)} client read its rows within {seconds:g} seconds. Raise patience_seconds.")
    return ready


def _alike(boxes: Boxes, names: list[str], agreed: str, seconds: float, terminal: Terminal) -> list[str]:
    """Those clients whose folder and settings are like the server's."""
    answers = boxes.ask({name: Message({"phase": "hello", "agreed": agreed}, {}) for name in names}, seconds)
    alike = sorted(name for name, said in answers.items() if said.facts.get("agreed") == agreed)
    for name in sorted(set(names) - set(alike)):
        terminal.warn(
            f"client {name} is left out: its network, features, ads or encoder are not the server's. Give all sides the same"
            " finetune settings, and folders with the same features.json and ads."
        )
    return alike


@contextlib.contextmanager
def _listening(listening: Listening, boxes: Boxes, keys: Keys) -> Iterator[None]:
    """An HTTPS server in a thread of its own."""
    try:
        import uvicorn
    except ImportError as error:
        raise ResourceError(f"adrec federate --role server needs {error.name}. Run: pip install 'adrec[serve]'") from None
    settings = uvicorn.Config(
        _app(boxes, keys),
        host=listening.host,
        port=listening.port,
        log_level="warning",
        access_log=False,
        ws="none",
        server_header=False,
        timeout_keep_alive=75,
        ssl_certfile=listening.certificate,
        ssl_keyfile=listening.key,
        ssl_version=ssl.PROTOCOL_TLS_SERVER,
    )
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=_run, args=(server,), daemon=True)
    thread.start()
    try:
        while not server.started:
            if not thread.is_alive():
                raise ResourceError(f"{listening.host}:{listening.port}: cannot listen there. Give another listening.port.")
            time.sleep(0.05)
        yield
    finally:
        server.should_exit = True
        thread.join(POLL_SECONDS + 5.0)


def _run(server: Any) -> None:
    with contextlib.suppress(SystemExit):  # uvicorn's answer where it cannot listen
        server.run()


def _app(boxes: Boxes, keys: Keys) -> Any:
    """GET /work?after=N, POST /answers/N."""
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    def name_of(request: Request) -> str | None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        key = keys.who(given) if scheme.lower() == "bearer" else None
        return key.name if key is not None and key.name in boxes.names else None

    async def work(request: Request) -> Response:
        name = name_of(request)
        if name is None:
            return Response(status_code=401)
        after = request.query_params.get("after", "0")
        if not after.isdecimal():
            return Response(status_code=422)
        asked = await run_in_threadpool(boxes.question, name, int(after), POLL_SECONDS)
        if asked is None:
            return Response(status_code=204)
        return Response(asked[1], media_type="application/octet-stream", headers={"x-step": str(asked[0])})

    async def answer(request: Request) -> Response:
        name = name_of(request)
        if name is None:
            return Response(status_code=401)
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > MOST_BYTES:
                return Response(status_code=413)
        taken = boxes.answer(name, request.path_params["step"], bytes(body))
        return Response(status_code=200 if taken else 409)

    return Starlette(routes=[Route("/work", work), Route("/answers/{step:int}", answer, methods=["POST"])])
