"""Runs a second, created and executed: a graph that does nothing, a thread each, everything durable, over HTTP.

Clients in a process of their own create runs as fast as they are answered; meanwhile and after, they are executed.
Times of a run, from creation to terminal fact, are the log's own.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from tests.acceptance.server import Server
from tests.benchmarks.figures import cpu_seconds, percentile, show
from tests.benchmarks.requesters import create
from tests.conftest import SCHEMA

CONFIG = Path(__file__).parent / "noop" / "langgraph.json"
RUNS = 1000
CLIENTS = 16
ROUNDS = 3  # of one process against two, in turns; the median is shown
PATIENCE_SECONDS = 120
_context: Any = multiprocessing.get_context("forkserver")

_ENDED = sql.SQL(
    "select extract(epoch from ended.recorded_at - created.recorded_at)::float8 * 1000"
    " from {facts} created join {facts} ended on ended.thread_id = created.thread_id and ended.run_id = created.run_id"
    " where created.topic = 'run.created' and ended.topic = 'run.completed' and created.position > %s"
).format(facts=sql.Identifier(SCHEMA, "events_facts"))


@dataclass(frozen=True)
class Load:
    """One case's figures: runs a second, milliseconds."""

    created: float
    executed: float
    answers: list[float]
    ends: list[float]
    cpu: float

    def row(self, name: str) -> list[object]:
        return [
            name,
            self.created,
            self.executed,
            *(percentile(self.answers, share) for share in (0.5, 0.99)),
            *(percentile(self.ends, share) for share in (0.5, 0.99)),
            self.cpu,
        ]


def load(
    database_url: str,
    ports: list[int],
    pids: list[int],
    *,
    separate: bool = False,
    durability: str = "async",
    runs: int = RUNS,
) -> Load:
    """Create `runs`, and wait until all of them have ended with success."""
    with psycopg.connect(database_url, autocommit=True) as database:
        position, done = _progress(database, 0)
        ours, theirs = _context.Pipe()
        clients = _context.Process(target=create, args=(theirs, ports, runs, CLIENTS, separate, durability))
        clients.start()
        assert ours.recv() == "ready"
        before = sum(map(cpu_seconds, pids))
        started = time.perf_counter()
        ours.send("go")
        while True:
            _, done = _progress(database, position)
            if done == runs:
                break
            assert time.perf_counter() - started < PATIENCE_SECONDS, f"{done} of {runs} runs have ended"
            time.sleep(0.05)
        seconds = time.perf_counter() - started
        cpu = sum(map(cpu_seconds, pids)) - before
        creating, answers = ours.recv()
        clients.join()
        ends = [row[0] for row in database.execute(_ENDED, (position,))]
    return Load(runs / creating, runs / seconds, answers, ends, cpu * 1000 / runs)


def _progress(database: psycopg.Connection[Any], position: int) -> tuple[int, int]:
    """The last position, and runs that have ended with success since `position`."""
    row = database.execute(
        sql.SQL(
            "select coalesce(max(position), 0), count(*) filter (where topic = 'run.completed')"
            " from {} where position > %s"
        ).format(sql.Identifier(SCHEMA, "events_facts")),
        (position,),
    ).fetchone()
    assert row is not None
    return row


@contextmanager
def workers(database_url: str, count: int, concurrency: int) -> Iterator[list[int]]:
    """So many processes of `runs-es work`, at work."""
    command = [str(Path(sys.executable).parent / "runs-es"), "work", "--config", str(CONFIG)]
    env = {**os.environ, "RUNS_ES_DATABASE_URL": database_url, "RUNS_ES_CONCURRENCY": str(concurrency)}
    processes = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    try:
        for process in processes:
            assert process.stdout is not None
            assert "runs-es worker" in process.stdout.readline()
        yield [process.pid for process in processes]
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(30)


def _servers(database_url: str, processes: int, concurrency: int) -> Load:
    """So many servers that execute runs as well."""
    with ExitStack() as stack:
        options = ["--concurrency", str(concurrency)]
        servers = [stack.enter_context(Server(database_url, config=CONFIG, options=options)) for _ in range(processes)]
        ports, pids = [server.port for server in servers], [server.pid for server in servers]
        load(database_url, ports, pids, runs=200)
        return load(database_url, ports, pids)


def _apart(database_url: str, processes: int, concurrency: int) -> Load:
    """A server that executes nothing, and so many workers."""
    with ExitStack() as stack:
        server = stack.enter_context(Server(database_url, config=CONFIG, options=["--no-worker"]))
        pids = [server.pid, *stack.enter_context(workers(database_url, processes, concurrency))]
        load(database_url, [server.port], pids, runs=200)
        return load(database_url, [server.port], pids)


def measure(database_url: str) -> None:
    """Print the table."""
    rows = []
    with Server(database_url, config=CONFIG) as server:
        load(database_url, [server.port], [server.pid], runs=200)
        rows.append(load(database_url, [server.port], [server.pid]).row("serve, 10 at once"))
        rows.append(load(database_url, [server.port], [server.pid], separate=True).row("  POST /threads first"))
        rows.append(load(database_url, [server.port], [server.pid], durability="exit").row("  durability: exit"))
    with Server(database_url, config=CONFIG, options=["--concurrency", "24"]) as server:
        load(database_url, [server.port], [server.pid], runs=200)
        rows.append(load(database_url, [server.port], [server.pid]).row("serve, 24 at once"))
    cases = [(form, *shape) for form in (_servers, _apart) for shape in ((1, 4), (2, 2), (2, 10))]
    loads: dict[Any, list[Load]] = {case: [] for case in cases}
    for _ in range(ROUNDS):
        for form, processes, concurrency in cases:
            loads[form, processes, concurrency].append(form(database_url, processes, concurrency))
    for form, processes, concurrency in cases:
        middle = sorted(loads[form, processes, concurrency], key=lambda each: each.executed)[ROUNDS // 2]
        what = f"{processes} x serve" if form is _servers else f"serve, {processes} x work"
        rows.append(middle.row(f"{what}, {concurrency} each"))
    show(
        f"{RUNS:,} runs of a graph that does nothing, {CLIENTS} clients: runs a second; answer to the creation and"
        " creation to terminal fact, ms; CPU of our processes, ms a run",
        ["", "created", "executed", "answer p50", "p99", "end p50", "p99", "CPU"],
        rows,
    )
