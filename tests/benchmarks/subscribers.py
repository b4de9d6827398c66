"""Many readers of one stream in a process of their own: how long each frame was on its way, and how many came."""

from __future__ import annotations

import re
import selectors
import socket
import time
from multiprocessing.connection import Connection

_AT = re.compile(rb'"at":(\d+)')
_PATIENCE_SECONDS = 60.0


def subscribe(pipe: Connection, port: int, path: str, count: int, frames: int) -> None:
    """Open `count` streams, say so, read each until it has all `frames`; answers (milliseconds on the way, missing)."""
    chooser = selectors.DefaultSelector()
    for index in range(count):
        connection = socket.create_connection(("127.0.0.1", port))
        connection.sendall(f"GET {path} HTTP/1.1\r\nhost: benchmark\r\naccept: text/event-stream\r\n\r\n".encode())
        _until_headers(connection)
        connection.setblocking(False)
        chooser.register(connection, selectors.EVENT_READ, index)
    pipe.send("ready")
    left = [frames] * count
    rests = [b""] * count
    delays: list[float] = []
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while any(left) and chooser.get_map() and time.monotonic() < deadline:
        for key, _ in chooser.select(1.0):
            index = key.data
            chunk = key.fileobj.recv(1 << 16)  # type: ignore[union-attr]
            arrived = time.time_ns()
            whole, _, rests[index] = (rests[index] + chunk).rpartition(b"\r\n\r\n")
            sent = [int(found) for found in _AT.findall(whole)]
            delays += [(arrived - each) / 1e6 for each in sent]
            left[index] -= len(sent)
            if not chunk or not left[index]:
                chooser.unregister(key.fileobj)
                key.fileobj.close()  # type: ignore[union-attr]
    pipe.send((delays, sum(left)))


def _until_headers(connection: socket.socket) -> None:
    got = b""
    while b"\r\n\r\n" not in got:
        part = connection.recv(1)
        assert part, got
        got += part
    assert b" 200 " in got.split(b"\r\n", 1)[0], got
