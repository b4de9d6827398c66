"""Stored events and messages, beyond the platform: the same seq as in streams, so that a reader can go from one to the
other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from runs_api.caller import Caller, CallerOf
from runs_api.edge import Edge, EdgeOf
from runs_api.requests import Names, RunIdPath, Seq, ThreadIdPath
from runs_api.responses import ERRORS, Event, Json, event_body, freshness
from runs_api.store import EventReader
from runs_api.threads import must_see
from runs_es.domain import RunNotFound
from runs_es.service.commands import GetRunQuery, ListRunMessagesQuery
from runs_es.service.views import RunMessageView
from runs_projections.freshness import Listed

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
    await _must_see_run(edge, caller, thread_id, run_id)
    return await _events(edge, thread_id, run_id, after_seq, before_seq, limit, types)


@router.get("/messages", response_model=list[Event], summary="List the messages of a thread")
async def list_thread_messages(
    thread_id: ThreadIdPath,
    edge: EdgeOf,
    caller: CallerOf,
    after_seq: Seq | None = None,
    before_seq: Seq | None = None,
    limit: Many = 50,
    types: Types = None,
) -> Response:
    """One entry a message, at the seq of its newest version; ascending, bounded as events are."""
    await must_see(edge, caller, thread_id)
    query = ListRunMessagesQuery(
        thread_id=thread_id, limit=limit, after_seq=after_seq, before_seq=before_seq, user_id=caller.user_id
    )
    return await _messages(edge, query, types)


@router.get("/runs/{run_id}/messages", response_model=list[Event], summary="List the messages of a run")
async def list_run_messages(
    thread_id: ThreadIdPath,
    run_id: RunIdPath,
    edge: EdgeOf,
    caller: CallerOf,
    after_seq: Seq | None = None,
    before_seq: Seq | None = None,
    limit: Many = 50,
    types: Types = None,
) -> Response:
    """One entry a message, at the seq of its newest version; ascending, bounded as events are."""
    await _must_see_run(edge, caller, thread_id, run_id)
    query = ListRunMessagesQuery(
        thread_id=thread_id,
        run_id=run_id,
        limit=limit,
        after_seq=after_seq,
        before_seq=before_seq,
        user_id=caller.user_id,
    )
    return await _messages(edge, query, types)


async def _must_see_run(edge: Edge, caller: Caller, thread_id: str, run_id: str) -> None:
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


async def _messages(edge: Edge, query: ListRunMessagesQuery, types: Sequence[str] | None) -> Response:
    if types is None or "message" in types:
        found = await edge.read(edge.store.events.list_messages_by_run, query)
    else:
        found = await edge.read(messages_of_types, edge.store.events, query, frozenset(types))
    return Json([event_body(message) for message in found], headers=freshness(found))


def messages_of_types(
    events: EventReader, query: ListRunMessagesQuery, types: frozenset[str]
) -> Listed[RunMessageView]:
    """As many of these types as the query allows, from the end that it begins at; reads page by page to find them."""
    ascending = query.after_seq is not None
    found: list[RunMessageView] = []
    page_query = replace(query, limit=MOST)
    while True:
        page = events.list_messages_by_run(page_query)
        matching = [message for message in page if message.event_type in types]
        found = found + matching if ascending else matching + found
        if len(found) >= query.limit or len(page) < MOST:
            chosen = found[: query.limit] if ascending else found[-query.limit :]
            return Listed(chosen, current=page.current, position=page.position)
        if ascending:
            page_query = replace(page_query, after_seq=page[-1].seq)
        else:
            page_query = replace(page_query, before_seq=page[0].seq)
