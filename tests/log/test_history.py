"""A log that is not the one written last is told, refused, and after a restore none of its lost numbers comes again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from psycopg import conninfo, sql

from runs_es.domain import CursorLost, Provenance, StoreUnavailable, ThreadCreated, ThreadUpdated, now
from runs_es.log import history, restored, session
from runs_es.log.decisions import Decision, Decisions
from runs_es.log.event_log import EventLog
from runs_es.log.history import HistoryGuard, State, StateQuery
from runs_es.log.inspection import inspect_log
from runs_es.log.numbers import WIDE
from runs_es.log.retention import erase_thread
from runs_projections.past import AsOf, Past
from runs_projections.readers import ProjectedEvents
from tests.conftest import SCHEMA, new_database
from tests.streams.test_streams import Recording


def created(thread_id: str) -> ThreadCreated:
    return ThreadCreated(thread_id=thread_id, occurred_at=now())


def updated(thread_id: str) -> ThreadUpdated:
    return ThreadUpdated(thread_id=thread_id, occurred_at=now(), metadata={"k": 1})


@contextmanager
def restored_copy(url: str) -> Iterator[str]:
    """The database as a backup of this moment restores it: in another database, with other numbers of its own."""
    name = str(conninfo.conninfo_to_dict(url)["dbname"])
    with psycopg.connect(conninfo.make_conninfo(url, dbname="postgres"), autocommit=True) as connection:
        connection.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", (name,))
    with new_database(conninfo.make_conninfo(url, dbname="postgres"), name) as copy:
        yield copy


def say_restored(url: str, **options: Any) -> int:
    with restored.connect(url, SCHEMA) as connection:
        return restored.restore_numbers(connection, **options)


def findings(url: str) -> list[tuple[str, str]]:
    with session.connect(url, SCHEMA, "check") as connection:
        return [(each.check, each.detail) for each in inspect_log(connection).findings.kept]


def grown(log: EventLog, thread_id: str, facts: int) -> None:
    log.append(thread_id, [created(thread_id)], expected=0).result(10)
    for revision in range(1, facts):
        log.append(thread_id, [updated(thread_id)], expected=revision).result(10)


def test_a_restored_database_is_not_written_to_until_an_operator_has_spoken(database_url: str) -> None:
    with EventLog(database_url) as log:
        grown(log, "t", 3)
    with restored_copy(database_url) as copy:
        with EventLog(copy) as log:
            with pytest.raises(StoreUnavailable, match=r"another history.*database \d+, was \d+.*runs-es restored"):
                log.append("t", [updated("t")], expected=3).result(10)
            assert log.reader.head("t").seq == 3  # type: ignore[union-attr]  (it can be read)
            assert [check for check, _ in findings(copy)] == ["history is known"]
            assert say_restored(copy) == 1
            until(lambda: log.history.epoch == 1 and log.history.refusal is None)
            log.append("t", [updated("t")], expected=4).result(10)  # the same process goes on
            assert log.history.refusal is None
        with EventLog(copy) as log:
            log.append("t", [updated("t")], expected=5).result(10)
            assert [each.seq for each in log.reader.facts("t")] == [1, 2, 3, 3 + WIDE, 4 + WIDE, 5 + WIDE]
        assert findings(copy) == []
    with EventLog(database_url) as log:
        log.append("t", [updated("t")], expected=3).result(10)  # the original goes on as ever


def test_what_was_not_lost_goes_on_with_the_next_number(database_url: str) -> None:
    with EventLog(database_url) as log:
        grown(log, "t", 2)
    with restored_copy(database_url) as copy:
        with EventLog(copy) as log:
            with pytest.raises(StoreUnavailable):
                log.append("t", [updated("t")], expected=2).result(10)
            with restored.connect(copy, SCHEMA) as connection:
                restored.say_not_lost(connection)
            until(lambda: log.history.refusal is None)
            assert log.append("t", [updated("t")], expected=2).result(10).last_seq == 3
        assert findings(copy) == []


@pytest.mark.parametrize(("policy", "last"), [("not-lost", 3), ("restored", 4 + WIDE - 1)])
def test_a_setting_speaks_for_the_operator(database_url: str, policy: str, last: int) -> None:
    with EventLog(database_url) as log:
        grown(log, "t", 2)
    with restored_copy(database_url) as copy, EventLog(copy, on_new_history=policy) as log:
        decisions = Decisions(log)
        until(lambda: not refused(lambda: decisions.make("t", lambda thread, head: Decision([updated("t")]))))
        head = log.reader.head("t")
        assert head is not None
        assert head.seq == last


def refused(call: Callable[[], object]) -> bool:
    try:
        call()
    except StoreUnavailable:
        return True
    return False


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_restore_that_was_killed_anywhere_goes_on(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restored, "_BATCH", 2)
    threads = [f"t{number}" for number in range(7)]
    with EventLog(database_url) as log:
        for thread_id in threads:
            grown(log, thread_id, 2)

        def killed(threads_done: int) -> None:
            raise KeyboardInterrupt

        rounds = 0
        while True:
            try:
                say_restored(database_url, on_progress=killed)
                break
            except KeyboardInterrupt:
                rounds += 1
                until(lambda: refused(lambda: log.append("t0", [updated("t0")], expected=9).result(10)))
        assert rounds == 4  # a batch of two each, and one of one
        assert [log.reader.head(each).seq for each in threads] == [2 + WIDE] * 7  # type: ignore[union-attr]
        assert [each.seq for each in log.reader.facts("t6")] == [1, 2, 2 + WIDE]
    assert findings(database_url) == []


def test_a_thread_made_after_a_restore_begins_above_all_lost_numbers(database_url: str) -> None:
    with EventLog(database_url) as log:
        grown(log, "old", 2)
        say_restored(database_url)
        until(lambda: log.history.epoch == 1 and log.history.refusal is None)
        born = log.append("new", [created("new"), updated("new")], expected=0).result(10)
        assert (born.first_seq, born.last_seq) == (WIDE + 1, WIDE + 2)
        rows = log.reader.rows_after("new", 0, 10)
        assert [(row.first, row.last) for row in rows] == [(1, WIDE + 1), (WIDE + 2, WIDE + 2)]
        assert [log.reader.is_of_lost_history("new", seq) for seq in (1, WIDE, WIDE + 1, WIDE + 2)] == [
            True,
            True,
            False,
            False,
        ]
        say_restored(database_url, lost_restores=2)
        assert log.reader.head("new").seq == 4 * WIDE + 2  # type: ignore[union-attr]
        assert log.reader.head("old").seq == 4 * WIDE + 2  # type: ignore[union-attr]
    assert findings(database_url) == []


def test_lists_and_moments_of_a_lost_number_are_refused(database_url: str) -> None:
    with EventLog(database_url) as log:
        recording = Recording(log)
        recording.publish(4)
        recording.settle()
        thread_id, head = recording.thread_id, log.reader.head(recording.thread_id)
        assert head is not None
        say_restored(database_url)
        until(lambda: log.history.epoch == 1)
        events, past = ProjectedEvents(log), Past(log.reader)
        for lost in (head.seq + 1, head.seq + 150, head.seq + WIDE - 1):
            with pytest.raises(CursorLost):
                events.list_events_by_run(thread_id, None, after_seq=lost)
            with pytest.raises(CursorLost):
                past.seq_at(thread_id, AsOf(seq=lost))
        for kept in (head.seq - 1, head.seq):
            found = events.list_events_by_run(thread_id, None, after_seq=kept)
            assert found[-1].event_type == "thread.restored"
            assert past.seq_at(thread_id, AsOf(seq=kept)) == kept
        assert events.list_events_by_run(thread_id, None, after_seq=head.seq + WIDE) == []
        before = events.list_events_by_run(thread_id, None, before_seq=head.seq + WIDE + 1, limit=2)
        assert [each.seq for each in before] == [head.seq, head.seq + WIDE]
        assert [each.seq for each in events.list_events_by_run(thread_id, None, before_seq=head.seq + 7, limit=1)] == [
            head.seq
        ]


def test_a_command_decided_on_the_lost_history_is_decided_again(database_url: str) -> None:
    """The fold of the lost third fact has the revision that the restored thread has once it is raised."""
    with EventLog(database_url) as log:
        decisions = Decisions(log)
        decisions.make("t", lambda thread, head: Decision([created("t")]))
        decisions.make("t", lambda thread, head: Decision([updated("t")]))
        seen: list[Any] = []

        def decide(thread: Any, head: Any) -> Decision:
            seen.append((thread.metadata, head.seq))
            return Decision([updated("t")])

        # As a restore leaves it: the second fact is gone, and the thread is raised.
        with psycopg.connect(database_url) as connection:
            connection.execute(sql.SQL("set search_path to {}").format(sql.Identifier(SCHEMA)))
            connection.execute("set local runs_es.maintenance = 'test'")
            connection.execute("delete from events where thread_id = 't' and revision = 2")
            connection.execute("update heads set head = 1, revision = 1 where thread_id = 't'")
        say_restored(database_url)
        decisions.make("t", decide)
        assert seen[-1] == ({}, 1 + WIDE)
        assert log.reader.head("t").revision == 3  # type: ignore[union-attr]


def test_an_attempt_of_the_lost_history_writes_no_more(database_url: str) -> None:
    with EventLog(database_url) as log:
        recording = Recording(log)
        recording.publish(2)
        recording.settle()
        say_restored(database_url)
        recording.writer.publish(b"event: x\r\ndata: 1\r\n")
        until(lambda: recording.writer.refused)
        until(lambda: recording.writer.generation != log.history.generation)


def test_an_erased_thread_keeps_what_tells_its_lost_numbers(database_url: str) -> None:
    with EventLog(database_url) as log:
        grown(log, "t", 3)
        say_restored(database_url)
        erased = erase_thread(log, "t", provenance=Provenance(reason="asked for"))
        assert erased.seq == 4 + WIDE
        assert [each.fact.topic for each in log.reader.facts("t")] == ["thread.restored", "thread.erased"]
        assert log.reader.facts("t")[1].fact.events == 4  # type: ignore[attr-defined]
        assert log.reader.is_of_lost_history("t", 150)
    assert findings(database_url) == []


def test_a_thread_made_after_a_restore_tells_lost_numbers_after_its_erasure_too(database_url: str) -> None:
    with EventLog(database_url) as log:
        say_restored(database_url)
        until(lambda: log.history.epoch == 1 and log.history.refusal is None)
        grown(log, "t", 2)
        say_restored(database_url)
        until(lambda: log.history.epoch == 2 and log.history.refusal is None)
        for _ in range(2):
            erase_thread(log, "t", provenance=Provenance(reason="asked for"))
            Decisions(log).make("t", lambda thread, head: Decision([created("t")]))
        seqs = [each.seq for each in log.reader.facts("t")]
        assert seqs == [2 * WIDE + each for each in (2, 3, 5, 6)]  # restored, erased, erased, created
        for lost in (1, 3, WIDE, WIDE + 3, 2 * WIDE + 1):
            assert log.reader.is_of_lost_history("t", lost), lost
        for known in (WIDE + 1, WIDE + 2, *seqs):
            assert not log.reader.is_of_lost_history("t", known), known


def test_a_process_that_has_appended_what_is_missing_notices_it_itself(database_url: str) -> None:
    """A copy of the cluster's files, started without recovery to another timeline, lies at the same place."""
    with EventLog(database_url) as log:
        grown(log, "t", 3)
        with psycopg.connect(database_url) as connection:
            connection.execute("select setval('runs_es.event_position', 1)")
            connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where application_name like '%writer%' and datname = current_database()"
            )
        until(lambda: log.history.refusal is not None)
        with pytest.raises(StoreUnavailable, match="ends at position 1, and had acknowledged 3"):
            log.append("t", [updated("t")], expected=3).result(10)
        say_restored(database_url)
        until(lambda: log.history.refusal is None)
        log.append("t", [updated("t")], expected=4).result(10)


def test_an_append_that_is_acknowledged_while_the_state_is_read_is_no_doubt(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with session.connect(database_url, SCHEMA, "looker") as connection:
        guard = HistoryGuard()
        guard.look(connection)
        read = StateQuery.read

        def read_then_append(query: StateQuery, over: Any) -> State:
            state = read(query, over)
            guard.acknowledged(state.position + 1)  # as the writer's thread, before this one goes on
            return state

        monkeypatch.setattr(StateQuery, "read", read_then_append)
        guard.look(connection)
        assert guard.refusal is None
        assert connection.execute("select doubt from history").fetchone() == (None,)


def test_a_database_that_only_reads_is_looked_at_and_what_it_does_not_show_is_kept(
    database_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As a standby does: it shows no timeline, and takes no write."""
    with session.connect(database_url, SCHEMA, "looker") as connection:
        HistoryGuard().look(connection)
        written = connection.execute("select system_identifier, timeline from history").fetchone()
        assert written is not None
        assert None not in written
        monkeypatch.setattr(history, "_TIMELINE", "null::bigint")
        for mode in ("on", "off"):
            connection.execute(sql.SQL("set default_transaction_read_only = {}").format(sql.Literal(mode)))
            guard = HistoryGuard()
            guard.look(connection)
            assert (guard.epoch, guard.refusal) == (0, None)
            assert connection.execute("select system_identifier, timeline from history").fetchone() == written
        connection.execute("update history set database_oid = 1")
        connection.execute("set default_transaction_read_only = on")
        guard = HistoryGuard()
        for _ in range(3):
            guard.look(connection)
        assert "runs-es restored" in str(guard.refusal)
        assert caplog.text.count("nothing is written any more") == 1
