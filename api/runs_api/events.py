"""Stored events, beyond the platform: the same seq as in streams, so that a reader can go from one to the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from runs_api.caller import Caller, CallerOf
from runs_api.edge import Edge, EdgeOf
from runs_api.requests import Names, RunIdPath, Seq, ThreadIdPath
from runs_api.responses import ERRORS, Event, Json, event_body, freshness
from runs_api.threads import must_see
from runs_es.domain import RunNotFound
from runs_es.service.commands import GetRunQuery

router = APIRouter(prefix="/threads/{thread_id}", tags=["Events"], responses=ERRORS)

MOST = 2000
Many = Annotated[int, Query(ge=1, le=MOST)]
Types = Annotated[Names | None, Query(description="event types or categories; repeated, or with commas between")]


@router.get("/events", response_model=list[Event], summary="List the events of a thread")
async def list_thread_events(
    thread_id: ThreadIdPath,
    edge: EdgeOf,
    caller: CallerOf,
    after_seq: Seq | None = None,
    before_seq: Seq | None = None,
    limit: Many = 500,
    types: Types = None,
) -> Response:
    """Ascending: the first after `after_seq`, else the last before `before_seq`, else the latest."""
    await must_see(edge, caller, thread_id)
    return await _events(edge, thread_id, None, after_seq, before_seq, limit, types)


@router.get("/runs/{run_id}/events", response_model=list[Event], summary="List the events of a run")
async def list_run_events(
    thread_id: ThreadIdPath,
    run_id: RunIdPath,
    edge: EdgeOf,
    caller: CallerOf,
    after_seq: Seq | None = None,
    before_seq: Seq | None = None,
    limit: Many = 500,
    types: Types = None,
) -> Response:
    """Ascending: the first after `after_seq`, else the last before `before_seq`, else the latest."""
    await must_see_run(edge, caller, thread_id, run_id)
    return await _events(edge, thread_id, run_id, after_seq, before_seq, limit, types)


async def must_see_run(edge: Edge, caller: Caller, thread_id: str, run_id: str) -> None:
    """Raises RunNotFound unless the run is there for the caller."""
    query = GetRunQuery(run_id=run_id, thread_id=thread_id, user_id=caller.user_id)
    if await edge.store.service.get_run(query) is None:
        raise RunNotFound(run_id)


async def _events(
    edge: Edge,
    thread_id: str,
    run_id: str | None,
    after_seq: int | None,
    before_seq: int | None,
    limit: int,
    types: Sequence[str] | None,
) -> Response:
    found = await edge.read(
        edge.store.events.list_events_by_run,
        thread_id,
        run_id,
        after_seq=after_seq,
        before_seq=before_seq,
        limit=limit,
        types=types,
    )
    return Json([event_body(event) for event in found], headers=freshness(found))
