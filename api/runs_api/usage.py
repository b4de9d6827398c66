"""What a thread or a run used: tokens by model, and the cost where RUNS_ES_PRICES knows the model."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.responses import Response

from runs_api.caller import CallerOf
from runs_api.edge import Edge, EdgeOf
from runs_api.events import must_see_run
from runs_api.requests import RunIdPath, ThreadIdPath
from runs_api.responses import ERRORS, Json, freshness
from runs_api.threads import must_see

router = APIRouter(prefix="/threads/{thread_id}", tags=["Usage"], responses=ERRORS)


class ModelUsage(BaseModel):
    model: str = Field(description="empty where messages do not say")
    messages: int
    input_tokens: int = Field(description="those read from and written to a cache included")
    output_tokens: int = Field(description="reasoning included")
    cache_read_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    cost: float | None = Field(description="null where there is no price for the model (RUNS_ES_PRICES)")


class Usage(BaseModel):
    thread_id: str
    run_id: str | None
    input_tokens: int
    output_tokens: int
    cost: float | None = Field(description="null unless every model has a price")
    models: list[ModelUsage]


@router.get("/usage", response_model=Usage, summary="What a thread used, by model")
async def get_thread_usage(thread_id: ThreadIdPath, edge: EdgeOf, caller: CallerOf) -> Response:
    """Of the messages of all runs that are there; each counted once."""
    await must_see(edge, caller, thread_id)
    return await _usage(edge, thread_id, None)


@router.get("/runs/{run_id}/usage", response_model=Usage, summary="What a run used, by model")
async def get_run_usage(thread_id: ThreadIdPath, run_id: RunIdPath, edge: EdgeOf, caller: CallerOf) -> Response:
    """Of the messages that this run was the first to record."""
    await must_see_run(edge, caller, thread_id, run_id)
    return await _usage(edge, thread_id, run_id)


async def _usage(edge: Edge, thread_id: str, run_id: str | None) -> Response:
    models, counted = await edge.read(edge.store.usage.by_model, thread_id, run_id)
    costs = [each.cost for each in models]
    known = [cost for cost in costs if cost is not None]
    body = {
        "thread_id": thread_id,
        "run_id": run_id,
        "input_tokens": sum(each.input_tokens for each in models),
        "output_tokens": sum(each.output_tokens for each in models),
        "cost": sum(known) if len(known) == len(costs) else None,
        "models": [asdict(each) for each in models],
    }
    return Json(body, headers=freshness(counted))
