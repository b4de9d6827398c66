"""A client that costs next to nothing: it takes bytes off its socket and counts them; what is timed is the server."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

_TICK = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
_BUFFER = bytearray(1 << 20)


@dataclass(frozen=True, slots=True)
class Drained:
    """Seconds from the request to the first byte of the body and to the last, and the bytes with chunk headers."""

    first: float
    whole: float
    octets: int
    tail: bytes


def drain(url: str, path: str, last_event_id: str = "-1") -> Drained:
    """GET a stream to its end, which must be clean."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    view = memoryview(_BUFFER)
    with socket.create_connection((parts.hostname, parts.port or 80), 60) as connection:
        head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nLast-Event-ID: {last_event_id}\r\nConnection: close\r\n\r\n"
        started = time.perf_counter()
        connection.sendall(head.encode())
        received, first, octets, tail = b"", 0.0, 0, b""
        while count := connection.recv_into(_BUFFER):
            if not first:
                received += bytes(view[:count])
                headers, _, body = received.partition(b"\r\n\r\n")
                assert headers.startswith(b"HTTP/1.1 200"), received
                if not body:
                    continue
                first, octets = time.perf_counter() - started, len(body)
            else:
                octets += count
            tail = (tail + bytes(view[max(count - 64, 0) : count]))[-64:]
        whole = time.perf_counter() - started
    assert tail.endswith(b"0\r\n\r\n"), tail
    return Drained(first, whole, octets, tail)


def cpu_seconds(pid: int) -> float:
    """What a process has used so far, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK
