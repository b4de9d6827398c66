"""Threads, and the state that graphs left in them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Query
from starlette.responses import Response

from runs_api.as_of import AsOfQuery, as_of_header, thread_as_of
from runs_api.caller import Caller, CallerOf
from runs_api.edge import Edge, EdgeOf
from runs_api.errors import ApiError
from runs_api.requests import (
    CheckpointIdPath,
    CheckpointIdText,
    HistoryBody,
    JsonRoute,
    Limit,
    StateAtBody,
    ThreadBody,
    ThreadFilterBody,
    ThreadIdPath,
    ThreadPatchBody,
    ThreadSearchBody,
)
from runs_api.responses import (
    ERRORS,
    Json,
    Thread,
    ThreadState,
    empty_state,
    freshness,
    pagination,
    selected,
    thread_body,
)
from runs_es.domain import ThreadExists, ThreadNotFound
from runs_es.execution.thread_lock import exclusive
from runs_es.service.views import ThreadSnapshot

logger = logging.getLogger(__name__)
router = APIRouter(prefix="/threads", tags=["Threads"], route_class=JsonRoute, responses=ERRORS)

STATE_READS = 8  # states that one search reads at the same time
Subgraphs = Annotated[bool, Query(description="with the states of subgraphs in `tasks`")]


async def must_see(edge: Edge, caller: Caller, thread_id: str) -> ThreadSnapshot:
    """The thread, if it is there for the caller. Raises ThreadNotFound."""
    thread = await edge.read(edge.store.threads.get, thread_id, caller.user_id)
    if thread is None:
        raise ThreadNotFound(thread_id)
    return thread


# --- threads ---


@router.post("", response_model=Thread, summary="Create a thread")
async def create_thread(edge: EdgeOf, caller: CallerOf, body: Annotated[ThreadBody | None, Body()] = None) -> Response:
    body = body or ThreadBody()
    try:
        thread_id = await edge.store.service.create_thread(
            body.thread_id, metadata=body.metadata, user_id=caller.user_id, provenance=caller.provenance
        )
    except ThreadExists:
        if body.if_exists == "raise" or body.thread_id is None:
            raise
        thread_id = body.thread_id
        if await edge.read(edge.store.threads.get, thread_id, caller.user_id) is None:
            raise  # another user's
    return await edge.json(await _body(edge, await must_see(edge, caller, thread_id)))


@router.get("/{thread_id}", response_model=Thread, summary="Get a thread")
async def get_thread(thread_id: ThreadIdPath, edge: EdgeOf, caller: CallerOf, moment: AsOfQuery) -> Response:
    """Always current. As of an earlier moment it comes without `values`: those are the graph's, not the log's."""
    if moment is not None:
        past, seq = await thread_as_of(edge, caller, thread_id, moment)
        return await edge.json(thread_body(past, None), headers=as_of_header(seq))
    return await edge.json(await _body(edge, await must_see(edge, caller, thread_id)))


@router.patch(
    "/{thread_id}",
    response_model=Thread,
    responses={204: {"description": "Done, and `Prefer: return=minimal` was sent"}},
    summary="Merge into a thread's metadata",
)
async def patch_thread(
    thread_id: ThreadIdPath,
    body: ThreadPatchBody,
    edge: EdgeOf,
    caller: CallerOf,
    prefer: Annotated[str | None, Header()] = None,
) -> Response:
    await must_see(edge, caller, thread_id)
    await edge.store.service.update_thread(thread_id, body.metadata, provenance=caller.provenance)
    if prefer is not None and "return=minimal" in prefer.replace(" ", ""):
        return Response(status_code=204)
    return await edge.json(await _body(edge, await must_see(edge, caller, thread_id)))


@router.delete("/{thread_id}", status_code=204, response_class=Response, summary="Delete a thread, its runs and state")
async def delete_thread(thread_id: ThreadIdPath, edge: EdgeOf, caller: CallerOf) -> Response:
    await must_see(edge, caller, thread_id)
    await edge.store.service.delete_thread(thread_id, provenance=caller.provenance)
    await edge.read(edge.store.crons.forget_thread, thread_id, provenance=caller.provenance)
    if edge.store.state is not None:
        # Under the thread's lock: whoever still writes a checkpoint for a deleted run has done so, or is refused.
        async with _locked(edge, thread_id):
            await edge.store.state.delete(thread_id)
    return Response(status_code=204)


@asynccontextmanager
async def _locked(edge: Edge, thread_id: str) -> AsyncIterator[None]:
    lock = exclusive(edge.store.log.reader, edge.store.log.schema)(thread_id)
    await edge.read(lock.__enter__)
    try:
        yield
    finally:
        await edge.read(lock.__exit__, None, None, None)


@router.post("/search", response_model=list[Thread], summary="Search threads, newest first")
async def search_threads(body: ThreadSearchBody, edge: EdgeOf, caller: CallerOf) -> Response:
    found = await edge.read(
        edge.store.threads.search,
        ids=body.ids,
        metadata=body.metadata or None,
        status=body.status,
        limit=body.limit + 1,
        offset=body.offset,
        sort_by=body.sort_by,
        sort_order=body.sort_order,
        user_id=caller.user_id,
    )
    page = found[: body.limit]
    selects = set(body.select or ("values", "interrupts"))
    few = asyncio.Semaphore(STATE_READS)

    async def shown(thread: ThreadSnapshot) -> dict[str, Any]:
        if "values" not in selects and not ("interrupts" in selects and _may_wait(thread)):
            return thread_body(thread, None)
        async with few:
            return await _body(edge, thread)

    bodies = list(await asyncio.gather(*map(shown, page)))
    headers = {**pagination(found, body.limit, body.offset), **freshness(found)}
    return await edge.json(selected(bodies, body.select), headers=headers)


@router.post("/count", response_model=int, summary="Count threads")
async def count_threads(body: ThreadFilterBody, edge: EdgeOf, caller: CallerOf) -> Response:
    found = await edge.read(
        edge.store.threads.count,
        ids=body.ids,
        metadata=body.metadata or None,
        status=body.status,
        user_id=caller.user_id,
    )
    return Json(int(found), headers=freshness(found))


async def _body(edge: Edge, thread: ThreadSnapshot) -> dict[str, Any]:
    """The thread with its values, and with what its state waits for. A graph that is not there any more shows none."""
    graph_id = _graph_of(edge, thread)
    state = edge.store.state
    if state is None or graph_id is None:
        return thread_body(thread, None)
    try:
        if not _may_wait(thread):
            return thread_body(thread, await state.values(thread.thread_id, graph_id))
        left = await state.get(thread.thread_id, graph_id)
        waits = {task["id"]: task["interrupts"] for task in left["tasks"] if task["interrupts"]}
        values = None if left["created_at"] is None else left["values"]
        return thread_body(replace(thread, interrupts=waits), values)
    except Exception:
        # One thread's state that cannot be read must not take a whole search along.
        logger.exception("the state of thread %s cannot be read", thread.thread_id)
        return thread_body(thread, None)


def _may_wait(thread: ThreadSnapshot) -> bool:
    """Whether only the state knows what the thread waits for: its last run failed or was cancelled, perhaps before it
    used an answer up, or beside a question of its own.
    """
    return thread.error is not None and not thread.interrupts


def _graph_of(edge: Edge, thread: ThreadSnapshot) -> str | None:
    named = thread.metadata.get("graph_id")
    registry = edge.store.registry
    return registry.resolve(named) if registry is not None and isinstance(named, str) else None


# --- state ---


async def _state(
    edge: Edge,
    caller: Caller,
    thread_id: str,
    checkpoint_id: str | None = None,
    subgraphs: bool = False,
    checkpoint: dict[str, Any] | None = None,
) -> Response:
    """The newest state, or one by name. Raises ThreadNotFound, ApiError 404 for a checkpoint that is not there."""
    thread = await must_see(edge, caller, thread_id)
    reader, graph_id = edge.store.state, _graph_of(edge, thread)
    if reader is None or graph_id is None:
        state = empty_state()
    else:
        state = await reader.get(thread_id, graph_id, checkpoint_id, subgraphs, checkpoint)
    named = checkpoint_id or (checkpoint or {}).get("checkpoint_id")
    if named and state["checkpoint"] is None:
        raise ApiError(404, f"Checkpoint with ID {named} not found")
    return await edge.json(state)


@router.get("/{thread_id}/state", response_model=ThreadState, summary="Get the newest state of a thread")
async def get_state(thread_id: ThreadIdPath, edge: EdgeOf, caller: CallerOf, subgraphs: Subgraphs = False) -> Response:
    return await _state(edge, caller, thread_id, subgraphs=subgraphs)


@router.get("/{thread_id}/state/{checkpoint_id}", response_model=ThreadState, summary="Get an earlier state")
async def get_state_at(
    thread_id: ThreadIdPath,
    checkpoint_id: CheckpointIdPath,
    edge: EdgeOf,
    caller: CallerOf,
    subgraphs: Subgraphs = False,
) -> Response:
    return await _state(edge, caller, thread_id, checkpoint_id, subgraphs)


@router.post("/{thread_id}/state/checkpoint", response_model=ThreadState, summary="Get the state of a checkpoint")
async def get_state_of_checkpoint(
    thread_id: ThreadIdPath, body: StateAtBody, edge: EdgeOf, caller: CallerOf
) -> Response:
    return await _state(edge, caller, thread_id, subgraphs=body.subgraphs, checkpoint=body.checkpoint.as_recorded())


async def _history(edge: Edge, caller: Caller, thread_id: str, query: HistoryBody) -> Response:
    thread = await must_see(edge, caller, thread_id)
    reader, graph_id = edge.store.state, _graph_of(edge, thread)
    if reader is None or graph_id is None:
        return Json([])
    checkpoint = query.checkpoint.as_recorded() if query.checkpoint else None
    states = await reader.history(
        thread_id, graph_id, query.limit, before=query.before, metadata=query.metadata, checkpoint=checkpoint
    )
    return await edge.json(states)


@router.get("/{thread_id}/history", response_model=list[ThreadState], summary="List states, newest first")
async def get_history(
    thread_id: ThreadIdPath,
    edge: EdgeOf,
    caller: CallerOf,
    limit: Limit = 10,
    before: Annotated[CheckpointIdText | None, Query(description="only states before this checkpoint")] = None,
) -> Response:
    return await _history(edge, caller, thread_id, HistoryBody(limit=limit, before=before))


@router.post("/{thread_id}/history", response_model=list[ThreadState], summary="List states, newest first")
async def search_history(thread_id: ThreadIdPath, body: HistoryBody, edge: EdgeOf, caller: CallerOf) -> Response:
    return await _history(edge, caller, thread_id, body)
