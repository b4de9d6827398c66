"""Retention under load: appends at a steady rate while segments rotate and drop and frames are deleted by status.

Latency is from `publish` to durable. The gap that a join of a cut run gets is compared with what was really cut.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from psycopg import Connection

from runs_es.domain import RunStatus
from runs_es.log import retention, segments
from runs_es.log.event_log import EventLog
from runs_es.settings import MIB, Settings
from runs_es.streams.cursor import Gap, RunStreams
from runs_es.streams.hub import Hub
from tests.benchmarks.figures import percentile, show
from tests.log.recording import Recording

PRODUCERS = 16
WRITES_A_SECOND = 20  # of each producer
FRAMES = 10  # a write
ROUNDS = 5
QUIET_SECONDS = 4.0
OLD_RUNS = 200  # a segment
PAGES = 4  # an old run
PAGE_BYTES = 16 * 1024
STATUSES = [RunStatus.ERROR, RunStatus.TIMEOUT, RunStatus.INTERRUPTED, RunStatus.SUCCESS]

Latency = tuple[float, float]  # when, and how long it took


def produce(log: EventLog, until: threading.Event, latencies: list[Latency]) -> None:
    """A run that writes at its times, however long a write takes, until told to stop."""
    recording = Recording(log)
    due = time.monotonic() + random.Random().random() / WRITES_A_SECOND
    while not until.wait(max(due - time.monotonic(), 0)):
        recording.publish(FRAMES, "0123456789" * 20)
        latencies.append((due, time.monotonic() - due))
        due += 1 / WRITES_A_SECOND


def fill(log: EventLog, connection: Connection[Any]) -> Recording:
    """A segment of ended runs for each round; returns a run whose pages lie in the first two."""
    dice = random.Random(7)
    cut = Recording(log)
    cut.publish(5)
    for segment in range(ROUNDS):
        for number in range(OLD_RUNS):
            recording = Recording(log)
            for _ in range(PAGES):
                recording.publish(1, dice.randbytes(PAGE_BYTES // 2).hex())
            end(recording, STATUSES[number % len(STATUSES)])
        segments.rotate(connection)
        if segment == 0:
            cut.publish(7)
            cut.finish()
    connection.execute("checkpoint")
    return cut


def end(recording: Recording, status: RunStatus) -> None:
    run = recording.run
    match status:
        case RunStatus.TIMEOUT:
            run.mark_timed_out("late")
        case RunStatus.INTERRUPTED:
            run.mark_cancelled()
        case RunStatus.ERROR:
            run.mark_failed("boom")
        case _:
            run.mark_completed()
    recording.writer.record(*(recording.log.item(fact) for fact in run.pull_events())).result(20)


def size(connection: Connection[Any]) -> int:
    """Bytes of all pages on disk."""
    row = connection.execute(
        "select sum(pg_total_relation_size(inhrelid)) from pg_inherits"
        " where inhparent = 'events'::regclass and inhrelid <> 'events_facts'::regclass"
    ).fetchone()
    assert row is not None
    return int(row[0])


async def gap_of(log: EventLog, run: Recording) -> tuple[int | None, int | None]:
    """The bounds that a join from the start is told."""
    with ThreadPoolExecutor(2) as threads:
        streams = RunStreams(Hub(log, ring_bytes=0), log.reader, threads)
        stream = await streams.open(run.thread_id, run.run.run_id, 0)
        steps = [step async for step in stream.steps()]
    gap = next(step for step in steps if isinstance(step, Gap))
    return gap.earliest, gap.latest


class Load:
    """Producers, and the phases that they are measured in."""

    def __init__(self, log: EventLog) -> None:
        self.stopping = threading.Event()
        self._latencies: list[Latency] = []
        self._phases: dict[str, list[tuple[float, float]]] = {}
        self._threads = [
            threading.Thread(target=produce, args=(log, self.stopping, self._latencies)) for _ in range(PRODUCERS)
        ]
        for thread in self._threads:
            thread.start()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self._phases.setdefault(name, []).append((started, time.monotonic()))

    def stop(self) -> None:
        self.stopping.set()
        for thread in self._threads:
            thread.join()

    def taken(self, name: str) -> list[list[float]]:
        """Milliseconds of the writes that began in each of the phase's rounds."""
        return [
            [1000 * took for due, took in self._latencies if started <= due < ended]
            for started, ended in self._phases[name]
        ]


def work(connection: Connection[Any], settings: Settings, statuses: Sequence[RunStatus]) -> tuple[int, int]:
    """A rotation, the drop of the oldest segment, a deletion by status; bytes on disk before and after the drop."""
    segments.rotate(connection)
    held = segments.listing(connection)
    before = size(connection)
    keep = sum(segment.size for segment in held[1:]) + held[0].size // 2
    dropped = retention.apply(connection, settings.model_copy(update={"keep_streams_bytes": keep})).drops
    assert [step.segment.number for step in dropped] == [held[0].number]
    after = size(connection)
    if statuses:
        retention.delete_pages(connection, statuses=statuses)
    return before, after


def measure(database_url: str) -> None:
    settings = Settings(database_url=database_url, segment_bytes=2**50)
    with EventLog(database_url) as log, retention.connect(database_url, "runs_es") as connection:
        cut = fill(log, connection)
        load, sizes, gaps = Load(log), [], []
        load.stopping.wait(1)
        for number in range(ROUNDS):
            with load.phase("quiet"):
                load.stopping.wait(QUIET_SECONDS)
            with load.phase("both"):
                with load.phase("retention"):
                    sizes.append(work(connection, settings, STATUSES[number : number + 1]))
                with load.phase("the second after"):
                    load.stopping.wait(1)
            if number == 0:
                told = asyncio.run(gap_of(log, cut))
                pages = [row for row in log.reader.rows_after(cut.thread_id, 0, 1000) if row.is_page]
                bounds = log.reader.bounds(cut.thread_id, cut.run.run_id)
                gaps = [told, (pages[0].first, bounds and bounds.ended)]
        load.stop()
    _report(load)
    show(
        "space of pages on disk, MiB: before and after each drop; a join's gap of the run that was cut in two",
        ["", "before", "after"],
        [
            *([f"round {number + 1}", before / MIB, after / MIB] for number, (before, after) in enumerate(sizes)),
            ["gap: told, true", *(f"{first}-{last}" for first, last in gaps)],
        ],
    )


def _report(load: Load) -> None:
    quiet = [percentile(taken, 0.99) for taken in load.taken("quiet")]
    rows = []
    for name in ("quiet", "retention", "the second after", "both"):
        rounds = [taken for taken in load.taken(name) if taken]
        p99 = [percentile(taken, 0.99) for taken in rounds]
        ratios = [a / b for a, b in zip(p99, quiet, strict=False)]
        rows.append(
            [
                name,
                sum(map(len, rounds)),
                statistics.median(percentile(taken, 0.5) for taken in rounds),
                statistics.median(p99),
                max(map(max, rounds)),
                f"{statistics.median(ratios):.2f}",
            ]
        )
    show(
        f"{PRODUCERS} producers x {WRITES_A_SECOND} writes a second x {FRAMES} frames: ms from publish to durable;"
        f" medians of {ROUNDS} rounds",
        ["", "writes", "p50", "p99", "max", "p99 x quiet"],
        rows,
    )
