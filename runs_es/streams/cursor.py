"""The stream of a run: one loop from a cursor, the same for replay and live.

Take the channel's version, read what is after the cursor, hand it over, else wait. The version is taken before the
read, so whatever is committed between the two ends the wait at once. There is no handover from history to live, hence
nothing to lose or repeat in one.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, TypeVar

from runs_es.domain import TERMINAL_TOPICS, BadSequence, RunNotFound, StoreUnavailable
from runs_es.log.numbers import WIDE
from runs_es.log.pages import RAW, decoded_size, event_of
from runs_es.log.reader import READ_BYTES, Head, LogReader, Row, RunBounds
from runs_es.streams.hub import Channel, Hub

T = TypeVar("T")

MAX_SEQ = 2**63 - 1
READ_ROWS = 1024
STARTED = "run.started"
# Small pages are handed over together, up to so many bytes: most runs stream slowly and have a frame a page.
STEP_BYTES = 64 * 1024
_CURSOR = re.compile(r"(-1|[0-9]{1,19})(-0|-\*)?", re.ASCII)
_ALWAYS_SHOWN = frozenset({"metadata", "error"})


def check_cursor_type(last_event_id: object) -> None:
    """Raises TypeError for a Last-Event-ID that is neither a text nor None."""
    if last_event_id is not None and not isinstance(last_event_id, str):
        kind = type(last_event_id).__name__
        raise TypeError(f'last_event_id must be a string as events carry it, such as "3", not {kind}')


def check_heartbeat(seconds: object) -> None:
    """Raises ValueError for an interval between heartbeats that is no positive number of seconds."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
        raise ValueError(f"heartbeat_interval must be a number of seconds above 0, got {seconds!r}")


def parse_cursor(text: str | None) -> int:
    """A Last-Event-ID as a seq: 0 for none, `-1` and `0`. Raises BadSequence for anything that is no cursor."""
    check_cursor_type(text)
    if text is None:
        return 0
    match = _CURSOR.fullmatch(text)
    if match is None:
        raise BadSequence("Last-Event-ID must be -1 or a sequence number of at most 19 digits")
    return max(int(match[1]), 0)


@dataclass(frozen=True, slots=True)
class Frames:
    """Frames of the run after the cursor: of `rows`, pages that follow each other, but for the first `skip`."""

    rows: Sequence[Row]
    skip: int = 0

    @property
    def undecoded_bytes(self) -> int:
        """Size of the pages that nobody has decoded yet: `encoded` copies these several times."""
        return sum([decoded_size(row.state) for row in self.rows if not row.is_decoded])

    def encoded(self, modes: frozenset[str] | None = None) -> bytes:
        """As they go out, joined. With `modes`, only frames of those, and what is always shown."""
        if modes is None and not self.skip:
            return self.rows[0].joined if len(self.rows) == 1 else b"".join([row.joined for row in self.rows])
        frames = [frame for row in self.rows for frame in row.frames][self.skip :]
        if modes is None:
            return b"".join(frames)
        shown = [is_shown(event_of(body), modes) for _, body in self.items()]
        return b"".join(frame for frame, show in zip(frames, shown, strict=True) if show)

    def items(self) -> list[tuple[int, bytes]]:
        """(seq, body) of each."""
        bodies = [body for row in self.rows for body in row.bodies]
        return list(enumerate(bodies, self.rows[0].first))[self.skip :]


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Nothing happened for the interval."""


@dataclass(frozen=True, slots=True)
class End:
    """The run ended; `seq` is its terminal fact's."""

    seq: int


@dataclass(frozen=True, slots=True)
class Gap:
    """What was asked for is not there, or not any more; the ids are bounds of what is. The stream ends here.

    `run_id` is None for the events of a whole thread.
    """

    run_id: str | None
    requested: int
    earliest: int | None
    latest: int | None

    def payload(self) -> dict[str, Any]:
        return {
            "code": "stream_replay_gap",
            "run_id": self.run_id,
            "requested_event_id": str(self.requested),
            "earliest_available_event_id": None if self.earliest is None else str(self.earliest),
            "latest_available_event_id": None if self.latest is None else str(self.latest),
        }


Step = Frames | Heartbeat | End | Gap


def is_shown(event: str, modes: frozenset[str]) -> bool:
    """Whether a filter by stream mode lets an event through. Subgraph namespaces and `messages/…` follow their mode."""
    name = event.partition("|")[0].partition("/")[0]
    if name in _ALWAYS_SHOWN or name in modes:
        return True
    return name == "messages" and "messages-tuple" in modes


def _with_small_ones_behind(row: Row, rows: deque[Row]) -> list[Row]:
    """`row`, and the pages of its run at the head of `rows` that go out with it; takes those from `rows`."""
    pages = [row]
    size = len(row.state)
    # Raw pages only: of the others it is not known how large they are.
    while rows and size < STEP_BYTES and row.state[0] == RAW:
        row = rows[0]
        size += len(row.state)
        if row.state[0] != RAW or not row.is_page or row.run_id != pages[0].run_id or row.first != pages[-1].last + 1:
            break
        pages.append(rows.popleft())
    return pages


def first_bytes(rows: list[Row], most: int) -> list[Row]:
    """The rows up to the one with which they reach so many bytes: those left out may leave the ring."""
    size = 0
    for number, row in enumerate(rows, 1):
        size += len(row.state)
        if size >= most:
            return rows[:number]
    return rows


async def in_thread(threads: Executor, function: Callable[..., T], *arguments: object) -> T:
    """Call what blocks in one of `threads`. Raises StoreUnavailable once they are shut down, as a store closes."""
    try:
        calling = asyncio.get_running_loop().run_in_executor(threads, function, *arguments)
    except RuntimeError as error:
        raise StoreUnavailable("the store is closed") from error
    return await calling


class RunStreams:
    """Opens streams of runs. `threads` runs the blocking reads."""

    def __init__(self, hub: Hub, reader: LogReader, threads: Executor) -> None:
        self._hub = hub
        self.reader = reader
        self._threads = threads
        self._reading: dict[tuple[object, Channel, int, int], asyncio.Future[list[Row]]] = {}
        self.closing = False
        self.read_bytes = READ_BYTES  # that a stream reads at once: as much as a stalled reader keeps

    def close(self) -> None:
        """End every open stream without an end: its client is to come back elsewhere."""
        self.closing = True
        self._hub.wake_all()

    async def open(self, thread_id: str, run_id: str, after: int = 0, *, heartbeat: float = 15.0) -> RunStream:
        """The run's events after seq `after`. Raises RunNotFound at once rather than in the stream."""
        channel = self.watch(thread_id)
        try:
            generation = self.generation
            head, bounds = await self.call(self._locate, thread_id, run_id)
            if head is None or bounds is None:
                raise RunNotFound(run_id)
            is_lost = await self.is_lost(thread_id, after, head)
        except BaseException:
            self.release(channel)
            raise
        return RunStream(self, channel, run_id, after, head, bounds, heartbeat, generation=generation, is_lost=is_lost)

    def _locate(self, thread_id: str, run_id: str) -> tuple[Head | None, RunBounds | None]:
        # The head first: had the run started before it was read, the bounds show it.
        return self.reader.head(thread_id), self.reader.bounds(thread_id, run_id)

    @property
    def generation(self) -> int:
        """Another one: what was read before may be of another history."""
        return self._hub.generation

    async def is_lost(self, thread_id: str, cursor: int, head: Head) -> bool:
        """Whether this history never gave out `cursor`: it is beyond the head, or was passed over by a restore."""
        if cursor > head.seq:
            return True
        if not cursor or head.seq < WIDE:
            return False  # the thread was not restored
        return await self.call(self.reader.is_of_lost_history, thread_id, cursor)

    async def went_on(self, thread_id: str, run_id: str | None, cursor: int) -> bool:
        """Whether the thread, and its run if named, are there and have come to `cursor`, after a change of history."""
        head = await self.call(self.reader.head, thread_id)
        if head is None or await self.is_lost(thread_id, cursor, head):
            return False
        return run_id is None or await self.call(self.reader.bounds, thread_id, run_id) is not None

    async def rows_after(self, channel: Channel, cursor: int, version: int) -> Sequence[Row]:
        """A read of the database that everybody shares who stands at `cursor` and has seen the same `version`.

        Whoever has seen a newer one may not: what woke it may have been committed after that read had begun.
        """
        key = (asyncio.get_running_loop(), channel, cursor, version)
        reading = self._reading.get(key)
        if reading is None:
            reading = asyncio.ensure_future(
                self.call(self.reader.rows_after, channel.thread_id, cursor, READ_ROWS, self.read_bytes)
            )
            self._reading[key] = reading
            reading.add_done_callback(lambda _: self._reading.pop(key))
        return await asyncio.shield(reading)

    def watch(self, thread_id: str) -> Channel:
        """The thread's channel; give it back with `release`."""
        return self._hub.watch(thread_id)

    def release(self, channel: Channel) -> None:
        """Undo one `watch`."""
        self._hub.release(channel)

    async def call(self, function: Callable[..., T], *arguments: object) -> T:
        """Call what blocks in one of the threads. Raises StoreUnavailable once the store is closed."""
        return await in_thread(self._threads, function, *arguments)


class RunStream:
    """One open stream. Iterate `steps` once; leave through `aclose` or the end."""

    def __init__(
        self,
        streams: RunStreams,
        channel: Channel,
        run_id: str,
        after: int,
        head: Head,
        bounds: RunBounds,
        heartbeat: float,
        *,
        generation: int,
        is_lost: bool,
    ) -> None:
        self._streams = streams
        self._generation = generation
        self._is_lost = is_lost
        self._channel = channel
        self._run_id = run_id
        self._after = after
        self._head = head
        self._bounds = bounds
        self._heartbeat = heartbeat
        self._released = False

    @property
    def ended_at(self) -> int | None:
        """The seq of the run's end, when it had ended as the stream was opened."""
        return self._bounds.ended

    def release(self) -> None:
        """Give the channel back. Safe to call twice."""
        if not self._released:
            self._released = True
            self._streams.release(self._channel)

    async def steps(self) -> AsyncIterator[Step]:
        """Frames, heartbeats, and then `End`, or a `Gap`. Without either when the process shuts down."""
        try:
            async for step in self._steps():
                handed = [step]
                del step  # what is handed over is not kept here while its reader stalls
                yield handed.pop()
        finally:
            self.release()

    async def _steps(self) -> AsyncIterator[Step]:
        if self._is_lost:
            yield await self._gap()
            return
        ended = self._bounds.ended
        if ended is not None and self._after >= ended:
            yield End(ended)
            return
        cursor = self._start()
        is_ours = True  # the pages that come next: between two attempts another run may have had its turn
        self._channel.heard(self._head.seq)
        while not self._streams.closing:
            version = self._channel.version
            if self._generation != self._streams.generation and not await self._went_on(cursor):
                yield await self._gap()
                return
            rows = deque(await self._read(cursor, version))
            nothing = not rows
            while rows:
                row = rows.popleft()  # let go of each once it is sent: a stalled reader holds one
                if (is_ours and row.first > cursor + 1) or (row.is_wide and row.first <= cursor):
                    yield await self._gap()
                    return
                if row.topic == STARTED:
                    is_ours = row.run_id == self._run_id
                if row.run_id == self._run_id:
                    if row.is_page:
                        pages = _with_small_ones_behind(row, rows)
                        handed = [Frames(pages, max(cursor + 1 - row.first, 0))]
                        cursor = pages[-1].last
                        del row, pages
                        yield handed.pop()
                        continue
                    if row.topic in TERMINAL_TOPICS:
                        yield End(row.last)
                        return
                cursor = row.last
            if nothing and not await self._channel.changed(version, self._heartbeat):
                yield Heartbeat()

    async def _went_on(self, cursor: int) -> bool:
        self._generation = self._streams.generation
        return await self._streams.went_on(self._channel.thread_id, self._run_id, cursor)

    def _start(self) -> int:
        """Where to read from: what lies before the run's first start is other runs' business."""
        if self._bounds.started is not None:
            return max(self._after, self._bounds.started - 1)
        if self._bounds.ended is not None:
            return max(self._after, self._bounds.ended - 1)
        return max(self._after, self._bounds.created, self._head.seq)

    async def _read(self, cursor: int, version: int) -> Sequence[Row]:
        rows = self._channel.read(cursor, READ_ROWS)
        if rows is None:
            return await self._streams.rows_after(self._channel, cursor, version)
        return first_bytes(rows, self._streams.read_bytes)

    async def _gap(self) -> Gap:
        first, last = await self._streams.call(self._streams.reader.available, self._channel.thread_id, self._run_id)
        return Gap(self._run_id, self._after, first, last)
