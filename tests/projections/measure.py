"""Figures of this machine: `python -m tests.projections.measure [runs]`. Facts a second live and rebuilt, and how long
after its commit a fact shows in a list. Uses `RUNS_ES_TEST_DATABASE_URL` or an embedded server of its own.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from runs_es.domain import Fact, MessageRecorded, Run, Thread, ThreadUpdated, now
from runs_es.log.event_log import EventLog
from runs_es.service.commands import ListRunMessagesQuery, ListRunsQuery
from runs_projections import LiveProjector, ProjectedEvents, ProjectedRuns, ProjectedThreads, rebuild
from runs_projections.live import PROJECTIONS
from runs_projections.projection import fold
from tests.projections.following import following

RUNS_A_THREAD = 5
MESSAGES_A_RUN = 4


def story(thread_id: str) -> list[Fact]:
    """A thread as an agent platform has them: a handful of runs, each with a handful of messages."""
    facts: list[Fact] = [Thread(thread_id).create(metadata={"graph_id": "agent"})]
    for number in range(RUNS_A_THREAD):
        run = Run.create(
            run_id=f"{thread_id}-{number}",
            thread_id=thread_id,
            assistant_id="agent",
            kwargs={"input": {"messages": [{"role": "human", "content": "hello " * 20}]}, "config": {}},
        )
        run.mark_claimed(claim_id="c")
        run.mark_started()
        facts += run.pull_events()
        facts += [_message(run, f"{run.run_id}-{index}") for index in range(MESSAGES_A_RUN)]
        run.mark_completed()
        facts += run.pull_events()
    return facts


def _message(run: Run, message_id: str) -> MessageRecorded:
    return MessageRecorded(
        thread_id=run.thread_id,
        run_id=run.run_id,
        occurred_at=now(),
        message_id=message_id,
        content={"type": "ai", "content": "some words " * 20, "id": message_id},
    )


def fill(log: EventLog, threads: int) -> int:
    position = 0
    for first in range(0, threads, 20):
        names = [f"t{number}" for number in range(first, min(first + 20, threads))]
        futures = [log.append(name, story(name), expected=0) for name in names]
        position = max(future.result(60).position or 0 for future in futures)
    return position


def timed(what: str, count: int, call: Callable[[], Any]) -> None:
    begun = time.perf_counter()
    call()
    seconds = time.perf_counter() - begun
    print(f"{what}: {count} facts in {seconds:.2f} s, {count / seconds:,.0f} facts/s")


def latencies(what: str, count: int, call: Callable[[int], object]) -> None:
    taken = []
    for number in range(count):
        begun = time.perf_counter()
        call(number)
        taken.append((time.perf_counter() - begun) * 1000)
    taken.sort()
    print(f"{what}: p50 {statistics.median(taken):.2f} ms, p99 {taken[int(count * 0.99)]:.2f} ms")


def measure(url: str, runs: int) -> None:
    with EventLog(url) as log, EventLog(url) as other_log:
        position = fill(log, runs // RUNS_A_THREAD)
        facts = log.reader.facts_after(0, 10_000_000)
        timed("in memory, all three", len(facts), lambda: [fold(projection, facts) for projection in PROJECTIONS])
        with LiveProjector(log) as live:
            timed("live, catching up in batches of 500", len(facts), lambda: live.wait_for(position, 600))
            timed("rebuild, beside a live projector", len(facts), lambda: rebuild(log))
            timed("verify", len(facts), lambda: rebuild(log, verify=True))
            live.wait_for(position, 60)

            revision = [len(story("x"))]
            update = ThreadUpdated(thread_id="t0", occurred_at=now(), metadata={"n": 1})

            def append(to: EventLog) -> int:
                appended = to.append("t0", [update], expected=revision[0]).result(30)
                revision[0] += 1
                return appended.position or 0

            latencies("append alone", 300, lambda _: append(log))
            spans: dict[str, list[float]] = {"same process": [], "another log, by its hint": []}
            for _ in range(300):
                for name, to in zip(spans, (log, other_log), strict=True):
                    at = append(to)
                    committed = time.perf_counter()
                    assert live.wait_for(at, 5)
                    spans[name].append((time.perf_counter() - committed) * 1000)
            for name, taken in spans.items():
                taken.sort()
                print(f"commit to visible, {name}: p50 {statistics.median(taken):.2f} ms, p99 {taken[296]:.2f} ms")

            readers = ProjectedRuns(log, live), ProjectedEvents(log, live), ProjectedThreads(log, live)
            latencies("list runs of a thread", 300, lambda _: readers[0].list_by_thread(ListRunsQuery(thread_id="t0")))
            latencies(
                "list messages of a thread",
                300,
                lambda _: readers[1].list_messages_by_run(ListRunMessagesQuery(thread_id="t0")),
            )
            latencies("search threads", 300, lambda _: readers[2].search())
            latencies("search threads by metadata", 300, lambda _: readers[2].search(metadata={"graph_id": "agent"}))
            latencies("get a thread", 300, lambda _: readers[2].get("t1"))
            latencies("get a run", 300, lambda _: readers[0].get("t0-0"))


def measure_beside_a_leader(url: str) -> None:
    """What this process waits for when another one projects: hint there, poll here."""
    with following(url), EventLog(url) as log, LiveProjector(log) as live:
        taken = []
        for number in range(200):
            fact = Thread(f"other-{number}").create()
            at = log.append(fact.thread_id, [fact], expected=0).result(30).position or 0
            committed = time.perf_counter()
            assert live.wait_for(at, 5)
            taken.append((time.perf_counter() - committed) * 1000)
        taken.sort()
        print(f"commit to visible, projected by another process: p50 {taken[100]:.2f} ms, p99 {taken[197]:.2f} ms")


def main() -> None:
    from runs_es.database.migrate import migrate
    from tests.conftest import new_database

    with ExitStack() as stack:
        url = stack.enter_context(server())
        database = stack.enter_context(new_database(url))
        migrate(database, "runs_es")
        measure_beside_a_leader(database)
        measure(database, int(sys.argv[1]) if len(sys.argv) > 1 else 5000)


def server() -> Any:
    import os
    from contextlib import contextmanager

    from runs_es.database.embedded import EmbeddedPostgres
    from tests.conftest import new_folder

    @contextmanager
    def opened() -> Any:
        if given := os.environ.get("RUNS_ES_TEST_DATABASE_URL"):
            yield given
            return
        with new_folder() as folder, EmbeddedPostgres(folder / "data") as embedded:
            yield embedded.url

    return opened()


if __name__ == "__main__":
    main()
