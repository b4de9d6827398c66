"""Live projection of the same facts, side by side in one run: this driver, and the `eventsourcing` library's
`ProjectionRunner`, which takes one transaction an event. Both run the `evolve` of `runs` over a PostgreSQL table and
keep their position in the transaction of the rows. Then the lag of all read models under a steady load.
"""

from __future__ import annotations

import queue
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import psycopg
from eventsourcing.application import Application
from eventsourcing.persistence import Tracking
from eventsourcing.postgres import PostgresTrackingRecorder
from eventsourcing.projection import Projection, ProjectionRunner

from runs_es.domain import Recorded, ThreadUpdated, now
from runs_es.log.event_log import EventLog
from runs_es.log.library import FactApplication
from runs_projections import PROJECTIONS, LiveProjector
from runs_projections.projection import AnyProjection
from runs_projections.runs import RUNS, RunRow
from tests.benchmarks import bulk
from tests.benchmarks.figures import percentile, show
from tests.conftest import SCHEMA
from tests.log.test_library import library_environment

FACTS = 240_000
ROUNDS = 3
SECONDS = 4.0
LAG_SECONDS = 20.0
LAG_RATE = 500  # facts a second

_COLUMNS = [item.name for item in fields(RunRow)]
_TEXTS = [f"{name}::text" if name in ("metadata", "kwargs", "interrupts") else name for name in _COLUMNS]
_SELECT = f"select {', '.join(_TEXTS)} from {SCHEMA}.library_runs where thread_id = %s and run_id = %s"
_UPSERT = (
    f"insert into {SCHEMA}.library_runs ({', '.join(_COLUMNS)}) values ({', '.join(['%s'] * len(_COLUMNS))})"
    f" on conflict (thread_id, run_id) do update set {', '.join(f'{name} = excluded.{name}' for name in _COLUMNS)}"
)


class LibraryRuns(PostgresTrackingRecorder):
    """A view of the library: row and tracking in one transaction."""

    waits_for_disk = True

    def take(self, recorded: Recorded, tracking: Tracking) -> None:
        with self.datastore.transaction(commit=True) as cursor:
            if not self.waits_for_disk:
                cursor.execute("set local synchronous_commit = off")
            key = RUNS.key(recorded)
            if key is not None:
                values = cursor.execute(_SELECT, key, prepare=True).fetchone()
                old = RunRow(*values.values()) if values else None
                new = RUNS.evolve(old, recorded)
                if new is not None and new is not old:
                    cursor.execute(_UPSERT, [getattr(new, name) for name in _COLUMNS], prepare=True)
            self._insert_tracking(cursor, tracking)


class LibraryRunsInMemory(LibraryRuns):
    """The same, without waiting for the disk, as our driver does: rows and position are lost together."""

    waits_for_disk = False


class ProjectRuns(Projection[LibraryRuns]):
    name = "libraryruns"
    topics = ()

    def process_event(self, domain_event: Any, tracking: Tracking) -> None:
        fact = domain_event.fact
        number = domain_event.originator_version + 1
        recorded = Recorded(
            fact=fact,
            seq=number,
            revision=number,
            position=tracking.notification_id,
            recorded_at=fact.occurred_at,
        )
        self.view.take(recorded, tracking)


def library(url: str, view: type[LibraryRuns]) -> float:
    """Facts a second, for SECONDS, from the first fact on."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"set search_path to {SCHEMA}")
        connection.execute("drop table if exists library_runs, libraryruns_tracking")
        connection.execute("create table library_runs (like runs including all)")
    runner: Callable[..., ProjectionRunner[Application[str], LibraryRuns]] = ProjectionRunner
    begun = time.perf_counter()
    with runner(
        application_class=FactApplication,
        projection_class=ProjectRuns,
        view_class=view,
        env={**library_environment(url), "LIBRARYRUNS_PERSISTENCE_MODULE": "eventsourcing.postgres"},
    ) as running:
        threading.Event().wait(SECONDS)
        taken = time.perf_counter() - begun
        done = running.projection.view.max_tracking_id(running.app.name)
    assert done, "the library's runner took no fact"
    return done / taken


def ours(url: str, projections: tuple[AnyProjection, ...]) -> float:
    """Facts a second, all of them, from the first on."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"set search_path to {SCHEMA}")
        connection.execute("update tracking set position = 0")
        connection.execute(f"truncate {', '.join(each.table.name for each in PROJECTIONS)}")
    with EventLog(url) as log:
        last = log.reader.last_position()
        begun = time.perf_counter()
        with LiveProjector(log, projections) as projector:
            assert projector.wait_for(last, 120)
            return last / (time.perf_counter() - begun)


def lags(url: str) -> list[float]:
    """Milliseconds from a fact's commit until every read model has it, at LAG_RATE facts a second, a fact a commit."""
    waiting: queue.SimpleQueue[tuple[int, float] | None] = queue.SimpleQueue()
    found: list[float] = []
    with EventLog(url) as log, LiveProjector(log) as projector:
        names = [bulk.thread_name(number) for number in range(200)]
        revisions = {name: (log.reader.head(name) or _nobody()).revision for name in names}
        projector.wait_for(log.reader.last_position(), 60)

        def look() -> None:
            while (item := waiting.get()) is not None:
                assert projector.wait_for(item[0], 10)
                found.append((time.perf_counter() - item[1]) * 1000)

        looking = threading.Thread(target=look)
        looking.start()
        begun = time.perf_counter()
        for number in range(int(LAG_RATE * LAG_SECONDS)):
            threading.Event().wait(max(begun + number / LAG_RATE - time.perf_counter(), 0))
            name = names[number % len(names)]
            fact = ThreadUpdated(thread_id=name, occurred_at=now(), metadata={"n": number})
            future = log.append(name, [fact], expected=revisions[name])
            revisions[name] += 1
            future.add_done_callback(lambda done: waiting.put((done.result().position or 0, time.perf_counter())))
        future.result(30)
        waiting.put(None)
        looking.join(60)
    return found


def _nobody() -> Any:
    raise AssertionError("the threads of the bulk are not there")


def measure(database_url: str) -> None:
    facts = bulk.fill(database_url, SCHEMA, FACTS)
    contenders: dict[str, Callable[[], float]] = {
        "runs-es, runs": lambda: ours(database_url, (RUNS,)),
        "library, runs": lambda: library(database_url, LibraryRuns),
        "library, no disk wait": lambda: library(database_url, LibraryRunsInMemory),
        "runs-es, all four": lambda: ours(database_url, PROJECTIONS),
    }
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(ROUNDS):
        for name, run in contenders.items():
            speeds[name].append(run())
    first = speeds["runs-es, runs"]
    rows = [
        [
            name,
            f"{statistics.median(each):,.0f}",
            f"{statistics.median(a / b for a, b in zip(first, each, strict=True)):,.1f}",
        ]
        for name, each in speeds.items()
    ]
    show(
        f"live projection of {facts:,} facts, facts a second; medians of {ROUNDS} interleaved rounds",
        ["", "facts/s", "runs-es, runs is x times that"],
        rows,
    )
    found = lags(database_url)
    show(
        f"commit until all read models have it, {LAG_RATE} facts/s for {LAG_SECONDS:g} s, ms",
        ["facts", "p50", "p99", "max"],
        [[len(found), percentile(found, 0.5), percentile(found, 0.99), max(found)]],
    )
