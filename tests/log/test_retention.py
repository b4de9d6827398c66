"""Retention: what goes, what stays, and that nobody who writes or reads meanwhile is wronged."""

from __future__ import annotations

import itertools
import logging
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from psycopg import Connection

from runs_es.domain import ConflictError, Provenance, RunStatus, ThreadNotFound, WriteConflict
from runs_es.log import retention, segments
from runs_es.log.decisions import Decision, Decisions
from runs_es.log.event_log import EventLog
from runs_es.log.pages import frame
from runs_es.log.retention import Action, RetentionBusy, RetentionTimer
from runs_es.log.segments import State
from runs_es.settings import Settings
from runs_es.streams.cursor import End, Frames, Gap, RunStreams
from runs_es.streams.hub import Hub
from runs_projections.live import LiveProjector
from runs_projections.wiring import open_store
from tests.log.recording import Recording, ended, made_older

DAY = 86_400
WHO = Provenance(actor="user:ada", reason="asked to be forgotten")


@pytest.fixture
def log(database_url: str) -> Iterator[EventLog]:
    with EventLog(database_url) as log:
        yield log


@pytest.fixture
def connection(database_url: str) -> Iterator[Connection[Any]]:
    with retention.connect(database_url, "runs_es") as connection:
        yield connection


def state(connection: Connection[Any]) -> list[tuple[Any, ...]]:
    """All that retention could change."""
    return connection.execute(
        "select c.relname, c.relkind from pg_class c join pg_namespace n on n.oid = c.relnamespace"
        " where n.nspname = 'runs_es' union all select 'segment', segment::text::\"char\" from segments order by 1, 2"
    ).fetchall()


def seqs(log: EventLog, thread_id: str) -> list[tuple[int, int]]:
    return [(row.first, row.last) for row in log.reader.rows_after(thread_id, 0, 100_000)]


async def joined(log: EventLog, recording: Recording, after: int = 0) -> list[Any]:
    """What a join gets: seqs of frames, then `End` or `Gap`."""
    with ThreadPoolExecutor(2) as threads:
        streams = RunStreams(Hub(log, ring_bytes=0), log.reader, threads)
        stream = await streams.open(recording.thread_id, recording.run.run_id, after)
        found: list[Any] = []
        async for step in stream.steps():
            found += [seq for seq, _ in step.items()] if isinstance(step, Frames) else [step]
    return found


def test_without_a_setting_nothing_is_dropped(log: EventLog, connection: Connection[Any], settings: Settings) -> None:
    ended(log)
    segments.rotate(connection)
    made_older(connection, 10_000)
    assert retention.apply(connection, settings).drops == []
    assert not retention.is_asked_for(settings)


def test_a_segment_goes_when_its_newest_page_is_too_old_and_not_before(
    log: EventLog, connection: Connection[Any], settings: Settings
) -> None:
    settings = settings.model_copy(update={"keep_streams_days": 7.0})
    ended(log)
    segments.rotate(connection)
    made_older(connection, 6)
    assert retention.apply(connection, settings).drops == []
    made_older(connection, 1.5)
    (dropped,) = retention.apply(connection, settings).drops
    assert (dropped.segment.number, dropped.rows, dropped.runs) == (1, 1, 1)
    assert [segment.number for segment in segments.listing(connection)] == [2]


def test_over_its_size_the_oldest_go_until_the_rest_fits_and_space_comes_back(
    log: EventLog, connection: Connection[Any], settings: Settings
) -> None:
    for _ in range(3):
        recording = Recording(log)
        for _ in range(20):
            recording.publish(text=uuid.uuid4().hex * 2_000)
        recording.finish()
        segments.rotate(connection)
    before = segments.listing(connection)
    keep = sum(segment.size for segment in before) - before[0].size
    done = retention.apply(connection, settings.model_copy(update={"keep_streams_bytes": keep}))
    assert [step.segment.number for step in done.drops] == [1]
    assert done.bytes_back == before[0].size
    after = segments.listing(connection)
    assert sum(segment.size for segment in after) == keep
    gone = connection.execute("select to_regclass('events_p1')").fetchone()
    assert gone == (None,)


@pytest.mark.parametrize("change", [{"segment_bytes": 1}, {"keep_streams_bytes": 4}, {"keep_streams_days": 4 / DAY}])
def test_a_segment_that_is_large_or_old_is_followed_by_a_new_one(
    log: EventLog, connection: Connection[Any], settings: Settings, change: dict[str, Any]
) -> None:
    recording = Recording(log)
    recording.publish()
    connection.execute("update segments set created_at = created_at - interval '1 minute'")
    assert retention.apply(connection, settings.model_copy(update=change)).rotates
    assert segments.current(connection) == 2


def test_an_empty_segment_is_not_followed_by_another(connection: Connection[Any], settings: Settings) -> None:
    made_older(connection, 100)
    assert not retention.apply(connection, settings).rotates


def test_a_closed_segment_takes_no_page_and_a_writer_that_did_not_know_loses_nothing(
    log: EventLog, connection: Connection[Any]
) -> None:
    recording = Recording(log)
    recording.publish()
    segments.rotate(connection)
    recording.publish()  # this process still believes in segment 1
    recording.finish()
    held = connection.execute("select segment, count(*) from events where segment > 0 group by 1 order by 1")
    assert held.fetchall() == [(1, 1), (2, 1)]
    with pytest.raises(ValueError, match="current"):
        segments.close(connection, 2)


def test_the_first_batch_after_a_rotation_goes_out_whole_again(
    log: EventLog, connection: Connection[Any], caplog: pytest.LogCaptureFixture
) -> None:
    recordings = [Recording(log) for _ in range(16)]
    segments.rotate(connection)
    with caplog.at_level(logging.INFO, "runs_es.log.writer"), log.writer.lock:
        for recording in recordings:
            recording.writer.publish(frame("custom", b"1"))
        futures = [recording.writer.last() for recording in recordings]
    assert all(future is not None and future.result(10).last_seq > 0 for future in futures)
    assert connection.execute("select count(*) from events_p2").fetchone() == (16,)
    assert "one by one" not in caplog.text


def test_pages_of_a_run_that_is_still_running_stay_and_so_does_all_that_is_newer(
    log: EventLog, connection: Connection[Any], settings: Settings
) -> None:
    settings = settings.model_copy(update={"keep_streams_days": 1.0})
    running = Recording(log)
    running.publish()
    segments.rotate(connection)
    ended(log)
    segments.rotate(connection)
    made_older(connection, 30)
    planned = retention.apply(connection, settings)
    assert planned.drops == []
    assert [step.why.partition("; ")[2] for step in planned.steps[:2]] == [
        "holds pages of a run that is still running",
        "waits for segment 1",
    ]
    running.finish()
    assert [step.segment.number for step in retention.apply(connection, settings).drops] == [1, 2]


def test_a_dry_run_tells_the_same_and_changes_nothing(
    log: EventLog, connection: Connection[Any], settings: Settings
) -> None:
    settings = settings.model_copy(update={"keep_streams_days": 1.0, "segment_bytes": 1})
    for _ in range(2):
        spanning = Recording(log)
        spanning.publish()
        segments.rotate(connection)
        spanning.publish()
        spanning.finish()
    made_older(connection, 30)
    before = state(connection)
    planned = retention.plan(connection, settings)
    assert [step.action for step in planned.steps] == [Action.DROP, Action.DROP, Action.ROTATE]
    assert [step.runs for step in planned.drops] == [1, 2]
    assert planned.runs == 2  # one of them loses frames of both
    assert state(connection) == before
    done = retention.apply(connection, settings)
    assert [(step.action, step.why, step.rows) for step in done.steps] == [
        (step.action, step.why, step.rows) for step in planned.steps
    ]


async def test_a_join_that_needs_a_cut_page_gets_a_gap_with_exact_bounds_and_the_rest_is_exact(
    log: EventLog, connection: Connection[Any], settings: Settings
) -> None:
    recording = Recording(log)
    cut = recording.publish(5)
    segments.rotate(connection)
    last = recording.publish(4)
    end = recording.finish()
    untouched = ended(log, 2)
    made_older(connection, 30)
    retention.apply(connection, settings.model_copy(update={"keep_streams_days": 1.0}))
    run_id = recording.run.run_id
    for after in (0, cut - 3, cut - 1):
        assert await joined(log, recording, after) == [Gap(run_id, after, cut + 1, end)]
    for after in range(cut, end):
        assert await joined(log, recording, after) == [*range(after + 1, last + 1), End(end)]
    assert len(await joined(log, untouched)) == 3


async def test_a_run_whose_every_page_is_cut_still_has_its_end(
    log: EventLog, connection: Connection[Any], settings: Settings
) -> None:
    recording = ended(log, 5)
    end = seqs(log, recording.thread_id)[-1][1]
    segments.rotate(connection)
    made_older(connection, 30)
    retention.apply(connection, settings.model_copy(update={"keep_streams_days": 1.0}))
    assert await joined(log, recording) == [Gap(recording.run.run_id, 0, end, end)]
    assert await joined(log, recording, end - 1) == [End(end)]


def test_appends_go_on_while_segments_come_and_go(
    log: EventLog, connection: Connection[Any], settings: Settings
) -> None:
    settings = settings.model_copy(update={"segment_bytes": 1, "keep_streams_bytes": 1})
    stop, failures = threading.Event(), list[BaseException]()
    written: list[Recording] = []
    rounds = threading.Semaphore(0)

    def write() -> None:
        try:
            while not stop.is_set():
                recording = Recording(log)
                written.append(recording)
                for _ in range(5):
                    recording.publish(3)
                recording.finish()
                rounds.release()
        except BaseException as error:
            failures.append(error)
            rounds.release()

    writers = [threading.Thread(target=write) for _ in range(4)]
    for writer in writers:
        writer.start()
    dropped = 0
    for _ in range(12):
        for _ in range(4):
            assert rounds.acquire(timeout=30)
        dropped += len(retention.apply(connection, settings).drops)
    stop.set()
    for writer in writers:
        writer.join()
    assert failures == []
    assert dropped >= 5
    assert len(segments.listing(connection)) <= 6
    for recording in written:
        rows = seqs(log, recording.thread_id)
        head = log.reader.head(recording.thread_id)
        assert head is not None
        assert (head.seq, head.frames, rows[-1][1]) == (20, 15, 20)  # created, 3 of the run, 15 frames, its end
        kept = [row for row in rows if row[0] > 4]
        assert all(a[1] + 1 == b[0] for a, b in itertools.pairwise(kept))  # cut at the front only


@pytest.mark.parametrize("halfway", [State.DETACHING, State.DETACHED, State.GONE])
def test_a_drop_that_was_killed_halfway_is_finished_by_the_next_run(
    log: EventLog, connection: Connection[Any], settings: Settings, database_url: str, halfway: State
) -> None:
    ended(log)
    segments.rotate(connection)
    if halfway is State.DETACHING:
        killed_while_detaching(connection, database_url)
    else:
        connection.execute("alter table events detach partition events_p1 concurrently")
    if halfway is State.GONE:
        connection.execute("drop table events_p1")
    assert [segment.state for segment in segments.listing(connection)] == [halfway, State.ATTACHED]
    planned = retention.apply(connection, settings)  # also when no setting asks for it any more
    assert [step.why for step in planned.drops] == ["its drop was begun before"]
    assert [segment.number for segment in segments.listing(connection)] == [2]
    ended(log)
    assert retention.apply(connection, settings.model_copy(update={"segment_bytes": 1})).rotates


def killed_while_detaching(connection: Connection[Any], url: str) -> None:
    """Detach segment 1 while somebody reads the log, and end the session that waits for the reader."""
    with psycopg.connect(url) as reader, retention.connect(url, "runs_es") as killed:
        reader.execute("select count(*) from runs_es.events")

        def detach() -> None:
            with pytest.raises(psycopg.OperationalError):
                killed.execute("alter table events detach partition events_p1 concurrently")

        with ThreadPoolExecutor(1) as pool:
            detaching = pool.submit(detach)
            while segments.listing(connection)[0].state is not State.DETACHING:
                assert not detaching.done()
            connection.execute("select pg_terminate_backend(%s, 10000)", (killed.info.backend_pid,))
            detaching.result(10)


def test_a_long_reader_holds_up_the_drop_only_and_the_next_run_finishes_it(
    log: EventLog, connection: Connection[Any], settings: Settings, database_url: str
) -> None:
    settings = settings.model_copy(update={"keep_streams_days": 1.0})
    ended(log)
    segments.rotate(connection)
    made_older(connection, 30)
    connection.execute("set lock_timeout = '100ms'")
    with psycopg.connect(database_url) as reader:
        assert reader.execute("select count(*) from runs_es.events").fetchone() == (6,)
        with pytest.raises(psycopg.errors.LockNotAvailable):
            retention.apply(connection, settings)
        ended(log)
    done = retention.apply(connection, settings)
    assert [(step.segment.number, step.why) for step in done.drops] == [(1, "its drop was begun before")]


def test_one_process_at_a_time(log: EventLog, connection: Connection[Any], settings: Settings) -> None:
    with (
        retention.connect(log.url, log.schema) as other,
        retention._alone(other),
        pytest.raises(RetentionBusy, match="try again"),
    ):
        retention.apply(connection, settings)
    retention.apply(connection, settings)


def test_the_timer_applies_what_the_settings_say_and_can_be_closed(
    log: EventLog, connection: Connection[Any], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended(log)
    segments.rotate(connection)
    made_older(connection, 30)
    idle = RetentionTimer(log, settings)
    idle.start()
    idle.close()
    applied = threading.Event()
    apply = retention.apply

    def counted(*arguments: Any) -> Any:
        try:
            return apply(*arguments)
        finally:
            applied.set()

    monkeypatch.setattr(retention, "apply", counted)
    timer = RetentionTimer(log, settings.model_copy(update={"keep_streams_days": 1.0}))
    timer.start()
    assert applied.wait(20)
    timer.close()
    assert [segment.number for segment in segments.listing(connection)] == [2]


def test_an_open_store_applies_retention_by_itself(
    log: EventLog, connection: Connection[Any], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    applied = threading.Event()
    monkeypatch.setattr(retention, "apply", lambda *_: applied.set() or retention.Plan([], 0))
    with open_store(settings.model_copy(update={"keep_streams_bytes": 1 << 30}), work=False):
        assert applied.wait(20)


# --- pages of certain runs ---


async def test_pages_of_runs_that_ended_so_are_deleted_whole_and_others_stay(
    log: EventLog, connection: Connection[Any]
) -> None:
    failed, running, done = Recording(log), Recording(log), ended(log)
    for recording in (failed, running):
        recording.publish(2)
        segments.rotate(connection)
        recording.publish(3)
    end = failed.finish(error="boom")
    wanted = {"statuses": [RunStatus.ERROR]}
    assert retention.delete_pages(connection, **wanted, older_than_days=1.0) == retention.Deleted(0, 0)
    assert retention.delete_pages(connection, **wanted, dry_run=True) == retention.Deleted(1, 2)
    assert len(await joined(log, failed)) == 6
    assert retention.delete_pages(connection, **wanted) == retention.Deleted(1, 2)
    assert retention.delete_pages(connection, **wanted) == retention.Deleted(0, 0)
    assert await joined(log, failed) == [Gap(failed.run.run_id, 0, end, end)]
    assert len(await joined(log, done)) == 4
    running.finish()
    assert len(await joined(log, running)) == 6


def test_pages_of_one_thread_are_deleted_but_for_those_of_a_run_that_runs(
    log: EventLog, connection: Connection[Any]
) -> None:
    done, other, running = ended(log), ended(log), Recording(log)
    running.publish()
    assert retention.delete_pages(connection, thread_id=done.thread_id) == retention.Deleted(1, 1)
    assert retention.delete_pages(connection, thread_id=running.thread_id) == retention.Deleted(0, 0)
    assert len(seqs(log, other.thread_id)) == 6
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("delete from events where segment > 0")


# --- erasing ---


def test_an_erased_thread_keeps_its_head_and_the_fact_that_says_who_and_why(
    log: EventLog, connection: Connection[Any]
) -> None:
    gone, other = ended(log), ended(log)
    before = seqs(log, other.thread_id)
    erased = retention.erase_thread(log, gone.thread_id, provenance=WHO)
    assert erased.rows == 6
    (fact,) = log.reader.facts(gone.thread_id)
    assert (fact.fact.topic, fact.seq, fact.provenance) == ("thread.erased", erased.seq, WHO)
    assert seqs(log, gone.thread_id) == [(erased.seq, erased.seq)]
    head = log.reader.head(gone.thread_id)
    assert head is not None
    assert (head.seq, head.frames) == (erased.seq, 3)
    assert seqs(log, other.thread_id) == before
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("delete from events")  # the mark ended with its transaction


def test_read_models_lose_an_erased_thread(log: EventLog, connection: Connection[Any]) -> None:
    gone = ended(log)
    with LiveProjector(log) as projector:
        assert projector.wait_for(log.reader.last_position(), 20)
        count = "select (select count(*) from runs) + (select count(*) from threads_v2)"
        assert connection.execute(count).fetchone() == (2,)
        erased = retention.erase_thread(log, gone.thread_id, provenance=WHO)
        assert projector.wait_for(erased.position, 20)
        assert connection.execute(count).fetchone() == (0,)


def test_the_id_of_an_erased_thread_can_be_created_again_and_its_seq_goes_on(log: EventLog) -> None:
    gone = ended(log)
    decisions = Decisions(log)
    decisions.look(gone.thread_id)
    erased = retention.erase_thread(log, gone.thread_id, provenance=WHO)
    again = decisions.make(gone.thread_id, lambda thread, _: Decision([thread.create()]))
    assert again.appended is not None
    assert again.appended.first_seq == erased.seq + 1
    twice = retention.erase_thread(log, gone.thread_id, provenance=WHO)
    assert (twice.seq, twice.rows) == (erased.seq + 2, 1)
    topics = [fact.fact.topic for fact in log.reader.facts(gone.thread_id)]
    assert topics == ["thread.erased", "thread.erased"]


def test_a_thread_with_an_active_run_is_erased_by_force_only_and_its_worker_is_refused(log: EventLog) -> None:
    busy = Recording(log)
    busy.publish()
    with pytest.raises(ConflictError, match="cancel"):
        retention.erase_thread(log, busy.thread_id, provenance=WHO)
    erased = retention.erase_thread(log, busy.thread_id, provenance=WHO, force=True)
    with pytest.raises(WriteConflict):
        busy.publish()
    assert seqs(log, busy.thread_id) == [(erased.seq, erased.seq)]


def test_an_erasure_that_was_killed_before_the_deletion_is_finished_by_the_next_call(
    log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = ended(log)

    class Killed(Exception):
        pass

    def killed(*_: Any, **__: Any) -> Any:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(retention.session, "connect", killed)
        with pytest.raises(Killed):
            retention.erase_thread(log, gone.thread_id, provenance=WHO)
    assert len(seqs(log, gone.thread_id)) == 7
    erased = retention.erase_thread(log, gone.thread_id, provenance=WHO)
    assert seqs(log, gone.thread_id) == [(erased.seq, erased.seq)]
    assert retention.erase_thread(log, gone.thread_id, provenance=WHO).rows == 0


def test_an_id_that_is_created_again_during_its_erasure_keeps_what_is_new(
    log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = ended(log)
    connect = retention.session.connect

    def created_meanwhile(*arguments: Any) -> Any:
        Decisions(log).make(gone.thread_id, lambda thread, _: Decision([thread.create()]))
        return connect(*arguments)

    monkeypatch.setattr(retention.session, "connect", created_meanwhile)
    erased = retention.erase_thread(log, gone.thread_id, provenance=WHO)
    assert seqs(log, gone.thread_id) == [(erased.seq, erased.seq), (erased.seq + 1, erased.seq + 1)]


def test_a_thread_that_never_was_cannot_be_erased(log: EventLog) -> None:
    with pytest.raises(ThreadNotFound):
        retention.erase_thread(log, "nobody", provenance=WHO)
