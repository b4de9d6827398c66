"""The rules of the design that this store began as: names, defaults and types as they stood there."""

from __future__ import annotations

import inspect
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import runs_es
import runs_es.domain
from runs_es import (
    AssistantId,
    CancelAction,
    CancelPolicy,
    CancelRunCommand,
    CreateRunCommand,
    DisconnectMode,
    EventSeq,
    GetRunQuery,
    InvalidRunTransition,
    JoinRunStreamCommand,
    ListRunMessagesQuery,
    ListRunsQuery,
    MultitaskDecision,
    MultitaskPolicy,
    MultitaskStrategy,
    Run,
    RunCancelled,
    RunCompleted,
    RunCreated,
    RunFailed,
    RunId,
    RunMessageView,
    RunScope,
    RunSnapshot,
    RunStarted,
    RunStatus,
    ThreadId,
)

AT = "2026-06-01T10:00:00+00:00"


def new(**values: Any) -> Run:
    return Run.create(run_id=RunId("r"), thread_id=ThreadId("t"), **values)


def test_the_enums_are_the_same_objects_wherever_they_are_imported_from() -> None:
    for name in ("RunStatus", "DisconnectMode", "RunScope", "MultitaskStrategy", "CancelAction"):
        assert getattr(runs_es, name) is getattr(runs_es.domain, name)
    assert (RunStatus.pending, DisconnectMode.continue_, RunScope.temporary_thread) == (
        "pending",
        "continue",
        "temporary_thread",
    )


def test_a_created_run_is_pending_and_hands_its_event_over_once_as_a_tuple() -> None:
    run = new(
        assistant_id=AssistantId("lead"),
        scope=RunScope.stateful,
        multitask_strategy=MultitaskStrategy.reject,
        metadata={"from": "here"},
        kwargs={"input": {"messages": []}},
        created_at=AT,
    )
    assert (run.status, run.run_id, run.thread_id, run.assistant_id) == (RunStatus.pending, "r", "t", "lead")
    assert (run.created_at, run.updated_at) == (AT, AT)
    events = run.pull_events()
    assert isinstance(events, tuple)
    assert [(type(event), event.metadata) for event in events if isinstance(event, RunCreated)] == [
        (RunCreated, {"from": "here"})
    ]
    assert run.pull_events() == ()


def test_a_run_needs_no_assistant_and_goes_from_pending_over_running_to_success() -> None:
    run = new()
    assert run.assistant_id is None
    run.pull_events()
    run.mark_started(at=AT)
    run.mark_completed(at=AT)
    assert (run.status, run.updated_at) == (RunStatus.success, AT)
    assert [type(event) for event in run.pull_events()] == [RunStarted, RunCompleted]


def test_failures_and_cancels_keep_what_they_were_told() -> None:
    failed, cancelled = new(), new()
    failed.mark_started()
    failed.mark_failed("boom", at=AT)
    last = failed.pull_events()[-1]
    assert isinstance(last, RunFailed)
    assert (failed.status, last.status, last.error) == (RunStatus.error, RunStatus.error, "boom")
    cancelled.mark_cancelled(action=CancelAction.rollback)
    last = cancelled.pull_events()[-1]
    assert isinstance(last, RunCancelled)
    assert (cancelled.status, last.action) == (RunStatus.interrupted, CancelAction.rollback)


def test_failures_and_timeouts_need_no_text() -> None:
    failed, late = new(), new()
    failed.mark_failed()
    late.mark_timed_out()
    assert [(run.status, run.error) for run in (failed, late)] == [(RunStatus.error, None), (RunStatus.timeout, None)]


def test_what_has_ended_ends_no_second_time_and_says_from_what_to_what() -> None:
    run = new()
    run.mark_started()
    run.mark_completed()
    with pytest.raises(InvalidRunTransition) as refused:
        run.mark_failed("late")
    assert (refused.value.current, refused.value.target) == (RunStatus.success, RunStatus.error)


def test_sequence_numbers_count_from_nothing_and_blank_ids_are_named() -> None:
    assert EventSeq(1).next() == EventSeq(2)
    assert EventSeq(0) < EventSeq(1)
    with pytest.raises(ValueError, match="EventSeq"):
        EventSeq(-1)
    with pytest.raises(ValueError, match="run_id"):
        Run.create(run_id=RunId(" "), thread_id=ThreadId("t"))
    with pytest.raises(ValueError, match="assistant_id"):
        new(assistant_id=" ")


@pytest.mark.parametrize("kind", [RunCreated, RunStarted, RunCompleted, RunFailed, RunCancelled])
def test_an_event_that_says_no_time_occurs_now(kind: type[Any]) -> None:
    before = datetime.now(UTC)
    occurred = datetime.fromisoformat(kind(run_id="r", thread_id="t").occurred_at)
    assert timedelta(0) <= occurred - before < timedelta(minutes=1)


def test_events_need_only_ids() -> None:
    created = RunCreated(run_id="r", thread_id="t")
    assert (created.assistant_id, created.metadata) == (None, {})
    assert RunFailed(run_id="r", thread_id="t", status=RunStatus.timeout).error is None
    assert RunCancelled(run_id="r", thread_id="t").action is CancelAction.interrupt


def ended() -> Run:
    run = new()
    run.mark_failed()
    return run


@pytest.mark.parametrize("strategy", MultitaskStrategy)
def test_runs_that_have_ended_stand_in_nobodys_way(strategy: MultitaskStrategy) -> None:
    assert MultitaskPolicy(strategy).decide([ended(), ended()]) is MultitaskDecision.allow
    assert MultitaskPolicy(strategy).decide([]) is MultitaskDecision.allow


@pytest.mark.parametrize(
    ("strategy", "decision"),
    [
        (MultitaskStrategy.reject, MultitaskDecision.reject),
        (MultitaskStrategy.interrupt, MultitaskDecision.cancel_existing),
        (MultitaskStrategy.rollback, MultitaskDecision.cancel_existing),
        (MultitaskStrategy.enqueue, MultitaskDecision.enqueue),
    ],
)
def test_one_in_flight_decides_whatever_ended_beside_it(
    strategy: MultitaskStrategy, decision: MultitaskDecision
) -> None:
    under_way = new()
    under_way.mark_started()
    assert MultitaskPolicy(strategy).decide([ended(), new()]) is decision
    assert MultitaskPolicy(strategy).decide([ended(), under_way]) is decision


def test_policies_need_no_arguments() -> None:
    assert MultitaskPolicy().strategy is MultitaskStrategy.enqueue
    assert CancelPolicy().action is CancelAction.interrupt
    assert not CancelPolicy().rolls_back_checkpoint


def test_commands_and_queries_take_their_fields_by_position() -> None:
    command = CreateRunCommand("t", "agent", {"text": "hello"}, None, {"a": 1}, {"b": 2}, {"c": 3})
    assert (command.thread_id, command.assistant_id, command.input) == ("t", "agent", {"text": "hello"})
    assert (command.metadata, command.config, command.context) == ({"a": 1}, {"b": 2}, {"c": 3})
    assert CreateRunCommand("t").assistant_id is None
    cancel = CancelRunCommand("r", CancelAction.rollback, True)
    assert (cancel.run_id, cancel.action, cancel.wait) == ("r", CancelAction.rollback, True)
    assert JoinRunStreamCommand("r", "3").last_event_id == "3"
    one = GetRunQuery("r", "t", "u")
    assert (one.run_id, one.thread_id, one.user_id) == ("r", "t", "u")
    several = ListRunsQuery("t", "u", 7)
    assert (several.thread_id, several.user_id, several.limit) == ("t", "u", 7)
    messages = ListRunMessagesQuery("t", "r", 5, 9, 2)
    assert (messages.run_id, messages.limit, messages.before_seq, messages.after_seq) == ("r", 5, 9, 2)


def test_views_need_only_what_identifies_them() -> None:
    shown = RunSnapshot("r", "t")
    assert (shown.assistant_id, shown.status, shown.metadata, shown.error) == (None, RunStatus.pending, {}, None)
    assert RunMessageView("t", "r", 1, "ai").content == ""
    assert RunSnapshot.from_run(new(assistant_id="a")).assistant_id == "a"


def test_one_stream_mode_is_one_mode() -> None:
    assert CreateRunCommand("t", "a", stream_mode="values").kwargs()["stream_mode"] == ["values"]
    assert CreateRunCommand("t", "a", stream_mode=["updates", "values"]).kwargs()["stream_mode"] == [
        "updates",
        "values",
    ]
    assert CreateRunCommand("t", "a", stream_mode=None).kwargs()["stream_mode"] == ["values"]


def test_defaults_are_the_origins_but_for_the_two_that_the_wire_decides() -> None:
    command = CreateRunCommand("t")
    assert (command.scope, command.stream_subgraphs) == (RunScope.stateful, False)
    assert (command.multitask_strategy, command.on_disconnect) == (MultitaskStrategy.enqueue, DisconnectMode.continue_)
    assert (command.interrupt_before, command.interrupt_after) == (None, None)
    assert CancelRunCommand("r").action is CancelAction.interrupt
    assert (ListRunsQuery("t").limit, ListRunMessagesQuery("t", "r").limit) == (100, 50)
    heartbeat = inspect.signature(runs_es.RunStreamBroker.subscribe).parameters["heartbeat_interval"]
    assert heartbeat.default == 15.0
