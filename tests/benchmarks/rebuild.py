"""Rebuilding every read model of a log with a million facts while a server reads and writes: facts a second, memory,
what clients feel of it, how long the swap takes, and whether the result is the same, row by row.

`RUNS_ES_BENCH_FACTS` changes the million.
"""

from __future__ import annotations

import os
import random
import resource
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import psycopg

from runs_es.log.event_log import EventLog
from runs_projections import PROJECTIONS, LiveProjector
from tests.acceptance.server import Server
from tests.benchmarks import bulk
from tests.benchmarks.figures import console, percentile, show
from tests.conftest import SCHEMA

FACTS = int(os.environ.get("RUNS_ES_BENCH_FACTS", "1000000"))
CALM_SECONDS = 40.0
READERS, WRITERS, PAUSE = 3, 2, 0.05


class Traffic:
    """Clients that read and write, each pausing between requests; how long each request took, by phase and kind."""

    def __init__(self, url: str) -> None:
        self.phase = "calm"
        self.taken: dict[tuple[str, str], list[float]] = defaultdict(list)
        self.failed: list[str] = []
        self._url, self._stop = url, threading.Event()
        self._threads = [
            *(threading.Thread(target=self._go_on, args=(self._read, seed)) for seed in range(READERS)),
            *(threading.Thread(target=self._go_on, args=(self._write, seed)) for seed in range(WRITERS)),
        ]

    @contextmanager
    def flowing(self) -> Iterator[None]:
        for each in self._threads:
            each.start()
        try:
            yield
        finally:
            self._stop.set()
            for each in self._threads:
                each.join()

    def _go_on(self, act: Callable[[httpx.Client, random.Random], tuple[str, httpx.Response]], seed: int) -> None:
        dice = random.Random(seed)
        with httpx.Client(base_url=self._url, timeout=30) as client:
            while not self._stop.wait(PAUSE):
                begun, phase = time.perf_counter(), self.phase
                try:
                    kind, answer = act(client, dice)
                except httpx.HTTPError as error:
                    self.failed.append(repr(error))
                    continue
                self.taken[phase, kind].append((time.perf_counter() - begun) * 1000)
                if answer.status_code >= 400 or "x-runs-stale" in answer.headers:
                    self.failed.append(f"{kind}: {answer.status_code} {dict(answer.headers)}")

    def _read(self, client: httpx.Client, dice: random.Random) -> tuple[str, httpx.Response]:
        number = dice.randrange(4)
        if number == 0:
            return "search threads", client.post("/threads/search", json={"limit": 10})
        thread_id = client.post("/threads", json={}).json()["thread_id"] if number == 1 else dice.choice(THREADS)
        if number == 2:
            return "list messages", client.get(f"/threads/{thread_id}/messages")
        return "list runs", client.get(f"/threads/{thread_id}/runs")

    def _write(self, client: httpx.Client, dice: random.Random) -> tuple[str, httpx.Response]:
        if dice.randrange(2):
            return "create thread", client.post("/threads", json={"metadata": {"n": dice.random()}})
        thread_id = client.post("/threads", json={}).json()["thread_id"]
        body = {"assistant_id": "agent", "input": {"messages": [{"role": "user", "content": "hi"}], "tokens": 2}}
        return "create run", client.post(f"/threads/{thread_id}/runs", json=body)


THREADS: list[str] = []


def measure(database_url: str) -> None:
    begun = time.perf_counter()
    facts = bulk.fill(database_url, SCHEMA, FACTS)
    console.print(f"{facts:,} facts made in {time.perf_counter() - begun:.0f} s")
    begun = time.perf_counter()
    with EventLog(database_url) as log, LiveProjector(log) as projector:
        assert projector.wait_for(log.reader.last_position(), 900)
    taken = time.perf_counter() - begun
    console.print(f"all read models by the live driver in {taken:.0f} s, {facts / taken:,.0f} facts/s")
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("vacuum analyze")
        (table,) = (each.table.name for each in PROJECTIONS if each.name == "threads")
        rows = connection.execute(f"select thread_id from {SCHEMA}.{table} tablesample bernoulli (5)").fetchall()
        THREADS[:] = [thread_id for (thread_id,) in rows]
        assert THREADS
    with Server(database_url, env={"RUNS_ES_LIST_WAIT_SECONDS": "10"}) as server:
        traffic = Traffic(server.url)
        with traffic.flowing():
            threading.Event().wait(2)
            traffic.taken.clear()
            threading.Event().wait(CALM_SECONDS)
            traffic.phase = "rebuild"
            _rebuild_all(database_url, facts)
    _show_traffic(traffic)
    _compare(database_url)


def _rebuild_all(url: str, facts: int) -> None:
    env = {**os.environ, "RUNS_ES_DATABASE_URL": url}
    for projection in PROJECTIONS:
        command = [os.path.join(os.path.dirname(sys.executable), "runs-es"), "rebuild", projection.name]
        begun = time.perf_counter()
        ran = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - begun
        assert ran.returncode == 0, ran.stderr
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        console.print(ran.stdout.strip())
        console.print(f"  {facts / seconds:,.0f} facts of the log a second; largest child so far {peak:.0f} MiB")


def _show_traffic(traffic: Traffic) -> None:
    rows = []
    for kind in sorted({kind for _, kind in traffic.taken}):
        calm, busy = traffic.taken["calm", kind], traffic.taken["rebuild", kind]
        p99s = percentile(calm, 0.99), percentile(busy, 0.99)
        rows.append(
            [
                kind,
                len(calm),
                percentile(calm, 0.5),
                p99s[0],
                len(busy),
                percentile(busy, 0.5),
                p99s[1],
                max(busy),
                p99s[1] / p99s[0],
            ]
        )
    show(
        f"requests before and during the rebuilds, ms; {len(traffic.failed)} failed",
        ["", "calm", "p50", "p99", "rebuild", "p50", "p99", "max", "x p99"],
        rows,
    )
    for failure in traffic.failed[:5]:
        console.print(failure)


def _compare(url: str) -> None:
    """The tables that were replaced, which the live driver had made, against those that replaced them."""
    with psycopg.connect(url) as connection:
        for projection in PROJECTIONS:
            name, last = projection.table.name, bulk.LAST
            differing, rows = [
                connection.execute(
                    f"select count(*) from ((select t::text from {SCHEMA}_retired.{name} t where thread_id <= %(last)s)"
                    f" {how} (select t::text from {SCHEMA}.{name} t where thread_id <= %(last)s)) d",
                    {"last": last},
                ).fetchone()
                or (None,)
                for how in ("except all", "union")
            ]
            console.print(f"{name}: {differing[0]:,} rows of {rows[0]:,} differ")
