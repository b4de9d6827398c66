"""Throwing read models away and making them again, while the service runs."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from runs_es.database.migrate import migrate
from runs_es.domain import (
    Fact,
    MessageRecorded,
    Recorded,
    Run,
    StoreUnavailable,
    Thread,
    ThreadCreated,
    ThreadErased,
    UnknownTopic,
    now,
)
from runs_es.log.event_log import EventLog
from runs_es.service.commands import ListRunsQuery
from runs_projections import PROJECTIONS, Difference, LiveProjector, ProjectedRuns, rebuild
from runs_projections.filling import RebuildFailed
from runs_projections.rebuild import OnProgress
from runs_projections.runs import RUNS
from tests.projections.comparing import folded, positions, stored
from tests.projections.following import following
from tests.projections.histories import random_stories
from tests.projections.test_live import append_one, append_strange, created

TABLES = {each.name: each.table.name for each in PROJECTIONS}


def dumped(log: EventLog) -> dict[str, list[str]]:
    """Every column of every row as the database prints it, those for searching and sorting too."""
    with psycopg.connect(log.url) as connection:
        return {
            name: [row for (row,) in connection.execute(f"select t::text from runs_es.{table} t order by 1")]
            for name, table in TABLES.items()
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
    with pytest.raises(ValueError, match="no such projection: nothing; there are runs, messages, threads, usage"):
        rebuild(log, ["nothing"])


def test_a_url_will_do_in_place_of_a_log(log: EventLog) -> None:
    append_one(log, created("t"))

    assert rebuild(log.url, schema="runs_es").rows == {"runs": 0, "messages": 0, "threads": 1, "usage": 0, "crons": 0}


def test_a_verification_finds_every_difference_and_changes_nothing(log: EventLog, projector: LiveProjector) -> None:
    assert projector.wait_for(many_runs(log, 20), 30)
    assert rebuild(log, verify=True).differences == ()
    change(log, "update runs set attempt = 7 where run_id = 't0-1'")
    change(log, "delete from messages where thread_id = 't1' and message_id = 'm3'")
    change(log, "update threads_v2 set searchable = '{}' where thread_id = 't2'")
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


def test_lists_are_whole_and_current_all_the_while(log: EventLog, projector: LiveProjector) -> None:
    assert projector.wait_for(many_runs(log, 20), 30)
    runs = ProjectedRuns(log, projector, wait=5.0)
    last = ListRunsQuery(thread_id="t3")
    before = runs.list_by_thread(last)
    seen = []

    rebuild(log, on_progress=lambda *_: seen.append(runs.list_by_thread(last)), batch=10)

    assert len(seen) > 8
    assert all(each.current and each == before for each in seen)
    assert len(before) > 0


class Killed(Exception):
    pass


def dying(after: int) -> OnProgress:
    left = [after]

    def die(done: int, total: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Killed

    return die


@pytest.mark.parametrize("after", [0, 1, 3, 6])
def test_a_rebuild_that_dies_changes_nothing_and_goes_on_from_there(
    log: EventLog, projector: LiveProjector, after: int
) -> None:
    assert projector.wait_for(many_runs(log, 40), 30)
    before = dumped(log)

    with pytest.raises(Killed):
        rebuild(log, ["messages"], on_progress=dying(after), batch=20)
    assert dumped(log) == before
    position = append_one(log, ThreadCreated(thread_id="later", occurred_at=now()))
    assert projector.wait_for(position, 30)
    told: list[int] = []
    rebuild(log, ["messages"], on_progress=lambda done, _: told.append(done), batch=20)

    assert stored(log) == folded(log)
    assert dumped(log)["messages"] == before["messages"]
    if after >= 1:
        assert told[0] > 20  # what was done before is not done again
    assert leftovers(log) == {"runs_es_retired.messages"}


def leftovers(log: EventLog) -> set[str]:
    with psycopg.connect(log.url) as connection:
        rows = connection.execute(
            "select schemaname || '.' || tablename from pg_tables"
            " where schemaname in ('runs_es_rebuild', 'runs_es_retired')"
        ).fetchall()
    return {name for (name,) in rows}


def test_what_was_replaced_goes_after_its_grace(log: EventLog) -> None:
    random_stories(log, 1, threads=2, steps=20)

    rebuild(log, ["runs"], grace=0)
    assert leftovers(log) == set()

    rebuild(log, ["runs"])
    assert leftovers(log) == {"runs_es_retired.runs"}
    rebuild(log, ["threads"])
    assert leftovers(log) == {"runs_es_retired.runs", "runs_es_retired.threads_v2"}
    change(log, "update rebuilds set drop_at = clock_timestamp() where name = 'runs'")
    with LiveProjector(log):
        until(lambda: leftovers(log) == {"runs_es_retired.threads_v2"})


def until(is_so: Callable[[], bool], seconds: float = 20) -> None:
    """Look again and again; the log's own poll is a second."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it did not become so"
        threading.Event().wait(0.02)


def test_the_new_tables_are_like_the_old_ones_in_everything(log: EventLog) -> None:
    random_stories(log, 1, threads=2, steps=20)
    change(log, "create role reader_of_runs")
    try:
        change(log, "grant select on runs, messages to reader_of_runs")
        change(log, "grant select on threads_v2 to public")
        before = described(log)

        rebuild(log, grace=0)

        assert described(log) == before
        assert any("reader_of_runs" in str(row) for row in before)
    finally:
        change(log, "drop owned by reader_of_runs")
        change(log, "drop role reader_of_runs")


def described(log: EventLog) -> list[tuple[Any, ...]]:
    """Columns, indexes, constraints, options and grants of the tables."""
    with psycopg.connect(log.url) as connection:
        return connection.execute(
            "select c.relname, c.reloptions::text, c.relacl::text,"
            "  (select array_agg((attname, atttypid, attnotnull, attstorage)::text order by attnum)"
            "     from pg_attribute where attrelid = c.oid and attnum > 0),"
            "  (select array_agg(indexdef order by indexname) from pg_indexes"
            "    where schemaname = 'runs_es' and tablename = c.relname),"
            "  (select array_agg((conname, pg_get_constraintdef(oid))::text order by conname)"
            "     from pg_constraint where conrelid = c.oid)"
            " from pg_class c where c.relnamespace = 'runs_es'::regnamespace and c.relname = any(%s) order by 1",
            (list(TABLES.values()),),
        ).fetchall()


def test_a_long_read_holds_up_the_swap_but_not_the_others(log: EventLog, projector: LiveProjector) -> None:
    assert projector.wait_for(many_runs(log, 20), 30)
    runs = ProjectedRuns(log, projector, wait=5.0)
    waits = []
    with psycopg.connect(log.url) as reading:
        reading.execute("select count(*) from runs_es.runs")  # and its transaction stays open
        worker = threading.Thread(target=rebuild, args=(log, ["runs"]))
        worker.start()
        for _ in range(12):
            begun = time.monotonic()
            assert runs.list_by_thread(ListRunsQuery(thread_id="t3")).current
            waits.append(time.monotonic() - begun)
            threading.Event().wait(0.02)
        assert worker.is_alive()
        reading.rollback()
    worker.join(30)

    assert max(waits) < 1.0
    assert leftovers(log) == {"runs_es_retired.runs"}


def test_two_rebuilds_of_the_same_read_model_do_not_run_at_once(log: EventLog) -> None:
    random_stories(log, 1, threads=2, steps=20)
    refused = []

    def again(done: int, total: int) -> None:
        if done == total:
            return
        with pytest.raises(StoreUnavailable, match="runs is being rebuilt"):
            rebuild(log, ["runs"])
        refused.append(True)

    rebuild(log, ["runs"], on_progress=again, batch=5)
    assert refused


def test_a_restart_throws_away_what_a_killed_rebuild_has_done(log: EventLog) -> None:
    many_runs(log, 40)
    with pytest.raises(Killed):
        rebuild(log, ["messages"], on_progress=dying(3), batch=20)
    change(log, "update runs_es_rebuild.messages set message_id = message_id || 'x'")

    rebuild(log, ["messages"], restart=True)

    assert stored(log)["messages"] == folded(log)["messages"]


def test_a_killed_rebuild_begins_again_where_the_table_has_changed_since(log: EventLog) -> None:
    many_runs(log, 40)
    with pytest.raises(Killed):
        rebuild(log, ["messages"], on_progress=dying(3), batch=20)
    change(log, "alter table runs_es_rebuild.messages drop column metadata")  # as if a migration had brought it since

    rebuild(log, ["messages"])

    assert stored(log)["messages"] == folded(log)["messages"]


def test_the_log_can_be_read_from_a_replica(log: EventLog, empty_database_url: str) -> None:
    with psycopg.connect(log.url, autocommit=True) as connection:
        template = connection.info.dbname
    many_runs(log, 20)
    other = conninfo_to_dict(empty_database_url)["dbname"]
    with EventLog(empty_database_url.replace(str(other), template)):
        rebuild(log, source=log.url)
    assert stored(log) == folded(log)

    migrate(empty_database_url, "runs_es")
    with EventLog(empty_database_url) as elsewhere:
        append_one(elsewhere, created("another store"))
    with pytest.raises(StoreUnavailable, match="no replica"):
        rebuild(log, source=empty_database_url)


def test_a_fact_that_a_projection_cannot_take_ends_its_rebuild_and_leaves_the_old_rows(
    log: EventLog, projector: LiveProjector
) -> None:
    def picky(row: Any, recorded: Recorded) -> Any:
        if recorded.fact.thread_id == "t2":
            raise KeyError("what is this")
        return RUNS.evolve(row, recorded)

    assert projector.wait_for(many_runs(log, 20), 30)
    before = dumped(log)

    with pytest.raises(RebuildFailed, match=r"runs cannot take .* KeyError: 'what is this'"):
        rebuild(log, ["runs"], projections=[replace(RUNS, evolve=picky)])
    assert dumped(log) == before


def test_a_fact_that_cannot_be_read_ends_a_rebuild_loudly(log: EventLog) -> None:
    append_one(log, created("t"))
    strange = append_strange(log, "strange")

    with pytest.raises(UnknownTopic, match=r"strange\.thing"):
        rebuild(log)
    assert set(positions(log).values()) == {0}
    assert dumped(log)["threads"] == []
    assert strange > 1


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
