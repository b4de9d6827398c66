"""The database has no room: who waits, who is told, and that order and fence hold when there is room again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest

from runs_es.domain import EventRecorded, StoreUnavailable, ThreadCreated, WriteConflict, now
from runs_es.log.event_log import EventLog
from runs_es.log.pages import frame
from tests.log.recording import Recording

# What PostgreSQL says when a table cannot grow, said by a trigger.
_NO_ROOM = """
create function runs_es.no_room() returns trigger language plpgsql as $$
begin
  raise exception 'could not extend file: No space left on device' using errcode = 'disk_full';
end $$
"""


@pytest.fixture
def log(database_url: str) -> Iterator[EventLog]:
    with EventLog(database_url) as log:
        yield log


@contextmanager
def no_room(url: str, table: str) -> Iterator[None]:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(_NO_ROOM)
        connection.execute(
            f"create trigger no_room before insert on runs_es.{table} for each row execute function runs_es.no_room();"
            f"alter table runs_es.{table} enable always trigger no_room"
        )
        yield
        connection.execute(f"drop trigger no_room on runs_es.{table}")


def noted(recording: Recording, kind: str) -> EventRecorded:
    thread_id, run_id = recording.thread_id, recording.run.run_id
    return EventRecorded(thread_id=thread_id, run_id=run_id, occurred_at=now(), event_type=kind, content=kind)


def publish(recording: Recording, text: bytes) -> None:
    recording.writer.publish(frame("custom", b'"%b"' % text))


def test_an_attempt_waits_for_room_and_all_that_it_queued_follows_in_order(log: EventLog, database_url: str) -> None:
    recordings = [Recording(log) for _ in range(3)]
    with no_room(database_url, "events_p1"):
        for number in range(50):
            for recording in recordings:
                publish(recording, b"%d" % number)
        noting = [recording.writer.record(log.item(noted(recording, "after"))) for recording in recordings]
        other = Recording(log)  # facts have room, and overtake
        assert "No space left" in str(log.writer.waits_for_room)
        assert not any(future.done() for future in noting)
        assert other.thread_id
    for recording, future in zip(recordings, noting, strict=True):
        last = future.result(20).last_seq
        rows = log.reader.rows_after(recording.thread_id, 0, 1000)
        bodies = [body for row in rows if row.is_page for body in row.bodies]
        assert bodies == [frame("custom", b'"%d"' % number) for number in range(50)]
        assert [row.first for row in rows] == [1, *(row.last + 1 for row in rows[:-1])]
        assert (rows[-1].last, rows[-1].is_page) == (last, False)
    publish(recordings[0], b"and on")
    assert recordings[0].finish() > 0
    assert log.writer.waits_for_room is None


def test_a_command_is_told_at_once_and_can_be_given_again(log: EventLog, database_url: str) -> None:
    born = ThreadCreated(thread_id="t", occurred_at=now())
    with no_room(database_url, "events_facts"), pytest.raises(StoreUnavailable, match="no room, nothing was written"):
        log.append("t", [born], expected=0).result(10)
    assert log.append("t", [born], expected=0).result(10).first_seq == 1


def test_one_without_room_does_not_take_the_others_of_its_batch_along(log: EventLog, database_url: str) -> None:
    first, second = Recording(log), Recording(log)
    with no_room(database_url, "events_p1"):
        with log.writer.lock:  # so that they go in one batch
            publish(first, b"x")
            paged = first.writer.record(log.item(noted(first, "with a page")))
            plain = second.writer.record(log.item(noted(second, "without")))
        assert plain.result(10).last_seq > 0
        assert not paged.done()
    assert paged.result(10).last_seq > 0


def test_what_waited_is_refused_when_its_run_was_taken_over_meanwhile(log: EventLog, database_url: str) -> None:
    recording = Recording(log)
    with no_room(database_url, "events_p1"):
        publish(recording, b"late")
        held = recording.writer.last()
        assert held is not None
        recording.run.requeue()
        facts = recording.run.pull_events()
        head = log.reader.head(recording.thread_id)
        assert head is not None
        log.append(recording.thread_id, facts, expected=head.revision).result(10)  # not behind what waits
        publish(recording, b"later")
    behind = recording.writer.last()
    assert behind is not None
    for future in (held, behind):
        with pytest.raises(WriteConflict):
            future.result(10)
    assert recording.writer.refused


def test_a_log_that_closes_without_room_says_so_to_all_who_wait(log: EventLog, database_url: str) -> None:
    recording = Recording(log)
    with no_room(database_url, "events_p1"):
        publish(recording, b"x")
        held = recording.writer.last()
        assert held is not None
        log.writer.close(5)
        with pytest.raises(StoreUnavailable):
            held.result(0)
