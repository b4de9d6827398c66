"""Runs of a thread."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query
from starlette.responses import Response

from runs_api.as_of import AsOfQuery, as_of_header, run_as_of
from runs_api.caller import CallerOf
from runs_api.creation import stateful
from runs_api.delivery import Delivery
from runs_api.edge import EdgeOf
from runs_api.errors import ApiError
from runs_api.requests import (
    NOTHING_TO_CANCEL,
    CancelActionQuery,
    CancelReason,
    JsonRoute,
    LastEventId,
    Limit,
    ModesQuery,
    Offset,
    RunBody,
    RunIdPath,
    RunStatusText,
    SelectRunFields,
    ThreadIdPath,
)
from runs_api.responses import ERRORS, RESULT, STREAM, Run, freshness, run_body, selected
from runs_api.threads import must_see
from runs_es.domain import CancelAction, RunNotFound
from runs_es.service.commands import CancelRunCommand, GetRunQuery, ListRunsQuery

router = APIRouter(prefix="/threads/{thread_id}/runs", tags=["Runs"], route_class=JsonRoute, responses=ERRORS)

CancelOnDisconnect = Annotated[bool, Query(description="cancel the run when this connection goes away")]


def place(thread_id: str, run_id: str) -> str:
    return f"/threads/{thread_id}/runs/{run_id}"


@router.post("", response_model=Run, summary="Start a run in the background")
async def create_run(thread_id: ThreadIdPath, body: RunBody, edge: EdgeOf, caller: CallerOf) -> Response:
    command = stateful(body, caller, edge.store.registry, thread_id)
    run = await Delivery(edge, caller).created(command)
    return await edge.json(run_body(run), headers={"Content-Location": place(run.thread_id, run.run_id)})


@router.post("/stream", response_class=Response, responses=STREAM, summary="Start a run and stream it")
async def stream_run(thread_id: ThreadIdPath, body: RunBody, edge: EdgeOf, caller: CallerOf) -> Response:
    command = stateful(body, caller, edge.store.registry, thread_id)
    return await Delivery(edge, caller).created_stream(command, place(thread_id, str(command.run_id)))


@router.post("/wait", response_class=Response, responses=RESULT, summary="Start a run and wait for its result")
async def wait_run(thread_id: ThreadIdPath, body: RunBody, edge: EdgeOf, caller: CallerOf) -> Response:
    command = stateful(body, caller, edge.store.registry, thread_id)
    base = place(thread_id, str(command.run_id))
    return await Delivery(edge, caller).created_result(command, f"{base}/join", base)


@router.get("", response_model=list[Run], summary="List the runs of a thread, newest first")
async def list_runs(
    thread_id: ThreadIdPath,
    edge: EdgeOf,
    caller: CallerOf,
    limit: Limit = 10,
    offset: Offset = 0,
    status: RunStatusText | None = None,
    select: SelectRunFields = None,
) -> Response:
    await must_see(edge, caller, thread_id)
    query = ListRunsQuery(thread_id=thread_id, user_id=caller.user_id, limit=limit, offset=offset, status=status)
    runs = await edge.read(edge.store.runs.list_by_thread, query)
    return await edge.json(selected(map(run_body, runs), select), headers=freshness(runs))


@router.get("/{run_id}", response_model=Run, summary="Get a run")
async def get_run(
    thread_id: ThreadIdPath, run_id: RunIdPath, edge: EdgeOf, caller: CallerOf, moment: AsOfQuery
) -> Response:
    """Always current. As of an earlier moment, a run that was deleted since is there too."""
    if moment is not None:
        past, seq = await run_as_of(edge, caller, thread_id, run_id, moment)
        return await edge.json(run_body(past), headers=as_of_header(seq))
    run = await edge.store.service.get_run(GetRunQuery(run_id=run_id, thread_id=thread_id, user_id=caller.user_id))
    if run is None:
        raise RunNotFound(run_id)
    return await edge.json(run_body(run))


@router.delete("/{run_id}", status_code=204, response_class=Response, summary="Delete a run, cancelling it first")
async def delete_run(thread_id: ThreadIdPath, run_id: RunIdPath, edge: EdgeOf, caller: CallerOf) -> Response:
    await edge.store.service.delete_run(thread_id, run_id, user_id=caller.user_id, provenance=caller.provenance)
    return Response(status_code=204)


@router.get("/{run_id}/join", response_class=Response, responses=RESULT, summary="Wait for the result of a run")
async def join_run(
    thread_id: ThreadIdPath,
    run_id: RunIdPath,
    edge: EdgeOf,
    caller: CallerOf,
    cancel_on_disconnect: CancelOnDisconnect = False,
) -> Response:
    base = place(thread_id, run_id)
    return await Delivery(edge, caller).joined_result(
        run_id, thread_id, cancels=cancel_on_disconnect, location=f"{base}/join", content_location=base
    )


@router.get("/{run_id}/stream", response_class=Response, responses=STREAM, summary="Join the stream of a run")
async def join_run_stream(
    thread_id: ThreadIdPath,
    run_id: RunIdPath,
    edge: EdgeOf,
    caller: CallerOf,
    last_event_id: LastEventId,
    modes: ModesQuery = None,
    cancel_on_disconnect: CancelOnDisconnect = False,
    stop: Annotated[Literal["204"] | None, Query(description="answer 204 to who has seen the end")] = None,
) -> Response:
    return await Delivery(edge, caller).joined_stream(
        run_id,
        thread_id,
        last_event_id,
        modes=modes,
        cancels=cancel_on_disconnect,
        stop=stop is not None,
        base=place(thread_id, run_id),
    )


@router.post("/{run_id}/cancel", status_code=202, response_class=Response, responses=RESULT, summary="Cancel a run")
async def cancel_run(
    thread_id: ThreadIdPath,
    run_id: RunIdPath,
    edge: EdgeOf,
    caller: CallerOf,
    wait: Annotated[bool, Query(description="answer with the result, once the run has ended")] = False,
    action: CancelActionQuery = "interrupt",
    reason: CancelReason = None,
) -> Response:
    """A run that is rolled back leaves every list, and the thread's state is the one before it."""
    command = CancelRunCommand(
        run_id=run_id,
        thread_id=thread_id,
        user_id=caller.user_id,
        action=CancelAction(action),
        provenance=caller.because(reason or f"{action} requested via POST /threads/…/runs/…/cancel"),
    )
    try:
        await edge.store.service.cancel(command)
    except RunNotFound:
        raise ApiError(404, NOTHING_TO_CANCEL) from None
    if not wait:
        return Response(status_code=202)
    base = place(thread_id, run_id)
    return Delivery(edge, caller).cancelled_result(thread_id, run_id, f"{base}/join", base)
