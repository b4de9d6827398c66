"""Crons: runs that start by a schedule."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from runs_api.caller import Caller, CallerOf
from runs_api.creation import assistant_of
from runs_api.cron_runs import run_of
from runs_api.edge import Edge, EdgeOf
from runs_api.errors import ApiError
from runs_api.requests import (
    CronBody,
    CronFilterBody,
    CronIdPath,
    CronPatchBody,
    CronSearchBody,
    JsonRoute,
    ThreadIdPath,
)
from runs_api.responses import ERRORS, Cron, Json, cron_body, freshness, pagination, selected
from runs_api.threads import must_see
from runs_es.domain import CronNotFound, cron_thread
from runs_es.service.crons import CronSnapshot, NewCron
from runs_projections.lookups import may_see

router = APIRouter(tags=["Crons"], route_class=JsonRoute, responses=ERRORS)

_ONLY_WITHOUT_THREAD = "on_run_completed: is for crons without a thread; this one's thread stays"


@router.post("/runs/crons", response_model=Cron, summary="Start runs by a schedule, each on a thread of its own")
async def create_cron(body: CronBody, edge: EdgeOf, caller: CallerOf) -> Response:
    return await _created(body, edge, caller, None)


@router.post("/threads/{thread_id}/runs/crons", response_model=Cron, summary="Start runs on a thread by a schedule")
async def create_thread_cron(thread_id: ThreadIdPath, body: CronBody, edge: EdgeOf, caller: CallerOf) -> Response:
    """Is deleted with the thread; where that goes otherwise than by a request, by the first run that finds it gone."""
    await must_see(edge, caller, thread_id)
    if body.on_run_completed is not None:
        raise ApiError(422, _ONLY_WITHOUT_THREAD)
    return await _created(body, edge, caller, thread_id)


async def _created(body: CronBody, edge: Edge, caller: Caller, thread_id: str | None) -> Response:
    _, assistant_id = assistant_of(edge.store.registry, body.assistant_id)
    new = NewCron(
        assistant_id=assistant_id,
        schedule=body.schedule,
        timezone=body.timezone,
        end_time=body.end_time,
        enabled=body.enabled,
        run_thread_id=thread_id,
        on_run_completed=None if thread_id is not None else body.on_run_completed or "delete",
        payload=await edge.read(body.payload),
        metadata=body.metadata,
        user_id=caller.user_id,
    )
    _try_out(edge, new)
    cron = await edge.read(edge.store.crons.create, new, provenance=caller.provenance)
    return await edge.json(cron_body(cron))


def _try_out(edge: Edge, new: NewCron) -> None:
    """Refuse now what each of its runs would be refused for."""
    fields: dict[str, Any] = {**vars(new), "payload": dict(new.payload), "metadata": dict(new.metadata)}
    fields |= {"end_time": None, "next_run_date": None, "revision": 0}
    _check(edge, CronSnapshot(**fields, cron_id="", created_at="", updated_at=""))


def _check(edge: Edge, cron: CronSnapshot) -> None:
    run_of(cron, cron.run_thread_id or cron_thread(cron.cron_id), edge.store.registry)


@router.post("/runs/crons/search", response_model=list[Cron], summary="Search crons")
async def search_crons(body: CronSearchBody, edge: EdgeOf, caller: CallerOf) -> Response:
    found = await edge.read(
        edge.store.cron_lists.search,
        **_filters(edge, caller, body),
        limit=body.limit + 1,
        offset=body.offset,
        sort_by=body.sort_by,
        sort_order=body.sort_order,
    )
    rows = selected(map(cron_body, found[: body.limit]), body.select)
    return await edge.json(rows, headers={**freshness(found), **pagination(found, body.limit, body.offset)})


@router.post("/runs/crons/count", response_model=int, summary="Count crons")
async def count_crons(body: CronFilterBody, edge: EdgeOf, caller: CallerOf) -> Response:
    number = await edge.read(edge.store.cron_lists.count, **_filters(edge, caller, body))
    return Json(int(number), headers=freshness(number))


def _filters(edge: Edge, caller: Caller, body: CronFilterBody) -> dict[str, Any]:
    assistant_id = body.assistant_id
    if assistant_id is not None and edge.store.registry is not None:
        graph_id = edge.store.registry.resolve(assistant_id)
        assistant_id = assistant_id if graph_id is None else edge.store.registry.assistant_id(graph_id)
    return {
        "assistant_id": assistant_id,
        "thread_id": body.thread_id,
        "enabled": body.enabled,
        "metadata": body.metadata,
        "user_id": caller.user_id,
    }


@router.get("/runs/crons/{cron_id}", response_model=Cron, summary="Get a cron")
async def get_cron(cron_id: CronIdPath, edge: EdgeOf, caller: CallerOf) -> Response:
    return await edge.json(cron_body(await _seen(edge, caller, cron_id)))


@router.patch("/runs/crons/{cron_id}", response_model=Cron, summary="Change a cron")
async def patch_cron(cron_id: CronIdPath, body: CronPatchBody, edge: EdgeOf, caller: CallerOf) -> Response:
    """A new schedule or time zone counts from now on."""
    await _seen(edge, caller, cron_id)

    def change(cron: CronSnapshot) -> dict[str, Any]:
        changes = _changes(body, cron)
        _check(edge, CronSnapshot(**{**vars(cron), **changes}))
        return changes

    return await edge.json(
        cron_body(await edge.read(edge.store.crons.update, cron_id, change, provenance=caller.provenance))
    )


def _changes(body: CronPatchBody, cron: CronSnapshot) -> dict[str, Any]:
    """What the request changes about the cron as it is."""
    changes: dict[str, Any] = {}
    for name in body.model_fields_set & {"schedule", "timezone", "enabled", "on_run_completed"}:
        changes[name] = getattr(body, name)
    if "on_run_completed" in changes and cron.run_thread_id is not None:
        raise ApiError(422, _ONLY_WITHOUT_THREAD)
    if "end_time" in body.model_fields_set:
        changes["end_time"] = None if body.end_time is None else body.end_time.isoformat()
    if "metadata" in body.model_fields_set:
        changes["metadata"] = {**cron.metadata, **body.metadata}
    if payload := body.payload():
        changes["payload"] = {**cron.payload, **payload}
    return changes


@router.delete("/runs/crons/{cron_id}", status_code=204, response_class=Response, summary="Delete a cron")
async def delete_cron(cron_id: CronIdPath, edge: EdgeOf, caller: CallerOf) -> Response:
    """Runs that it started stay."""
    await _seen(edge, caller, cron_id)
    await edge.read(edge.store.crons.delete, cron_id, provenance=caller.provenance)
    return Response(status_code=204)


async def _seen(edge: Edge, caller: Caller, cron_id: str) -> CronSnapshot:
    """The cron, if it is there for the caller. Raises CronNotFound."""
    cron = await edge.read(edge.store.cron_lists.current, cron_id)
    if cron is None or not may_see(caller.user_id, cron.user_id):
        raise CronNotFound(cron_id)
    return cron
