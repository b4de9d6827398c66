"""Replay of finished runs over HTTP: to the first byte, frames a second, and whether age and size of the log matter.

What is timed runs from the request to the first and last byte at a client that only takes them off its socket.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import psycopg
from psycopg import Connection

from runs_es.domain import Fact, Run, ThreadCreated, now
from runs_es.log.append import Append, Appended, FactItem, PageItem
from runs_es.log.event_log import EventLog
from runs_es.log.pages import frame
from tests.acceptance.server import Server
from tests.benchmarks.append import EVENTS
from tests.benchmarks.drain import Drained, cpu_seconds, drain
from tests.benchmarks.figures import console, percentile, show

FRAMES = 10_000
ROUNDS = 15
FEW, MANY = 1_000, 100_000
BODIES = [frame("messages", event) for event in EVENTS]


def facts_of(thread_id: str, run: Run) -> list[Fact]:
    run.mark_claimed(claim_id="c")
    run.mark_started()
    return [ThreadCreated(thread_id=thread_id, occurred_at=now()), *run.pull_events()]


def finished_run(log: EventLog, frames: int, a_page: int) -> str:
    """A run of so many frames in pages of `a_page`; its path."""
    thread_id, run_id = str(uuid.uuid4()), str(uuid.uuid4())
    run = Run.create(run_id=run_id, thread_id=thread_id, assistant_id="a")
    born = log.append(thread_id, facts_of(thread_id, run), expected=0).result(60)
    waiting: list[Future[Appended]] = []
    for done in range(0, frames, a_page):
        bodies = [BODIES[(done + n) % len(BODIES)] for n in range(a_page)]
        page = Append(thread_id, [PageItem(run_id, bodies)], fence=born.fence, frames=done)
        waiting.append(log.writer.submit(page))
    run.mark_completed()
    items = [FactItem.of(fact) for fact in run.pull_events()]
    waiting.append(log.writer.submit(Append(thread_id, list(items), fence=born.fence)))
    for each in waiting:
        each.result(60)
    return f"/threads/{thread_id}/runs/{run_id}/stream"


# Copies of one run under other ids, as if appended one after the other. The read models are told that they have seen
# them: what they cost is not what is measured here.
_COPY_EVENTS = """
insert into runs_es.events
  (thread_id, seq, segment, n, run_id, topic, state, revision, position, first_frame, recorded_at)
select e.thread_id || '-' || g, e.seq, e.segment, e.n, e.run_id || '-' || g, e.topic, e.state, e.revision,
       case when e.segment = 0 then nextval('runs_es.event_position') end, e.first_frame, e.recorded_at
  from generate_series(%(first)s::int, %(last)s::int) g, runs_es.events e where e.thread_id = %(thread)s
 order by g, e.seq
"""
_COPY_HEADS = """
insert into runs_es.heads (thread_id, head, revision, fence, frames)
select h.thread_id || '-' || g, h.head, h.revision, h.fence, h.frames
  from generate_series(%(first)s::int, %(last)s::int) g, runs_es.heads h where h.thread_id = %(thread)s
"""
_SEEN = "update runs_es.tracking set position = (select max(position) from runs_es.events_facts)"


def fill(connection: Connection[Any], path: str, first: int, last: int) -> None:
    """So many more runs like the one at `path`, each in a thread of its own."""
    copies = {"thread": path.split("/")[2], "first": first, "last": last}
    with connection.transaction():
        connection.execute(_COPY_HEADS, copies)
        connection.execute(_COPY_EVENTS, copies)
        connection.execute(_SEEN)
    # Writing them back is over before anything is measured.
    connection.execute("vacuum analyze runs_es.events_facts, runs_es.events_p1, runs_es.heads")
    connection.execute("checkpoint")


def replayed(server: Server, path: str) -> tuple[list[Drained], float]:
    """Rounds of the whole stream, and the processor time of one."""
    drain(server.url, path)
    before = cpu_seconds(server.pid)
    rounds = [drain(server.url, path) for _ in range(ROUNDS)]
    return rounds, (cpu_seconds(server.pid) - before) / ROUNDS


def row(name: str, rounds: Sequence[Drained], cpu: float) -> list[object]:
    speeds = [FRAMES / each.whole for each in rounds]
    return [name, percentile(speeds, 0.5), min(speeds), max(speeds), FRAMES / max(cpu, 0.01)]


def first_bytes(server: Server, paths: Sequence[str]) -> list[float]:
    return [drain(server.url, path).first * 1000 for path in paths]


def measure(database_url: str) -> None:
    with (
        Server(database_url, options=["--no-worker"]) as server,
        EventLog(database_url) as log,
        psycopg.connect(database_url, autocommit=True) as connection,
    ):
        paths = {f"{size} a page": finished_run(log, FRAMES, size) for size in (100, 10, 1)}
        speeds = [row(name, *replayed(server, path)) for name, path in paths.items()]
        show(
            f"a finished run of {FRAMES:,} frames of 250 bytes, frames a second; {ROUNDS} replays each",
            ["frames", "median", "min", "max", "a second of processor time"],
            speeds,
        )
        path = paths["100 a page"]
        rows = []
        medians = []
        held = 0
        small = finished_run(log, 10, 10)
        for runs in (FEW, MANY):
            started = time.perf_counter()
            fill(connection, small, held + 1, runs)
            console.print(f"{runs:,} runs in the log (+{time.perf_counter() - started:.0f} s)")
            held = runs
            new = finished_run(log, FRAMES, 100)
            for name, each in (("the oldest run", path), ("the newest run", new)):
                firsts = first_bytes(server, [each] * 50)
                rounds, _ = replayed(server, each)
                whole = percentile([one.whole * 1000 for one in rounds], 0.5)
                medians.append((percentile(firsts, 0.5), whole))
                rows.append(
                    [f"{runs:,} runs, {name}", percentile(firsts, 0.5), percentile(firsts, 0.99), max(firsts), whole]
                )
        show(
            "replay in a small and in a large log, ms",
            ["", "first byte p50", "p99", "max", "whole run p50"],
            rows,
        )
        for index, name in enumerate(("oldest", "newest")):
            small, large = medians[index], medians[2 + index]
            console.print(
                f"{name} run, {MANY:,} : {FEW:,} runs: first byte x {large[0] / small[0]:.2f},"
                f" whole x {large[1] / small[1]:.2f}"
            )
