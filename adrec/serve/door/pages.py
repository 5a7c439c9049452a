"""What a browser is shown, without a network: the page at /, and the calls at /docs (Swagger UI from an installed package)."""

from collections.abc import Callable
from importlib import resources
from typing import Any

from fastapi import FastAPI, HTTPException, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse

_FILES = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css", "favicon.png": "image/png"}
_POLICY = "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'"


def page_routes(app: FastAPI) -> None:
    """The page at /, whose files lie in `page/`; its style goes on from that of all pages."""
    own, style = resources.files("adrec.serve") / "page", resources.files("adrec.pages") / "style.css"
    for url, kind, files in (
        ("/", "text/html", [own / "index.html"]), ("/page.css", "text/css", [style, own / "page.css"]),
        ("/page.js", "text/javascript", [own / "page.js"]),
    ):  # fmt: skip
        app.get(url, include_in_schema=False)(_giving("".join(file.read_text(encoding="utf-8") for file in files), kind))


def docs_routes(app: FastAPI) -> None:
    """The description of the calls."""

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="openapi.json",
            title="adrec",
            swagger_js_url="docs/swagger-ui-bundle.js",
            swagger_css_url="docs/swagger-ui.css",
            swagger_favicon_url="docs/favicon.png",
        )

    @app.get("/docs/{name}", include_in_schema=False)
    async def file(name: str) -> Response:
        if name not in _FILES:
            raise HTTPException(404, "Not found.")
        content = (resources.files("fastapi_offline") / "static" / name).read_bytes()
        return Response(content, media_type=_FILES[name])


def _giving(content: str, kind: str) -> Callable[[], Any]:
    async def give() -> Response:
        return Response(content, media_type=kind, headers={"content-security-policy": _POLICY})

    return give
