"""Throwing read models away and making them again, while the service runs."""

from __future__ import annotations

import random
from itertools import count

import psycopg
import pytest

from runs_es.domain import Fact, MessageRecorded, Run, Thread, ThreadCreated, ThreadErased, UnknownTopic, now
from runs_es.log.event_log import EventLog
from runs_es.service.commands import ListRunsQuery
from runs_projections import Difference, LiveProjector, ProjectedRuns, rebuild
from runs_projections.rebuild import OnProgress
from tests.projections.comparing import folded, positions, stored
from tests.projections.following import following
from tests.projections.histories import random_stories
from tests.projections.test_live import append_one, append_strange, created

TABLES = ("runs", "messages", "threads")


def dumped(log: EventLog) -> dict[str, list[str]]:
    """Every column of every row as the database prints it, those for searching and sorting too."""
    with psycopg.connect(log.url) as connection:
        return {
            table: [row for (row,) in connection.execute(f"select t::text from runs_es.{table} t order by 1")]
            for table in TABLES
        }


def change(log: EventLog, statement: str) -> None:
    with psycopg.connect(log.url, autocommit=True) as connection:
        connection.execute("set search_path to runs_es")
        connection.execute(statement)


def many_runs(log: EventLog, runs: int) -> int:
    """Runs of every end, five a thread, each with messages; returns the last position."""
    dice = random.Random(runs)
    position = 0
    for number in range(runs // 5):
        thread_id = f"t{number}"
        facts: list[Fact] = [Thread(thread_id).create(metadata={"n": number, "nul": "\x00"})]
        for index in range(5):
            run = Run.create(
                run_id=f"{thread_id}-{index}", thread_id=thread_id, assistant_id="agent", kwargs={"z": index, "a": 0}
            )
            run.mark_claimed(claim_id="c")
            run.mark_started()
            facts += run.pull_events()
            facts += [said(run, f"m{index}"), said(run, "edited"), said(run, "edited")]
            end = dice.choice(
                (run.mark_completed, lambda run=run: run.mark_failed("no\x00"), run.mark_cancelled, run.mark_deleted)
            )
            end()
            facts += run.pull_events()
        position = log.append(thread_id, facts, expected=0).result(30).position or 0
    return position


def said(run: Run, message_id: str) -> MessageRecorded:
    return MessageRecorded(
        thread_id=run.thread_id, run_id=run.run_id, occurred_at=now(), message_id=message_id, content={"b": 1, "a": 2}
    )


def going_on(log: EventLog) -> OnProgress:
    """Something more happens whenever there is progress."""
    numbers = count()

    def go_on(done: int, total: int) -> None:
        number = next(numbers)
        random_stories(log, number, threads=2, steps=10, prefix=f"during-{number}-")

    return go_on


def test_a_rebuild_of_five_hundred_runs_is_identical_row_by_row(log: EventLog, projector: LiveProjector) -> None:
    assert projector.wait_for(many_runs(log, 800), 60)
    live = dumped(log)
    assert len(live["runs"]) >= 500

    told: list[tuple[int, int]] = []
    report = rebuild(log, on_progress=lambda done, total: told.append((done, total)), batch=1000)

    assert dumped(log) == live
    assert stored(log) == folded(log)
    assert report.rows == {table: len(rows) for table, rows in live.items()}
    assert told == sorted(told)
    assert told[-1] == (report.facts, report.facts)
    assert projector.wait_for(append_one(log, created("after")), 10)


def test_a_rebuild_while_another_process_follows_and_facts_keep_coming(log: EventLog) -> None:
    with following(log.url, batch=7):
        random_stories(log, 3, threads=10, steps=300, prefix="before")

        rebuild(log, on_progress=going_on(log), batch=50)
        random_stories(log, 4, threads=4, steps=50, prefix="after")

        with LiveProjector(log) as projector:
            assert projector.wait_for(log.reader.last_position(), 30)

    assert stored(log) == folded(log)
    assert rebuild(log, verify=True).differences == ()


def test_one_read_model_can_be_rebuilt_alone(log: EventLog, projector: LiveProjector) -> None:
    assert projector.wait_for(many_runs(log, 20), 30)
    before = dumped(log)
    change(log, "update runs set status = 'broken'; update messages set event_type = 'broken'")

    report = rebuild(log, ["runs"])

    after = dumped(log)
    assert after["runs"] == before["runs"]
    assert after["messages"] != before["messages"]
    assert list(report.rows) == ["runs"]


def test_what_does_not_exist_cannot_be_rebuilt(log: EventLog) -> None:
    with pytest.raises(ValueError, match="no such projection: nothing; there are runs, messages, threads"):
        rebuild(log, ["nothing"])


def test_a_url_will_do_in_place_of_a_log(log: EventLog) -> None:
    append_one(log, created("t"))

    assert rebuild(log.url, schema="runs_es").rows == {"runs": 0, "messages": 0, "threads": 1}


def test_a_verification_finds_every_difference_and_changes_nothing(log: EventLog, projector: LiveProjector) -> None:
    assert projector.wait_for(many_runs(log, 20), 30)
    assert rebuild(log, verify=True).differences == ()
    change(log, "update runs set attempt = 7 where run_id = 't0-1'")
    change(log, "delete from messages where thread_id = 't1' and message_id = 'm3'")
    change(log, "update threads set searchable = '{}' where thread_id = 't2'")
    change(
        log,
        'insert into runs select (jsonb_populate_record(r, \'{"run_id": "ghost"}\')).* from runs r'
        " where run_id = 't0-0'",
    )
    spoilt = dumped(log)

    differences = rebuild(log, verify=True).differences

    assert Difference("runs", ("t0", "t0-1"), "attempt", "1", "7") in differences
    assert Difference("runs", ("t0", "ghost"), "", None, "a row") in differences
    assert ("messages", ("t1", "t1-3", "m3"), "", "a row", None) in [
        (each.name, each.key, each.column, each.expected, each.found) for each in differences
    ]
    assert ("threads", ("t2",), "searchable") in [(each.name, each.key, each.column) for each in differences]
    assert len(differences) == 4
    assert dumped(log) == spoilt


def test_a_verification_does_not_mind_facts_that_keep_coming(log: EventLog, projector: LiveProjector) -> None:
    many_runs(log, 20)

    assert rebuild(log, verify=True, on_progress=going_on(log), batch=20).differences == ()


def test_lists_say_that_they_are_not_current_while_a_rebuild_is_under_way(
    log: EventLog, projector: LiveProjector
) -> None:
    assert projector.wait_for(many_runs(log, 20), 30)
    runs = ProjectedRuns(log, projector, wait=0.0)
    last = ListRunsQuery(thread_id="t3")
    assert runs.list_by_thread(last).current
    seen = []

    rebuild(log, on_progress=lambda *_: seen.append(runs.list_by_thread(last)), batch=10)

    assert not seen[0].current
    assert seen[0] == []
    assert seen[-1].current
    assert len(seen[-1]) == len(runs.list_by_thread(last)) > 0


def test_a_rebuild_that_dies_is_finished_by_whoever_follows(log: EventLog, projector: LiveProjector) -> None:
    last = many_runs(log, 20)
    assert projector.wait_for(last, 30)
    before = dumped(log)

    class Killed(Exception):
        pass

    def die(done: int, total: int) -> None:
        raise Killed

    with pytest.raises(Killed):
        rebuild(log, on_progress=die, batch=10)
    position = append_one(log, ThreadCreated(thread_id="later", occurred_at=now()))

    assert projector.wait_for(position, 30)
    assert stored(log) == folded(log)
    assert dumped(log)["runs"] == before["runs"]


def test_a_fact_that_cannot_be_read_ends_a_rebuild_loudly(log: EventLog) -> None:
    append_one(log, created("t"))
    strange = append_strange(log, "strange")

    with pytest.raises(UnknownTopic, match=r"strange\.thing"):
        rebuild(log)
    assert set(positions(log).values()) == {strange - 1}


def test_after_a_thread_was_erased_a_rebuild_still_changes_nothing(log: EventLog, projector: LiveProjector) -> None:
    many_runs(log, 20)
    revision = (log.reader.head("t1") or pytest.fail("no head")).revision
    last = append_one(log, ThreadErased(thread_id="t1", occurred_at=now()), expected=revision)
    assert projector.wait_for(last, 30)
    before = dumped(log)
    with psycopg.connect(log.url) as connection:
        connection.execute("set local runs_es.maintenance = 'erasure'")
        connection.execute("delete from runs_es.events_facts where thread_id = 't1' and topic <> 'thread.erased'")

    rebuild(log, batch=13)

    assert dumped(log) == before
    assert not any("t1-" in row for row in before["runs"])
