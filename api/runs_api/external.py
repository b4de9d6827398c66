"""External workers: claim a run, append to it, renew its lease, finish it. runs_es/execution/README.md shows how."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from runs_api.edge import Edge, EdgeOf
from runs_api.errors import ApiError
from runs_api.external_requests import ClaimBody, ContentBody, FinishBody, StatedBody
from runs_api.requests import JsonRoute, RunIdPath
from runs_api.responses import ERRORS, Error, Json, Run, run_body
from runs_api.worker_access import worker_allowed
from runs_es.domain import Run as DomainRun
from runs_es.execution.external import Claimed, Refused, Written
from runs_es.service.views import RunSnapshot


class RefusalBody(Error):
    reason: str = Field(description="cancelled, lost, ended or frames")
    action: str | None = Field(None, description="how the run is to be cancelled: interrupt or rollback")
    status: str | None = Field(None, description="what a run that has ended is")
    frames: int | None = Field(None, description="how many frames the thread has")
    worker_id: str | None = Field(None, description="who has the run now")
    attempt: int | None = Field(None, description="and in which attempt it is")


_ERRORS = {
    **ERRORS,
    401: {"model": Error, "description": "Not the token of RUNS_ES_WORKER_TOKEN"},
    403: {
        "model": Error,
        "description": "No token is set, and there are users, or the request may not come from this machine",
    },
    409: {"model": RefusalBody, "description": "The claim does not hold, the run is to be cancelled, or frames differ"},
}
router = APIRouter(
    prefix="/workers",
    tags=["External workers"],
    route_class=JsonRoute,
    responses=_ERRORS,
    dependencies=[Depends(worker_allowed)],
)


class ClaimedRun(BaseModel):
    run: Run
    run_id: str
    thread_id: str
    assistant: str = Field(description="its name")
    claim_id: str
    fence: int
    frames: int = Field(description="how many frames the thread has: state it with the next write")
    attempt: int
    lease_until: datetime
    cancel_requested: str | None = None


class WrittenTo(BaseModel):
    fence: int
    frames: int = Field(description="how many frames the thread has now")
    seq: int = Field(description="the last event written, or the thread's last")
    lease_until: datetime | None
    cancel_requested: str | None = Field(None, description="stop: how the run is to be cancelled")


@router.post(
    "/claim",
    response_model=ClaimedRun,
    responses={204: {"description": "There is no run to work on"}},
    summary="Claim the oldest run that waits for an external worker",
)
async def claim_run(body: ClaimBody, request: Request, edge: EdgeOf) -> Response:
    external, settings = edge.store.external, edge.settings
    seconds = body.lease_seconds or settings.lease_seconds
    _at_most("lease_seconds", seconds, settings.worker_max_lease_seconds, "RUNS_ES_WORKER_MAX_LEASE_SECONDS")
    _at_most("wait_seconds", body.wait_seconds, settings.worker_max_wait_seconds, "RUNS_ES_WORKER_MAX_WAIT_SECONDS")
    ids = external.assistants.ids_of(body.assistants)

    async def look() -> Claimed | None:
        if await request.is_disconnected():
            return None  # nobody would take what is claimed
        return await edge.read(external.claim, ids, body.worker_id, seconds, body.claim_id)

    try:
        claimed = await edge.store.arrivals.first(look, body.wait_seconds)
    except Refused as refused:
        return _refusal(refused)
    return Response(status_code=204) if claimed is None else await edge.json(_claimed(edge, claimed))


@router.post("/runs/{run_id}/append", response_model=WrittenTo, summary="Append messages, facts and events to a run")
async def append_to_run(run_id: RunIdPath, body: ContentBody, edge: EdgeOf) -> Response:
    """All of it or nothing. Sent again after a lost answer it lands once, as long as nothing else was sent between."""
    _bounded(edge, body)
    try:
        written = await edge.read(lambda: edge.store.external.append(body.stated(run_id, body.frames), body.content()))
    except Refused as refused:
        return _refusal(refused)
    return Json(_written(written, None))


@router.post("/runs/{run_id}/renew", response_model=WrittenTo, summary="Extend the lease of a run")
async def renew_run(run_id: RunIdPath, body: StatedBody, edge: EdgeOf) -> Response:
    """Every append does so too. Tells when the run is to be cancelled; its lease is then not extended any more."""
    try:
        written, action = await edge.read(edge.store.external.renew, body.stated(run_id))
    except Refused as refused:
        return _refusal(refused)
    return Json(_written(written, action))


@router.post("/runs/{run_id}/finish", response_model=Run, summary="Say how a run came out")
async def finish_run(run_id: RunIdPath, body: FinishBody, edge: EdgeOf) -> Response:
    """With whatever is left to write. The answer is the run as it ended."""
    _bounded(edge, body)

    def finished() -> DomainRun:
        return edge.store.external.finish(body.stated(run_id, body.frames), body.content(), body.ending())

    try:
        run = await edge.read(finished)
    except Refused as refused:
        return _refusal(refused)
    return await edge.json(_run(run))


@router.post("/runs/{run_id}/release", response_model=Run, summary="Hand a run back for another worker")
async def release_run(run_id: RunIdPath, body: StatedBody, edge: EdgeOf) -> Response:
    try:
        run = await edge.read(edge.store.external.release, body.stated(run_id))
    except Refused as refused:
        return _refusal(refused)
    return await edge.json(_run(run))


def _at_most(field: str, value: float, most: float, setting: str) -> None:
    if value > most:
        raise ApiError(422, f"{field}: at most {most:g} ({setting}), got {value:g}")


def _bounded(edge: Edge, body: ContentBody) -> None:
    most = edge.settings.worker_max_items
    for field, items in (("events", body.events), ("messages", body.messages), ("facts", body.facts)):
        if len(items) > most:
            raise ApiError(413, f"{field}: at most {most} in a request (RUNS_ES_WORKER_MAX_ITEMS), got {len(items)}")


def _refusal(refused: Refused) -> Json:
    details = {name: value for name, value in refused.details.items() if name in RefusalBody.model_fields}
    return Json({"detail": str(refused), "reason": refused.reason, **details}, 409)


def _run(run: DomainRun) -> dict[str, Any]:
    return run_body(RunSnapshot.from_run(run))


def _claimed(edge: Edge, claimed: Claimed) -> dict[str, Any]:
    run = claimed.run
    return {
        "run": _run(run),
        "run_id": run.run_id,
        "thread_id": run.thread_id,
        "assistant": edge.store.external.assistants.name_of(run.assistant_id),
        "claim_id": claimed.claim_id,
        "fence": claimed.fence,
        "frames": claimed.frames,
        "attempt": run.attempt,
        "lease_until": claimed.lease_until.isoformat(),
        "cancel_requested": claimed.cancel_requested,
    }


def _written(written: Written, action: str | None) -> dict[str, Any]:
    return {
        "fence": written.fence,
        "frames": written.frames,
        "seq": written.seq,
        "lease_until": written.lease_until and written.lease_until.isoformat(),
        "cancel_requested": action,
    }
