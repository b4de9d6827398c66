"""What hostile clients cost: bodies that are refused, and readers that never read."""

from __future__ import annotations

import os
import socket
import threading
import time
from base64 import b64encode
from contextlib import ExitStack
from pathlib import Path
from random import Random
from uuid import uuid4

import httpx

from runs_es.domain import Provenance, RunClaimed, RunCompleted, RunCreated, RunStarted, ThreadCreated, now
from runs_es.log.event_log import EventLog
from tests.acceptance.server import Server
from tests.benchmarks.figures import show
from tests.conftest import SCHEMA

BODIES = {
    "20,000 arrays nested 190 deep": b",".join([b"[" * 190 + b"]" * 190] * 20_000),
    "20,000 arrays nested 230 deep": b",".join([b"[" * 230 + b"]" * 230] * 20_000),
    "3 million []": b",".join([b"[]"] * 3_000_000),
    "4 million numbers": b",".join([b"0"] * 4_000_000),
}
ACCEPTED = {"9 MB in one string": b'"%b"' % (b"x" * 9_000_000), "120,000 []": b",".join([b"[]"] * 120_000)}
SMALL = {"a small body, to compare": b"0"}
TIMES = 5
READERS = 500
PAGES = 600
MIB = 1024 * 1024


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB


class Beside:
    """Asks `/ok` all the time in a thread; `worst` is the longest answer in ms, `peak` the server's memory in MiB."""

    def __init__(self, server: Server) -> None:
        self.worst = self.peak = 0.0
        self._server = server
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def _ask(self) -> None:
        with httpx.Client(base_url=self._server.url, timeout=60) as client:
            while not self._stopping.wait(0.002):
                self.peak = max(self.peak, memory_mib(self._server.pid))
                started = time.perf_counter()
                client.get("/ok")
                self.worst = max(self.worst, 1000 * (time.perf_counter() - started))

    def __enter__(self) -> Beside:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()


def bodies(server: Server) -> None:
    rows = []
    with httpx.Client(base_url=server.url, timeout=120) as client:
        for name, inside in {**SMALL, **BODIES, **ACCEPTED}.items():
            body = b'{"assistant_id": "agent", "after_seconds": 86400, "input": {"x": [' + inside + b"]}}"
            before = cpu_seconds(server.pid)
            statuses = set()
            with Beside(server) as beside:
                started = time.perf_counter()
                for _ in range(TIMES):
                    statuses.add(
                        client.post("/runs", content=body, headers={"Content-Type": "application/json"}).status_code
                    )
                took = time.perf_counter() - started
            spent = (cpu_seconds(server.pid) - before) / TIMES
            status = ", ".join(map(str, sorted(statuses)))
            rows.append([name, status, 1000 * took / TIMES, 1000 * spent, beside.worst])
    show(
        "A request with a large body, ms; the CPU is the whole server's, with `/ok` asked all the time",
        ["body", "status", "answer", "CPU", "worst /ok beside"],
        rows,
    )


def recorded_run(database_url: str) -> str:
    """The path of a run's stream with frames of some 143 MiB."""
    thread_id, run_id = str(uuid4()), str(uuid4())
    known = {"thread_id": thread_id, "run_id": run_id, "occurred_at": now()}
    random = Random(11)
    with EventLog(database_url, SCHEMA) as log:
        facts = [
            ThreadCreated(thread_id=thread_id, occurred_at=now()),
            RunCreated(**known, assistant_id="agent"),
            RunClaimed(**known, claim_id=run_id),
            RunStarted(**known),
        ]
        last = log.append(thread_id, facts, expected=0, provenance=Provenance()).result()
        for _ in range(PAGES):
            data = [b64encode(random.randbytes(45_000)) for _ in range(4)]
            page = [b'event: custom\r\ndata: "%b"\r\n' % each for each in data]
            last = log.append(
                thread_id, [], expected=last.revision, frames=last.frames, fence=last.fence, page=(run_id, page)
            ).result()
        log.append(thread_id, [RunCompleted(**known)], expected=last.revision).result()
    return f"/threads/{thread_id}/runs/{run_id}/stream"


def readers(server: Server, path: str) -> None:
    """Joins that send their request and read nothing; what the process needs meanwhile, and after."""
    before = memory_mib(server.pid)
    with ExitStack() as open_ones, Beside(server) as beside:
        for _ in range(READERS):
            connection = open_ones.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            connection.sendall(b"GET %b HTTP/1.1\r\nHost: localhost\r\n\r\n" % path.encode())
        until = time.monotonic() + 45  # longer than RUNS_ES_SEND_TIMEOUT_SECONDS
        with httpx.Client(base_url=server.url, timeout=60) as client:
            started = time.perf_counter()
            with client.stream("GET", path) as response:
                size = sum(len(chunk) for chunk in response.iter_raw())
            took = time.perf_counter() - started
        time.sleep(max(until - time.monotonic(), 0))
    time.sleep(60)
    rows = [["before", before], ["at the peak", beside.peak], ["a minute after", memory_mib(server.pid)]]
    show(
        f"{READERS} joins of a run of {size / MIB:.0f} MiB that never read: MiB of the server's process",
        ["", "MiB"],
        rows,
    )
    show("Beside them", ["", ""], [["one that reads, whole, s", took], ["worst /ok, ms", beside.worst]])


def measure(database_url: str) -> None:
    """Measure against a server of its own over `database_url`."""
    path = recorded_run(database_url)
    with Server(database_url) as server:
        bodies(server)
    with Server(database_url) as server:
        readers(server, path)
