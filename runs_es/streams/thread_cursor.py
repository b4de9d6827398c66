"""All stored events of a thread, or of one of its runs, from a cursor on: facts as well as frames, as a live stream.

The loop is that of a run's stream (cursor.py): version, read, hand over, wait. Where frames are not asked for, or the
run has not begun, pages are not read at all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass

from runs_es.domain import TERMINAL_TOPICS, RunNotFound, ThreadNotFound
from runs_es.log.reader import Head, LogReader, Row, RunBounds
from runs_es.streams.cursor import READ_ROWS, STARTED, End, Gap, Heartbeat, RunStreams, first_bytes
from runs_es.streams.hub import Channel

_GONE = frozenset({"thread.deleted", "thread.erased"})


@dataclass(frozen=True, slots=True)
class Stored:
    """A row of the log; what it holds up to seq `after` was not asked for."""

    row: Row
    after: int


EventStep = Stored | Heartbeat | End | Gap


class EventFeed:
    """One open feed. Iterate `steps` once; leave through `aclose` or the end."""

    def __init__(
        self,
        streams: RunStreams,
        channel: Channel,
        run_id: str | None,
        after: int,
        head: Head,
        bounds: RunBounds | None,
        *,
        frames: bool,
        heartbeat: float,
    ) -> None:
        self._streams, self._channel = streams, channel
        self._run_id, self._after, self._head, self._bounds = run_id, after, head, bounds
        self._frames, self._heartbeat = frames, heartbeat
        # From where on a run's pages lie; a thread's lie anywhere.
        self._started = bounds.started if bounds is not None else 0
        self._is_ours = True  # the pages that come next: between two attempts another run may have had its turn
        self._released = False

    def release(self) -> None:
        """Give the channel back. Safe to call twice."""
        if not self._released:
            self._released = True
            self._streams.release(self._channel)

    async def steps(self) -> AsyncIterator[EventStep]:
        """Rows, heartbeats, and then `End` with the run or the thread, or a `Gap`. Without either at a shutdown."""
        try:
            async for step in self._steps():
                yield step
        finally:
            self.release()

    async def _steps(self) -> AsyncIterator[EventStep]:
        if self._after > self._head.seq:
            yield self._gap(self._bounds.created if self._bounds is not None else 1)
            return
        ended = self._bounds.ended if self._bounds is not None else None
        if ended is not None and self._after >= ended:
            yield End(ended)
            return
        cursor = max(self._after, self._bounds.created - 1 if self._bounds is not None else 0)
        self._channel.heard(self._head.seq)
        while not self._streams.closing:
            version = self._channel.version
            found, upto = await self._read(cursor)
            rows, nothing = deque(found), not found
            del found  # let go of each row once it is sent: a stalled reader holds one that was decoded
            while rows:
                row = rows.popleft()
                if self._is_ours and self._reads_pages(cursor) and row.first > cursor + 1:
                    yield self._gap(row.first)
                    return
                if self._run_id is None or row.run_id == self._run_id:
                    yield Stored(row, cursor)
                    if self._is_last(row):
                        yield End(row.last)
                        return
                begins = self._follow(row)
                cursor = row.last
                if begins:
                    break  # what follows was perhaps read without pages
            else:
                cursor = max(cursor, upto)
                if nothing and not await self._channel.changed(version, self._heartbeat):
                    yield Heartbeat()

    def _reads_pages(self, cursor: int) -> bool:
        return self._frames and self._started is not None and cursor >= self._started

    def _is_last(self, row: Row) -> bool:
        return row.topic in _GONE if self._run_id is None else row.topic in TERMINAL_TOPICS

    def _follow(self, row: Row) -> bool:
        """Whether this is where the run's pages begin."""
        if row.topic != STARTED or self._run_id is None:
            return False
        self._is_ours = row.run_id == self._run_id
        if not self._is_ours:
            return False
        if self._started is None:
            self._started = row.last
        return self._started == row.last

    async def _read(self, cursor: int) -> tuple[list[Row], int]:
        rows = self._channel.read(cursor, READ_ROWS)
        if rows is not None:
            return first_bytes(rows, self._streams.read_bytes), cursor
        pages = self._reads_pages(cursor)
        return await self._streams.call(
            _stored_after, self._streams.reader, self._channel.thread_id, cursor, not pages, self._streams.read_bytes
        )

    def _gap(self, earliest: int) -> Gap:
        return Gap(self._run_id, self._after, earliest, max(self._head.seq, self._channel.known))


def _stored_after(
    reader: LogReader, thread_id: str, seq: int, facts_only: bool, most_bytes: int
) -> tuple[list[Row], int]:
    rows, upto = reader.stored_after(thread_id, seq, READ_ROWS, facts_only=facts_only, most_bytes=most_bytes)
    # With pages, a hole is for the caller to see: it is no proof that nothing was there.
    return rows, upto if facts_only else (rows[-1].last if rows else seq)


async def open_feed(
    streams: RunStreams,
    thread_id: str,
    run_id: str | None = None,
    after: int = 0,
    *,
    frames: bool = True,
    heartbeat: float = 15.0,
) -> EventFeed:
    """The events after seq `after`, of a run if named. Raises ThreadNotFound or RunNotFound at once."""
    channel = streams.watch(thread_id)
    try:
        head, bounds = await streams.call(_located, streams.reader, thread_id, run_id)
        if run_id is not None and bounds is None:
            raise RunNotFound(run_id)
        if head is None:
            raise ThreadNotFound(thread_id)
    except BaseException:
        streams.release(channel)
        raise
    return EventFeed(streams, channel, run_id, after, head, bounds, frames=frames, heartbeat=heartbeat)


def _located(reader: LogReader, thread_id: str, run_id: str | None) -> tuple[Head | None, RunBounds | None]:
    # The head first: had the run ended before it was read, the bounds show it.
    head = reader.head(thread_id)
    return head, reader.bounds(thread_id, run_id) if run_id is not None else None
