"""Stateless runs: each on a thread of its own, which goes with it unless it is to be kept."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import Field
from starlette.responses import Response

from runs_api.caller import CallerOf
from runs_api.creation import stateless
from runs_api.delivery import Delivery
from runs_api.edge import EdgeOf
from runs_api.requests import JsonRoute, LastEventId, ModesQuery, RunIdPath, StatelessRunBody
from runs_api.responses import ERRORS, RESULT, STREAM, Run, run_body
from runs_api.runs import CancelOnDisconnect
from runs_api.runs import place as place_in_thread

router = APIRouter(prefix="/runs", tags=["Stateless runs"], route_class=JsonRoute, responses=ERRORS)


Batch = Annotated[list[StatelessRunBody], Field(min_length=1, max_length=1000)]


def place(run_id: str) -> str:
    return f"/runs/{run_id}"


@router.post("", response_model=Run, summary="Start a stateless run in the background")
async def create_stateless_run(body: StatelessRunBody, edge: EdgeOf, caller: CallerOf) -> Response:
    run = await Delivery(edge, caller).created(stateless(body, caller, edge.store.registry))
    return await edge.json(run_body(run), headers={"Content-Location": place(run.run_id)})


@router.post("/batch", response_model=list[Run], summary="Start several stateless runs in the background")
async def create_stateless_runs(body: Batch, edge: EdgeOf, caller: CallerOf) -> Response:
    """All are checked before the first is recorded; each is then recorded by itself, in the order given."""
    commands = [stateless(each, caller, edge.store.registry) for each in body]
    for command in commands:
        edge.store.service.check(command)
    return await edge.json([run_body(await Delivery(edge, caller).created(command)) for command in commands])


@router.post("/stream", response_class=Response, responses=STREAM, summary="Start a stateless run and stream it")
async def stream_stateless_run(body: StatelessRunBody, edge: EdgeOf, caller: CallerOf) -> Response:
    command = stateless(body, caller, edge.store.registry)
    return await Delivery(edge, caller).created_stream(command, place(str(command.run_id)))


@router.post("/wait", response_class=Response, responses=RESULT, summary="Start a stateless run, wait for its result")
async def wait_stateless_run(body: StatelessRunBody, edge: EdgeOf, caller: CallerOf) -> Response:
    command = stateless(body, caller, edge.store.registry)
    run_id = str(command.run_id)
    # The location outlives the thread; the content's names the thread, as clients expect it.
    content_location = place_in_thread(str(command.thread_id), run_id)
    return await Delivery(edge, caller).created_result(command, f"{place(run_id)}/join", content_location)


@router.get("/{run_id}/join", response_class=Response, responses=RESULT, summary="Wait for a stateless run's result")
async def join_stateless_run(
    run_id: RunIdPath, edge: EdgeOf, caller: CallerOf, cancel_on_disconnect: CancelOnDisconnect = False
) -> Response:
    base = place(run_id)
    return await Delivery(edge, caller).joined_result(
        run_id, None, cancels=cancel_on_disconnect, location=f"{base}/join", content_location=base
    )


@router.get("/{run_id}/stream", response_class=Response, responses=STREAM, summary="Join a stateless run's stream")
async def join_stateless_run_stream(
    run_id: RunIdPath,
    edge: EdgeOf,
    caller: CallerOf,
    last_event_id: LastEventId,
    modes: ModesQuery = None,
    cancel_on_disconnect: CancelOnDisconnect = False,
    stop: Annotated[Literal["204"] | None, Query(description="answer 204 to who has seen the end")] = None,
) -> Response:
    """Also after the run's temporary thread has gone."""
    return await Delivery(edge, caller).joined_stream(
        run_id,
        None,
        last_event_id,
        modes=modes,
        cancels=cancel_on_disconnect,
        stop=stop is not None,
        base=place(run_id),
    )
