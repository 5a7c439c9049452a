"""What a request is told that cannot be answered: every fault is a status and a sentence."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from adrec.errors import AdrecError, visible
from adrec.serve.batcher import OverloadedError
from adrec.serve.intake.checking import RefusedError
from adrec.serve.intake.messages import Message
from adrec.serve.state.live import UnknownAdError
from adrec.serve.store import StoreError

_LONGEST_PLACE = 300
_MOST_PLACES = 20
_FAULTS = {
    400: "Something named is not there, or does not fit.",
    401: "The API key is missing or wrong.",
    403: "The key is not for this, or the server has none and this needs one.",
    404: "There is no such ad.",
    409: "The bundle is refused; the earlier one goes on.",
    421: "The server is not called by this name.",
    429: "More requests than this key may send; try again after Retry-After seconds.",
    415: "The body is encoded.",
    413: "The body is too large.",
    422: "The body or the path is not as described: where, and what.",
    503: "The server is busy; try again after Retry-After seconds.",
    504: "The answer took too long.",
}


class Fault(Message):
    """What is wrong and how to mend it."""

    detail: Any


_SENTENCES: dict[type[Exception], tuple[int, str | None, int | None]] = {
    AdrecError: (400, None, None),
    UnknownAdError: (404, None, None),
    StoreError: (503, None, 5),
    OverloadedError: (503, "The server is busy. Try again.", None),
    TimeoutError: (504, "The answer took too long. Try again, or ask for less.", 1),
}
"""Error -> status, sentence (None: its own), and after how many seconds to try again."""
RESPONSES: dict[int | str, dict[str, Any]] = {code: {"description": what, "model": Fault} for code, what in _FAULTS.items()}


def answer_faults(app: FastAPI) -> None:
    """Every fault becomes a status and a sentence."""

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return _told(422, [(".".join(map(str, fault["loc"])), str(fault["msg"])) for fault in error.errors()[:_MOST_PLACES]])

    @app.exception_handler(RefusedError)
    async def refused(request: Request, error: RefusedError) -> JSONResponse:
        return _told(error.status, error.faults)

    for kind, (status, sentence, seconds) in _SENTENCES.items():
        app.add_exception_handler(kind, partial(_said, status, sentence, seconds))


async def _said(status: int, sentence: str | None, seconds: int | None, request: Request, error: Exception) -> JSONResponse:
    """One sentence, and when to ask again."""
    wait = error.retry_after if isinstance(error, OverloadedError) else seconds
    headers = None if wait is None else {"Retry-After": str(wait)}
    return JSONResponse({"detail": sentence or visible(str(error))}, status, headers=headers)


def _told(status: int, faults: Sequence[tuple[str, str]]) -> JSONResponse:
    """Where and what, as any client and any terminal can show it."""
    detail = [{"where": visible(where)[:_LONGEST_PLACE], "what": visible(what)} for where, what in faults]
    return JSONResponse({"detail": detail}, status)
