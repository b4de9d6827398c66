"""Who asked, and why, in the facts that a worker or a sweep writes on somebody's behalf."""

from __future__ import annotations

import asyncio

from runs_es.domain import CancelAction, Provenance, Recorded, RunScope
from runs_es.domain.values import MultitaskStrategy
from runs_es.service.commands import CancelRunCommand
from runs_es.settings import Settings
from runs_projections.wiring import Store, open_store
from tests.execution.test_worker import Scripted, command, topics, until, within

ADA = Provenance(actor="user:ada", reason="not needed", correlation_id="request-1")
ASKED = "cancel requested by user:ada: not needed"


def told(store: Store, topic: str, thread_id: str = "t") -> Recorded:
    """The one fact of this topic."""
    (found,) = store.log.reader.facts(thread_id, topics=[topic])
    return found


def actor(recorded: Recorded) -> str:
    return (recorded.provenance.actor or "").partition(":")[0]


async def test_the_end_of_a_cancelled_run_names_the_request_and_who_made_it(settings: Settings) -> None:
    async def body(store: Store, _: Scripted) -> None:
        run = await store.service.create_background(command("wait_for_ever"))
        await until(lambda: "run.started" in topics(store))
        await store.service.cancel(CancelRunCommand(run_id=run.run_id, wait=True, provenance=ADA))
        request, end = told(store, "run.cancel_requested"), told(store, "run.cancelled")
        assert actor(end) == "worker"
        assert end.provenance.causation_id == str(request.seq)
        assert end.provenance.correlation_id == "request-1"
        assert end.provenance.reason == ASKED

    await within(settings, body)


async def test_a_run_that_is_rolled_back_leaves_for_the_reason_of_its_cancel(settings: Settings) -> None:
    async def body(store: Store, _: Scripted) -> None:
        run = await store.service.create_background(command("wait_for_ever"))
        await until(lambda: "run.started" in topics(store))
        cancel = CancelRunCommand(run_id=run.run_id, action=CancelAction.ROLLBACK, wait=True, provenance=ADA)
        await store.service.cancel(cancel)
        request, end, gone = (told(store, f"run.{what}") for what in ("cancel_requested", "cancelled", "deleted"))
        assert end.provenance == gone.provenance
        assert (gone.provenance.causation_id, gone.provenance.reason) == (str(request.seq), ASKED)

    await within(settings, body)


async def test_a_run_that_another_takes_the_place_of_names_that_one(settings: Settings) -> None:
    async def body(store: Store, _: Scripted) -> None:
        first = await store.service.create_background(command("wait_for_ever"))
        await until(lambda: "run.started" in topics(store))
        second = await store.service.create_background(
            command("work", multitask_strategy=MultitaskStrategy.INTERRUPT, provenance=ADA)
        )
        await store.service.ended("t", second.run_id)
        request, end = told(store, "run.cancel_requested"), told(store, "run.cancelled")
        assert request.provenance.causation_id == second.run_id
        assert end.provenance.causation_id == str(request.seq)
        assert end.provenance.reason == f"cancel requested by user:ada: superseded by run {second.run_id}"
        assert first.run_id == end.fact.run_id  # type: ignore[attr-defined]

    await within(settings, body)


async def test_a_temporary_thread_goes_because_of_its_run(settings: Settings) -> None:
    async def body(store: Store, _: Scripted) -> None:
        run = await store.service.create_background(command("work", scope=RunScope.TEMPORARY_THREAD))
        await until(lambda: "thread.deleted" in topics(store))
        gone = told(store, "thread.deleted")
        assert gone.provenance.causation_id == run.run_id
        assert gone.provenance.reason == f"run {run.run_id} has ended, and its temporary thread with it"
        assert told(store, "run.completed").provenance.reason is None

    await within(settings, body)


async def test_a_run_that_is_deleted_by_hand_is_deleted_by_who_did_it(settings: Settings) -> None:
    async def body(store: Store, _: Scripted) -> None:
        run = await store.service.create_background(command("wait_for_ever"))
        await until(lambda: "run.started" in topics(store))
        await store.service.delete_run("t", run.run_id, user_id=None, provenance=ADA)
        facts = [told(store, f"run.{what}") for what in ("cancel_requested", "cancelled", "deleted")]
        assert [each.provenance for each in facts] == [ADA] * 3
        await store.service.delete_thread("t", provenance=ADA)
        assert told(store, "thread.deleted").provenance == ADA

    await within(settings, body)


async def test_a_run_that_is_handed_over_says_that_its_worker_stopped(settings: Settings) -> None:
    async def body(store: Store, _: Scripted) -> None:
        await store.service.create_background(command("wait_for_ever"))
        await until(lambda: "run.started" in topics(store))

    await within(settings, body)
    store = await asyncio.to_thread(lambda: open_store(settings, executor=Scripted(), work=False))
    try:
        requeued = told(store, "run.requeued")
    finally:
        await asyncio.to_thread(store.close)
    worker = (requeued.provenance.actor or "").removeprefix("worker:")
    assert requeued.provenance.reason == f"worker {worker} stopped"
