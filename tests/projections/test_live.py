"""The live driver: exactly once under kills and with several at work, leading, failing, waiting."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from runs_es.domain import EventRecorded, Fact, Recorded, ThreadCreated, ThreadUpdated, now
from runs_es.log.append import Append, FactItem
from runs_es.log.event_log import EventLog
from runs_projections import PROJECTIONS, LiveProjector, feed, rebuild, step, tracking
from runs_projections.ahead import ReadAhead
from runs_projections.freshness import TrackingPoll
from runs_projections.projection import AnyProjection
from runs_projections.runs import RUNS
from runs_projections.threads import THREADS
from tests.projections.comparing import all_facts, assert_tells_the_story, folded, positions, stored
from tests.projections.following import following
from tests.projections.histories import random_stories

SCHEMA = "runs_es"


def created(thread_id: str, **metadata: Any) -> ThreadCreated:
    return ThreadCreated(thread_id=thread_id, occurred_at=now(), metadata=metadata)


def append_one(log: EventLog, *facts: Fact, expected: int = 0) -> int:
    position = log.append(facts[0].thread_id, facts, expected=expected).result(30).position
    assert position is not None
    return position


def append_strange(log: EventLog, thread_id: str) -> int:
    """A fact of a version to come."""
    item = FactItem("strange.thing", None, b"{}")
    position = log.writer.submit(Append(thread_id, [item], expected=0)).result(30).position
    assert position is not None
    return position


@contextmanager
def copied(log: EventLog, projection: AnyProjection, **changes: Any) -> Iterator[AnyProjection]:
    """A projection over a table of its own."""
    with psycopg.connect(log.url, autocommit=True) as connection:
        connection.execute(
            f"create table {SCHEMA}.other_{projection.table.name} (like {SCHEMA}.{projection.table.name} including all)"
        )
    table = replace(projection.table, name=f"other_{projection.table.name}")
    yield replace(projection, name=f"other_{projection.name}", table=table, **changes)


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.faults) for seed in (2, 3))])
def test_killed_at_random_points_it_applies_every_fact_exactly_once(log: EventLog, seed: int) -> None:
    dice = random.Random(seed)
    tellers = random_stories(log, seed, threads=12, steps=400)
    last = log.reader.last_position()
    poll = TrackingPoll(log.reader)
    for part in range(1, 4):
        with following(log.url, batch=dice.choice((1, 3, 17))) as process:
            poll.wait_for(dice.randint(last * (part - 1) // 4, last * part // 4), 30)
            process.kill()
    behind = positions(log)

    with LiveProjector(log) as projector:
        assert projector.wait_for(last, 30)

    assert stored(log) == folded(log)
    assert_tells_the_story(stored(log), tellers)
    assert max(behind.values()) > 0


def test_two_projectors_at_once_apply_nothing_twice(log: EventLog) -> None:
    with EventLog(log.url) as other, LiveProjector(log, batch=3) as first, LiveProjector(other, batch=5) as second:
        tellers = random_stories(log, 11, threads=8, steps=300)
        last = log.reader.last_position()
        assert first.wait_for(last, 30)
        assert second.wait_for(last, 30)
        assert first.leads | second.leads == {projection.name for projection in PROJECTIONS}
        assert not first.leads & second.leads

    assert stored(log) == folded(log)
    assert_tells_the_story(stored(log), tellers)


def test_without_any_leader_the_position_alone_keeps_writers_apart(log: EventLog) -> None:
    random_stories(log, 5, threads=6, steps=300)
    last = log.reader.last_position()
    applied: list[int] = []

    def work(batch: int) -> None:
        with tracking.connect(log.url, SCHEMA, "test") as connection:
            while (position := tracking.positions(connection, PROJECTIONS)["runs"]) < last:
                portion = feed.after(connection, position, batch, 2**20)
                if step.advance(connection, PROJECTIONS, position, portion.recordeds):
                    applied.append(len(portion.recordeds))

    with tracking.connect(log.url, SCHEMA, "test") as connection:
        tracking.ensure(connection, SCHEMA, PROJECTIONS)
    workers = [threading.Thread(target=work, args=(batch,)) for batch in (2, 3, 5)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)

    assert sum(applied) == len(all_facts(log))
    assert stored(log) == folded(log)


def test_a_position_that_moved_meanwhile_changes_nothing(log: EventLog) -> None:
    append_one(log, created("t"))
    with tracking.connect(log.url, SCHEMA, "test") as connection:
        tracking.ensure(connection, SCHEMA, PROJECTIONS)
        facts = feed.after(connection, 0, 10, 2**20).recordeds
        assert step.advance(connection, PROJECTIONS, 0, facts)
        before = stored(log)
        assert not step.advance(connection, PROJECTIONS, 0, facts)
        # One of them elsewhere is enough: all or nothing.
        connection.execute("update tracking set position = 0 where name = 'runs'")
        assert not step.advance(connection, PROJECTIONS, 0, facts)
        assert tracking.positions(connection, PROJECTIONS)["runs"] == 0

    assert stored(log) == before


def test_when_the_leader_is_killed_another_process_takes_over(log: EventLog) -> None:
    with following(log.url) as leader, LiveProjector(log) as projector:
        assert projector.wait_for(append_one(log, created("t1")), 10)
        assert projector.leads == frozenset()

        leader.kill()

        assert projector.wait_for(append_one(log, created("t2")), 30)
        assert projector.leads == {projection.name for projection in PROJECTIONS}


def test_waiting_for_what_another_process_leads_takes_no_longer_than_its_hint(log: EventLog) -> None:
    with following(log.url), LiveProjector(log) as projector:
        waits = []
        for number in range(30):
            position = append_one(log, created(f"t{number}"))
            begun = time.monotonic()
            assert projector.wait_for(position, 10)
            waits.append(time.monotonic() - begun)

    assert sorted(waits)[15] < 0.25


def test_waiting_is_bounded(log: EventLog, projector: LiveProjector) -> None:
    begun = time.monotonic()

    assert not projector.wait_for(10**9, 0.2)
    assert 0.15 < time.monotonic() - begun < 2


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("cannot digest this"), "RuntimeError: cannot digest this"),
        (SystemExit(3), "ReadModelExited: it called for the end of its process: SystemExit: 3"),
    ],
    ids=["raises", "exits"],
)
def test_a_projection_that_fails_stops_alone_and_says_where(
    log: EventLog, caplog: pytest.LogCaptureFixture, error: BaseException, reason: str
) -> None:
    def picky(row: Any, recorded: Recorded) -> Any:
        if recorded.fact.thread_id == "bad":
            raise error
        return THREADS.evolve(row, recorded)

    with copied(log, THREADS, evolve=picky) as broken:
        append_one(log, created("good"))
        bad = append_one(log, created("bad"))
        last = append_one(log, created("after"))
        with LiveProjector(log, [*PROJECTIONS, broken]) as projector:
            assert projector.wait_for(last, 10, [projection.name for projection in PROJECTIONS])
            assert not projector.wait_for(last, 10, [broken.name])
            assert projector.wait_for(bad - 1, 10, [broken.name])
            failure = projector.failures[broken.name]
            assert projector.leads == {projection.name for projection in PROJECTIONS}
            # It goes on for the others.
            assert projector.wait_for(append_one(log, created("later")), 10, ["threads"])
            rows = stored(log, (broken,))[broken.name]

    assert (failure.position, failure.reason) == (bad, reason)
    assert list(rows) == [("good",)]
    assert f"projection {broken.name} stopped at position {bad}" in caplog.text
    assert stored(log) == folded(log)


def test_a_row_that_the_database_refuses_stops_its_projection_alone(log: EventLog) -> None:
    def no_json(row: Any, recorded: Recorded) -> Any:
        made = THREADS.evolve(row, recorded)
        return replace(made, metadata="{") if made is not None and made.thread_id == "bad" else made

    with copied(log, THREADS, evolve=no_json) as broken:
        append_one(log, created("good"))
        bad = append_one(log, created("bad"))
        with LiveProjector(log, [*PROJECTIONS, broken]) as projector:
            assert projector.wait_for(bad, 10, ["threads"])
            assert not projector.wait_for(bad, 10, [broken.name])
            assert projector.failures[broken.name].position == bad

        assert list(stored(log, (broken,))[broken.name]) == [("good",)]


def test_a_projection_that_cannot_be_moved_past_facts_it_does_not_want_stops_there(log: EventLog) -> None:
    last = append_one(log, created("t"), *(noted(number, "x") for number in range(5)))
    with psycopg.connect(log.url, autocommit=True) as connection:
        connection.execute(f"alter table runs_es.tracking add check (name <> 'runs' or position < {last})")

    with LiveProjector(log, [RUNS]) as projector:
        assert not projector.wait_for(last, 10)
        assert projector.failures["runs"].position == last


def test_what_is_read_ahead_and_not_asked_for_makes_way(log: EventLog) -> None:
    last = append_one(log, created("t"), *(noted(number, "x") for number in range(5)))
    ahead = ReadAhead(log.url, log.schema)
    try:
        for position in (0, last - 1):
            ahead.begin(position, 100, 2**20, None)
            assert ahead._rows is not None
            ahead._rows.result(10)
            ahead.decode()
        portion = ahead.take(last - 1, None)
    finally:
        ahead.close()

    assert portion is not None
    assert (portion.last, portion.size) == (last, 1)


def test_an_unknown_topic_stops_every_projection_right_before_it(log: EventLog, projector: LiveProjector) -> None:
    before = append_one(log, created("before"))
    strange = append_strange(log, "strange")
    after = append_one(log, created("after"))

    assert projector.wait_for(before, 10)
    assert not projector.wait_for(after, 10)
    assert {failure.position for failure in projector.failures.values()} == {strange}
    assert projector.failures.keys() == {projection.name for projection in PROJECTIONS}
    assert "strange.thing" in projector.failures["runs"].reason
    assert set(positions(log).values()) == {strange - 1}
    # Another process, of a version that knows it, may lead now.
    with tracking.connect(log.url, SCHEMA, "test") as connection:
        assert all(tracking.try_lead(connection, SCHEMA, projection) for projection in PROJECTIONS)


def test_a_lost_connection_is_made_again(log: EventLog, projector: LiveProjector) -> None:
    assert projector.wait_for(append_one(log, created("t1")), 10)
    with psycopg.connect(log.url, autocommit=True) as connection:
        connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and application_name = 'runs-es projector'"
        )

    assert projector.wait_for(append_one(log, created("t2")), 30)
    assert stored(log) == folded(log)


def test_portions_are_bounded_in_bytes_but_never_empty(log: EventLog) -> None:
    facts = [created("t"), *(noted(number, "x" * 4000) for number in range(4))]
    append_one(log, *facts)
    with tracking.connect(log.url, SCHEMA, "test") as connection:
        sizes = [len(feed.after(connection, 0, 100, size).recordeds) for size in (1, 5000, 9000, 10**6)]
        assert len(feed.after(connection, 0, 2, 10**6).recordeds) == 2

    assert sizes == [1, 3, 4, 5]


def noted(number: int, content: str) -> Fact:
    return EventRecorded(thread_id="t", run_id="r", occurred_at=now(), event_type="note", content=[number, content])


def test_facts_that_pile_up_while_nobody_follows_are_caught_up_in_batches(log: EventLog) -> None:
    facts: list[Fact] = [created("t"), *(ThreadUpdated(thread_id="t", occurred_at=now()) for _ in range(1200))]
    last = append_one(log, *facts)

    with LiveProjector(log, batch=100) as projector:
        assert projector.wait_for(last, 30)

    assert stored(log) == folded(log)


def test_a_projection_passes_over_any_number_of_facts_that_it_does_not_want(log: EventLog) -> None:
    last = append_one(log, created("t"), *(noted(number, "x") for number in range(300)))
    with tracking.connect(log.url, SCHEMA, "test") as connection:
        portion = feed.after(connection, 1, 100, 2**20, RUNS.topics)
        assert (portion.last, portion.size, len(portion.recordeds)) == (101, 100, 1)
        bounded = feed.after(connection, 1, 100, 500, RUNS.topics)
        assert 1 < bounded.last < 20

    with LiveProjector(log, [RUNS], batch=7) as projector:
        assert projector.wait_for(last, 20)
    assert rebuild(log, verify=True, projections=[RUNS], batch=7).differences == ()
