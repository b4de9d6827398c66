"""`runs-es check` finds what is wrong with a log, and nothing where nothing is."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator

import psycopg
import pytest

from runs_es.domain import Provenance, RunCreated, RunStarted, ThreadCreated, ThreadErased, now
from runs_es.log import inspection, segments, session
from runs_es.log.event_log import EventLog
from runs_es.log.inspection import Entry, LogReport, ThreadInspection, inspect_log
from runs_es.log.retention import erase_thread
from tests.projections.histories import random_stories
from tests.streams.test_streams import Recording


@pytest.fixture
def log(database_url: str) -> Iterator[EventLog]:
    with EventLog(database_url) as opened:
        yield opened


def streamed(log: EventLog) -> str:
    """A thread with a run that ended, of four pages."""
    recording = Recording(log)
    for _ in range(3):
        recording.publish(4)
        recording.settle()
    recording.finish()
    return recording.thread_id


def checked(log: EventLog) -> LogReport:
    with session.connect(log.url, log.schema, "check") as connection:
        return inspect_log(connection)


def found(log: EventLog) -> list[tuple[str, str]]:
    return [(each.check, each.place) for each in checked(log).findings.kept]


def damage(log: EventLog, *statements: str) -> None:
    with psycopg.connect(log.url) as connection:
        connection.execute("set search_path to runs_es")
        connection.execute("set local runs_es.maintenance = 'test'")
        for statement in statements:
            connection.execute(statement)  # type: ignore[arg-type]


def test_an_empty_log_is_well(log: EventLog) -> None:
    report = checked(log)
    assert (report.findings.count, report.threads, report.facts) == (0, 0, 0)


def test_whatever_legally_happened_is_well(log: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "_ROWS", 7)
    monkeypatch.setattr(inspection, "_THREADS", 3)
    tellers = random_stories(log, 3, threads=20, steps=300)
    for _ in range(3):
        streamed(log)
    told: list[int] = []
    with session.connect(log.url, log.schema, "check") as connection:
        assert inspection.thread_count(connection) == 23
        report = inspect_log(connection, told.append)
    assert report.findings.kept == []
    facts = sum(len(teller.facts) for teller in tellers)
    assert (report.threads, report.facts, report.pages) == (23, facts + 3 * 5, 3 * 4)
    assert told[-1] == 23
    assert report.cut == 0


def test_what_retention_and_erasure_took_is_well(log: EventLog) -> None:
    cut, erased = streamed(log), streamed(log)
    with session.connect(log.url, "runs_es", "test") as connection:
        segments.rotate(connection)
        segments.drop(connection, 1)
    of_a_run = streamed(log)
    damage(log, f"delete from events where segment > 0 and thread_id = '{of_a_run}'")
    erase_thread(log, erased, provenance=Provenance(reason="asked for"))
    report = checked(log)
    assert report.findings.kept == []
    assert report.cut == 2
    assert cut != of_a_run


def test_an_erasure_that_was_cut_short_is_well(log: EventLog) -> None:
    thread = streamed(log)
    head = log.reader.head(thread)
    assert head is not None
    log.append(thread, [ThreadErased(thread_id=thread, occurred_at=now())], expected=head.revision).result(10)
    damage(log, f"delete from events where thread_id = '{thread}' and seq in (2, 3)")
    assert found(log) == []


# What is done to a thread {t}, and which check finds it.
DAMAGES = (
    ("delete from events where thread_id = '{t}' and revision = 3", "seqs are contiguous"),
    ("delete from events where thread_id = '{t}' and revision = 1", "seqs are contiguous"),
    ("delete from events where thread_id = '{t}' and topic = 'run.completed'", "heads equal rows"),
    ("delete from events where thread_id = '{t}' and segment > 0 and first_frame = 5", "seqs are contiguous"),
    ("delete from events where thread_id = '{t}' and segment > 0 and first_frame = 9", "seqs are contiguous"),
    ("update events set n = n + 1 where thread_id = '{t}' and first_frame = 5", "seqs are contiguous"),
    ("update events set first_frame = 6 where thread_id = '{t}' and first_frame = 5", "pages are in step"),
    (
        "update events set recorded_at = recorded_at - interval '1 day' where thread_id = '{t}' and seq = 4",
        "times rise",
    ),
    ("update events set position = 0 where thread_id = '{t}' and revision = 2", "positions rise"),
    ("update events set topic = 'run.failed' where thread_id = '{t}' and topic = 'run.started'", "one end a run"),
    ("update events set topic = 'run.invented' where thread_id = '{t}' and revision = 3", "facts are known"),
    ("update heads set head = head - 1 where thread_id = '{t}'", "heads equal rows"),
    ("update heads set head = head + 1 where thread_id = '{t}'", "heads equal rows"),
    ("update heads set revision = revision + 1 where thread_id = '{t}'", "heads equal rows"),
    ("update heads set frames = frames + 1 where thread_id = '{t}'", "heads equal rows"),
    ("delete from heads where thread_id = '{t}'", "heads equal rows"),
)


def test_each_damage_to_a_thread_is_found_there_and_nowhere_else(log: EventLog) -> None:
    threads = [streamed(log) for _ in DAMAGES]
    well = [streamed(log) for _ in range(3)]
    assert found(log) == []

    damage(log, *(statement.format(t=thread) for (statement, _), thread in zip(DAMAGES, threads, strict=True)))

    findings = found(log)
    for (statement, check), thread in zip(DAMAGES, threads, strict=True):
        assert (check, f"thread {thread}") in findings, statement
    assert not {f"thread {thread}" for thread in well} & {place for _, place in findings}


def test_damage_to_the_log_as_a_whole_is_found(log: EventLog) -> None:
    first, second = streamed(log), streamed(log)
    damage(log, f"delete from events where thread_id = '{first}'")
    assert ("heads equal rows", f"thread {first}") in found(log)

    with psycopg.connect(log.url, autocommit=True) as connection:
        connection.execute("set search_path to runs_es")
        connection.execute("drop index events_facts_position")
    assert found(log)[-2:] == [
        ("guards are on", "index events_facts_position"),
        ("heads equal rows", f"thread {first}"),
    ]
    third = streamed(log)
    damage(
        log,
        f"update events set position = (select max(position) from events where thread_id = '{second}')"
        f" where thread_id = '{third}' and revision = 1",
    )
    assert "positions are unique" in {check for check, _ in found(log)}
    damage(log, "select setval('event_position', 3)")
    assert ("positions are unique", "sequence event_position") in found(log)


def test_a_guard_that_was_taken_off_is_found(log: EventLog) -> None:
    with psycopg.connect(log.url, autocommit=True) as connection:
        connection.execute("set search_path to runs_es")
        connection.execute("alter table heads disable trigger heads_kept")
    assert found(log) == [("guards are on", "table heads")]


def test_a_log_that_is_written_to_meanwhile_is_well(log: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "_ROWS", 50)
    thread, stop, written = "busy", threading.Event(), [0]
    born = log.append(thread, [ThreadCreated(thread_id=thread, occurred_at=now())], expected=0).result(10)

    def write() -> None:
        revision = born.revision
        while not stop.is_set():
            fact = RunCreated(thread_id=thread, run_id=f"r{uuid.uuid4()}", occurred_at=now(), assistant_id="a")
            revision = log.append(thread, [fact], expected=revision).result(10).revision
            written[0] = revision

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(10):
            assert checked(log).findings.kept == []
    finally:
        stop.set()
        writer.join()
    assert written[0] > 20


def test_of_many_findings_the_first_are_kept_and_all_are_counted(
    log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspection, "_MOST", 5)
    log.append("t", [ThreadCreated(thread_id="t", occurred_at=now())], expected=0).result(10)
    facts = [RunStarted(thread_id="t", run_id="r", occurred_at=now()) for _ in range(8)]
    log.append("t", facts, expected=1).result(10)
    damage(log, "update events set topic = 'run.invented' where topic = 'run.started'")
    report = checked(log)
    assert (len(report.findings.kept), report.findings.count) == (5, 8)


def entry(
    seq: int, segment: int, *, n: int = 1, revision: int | None = None, page_segment: int | None = None, facts: int = 1
) -> Entry:
    topic = "run.streamed" if segment else "run.started"
    first_frame = None if revision else seq - n - facts
    return Entry("t", seq, segment, n, "r", topic, revision, revision, first_frame, page_segment, None)


def test_frames_that_another_process_wrote_to_a_segment_about_to_be_closed_are_cut_with_it_not_lost() -> None:
    """A process had seen segment 2 when another still wrote to 1, which was closed and dropped since."""
    inspected = ThreadInspection("t", frozenset({2}))
    for each in (
        entry(1, 0, revision=1, page_segment=1),
        entry(2, 0, revision=2, page_segment=2),
        entry(6, 2, n=2, facts=2),  # 3 and 4 went with segment 1
    ):
        inspected.feed(each)
    assert inspected.was_cut
    assert inspected.findings == []


def test_frames_missing_between_pages_of_a_kept_segment_are_lost() -> None:
    inspected = ThreadInspection("t", frozenset({2}))
    for each in (entry(1, 0, revision=1, page_segment=2), entry(3, 2, n=2), entry(8, 2, n=2)):
        inspected.feed(each)
    assert [each.detail for each in inspected.findings] == ["seqs 4 to 6 are missing, and retention did not take them"]
