"""Many processes on one log: acknowledged = stored, no holes, no deadlock, a follower misses nothing."""

from __future__ import annotations

import itertools
import multiprocessing
import uuid
from multiprocessing.connection import Connection
from typing import Any

import psycopg
import pytest

from tests.log.writers import Report, follow, write

PROCESSES = 4
WRITERS = 4
spawn = multiprocessing.get_context("spawn")


def start(target: Any, *arguments: Any) -> tuple[Any, Connection]:
    ours, theirs = spawn.Pipe(duplex=False)
    process = spawn.Process(target=target, args=(*arguments, theirs))
    process.start()
    theirs.close()
    return process, ours


def received(process: Any, results: Connection) -> Any:
    """What a process reports; fails when it does not within the bound."""
    assert results.poll(100), "a process does not report"
    answer = results.recv()
    process.join(30)
    assert process.exitcode == 0
    return answer


# A shorter story in the default suite, the whole one in the long one.
@pytest.mark.parametrize(
    ("threads", "facts"),
    [
        (1, 1_200),
        (16, 4_000),
        (2_000, 8_000),
        *(pytest.param(*size, marks=pytest.mark.faults) for size in [(1, 2_500), (16, 14_000), (2_000, 40_000)]),
    ],
)
def test_four_processes_with_sixteen_writers_lose_nothing(database_url: str, threads: int, facts: int) -> None:
    names = [str(uuid.uuid4()) for _ in range(threads)]
    stop = spawn.Event()
    follower = start(follow, database_url, stop)
    writers = [start(write, database_url, seed, names, WRITERS, facts // PROCESSES) for seed in range(PROCESSES)]
    reports: list[Report] = [received(*writer) for writer in writers]
    stop.set()
    followed: list[int] = received(*follower)

    assert [error for report in reports for error in report.errors] == []
    acknowledged = [each for report in reports for each in report.acknowledged]
    with psycopg.connect(database_url, options="-c search_path=runs_es") as connection:
        events = sum(last - first + 1 for _, first, last in acknowledged)
        assert connection.execute("select sum(n)::bigint from events").fetchone() == (events,)
        holes = connection.execute(
            "select count(*) from (select seq - n - coalesce(lag(seq) over w, 0) gap from events"
            " window w as (partition by thread_id order by seq)) x where gap <> 0"
        ).fetchone()
        heads = connection.execute(
            "select count(*) from heads h join (select thread_id, max(seq) seq, sum(n) n, count(*) filter"
            " (where segment = 0) facts, coalesce(sum(n) filter (where segment > 0), 0) frames from events"
            " group by thread_id) e using (thread_id)"
            " where h.head <> e.seq or h.head <> e.n or h.revision <> e.facts or h.frames <> e.frames"
        ).fetchone()
        backwards = connection.execute(
            "select count(*) from (select recorded_at < lag(recorded_at) over (partition by thread_id order by seq) b"
            " from events) x where b"
        ).fetchone()
        positions = [row[0] for row in connection.execute("select position from events_facts order by position")]
        deadlocks = connection.execute(
            "select deadlocks from pg_stat_database where datname = current_database()"
        ).fetchone()
    assert holes == (0,)
    assert heads == (0,)
    assert backwards == (0,)
    assert deadlocks == (0,)
    assert len(positions) >= facts
    assert followed == positions, "a reader that follows position missed facts"
    taken = sorted(acknowledged)
    overlaps = [a for a, b in itertools.pairwise(taken) if a[0] == b[0] and a[2] >= b[1]]
    assert overlaps == []
