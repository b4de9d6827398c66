"""The run's state machine, by example and by property."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runs_es.domain import (
    TERMINAL_RUN_STATUSES,
    CancelAction,
    CancelPolicy,
    ConflictError,
    DisconnectMode,
    EventSeq,
    InvalidRunTransition,
    LeaseLost,
    MultitaskDecision,
    MultitaskPolicy,
    MultitaskStrategy,
    Run,
    RunCancelled,
    RunClaimed,
    RunCompleted,
    RunCreated,
    RunDomainError,
    RunFailed,
    RunScope,
    RunStarted,
    RunStatus,
    Thread,
    ThreadNotFound,
    ThreadStatus,
    is_terminal_status,
    now,
)

AT = "2026-06-01T10:00:00+00:00"
LATER = "2026-06-01T10:00:05+02:00"


def pending(**values: Any) -> Run:
    return Run.create(run_id="run-1", thread_id="thread-1", assistant_id="agent", created_at=AT, **values)


def running() -> Run:
    run = pending()
    run.mark_started(at=AT)
    return run


def test_a_new_run_is_pending_and_says_so_once() -> None:
    run = pending(metadata={"a": 1}, kwargs={"input": None})
    assert (run.status, run.created_at, run.updated_at) == (RunStatus.PENDING, AT, AT)
    (created,) = run.pull_events()
    assert isinstance(created, RunCreated)
    assert (created.assistant_id, created.metadata, created.occurred_at) == ("agent", {"a": 1}, AT)
    assert run.pull_events() == ()


def test_a_run_goes_from_pending_over_running_to_success() -> None:
    run = running()
    run.mark_completed(at=LATER)
    assert [type(event) for event in run.pull_events()] == [RunCreated, RunStarted, RunCompleted]
    assert (run.is_terminal, run.updated_at) == (True, LATER)


def test_failure_keeps_its_text_and_timeout_is_a_status_of_its_own() -> None:
    failed, late = running(), running()
    failed.mark_failed("boom", at=LATER)
    late.mark_timed_out("too slow", at=LATER)
    assert (failed.status, failed.error) == (RunStatus.ERROR, "boom")
    assert (late.status, late.error) == (RunStatus.TIMEOUT, "too slow")
    event = late.pull_events()[-1]
    assert isinstance(event, RunFailed)
    assert event.status is RunStatus.TIMEOUT


def test_cancelling_keeps_the_action() -> None:
    run = pending()
    run.mark_cancelled(action=CancelAction.ROLLBACK, at=LATER)
    event = run.pull_events()[-1]
    assert isinstance(event, RunCancelled)
    assert (run.status, event.action) == (RunStatus.INTERRUPTED, CancelAction.ROLLBACK)


def test_to_the_same_status_nothing_happens() -> None:
    run = running()
    run.mark_completed(at=AT)
    run.pull_events()
    run.mark_completed(at=LATER)
    assert (run.pull_events(), run.updated_at) == ((), AT)


def test_a_pending_run_cannot_succeed() -> None:
    with pytest.raises(InvalidRunTransition) as error:
        pending().mark_completed()
    assert (error.value.current, error.value.target) == (RunStatus.PENDING, RunStatus.SUCCESS)
    assert isinstance(error.value, RunDomainError)


@pytest.mark.parametrize("field", ["run_id", "thread_id", "assistant_id"])
@pytest.mark.parametrize("blank", ["", "   ", "\t\n"])
def test_a_blank_id_is_refused_by_name(field: str, blank: str) -> None:
    values = {"run_id": "r", "thread_id": "t", "assistant_id": "a", field: blank}
    with pytest.raises(ValueError, match=f"^{field} must not be empty$"):
        Run.create(**values)


def test_space_around_ids_is_stripped() -> None:
    run = Run.create(run_id=" r ", thread_id="\tt", assistant_id="a\n")
    assert (run.run_id, run.thread_id, run.assistant_id) == ("r", "t", "a")


@pytest.mark.parametrize("moment", ["yesterday", "2026-06-01T10:00:00", ""])
def test_a_time_without_offset_is_refused(moment: str) -> None:
    with pytest.raises(ValueError, match="created_at"):
        Run.create(run_id="r", thread_id="t", assistant_id="a", created_at=moment)


def test_metadata_and_kwargs_are_copies() -> None:
    metadata: dict[str, Any] = {"deep": {"list": [1]}}
    run = pending(metadata=metadata, kwargs=metadata)
    metadata["deep"]["list"].append(2)
    run.metadata["deep"]["list"].append(3)
    (created,) = run.pull_events()
    assert isinstance(created, RunCreated)
    assert created.metadata == {"deep": {"list": [1]}}
    assert run.kwargs == {"deep": {"list": [1]}}


def test_a_lost_attempt_goes_back_to_pending_and_counts() -> None:
    run = pending()
    run.mark_claimed(claim_id="c1")
    run.mark_started()
    run.requeue()
    assert run.status is RunStatus.PENDING
    run.mark_claimed(claim_id="c2")
    run.mark_started()
    assert (run.attempt, run.claim_id) == (2, "c2")
    assert [event.attempt for event in run.pull_events() if isinstance(event, RunClaimed)] == [1, 2]


def test_the_first_cancel_request_counts_unless_a_later_one_is_to_roll_back() -> None:
    run = running()
    run.request_cancel(action=CancelAction.INTERRUPT)
    run.request_cancel(action=CancelAction.INTERRUPT)
    assert run.cancel_requested is CancelAction.INTERRUPT
    run.request_cancel(action=CancelAction.ROLLBACK)
    run.request_cancel(action=CancelAction.INTERRUPT)
    assert run.cancel_requested is CancelAction.ROLLBACK
    run.mark_cancelled()
    with pytest.raises(InvalidRunTransition):
        run.request_cancel()


MOVES = {
    "start": lambda run: run.mark_started(),
    "complete": lambda run: run.mark_completed(interrupts={"t": [{"id": "i", "value": 1}]}),
    "fail": lambda run: run.mark_failed("x"),
    "time out": lambda run: run.mark_timed_out("x"),
    "cancel": lambda run: run.mark_cancelled(),
    "request cancel": lambda run: run.request_cancel(),
    "claim": lambda run: run.mark_claimed(claim_id="c"),
    "requeue": lambda run: run.requeue(),
    "delete": lambda run: run.mark_deleted(),
}


@given(st.lists(st.sampled_from(sorted(MOVES)), max_size=12))
def test_whatever_is_tried_the_fold_of_the_facts_is_the_run(moves: list[str]) -> None:
    run = pending(metadata={"k": [1]}, kwargs={"input": {"x": None}}, model_name="m")
    ended_as: RunStatus | None = None
    for move in moves:
        with contextlib.suppress(InvalidRunTransition):
            MOVES[move](run)
        if ended_as is not None:
            assert run.status is ended_as, "nothing follows a terminal status"
        if run.is_terminal:
            ended_as = run.status
    facts = run.pull_events()
    folded = Run.fold(facts)
    assert folded is not None
    assert vars(folded) == vars(run)
    assert sum(isinstance(fact, RunCompleted | RunFailed | RunCancelled) for fact in facts) <= 1


@pytest.mark.parametrize(
    ("strategy", "busy"),
    [
        (MultitaskStrategy.REJECT, MultitaskDecision.REJECT),
        (MultitaskStrategy.ENQUEUE, MultitaskDecision.ENQUEUE),
        (MultitaskStrategy.INTERRUPT, MultitaskDecision.CANCEL_EXISTING),
        (MultitaskStrategy.ROLLBACK, MultitaskDecision.CANCEL_EXISTING),
    ],
)
def test_multitask_decides_by_strategy_and_by_what_is_in_flight(
    strategy: MultitaskStrategy, busy: MultitaskDecision
) -> None:
    assert MultitaskPolicy(strategy).decide([]) is MultitaskDecision.ALLOW
    assert MultitaskPolicy(strategy).decide([running()]) is busy


def test_only_rollback_rolls_back() -> None:
    assert CancelPolicy(CancelAction.ROLLBACK).rolls_back_checkpoint
    assert not CancelPolicy(CancelAction.INTERRUPT).rolls_back_checkpoint


def test_the_words_are_those_of_the_wire() -> None:
    assert [status.value for status in RunStatus] == [
        "pending", "running", "success", "error", "timeout", "interrupted",
    ]  # fmt: skip
    assert DisconnectMode.continue_.value == "continue"
    assert {scope.value for scope in RunScope} == {"stateful", "stateless", "temporary_thread"}
    assert {s for s in RunStatus if is_terminal_status(s)} == TERMINAL_RUN_STATUSES


def test_event_seq_is_ordered_and_never_negative() -> None:
    assert EventSeq(1).next() == EventSeq(2)
    assert EventSeq(1) < EventSeq(2)
    assert EventSeq(0).value == 0
    for wrong in (-1, True, "1", 1.5):
        with pytest.raises(ValueError, match="EventSeq"):
            EventSeq(wrong)  # type: ignore[arg-type]


def thread_with(*runs: Run) -> Thread:
    thread = Thread("thread-1")
    thread.apply(thread.create())
    for run in runs:
        for fact in run.pull_events():
            thread.apply(fact)
    return thread


def test_a_thread_admits_by_strategy() -> None:
    with pytest.raises(ThreadNotFound):
        Thread("nowhere").admit(MultitaskStrategy.ENQUEUE)
    with pytest.raises(ConflictError):
        thread_with(running()).admit(MultitaskStrategy.REJECT)
    assert thread_with(running()).admit(MultitaskStrategy.ENQUEUE) is MultitaskDecision.ENQUEUE


def test_runs_of_a_thread_are_due_in_order_of_creation() -> None:
    first, second = pending(), Run.create(run_id="run-2", thread_id="thread-1", assistant_id="a")
    thread = thread_with(first, second)
    due = thread.next_due()
    assert due is not None
    assert due.run_id == "run-1"
    for fact in thread.cancel("run-1"):
        thread.apply(fact)
    due = thread.next_due()
    assert due is not None
    assert due.run_id == "run-2"


def test_a_delayed_run_is_not_due_before_its_time() -> None:
    thread = thread_with(pending(due_at="2999-01-01T00:00:00+00:00"))
    assert thread.next_due(now()) is None
    assert thread.next_due("3000-01-01T00:00:00+00:00") is not None


def test_a_claim_of_another_is_not_ours() -> None:
    thread = thread_with(pending())
    due = thread.next_due()
    assert due is not None
    for fact in thread.claim(due, claim_id="mine", worker_id="w", frames=0, max_attempts=3):
        thread.apply(fact)
    assert thread.claimed("run-1", "mine").status is RunStatus.RUNNING
    with pytest.raises(LeaseLost):
        thread.claimed("run-1", "another")


def test_a_run_that_keeps_losing_its_worker_fails_in_the_end() -> None:
    thread = thread_with(pending())
    for attempt in range(1, 5):
        due = thread.next_due()
        if due is None:
            break
        for fact in thread.claim(due, claim_id=f"c{attempt}", worker_id="w", frames=0, max_attempts=3):
            thread.apply(fact)
    assert thread.last_ended is not None
    assert (thread.last_ended.status, thread.last_ended.attempt) == (RunStatus.ERROR, 3)
    assert thread.status is ThreadStatus.ERROR


def test_deleting_a_thread_ends_its_runs_and_the_id_may_live_again() -> None:
    thread = thread_with(running())
    topics = [fact.topic for fact in thread.delete()]
    assert topics == ["run.cancel_requested", "run.cancelled", "thread.deleted"]
    for fact in thread.delete():
        thread.apply(fact)
    assert (thread.exists, thread.active) == (False, {})
    thread.apply(thread.create(metadata={"again": True}))
    assert thread.metadata == {"again": True}


def test_a_temporary_thread_goes_with_its_run() -> None:
    thread = thread_with(pending(scope=RunScope.TEMPORARY_THREAD))
    assert [fact.topic for fact in thread.cancel("run-1")][-1] == "thread.deleted"


def test_importing_the_domain_loads_no_third_party_package() -> None:
    script = (
        "import sys; before = set(sys.modules); import runs_es.domain;"
        "new = {n.partition('.')[0] for n in set(sys.modules) - before};"
        "print(sorted(n for n in new if n != 'runs_es' and n not in sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "[]"
