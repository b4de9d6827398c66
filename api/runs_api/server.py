"""uvicorn, made to stop without failing a request: it cuts streams, so that clients come back to whoever serves next,
and lets go of kept connections only when nothing is under way on them.
"""

from __future__ import annotations

import asyncio
import ctypes
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from runs_api.sse import ABORT
from runs_api.stopping import end_at_once
from runs_es.settings import Settings

WATCH_SECONDS = 2
# Longer than proxies and clients keep idle connections: who keeps one shorter than they do closes it under a request.
KEEP_ALIVE_SECONDS = 75
# How long a server that stops still answers on connections that were idle, and how often it looks at them.
FAREWELL_SECONDS = 1.0
_LOOK_SECONDS = 0.02
# A request's headers together may be so many times the largest single one.
HEADERS = 16
# A body may take a second longer for so many bytes of it that have come.
BODY_BYTES_A_SECOND = 32 * 1024
_STALL_SECONDS = 1.0
_ACCEPT_ROUNDS = 1000
_SO_ATTACH_FILTER = 26  # Linux; the socket module does not name it
_BPF_RETURN = 6


@dataclass(frozen=True, slots=True)
class ArrivalBounds:
    """How long and large a request may be while it arrives."""

    header_seconds: float = 10.0
    body_seconds: float = 30.0
    head_bytes: int = 128 * 1024

    @classmethod
    def of(cls, settings: Settings) -> ArrivalBounds:
        head = HEADERS * settings.max_header_bytes
        return cls(settings.header_timeout_seconds, settings.body_timeout_seconds, head)


class BoundedConfig(uvicorn.Config):
    """uvicorn's configuration, and the bounds of `AbortableProtocol`."""

    arrival = ArrivalBounds()


class AbortableProtocol(HttpToolsProtocol):
    """HTTP whose responses may drop the connection: an ordinary close waits until what is buffered has been read.

    A request that arrives too slowly, or whose headers never end, is refused and its connection
    closed. One timer a connection looks after that: what it waits for is a time in `_due`.
    """

    _is_last = False
    _due: float | None = None
    _timer: asyncio.Handle | None = None
    _looks_at = 0.0
    _in_head = True
    _head_bytes = 0
    _body_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self._expect(self._bounds.header_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        self._due = None
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > self._bounds.head_bytes + len(data):
                self._refuse(b"431 Request Header Fields Too Large", "the headers are too large")
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {ABORT: self._abort}  # type: ignore[dict-item]
        self._in_head, self._head_bytes, self._body_bytes = True, 0, 0
        self._expect(self._bounds.header_seconds)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            self._head_bytes += len(name) + len(value)  # a trailer
            if self._head_bytes > self._bounds.head_bytes:
                self.transport.abort()
                return
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._in_head, self._head_bytes = False, 0
        self._expect(self._bounds.body_seconds)
        if self._is_last:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._due = None
        super().on_message_complete()

    @property
    def _bounds(self) -> ArrivalBounds:
        return self.config.arrival if isinstance(self.config, BoundedConfig) else BoundedConfig.arrival

    def _expect(self, seconds: float) -> None:
        """Refuse what has not come in so many seconds. The timer stays: to move it with each request costs more."""
        self._due = self.loop.time() + seconds
        if self._timer is None:
            self._look_at(self._due)

    def _look_at(self, moment: float) -> None:
        # uvloop's handle of a time that has come does not know when that was.
        self._looks_at = moment
        self._timer = self.loop.call_at(moment, self._look)

    def _look(self) -> None:
        late = self.loop.time() - self._looks_at
        self._timer = None
        if self._due is None or self.transport.is_closing():
            return
        due = self._due if self._in_head else self._due + self._body_bytes / BODY_BYTES_A_SECOND
        if late > _STALL_SECONDS:
            due = max(due, self.loop.time() + _STALL_SECONDS)  # we stood still: what came meanwhile is read first
        if self.loop.time() < due:
            self._look_at(due)
        elif self._in_head:
            self._refuse(b"408 Request Timeout", "the headers did not come in time (RUNS_ES_HEADER_TIMEOUT_SECONDS)")
        else:
            self._refuse(b"408 Request Timeout", "the body did not come in time (RUNS_ES_BODY_TIMEOUT_SECONDS)")

    def _refuse(self, status: bytes, detail: str) -> None:
        """Say why, where no answer is under way, and close; a client that does not read is not waited for."""
        if self.is_idle if self._in_head else not self.cycle.response_started:
            body = b'{"detail":"%b"}' % detail.encode()
            head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close" % len(body)
            self.transport.write(b"HTTP/1.1 %b\r\n%b\r\n\r\n%b" % (status, head, body))
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    @property
    def is_idle(self) -> bool:
        """No request is under way."""
        return self.cycle is None or self.cycle.response_complete

    def answer_last(self) -> None:
        """Close after the response that is under way, or the next one, and say so in it."""
        self._is_last = True
        if self.cycle is not None and not self.cycle.response_started:
            self.cycle.keep_alive = False

    def _abort(self) -> None:
        connection = self.transport.get_extra_info("socket")
        if connection is not None:
            # Reset it: otherwise the kernel keeps what was sent until it is read, and that is never.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()


class DrainingServer(uvicorn.Server):
    """Calls `on_start` once it listens, and `on_stop` when it no longer accepts connections."""

    def __init__(self, config: uvicorn.Config, *, on_start: Callable[[], None], on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_start = on_start
        self._on_stop = on_stop

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self.should_exit:
            self._on_start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Listening ends before streams do, or their clients would come straight back to here.
        await self._stop_listening(sockets or [])
        self._on_stop()
        await self._say_farewell()
        await super().shutdown(sockets)

    async def _stop_listening(self, sockets: Sequence[socket.socket]) -> None:
        """Closing resets connections that the kernel has made and we have not accepted yet: first let no more of them
        in, and accept those.
        """
        for each in sockets:
            _drop_arrivals(each)
            waiting = select.poll()
            waiting.register(each, select.POLLIN)
            for _ in range(_ACCEPT_ROUNDS):
                if not waiting.poll(0):
                    break
                await asyncio.sleep(0)
        for server in self.servers:
            server.close()

    async def _say_farewell(self) -> None:
        """To close an idle connection is to race with the request that its client may be sending. So each gets one
        more answer, which says that it is the last; those still idle after a while are closed.
        """
        deadline = time.monotonic() + FAREWELL_SECONDS
        while time.monotonic() < deadline and not self.force_exit:
            connections = [each for each in self.server_state.connections if isinstance(each, AbortableProtocol)]
            for connection in connections:
                connection.answer_last()
            if not any(connection.is_idle for connection in connections):
                return
            await asyncio.sleep(_LOOK_SECONDS)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """As uvicorn's, but the signal is not raised again at the end: stopping when asked to is a success. A Ctrl+C
        while it stops ends the process, and not only the waiting for requests: runs and the database would go on.
        """
        if self.should_exit and sig == signal.SIGINT:
            end_at_once()
        self.should_exit = True


def _drop_arrivals(listener: socket.socket) -> None:
    """Have the kernel ignore who connects: they try again in a second, and are refused if we have closed by then.

    A packet filter that lets nothing pass; connections made before do not have it. Only Linux can; elsewhere who
    connects in the instant of the close is reset.
    """
    if sys.platform == "linux":
        instruction = ctypes.create_string_buffer(struct.pack("HBBI", _BPF_RETURN, 0, 0, 0))
        with suppress(OSError):
            program = struct.pack("HP", 1, ctypes.addressof(instruction))
            listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket that holds the address; port 0 takes a free one. Raises OSError."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except BaseException:
        bound.close()
        raise
    return bound


def run_server(
    app: FastAPI,
    listener: socket.socket,
    *,
    on_start: Callable[[], None],
    on_stop: Callable[[], None],
    is_healthy: Callable[[], bool],
    access_log: bool,
    settings: Settings,
) -> bool:
    """Serve until SIGTERM or SIGINT; False when it stopped because `is_healthy` said no."""
    healthy = True

    async def watch() -> None:
        nonlocal healthy
        if not is_healthy():
            healthy = False
            server.should_exit = True

    config = BoundedConfig(
        app,
        http=AbortableProtocol,
        log_config=None,  # its loggers write as all others do, see runs_es/process_log.py
        access_log=access_log,
        server_header=False,
        ws="none",
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(int(settings.drain_seconds), 1),
        callback_notify=watch,
        timeout_notify=WATCH_SECONDS,
    )
    config.arrival = ArrivalBounds.of(settings)
    server = DrainingServer(config, on_start=on_start, on_stop=on_stop)
    server.run(sockets=[listener])
    return healthy
