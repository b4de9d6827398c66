"""A run's stream as server-sent events: an ASGI response of our own, because a frame must cost next to nothing.

One task reads the log into an outbox, another empties it into the socket, a third waits for the client to leave. While
a send is under way the outbox fills, so whatever has become available goes out in one send: the slower the client, the
larger its pieces. Frames arrive encoded; nothing here looks into them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from runs_api.reader_memory import MOST_A_STREAM, ReaderMemory
from runs_api.responses import encoded
from runs_es.database.reporting import report
from runs_es.settings import Settings
from runs_es.streams.cursor import End, Frames, Gap, Step

logger = logging.getLogger(__name__)

MAX_PIECE = MOST_A_STREAM  # about; less, the more streams are open
# A page is decoded in some hundred microseconds up to here; a larger one in a thread.
MAX_ON_LOOP = 256 * 1024
# A comment line, and no blank line after it: some decoders take that for an event.
HEARTBEAT = b": heartbeat\r\n"
HEADERS = {
    # Set here because Starlette would not add the charset to a header that is already there.
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache, no-transform",
    "X-Accel-Buffering": "no",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True, slots=True)
class Encoded:
    """Events as they go out, joined; nothing of them is filtered."""

    data: bytes


class Ending(Enum):
    """How a stream came to its end."""

    COMPLETE = auto()  # the run ended, or there is a gap: a clean close
    CUT = auto()  # we stop, or the client takes nothing: no final chunk, so that it comes back
    CLIENT_LEFT = auto()


class EventStream(Response):
    """Sends `steps` until the run ends. `on_client_left` is called if the client goes away before, and only then;
    `on_close` always.
    """

    def __init__(
        self,
        steps: AsyncIterator[Step | Encoded],
        settings: Settings,
        *,
        headers: Mapping[str, str],
        modes: frozenset[str] | None = None,
        on_client_left: Callable[[], Awaitable[None]] | None = None,
        on_close: Callable[[], None] | None = None,
        memory: ReaderMemory | None = None,
    ) -> None:
        self.status_code = 200
        self.background = None
        self._memory = memory or ReaderMemory(MOST_A_STREAM * 16)
        self.init_headers({**HEADERS, **headers})
        self._steps = steps
        self._settings = settings
        self._modes = modes
        self._on_client_left = on_client_left
        self._on_close = on_close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        abort = scope.get("extensions", {}).get(ABORT)
        try:
            ending = await self._run(receive, send, abort)
        finally:
            if self._on_close is not None:
                self._on_close()
        if ending is Ending.CLIENT_LEFT and self._on_client_left is not None:
            await self._on_client_left()

    async def _run(self, receive: Receive, send: Send, abort: Callable[[], None] | None) -> Ending:
        limit = asyncio.timeout(None)
        outbox = Outbox(self._settings, limit, self._memory)
        reading = asyncio.create_task(self._fill(outbox))
        listening = asyncio.create_task(client_left(receive))
        listening.add_done_callback(lambda _: outbox.close(Ending.CLIENT_LEFT))
        try:
            async with limit:
                start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
                await outbox.deliver(send, start)
                return await self._empty(outbox, send)
        except TimeoutError:
            logger.info("a reader took nothing for %.1f s and is cut off", outbox.silent_seconds)
            if abort is not None:
                abort()  # closing would wait for a reader that reads nothing
            return Ending.CUT
        except OSError:
            return Ending.CLIENT_LEFT  # how some servers say so
        finally:
            outbox.stop()
            for task in (reading, listening):
                task.cancel()
            await asyncio.gather(reading, listening, return_exceptions=True)
            self._memory.leave(outbox)

    async def _fill(self, outbox: Outbox) -> None:
        """Steps into the outbox. Without an end the iterator says that the process is shutting down."""
        ending = Ending.CUT
        try:
            async for step in self._steps:
                match step:
                    case Frames():
                        if step.undecoded_bytes > MAX_ON_LOOP:
                            data = await asyncio.to_thread(step.encoded, self._modes)
                        else:
                            data = step.encoded(self._modes)
                        del step  # or its rows, decoded, would wait for the reader too
                        await outbox.put(data)
                    case Encoded():
                        await outbox.put(step.data)
                    case End() | Gap():
                        await outbox.put(self._last(step))
                        ending = Ending.COMPLETE
        except Exception as error:  # noqa: BLE001  (reported)
            report(logger, error, "a stream is cut")
        outbox.close(ending)

    def _last(self, step: End | Gap) -> bytes:
        if isinstance(step, Gap):
            return b"event: gap\r\ndata: %b\r\n\r\n" % encoded(step.payload())
        # An event without data is dropped by browsers, hence the null.
        return b"event: end\r\ndata: null\r\nid: %d\r\n\r\n" % step.seq if self._settings.stream_end_event else b""

    async def _empty(self, outbox: Outbox, send: Send) -> Ending:
        while True:
            piece, ending = await outbox.take()
            if ending is Ending.CLIENT_LEFT:
                return ending
            done = ending is Ending.COMPLETE
            if piece or done:
                body = {"type": "http.response.body", "body": piece, "more_body": not done}
                await outbox.deliver(send, body)
            if ending is not None:
                return ending


class Outbox:
    """What waits to be sent, at most about this stream's share of the memory for readers.

    After so many seconds of silence it holds a heartbeat; when a send takes too long, it lets `limit` run out. One
    timer for the whole stream looks after both, when one of them can be due: cheaper than one for each send and wait.
    """

    def __init__(self, settings: Settings, limit: asyncio.Timeout, memory: ReaderMemory) -> None:
        self._memory = memory
        self._stopped = False
        memory.join(self)
        self._parts: list[bytes] = []
        self._size = 0
        self._ending: Ending | None = None
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._heartbeat = settings.stream_heartbeat_seconds
        self._patience = settings.send_timeout_seconds
        self._limit = limit
        self._spoken = self._loop.time()
        self._sending_since: float | None = None
        self._timer = self._loop.call_later(min(self._heartbeat, self._patience), self._beat)

    async def put(self, data: bytes) -> None:
        """Add `data`, once there is room."""
        while self._size >= self._memory.share:
            self._room.clear()
            await self._room.wait()
        if data:
            await self._memory.take(self, len(data))
            self._parts.append(data)
            self._size += len(data)
            self._changed.set()

    def close(self, ending: Ending) -> None:
        """Nothing more comes. The first ending counts: who is cut off or finished has not left by itself."""
        if self._ending is None:
            self._ending = ending
        self._changed.set()

    async def take(self) -> tuple[bytes, Ending | None]:
        """Everything there is, joined, and how it ends if nothing follows; waits while there is neither."""
        await self._changed.wait()
        self._changed.clear()
        piece = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        self._size = 0
        self._room.set()
        self._spoken = self._loop.time()
        return piece, self._ending

    def stop(self) -> None:
        """End the heartbeat."""
        self._stopped = True
        self._timer.cancel()

    async def deliver(self, send: Send, message: Message) -> None:
        """Send, within the time that a reader has to take it."""
        self._sending_since = self._loop.time()
        await send(message)
        self._sending_since = None
        self._memory.give(self, len(message.get("body", b"")))

    @property
    def sending_since(self) -> float | None:
        """When the send under way began."""
        return self._sending_since

    @property
    def silent_seconds(self) -> float:
        """How long the send under way has taken."""
        return 0.0 if self._sending_since is None else self._loop.time() - self._sending_since

    def cut(self) -> None:
        """Let the time of the send under way run out."""
        if self._sending_since is not None and not (self._stopped or self._limit.expired()):
            self._limit.reschedule(self._loop.time())

    def _beat(self) -> None:
        now = self._loop.time()
        pause = min(self._heartbeat, self._patience)
        if self._sending_since is None:
            pause = min(pause, self._heartbeat - self._speak(now))
        elif now - self._sending_since >= self._patience:
            self.cut()
            return
        else:
            pause = min(pause, self._sending_since + self._patience - now)
        self._timer = self._loop.call_later(max(pause, 0.01), self._beat)

    def _speak(self, now: float) -> float:
        """Add a heartbeat if it is time for one; returns for how long there has been silence."""
        silent = now - self._spoken
        if silent < self._heartbeat * 0.99 or self._parts:
            return silent
        self._parts.append(HEARTBEAT)
        self._size += len(HEARTBEAT)
        self._changed.set()
        return 0.0


# The ASGI extension by which the server lets a response drop its connection at once; see `server.py`.
ABORT = "runs_es.abort"


async def client_left(receive: Receive) -> None:
    """Return once the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
