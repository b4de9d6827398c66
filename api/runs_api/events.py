"""Stored events, beyond the platform: the same seq as in streams, so that a reader can go from one to the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query
from starlette.responses import Response

from runs_api.caller import Caller, CallerOf
from runs_api.edge import Edge, EdgeOf
from runs_api.errors import ApiError
from runs_api.event_stream import EVENT_STREAM, followed
from runs_api.outlived import last_seq
from runs_api.requests import LastEventId, Names, RunIdPath, Seq, ThreadIdPath
from runs_api.responses import ERRORS, Error, Event, event_body, freshness
from runs_api.threads import must_see
from runs_es.domain import RunNotFound
from runs_es.service.commands import GetRunQuery
from runs_es.streams.cursor import parse_cursor
from runs_projections.events import list_events

router = APIRouter(prefix="/threads/{thread_id}", tags=["Events"], responses=ERRORS)

MOST = 2000
Many = Annotated[int, Query(ge=1, le=MOST)]
Accept = Annotated[str, Header(description="`text/event-stream` follows the events as they come")]
_LIST = """As JSON, ascending: the first after `after_seq`, else the last before `before_seq`, else the latest.

As `text/event-stream`, everything after `Last-Event-ID` or `after_seq`, then what comes, until the run has ended or the
thread is deleted: each event with its seq as `id`, its type as `event`, and as data what the list has.
"""
FOLLOWED: dict[int | str, dict[str, Any]] = {
    200: {"content": {EVENT_STREAM: {"schema": {"type": "string"}}}},
    429: {"model": Error, "description": "Too many open streams of this user"},
}
Types = Annotated[Names | None, Query(description="event types or categories; repeated, or with commas between")]


@router.get(
    "/events",
    response_model=list[Event],
    responses=FOLLOWED,
    summary="List or follow the events of a thread",
    description=_LIST,
)
async def list_thread_events(
    thread_id: ThreadIdPath,
    edge: EdgeOf,
    caller: CallerOf,
    last_event_id: LastEventId,
    accept: Accept = "",
    after_seq: Seq | None = None,
    before_seq: Seq | None = None,
    limit: Many = 500,
    types: Types = None,
) -> Response:
    await must_see(edge, caller, thread_id)
    if EVENT_STREAM in accept:
        return await followed(edge, caller, thread_id, None, _cursor(last_event_id, after_seq, before_seq), types)
    return await _events(edge, thread_id, None, after_seq, before_seq, limit, types)


@router.get(
    "/runs/{run_id}/events",
    response_model=list[Event],
    responses=FOLLOWED,
    summary="List or follow the events of a run",
    description=_LIST,
)
async def list_run_events(
    thread_id: ThreadIdPath,
    run_id: RunIdPath,
    edge: EdgeOf,
    caller: CallerOf,
    last_event_id: LastEventId,
    accept: Accept = "",
    after_seq: Seq | None = None,
    before_seq: Seq | None = None,
    limit: Many = 500,
    types: Types = None,
) -> Response:
    last = await last_seq(edge, caller, thread_id, run_id)
    if EVENT_STREAM in accept:
        after = _cursor(last_event_id, after_seq, before_seq)
        return await followed(edge, caller, thread_id, run_id, after, types, upto=last)
    return await _events(edge, thread_id, run_id, after_seq, before_seq, limit, types, upto=last)


def _cursor(last_event_id: str | None, after_seq: int | None, before_seq: int | None) -> int:
    """Where a stream goes on; the id of the last event wins. Raises BadSequence, ApiError 422 for an end."""
    if before_seq is not None:
        raise ApiError(422, "before_seq: a stream of events has no end; leave it out, or ask for JSON")
    return parse_cursor(last_event_id) if last_event_id is not None else after_seq or 0


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
    upto: int | None = None,
) -> Response:
    bounds: dict[str, Any] = {"after_seq": after_seq, "before_seq": before_seq, "limit": limit, "types": types}
    if upto is not None:  # nothing comes to it any more
        gone = await edge.read(list_events, edge.store.log.reader, thread_id, run_id, **bounds, upto=upto)
        return await edge.json([event_body(event) for event in gone])
    found = await edge.read(edge.store.events.list_events_by_run, thread_id, run_id, **bounds)
    return await edge.json([event_body(event) for event in found], headers=freshness(found))
