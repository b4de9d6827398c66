"""Runs across threads, beyond the platform."""

from __future__ import annotations

from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Query
from starlette.responses import Response

from runs_api.caller import CallerOf
from runs_api.edge import EdgeOf
from runs_api.errors import ApiError
from runs_api.requests import Limit, RunStatusText, SelectRunFields, ThreadIdText
from runs_api.responses import ERRORS, Run, freshness, run_body, selected
from runs_es.service.commands import FindRunsQuery
from runs_projections.run_lists import cursor_of

router = APIRouter(prefix="/runs", tags=["Runs"], responses=ERRORS)

_Time = Annotated[str | None, Query(description="ISO 8601 with offset; not included")]
_LIST = """Newest first; where the server has users, the caller's own. `X-Pagination-Next` is the cursor of the next
page and absent from the last one; pages turned while runs are written show each run once. `select` without `kwargs`
leaves out what runs were given.
"""


@router.get("", response_model=list[Run], summary="List runs of all threads", description=_LIST)
async def find_runs(
    edge: EdgeOf,
    caller: CallerOf,
    status: RunStatusText | None = None,
    assistant_id: Annotated[str | None, Query(min_length=1, max_length=255)] = None,
    thread_id: ThreadIdText | None = None,
    user_id: Annotated[str | None, Query(min_length=1, description="whose runs")] = None,
    metadata: Annotated[str | None, Query(description="a JSON object that a run's metadata must hold")] = None,
    created_after: _Time = None,
    created_before: _Time = None,
    limit: Limit = 10,
    after: Annotated[str | None, Query(description="the `X-Pagination-Next` of the page before")] = None,
    select: SelectRunFields = None,
) -> Response:
    query = FindRunsQuery(
        user_id=caller.user_id,
        owner=user_id,
        thread_id=thread_id,
        assistant_id=_assistant(edge.store.registry, assistant_id),
        status=status,
        metadata=_object(metadata),
        created_after=created_after,
        created_before=created_before,
        limit=limit + 1,
        after=after,
    )
    found = await edge.read(edge.store.runs.find, query)
    page = found[:limit]
    headers = {**freshness(found), "X-Runs-Has-More": "true" if len(found) > limit else "false"}
    if len(found) > limit:
        headers["X-Pagination-Next"] = cursor_of(page[-1])
    return await edge.json(selected(map(run_body, page), select), headers=headers)


def _assistant(graphs: Any, named: str | None) -> str | None:
    """The id of an assistant that may be named by its graph."""
    if named is None or graphs is None:
        return named
    graph_id = graphs.resolve(named)
    return named if graph_id is None else str(graphs.assistant_id(graph_id))


def _object(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise ApiError(422, 'metadata: must be a JSON object, as in {"topic": "billing"}')
    return value
