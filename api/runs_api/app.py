"""The HTTP server: LangGraph Platform's paths over an event-sourced run store."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi_offline import FastAPIOffline
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from runs_api import (
    assistants,
    cancellation,
    crons,
    diffs,
    events,
    external,
    history_page,
    messages,
    meta,
    projections,
    run_lists,
    runs,
    stateless,
    threads,
    usage,
    webhooks,
)
from runs_api.browser_access import LOOPBACK_ORIGIN, BrowserGuard, BrowserRules
from runs_api.edge import Edge
from runs_api.errors import add_handlers
from runs_api.gate import RequestGate
from runs_api.responses import REFUSALS
from runs_api.store import Store
from runs_es.settings import Settings

EXPOSED = (
    "Location",
    "Content-Location",
    "X-Pagination-Total",
    "X-Pagination-Next",
    "X-Request-Id",
    "X-Runs-As-Of",
    "X-Runs-Has-More",
    "X-Runs-Position",
    "X-Runs-Stale",
)


def create_app(store: Store, settings: Settings, *, is_local: bool = False) -> FastAPI:
    """The app over an open store, which stays the caller's to close. One app a store.

    `is_local` says that the server listens on a loopback address: it then answers only as one.
    """
    edge = Edge(store, settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        logging.getLogger("uvicorn.error").addFilter(without_cut_streams)
        try:
            async with store.reading_state():
                yield
        finally:
            edge.close()

    # Its pages at /docs and /redoc need nothing from the internet.
    app = FastAPIOffline(
        title="runs-es",
        version=meta.version_of("runs-es") or "0",
        description="An event-sourced run store behind LangGraph Platform's HTTP API.",
        lifespan=lifespan,
        middleware=_middleware(store, settings, BrowserRules(settings, is_local=is_local)),
        generate_unique_id_function=_operation,
        responses=REFUSALS,
        redirect_slashes=False,
    )
    app.state.edge = edge
    add_handlers(app)
    for room in (
        assistants,
        threads,
        crons,
        runs,
        run_lists,
        cancellation,
        stateless,
        diffs,
        history_page,
        events,
        messages,
        usage,
        webhooks,
        external,
        projections,
        meta,
    ):
        app.include_router(room.router)
    return app


def _middleware(store: Store, settings: Settings, rules: BrowserRules) -> list[Middleware]:
    """Only the guard is outside of CORS: pages that may ask may read refusals too, others may not."""
    cors = Middleware(
        CORSMiddleware,
        allow_origins=settings.cors_origins,
        allow_origin_regex=LOOPBACK_ORIGIN,
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=EXPOSED,
        max_age=600,
        allow_private_network=True,
    )
    gate = Middleware(RequestGate, settings=settings, outage=lambda: store.log.outage)
    return [Middleware(BrowserGuard, rules=rules), cors, gate]


def without_cut_streams(record: logging.LogRecord) -> bool:
    """Cutting a stream without its last chunk is how clients are told to come back; the server calls it an error."""
    return record.msg != "ASGI callable returned without completing response."


def _operation(route: APIRoute) -> str:
    return route.name
