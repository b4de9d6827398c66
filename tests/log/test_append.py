"""What an append promises: who wins, who is refused, what is stored once, what cannot be changed."""

from __future__ import annotations

import itertools
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import Future
from datetime import datetime

import psycopg
import pytest

from runs_es.domain import (
    EventRecorded,
    Fact,
    LeaseLost,
    LimitExceeded,
    Provenance,
    Run,
    RunCancelled,
    ThreadCreated,
    WriteConflict,
    now,
)
from runs_es.log import segments, session
from runs_es.log.append import Append, Appended, PageItem
from runs_es.log.event_log import EventLog
from runs_es.log.pages import frame
from runs_es.log.run_writer import RunWriter
from tests.conftest import new_folder
from tests.log.cutting_proxy import CuttingProxy

BODY = frame("custom", b'{"x":1}')


@pytest.fixture
def log(database_url: str) -> Iterator[EventLog]:
    with EventLog(database_url) as log:
        yield log


def born(log: EventLog) -> tuple[str, Appended]:
    thread_id = str(uuid.uuid4())
    created = ThreadCreated(thread_id=thread_id, occurred_at=now())
    return thread_id, log.append(thread_id, [created], expected=0).result(10)


def started(log: EventLog) -> tuple[Run, Appended]:
    """A run that is running, in a thread of its own, and what its claim was told."""
    thread_id, appended = born(log)
    run = Run.create(run_id=str(uuid.uuid4()), thread_id=thread_id, assistant_id="a")
    run.mark_claimed(claim_id="claim-1")
    run.mark_started()
    return run, log.append(thread_id, run.pull_events(), expected=appended.revision, frames=0).result(10)


def writer_of(log: EventLog, run: Run, claimed: Appended) -> RunWriter:
    return RunWriter(log.writer, thread_id=run.thread_id, run_id=run.run_id, fence=claimed.fence, frames=claimed.frames)


def note(thread_id: str, text: str = "") -> Fact:
    return EventRecorded(thread_id=thread_id, run_id="r", occurred_at=now(), event_type="noted", content=text)


def refusal(future: Future[Appended] | None) -> BaseException | None:
    assert future is not None
    return future.exception(10)


def test_seq_counts_facts_and_frames_of_a_thread_from_one(log: EventLog) -> None:
    run, claimed = started(log)
    writer = writer_of(log, run, claimed)
    for _ in range(3):
        writer.publish(BODY)
    done = writer.record(log.item(note(run.thread_id))).result(10)
    rows = log.reader.rows_after(run.thread_id, 0, 100)
    assert next(row.first for row in rows) == 1
    assert all(a.last + 1 == b.first for a, b in itertools.pairwise(rows))
    assert rows[-1].last == done.last_seq == 8
    assert done.frames == 3


def test_a_thread_is_born_once(log: EventLog) -> None:
    thread_id, _ = born(log)
    created = ThreadCreated(thread_id=thread_id, occurred_at=now())
    assert isinstance(refusal(log.append(thread_id, [created], expected=0)), WriteConflict)


def test_a_command_that_has_not_folded_everything_is_refused(log: EventLog) -> None:
    thread_id, appended = born(log)
    log.append(thread_id, [note(thread_id)], expected=appended.revision).result(10)
    assert isinstance(refusal(log.append(thread_id, [note(thread_id)], expected=appended.revision)), WriteConflict)


def test_a_run_enqueued_behind_a_busy_worker_does_not_disturb_it(log: EventLog) -> None:
    run, claimed = started(log)
    writer = writer_of(log, run, claimed)
    second = Run.create(run_id="second", thread_id=run.thread_id, assistant_id="a")
    log.append(run.thread_id, second.pull_events(), expected=claimed.revision).result(10)
    writer.publish(BODY)
    assert refusal(writer.last()) is None


def test_a_cancel_request_raises_the_fence_and_the_workers_next_page_is_refused(log: EventLog) -> None:
    run, claimed = started(log)
    writer = writer_of(log, run, claimed)
    run.request_cancel()
    log.append(run.thread_id, run.pull_events(), expected=claimed.revision).result(10)
    writer.publish(BODY)
    assert isinstance(refusal(writer.last()), WriteConflict)
    with pytest.raises(LeaseLost):
        writer.publish(BODY)
    head = log.reader.head(run.thread_id)
    assert head is not None
    assert head.frames == 0


def test_a_refused_request_takes_those_queued_behind_it_along(log: EventLog) -> None:
    run, claimed = started(log)
    stale = RunWriter(log.writer, thread_id=run.thread_id, run_id=run.run_id, fence=claimed.fence, frames=7)
    with log.writer.lock:  # nothing is sent while we hold it, so both requests are queued together
        page = Append(run.thread_id, [PageItem(run.run_id, [BODY])], fence=claimed.fence, frames=7, writer=stale)
        fact = Append(run.thread_id, [log.item(note(run.thread_id))], fence=claimed.fence, writer=stale)
        futures = [log.writer.submit_locked(page), log.writer.submit_locked(fact)]
    assert all(isinstance(refusal(future), WriteConflict) for future in futures)
    assert log.reader.facts(run.thread_id, topics=["event.recorded"]) == []


def test_conflicting_transitions_of_one_run_let_exactly_one_win(log: EventLog) -> None:
    run, claimed = started(log)
    barrier = threading.Barrier(8)
    outcomes: list[BaseException | None] = []

    def finish(number: int) -> None:
        mine = run.copy()
        if number % 2:
            mine.mark_completed()
        else:
            mine.mark_cancelled()
        barrier.wait()
        outcomes.append(refusal(log.append(run.thread_id, mine.pull_events(), expected=claimed.revision)))

    threads = [threading.Thread(target=finish, args=(number,)) for number in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert sum(outcome is None for outcome in outcomes) == 1
    terminal = log.reader.facts(run.thread_id, topics=["run.completed", "run.failed", "run.cancelled"])
    assert len(terminal) == 1


def test_a_writer_whose_acknowledgement_was_lost_cannot_land_a_page_twice(database_url: str) -> None:
    with new_folder() as folder, CuttingProxy(database_url, folder) as proxy, EventLog(proxy.url) as log:
        run, claimed = started(log)
        writer = writer_of(log, run, claimed)
        writer.publish(BODY)
        assert refusal(writer.last()) is None
        proxy.arm(b"the lost one")
        writer.publish(frame("custom", b'"the lost one"'))
        lost = writer.last()
        assert lost is not None
        assert lost.result(20).last_seq == claimed.last_seq + 2
        assert proxy.cuts == 1
        writer.publish(frame("custom", b'"after"'))
        assert refusal(writer.last()) is None
        bodies = [body for row in log.reader.rows_after(run.thread_id, 0, 99) if row.is_page for body in row.bodies]
        assert bodies == [BODY, frame("custom", b'"the lost one"'), frame("custom", b'"after"')]


def test_a_fact_whose_acknowledgement_was_lost_is_in_the_log_once(database_url: str) -> None:
    with new_folder() as folder, CuttingProxy(database_url, folder) as proxy, EventLog(proxy.url) as log:
        run, claimed = started(log)
        writer = writer_of(log, run, claimed)
        proxy.arm(b"the lost one")
        first = writer.record(log.item(note(run.thread_id, "the lost one"), idem_key="note-1")).result(20)
        assert proxy.cuts == 1
        facts = log.reader.facts(run.thread_id, topics=["event.recorded"])
        assert [fact.seq for fact in facts] == [first.last_seq]


def test_a_connection_lost_while_one_request_is_looked_up_is_not_the_others_trouble(database_url: str) -> None:
    with new_folder() as folder, CuttingProxy(database_url, folder) as proxy, EventLog(proxy.url) as log:
        thread_id, _appended = born(log)
        other, _appended = born(log)
        first = log.append(thread_id, [note(thread_id, "one")], expected=1, idempotency_key="key").result(20)
        proxy.arm(b"state = $1 from events_facts")  # what only the look-up says
        with log.writer.lock:  # one batch
            again = log.append(thread_id, [note(thread_id, "two")], expected=2, idempotency_key="key")
            beside = log.append(other, [note(other)], expected=1)

        assert refusal(beside) is None
        assert (again.result(20).first_seq, again.result(20).repeated) == (first.first_seq, True)
        assert proxy.cuts == 1


def test_the_same_idempotency_key_gives_the_first_result_again(log: EventLog) -> None:
    thread_id, _appended = born(log)
    first = log.append(thread_id, [note(thread_id, "one")], expected=1, idempotency_key="key").result(10)
    again = log.append(thread_id, [note(thread_id, "two")], expected=2, idempotency_key="key").result(10)
    assert (again.first_seq, again.repeated) == (first.first_seq, True)
    assert len(log.reader.facts(thread_id, topics=["event.recorded"])) == 1


def test_who_and_why_stand_on_every_fact(log: EventLog) -> None:
    thread_id, _appended = born(log)
    who = Provenance(actor="user:ada", reason="because", correlation_id="c", causation_id="d")
    log.append(thread_id, [note(thread_id), note(thread_id)], expected=1, provenance=who).result(10)
    assert [fact.provenance for fact in log.reader.facts(thread_id)[1:]] == [who, who]


def test_recorded_times_never_go_back_within_a_thread_whatever_the_clock_does(log: EventLog, database_url: str) -> None:
    thread_id, _ = born(log)
    future = datetime.fromisoformat("2999-01-01T00:00:00+00:00")
    with session.connect(database_url, "runs_es", "test") as connection:
        connection.execute("update heads set at = %s where thread_id = %s", (future, thread_id))
    appended = log.append(thread_id, [note(thread_id)], expected=1).result(10)
    assert datetime.fromisoformat(appended.recorded_at) == future


def test_a_fact_over_the_limit_is_refused_with_the_settings_name(database_url: str) -> None:
    with EventLog(database_url, max_event_bytes=1000) as log:
        thread_id, _ = born(log)
        with pytest.raises(LimitExceeded, match="RUNS_ES_MAX_FRAME_BYTES"):
            log.append(thread_id, [note(thread_id, "x" * 2000)], expected=1)


@pytest.mark.parametrize(
    "statement",
    [
        "update events set state = ''",
        "delete from events",
        "delete from heads",
        "truncate heads",
        "truncate events",
        "truncate events_facts",
        "truncate events_p1",
        "delete from events_facts",
    ],
)
def test_what_is_stored_cannot_be_changed_by_accident(log: EventLog, database_url: str, statement: str) -> None:
    run, claimed = started(log)
    writer = writer_of(log, run, claimed)
    writer.publish(BODY)
    assert refusal(writer.last()) is None
    with (
        session.connect(database_url, "runs_es", "test") as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"),
    ):
        connection.execute(statement)


def test_pages_go_to_the_new_segment_and_the_old_one_can_be_dropped_while_writing(
    log: EventLog, database_url: str
) -> None:
    run, claimed = started(log)
    writer = writer_of(log, run, claimed)
    writer.publish(BODY)
    assert refusal(writer.last()) is None
    with session.connect(database_url, "runs_es", "test") as connection:
        assert segments.rotate(connection) == 2
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("truncate events_p2")
        segments.drop(connection, 1)
        with pytest.raises(ValueError, match="current"):
            segments.drop(connection, 2)
    writer.publish(BODY)  # the writer still believes in segment 1
    assert refusal(writer.last()) is None
    pages = [row for row in log.reader.rows_after(run.thread_id, 0, 99) if row.is_page]
    assert [row.first_frame for row in pages] == [1]
    assert log.reader.available(run.thread_id, run.run_id) == (pages[0].first, pages[0].last)


def test_one_poisoned_request_does_not_take_its_batch_along(log: EventLog) -> None:
    good, bad = born(log)[0], born(log)[0]
    log.append(bad, [note(bad)], expected=1, idempotency_key="taken").result(10)
    with log.writer.lock:
        # Its second fact's key is taken: only the unique index sees that, and it refuses the whole statement.
        items = [log.item(note(bad), idem_key="free"), log.item(note(bad), idem_key="taken")]
        poisoned = log.writer.submit_locked(Append(bad, list(items), expected=2))
        healthy = log.writer.submit_locked(Append(good, [log.item(note(good))], expected=1))
    assert refusal(healthy) is None
    assert refusal(poisoned) is not None


def test_a_terminal_fact_shuts_the_run_for_its_own_writer_too(log: EventLog) -> None:
    run, claimed = started(log)
    writer = writer_of(log, run, claimed)
    cancelled = RunCancelled(thread_id=run.thread_id, run_id=run.run_id, occurred_at=now())
    writer.record(log.item(cancelled)).result(10)
    writer.publish(BODY)
    assert isinstance(refusal(writer.last()), WriteConflict)


def test_the_hash_chain_links_each_request_to_the_one_before(log: EventLog, database_url: str) -> None:
    run, claimed = started(log)
    writer = writer_of(log, run, claimed)
    writer.publish(BODY)
    assert refusal(writer.last()) is None
    with session.connect(database_url, "runs_es", "test") as connection:
        links = connection.execute(
            "select link from events where thread_id = %s and link is not null order by seq", (run.thread_id,)
        ).fetchall()
        chain = connection.execute("select chain from heads where thread_id = %s", (run.thread_id,)).fetchone()
    assert len({link for (link,) in links}) == 3  # birth, claim, page
    assert links[-1] == chain


def test_two_logs_hear_of_each_others_commits(database_url: str) -> None:
    heard = threading.Event()
    with EventLog(database_url) as ours, EventLog(database_url) as other:
        polled = threading.Event()
        other.watch(on_hints=lambda hints: heard.set() if "watched" in hints else None, on_poll=polled.set)
        assert polled.wait(10)
        ours.append("watched", [ThreadCreated(thread_id="watched", occurred_at=now())], expected=0).result(10)
        assert heard.wait(10)
