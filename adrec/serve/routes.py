"""The calls: what each takes, whom it asks, and what is noted of it."""

from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi import Path as UrlPath
from pydantic_core import to_json

from adrec.config.inference.serve import ServeConfig
from adrec.data.arrays import combined
from adrec.errors import AdrecError, ConfigError, reason_of
from adrec.schema import NOBODY
from adrec.serve.intake.checking import check_moments
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
from adrec.serve.store import StoreError
from adrec.serve.watch import Watch
from adrec.serve.working import Working

AdId = Annotated[str, UrlPath(min_length=1, max_length=200)]


class ReloadRequest(Message):
    """Which bundle to load; none: the present folder again."""

    bundle: str | None = None
    arm: Literal["a", "b"] = "a"
    """Whose bundle it replaces in an A/B test."""


class EraseRequest(Message):
    """Whom to forget."""

    user_id: Id


def model_routes(app: FastAPI, config: ServeConfig, watch: Watch, working: Working) -> None:
    """What is asked of the bundles; nothing is changed."""

    @app.post("/v1/score", response_model=ScoreAnswer)
    async def score(body: ScoreRequest, request: Request) -> Response:
        """Click probabilities of (user, ad) pairs."""
        _most(len(body.rows), config.intake.max_rows, "rows")
        _note(request, watch, rows=len(body.rows), user=body.rows[0].user_id)
        answer = await working.ask("score", body)
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
        answer = await working.ask("rank", body)
        lists = answer["lists"]
        watch.answered(_facts(request), [ad["score"] for item in lists for ad in item["ads"]], [item["arm"] for item in lists])
        return Response(to_json(answer), media_type="application/json")

    @app.post("/v1/try", response_model=TryAnswer)
    async def try_out(body: TryRequest, request: Request) -> Response:
        """A list as it is, and as it would be with another headline or bid: for the asking alone, nothing is changed."""
        _most(len(body.request.candidates or []), config.intake.max_candidates, "candidates")
        _note(request, watch, rows=1, user=body.request.user_id)
        return Response(to_json(await working.aside(working.engine.try_out, body)), media_type="application/json")

    @app.post("/v1/explain")
    async def explain(body: ExplainRequest, request: Request) -> ExplainAnswer:
        """Which words, clicks and features speak for an ad, and which against."""
        _note(request, watch, rows=1, user=body.user.user_id)
        found: ExplainAnswer = await working.ask("explain", body)
        return found


def change_routes(app: FastAPI, config: ServeConfig, watch: Watch, working: Working) -> None:
    """What happened, and what is to be served from now on."""

    @app.post("/v1/events")
    async def events(body: EventsRequest, request: Request) -> EventsAnswer:
        """Record impressions, clicks and conversions; the answer comes when they are on disk."""
        _most(len(body.events), config.intake.max_events, "events")
        _note(request, watch, rows=len(body.events), user=body.events[0].user_id)
        check_moments(body.events, working.engine.now())
        answer: EventsAnswer = await working.stored("events", working.engine.record, body.events)
        for event in body.events:
            watch.events.labels(event.kind).inc()
        return answer

    @app.get("/v1/ads/{ad_id:path}")
    async def get_ad(ad_id: AdId) -> AdOut:
        """An ad as PUT takes it."""
        return working.engine.ad(ad_id)

    @app.put("/v1/ads/{ad_id:path}")
    async def put_ad(ad_id: AdId, body: AdIn) -> Done:
        """Add or change an ad: when the answer comes it is encoded and served."""
        await working.stored("changes", working.engine.put_ad, ad_id, body)
        return Done(detail=f"{ad_id} is served")

    @app.delete("/v1/ads/{ad_id:path}")
    async def delete_ad(ad_id: AdId) -> Done:
        """Never show the ad again."""
        await working.stored("changes", working.engine.delete_ad, ad_id)
        return Done(detail=f"{ad_id} is gone")

    @app.post("/admin/reload")
    async def reload(body: ReloadRequest) -> Done:
        """Load a bundle aside, check it, swap it in. A bad one is refused (409) and the old one goes on."""
        if body.arm not in working.engine.lives:
            raise ConfigError("There is no arm b: the server was started without a 'challenger'.")
        bundle = Path(body.bundle) if body.bundle else None
        try:
            live = await working.loaded(working.engine.reload, bundle, body.arm)
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

    @app.post("/admin/erase")
    async def erase(body: EraseRequest, request: Request) -> Done:
        """Take away everything that the store holds of a user; lists and scores know nothing of it from the answer on."""
        _note(request, watch, rows=1, user=body.user_id)
        count = await working.stored("changes", working.engine.erase, body.user_id)
        return Done(detail=f"{count:,} events are erased")


def plain_routes(app: FastAPI, watch: Watch, working: Working) -> None:
    """What operators and the page look at."""

    @app.get("/health/live")
    async def live() -> Done:
        """The process answers."""
        return Done()

    @app.get("/health/ready")
    async def ready() -> Done:
        """The bundle is loaded and requests are taken."""
        if not working.ready:
            raise HTTPException(503, "Not ready yet.")
        fault = working.engine.follower.fault
        if fault is not None:
            raise HTTPException(503, fault, headers={"Retry-After": "5"})
        return Done(detail=" ".join(working.engine.fingerprints.values()))

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Prometheus metrics."""
        watch.state(working.engine.tally, working.waiting)
        return Response(watch.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/about")
    async def about() -> dict[str, Any]:
        """What the page offers: policies, some users, the size of the catalogue; and each bundle's model card."""
        engine = working.engine
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


def _most(count: int, most: int, what: str) -> None:
    if count > most:
        raise HTTPException(413, f"{count:,} {what} are more than the {most:,} that one call may carry. Send several calls.")


def _note(request: Request, watch: Watch, *, rows: int, user: str | None) -> None:
    _facts(request).update(rows=rows, user=None if user is None else watch.masked(user))


def _facts(request: Request) -> dict[str, Any]:
    """What the log line of the request says beside path, status and time."""
    facts: dict[str, Any] = request.scope["state"]["facts"]
    return facts
