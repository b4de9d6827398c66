"""Stored events as server-sent events: what the lists have, one by one, replayed and then live."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from starlette.responses import Response

from runs_api.caller import Caller
from runs_api.delivery import RECHECK_SECONDS
from runs_api.edge import ON_LOOP_BYTES, Edge
from runs_api.responses import encoded, event_body
from runs_api.sse import Encoded, EventStream
from runs_es.service.views import StoredRunEvent
from runs_es.streams.cursor import MAX_SEQ, Step
from runs_es.streams.thread_cursor import EventFeed, Stored, open_feed
from runs_projections.events import EventTypes, row_events
from runs_projections.lookups import tombstone

EVENT_STREAM = "text/event-stream"
_BREAKS = str.maketrans("\r\n\0", "   ")  # a name with these would end its line


async def followed(
    edge: Edge,
    caller: Caller,
    thread_id: str,
    run_id: str | None,
    after: int,
    types: Sequence[str] | None,
    *,
    upto: int | None = None,
) -> Response:
    """The events after seq `after`, of a run if named, that are of these types or categories. Takes a seat.

    Deletions of the thread after `upto` do not count.
    """
    wanted = EventTypes(types)
    seat = edge.joins.admit(caller.user_id)
    try:
        gone = await edge.read(tombstone, edge.store.log.reader, thread_id, MAX_SEQ if upto is None else upto)
        feed = await open_feed(
            edge.store.streams,
            thread_id,
            run_id,
            max(after, gone),
            frames=not wanted.no_frames,
            heartbeat=RECHECK_SECONDS,
        )
    except BaseException:
        seat.release()
        raise

    def close() -> None:
        feed.release()  # for a stream that was never iterated
        seat.release()

    return EventStream(_steps(feed, thread_id, wanted), edge.settings, headers={}, on_close=close, memory=edge.memory)


async def _steps(feed: EventFeed, thread_id: str, wanted: EventTypes) -> AsyncIterator[Step | Encoded]:
    async for step in feed.steps():
        if isinstance(step, Stored):
            if len(step.row.state) > ON_LOOP_BYTES:
                yield Encoded(await asyncio.to_thread(_events, thread_id, step, wanted))
            else:
                yield Encoded(_events(thread_id, step, wanted))
        else:
            yield step


def _events(thread_id: str, step: Stored, wanted: EventTypes) -> bytes:
    return b"".join(map(_event, row_events(thread_id, step.row, step.after, wanted)))


def _event(event: StoredRunEvent) -> bytes:
    name = event.event_type.translate(_BREAKS).encode()
    return b"event: %b\r\ndata: %b\r\nid: %d\r\n\r\n" % (name, encoded(event_body(event)), event.seq)
