"""Messages of threads and runs, beyond the platform: one entry a message, paged by the seq that streams have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query
from starlette.responses import Response

from runs_api.as_of import AsOfQuery, as_of_header, run_as_of, thread_as_of
from runs_api.caller import Caller, CallerOf
from runs_api.edge import Edge, EdgeOf
from runs_api.errors import ApiError
from runs_api.events import MOST, Many, Types
from runs_api.outlived import last_seq
from runs_api.requests import RunIdPath, Seq, ThreadIdPath
from runs_api.responses import ERRORS, Event, event_body, freshness
from runs_api.threads import must_see
from runs_es.service.commands import ListRunMessagesQuery
from runs_es.service.views import RunMessageView
from runs_projections.events import message_versions
from runs_projections.past import Past
from runs_projections.visibility import Visibility

router = APIRouter(prefix="/threads/{thread_id}", tags=["Messages"], responses=ERRORS)

Visible = Annotated[
    Visibility, Query(description="`shown` leaves out what its author marked as hidden, `hidden` lists only that")
]
_LIST = """One entry a message, at the seq of its newest version, ascending: the first after `after_seq`, else the last
before `before_seq`, else the latest. `X-Runs-Has-More` says whether there is more in that direction,
`X-Pagination-Next` which cursor gets it.
"""


@dataclass(frozen=True)
class Page:
    """Which of the messages are asked for."""

    after_seq: Seq | None = None
    before_seq: Seq | None = None
    limit: Many = 50
    types: Types = None
    visibility: Visible = "all"

    def query(self, caller: Caller, thread_id: str, run_id: str | None = None) -> ListRunMessagesQuery:
        return ListRunMessagesQuery(
            thread_id=thread_id,
            run_id=run_id,
            limit=self.limit,
            after_seq=self.after_seq,
            before_seq=self.before_seq,
            types=_only(self.types),
            visibility=self.visibility,
            user_id=caller.user_id,
        )


PageOf = Annotated[Page, Depends()]


@router.get("/messages", response_model=list[Event], summary="List the messages of a thread", description=_LIST)
async def list_thread_messages(
    thread_id: ThreadIdPath, edge: EdgeOf, caller: CallerOf, moment: AsOfQuery, page: PageOf
) -> Response:
    query = page.query(caller, thread_id)
    if moment is not None:
        return await _as_of(edge, query, (await thread_as_of(edge, caller, thread_id, moment))[1])
    await must_see(edge, caller, thread_id)
    return await _newest(edge, query)


@router.get("/runs/{run_id}/messages", response_model=list[Event], summary="List a run's messages", description=_LIST)
async def list_run_messages(
    thread_id: ThreadIdPath, run_id: RunIdPath, edge: EdgeOf, caller: CallerOf, moment: AsOfQuery, page: PageOf
) -> Response:
    query = page.query(caller, thread_id, run_id)
    if moment is not None:
        return await _as_of(edge, query, (await run_as_of(edge, caller, thread_id, run_id, moment))[1])
    last = await last_seq(edge, caller, thread_id, run_id)
    return await (_newest(edge, query) if last is None else _as_of(edge, query, last))


@router.get("/messages/{message_id}/versions", response_model=list[Event], summary="List the versions of a message")
async def list_message_versions(
    thread_id: ThreadIdPath,
    message_id: Annotated[str, Path(min_length=1, max_length=1000)],
    edge: EdgeOf,
    caller: CallerOf,
    limit: Annotated[int, Query(ge=1, le=MOST)] = 100,
) -> Response:
    """The newest `limit` of everything that was recorded under this id, ascending: edited, taken back with its run, or
    current.
    """
    await must_see(edge, caller, thread_id)
    found = await edge.read(message_versions, edge.store.log.reader, thread_id, message_id, limit)
    if not found:
        raise ApiError(404, f"Message with ID {message_id} not found")
    return await edge.json([event_body(event) for event in found])


def _only(types: Sequence[str] | None) -> Sequence[str] | None:
    """Event types; the category that all messages have restricts nothing."""
    return None if types is None or "message" in types else types


async def _newest(edge: Edge, query: ListRunMessagesQuery) -> Response:
    found = await edge.read(edge.store.events.list_messages_by_run, replace(query, limit=query.limit + 1))
    return await _answer(edge, found, query, freshness(found))


async def _as_of(edge: Edge, query: ListRunMessagesQuery, seq: int) -> Response:
    past = Past(edge.store.log.reader)
    found = await edge.read(past.messages, replace(query, limit=query.limit + 1), seq)
    return await _answer(edge, found, query, as_of_header(seq))


async def _answer(
    edge: Edge, found: Sequence[RunMessageView], query: ListRunMessagesQuery, headers: dict[str, str]
) -> Response:
    """The page, of which one message too many was read."""
    has_more = len(found) > query.limit
    ascending = query.after_seq is not None
    page = found[: query.limit] if ascending else found[-query.limit :]
    headers = {**headers, "X-Runs-Has-More": "true" if has_more else "false"}
    if has_more:
        headers["X-Pagination-Next"] = str(page[-1].seq if ascending else page[0].seq)
    return await edge.json([event_body(message) for message in page], headers=headers)
