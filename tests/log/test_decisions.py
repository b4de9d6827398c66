"""Decisions on threads that a process has seen before: guessed, and never wrong for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from runs_es.domain import Run, Thread, ThreadNotFound
from runs_es.log.decisions import Decision, Decisions
from runs_es.log.event_log import EventLog
from runs_es.log.reader import Head


@pytest.fixture
def logs(database_url: str) -> Iterator[tuple[EventLog, EventLog]]:
    """Two processes' views of one log."""
    with EventLog(database_url) as ours, EventLog(database_url) as theirs:
        yield ours, theirs


def born(thread: Thread, _: Head) -> Decision:
    return Decision([thread.create(metadata={"n": 0})])


def counted(thread: Thread, _: Head) -> Decision:
    return Decision([thread.update({"n": thread.metadata["n"] + 1})])


def reads(log: EventLog, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Threads of which the life is read, from now on."""
    read: list[str] = []
    lifecycle = log.reader.lifecycle

    def noted(thread_id: str, after_revision: int = 0) -> Any:
        read.append(thread_id)
        return lifecycle(thread_id, after_revision)

    monkeypatch.setattr(log.reader, "lifecycle", noted)
    return read


def metadata(log: EventLog) -> Any:
    return Decisions(log).look("t")[0].metadata


def test_who_has_written_a_thread_decides_on_it_again_without_reading(
    logs: tuple[EventLog, EventLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, _ = logs
    decisions = Decisions(ours)
    decisions.make("t", born)
    read = reads(ours, monkeypatch)
    for _ in range(3):
        decisions.make("t", counted)
    assert read == []
    assert metadata(ours) == {"n": 3}


def test_a_guess_that_is_out_of_date_is_made_again(logs: tuple[EventLog, EventLog]) -> None:
    ours, theirs = (Decisions(log) for log in logs)
    ours.make("t", born)
    for decisions in (theirs, ours, theirs, theirs, ours):
        decisions.make("t", counted)
    assert metadata(logs[0]) == {"n": 5}


def test_a_refusal_is_never_a_guess(logs: tuple[EventLog, EventLog]) -> None:
    ours, theirs = (Decisions(log) for log in logs)
    ours.make("t", born)
    ours.make("t", lambda thread, _: Decision(thread.delete()))
    theirs.make("t", born)
    ours.make("t", counted)
    assert metadata(logs[0]) == {"n": 1}
    theirs.make("t", lambda thread, _: Decision(thread.delete()))
    with pytest.raises(ThreadNotFound):
        ours.make("t", counted)


def test_that_there_is_nothing_to_do_is_never_a_guess(logs: tuple[EventLog, EventLog]) -> None:
    ours, theirs = (Decisions(log) for log in logs)
    ours.make("t", born)
    theirs.make("t", counted)

    def even(thread: Thread, head: Head) -> Decision:
        return counted(thread, head) if thread.metadata["n"] else Decision([])

    assert ours.make("t", even).appended is not None


def test_what_is_done_outside_the_log_is_not_done_for_a_guess(logs: tuple[EventLog, EventLog]) -> None:
    ours, theirs = (Decisions(log) for log in logs)
    ours.make("t", born)
    theirs.make("t", counted)
    prepared: list[int] = []

    def with_effect(thread: Thread, head: Head) -> Decision:
        return Decision(counted(thread, head).facts, prepare=lambda: prepared.append(thread.metadata["n"]))

    ours.make("t", with_effect)
    assert prepared == [1]


def test_a_thread_that_a_worker_writes_to_is_read(
    logs: tuple[EventLog, EventLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, _ = logs
    decisions = Decisions(ours)
    created = Run.create(run_id="r", thread_id="t", assistant_id="a")
    decisions.make("t", lambda thread, head: Decision([*born(thread, head).facts, *created.pull_events()]))

    def claimed(thread: Thread, head: Head) -> Decision:
        run = thread.next_due()
        assert run is not None
        return Decision(thread.claim(run, claim_id="c", worker_id="w", frames=head.frames, max_attempts=3))

    read = reads(ours, monkeypatch)
    decisions.make("t", claimed)
    assert read == []
    decisions.make("t", counted)
    assert read == ["t"]
