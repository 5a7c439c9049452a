"""The HTTP interface over one engine. `adrec serve` runs it under uvicorn."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from adrec import __version__
from adrec.config.inference.serve import ServeConfig
from adrec.serve.door.faults import RESPONSES, answer_faults
from adrec.serve.door.guard import Guard, Recorder
from adrec.serve.door.keys import Keys
from adrec.serve.door.pages import docs_routes, page_routes
from adrec.serve.engine import Engine
from adrec.serve.routes import change_routes, model_routes, plain_routes
from adrec.serve.watch import Watch
from adrec.serve.working import Working


def create_app(
    config: ServeConfig, engine: Engine | None = None, *, keys: Keys | None = None, watch: Watch | None = None
) -> FastAPI:
    """The application; `engine`, `keys` and `watch` may be given ready-made. Raises ConfigError for keys that are none."""
    watch = watch or Watch()
    working = Working(config, watch, engine)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await working.start()
        yield
        await working.close()

    app = FastAPI(title="adrec", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None, responses=RESPONSES)
    # The last one added is the first to see a request.
    app.add_middleware(
        Guard, access=config.access, keys=keys or Keys(config.access), max_body_bytes=config.intake.max_body_bytes
    )
    if config.cors_origins:
        app.add_middleware(CORSMiddleware, allow_origins=config.cors_origins, allow_methods=["*"], allow_headers=["*"])
    app.add_middleware(Recorder, watch=watch)
    answer_faults(app)
    model_routes(app, config, watch, working)
    change_routes(app, config, watch, working)
    plain_routes(app, watch, working)
    if config.page:
        page_routes(app)
        docs_routes(app)
    return app
