"""What more processes bring: writes a second of 1, 2 and 3 of them, 16 producers each; pages of 10 frames, which take
no common lock, and single facts, which all take one. Producers wait until each write is durable.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
import uuid
from multiprocessing.connection import Connection
from typing import Any

from runs_es.domain import ThreadCreated, ThreadUpdated, now
from runs_es.log.event_log import EventLog
from runs_es.log.pages import frame
from runs_es.log.run_writer import RunWriter
from tests.benchmarks.figures import show
from tests.conftest import SCHEMA

PRODUCERS = 16
SECONDS = 3.0
FRAMES = 10
_BODY = frame("custom", b'{"content":"' + b"a few words as a model streams them " * 6 + b'"}')
_context: Any = multiprocessing.get_context("forkserver")


def produce(pipe: Connection, url: str, facts: bool) -> None:
    """Write for SECONDS from the word on; answers how many writes were acknowledged."""
    done = [0] * PRODUCERS
    until = 0.0

    def producer(index: int) -> None:
        thread_id = str(uuid.uuid4())
        born = log.append(thread_id, [ThreadCreated(thread_id=thread_id, occurred_at=now())], expected=0).result()
        writer = RunWriter(log.writer, thread_id=thread_id, run_id="r", fence=born.fence, frames=born.frames)
        ready.wait()
        while time.monotonic() < until:
            if facts:
                fact = ThreadUpdated(thread_id=thread_id, occurred_at=now(), metadata={"n": done[index]})
                log.append(thread_id, [fact], expected=done[index] + 1).result()
            else:
                writer.publish(*[_BODY] * FRAMES)
                last = writer.last()
                assert last is not None
                last.result()
            done[index] += 1

    with EventLog(url, SCHEMA) as log:
        ready = threading.Barrier(PRODUCERS + 1)
        threads = [threading.Thread(target=producer, args=(index,)) for index in range(PRODUCERS)]
        for thread in threads:
            thread.start()
        pipe.send("ready")
        pipe.recv()
        until = time.monotonic() + SECONDS
        ready.wait()
        for thread in threads:
            thread.join()
    pipe.send(sum(done))


def writes(url: str, processes: int, facts: bool) -> float:
    """Writes a second of so many processes."""
    pipes = []
    for _ in range(processes):
        ours, theirs = _context.Pipe()
        _context.Process(target=produce, args=(theirs, url, facts)).start()
        assert ours.recv() == "ready"
        pipes.append(ours)
    for pipe in pipes:
        pipe.send("go")
    return sum(pipe.recv() for pipe in pipes) / SECONDS


def measure(database_url: str) -> None:
    """Print the table."""
    rows = []
    for name, facts, events in ((f"pages of {FRAMES} frames", False, FRAMES), ("single facts", True, 1)):
        found = [writes(database_url, processes, facts) * events for processes in (1, 2, 3)]
        rows.append([name, *(f"{each:,.0f}" for each in found), found[1] / found[0], found[2] / found[0]])
    show(
        f"events a second, {PRODUCERS} producers a process",
        ["", "1 process", "2", "3", "2 : 1", "3 : 1"],
        rows,
    )
