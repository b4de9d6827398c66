"""Errors that may pass: the run is tried again after a pause, in the same stream, as long as attempts are left."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

import psycopg
import pytest

from runs_es.domain import (
    CancelAction,
    Provenance,
    RequeueCause,
    Run,
    RunFailed,
    RunRequeued,
    RunScope,
    RunStatus,
    Thread,
)
from runs_es.domain.values import MultitaskStrategy
from runs_es.execution import ActiveRun, RetryableError, RunOutcome
from runs_es.execution.retry import Backoff
from runs_es.service.commands import CancelRunCommand, CreateRunCommand, GetRunQuery
from runs_es.settings import Settings
from runs_projections.wiring import Store, open_store
from tests.execution.test_worker import QUICK, events_of, topics, until

FAST: dict[str, Any] = {**QUICK, "retry_seconds": 0.05, "retry_max_seconds": 0.2}
FOR_EVER: dict[str, Any] = {**QUICK, "retry_seconds": 600, "retry_max_seconds": 600}


class Overloaded(RetryableError):
    """What a model's API may say."""


class Flaky:
    """Fails as often as the run's input says, then works."""

    def __init__(self) -> None:
        self.began: list[tuple[str, int]] = []

    async def execute(self, run: ActiveRun) -> RunOutcome | None:
        self.began.append((run.run.run_id, run.attempt))
        await run.publish("custom", {"attempt": run.attempt})
        given = run.run.kwargs["input"]
        if run.attempt <= given["fails"]:
            raise KINDS[given["kind"]](f"attempt {run.attempt}")
        return None

    def is_retryable(self, error: Exception) -> bool:
        if isinstance(error, LookupError):
            raise error
        return isinstance(error, ConnectionError | TimeoutError)


KINDS: dict[str, type[Exception]] = {
    "overloaded": Overloaded,
    "connection": ConnectionResetError,
    "timeout": TimeoutError,
    "bug": ZeroDivisionError,
    "judge fails": KeyError,
}
InStore = Callable[[Store, Flaky], Awaitable[None]]


async def within(settings: Settings, body: InStore, **changes: Any) -> None:
    flaky = Flaky()
    store = await asyncio.to_thread(lambda: open_store(settings.model_copy(update={**FAST, **changes}), executor=flaky))
    try:
        await asyncio.wait_for(body(store, flaky), 40)
    finally:
        await asyncio.to_thread(store.close)


def command(fails: int, thread_id: str | None = "t", *, kind: str = "overloaded", **values: Any) -> CreateRunCommand:
    given = {"fails": fails, "kind": kind}
    return CreateRunCommand(thread_id=thread_id, create_thread=True, assistant_id="flaky", input=given, **values)


def requeues(store: Store) -> list[RunRequeued]:
    facts = [recorded.fact for recorded in store.log.reader.facts("t", topics=["run.requeued"])]
    return [fact for fact in facts if isinstance(fact, RunRequeued)]


async def status(store: Store, run_id: str) -> RunStatus | None:
    run = await store.service.get_run(GetRunQuery(run_id=run_id))
    return None if run is None else run.status


async def test_a_run_is_tried_again_in_the_same_stream_and_the_log_says_why_and_when(settings: Settings) -> None:
    async def body(store: Store, _: Flaky) -> None:
        run = await store.service.create_background(command(2))
        events = await events_of(store, run.run_id)
        assert [(event, data and data.get("attempt")) for _, event, data in events] == [
            *[(event, attempt) for attempt in (1, 2, 3) for event in ("metadata", "custom")],
            ("end", None),
        ]
        assert await status(store, run.run_id) is RunStatus.SUCCESS
        first, second = requeues(store)
        assert (first.cause, first.attempt, first.error_type, first.error) == (
            RequeueCause.RETRY, 1, "Overloaded", "attempt 1"
        )  # fmt: skip
        for fact, least, most in ((first, 0.025, 0.05), (second, 0.05, 0.1)):
            assert fact.due_at is not None
            pause = datetime.fromisoformat(fact.due_at) - datetime.fromisoformat(fact.occurred_at)
            assert least - 0.01 <= pause.total_seconds() <= most
        started = [each.fact.occurred_at for each in store.log.reader.facts("t", topics=["run.started"])]
        assert first.due_at is not None
        assert started[1] >= first.due_at

    await within(settings, body)


async def test_after_the_last_attempt_the_run_fails_with_its_error_and_the_number_of_attempts(
    settings: Settings,
) -> None:
    async def body(store: Store, flaky: Flaky) -> None:
        run = await store.service.create_background(command(99))
        events = await events_of(store, run.run_id)
        assert events[-2][1:] == ("error", {"error": "Overloaded", "message": "attempt 3"})
        assert len(flaky.began) == 3
        (failed,) = store.log.reader.facts("t", topics=["run.failed"])
        assert isinstance(failed.fact, RunFailed)
        assert (failed.fact.error, failed.provenance.reason) == ("attempt 3", "gave up after 3 attempts")
        temporary = await store.service.create_background(command(99, None, scope=RunScope.TEMPORARY_THREAD))
        await store.service.ended(temporary.thread_id, temporary.run_id)
        (failed,) = store.log.reader.facts(temporary.thread_id, topics=["run.failed"])
        assert failed.provenance.reason == "gave up after 3 attempts"

    await within(settings, body)


@pytest.mark.parametrize(
    ("kind", "attempts", "end"),
    [
        ("connection", 2, RunStatus.SUCCESS),
        ("timeout", 2, RunStatus.SUCCESS),
        ("bug", 1, RunStatus.ERROR),
        ("judge fails", 1, RunStatus.ERROR),
    ],
)
async def test_the_executor_says_which_errors_may_pass(
    settings: Settings, kind: str, attempts: int, end: RunStatus
) -> None:
    async def body(store: Store, flaky: Flaky) -> None:
        run = await store.service.create_background(command(1, kind=kind))
        await store.service.ended("t", run.run_id)
        assert await status(store, run.run_id) is end
        assert len(flaky.began) == attempts

    await within(settings, body)


async def test_a_run_that_waits_for_its_next_attempt_keeps_its_thread_busy_and_its_turn(settings: Settings) -> None:
    async def body(store: Store, flaky: Flaky) -> None:
        first = await store.service.create_background(command(1))
        second = await store.service.create_background(command(0))
        await until(lambda: len(requeues(store)) == 1)
        assert await status(store, first.run_id) is RunStatus.PENDING
        thread = await asyncio.to_thread(store.threads.get, "t")
        assert thread is not None
        assert thread.status == "busy"
        await store.service.ended("t", second.run_id)
        assert flaky.began == [(first.run_id, 1), (first.run_id, 2), (second.run_id, 1)]

    await within(settings, body, retry_seconds=0.5, retry_max_seconds=0.5)


@pytest.mark.parametrize("how", ["cancel", "roll back", "supersede", "delete the run", "delete the thread"])
async def test_while_it_waits_a_run_can_be_ended_at_once(settings: Settings, how: str) -> None:
    async def body(store: Store, flaky: Flaky) -> None:
        run = await store.service.create_background(command(9))
        await until(lambda: len(requeues(store)) == 1)
        begun = time.monotonic()
        match how:
            case "cancel":
                await store.service.cancel(CancelRunCommand(run_id=run.run_id, wait=True))
                assert await status(store, run.run_id) is RunStatus.INTERRUPTED
            case "roll back":
                asked = CancelRunCommand(run_id=run.run_id, wait=True, action=CancelAction.ROLLBACK)
                await store.service.cancel(asked)
                assert await status(store, run.run_id) is None
            case "supersede":
                new = await store.service.create_background(command(0, multitask_strategy=MultitaskStrategy.INTERRUPT))
                await store.service.ended("t", new.run_id)
                assert await status(store, new.run_id) is RunStatus.SUCCESS
            case "delete the run":
                await store.service.delete_run("t", run.run_id, user_id=None, provenance=Provenance())
            case "delete the thread":
                await store.service.delete_thread("t", provenance=Provenance())
        assert time.monotonic() - begun < 10, "it waited for the next attempt"
        ends = Counter(topics(store))
        assert ends["run.cancelled"] == 1
        assert [attempt for run_id, attempt in flaky.began if run_id == run.run_id] == [1]

    await within(settings, body, **FOR_EVER)


async def test_a_run_times_out_while_it_waits_for_its_next_attempt(settings: Settings) -> None:
    async def body(store: Store, _: Flaky) -> None:
        run = await store.service.create_background(command(9, config={"timeout_seconds": 0.6}))
        await asyncio.wait_for(store.service.ended("t", run.run_id), 10)
        assert await status(store, run.run_id) is RunStatus.TIMEOUT

    await within(settings, body, **FOR_EVER)


async def test_a_lost_wake_of_a_run_that_waits_is_found_by_the_sweep(settings: Settings, database_url: str) -> None:
    async def body(store: Store, _: Flaky) -> None:
        run = await store.service.create_background(command(1))
        await until(lambda: len(requeues(store)) == 1)
        waking = "delete from procrastinate_jobs where task_name = 'runs_es.wake' returning id"

        def lose() -> bool:
            with psycopg.connect(database_url, options="-c search_path=runs_es_queue") as connection:
                return bool(connection.execute(waking).fetchall())

        await until(lose)
        await store.service.ended("t", run.run_id)
        assert await status(store, run.run_id) is RunStatus.SUCCESS

    await within(settings, body, retry_seconds=2, retry_max_seconds=2)


def test_pauses_double_up_to_the_longest_and_up_to_half_is_taken_off() -> None:
    backoff = Backoff(1.0, 8.0)
    for attempts, whole in ((1, 1), (2, 2), (3, 4), (4, 8), (5, 8), (5000, 8)):
        pauses = [backoff.seconds(attempts) for _ in range(200)]
        assert whole / 2 <= min(pauses) < whole * 0.6
        assert whole * 0.9 < max(pauses) <= whole


def test_the_next_attempt_is_not_due_after_the_run_is_out_of_time() -> None:
    run = Run.create(run_id="r", thread_id="t", assistant_id="a")
    run.mark_claimed(claim_id="c")
    run.mark_started(at="2026-01-01T12:00:00+02:00")
    assert Backoff().due_at(run, 30) == "2026-01-01T10:00:30.000000+00:00"


def test_attempts_that_ended_in_good_order_do_not_count_towards_the_last() -> None:
    thread = Thread("t")
    thread.apply(thread.create())
    run = Run.create(run_id="r", thread_id="t", assistant_id="a")
    for fact in run.pull_events():
        thread.apply(fact)
    causes = (RequeueCause.WORKER_STOPPED, RequeueCause.WORKER_LOST, RequeueCause.WORKER_STOPPED)
    for number, cause in enumerate(causes):
        due = thread.next_due()
        assert due is not None
        for fact in thread.claim(due, claim_id=f"c{number}", worker_id="w", frames=0, max_attempts=2):
            thread.apply(fact)
        claimed = thread.claimed("r", f"c{number}")
        claimed.requeue(cause)
        for fact in claimed.pull_events():
            thread.apply(fact)
    due = thread.next_due()
    assert due is not None
    assert (due.attempt, due.failed_attempts) == (3, 1)
    facts = thread.claim(due, claim_id="c", worker_id="w", frames=0, max_attempts=2)
    assert [fact.topic for fact in facts] == ["run.claimed", "run.started"]
    for fact in facts:
        thread.apply(fact)
    for fact in thread.lose("r", "c", None):
        thread.apply(fact)
    due = thread.next_due()
    assert due is not None
    (failed,) = thread.claim(due, claim_id="d", worker_id="w", frames=0, max_attempts=2)
    assert isinstance(failed, RunFailed)
    assert failed.error == "worker lost; gave up after 2 attempts"
