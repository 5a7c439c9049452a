"""The HTTP interface over one engine: routes, batching, errors. `adrec serve` runs it under uvicorn."""

import asyncio
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi import Path as UrlPath
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from pydantic_core import to_json

from adrec import __version__
from adrec.config.inference.serve import Batching, ServeConfig
from adrec.data.arrays import combined
from adrec.data.device import use_threads
from adrec.errors import AdrecError, ConfigError, reason_of, visible
from adrec.schema import NOBODY
from adrec.serve.batcher import Batcher, OverloadedError
from adrec.serve.door.docs import docs_routes
from adrec.serve.door.guard import Guard, Recorder
from adrec.serve.door.keys import Keys
from adrec.serve.engine import Engine
from adrec.serve.intake.checking import RefusedError, check_moments
from adrec.serve.intake.fields import Id
from adrec.serve.intake.messages import (
    AdIn,
    AdOut,
    Done,
    EventsAnswer,
    EventsRequest,
    ExplainAnswer,
    ExplainRequest,
    Message,
    RankAnswer,
    RankRequest,
    ScoreAnswer,
    ScoreRequest,
    TryAnswer,
    TryRequest,
)
from adrec.serve.state.live import UnknownAdError
from adrec.serve.store import StoreError
from adrec.serve.storing import Stored
from adrec.serve.watch import Watch

_LONGEST_PLACE = 300
_QUEUES = ("score", "rank", "explain")
_NICE = 10
AdId = Annotated[str, UrlPath(min_length=1, max_length=200)]
_FAULTS: dict[int | str, dict[str, Any]] = {
    400: {"description": "Something named is not there, or does not fit."},
    401: {"description": "The API key is missing or wrong."},
    403: {"description": "The key is not for this, or the server has none and this needs one."},
    404: {"description": "There is no such ad."},
    409: {"description": "The bundle is refused; the earlier one goes on."},
    421: {"description": "The server is not called by this name."},
    429: {"description": "More requests than this key may send; try again after Retry-After seconds."},
    415: {"description": "The body is encoded."},
    413: {"description": "The body is too large."},
    422: {"description": "The body or the path is not as described: where, and what."},
    503: {"description": "The server is busy; try again after Retry-After seconds."},
    504: {"description": "The answer took too long."},
}


class Fault(Message):
    """What is wrong and how to mend it."""

    detail: Any


class ReloadRequest(Message):
    """Which bundle to load; none: the present folder again."""

    bundle: str | None = None
    arm: Literal["a", "b"] = "a"
    """Whose bundle it replaces in an A/B test."""


class EraseRequest(Message):
    """Whom to forget."""

    user_id: Id


def create_app(
    config: ServeConfig, engine: Engine | None = None, *, keys: Keys | None = None, watch: Watch | None = None
) -> FastAPI:
    """The application; `engine`, `keys` and `watch` may be given ready-made. Raises ConfigError for keys that are none."""
    watch = watch or Watch()
    held: dict[str, Any] = {"engine": engine}

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        model, side = ThreadPoolExecutor(1, "model", use_threads, (config.threads,)), ThreadPoolExecutor(2, "side")
        loop = asyncio.get_running_loop()
        if held["engine"] is None:
            held["engine"] = await loop.run_in_executor(side, Engine, config)
        ready: Engine = held["engine"]
        stored = Stored(config)
        held.update(side=side, model=model, stored=stored, reload=ThreadPoolExecutor(1, "reload"))
        why = ThreadPoolExecutor(1, "explain", _in_the_background, (config.threads,))
        held["explain"] = _batcher(
            "explain", lambda items: [ready.explain(item) for item in items], why, config.batching.model_copy(
                update={"max_items": 1, "max_wait_ms": 0, "max_queue": config.explaining.max_queue}
            ), watch,
        )  # fmt: skip
        for what in ("score", "rank"):
            held[what] = _batcher(what, getattr(ready, what), model, config.batching, watch)
        for what in _QUEUES:
            held[what].start()
        ready.follower.start()
        held["ready"] = True
        yield
        held["ready"] = False
        await asyncio.gather(*(held[what].close(config.drain_seconds) for what in _QUEUES))
        model.shutdown()
        why.shutdown(cancel_futures=True)
        for executor in (side, held["reload"]):
            executor.shutdown(cancel_futures=True)
        stored.close()
        ready.close()

    app = FastAPI(
        title="adrec",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        responses={code: {**what, "model": Fault} for code, what in _FAULTS.items()},
    )
    # The last one added is the first to see a request.
    app.add_middleware(
        Guard, access=config.access, keys=keys or Keys(config.access), max_body_bytes=config.intake.max_body_bytes
    )
    if config.cors_origins:
        app.add_middleware(CORSMiddleware, allow_origins=config.cors_origins, allow_methods=["*"], allow_headers=["*"])
    app.add_middleware(Recorder, watch=watch)
    _faults(app)
    _model_routes(app, config, watch, held)
    _change_routes(app, config, watch, held)
    _admin_routes(app, watch, held)
    _plain_routes(app, watch, held)
    if config.page:
        _page_routes(app)
        docs_routes(app)
    return app


def _model_routes(app: FastAPI, config: ServeConfig, watch: Watch, held: dict[str, Any]) -> None:
    seconds = config.batching.timeout_seconds

    @app.post("/v1/score", response_model=ScoreAnswer)
    async def score(body: ScoreRequest, request: Request) -> Response:
        """Click probabilities of (user, ad) pairs."""
        _most(len(body.rows), config.intake.max_rows, "rows")
        _note(request, watch, rows=len(body.rows), user=body.rows[0].user_id)
        answer = await held["score"].ask(body, seconds)
        rows = answer["rows"]
        watch.answered(_facts(request), [row["score"] for row in rows], [row["arm"] for row in rows])
        return Response(to_json(answer), media_type="application/json")

    @app.post("/v1/rank", response_model=RankAnswer)
    async def rank(body: RankRequest, request: Request) -> Response:
        """Lists for one or many users, from the whole catalogue or from given candidates."""
        _most(len(body.requests), config.intake.max_requests, "requests")
        for item in body.requests:
            _most(len(item.candidates or []), config.intake.max_candidates, "candidates")
        _note(request, watch, rows=len(body.requests), user=body.requests[0].user_id)
        answer = await held["rank"].ask(body, seconds)
        lists = answer["lists"]
        watch.answered(_facts(request), [ad["score"] for item in lists for ad in item["ads"]], [item["arm"] for item in lists])
        return Response(to_json(answer), media_type="application/json")

    @app.post("/v1/try", response_model=TryAnswer)
    async def try_out(body: TryRequest, request: Request) -> Response:
        """A list as it is, and as it would be with another headline or bid: for the asking alone, nothing is changed."""
        _most(len(body.request.candidates or []), config.intake.max_candidates, "candidates")
        _note(request, watch, rows=1, user=body.request.user_id)
        return Response(to_json(await _in(held["side"], held["engine"].try_out, body)), media_type="application/json")

    @app.post("/v1/explain")
    async def explain(body: ExplainRequest, request: Request) -> ExplainAnswer:
        """Which words, clicks and features speak for an ad, and which against."""
        _note(request, watch, rows=1, user=body.user.user_id)
        found: ExplainAnswer = await held["explain"].ask(body, config.explaining.timeout_seconds)
        return found


def _change_routes(app: FastAPI, config: ServeConfig, watch: Watch, held: dict[str, Any]) -> None:
    @app.post("/v1/events")
    async def events(body: EventsRequest, request: Request) -> EventsAnswer:
        """Record impressions, clicks and conversions; the answer comes when they are on disk."""
        _most(len(body.events), config.intake.max_events, "events")
        _note(request, watch, rows=len(body.events), user=body.events[0].user_id)
        check_moments(body.events, held["engine"].now())
        answer: EventsAnswer = await held["stored"]("events", held["engine"].record, body.events)
        for event in body.events:
            watch.events.labels(event.kind).inc()
        return answer

    @app.get("/v1/ads/{ad_id:path}")
    async def get_ad(ad_id: AdId) -> AdOut:
        """An ad as PUT takes it."""
        found: AdOut = held["engine"].ad(ad_id)
        return found

    @app.put("/v1/ads/{ad_id:path}")
    async def put_ad(ad_id: AdId, body: AdIn) -> Done:
        """Add or change an ad: when the answer comes it is encoded and served."""
        await held["stored"]("changes", held["engine"].put_ad, ad_id, body)
        return Done(detail=f"{ad_id} is served")

    @app.delete("/v1/ads/{ad_id:path}")
    async def delete_ad(ad_id: AdId) -> Done:
        """Never show the ad again."""
        await held["stored"]("changes", held["engine"].delete_ad, ad_id)
        return Done(detail=f"{ad_id} is gone")

    @app.post("/admin/reload")
    async def reload(body: ReloadRequest) -> Done:
        """Load a bundle aside, check it, swap it in. A bad one is refused (409) and the old one goes on."""
        if body.arm not in held["engine"].lives:
            raise ConfigError("There is no arm b: the server was started without a 'challenger'.")
        bundle = Path(body.bundle) if body.bundle else None
        try:
            live = await _in(held["reload"], held["engine"].reload, bundle, body.arm)
        except StoreError:  # not the bundle's fault
            raise
        except Exception as error:  # whatever a stranger's files do to who reads them
            watch.reloads.labels("refused").inc()
            reason = (
                "; ".join(str(error).splitlines())
                if isinstance(error, AdrecError)
                else f"{bundle}: cannot be served ({reason_of(error)})."
            )
            raise HTTPException(409, f"{reason} The earlier bundle goes on.") from None
        watch.reloads.labels("done").inc()
        unchecked = "" if live.predictor.checked else " (unchecked: the bundle has no golden requests)"
        return Done(detail=live.fingerprint + unchecked)


def _admin_routes(app: FastAPI, watch: Watch, held: dict[str, Any]) -> None:
    @app.post("/admin/erase")
    async def erase(body: EraseRequest, request: Request) -> Done:
        """Take away everything that the store holds of a user; lists and scores know nothing of it from the answer on."""
        _note(request, watch, rows=1, user=body.user_id)
        count = await held["stored"]("changes", held["engine"].erase, body.user_id)
        return Done(detail=f"{count:,} events are erased")


def _plain_routes(app: FastAPI, watch: Watch, held: dict[str, Any]) -> None:
    @app.get("/health/live")
    async def live() -> Done:
        """The process answers."""
        return Done()

    @app.get("/health/ready")
    async def ready() -> Done:
        """The bundle is loaded and requests are taken."""
        if not held.get("ready"):
            raise HTTPException(503, "Not ready yet.")
        if held["engine"].follower.fault is not None:
            raise HTTPException(503, held["engine"].follower.fault, headers={"Retry-After": "5"})
        return Done(detail=" ".join(held["engine"].fingerprints.values()))

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Prometheus metrics."""
        for what in _QUEUES:
            watch.queue.labels(what).set(held[what].waiting)
        watch.state(held["engine"].tally)
        return Response(watch.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/about")
    async def about() -> dict[str, Any]:
        """What the page offers: policies, some users, the size of the catalogue; and each bundle's model card."""
        engine: Engine = held["engine"]
        users = [
            user
            for user in combined(engine.live.users["user_id"].slice(0, 50)).tolist()
            if user not in ("adrec-nobody", NOBODY)
        ]
        return {
            "policies": engine.live.ranker.names,
            "users": users,
            "ads": len(engine.live.row_of_ad),
            "bundles": engine.fingerprints,
            "cards": {arm: live.card for arm, live in engine.lives.items()},
            "health": engine.tally.health.as_dicts(),
        }


def _page_routes(app: FastAPI) -> None:
    def page(name: str, kind: str) -> Callable[[], Any]:
        content = (resources.files("adrec.serve") / "page" / name).read_text(encoding="utf-8")
        if kind == "text/css":
            content = (resources.files("adrec.pages") / "style.css").read_text(encoding="utf-8") + content

        async def give() -> Response:
            policy = "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'"
            return Response(content, media_type=kind, headers={"content-security-policy": policy})

        return give

    for url, name, kind in (
        ("/", "index.html", "text/html"), ("/page.css", "page.css", "text/css"), ("/page.js", "page.js", "text/javascript"),
    ):  # fmt: skip
        app.get(url, include_in_schema=False)(page(name, kind))


def _faults(app: FastAPI) -> None:
    """Every fault becomes a status and a sentence."""

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return _told(422, [(".".join(map(str, fault["loc"])), str(fault["msg"])) for fault in error.errors()[:20]])

    @app.exception_handler(RefusedError)
    async def refused(request: Request, error: RefusedError) -> JSONResponse:
        return _told(error.status, error.faults)

    @app.exception_handler(AdrecError)
    async def mendable(request: Request, error: AdrecError) -> JSONResponse:
        return JSONResponse({"detail": visible(str(error))}, 400)

    @app.exception_handler(UnknownAdError)
    async def unknown(request: Request, error: UnknownAdError) -> JSONResponse:
        return JSONResponse({"detail": visible(str(error))}, 404)

    @app.exception_handler(StoreError)
    async def storeless(request: Request, error: StoreError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 503, headers={"Retry-After": "5"})

    @app.exception_handler(OverloadedError)
    async def busy(request: Request, error: OverloadedError) -> JSONResponse:
        return JSONResponse({"detail": "The server is busy. Try again."}, 503, headers={"Retry-After": str(error.retry_after)})

    @app.exception_handler(TimeoutError)
    async def late(request: Request, error: TimeoutError) -> JSONResponse:
        return JSONResponse(
            {"detail": "The answer took too long. Try again, or ask for less."}, 504, headers={"Retry-After": "1"}
        )


def _told(status: int, faults: Sequence[tuple[str, str]]) -> JSONResponse:
    """Where and what, as any client and any terminal can show it."""
    detail = [{"where": visible(where)[:_LONGEST_PLACE], "what": visible(what)} for where, what in faults]
    return JSONResponse({"detail": detail}, status)


def _batcher(
    what: str, handle: Callable[[Sequence[Any]], Sequence[Any]], executor: ThreadPoolExecutor, batching: Batching, watch: Watch
) -> Batcher[Any, Any]:
    def timed(items: Sequence[Any]) -> Sequence[Any]:
        started = time.perf_counter()
        answers = handle(items)
        watch.model.labels(what).observe(time.perf_counter() - started)
        return answers

    return Batcher(
        timed,
        executor,
        max_items=batching.max_items,
        max_wait_seconds=batching.max_wait_ms / 1000,
        max_queue=batching.max_queue,
        observe=lambda size: watch.batch.labels(what).observe(size),
    )


def _in_the_background(threads: int) -> None:
    """Make this thread give way: explanations take what processor time the answers leave."""
    use_threads(threads)
    if sys.platform == "linux":  # where a thread has a priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)


async def _in(executor: ThreadPoolExecutor, function: Callable[..., Any], *arguments: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(executor, function, *arguments)


def _most(count: int, most: int, what: str) -> None:
    if count > most:
        raise HTTPException(413, f"{count:,} {what} are more than the {most:,} that one call may carry. Send several calls.")


def _note(request: Request, watch: Watch, *, rows: int, user: str | None) -> None:
    _facts(request).update(rows=rows, user=None if user is None else watch.masked(user))


def _facts(request: Request) -> dict[str, Any]:
    """What the log line of the request says beside path, status and time."""
    facts: dict[str, Any] = request.scope["state"]["facts"]
    return facts
