"""The worker over a real store: who runs what, in which order, and what becomes of the cancelled, lost and drained."""

from __future__ import annotations

import asyncio
import io
import itertools
import runpy
import threading
from collections.abc import Awaitable, Callable
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

import pytest

from runs_es.domain import (
    ConflictError,
    DisconnectMode,
    LeaseLost,
    Provenance,
    RunNotFound,
    RunScope,
    RunStatus,
    Thread,
    ThreadNotFound,
)
from runs_es.domain.values import MultitaskStrategy
from runs_es.execution import ActiveRun, RunOutcome
from runs_es.execution.attempt import Attempt
from runs_es.log.decisions import Decision
from runs_es.log.reader import Head
from runs_es.service.commands import (
    CancelRunCommand,
    CreateRunCommand,
    GetRunQuery,
    JoinRunStreamCommand,
    ListRunMessagesQuery,
    ListRunsQuery,
)
from runs_es.settings import Settings
from runs_projections.wiring import Store, open_store

QUICK = {"heartbeat_seconds": 0.3, "lease_seconds": 1.5, "sweep_seconds": 0.2, "drain_seconds": 0.2,
         "cancel_grace_seconds": 1.0}  # fmt: skip


class Scripted:
    """An executor that does what the run's input names."""

    def __init__(self) -> None:
        self.began: list[str] = []
        self.running = asyncio.Event()
        self.tried_after_cancel: list[BaseException] = []
        self.let_go = threading.Event()

    async def execute(self, run: ActiveRun) -> RunOutcome | None:
        self.began.append(run.run.run_id)
        return await getattr(self, run.run.kwargs["input"])(run)  # type: ignore[no-any-return]

    async def work(self, run: ActiveRun) -> RunOutcome:
        for number in range(5):
            await run.publish("custom", {"number": number, "attempt": run.attempt})
        await run.publish("values", {"done": run.run.run_id})
        return RunOutcome()

    async def fail(self, run: ActiveRun) -> None:
        raise KeyError("the key")

    async def time_out(self, run: ActiveRun) -> None:
        raise TimeoutError("too slow")

    async def talk(self, run: ActiveRun) -> None:
        for text in ("one", "one", "two"):
            await run.record_message({"id": f"message-{text}", "type": "ai", "content": text})
        for text in ("one, edited", "one", "one, edited"):
            await run.record_message({"id": "message-one", "type": "ai", "content": text})
        await run.record_event("tool.called", "trace", {"tool": "clock"})

    async def say_again(self, run: ActiveRun) -> None:
        await run.record_message({"id": "message-one", "type": "ai", "content": "one, edited"})
        await run.record_message({"id": "message-two", "type": "ai", "content": "two"})

    async def wait_for_ever(self, run: ActiveRun) -> None:
        await run.publish("custom", "waiting")
        await run.flush()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            try:
                await run.publish("custom", "after the cancel")
                await run.flush()
            except LeaseLost as error:
                self.tried_after_cancel.append(error)
            raise

    async def chatter(self, run: ActiveRun) -> None:
        for number in itertools.count():
            await run.publish("custom", number)
            await asyncio.sleep(0.02)  # as a model pauses between words

    async def ignore(self, run: ActiveRun) -> None:
        while not self.let_go.is_set():
            with suppress(asyncio.CancelledError):
                await asyncio.get_running_loop().run_in_executor(None, self.let_go.wait)

    async def pause(self, run: ActiveRun) -> RunOutcome:
        return RunOutcome(interrupts={"task": [{"id": "i", "value": "sure?"}]})


InStore = Callable[[Store, Scripted], Awaitable[None]]


async def within(settings: Settings, body: InStore, **changes: Any) -> None:
    scripted = Scripted()
    quick = settings.model_copy(update={**QUICK, **changes})
    store = await asyncio.to_thread(lambda: open_store(quick, executor=scripted))
    try:
        await asyncio.wait_for(body(store, scripted), 40)
    finally:
        await asyncio.to_thread(store.close)


def command(what: str, thread_id: str | None = "t", **values: Any) -> CreateRunCommand:
    return CreateRunCommand(thread_id=thread_id, create_thread=True, assistant_id="scripted", input=what, **values)


def topics(store: Store, thread_id: str = "t") -> list[str]:
    return [each.fact.topic for each in store.log.reader.facts(thread_id)]


async def events_of(store: Store, run_id: str, after: str | None = None) -> list[tuple[str, str, Any]]:
    handle = await store.service.join_stream(JoinRunStreamCommand(run_id=run_id, last_event_id=after))
    return [(event.id, event.event, event.data) async for event in handle.events if event.id]


async def until(fact: Callable[[], bool]) -> None:
    """Wait for a fact in the database; the test's own bound ends it."""
    while not await asyncio.to_thread(fact):
        pass


async def test_a_run_streams_and_ends_and_its_result_is_its_last_values(settings: Settings) -> None:
    async def body(store: Store, _: Scripted) -> None:
        handle = await store.service.create_and_stream(command("work"))
        live = [(event.id, event.event, event.data) async for event in handle.events]
        assert [event for _, event, _ in live] == ["metadata", *["custom"] * 5, "values", "end"]
        assert await events_of(store, handle.run_id) == live
        assert await store.service.create_and_wait(command("work")) == {"done": (await listed(store))[0].run_id}

    await within(settings, body)


async def listed(store: Store) -> list[Any]:
    return list(await store.service.list_runs(ListRunsQuery(thread_id="t")))


async def test_runs_of_a_thread_go_first_in_first_out_one_at_a_time(settings: Settings) -> None:
    async def body(store: Store, scripted: Scripted) -> None:
        created = [await store.service.create_background(command("work")) for _ in range(12)]
        for run in created:
            await store.service.ended("t", run.run_id)
        assert scripted.began == [run.run_id for run in created]
        running = 0
        for recorded in store.log.reader.facts("t"):
            running += {"run.started": 1, "run.completed": -1}.get(recorded.fact.topic, 0)
            assert running <= 1
        assert [run.run_id for run in await listed(store)] == [run.run_id for run in reversed(created)]

    await within(settings, body)


async def test_a_failure_is_an_error_frame_and_a_fact(settings: Settings) -> None:
    async def body(store: Store, _: Scripted) -> None:
        assert await store.service.create_and_wait(command("fail")) == {
            "__error__": {"error": "KeyError", "message": "'the key'"}
        }
        (run,) = await listed(store)
        assert (run.status, run.error) == (RunStatus.ERROR, "'the key'")
        names = [event for _, event, _ in await events_of(store, run.run_id)]
        assert names == ["metadata", "error", "end"]
        late = await store.service.create_background(command("time_out"))
        await store.service.ended("t", late.run_id)
        (last, _) = await listed(store)
        assert (last.status, last.error_type) == (RunStatus.ERROR, "TimeoutError"), "only our own deadline is `timeout`"

    await within(settings, body)


async def test_a_message_is_recorded_when_its_newest_version_is_another(settings: Settings) -> None:
    async def body(store: Store, _: Scripted) -> None:
        await store.service.create_and_wait(command("talk"))
        assert topics(store).count("message.recorded") == 5
        messages = await store.service.list_run_messages(ListRunMessagesQuery(thread_id="t"))
        assert [message.content["content"] for message in messages] == ["two", "one, edited"]
        assert topics(store).count("event.recorded") == 1
        await store.service.create_and_wait(command("say_again"))
        assert topics(store).count("message.recorded") == 5

    await within(settings, body)


async def test_a_pause_is_success_with_a_question(settings: Settings) -> None:
    async def body(store: Store, _: Scripted) -> None:
        await store.service.create_and_wait(command("pause"))
        (run,) = await listed(store)
        assert (run.status, run.interrupts) == (RunStatus.SUCCESS, {"task": [{"id": "i", "value": "sure?"}]})
        thread = await asyncio.to_thread(store.threads.get, "t")
        assert thread is not None
        assert thread.status == "interrupted"

    await within(settings, body)


async def test_a_cancelled_run_is_interrupted_and_the_log_says_who_and_why(settings: Settings) -> None:
    async def body(store: Store, scripted: Scripted) -> None:
        run = await store.service.create_background(command("wait_for_ever"))
        await until(lambda: (head := store.log.reader.head("t")) is not None and head.frames == 2)
        who = Provenance(actor="user:ada", reason="wrong question")
        cancelled = await store.service.cancel(CancelRunCommand(run_id=run.run_id, wait=True, provenance=who))
        assert cancelled.status is RunStatus.INTERRUPTED
        assert topics(store)[-2:] == ["run.cancel_requested", "run.cancelled"]
        asked = store.log.reader.facts("t", topics=["run.cancel_requested"])[0]
        assert asked.provenance == who
        names = [event for _, event, _ in await events_of(store, run.run_id)]
        assert names == ["metadata", "custom", "end"]
        assert len(scripted.tried_after_cancel) == 1, "nothing may be written after the cancel"
        with pytest.raises(RunNotFound):
            await store.service.cancel(CancelRunCommand(run_id=run.run_id))

    await within(settings, body)


@pytest.mark.parametrize("what", ["work", "fail"])
async def test_a_cancel_while_the_end_of_a_temporary_thread_is_being_written_wins(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    async def body(store: Store, _: Scripted) -> None:
        flush = Attempt.flush

        async def flush_and_then_somebody_cancels(attempt: Attempt) -> None:
            await flush(attempt)
            await store.service.cancel(CancelRunCommand(run_id=attempt.run.run_id))

        monkeypatch.setattr(Attempt, "flush", flush_and_then_somebody_cancels)
        run = await store.service.create_background(command(what, scope=RunScope.TEMPORARY_THREAD))
        await store.service.ended("t", run.run_id)
        assert topics(store)[-3:] == ["run.cancel_requested", "run.cancelled", "thread.deleted"]

    await within(settings, body)


async def test_a_cancelled_pending_run_never_starts_and_the_next_one_does(settings: Settings) -> None:
    async def body(store: Store, scripted: Scripted) -> None:
        first = await store.service.create_background(command("wait_for_ever"))
        second = await store.service.create_background(command("work"))
        third = await store.service.create_background(command("work"))
        await store.service.cancel(CancelRunCommand(run_id=second.run_id))
        ended = await store.service.ended("t", second.run_id)
        assert await events_of(store, second.run_id) == [(str(ended), "end", None)]
        await until(lambda: "run.started" in topics(store))
        await store.service.cancel(CancelRunCommand(run_id=first.run_id))
        await store.service.ended("t", third.run_id)
        assert scripted.began == [first.run_id, third.run_id]

    await within(settings, body)


async def test_reject_on_a_busy_thread_is_a_conflict(settings: Settings) -> None:
    async def body(store: Store, _: Scripted) -> None:
        run = await store.service.create_background(command("wait_for_ever"))
        with pytest.raises(ConflictError):
            await store.service.create_background(command("work", multitask_strategy=MultitaskStrategy.REJECT))
        await until(lambda: "run.started" in topics(store))
        await store.service.cancel(CancelRunCommand(run_id=run.run_id, wait=True))

    await within(settings, body)


async def test_a_run_whose_worker_is_gone_is_taken_over_in_the_same_stream(settings: Settings) -> None:
    async def body(store: Store, _: Scripted) -> None:
        def orphan(thread: Thread, head: Head) -> Decision:
            run = thread.next_due()
            assert run is not None
            return Decision(thread.claim(run, claim_id="ghost", worker_id="ghost", frames=head.frames, max_attempts=3))

        created = store.service._birth(Thread("t"), "orphan", command("work"))
        await asyncio.to_thread(store.decisions.make, "t", lambda *_: Decision(created))
        await asyncio.to_thread(store.decisions.make, "t", orphan)
        events = await events_of(store, "orphan")
        assert events[0][2] == {"run_id": "orphan", "attempt": 2}
        assert events[-1][1] == "end"
        assert topics(store).count("run.requeued") == 1
        run = await store.service.get_run(GetRunQuery(run_id="orphan"))
        assert run is not None
        assert (run.status, run.attempt) == (RunStatus.SUCCESS, 2)

    await within(settings, body)


async def test_a_worker_that_shuts_down_puts_its_run_back_and_another_ends_it(settings: Settings) -> None:
    began: list[str] = []

    async def first(store: Store, _: Scripted) -> None:
        run = await store.service.create_background(command("wait_for_ever"))
        began.append(run.run_id)
        await until(lambda: "run.started" in topics(store))

    async def second(store: Store, scripted: Scripted) -> None:
        await until(lambda: scripted.began == began)
        await store.service.cancel(CancelRunCommand(run_id=began[0], wait=True))
        kinds = [topic for topic in topics(store) if topic.startswith("run.")]
        assert kinds.count("run.requeued") == 1
        assert kinds.count("run.started") == 2

    await within(settings, first)
    await within(settings, second)


async def test_a_temporary_thread_leaves_with_its_run_but_the_stream_stays(settings: Settings) -> None:
    async def body(store: Store, _: Scripted) -> None:
        run = await store.service.create_background(command("work", None, scope=RunScope.TEMPORARY_THREAD))
        await store.service.ended(run.thread_id, run.run_id)
        assert await asyncio.to_thread(store.threads.get, run.thread_id) is None
        assert await store.service.get_run(GetRunQuery(run_id=run.run_id)) is None
        assert [event for _, event, _ in await events_of(store, run.run_id)][-1] == "end"

    await within(settings, body)


async def test_another_users_run_reads_as_absent(settings: Settings) -> None:
    async def body(store: Store, _: Scripted) -> None:
        run = await store.service.create_background(command("work", user_id="ada"))
        await store.service.ended("t", run.run_id)
        assert await store.service.get_run(GetRunQuery(run_id=run.run_id, user_id="ada")) is not None
        assert await store.service.get_run(GetRunQuery(run_id=run.run_id, user_id="bob")) is None
        assert await store.service.get_run(GetRunQuery(run_id=run.run_id, thread_id="elsewhere")) is None
        with pytest.raises(RunNotFound):
            await store.service.join_stream(JoinRunStreamCommand(run_id=run.run_id, user_id="bob"))
        with pytest.raises(ThreadNotFound):
            await store.service.create_background(command("work", user_id="bob"))

    await within(settings, body)


async def test_the_same_idempotency_key_makes_one_run(settings: Settings) -> None:
    async def body(store: Store, scripted: Scripted) -> None:
        first = await store.service.create_background(command("work", idempotency_key="k"))
        again = await store.service.create_background(command("work", idempotency_key="k"))
        assert again.run_id == first.run_id
        await store.service.ended("t", first.run_id)
        assert scripted.began == [first.run_id]

    await within(settings, body)


async def test_what_disconnects_mean_is_kept_with_the_run(settings: Settings) -> None:
    async def body(store: Store, _: Scripted) -> None:
        run = await store.service.create_background(command("work", on_disconnect=DisconnectMode.CANCEL))
        facts = store.log.reader.run_facts(run.run_id)
        assert facts[0].fact.on_disconnect is DisconnectMode.CANCEL  # type: ignore[attr-defined]
        await store.service.ended("t", run.run_id)

    await within(settings, body)


def test_the_example_in_the_readme_runs_with_an_executor_of_ones_own(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = Path(__file__).parent.parent / "examples" / "own_executor.py"
    assert len(example.read_text().splitlines()) <= 30
    monkeypatch.setenv("RUNS_ES_DATABASE_URL", str(settings.database_url))
    printed = io.StringIO()
    with redirect_stdout(printed):
        runpy.run_path(str(example), run_name="__main__")
    lines = printed.getvalue().splitlines()
    assert [line.split()[1] for line in lines[:5]] == ["metadata", "custom", "custom", "values", "end"]
    assert "hello there" in lines[5]
