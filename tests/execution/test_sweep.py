"""The sweep: whatever was lost on the way, a run comes to its end, and the log says what was swept."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from procrastinate.exceptions import ConnectorException

from runs_es.domain import LeaseLost, Provenance, Recorded, RequeueCause, RunRequeued, Thread
from runs_es.execution import ActiveRun, RunOutcome
from runs_es.execution.jobs import ENQUEUE, MOVE, BatchedJobs, Deferrals, Request, enqueue_parameters
from runs_es.execution.queue import JobQueue, QueueWorker
from runs_es.execution.routes import DEFAULT_QUEUE, Place, Routes, located
from runs_es.execution.sweep import Sweep
from runs_es.log.decisions import Decision
from runs_es.log.reader import Head
from runs_es.service.commands import CancelRunCommand, CreateRunCommand
from runs_es.settings import Settings
from runs_projections.wiring import Store, open_store
from tests.execution.test_worker import QUICK, until

QUEUE = "-c search_path=runs_es_queue"


class Quick:
    async def execute(self, run: ActiveRun) -> RunOutcome | None:
        await run.publish("custom", run.attempt)
        return None


def command(thread_id: str = "t", assistant_id: str = "a", **values: Any) -> CreateRunCommand:
    return CreateRunCommand(thread_id=thread_id, create_thread=True, assistant_id=assistant_id, input="hello", **values)


async def within(settings: Settings, body: Callable[[Store], Awaitable[None]], *, work: bool = True) -> None:
    quick = settings.model_copy(update=QUICK)
    store = await asyncio.to_thread(lambda: open_store(quick, executor=Quick(), work=work))
    try:
        await asyncio.wait_for(body(store), 40)
    finally:
        await asyncio.to_thread(store.close)


def born(store: Store, thread_id: str = "t") -> str:
    """A run that is in the log and not in the queue, as of a process that died in between."""
    facts = store.service._birth(Thread(thread_id), f"run of {thread_id}", command(thread_id))
    store.decisions.make(thread_id, lambda *_: Decision(facts))
    return f"run of {thread_id}"


def claimed(store: Store, worker_id: str, thread_id: str = "t") -> str:
    """Claim the thread's run for a worker that will not do anything with it."""

    def decide(thread: Thread, head: Head) -> Decision:
        run = thread.next_due()
        assert run is not None
        claim_id = f"of {worker_id}"
        return Decision(thread.claim(run, claim_id=claim_id, worker_id=worker_id, frames=head.frames, max_attempts=9))

    store.decisions.make(thread_id, decide)
    return f"of {worker_id}"


def in_queue(settings: Settings, statement: str, *parameters: object) -> list[Any]:
    with psycopg.connect(str(settings.database_url), options=QUEUE) as connection:
        found = connection.execute(statement, parameters)
        return found.fetchall() if found.description else []


def job_in_hand(
    settings: Settings, silent: str = "1 hour", thread_id: str = "t", task: str = "runs_es.advance"
) -> datetime:
    """The thread's job, begun by a worker that has been silent for so long; since when."""
    lock = thread_id if task == "runs_es.advance" else None
    ((worker, since),) = in_queue(
        settings,
        "insert into procrastinate_workers (last_heartbeat) values (now() - %s::interval) returning id, last_heartbeat",
        silent,
    )
    in_queue(
        settings,
        "insert into procrastinate_jobs (queue_name, task_name, lock, queueing_lock, args, status, worker_id)"
        " values ('runs', %s, %s, %s, jsonb_build_object('thread_id', %s::text), 'doing', %s)",
        task, lock, lock, thread_id, worker,
    )  # fmt: skip
    assert isinstance(since, datetime)
    return since


def requeued(store: Store, thread_id: str = "t") -> list[Recorded]:
    return store.log.reader.facts(thread_id, topics=["run.requeued"])


@asynccontextmanager
async def sweeping(
    store: Store, settings: Settings, name: str = "me", heartbeat: float = 5
) -> AsyncIterator[tuple[Sweep, QueueWorker]]:
    """A sweep of its own, beside a queue's worker that fetches nothing."""

    async def advance(_: str) -> None:
        return

    jobs = QueueWorker(
        str(settings.database_url), settings.db_schema, advance,
        queues=[DEFAULT_QUEUE], locate=located(store.decisions, store.routes),
        concurrency=1, heartbeat_seconds=heartbeat, lease_seconds=10, drain_seconds=1,
    )  # fmt: skip
    async with jobs._app.open_async():
        accepts = store.external.assistants.leave
        yield (
            Sweep(jobs, store.queue, store.decisions, store.runs.active_threads, worker_id=name, accepts=accepts),
            jobs,
        )


async def test_the_log_says_which_worker_was_lost_since_when_it_was_silent_and_who_found_out(
    settings: Settings,
) -> None:
    async def body(store: Store) -> None:
        run_id = born(store)
        claimed(store, "gone")
        since = job_in_hand(settings)
        async with sweeping(store, settings) as (sweep, _):
            await sweep.round()
            await sweep.round()
        (recorded,) = requeued(store)
        fact = recorded.fact
        assert isinstance(fact, RunRequeued)
        assert (fact.run_id, fact.attempt, fact.cause, fact.worker_id) == (run_id, 1, RequeueCause.WORKER_LOST, "gone")
        assert fact.silent_since is not None
        assert datetime.fromisoformat(fact.silent_since) == since
        assert recorded.provenance.actor == "sweep:me"
        assert recorded.provenance.reason == f"worker gone lost, silent since {fact.silent_since}"
        assert in_queue(settings, "select lock, status::text, priority from procrastinate_jobs") == [("t", "todo", 1)]

    await within(settings, body, work=False)


async def test_of_several_sweeps_at_once_one_writes(settings: Settings) -> None:
    async def body(store: Store) -> None:
        born(store)
        claimed(store, "gone")
        job_in_hand(settings)
        async with sweeping(store, settings, "one") as (one, _), sweeping(store, settings, "two") as (two, _):
            await asyncio.gather(one.round(), two.round())
        assert len(requeued(store)) == 1
        assert len(in_queue(settings, "select 1 from procrastinate_jobs")) == 1

    await within(settings, body, work=False)


async def test_a_run_that_another_has_claimed_meanwhile_is_left_to_him(settings: Settings) -> None:
    async def body(store: Store) -> None:
        born(store)
        claimed(store, "gone")
        job_in_hand(settings)
        async with sweeping(store, settings) as (sweep, jobs):
            (job,) = await jobs.stalled()
            assert await jobs.give_away(job)  # by somebody who was faster; and his worker claims the run at once
            claimed(store, "new")
            before = len(requeued(store))
            await sweep._give_away(job)
            assert len(requeued(store)) == before
            with pytest.raises(LeaseLost):  # where the claim changed between the look and the write
                sweep._lose(job, "run of t", "of gone", "gone")

    await within(settings, body, work=False)


async def test_a_worker_that_is_heard_of_again_before_it_is_swept_keeps_its_run_and_its_job(settings: Settings) -> None:
    async def body(store: Store) -> None:
        born(store)
        claimed(store, "slow")
        job_in_hand(settings)
        async with sweeping(store, settings) as (sweep, jobs):
            (job,) = await jobs.stalled()
            in_queue(settings, "update procrastinate_workers set last_heartbeat = now()")
            await sweep._give_away(job)
        assert requeued(store) == []
        assert in_queue(settings, "select id, status::text from procrastinate_jobs") == [(job.id, "doing")]


async def test_a_wake_whose_worker_died_does_not_take_the_threads_run_from_its_own(settings: Settings) -> None:
    """The wake of a delayed run waits for no lock, so its thread may have been given to somebody who is well."""

    async def body(store: Store) -> None:
        born(store)
        claimed(store, "well")
        job_in_hand(settings, silent="0 seconds")
        job_in_hand(settings, task="runs_es.wake")
        async with sweeping(store, settings) as (sweep, _):
            await sweep.round()
        assert requeued(store) == []
        found = in_queue(settings, "select task_name, status::text from procrastinate_jobs order by id")
        assert found == [("runs_es.advance", "doing"), ("runs_es.advance", "todo")]

    await within(settings, body, work=False)


async def test_a_wake_whose_end_could_not_be_written_does_not_take_the_threads_run_from_its_worker(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(store: Store) -> None:
        born(store)
        claimed(store, "well")
        job_in_hand(settings, silent="0 seconds")
        job_in_hand(settings, silent="0 seconds", task="runs_es.wake")
        ((own,),) = in_queue(settings, "select worker_id from procrastinate_jobs where task_name = 'runs_es.wake'")
        async with sweeping(store, settings) as (sweep, jobs):
            monkeypatch.setattr(jobs, "_worker", SimpleNamespace(worker_id=own, _running_jobs={}))
            await sweep.round()
            await sweep.round()
        assert requeued(store) == []
        assert in_queue(settings, "select 1 from procrastinate_jobs where task_name = 'runs_es.wake'") == []

    await within(settings, body, work=False)


async def test_after_the_database_was_away_nobody_is_lost_before_he_could_be_heard(settings: Settings) -> None:
    async def body(store: Store) -> None:
        born(store)
        claimed(store, "well")
        job_in_hand(settings)
        clock = asyncio.get_running_loop().time
        async with sweeping(store, settings, heartbeat=0.01) as (sweep, jobs):
            with psycopg.connect(str(settings.database_url), options=QUEUE) as away:
                away.execute("lock table procrastinate_jobs in access exclusive mode")
                begun, round_ = clock(), asyncio.create_task(sweep.round())
                await until(lambda: clock() > begun + 0.05)
            await round_
            await sweep.round()
            assert requeued(store) == []
            jobs._deaf_until = clock()  # a lease later
            await sweep.round()
            assert len(requeued(store)) == 1

    await within(settings, body, work=False)


async def test_an_external_workers_run_is_not_the_lost_workers_whose_job_the_thread_has(settings: Settings) -> None:
    async def body(store: Store) -> None:
        born(store)
        claimed(store, "external")
        job_in_hand(settings)  # of a worker that died behind the thread's run before this
        async with sweeping(store, settings) as (sweep, _):
            await sweep.round()
        assert requeued(store) == []

    await within(settings.model_copy(update={"external_assistants": "a"}), body, work=False)


async def test_a_worker_that_is_silent_for_less_than_its_lease_keeps_its_run(settings: Settings) -> None:
    async def body(store: Store) -> None:
        born(store)
        claimed(store, "slow")
        job_in_hand(settings, silent="9 seconds")
        async with sweeping(store, settings) as (sweep, _):
            await sweep.round()
        assert requeued(store) == []

    await within(settings, body, work=False)


async def test_a_thread_that_cannot_be_swept_does_not_keep_others_from_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(store: Store) -> None:
        for thread_id in ("bad", "good"):
            born(store, thread_id)
            claimed(store, "gone", thread_id)
            job_in_hand(settings, thread_id=thread_id)
        born(store, "without a job")
        look = store.decisions.look

        def fails(thread_id: str) -> tuple[Thread, Head]:
            if thread_id == "bad":
                raise ValueError("a fact of a version that this one does not know")
            return look(thread_id)

        monkeypatch.setattr(store.decisions, "look", fails)
        async with sweeping(store, settings) as (sweep, _):
            await sweep.round()
        assert len(requeued(store, "good")) == 1
        await until(
            lambda: in_queue(settings, "select 1 from procrastinate_jobs where lock = 'without a job'") == [(1,)]
        )

    await within(settings, body, work=False)


@pytest.mark.parametrize("projector", ["runs", "stands still"])
async def test_a_run_that_never_came_to_the_queue_is_executed(settings: Settings, projector: str) -> None:
    async def body(store: Store) -> None:
        if projector == "stands still":
            await asyncio.to_thread(store.projector.close)
        run_id = await asyncio.to_thread(born, store)
        await store.service.ended("t", run_id)
        assert len(store.log.reader.facts("t", topics=["run.completed"])) == 1

    await within(settings, body)


async def test_where_the_read_model_stands_still_ended_runs_of_the_log_are_not_swept(settings: Settings) -> None:
    async def body(store: Store) -> None:
        await asyncio.to_thread(store.projector.close)
        run_id = await asyncio.to_thread(born, store)
        assert await asyncio.to_thread(store.runs.active_threads) == ["t"]
        await store.service.delete_run("t", run_id, user_id=None, provenance=Provenance())
        assert await asyncio.to_thread(store.runs.active_threads) == []

    await within(settings, body, work=False)


async def test_a_job_whose_end_could_not_be_written_is_given_away_by_its_own_worker(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker lives, so nobody else may take the job from it; and the thread's next run waits behind that job."""
    failed: list[int] = []
    finish = BatchedJobs.finish_job

    async def fails_once(self: BatchedJobs, job: Any, *arguments: Any, **options: Any) -> None:
        if not failed:
            failed.append(job.id)
            raise ConnectorException("the connection was lost just now")
        await finish(self, job, *arguments, **options)

    monkeypatch.setattr(BatchedJobs, "finish_job", fails_once)

    async def body(store: Store) -> None:
        first = await store.service.create_background(command())
        await store.service.ended("t", first.run_id)
        await until(lambda: bool(failed))
        second = await store.service.create_background(command())
        await store.service.ended("t", second.run_id)

    await within(settings, body)


async def test_a_run_in_flight_whose_job_is_gone_is_taken_over(settings: Settings) -> None:
    async def body(store: Store) -> None:
        run_id = await asyncio.to_thread(born, store)
        await asyncio.to_thread(claimed, store, "gone")
        await store.service.ended("t", run_id)
        (recorded,) = requeued(store)
        assert isinstance(recorded.fact, RunRequeued)
        assert recorded.fact.worker_id == "gone"

    await within(settings, body)


def test_a_wake_that_fails_raises_nothing_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    nobody = "postgresql://127.0.0.1:1/none"
    queue = JobQueue(nobody, "runs_es", routes=Routes({}), locate=lambda _: Place())
    queue.wake("t")
    queue.wake("t", due_at="2026-01-01T00:00:00+00:00")
    queue.close()
    queue.wake("t")
    assert "the sweep will find" in caplog.text


async def test_a_thread_that_cannot_be_read_does_not_keep_others_from_their_jobs(settings: Settings) -> None:
    def locate(thread_id: str) -> Place:
        if thread_id == "bad":
            raise ValueError("a fact of a version that this one does not know")
        return Place()

    async def body(_: Store) -> None:
        queue = JobQueue(str(settings.database_url), settings.db_schema, routes=Routes({}), locate=locate)
        for thread_id in ("bad", "good"):
            queue.wake(thread_id)
        await asyncio.to_thread(queue.close)
        assert in_queue(settings, "select lock from procrastinate_jobs order by 1") == [("bad",), ("good",)]

    await within(settings, body, work=False)


async def test_a_job_moves_to_where_the_threads_next_run_belongs_when_what_was_before_it_is_cancelled(
    settings: Settings,
) -> None:
    queues = settings.model_copy(update={"queues": {"gpu": ["heavy"]}})
    waits = "select queue_name, priority from procrastinate_jobs"

    async def body(store: Store) -> None:
        heavy = await store.service.create_background(command(assistant_id="heavy", config={"priority": 3}))
        await until(lambda: in_queue(settings, waits) == [("runs.gpu", 6)])
        await store.service.create_background(command(config={"priority": -1}))
        await store.service.cancel(CancelRunCommand(run_id=heavy.run_id, thread_id=heavy.thread_id))
        await until(lambda: in_queue(settings, waits) == [("runs", -2)])

    await within(queues, body, work=False)


async def test_a_job_that_was_left_behind_does_not_keep_the_threads_next_run_in_its_queue(settings: Settings) -> None:
    queues = settings.model_copy(update={"queues": {"gpu": ["heavy"]}})
    waits = "select queue_name, priority from procrastinate_jobs"

    async def body(store: Store) -> None:
        heavy = await store.service.create_background(command(assistant_id="heavy", config={"priority": -3}))
        await store.service.create_background(command(after_seconds=3600))
        await until(lambda: ("runs.gpu", -6) in in_queue(settings, waits))
        await store.service.cancel(CancelRunCommand(run_id=heavy.run_id, thread_id=heavy.thread_id))
        await store.service.create_background(command(config={"priority": 1}))
        await until(lambda: ("runs", 2) in in_queue(settings, waits))

    await within(queues, body, work=False)


async def test_of_runs_that_come_together_the_first_says_where_their_thread_waits(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    queues = settings.model_copy(update={"queues": {"gpu": ["heavy"]}})
    go = threading.Event()
    write = Deferrals._write

    def later(deferrals: Deferrals, batch: Any) -> None:
        go.wait()
        write(deferrals, batch)

    async def body(store: Store) -> None:
        monkeypatch.setattr(Deferrals, "_write", later)
        await store.service.create_background(command("other"))
        for assistant_id in ("a", "heavy"):
            await store.service.create_background(command("t", assistant_id))
        go.set()
        await asyncio.to_thread(store.queue.close)
        assert in_queue(settings, "select queue_name from procrastinate_jobs where lock = 't'") == [("runs",)]

    await within(queues, body, work=False)


async def test_a_connection_of_the_queue_that_died_loses_no_job(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = "from pg_stat_activity where application_name = 'runs-es queue' and datname = current_database()"

    async def body(store: Store) -> None:
        for name in ("t", "u"):
            await store.service.create_background(command(name))
            await until(lambda: in_queue(settings, "select 1 from procrastinate_jobs where lock = %s", name))  # noqa: B023
            in_queue(settings, f"select pg_terminate_backend(pid) {theirs}")
            await until(lambda: not in_queue(settings, f"select 1 {theirs}"))
        assert "could not be queued" not in caplog.text

    await within(settings, body, work=False)


def test_jobs_asked_for_together_are_taken_in_the_order_in_which_they_were_asked_for(settings: Settings) -> None:
    threads = [f"t{number}" for number in reversed(range(20))]
    with (
        open_store(settings, executor=Quick(), work=False),
        psycopg.connect(str(settings.database_url), options=QUEUE, autocommit=True) as connection,
    ):
        for statement in (MOVE, ENQUEUE):
            connection.execute("delete from procrastinate_jobs")
            connection.execute(statement, enqueue_parameters([Request(each, Place()) for each in threads]))
            taken = connection.execute("select args ->> 'thread_id' from procrastinate_jobs order by id").fetchall()
            assert [thread_id for (thread_id,) in taken] == threads
