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
from types import FrameType

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from runs_api.sse import ABORT
from runs_api.stopping import end_at_once

WATCH_SECONDS = 2
# Longer than proxies and clients keep idle connections: who keeps one shorter than they do closes it under a request.
KEEP_ALIVE_SECONDS = 75
# How long a server that stops still answers on connections that were idle, and how often it looks at them.
FAREWELL_SECONDS = 1.0
_LOOK_SECONDS = 0.02
_ACCEPT_ROUNDS = 1000
_SO_ATTACH_FILTER = 26  # Linux; the socket module does not name it
_BPF_RETURN = 6


class AbortableProtocol(HttpToolsProtocol):
    """HTTP whose responses may drop the connection: an ordinary close waits until what is buffered has been read."""

    _is_last = False

    @property
    def is_idle(self) -> bool:
        """No request is under way."""
        return self.cycle is None or self.cycle.response_complete

    def answer_last(self) -> None:
        """Close after the response that is under way, or the next one, and say so in it."""
        self._is_last = True
        if self.cycle is not None and not self.cycle.response_started:
            self.cycle.keep_alive = False

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        if self._is_last:
            self.cycle.keep_alive = False

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {ABORT: self._abort}  # type: ignore[dict-item]

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
    drain_seconds: float,
) -> bool:
    """Serve until SIGTERM or SIGINT; False when it stopped because `is_healthy` said no."""
    healthy = True

    async def watch() -> None:
        nonlocal healthy
        if not is_healthy():
            healthy = False
            server.should_exit = True

    config = uvicorn.Config(
        app,
        http=AbortableProtocol,
        log_config=None,  # its loggers write as all others do, see runs_es/process_log.py
        access_log=access_log,
        server_header=False,
        ws="none",
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(int(drain_seconds), 1),
        callback_notify=watch,
        timeout_notify=WATCH_SECONDS,
    )
    server = DrainingServer(config, on_start=on_start, on_stop=on_stop)
    server.run(sockets=[listener])
    return healthy
