"""What differs between a run at two moments, or between two runs."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field
from starlette.responses import Response

from runs_api.as_of import run_as_of
from runs_api.caller import Caller, CallerOf
from runs_api.edge import Edge, EdgeOf
from runs_api.errors import ApiError
from runs_api.outlived import last_seq
from runs_api.requests import RunIdPath, RunIdText, Seq, ThreadIdPath
from runs_api.responses import ERRORS
from runs_es.domain import RunNotFound
from runs_es.service.commands import GetRunQuery
from runs_es.service.views import RunSnapshot
from runs_projections.diff import Change, MessageChange, RunAt, RunDiff, diff, run_at
from runs_projections.past import AsOf

router = APIRouter(prefix="/threads/{thread_id}/runs", tags=["Runs"], responses=ERRORS)


class Side(BaseModel):
    thread_id: str
    run_id: str
    seq: int
    status: str


class Difference(BaseModel):
    path: str = Field(description="JSON pointer")
    change: str = Field(
        description="added, removed or changed; `from` is absent from what was added, `to` from removed"
    )


class MessageDifference(BaseModel):
    message_id: str
    event_type: str
    change: str
    changes: list[Difference] = Field(description="where in `type`, `content` and `metadata`; of a changed message")


class Diff(BaseModel):
    before: Side = Field(serialization_alias="from")
    after: Side = Field(serialization_alias="to")
    run: list[Difference]
    messages: list[MessageDifference]
    state: list[Difference] = Field(description="of what the last `values` frames showed")
    truncated: bool = Field(description="whether there is more than a thousand of something")


@router.get("/{run_id}/diff", response_model=Diff, summary="Compare a run at two moments, or two runs")
async def diff_run(
    thread_id: ThreadIdPath,
    run_id: RunIdPath,
    edge: EdgeOf,
    caller: CallerOf,
    start: Annotated[Seq | None, Query(alias="from", description="by default the seq of the run's creation")] = None,
    end: Annotated[Seq | None, Query(alias="to", description="by default the newest seq of the thread")] = None,
    other: Annotated[RunIdText | None, Query(alias="with", description="another run, of any thread")] = None,
) -> Response:
    """With `with`, both runs are compared as they are now, and `from` and `to` are refused."""
    if other is not None:
        if start is not None or end is not None:
            raise ApiError(422, "with: compares two runs as they are now; leave out from and to")
        sides = await _now(edge, caller, thread_id, run_id), await _now(edge, caller, None, other)
    else:
        sides = await _moments(edge, caller, thread_id, run_id, start, end)
    return await edge.json(diff_body(await edge.read(diff, *sides)))


async def _now(edge: Edge, caller: Caller, thread_id: str | None, run_id: str) -> RunAt:
    query = GetRunQuery(run_id=run_id, thread_id=thread_id, user_id=caller.user_id)
    run = await edge.store.service.get_recorded_run(query)
    if run is None:
        raise RunNotFound(run_id)
    return await _at(edge, run, await _newest(edge, caller, run.thread_id, run_id))


async def _moments(
    edge: Edge, caller: Caller, thread_id: str, run_id: str, start: int | None, end: int | None
) -> tuple[RunAt, RunAt]:
    if start is not None and end is not None and start > end:
        raise ApiError(422, f"from: {start} is after to, which is {end}")
    if end is None:
        end = await _newest(edge, caller, thread_id, run_id)
    last, end = await run_as_of(edge, caller, thread_id, run_id, AsOf(seq=end))
    if start is None:
        start = await edge.read(_created, edge, last)
    first, start = await run_as_of(edge, caller, thread_id, run_id, AsOf(seq=start))
    return await _at(edge, first, start), await _at(edge, last, end)


def _created(edge: Edge, run: RunSnapshot) -> int:
    bounds = edge.store.log.reader.bounds(run.thread_id, run.run_id)
    if bounds is None:
        raise RunNotFound(run.run_id)
    return bounds.created


async def _newest(edge: Edge, caller: Caller, thread_id: str, run_id: str) -> int:
    """The newest seq of the thread at which the run is there. Raises RunNotFound."""
    last = await last_seq(edge, caller, thread_id, run_id)
    if last is not None:
        return last
    head = await edge.read(edge.store.log.reader.head, thread_id)
    return head.seq if head is not None else 0


async def _at(edge: Edge, run: RunSnapshot, seq: int) -> RunAt:
    return await edge.read(run_at, edge.store.log.reader, run.thread_id, run.run_id, seq)


def diff_body(found: RunDiff) -> dict[str, Any]:
    """The diff as JSON, for clients and for `runs-es diff --json`."""
    return {
        "from": _side(found.before),
        "to": _side(found.after),
        "run": [_change(each) for each in found.run],
        "messages": [_message(each) for each in found.messages],
        "state": [_change(each) for each in found.state],
        "truncated": found.truncated,
    }


def _side(side: RunAt) -> dict[str, Any]:
    row = side.row
    return {"thread_id": row.thread_id, "run_id": row.run_id, "seq": side.seq, "status": row.status}


def _change(change: Change) -> dict[str, Any]:
    return {"path": change.path, "change": change.kind, **_contents(change)}


def _message(change: MessageChange) -> dict[str, Any]:
    return {
        "message_id": change.message_id,
        "event_type": change.event_type,
        "change": change.kind,
        **_contents(change),
        "changes": [_change(each) for each in change.changes],
    }


def _contents(change: Change | MessageChange) -> dict[str, Any]:
    contents = {"from": change.before, "to": change.after}
    absent = {"added": "from", "removed": "to"}.get(change.kind)
    return {side: content for side, content in contents.items() if side != absent}
