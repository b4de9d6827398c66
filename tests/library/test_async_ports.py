"""The five asynchronous ports of a store, each in the role that it was drawn with."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from runs_es import (
    ActiveRun,
    CancelAction,
    CancelRunCommand,
    ConflictError,
    CreateRunCommand,
    EventRecorded,
    InvalidRunTransition,
    LeaseLost,
    MultitaskStrategy,
    Run,
    RunDomainError,
    RunEnded,
    RunExecutionHandle,
    RunNotFound,
    RunStatus,
    Settings,
    Store,
    ThreadNotFound,
    open_store_async,
)


class Held:
    """An executor whose runs go on until they are let go."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.let_go = threading.Event()

    async def execute(self, run: ActiveRun) -> None:
        self.begun.set()
        await asyncio.to_thread(self.let_go.wait, 60)


@pytest.fixture
def held() -> Held:
    return Held()


@pytest.fixture
async def store(settings: Settings, held: Held) -> AsyncIterator[Store]:
    quick = settings.model_copy(update={"sweep_seconds": 30.0, "cancel_grace_seconds": 0.5})
    async with open_store_async(quick, executor=held) as opened:
        yield opened
        held.let_go.set()


async def begun(held: Held) -> None:
    assert await asyncio.to_thread(held.begun.wait, 30)


async def test_a_run_that_is_saved_is_executed_once_the_scheduler_starts_it(store: Store, held: Held) -> None:
    await store.service.create_thread("t")
    await store.repository.save(Run.create(run_id="r", thread_id="t"))
    saved = await store.repository.get("r")
    assert saved is not None
    assert (saved.status, saved.assistant_id) == (RunStatus.PENDING, None)
    held.let_go.set()
    handle: RunExecutionHandle = await store.scheduler.start("r")
    assert handle.run_id == "r"
    await asyncio.wait_for(handle.wait(), 30)
    again = await store.scheduler.start("r")  # which has ended
    await asyncio.wait_for(again.wait(), 30)
    ended = await store.repository.get("r")
    assert ended is not None
    assert (ended.status, ended.attempt) == (RunStatus.SUCCESS, 1)
    assert [each.assistant_id for each in await store.repository.list_by_thread("t")] == [None]
    with pytest.raises(RunNotFound):
        await store.scheduler.start("none")


async def test_the_repository_saves_gets_lists_and_deletes(store: Store) -> None:
    with pytest.raises(ThreadNotFound):
        await store.repository.save(Run.create(run_id="r", thread_id="nowhere"))
    await store.service.create_thread("t")
    for number in range(3):
        await store.repository.save(Run.create(run_id=f"r{number}", thread_id="t", user_id="ada"))
    run = await store.repository.get("r1", user_id="ada")
    assert run is not None
    run.mark_failed("no")
    await store.repository.save(run)
    listed = await store.repository.list_by_thread("t", user_id="ada", limit=2)
    assert [(each.run_id, each.status) for each in listed] == [("r2", "pending"), ("r1", "error")]
    assert await store.repository.get("r1", user_id="bob") is None
    assert await store.repository.list_by_thread("t", user_id="bob") == []
    assert await store.repository.delete("r0") is True
    assert await store.repository.delete("r0") is False
    assert [each.run_id for each in await store.repository.list_by_thread("t")] == ["r2", "r1"]


async def test_the_event_log_appends_and_lists_in_ascending_seq(store: Store) -> None:
    await store.service.create_thread("t")
    await store.repository.save(Run.create(run_id="r", thread_id="t"))
    traces = [EventRecorded(thread_id="t", run_id="r", event_type=f"step.{n}", content={"n": n}) for n in range(3)]
    stored = await store.event_log.append(traces)
    seqs = [each.seq for each in stored]
    assert seqs == list(range(seqs[0], seqs[0] + 3))
    found = await store.event_log.list_events_by_run("t", "r", types=["trace"], after_seq=seqs[0])
    assert [(each.seq, each.event_type, each.content) for each in found] == [
        (seqs[1], "step.1", {"n": 1}),
        (seqs[2], "step.2", {"n": 2}),
    ]
    assert await store.event_log.list_messages_by_run("t", "r") == []
    with pytest.raises(ValueError, match="one thread"):
        await store.event_log.append([traces[0], EventRecorded(thread_id="u", run_id="r", event_type="x")])


async def test_the_broker_publishes_to_a_run_in_execution_and_streams_it(store: Store, held: Held) -> None:
    run = await store.service.create_background(CreateRunCommand("t", "a", create_thread=True))
    seen: list[tuple[str, Any]] = []
    published = asyncio.Event()

    async def read() -> None:
        async for event in store.broker.subscribe(run.run_id):
            seen.append((event.event, event.data))
            if event.event == "custom":
                published.set()

    reading = asyncio.create_task(read())
    await begun(held)
    await store.broker.publish(run.run_id, "custom", {"token": "hi"})
    await store.broker.publish_terminal(run.run_id)
    await asyncio.wait_for(published.wait(), 30)
    with pytest.raises(ValueError, match="the store's own"):
        await store.broker.publish(run.run_id, "end", None)
    held.let_go.set()
    await asyncio.wait_for(reading, 30)
    assert seen == [("metadata", {"run_id": run.run_id, "attempt": 1}), ("custom", {"token": "hi"}), ("end", None)]
    with pytest.raises(LeaseLost, match="not executed by this store"):
        await store.broker.publish(run.run_id, "custom", {"token": "late"})
    await store.broker.cleanup(run.run_id)
    again = [event.event async for event in store.broker.subscribe(run.run_id, last_event_id="-1")]
    assert again == ["metadata", "custom", "end"]


async def test_the_supervisor_stops_what_runs_and_says_when_there_is_nothing_to_stop(store: Store, held: Held) -> None:
    run = await store.service.create_background(CreateRunCommand("t", "a", create_thread=True))
    await begun(held)
    assert await store.supervisor.cancel(run.run_id, action=CancelAction.INTERRUPT) is True
    await store.service.ended("t", run.run_id)
    ended = await store.repository.get(run.run_id)
    assert ended is not None
    assert ended.status is RunStatus.INTERRUPTED
    assert await store.supervisor.cancel(run.run_id) is False
    assert await store.supervisor.cancel("none") is False


async def test_cancelling_what_has_ended_says_that_and_how_it_ended(store: Store, held: Held) -> None:
    held.let_go.set()
    run = await store.service.create_background(CreateRunCommand("t", "a", create_thread=True))
    await store.service.ended("t", run.run_id)
    with pytest.raises(RunEnded, match=f"{run.run_id} has ended \\(success\\); there is nothing to cancel") as refused:
        await store.service.cancel(CancelRunCommand(run.run_id))
    assert isinstance(refused.value, InvalidRunTransition | RunDomainError)
    assert (refused.value.run_id, refused.value.current) == (run.run_id, RunStatus.SUCCESS)
    with pytest.raises(RunNotFound):
        await store.service.cancel(CancelRunCommand("none"))
    with pytest.raises(RunNotFound):
        await store.service.cancel(CancelRunCommand(run.run_id, user_id=None, thread_id="elsewhere"))


async def test_runs_that_have_ended_reject_nobody(store: Store, held: Held) -> None:
    held.let_go.set()
    command = CreateRunCommand("t", "a", create_thread=True, multitask_strategy=MultitaskStrategy.REJECT)
    first = await store.service.create_background(command)
    await store.service.ended("t", first.run_id)
    held.begun.clear()
    held.let_go.clear()
    second = await store.service.create_background(command)
    await begun(held)
    with pytest.raises(ConflictError):
        await store.service.create_background(command)
    held.let_go.set()
    await store.service.ended("t", second.run_id)
