"""About this server."""

from __future__ import annotations

import importlib.metadata
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field
from starlette.responses import HTMLResponse, Response

from runs_api.edge import EdgeOf
from runs_api.errors import RETRY, ApiError
from runs_api.responses import Error, Json

router = APIRouter(tags=["Meta"], responses={422: {"model": Error, "description": "Refused"}})


def version_of(package: str) -> str | None:
    """The installed version of a package; None when it is not there."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


_INDEX = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>runs-es</title>
<style>body {{ font: 1rem/1.6 system-ui, sans-serif; max-width: 40rem; margin: 3rem auto; padding: 0 1rem }}</style>
<h1>runs-es {version}</h1>
<p>An event-sourced run store behind LangGraph Platform's HTTP API.</p>
<ul>
<li><a href="docs">docs</a>: the API, to read and to try</li>
<li><a href="runs">runs</a>: runs of all threads, newest first</li>
<li><a href="projections">projections</a>: how read models stand</li>
<li><a href="metrics">metrics</a>: for Prometheus</li>
<li><a href="info">info</a>: versions</li>
</ul>
<p>The history of a run R in a thread T, as a page: <code>threads/T/runs/R/history</code></p>
</html>
"""


@router.head("/", include_in_schema=False)
@router.get("/", include_in_schema=False)
async def index() -> Response:
    """Lead a person who opens the server's address to what there is."""
    page = _INDEX.format(version=version_of("runs-es") or "")
    policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    return HTMLResponse(page, headers={"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff"})


@router.head("/ok", include_in_schema=False)
@router.get("/ok", summary="Is the server alive?", responses={503: {"model": Error, "description": "Not its database"}})
async def ok(
    edge: EdgeOf, check_db: Annotated[bool, Query(description="ask as `/ready` does, too")] = False
) -> Response:
    """Answers without the database: a server whose database is away is alive, and to restart it would not help."""
    if check_db and (missing := await edge.missing()):
        raise ApiError(503, "; ".join(missing), RETRY)
    return Json({"ok": True, "services": {}})


class Readiness(BaseModel):
    ready: bool
    missing: list[str] = Field(description="what keeps the server from appending and reading now, in words")


@router.head("/ready", include_in_schema=False)
@router.get(
    "/ready",
    response_model=Readiness,
    summary="Can the server append and read now?",
    responses={503: {"model": Readiness, "description": "Not now"}},
)
async def ready(edge: EdgeOf) -> Response:
    """Answers within 2 seconds. A load balancer asks this; what restarts a server asks `/ok`."""
    missing = await edge.missing()
    return Json({"ready": not missing, "missing": missing}, 503 if missing else 200, RETRY if missing else None)


@router.get("/info", summary="What the server is and offers")
async def info() -> Response:
    body: dict[str, Any] = {
        "version": version_of("runs-es"),
        "langgraph_py_version": version_of("langgraph"),
        "flags": {
            "assistants": True,
            "crons": True,
            "langsmith": False,
            "langsmith_tracing_replicas": False,
            "langsmith_tracing_session_on_runs": False,
            "strict_resume": True,
        },
        "host": {
            "kind": "self-hosted",
            "project_id": None,
            "host_revision_id": None,
            "revision_id": None,
            "tenant_id": None,
        },
    }
    return Json(body)
