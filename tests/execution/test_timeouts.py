"""Runs that take too long, or say nothing for too long."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from runs_es.domain import RunStatus, Timeouts
from runs_es.execution.protocol import ActiveRun
from runs_es.log.decisions import Decision
from runs_es.service.commands import CreateRunCommand, GetRunQuery
from runs_es.settings import Settings
from runs_projections.wiring import Store, open_store
from tests.execution.test_worker import Scripted, command, events_of, listed, topics, until, within

IDLE = "the run showed no sign of life for 0.3 s (idle_timeout_seconds)"
WALL = "the run took longer than 0.3 s (timeout_seconds)"


async def timed_out(store: Store, what: str, message: str, **config: float) -> list[tuple[str, str, Any]]:
    """The events of a run that times out and says `message`."""
    run = await store.service.create_background(command(what, config=config))
    events = await events_of(store, run.run_id)
    assert [event for _, event, _ in events][-2:] == ["error", "end"]
    assert events[-2][2] == {"error": "TimeoutError", "message": message}
    found = await store.service.get_run(GetRunQuery(run_id=run.run_id))
    assert found is not None
    assert (found.status, found.error) == (RunStatus.TIMEOUT, message)
    assert (await listed(store))[0].status is RunStatus.TIMEOUT
    answer = {"__error__": {"error": "TimeoutError", "message": message}}
    assert await store.service.result("t", run.run_id) == answer
    return events


async def test_a_run_is_stopped_when_its_time_is_up_and_says_so(settings: Settings) -> None:
    async def body(store: Store, scripted: Scripted) -> None:
        await timed_out(store, "wait_for_ever", WALL, timeout_seconds=0.3)
        await timed_out(store, "chatter", WALL, timeout_seconds=0.3, idle_timeout_seconds=5)
        assert topics(store).count("run.failed") == 2
        assert await store.service.create_and_wait(command("work", config={"timeout_seconds": 30})) != {}

    await within(settings, body)


async def test_a_silent_run_is_stopped_and_one_that_talks_is_not(settings: Settings) -> None:
    async def body(store: Store, scripted: Scripted) -> None:
        await timed_out(store, "wait_for_ever", IDLE, idle_timeout_seconds=0.3)
        events = await timed_out(
            store, "chatter", WALL.replace("0.3", "0.9"), idle_timeout_seconds=0.3, timeout_seconds=0.9
        )
        assert len(events) > 4

    await within(settings, body)


async def test_the_settings_bound_runs_that_say_nothing_of_time(settings: Settings) -> None:
    async def body(store: Store, scripted: Scripted) -> None:
        await timed_out(store, "wait_for_ever", IDLE)
        await timed_out(store, "wait_for_ever", WALL.replace("0.3", "0.1"), timeout_seconds=0.1)

    await within(settings, body, run_timeout_seconds=60, run_idle_timeout_seconds=0.3)


async def test_a_run_that_ignores_its_timeout_ends_within_the_grace_and_writes_nothing_more(
    settings: Settings,
) -> None:
    async def body(store: Store, scripted: Scripted) -> None:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        await timed_out(store, "ignore", WALL, timeout_seconds=0.3)
        assert loop.time() - begun < 3
        scripted.let_go.set()

    await within(settings, body, cancel_grace_seconds=0.3)


async def test_the_time_of_a_run_goes_on_over_its_attempts(settings: Settings) -> None:
    async def first(store: Store, scripted: Scripted) -> None:
        await store.service.create_background(command("wait_for_ever", config={"timeout_seconds": 0.3}))
        await until(lambda: "run.started" in topics(store))

    async def second(store: Store, scripted: Scripted) -> None:
        (run,) = await listed(store)
        await store.service.ended("t", run.run_id)
        found = await store.service.get_run(GetRunQuery(run_id=run.run_id))
        assert found is not None
        assert (found.status, found.error) == (RunStatus.TIMEOUT, WALL)
        assert found.attempt == 1 or scripted.began == [], "the second attempt had no time left"

    await within(settings, first, drain_seconds=0.0)
    await within(settings, second)


class Stubborn:
    """An agent that is told to stop and goes on until it is let go."""

    def __init__(self) -> None:
        self.told_to_stop, self.let_go = threading.Event(), threading.Event()

    async def execute(self, run: ActiveRun) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.told_to_stop.set()
        await asyncio.get_running_loop().run_in_executor(None, self.let_go.wait)


async def test_a_cancel_that_comes_with_the_timeout_makes_one_end(settings: Settings) -> None:
    stubborn = Stubborn()
    with open_store(settings.model_copy(update={"cancel_grace_seconds": 60.0}), executor=stubborn) as store:
        try:
            run = await store.service.create_background(command("hang", config={"timeout_seconds": 0.2}))
            assert await asyncio.to_thread(stubborn.told_to_stop.wait, 60), "its time is up, and nothing else stops it"
            await asyncio.to_thread(
                lambda: store.decisions.make("t", lambda thread, _: Decision(thread.cancel(run.run_id)))
            )
            stubborn.let_go.set()
            await asyncio.wait_for(store.service.ended("t", run.run_id), 60)
            ends = [topic for topic in topics(store) if topic in ("run.failed", "run.cancelled")]
            assert ends == ["run.cancelled"]
        finally:
            stubborn.let_go.set()


@pytest.mark.parametrize("value", [0, -1, True, "5", float("nan"), float("inf")])
def test_a_timeout_is_a_positive_number_of_seconds(value: object) -> None:
    for name in ("timeout_seconds", "idle_timeout_seconds"):
        with pytest.raises(ValueError, match=f"config.{name} must be a positive number"):
            Timeouts.of({name: value})


async def test_a_timeout_that_is_none_is_refused_before_anything_is_recorded(settings: Settings) -> None:
    async def body(store: Store, scripted: Scripted) -> None:
        with pytest.raises(ValueError, match="timeout_seconds"):
            await store.service.create_background(
                CreateRunCommand(thread_id="t", create_thread=True, assistant_id="a", config={"timeout_seconds": "1"})
            )
        assert topics(store) == []

    await within(settings, body)


class Hanging:
    """An agent whose synchronous work hangs in a thread of the event loop, as that of a graph may."""

    def __init__(self) -> None:
        self.let_go = threading.Event()

    async def execute(self, run: ActiveRun) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self.let_go.wait)


async def test_agents_that_hang_in_threads_after_their_time_do_not_keep_the_worker_from_ending_runs(
    settings: Settings,
) -> None:
    hanging = Hanging()
    with open_store(settings.model_copy(update={"concurrency": 1}), executor=hanging) as store:
        try:
            for number in range(7):  # more than such a worker once had threads
                asked = command("hang", f"t{number}", config={"timeout_seconds": 0.1})
                run = await store.service.create_background(asked)
                await asyncio.wait_for(store.service.ended(run.thread_id, run.run_id), 20)
                found = await store.service.get_run(GetRunQuery(run_id=run.run_id))
                assert found is not None
                assert found.status is RunStatus.TIMEOUT
        finally:
            hanging.let_go.set()
