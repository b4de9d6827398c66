"""Cancelling several runs at once: those of a list, or all of a status."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from runs_api.caller import CallerOf
from runs_api.edge import EdgeOf
from runs_api.errors import ApiError
from runs_api.requests import NOTHING_TO_CANCEL, CancelActionQuery, CancelReason, CancelRunsBody, JsonRoute
from runs_api.responses import ERRORS
from runs_es.domain import CancelAction
from runs_es.service.commands import CancelRunsCommand

router = APIRouter(prefix="/runs", tags=["Runs"], route_class=JsonRoute, responses=ERRORS)


@router.post("/cancel", status_code=204, response_class=Response, summary="Cancel several runs")
async def cancel_runs(
    body: CancelRunsBody,
    edge: EdgeOf,
    caller: CallerOf,
    action: CancelActionQuery = "interrupt",
    reason: CancelReason = None,
) -> Response:
    """Those of `run_ids` in the thread, or all of a `status` that the caller may see. Runs that have ended are passed
    over; 404 when no run is left.
    """
    command = CancelRunsCommand(
        thread_id=body.thread_id,
        run_ids=body.run_ids or (),
        status=body.status or "all",
        action=CancelAction(action),
        user_id=caller.user_id,
        provenance=caller.because(reason or f"{action} requested via POST /runs/cancel"),
    )
    if not await edge.store.service.cancel_several(command):
        raise ApiError(404, NOTHING_TO_CANCEL)
    return Response(status_code=204)
