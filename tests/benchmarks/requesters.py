"""Clients in a process of their own: each creates one run after the other on a thread of its own, over one connection.

They speak HTTP by hand: a client library would take as much of the machine as the server that is measured.
"""

from __future__ import annotations

import socket
import threading
import time
import uuid
from collections.abc import Sequence
from itertools import count
from multiprocessing.connection import Connection

BODY = (
    '{"assistant_id":"noop","input":{"number":1},"if_not_exists":"create","stream_mode":["values"],"durability":"%s"}'
)


def create(pipe: Connection, ports: Sequence[int], runs: int, clients: int, separate: bool, durability: str) -> None:
    """Connect, say so, wait for the word, create `runs` in all; answers (seconds taken, milliseconds of each)."""
    numbers = count()
    body = (BODY % durability).encode()
    taken: list[float] = []
    connections = [socket.create_connection(("127.0.0.1", ports[index % len(ports)])) for index in range(clients)]
    for connection in connections:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def client(connection: socket.socket) -> None:
        while next(numbers) < runs:
            started = time.perf_counter()
            thread_id = str(uuid.uuid4())
            if separate:
                post(connection, "/threads", f'{{"thread_id":"{thread_id}"}}'.encode())
            post(connection, f"/threads/{thread_id}/runs", body)
            taken.append((time.perf_counter() - started) * 1000)

    pipe.send("ready")
    pipe.recv()
    started = time.perf_counter()
    threads = [threading.Thread(target=client, args=(each,)) for each in connections]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pipe.send((time.perf_counter() - started, taken))


def post(connection: socket.socket, path: str, body: bytes) -> bytes:
    """The answer's body. Raises when it is not 200."""
    head = f"POST {path} HTTP/1.1\r\nhost: benchmark\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    connection.sendall(head.encode() + b"\r\n\r\n" + body)
    got = b""
    while b"\r\n\r\n" not in got:
        got += _more(connection)
    headers, _, rest = got.partition(b"\r\n\r\n")
    if b" 200 " not in headers.split(b"\r\n", 1)[0]:
        raise ConnectionError(got.decode(errors="replace"))
    length = int(headers.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
    while len(rest) < length:
        rest += _more(connection)
    return rest


def _more(connection: socket.socket) -> bytes:
    part = connection.recv(1 << 16)
    if not part:
        raise ConnectionError("the server hung up")
    return part
