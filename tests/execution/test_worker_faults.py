"""What may go wrong around a worker: leases lost to a successor, ends that cannot be written, agents that end their
process, deletions beside a running run, lives of one thread id.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any

import pytest

from runs_es.domain import (
    ConflictError,
    LeaseLost,
    MessageRecorded,
    Provenance,
    Run,
    RunScope,
    Thread,
    WriteConflict,
    now,
)
from runs_es.execution import ActiveRun, RunOutcome
from runs_es.execution.worker import Worker
from runs_es.log.append import Append, PageItem
from runs_es.log.decisions import Decide, Decision, Decisions
from runs_es.log.event_log import EventLog
from runs_es.log.pages import frame
from runs_es.log.reader import Head
from runs_es.service.commands import CreateRunCommand, GetRunQuery, ListRunMessagesQuery
from runs_es.settings import Settings
from runs_projections import Store, open_store

QUICK = {"heartbeat_seconds": 0.3, "lease_seconds": 1.5, "sweep_seconds": 0.2, "cancel_grace_seconds": 0.5}
Script = Callable[[ActiveRun], Awaitable[Any]]


class Scripted:
    """An executor that does what was registered under the run's input."""

    def __init__(self, **scripts: Script) -> None:
        self.scripts = scripts
        self.began: list[str] = []

    async def execute(self, run: ActiveRun) -> RunOutcome | None:
        self.began.append(run.run.run_id)
        outcome: RunOutcome | None = await self.scripts[run.run.kwargs["input"]](run)
        return outcome


def given(executor: Scripted) -> Callable[[], AbstractAsyncContextManager[Scripted]]:
    """What opens the executor on the agents' loop."""
    return lambda: nullcontext(executor)


async def within(settings: Settings, executor: Scripted, body: Callable[[Store], Awaitable[None]]) -> None:
    store = await asyncio.to_thread(lambda: open_store(settings.model_copy(update=QUICK), executor=executor))
    try:
        await asyncio.wait_for(body(store), 40)
    finally:
        await asyncio.to_thread(store.close)


def command(what: str, thread_id: str | None = "t", **values: Any) -> CreateRunCommand:
    return CreateRunCommand(thread_id=thread_id, create_thread=True, assistant_id="a", input=what, **values)


def topics(store: Store, thread_id: str = "t") -> list[str]:
    return [each.fact.topic for each in store.log.reader.facts(thread_id)]


async def stream_of(store: Store, thread_id: str, run_id: str) -> list[tuple[str, Any]]:
    stream = await store.service._open(thread_id, run_id, 0, 15.0)
    return [(event.event, event.data) async for event in stream.events if event.id]


class Falsy(Exception):
    def __bool__(self) -> bool:
        return False


class Unprintable(Exception):
    def __str__(self) -> str:
        raise KeyboardInterrupt

    __repr__ = __str__


async def quick(_: ActiveRun) -> None:
    return None


async def for_ever(_: ActiveRun) -> None:
    await asyncio.Event().wait()


async def test_a_worker_that_lost_its_run_does_not_take_it_back(settings: Settings, database_url: str) -> None:
    """Another worker claims the run while ours executes it: ours lets go, and only one claim was added."""
    begun = asyncio.Event()

    async def wait(_: ActiveRun) -> None:
        begun.set()
        await asyncio.Event().wait()

    with EventLog(database_url) as log:
        decisions = Decisions(log)
        created = Run.create(run_id="r", thread_id="t", assistant_id="a", kwargs={"input": "wait"})
        born = Thread("t").create()
        decisions.make("t", lambda *_: Decision([born, *created.pull_events()]))
        worker = Worker(log, decisions, Scripted(wait=wait))
        advancing = asyncio.create_task(worker.advance("t"))
        await asyncio.wait_for(begun.wait(), 10)

        def take_over(thread: Thread, head: Head) -> Decision:
            run = thread.next_due()
            assert run is not None
            return Decision(thread.claim(run, claim_id="other", worker_id="w2", frames=head.frames, max_attempts=9))

        await asyncio.to_thread(decisions.make, "t", take_over)
        await asyncio.wait_for(advancing, 10)
        claims = log.reader.facts("t", topics=["run.claimed"])
        assert [fact.fact.claim_id for fact in claims][-1] == "other"  # type: ignore[attr-defined]
        assert len(claims) == 2


async def test_only_the_first_claim_of_a_thread_does_not_wait_for_older_ones(database_url: str) -> None:
    waited: list[int] = []
    with EventLog(database_url) as log:
        decisions = Decisions(log)

        def born(run_id: str) -> Decide:
            created = Run.create(run_id=run_id, thread_id="t", assistant_id="a", kwargs={"input": "quick"})
            facts = created.pull_events()
            return lambda thread, _: Decision(facts if thread.exists else [thread.create(), *facts])

        def barrier(thread_id: str) -> None:
            waited.append(len(log.reader.facts(thread_id, topics=["run.claimed"])))

        worker = Worker(log, decisions, Scripted(quick=quick), barrier=barrier)
        for run_id in ("first", "second", "third"):
            await asyncio.to_thread(decisions.make, "t", born(run_id))
            await worker.advance("t")
        assert len(log.reader.facts("t", topics=["run.completed"])) == 3
    assert waited == [2, 3]


def test_a_refused_write_is_not_acknowledged_because_a_successor_recorded_the_same(database_url: str) -> None:
    """The stale worker's [message, page] and the successor's message have one key; the page is not stored by that."""
    served: list[bytes] = []
    with EventLog(database_url) as log:
        log.watch(on_commit=lambda won: served.extend(b for r, _ in won for i in r.items if isinstance(i, PageItem)
                                                      for b in i.bodies))  # fmt: skip
        born = log.append("t", [Thread("t").create()], expected=0).result(10)

        def message() -> Any:
            fact = MessageRecorded(thread_id="t", run_id="r", occurred_at=now(), message_id="m", content="same")
            return log.item(fact, Provenance(), "message:m:1:same")

        fresh = Append("t", [message()], fence=born.fence, frames=born.frames)
        log.writer.submit(fresh).result(10)
        stale = Append("t", [message(), PageItem("r", [frame("custom", b'"phantom"')])], fence=born.fence + 7, frames=0)
        assert isinstance(log.writer.submit(stale).exception(10), WriteConflict)
    assert served == []


async def test_deleting_an_ended_run_does_not_disturb_the_one_that_runs(settings: Settings) -> None:
    go_on = threading.Event()

    async def work(run: ActiveRun) -> None:
        await run.publish("custom", 1)
        await run.flush()
        await asyncio.to_thread(go_on.wait, 20)
        await run.publish("custom", 2)

    async def body(store: Store) -> None:
        old = await store.service.create_background(command("quick"))
        await store.service.ended("t", old.run_id)
        run = await store.service.create_background(command("work"))
        while (await asyncio.to_thread(topics, store)).count("run.started") < 2:
            pass
        await store.service.delete_run("t", old.run_id, user_id=None, provenance=Provenance())
        go_on.set()
        events = await stream_of(store, "t", run.run_id)
        assert [name for name, _ in events] == ["metadata", "custom", "custom", "end"], events
        found = await store.service.get_run(GetRunQuery(run_id=run.run_id))
        assert found is not None
        assert found.status == "success"

    await within(settings, Scripted(quick=quick, work=work), body)


async def test_an_agent_that_ends_its_process_ends_only_its_run(settings: Settings) -> None:
    async def leave(_: ActiveRun) -> None:
        raise SystemExit(3)

    async def leave_from_a_task(_: ActiveRun) -> None:
        async def exit_now() -> None:
            raise SystemExit(4)

        await asyncio.create_task(exit_now())

    async def body(store: Store) -> None:
        run = await store.service.create_background(command("leave"))
        events = await stream_of(store, "t", run.run_id)
        assert events[1][0] == "error"
        assert "SystemExit(3)" in events[1][1]["message"]
        await store.service.create_background(command("leave_from_a_task", "elsewhere"))
        after = await store.service.create_background(command("quick"))
        await store.service.ended("t", after.run_id)
        assert store.worker is not None
        assert store.worker.is_alive

    await within(settings, Scripted(leave=leave, leave_from_a_task=leave_from_a_task, quick=quick), body)


async def test_an_agent_that_cancels_all_tasks_ends_its_run_and_others_are_put_back(settings: Settings) -> None:
    began = threading.Event()

    async def wait_once(run: ActiveRun) -> None:
        began.set()
        if run.attempt == 1:
            await asyncio.Event().wait()

    async def cancel_all(_: ActiveRun) -> None:
        for task in asyncio.all_tasks():
            task.cancel()
        await asyncio.Event().wait()

    async def body(store: Store) -> None:
        other = await store.service.create_background(command("wait_once", "other"))
        await asyncio.to_thread(began.wait, 20)
        bad = await store.service.create_background(command("cancel_all"))
        events = await stream_of(store, "t", bad.run_id)
        assert events[1][1]["error"] == "OtherRunsCancelled"
        await store.service.ended("other", other.run_id)
        found = await store.service.get_run(GetRunQuery(run_id=other.run_id))
        assert found is not None
        assert (found.status, found.attempt) == ("success", 2)
        (put_back,) = store.log.reader.facts("other", topics=["run.requeued"])
        assert put_back.fact.cause == "worker_stopped", "no attempt is counted"  # type: ignore[attr-defined]
        assert topics(store).count("run.claimed") == 1

    await within(settings, Scripted(wait_once=wait_once, cancel_all=cancel_all), body)


async def test_a_run_that_blocks_its_loop_ends_when_its_time_is_up(settings: Settings) -> None:
    release = threading.Event()

    async def block(_: ActiveRun) -> None:
        release.wait(30)

    async def body(store: Store) -> None:
        run = await store.service.create_background(command("block", config={"timeout_seconds": 0.3}))
        events = await stream_of(store, "t", run.run_id)
        assert events[-2][1]["error"] == "TimeoutError"
        assert not release.is_set()
        release.set()
        after = await store.service.create_background(command("quick"))
        await store.service.ended("t", after.run_id)
        assert topics(store).count("run.failed") == 1

    try:
        await within(settings, Scripted(block=block, quick=quick), body)
    finally:
        release.set()


@pytest.mark.parametrize(
    ("what", "kind"),
    [
        ("falsy", "Falsy"),
        ("unprintable", "Unprintable"),
        ("surrogate", "ValueError"),
        ("huge", "ValueError"),
        ("wrong", "TypeError"),
        ("unstorable", "ValueError"),
    ],
)
async def test_an_end_that_cannot_be_written_is_an_error_at_the_first_attempt(
    settings: Settings, what: str, kind: str
) -> None:
    async def falsy(_: ActiveRun) -> None:
        raise Falsy

    async def unprintable(_: ActiveRun) -> None:
        raise Unprintable

    async def surrogate(_: ActiveRun) -> None:
        raise ValueError("a file called \udcff and a NUL \x00")

    async def huge(_: ActiveRun) -> None:
        raise ValueError("x" * 30_000_000)

    async def wrong(_: ActiveRun) -> Any:
        return {"not": "an outcome"}

    async def unstorable(_: ActiveRun) -> RunOutcome:
        return RunOutcome(interrupts={"task": [{"value": object()}]})

    executor = Scripted(
        falsy=falsy, unprintable=unprintable, surrogate=surrogate, huge=huge, wrong=wrong, unstorable=unstorable
    )

    async def body(store: Store) -> None:
        run = await store.service.create_background(command(what))
        events = await stream_of(store, "t", run.run_id)
        assert [name for name, _ in events] == ["metadata", "error", "end"]
        assert events[1][1]["error"] == kind
        assert executor.began == [run.run_id]

    await within(settings, executor, body)


async def test_a_run_given_up_says_so_in_its_stream(settings: Settings) -> None:
    async def body(store: Store) -> None:
        created = store.service._birth(Thread("t"), "r", command("quick"))
        await asyncio.to_thread(store.decisions.make, "t", lambda *_: Decision(created))
        for attempt in range(3):

            def ghost(thread: Thread, head: Head, attempt: int = attempt) -> Decision:
                run = thread.next_due()
                assert run is not None
                return Decision(
                    thread.claim(run, claim_id=f"g{attempt}", worker_id="g", frames=head.frames, max_attempts=9)
                )

            await asyncio.to_thread(store.decisions.make, "t", ghost)
        events = await stream_of(store, "t", "r")
        assert events[-2][0] == "error"
        assert events[-2][1]["error"] == "WorkerLost"

    # Claims of ghosts must come before the sweep finds the run.
    store = await asyncio.to_thread(lambda: open_store(settings.model_copy(update=QUICK), executor=None, work=False))
    try:
        done = asyncio.create_task(body(store))
        while (await asyncio.to_thread(topics, store)).count("run.claimed") < 3:
            pass
        worker = await asyncio.to_thread(
            lambda: open_store(settings.model_copy(update=QUICK), executor=Scripted(quick=quick))
        )
        await asyncio.wait_for(done, 30)
        await asyncio.to_thread(worker.close)
    finally:
        await asyncio.to_thread(store.close)


async def test_what_waits_on_a_temporary_thread_ends_with_it(settings: Settings) -> None:
    release = threading.Event()

    async def hold(_: ActiveRun) -> None:
        await asyncio.to_thread(release.wait, 20)

    async def body(store: Store) -> None:
        first = await store.service.create_background(command("hold", None, scope=RunScope.TEMPORARY_THREAD))
        second = await store.service.create_background(command("quick", first.thread_id))
        release.set()
        await store.service.ended(first.thread_id, first.run_id)
        assert await stream_of(store, first.thread_id, second.run_id) == [("end", None)]

    await within(settings, Scripted(hold=hold, quick=quick), body)


async def test_a_message_of_an_earlier_life_of_the_thread_is_recorded_again(settings: Settings) -> None:
    async def say(run: ActiveRun) -> None:
        await asyncio.gather(*(run.record_message({"id": "m", "type": "ai", "content": "hello"}) for _ in range(3)))

    async def body(store: Store) -> None:
        for _ in range(2):
            run = await store.service.create_background(command("say"))
            await store.service.ended("t", run.run_id)
            messages = await store.service.list_run_messages(ListRunMessagesQuery(thread_id="t"))
            assert [message.content["content"] for message in messages] == ["hello"]
            await store.service.delete_thread("t", provenance=Provenance())

    await within(settings, Scripted(say=say), body)


async def test_a_task_left_behind_writes_nothing_after_the_end(settings: Settings) -> None:
    refused: list[BaseException] = []
    stopped = threading.Event()
    left: list[asyncio.Task[None]] = []

    async def leave_behind(run: ActiveRun) -> None:
        async def go_on() -> None:
            try:
                while True:
                    await run.publish("custom", "late")
                    await asyncio.sleep(0)
            except LeaseLost as error:
                refused.append(error)
                stopped.set()

        left.append(asyncio.create_task(go_on()))
        await asyncio.sleep(0)

    async def body(store: Store) -> None:
        run = await store.service.create_background(command("leave_behind"))
        end = await store.service.ended("t", run.run_id)
        await asyncio.to_thread(stopped.wait, 20)
        assert refused
        assert store.log.reader.rows_after("t", end, 10) == []

    await within(settings, Scripted(leave_behind=leave_behind), body)


async def test_a_run_id_is_used_once(settings: Settings) -> None:
    async def body(store: Store) -> None:
        first = await store.service.create_background(command("quick", run_id="mine"))
        await store.service.ended("t", first.run_id)
        with pytest.raises(ConflictError):
            await store.service.create_background(command("quick", run_id="mine"))

    await within(settings, Scripted(quick=quick), body)


@pytest.mark.parametrize("reason", ["a NUL \x00", "a surrogate \udcff", "x" * 3000])
async def test_a_reason_that_cannot_be_stored_is_refused_alone(settings: Settings, reason: str) -> None:
    async def body(store: Store) -> None:
        with pytest.raises(ValueError, match="reason"):
            await store.service.create_background(command("quick", provenance=Provenance(reason=reason)))
        run = await store.service.create_background(command("quick"))
        await store.service.ended("t", run.run_id)

    await within(settings, Scripted(quick=quick), body)


async def test_facts_wait_for_room_like_frames_do(settings: Settings) -> None:
    most: list[int] = []

    async def record_much(run: ActiveRun) -> None:
        for number in range(20):
            await run.record_event("big", "trace", "x" * 400_000, {"number": number})
            most.append(run.writer.uncommitted)  # type: ignore[attr-defined]

    async def body(store: Store) -> None:
        run = await store.service.create_background(command("record_much"))
        await store.service.ended("t", run.run_id)
        assert topics(store).count("event.recorded") == 20
        assert max(most) < 1_000_000 + 500_000

    await within(
        settings.model_copy(update={"publish_buffer_bytes": 1_000_000}), Scripted(record_much=record_much), body
    )
