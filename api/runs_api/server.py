"""uvicorn, made to stop as streams need it: it cuts them, so that clients come back to whoever serves next."""

from __future__ import annotations

import signal
import socket
import struct
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from runs_api.sse import ABORT

WATCH_SECONDS = 2


class AbortableProtocol(HttpToolsProtocol):
    """HTTP whose responses may drop the connection: an ordinary close waits until what is buffered has been read."""

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
        for server in self.servers:
            server.close()
        self._on_stop()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """As uvicorn's, but the signal is not raised again at the end: stopping when asked to is a success."""
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        else:
            self.should_exit = True


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
    log_level: str,
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
        log_config=None,
        log_level=log_level,
        access_log=access_log,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=max(int(drain_seconds), 1),
        callback_notify=watch,
        timeout_notify=WATCH_SECONDS,
    )
    server = DrainingServer(config, on_start=on_start, on_stop=on_stop)
    server.run(sockets=[listener])
    return healthy
