"""What became of a run's webhook."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.responses import Response

from runs_api.caller import CallerOf
from runs_api.edge import EdgeOf
from runs_api.errors import ApiError
from runs_api.requests import JsonRoute, RunIdPath, ThreadIdPath
from runs_api.responses import ERRORS
from runs_es.domain import RunNotFound
from runs_es.service.commands import GetRunQuery
from runs_es.webhooks.deliveries import WebhookStatus

router = APIRouter(tags=["Runs"], route_class=JsonRoute, responses=ERRORS)


class Webhook(BaseModel):
    thread_id: str
    run_id: str
    delivery_id: str = Field(description="the header `webhook-id` of every attempt")
    url: str
    state: str = Field(description="waiting for the run's end, pending, delivered, or failed: given up")
    attempts: int = Field(description="that were begun")
    last_status: int | None = Field(description="of the receiver's last answer, if the last attempt had one")
    last_error: str | None
    last_attempt_at: str | None
    next_attempt_at: str | None = Field(description="while pending; under way, when that attempt counts as lost")
    delivered_at: str | None = Field(description="when its acknowledgement, an answer of 2xx, was recorded")


@router.get("/threads/{thread_id}/runs/{run_id}/webhook", response_model=Webhook, summary="Look at a run's webhook")
async def get_webhook(thread_id: ThreadIdPath, run_id: RunIdPath, edge: EdgeOf, caller: CallerOf) -> Response:
    run = await edge.store.service.get_run(GetRunQuery(run_id=run_id, thread_id=thread_id, user_id=caller.user_id))
    if run is None:
        raise RunNotFound(run_id)
    url = run.kwargs.get("webhook")
    if not isinstance(url, str):
        raise ApiError(404, f"Run {run_id} was created without a webhook")
    # A run that was created just now has no row yet.
    found = await edge.read(edge.store.webhooks.find, thread_id, run_id)
    return await edge.json(webhook_body(found or WebhookStatus(thread_id=thread_id, run_id=run_id, url=url)))


def webhook_body(webhook: WebhookStatus) -> dict[str, object]:
    return {name: getattr(webhook, name) for name in Webhook.model_fields}
