"""A run that comes to a busy thread: what becomes of it, and of those that are there."""

from __future__ import annotations

import asyncio

import pytest

from runs_es.domain import CancelAction, ConflictError, MultitaskStrategy, Provenance, RunScope, RunStatus
from runs_es.service.commands import CancelRunCommand, CancelRunsCommand, GetRunQuery
from runs_es.service.views import RunSnapshot
from runs_es.settings import Settings
from runs_projections.wiring import Store
from tests.execution.test_worker import Scripted, command, listed, topics, until, within

ADA = Provenance(actor="user:ada")


async def begun(store: Store, scripted: Scripted) -> RunSnapshot:
    """A run that goes on until it is told to stop."""
    run = await store.service.create_background(command("wait_for_ever"))
    await until(lambda: scripted.began[-1:] == [run.run_id])
    return run


@pytest.mark.parametrize("strategy", [MultitaskStrategy.INTERRUPT, MultitaskStrategy.ROLLBACK])
async def test_a_new_run_ends_all_that_is_there_and_then_begins(
    settings: Settings, strategy: MultitaskStrategy
) -> None:
    async def body(store: Store, scripted: Scripted) -> None:
        running = await begun(store, scripted)
        enqueued = await store.service.create_background(command("work"))
        delayed = await store.service.create_background(command("work", after_seconds=3600))
        new = await store.service.create_background(command("work", multitask_strategy=strategy, provenance=ADA))
        await store.service.ended("t", new.run_id)
        assert scripted.began == [running.run_id, new.run_id]
        statuses = {run.run_id: run.status for run in await listed(store)}
        ended = dict.fromkeys((running.run_id, enqueued.run_id, delayed.run_id), RunStatus.INTERRUPTED)
        left = ended if strategy is MultitaskStrategy.INTERRUPT else {}
        assert statuses == {**left, new.run_id: RunStatus.SUCCESS}
        for run in (running, enqueued, delayed):
            (asked,) = store.log.reader.facts("t", run_id=run.run_id, topics=["run.cancel_requested"])
            assert asked.fact.action == strategy.value  # type: ignore[attr-defined]
            assert asked.provenance == Provenance(
                actor="user:ada", reason=f"superseded by run {new.run_id}", causation_id=new.run_id
            )
        (created,) = store.log.reader.facts("t", run_id=new.run_id, topics=["run.created"])
        assert created.provenance == ADA
        assert len(scripted.tried_after_cancel) == 1

    await within(settings, body)


async def test_strategies_mix_on_a_thread_and_a_cancel_may_come_in_between(settings: Settings) -> None:
    async def body(store: Store, scripted: Scripted) -> None:
        first = await begun(store, scripted)
        waits = command("wait_for_ever", multitask_strategy=MultitaskStrategy.INTERRUPT)
        second = await store.service.create_background(waits)
        await store.service.cancel(CancelRunCommand(run_id=second.run_id))
        third = await store.service.create_background(command("work", multitask_strategy=MultitaskStrategy.ROLLBACK))
        fourth = await store.service.create_background(command("wait_for_ever"))
        await store.service.ended("t", third.run_id)
        await until(lambda: scripted.began[-1] == fourth.run_id)
        with pytest.raises(ConflictError):
            await store.service.create_background(command("work", multitask_strategy=MultitaskStrategy.REJECT))
        await store.service.cancel(CancelRunCommand(run_id=fourth.run_id, wait=True))
        # Who runs when `third` comes is to be rolled back even though it was to be interrupted: unless it has ended.
        began = [run_id for run_id in scripted.began if run_id != second.run_id]
        assert began == [first.run_id, third.run_id, fourth.run_id]
        statuses = {run.run_id: run.status for run in await listed(store)}
        for superseded in (first, second):
            assert statuses.pop(superseded.run_id, RunStatus.INTERRUPTED) is RunStatus.INTERRUPTED
        assert statuses == {
            third.run_id: RunStatus.SUCCESS,
            fourth.run_id: RunStatus.INTERRUPTED,
        }

    await within(settings, body)


async def test_the_run_of_a_temporary_thread_takes_along_the_one_that_superseded_it(settings: Settings) -> None:
    async def body(store: Store, scripted: Scripted) -> None:
        own = await store.service.create_background(command("wait_for_ever", scope=RunScope.TEMPORARY_THREAD))
        new = await store.service.create_background(command("work", multitask_strategy=MultitaskStrategy.INTERRUPT))
        await store.service.ended("t", new.run_id)
        assert topics(store)[-1] == "thread.deleted"
        assert set(scripted.began) <= {own.run_id}

    await within(settings, body)


@pytest.mark.parametrize("action", list(CancelAction))
async def test_runs_of_a_list_are_cancelled_in_one_append_whatever_state_they_are_in(
    settings: Settings, action: CancelAction
) -> None:
    async def body(store: Store, scripted: Scripted) -> None:
        finished = await store.service.create_background(command("work"))
        await store.service.ended("t", finished.run_id)
        running = await begun(store, scripted)
        pending = await store.service.create_background(command("work"))
        delayed = await store.service.create_background(command("work", after_seconds=3600))
        spared = await store.service.create_background(command("work"))
        several = [run.run_id for run in (finished, running, pending, delayed)]
        asked = CancelRunsCommand(thread_id="t", run_ids=[*several, "nobody"], action=action, provenance=ADA)
        assert await store.service.cancel_several(asked) == 3
        await store.service.ended("t", spared.run_id)
        statuses = {run.run_id: run.status for run in await listed(store)}
        kept = {finished.run_id: RunStatus.SUCCESS, spared.run_id: RunStatus.SUCCESS}
        interrupted = dict.fromkeys(several[1:], RunStatus.INTERRUPTED) if action is CancelAction.INTERRUPT else {}
        assert statuses == {**kept, **interrupted}
        requests = store.log.reader.facts("t", topics=["run.cancel_requested"])
        assert {each.provenance for each in requests} == {ADA}
        assert await store.service.cancel_several(asked) == 0

    await within(settings, body)


@pytest.mark.parametrize(("status", "stopped"), [("pending", {1, 2}), ("running", {0}), ("all", {0, 1, 2})])
async def test_runs_of_a_status_are_cancelled_on_all_threads_of_the_caller(
    settings: Settings, status: str, stopped: set[int]
) -> None:
    async def body(store: Store, scripted: Scripted) -> None:

        base = command("wait_for_ever", "t", user_id="ada")
        runs = [await store.service.create_background(base)]
        await until(lambda: scripted.began == [runs[0].run_id])
        runs.append(await store.service.create_background(command("wait_for_ever", "t", user_id="ada")))
        runs.append(await store.service.create_background(command("work", "u", after_seconds=3600, user_id="ada")))
        other = await store.service.create_background(command("work", "v", after_seconds=3600, user_id="bob"))
        asked = CancelRunsCommand(status=status, user_id="ada")  # type: ignore[arg-type]
        assert await store.service.cancel_several(asked) == len(stopped)
        for number in stopped:
            await store.service.ended(runs[number].thread_id, runs[number].run_id)
        for number, run in enumerate(runs):
            found = await store.service.get_run(GetRunQuery(run_id=run.run_id))
            assert found is not None
            assert (found.status is RunStatus.INTERRUPTED) == (number in stopped)
        spared = await store.service.get_run(GetRunQuery(run_id=other.run_id))
        assert spared is not None
        assert spared.status is RunStatus.PENDING

        assert await store.service.cancel_several(CancelRunsCommand()) == 4 - len(stopped)

    await within(settings, body)


async def test_an_executor_that_ignores_cancellation_has_its_grace_and_no_more(settings: Settings) -> None:
    async def body(store: Store, scripted: Scripted) -> None:
        run = await store.service.create_background(command("ignore"))
        await until(lambda: scripted.began == [run.run_id])
        new = await store.service.create_background(command("work"))
        loop = asyncio.get_running_loop()
        asked = loop.time()
        await store.service.cancel(CancelRunCommand(run_id=run.run_id, wait=True))
        took = loop.time() - asked
        assert 0.5 <= took < 3, took
        await store.service.ended("t", new.run_id)
        assert loop.time() - asked < took + 0.5, "the next run waited for another grace"
        scripted.let_go.set()
        facts = store.log.reader.facts("t", run_id=run.run_id)
        assert facts[-1].fact.topic == "run.cancelled"

    await within(settings, body, cancel_grace_seconds=0.5)
