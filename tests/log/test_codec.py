"""Stored facts of every version that ever was can be read: samples of their bytes, and what each must come out as.

A sample is added when a shape changes, and never edited: it stands for rows that nobody rewrites.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest

from runs_es.domain import (
    FACT_TYPES,
    CancelAction,
    CronCreated,
    CronDeleted,
    CronFired,
    CronSkipped,
    CronUpdated,
    DisconnectMode,
    EventCategory,
    EventRecorded,
    Fact,
    MessageRecorded,
    MessageRemoved,
    MultitaskStrategy,
    ProjectionRetried,
    ProjectionSkipped,
    RequeueCause,
    RunCancelled,
    RunCancelRequested,
    RunClaimed,
    RunCompleted,
    RunCreated,
    RunDeleted,
    RunFact,
    RunFailed,
    RunRequeued,
    RunScope,
    RunStarted,
    RunStatus,
    ThreadCreated,
    ThreadDeleted,
    ThreadErased,
    ThreadUpdated,
    UnknownTopic,
)
from runs_es.log import codec
from runs_es.log.codec import Codec

SAMPLES = Path(__file__).parent / "samples"
AT = "2026-06-01T12:00:00.123456+02:00"
OF_RUN: dict[str, Any] = {"thread_id": "t", "occurred_at": AT, "run_id": "r"}
OF_THREAD: dict[str, Any] = {"thread_id": "t", "occurred_at": AT}
OF_CRON: dict[str, Any] = {**OF_THREAD, "cron_id": "c", "next_run_date": "2026-06-02T07:00:00+00:00"}

# What a sample, by topic and version, comes out as in this version.
EXPECTED: dict[tuple[str, int], Fact] = {
    ("thread.created", 1): ThreadCreated(**OF_THREAD, metadata={"z": 1, "a": {"b": None}}, user_id="ann"),
    ("thread.updated", 1): ThreadUpdated(**OF_THREAD, metadata={"title": "a talk"}),
    ("thread.deleted", 1): ThreadDeleted(**OF_THREAD),
    ("thread.erased", 1): ThreadErased(**OF_THREAD, events=12),
    ("run.created", 1): RunCreated(
        **OF_RUN,
        assistant_id="agent",
        metadata={"k": "v"},
        kwargs={"input": {"text": "hello"}, "config": {}},
        scope=RunScope.STATELESS,
        multitask_strategy=MultitaskStrategy.REJECT,
        on_disconnect=DisconnectMode.CANCEL,
        model_name="model-1",
        user_id="ann",
        due_at="2026-06-01T13:00:00+00:00",
    ),
    ("run.claimed", 1): RunClaimed(**OF_RUN, claim_id="c", attempt=2, worker_id="w"),
    ("run.started", 1): RunStarted(**OF_RUN, attempt=2, first_frame=30),
    ("run.requeued", 1): RunRequeued(**OF_RUN, attempt=2),
    ("run.requeued", 2): RunRequeued(
        **OF_RUN,
        attempt=2,
        cause=RequeueCause.RETRY,
        worker_id="w",
        due_at="2026-06-01T10:00:07.123456+00:00",
        error="no route",
        error_type="ConnectionError",
    ),
    ("run.requeued", 3): RunRequeued(
        **OF_RUN,
        attempt=2,
        cause=RequeueCause.RETRY,
        worker_id="w",
        due_at="2026-06-01T10:00:07.123456+00:00",
        error="no route",
        error_type="ConnectionError",
        traceback="Traceback (most recent call last):\n  …",
        error_hidden=True,
    ),
    ("run.cancel_requested", 1): RunCancelRequested(**OF_RUN, attempt=1, action=CancelAction.ROLLBACK),
    ("run.completed", 1): RunCompleted(
        **OF_RUN, interrupts={"task": [{"id": "i", "value": "sure?"}]}, checkpoint_id="cp"
    ),
    ("run.failed", 1): RunFailed(**OF_RUN, attempt=3, status=RunStatus.TIMEOUT, error="too slow", error_type="Timeout"),
    ("run.failed", 2): RunFailed(
        **OF_RUN,
        attempt=3,
        error="too slow",
        error_type="Slow",
        traceback="Traceback (most recent call last):\n  …",
        error_hidden=True,
    ),
    ("run.cancelled", 1): RunCancelled(**OF_RUN, attempt=0, action=CancelAction.INTERRUPT),
    ("run.deleted", 1): RunDeleted(**OF_RUN, attempt=None),
    ("message.recorded", 1): MessageRecorded(
        **OF_RUN,
        message_id="m",
        event_type="ai",
        content={"type": "ai", "content": "é𝄞\x00", "id": "m"},
        metadata={"step": 1},
    ),
    ("message.removed", 1): MessageRemoved(**OF_RUN, message_id="m", reason="not in the state that the run left"),
    ("event.recorded", 1): EventRecorded(
        **OF_RUN, event_type="tool", kind=EventCategory.OUTPUTS, content=[1, 2.5, None], metadata={}
    ),
    ("projection.retried", 1): ProjectionRetried(**OF_THREAD, projection="runs", version=1, position=17),
    ("projection.skipped", 1): ProjectionSkipped(**OF_THREAD, projection="runs", version=1, position=17),
    ("cron.created", 1): CronCreated(
        **OF_CRON,
        assistant_id="agent",
        schedule="0 9 * * mon-fri",
        timezone="Europe/Berlin",
        end_time="2026-12-01T00:00:00+00:00",
        enabled=True,
        run_thread_id=None,
        on_run_completed="keep",
        payload={"input": {"text": "hello"}},
        metadata={"k": "v"},
        user_id="ann",
    ),
    ("cron.updated", 1): CronUpdated(**OF_CRON, changes={"enabled": False}),
    ("cron.deleted", 1): CronDeleted(**OF_THREAD, cron_id="c"),
    ("cron.fired", 1): CronFired(**OF_CRON, tick="2026-06-01T09:00:00+00:00", run_id="r", run_thread_id="u"),
    ("cron.skipped", 1): CronSkipped(**OF_CRON, tick="2026-06-01T09:00:00+00:00", reason="missed"),
}


def sample(topic: str, version: int) -> bytes:
    return (SAMPLES / f"{topic}.v{version}.json").read_bytes()


@pytest.mark.parametrize(("topic", "version"), EXPECTED)
def test_a_stored_sample_of_every_version_is_read_as_what_it_means_today(topic: str, version: int) -> None:
    fact = codec.decode(topic, sample(topic, version), "t")

    assert fact == EXPECTED[topic, version]
    assert vars(fact) == vars(EXPECTED[topic, version])


def test_every_topic_has_a_sample_of_every_version_it_has_had() -> None:
    wanted = {(topic, n) for topic, current in codec.versions.items() for n in range(1, current + 1)}

    assert set(EXPECTED) == wanted
    assert {path.name for path in SAMPLES.glob("*.json")} == {f"{topic}.v{version}.json" for topic, version in wanted}
    assert len(codec.versions) == len(FACT_TYPES)


@pytest.mark.parametrize("topic", codec.versions)
def test_what_is_written_today_is_what_the_newest_sample_holds(topic: str) -> None:
    newest = topic, codec.versions[topic]

    assert codec.encode(EXPECTED[newest]) == sample(*newest)


# --- a shape that changes ---


@dataclass(frozen=True, kw_only=True)
class RunStartedAnew(RunFact):
    """`run.started` as it may be one day: `attempt` counts from 0 and is called `retry`; who works is a list."""

    topic: ClassVar[str] = "run.started"
    retry: int
    first_frame: int = 0
    workers: list[str] = field(default_factory=list)


def renamed(values: dict[str, Any]) -> dict[str, Any]:
    attempt = values.pop("attempt")
    return {**values, "retry": attempt - 1, "worker": None}


def listed(values: dict[str, Any]) -> dict[str, Any]:
    worker = values.pop("worker")
    return {**values, "workers": [] if worker is None else [worker]}


NEXT = Codec([RunStartedAnew], {("run.started", 1): renamed, ("run.started", 2): listed})


def test_an_old_fact_is_read_in_the_shape_of_today_one_upcast_after_the_other() -> None:
    assert NEXT.decode("run.started", sample("run.started", 1), "t") == RunStartedAnew(
        **OF_RUN, retry=1, first_frame=30, workers=[]
    )
    second = b'{"v":2,"occurred_at":"2026-06-01T12:00:00+00:00","run_id":"r","retry":0,"first_frame":3,"worker":"w"}'
    assert NEXT.decode("run.started", second, "t") == RunStartedAnew(
        thread_id="t", occurred_at="2026-06-01T12:00:00+00:00", run_id="r", retry=0, first_frame=3, workers=["w"]
    )


def test_a_fact_of_the_new_shape_says_its_version_and_comes_back_as_it_was() -> None:
    fact = RunStartedAnew(**OF_RUN, retry=4, first_frame=9, workers=["a", "b"])

    state = NEXT.encode(fact)

    assert b'"v":3' in state
    assert NEXT.decode("run.started", state, "t") == fact
    assert NEXT.versions == {"run.started": 3}


def test_code_that_knows_only_older_versions_refuses_newer_facts() -> None:
    state = NEXT.encode(RunStartedAnew(**OF_RUN, retry=0))

    with pytest.raises(UnknownTopic, match=r"'run.started' has version 3, this version knows 1"):
        codec.decode("run.started", state, "t")


@pytest.mark.parametrize("upcasts", [{("run.started", 2): listed}, {("run.begun", 1): listed}])
def test_upcasts_that_leave_a_gap_are_refused(upcasts: Any) -> None:
    with pytest.raises(ValueError, match="without a gap"):
        Codec([RunStartedAnew], upcasts)


@pytest.mark.parametrize(
    ("topic", "state", "problem"),
    [
        ("run.started", b'{"run_id":"r","occurred_at":"yesterday","attempt":1,"first_frame":0}', "occurred_at"),
        ("run.started", b'{"run_id":"  ","occurred_at":"%b","attempt":1,"first_frame":0}' % AT.encode(), "run_id"),
        ("run.started", b'{"occurred_at":"%b"}' % AT.encode(), "run_id"),
        ("thread.deleted", b'{"occurred_at":"%b","colour":"red"}' % AT.encode(), "colour"),
        ("run.cancelled", b'{"run_id":"r","occurred_at":"%b","attempt":0,"action":"maybe"}' % AT.encode(), "maybe"),
    ],
)
def test_fields_that_make_no_fact_are_refused_by_name(topic: str, state: bytes, problem: str) -> None:
    with pytest.raises((ValueError, TypeError), match=problem):
        codec.decode(topic, state, "t")


def test_a_fact_from_before_a_field_was_added_gets_its_default() -> None:
    assert codec.decode("run.started", b'{"run_id":"r","occurred_at":"%b"}' % AT.encode(), "t") == RunStarted(**OF_RUN)
