"""The job queue: says who should work on which thread. `procrastinate` on the same database.

A job means "thread T has work" and nothing more; what that work is stands in the log. Its lock keeps two workers off
one thread, but correctness does not rest on it: who may write is decided by the log's fence.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from typing import Any

import procrastinate
from procrastinate import exceptions
from procrastinate.job_context import JobContext
from procrastinate.jobs import Status
from procrastinate.worker import Worker

from runs_es.database.migrate import queue_schema
from runs_es.database.outage import is_lost
from runs_es.database.reporting import report
from runs_es.database.sessions import AsyncSessionPool, async_configuring
from runs_es.domain import Run
from runs_es.execution.blocking import blocking
from runs_es.execution.jobs import (
    ADVANCE,
    ENQUEUE,
    MOVE,
    WAKE,
    BatchedJobs,
    Deferrals,
    Locate,
    Request,
    Wanted,
    enqueue_parameters,
    queue_name,
)
from runs_es.execution.routes import Routes

logger = logging.getLogger(__name__)

_POLL_SECONDS = 2.0
_CONNECTIONS = 4
_WAIT_SECONDS = 30.0  # nobody is kept waiting but the worker itself
_SEND_BACK_SECONDS = 1.0
_SENT_KEPT = 1024
_TOLD_KEPT = 1024


class _SaidByOutage(logging.Filter):
    """Leaves out procrastinate's traceback of a lost connection: the outage is said once."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (isinstance(record.exc_info, tuple) and is_lost(record.exc_info[1]))


for _name in ("procrastinate.utils", "procrastinate.worker"):
    logging.getLogger(_name).addFilter(_SaidByOutage())

Advance = Callable[[str], Awaitable[None]]

_STALLED = """
select j.id, j.args ->> 'thread_id' as thread_id, j.lock is not null as has_lock, w.last_heartbeat
  from procrastinate_jobs j left join procrastinate_workers w on w.id = j.worker_id
 where j.status = 'doing' and (w.id is null or w.last_heartbeat < now() - make_interval(secs => %(lease)s))
   and (%(job)s::bigint is null or j.id = %(job)s)
"""
_STILL_DOING = """
select id from procrastinate_jobs where status = 'doing' and id = %(job)s
"""
_GIVEN_UP = """
select id, args ->> 'thread_id' as thread_id, lock is not null as has_lock, null as last_heartbeat
  from procrastinate_jobs
 where status = 'doing' and worker_id = %(worker)s and not id = any(%(in_hand)s::bigint[])
"""


@dataclass(frozen=True, slots=True)
class StalledJob:
    """A job that nobody works on; its worker is silent since then (ISO 8601), or has given it up. Without the lock (a
    wake) it keeps the thread from nobody, and says nothing about who works on it.
    """

    id: int
    thread_id: str
    silent_since: str | None = None
    given_up: bool = False
    has_lock: bool = True


def _stalled_job(row: Mapping[str, Any], *, given_up: bool = False) -> StalledJob:
    since = row["last_heartbeat"]
    silent_since = since.isoformat() if since else None
    return StalledJob(row["id"], str(row["thread_id"]), silent_since, given_up, row["has_lock"])


class JobQueue:
    """Says that threads have work, from any thread. The scheduler of the application service."""

    def __init__(self, url: str, schema: str, *, routes: Routes, locate: Locate) -> None:
        self._routes = routes
        self._told: set[tuple[str, ...]] = set()
        self._deferrals = Deferrals(url, queue_schema(schema), locate)

    def close(self) -> None:
        """Write what was asked for."""
        self._deferrals.close()

    def wake(self, thread_id: str, *, due_at: str | None = None, run: Run | None = None, behind: bool = False) -> None:
        """The thread has work, now or at `due_at`; `run` is what it is, as far as the caller knows, next or `behind`
        others. Returns at once and does not raise: what fails to be queued, a sweep will find.
        """
        # Delayed ones come without the lock: one an hour ahead would hold up every later one of its thread.
        place = self._routes.place(run) if run is not None else None
        if place is not None and not self._routes.serves(*place.assistants):
            self._say_that_nobody_here_serves(place.assistants)
        self._deferrals.ask(Wanted(thread_id, place, due_at, behind))

    def _say_that_nobody_here_serves(self, assistants: tuple[str, ...]) -> None:
        """Warn once for each assistant: a misspelt one waits for ever."""
        if assistants not in self._told and len(self._told) < _TOLD_KEPT:
            self._told.add(assistants)
            logger.warning("%s", _unserved(assistants, self._routes.names or ()))


def _unserved(assistants: Sequence[str], served: Sequence[str]) -> str:
    """What to say of runs whose assistant, by all its names, is none of those served."""
    nearest = [found for each in assistants for found in get_close_matches(each, served, n=1)]
    guess = f" (did you mean {nearest[0]}?)" if nearest else ""
    which = f"of the assistant {', '.join(assistants)}{guess}" if assistants else "that name no assistant"
    return f"runs {which} stay pending until another store serves them; this one serves: {', '.join(served) or 'none'}"


class _NewJobs(asyncio.Event):
    """The worker's event for "there are new jobs", which may not lose one.

    procrastinate clears it after every fetch, and so forgets a notification that came while the fetch was under way:
    that job waits for the next poll. Here the first `clear` after a `set` leaves the event set, which costs one more
    fetch; only the second one clears it.
    """

    _fresh = False

    def set(self) -> None:
        self._fresh = True
        super().set()

    def clear(self) -> None:
        if self._fresh:
            self._fresh = False
        else:
            super().clear()


class _Worker(Worker):
    """procrastinate's worker with an event that does not forget, also set when a job ends: one that was deferred
    meanwhile under the same lock could not be fetched before, and nobody would say so again.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._new_job_event = _NewJobs()

    def room(self) -> int:
        """Jobs that can begin now; one of them is being fetched for already."""
        return self._job_semaphore._value + 1

    async def _process_job(self, context: JobContext) -> None:
        await super()._process_job(context)
        self._new_job_event.set()


class QueueWorker:
    """Fetches jobs and calls `advance` for each, `concurrency` at once. Runs on one event loop."""

    def __init__(
        self,
        url: str,
        schema: str,
        advance: Advance,
        *,
        queues: Collection[str],
        locate: Locate,
        served: Collection[str] | None = None,
        concurrency: int,
        heartbeat_seconds: float,
        lease_seconds: float,
        drain_seconds: float,
    ) -> None:
        target = queue_schema(schema)

        def pool(**_: object) -> AsyncSessionPool:
            # Always asked: a heartbeat that fails once ends procrastinate's task, and the worker counts as lost.
            return AsyncSessionPool(url, target, "queue", size=_CONNECTIONS, seconds=_WAIT_SECONDS, unasked_seconds=0.0)

        # `configure` is of the connection that listens, which the connector makes beside its pool.
        connector = procrastinate.PsycopgConnector(pool_factory=pool, configure=async_configuring(target, {}))
        self._app = procrastinate.App(connector=connector)
        self._manager = self._app.job_manager = BatchedJobs(connector, served)
        self._queues = sorted(map(queue_name, queues))
        self._locate = locate
        self._app.task(name=ADVANCE)(self._advance)
        self._app.task(name=WAKE)(self._wake)
        self._work = advance
        self._passed: dict[str, str] = {}  # thread: run
        self._sent: OrderedDict[str, str] = OrderedDict()  # the newest of them
        self._concurrency = concurrency
        self._heartbeat = heartbeat_seconds
        self._lease = lease_seconds
        self._drain = drain_seconds
        self._stopping = asyncio.Event()
        self._worker: _Worker | None = None
        self._unheld: set[int] = set()
        self._deaf_until = 0.0  # by the loop's clock

    async def run(self, ready: Callable[[], None]) -> None:
        """Work until `stop`. A worker that dies of a failing side task is started again."""
        async with self._app.open_async():
            ready()
            while not self._stopping.is_set():
                try:
                    await self._run_once()
                except Exception as error:  # noqa: BLE001  (reported)
                    report(logger, error, "the queue's worker stopped; starting it again")
                    await self._pause(1.0)

    def stop(self) -> None:
        """Fetch no more jobs."""
        self._stopping.set()

    async def stalled(self) -> list[StalledJob]:
        """Jobs that nobody works on: of workers that are silent, and of this one where it has given them up.

        After the database was away, or this process was, nobody counts as silent for a lease: they could not be heard.
        """
        clock = asyncio.get_running_loop().time
        asked = clock()
        try:
            rows = await self._app.connector.execute_query_all_async(_STALLED, lease=self._lease, job=None)
        finally:
            if clock() - asked > self._heartbeat:
                self._deaf_until = clock() + self._lease
        heard = clock() >= self._deaf_until
        return [_stalled_job(row) for row in rows if heard] + await self._given_up()

    async def is_stalled(self, job: StalledJob) -> bool:
        """Whether nobody works on it still."""
        query = _STILL_DOING if job.given_up else _STALLED
        return bool(await self._app.connector.execute_query_all_async(query, lease=self._lease, job=job.id))

    async def give_away(self, job: StalledJob) -> bool:
        """Give its thread a new job; False when another sweep was faster.

        A new one rather than this one again: should its worker wake up and finish it, it finishes nobody's work.
        """
        try:
            await self._app.job_manager.finish_job_by_id_async(job.id, status=Status.FAILED, delete_job=True)
        except exceptions.ConnectorException:
            return False
        await self._wake(job.thread_id, begun=True)
        return True

    async def _given_up(self) -> list[StalledJob]:
        """Jobs fetched here whose end could not be written: nobody would ever take them. Seen twice in a row, because
        one that is just being fetched looks the same.
        """
        if self._worker is None:
            return []
        in_hand = [context.job.id for context in self._worker._running_jobs.values()] + self._manager.in_hand
        rows = await self._app.connector.execute_query_all_async(
            _GIVEN_UP, worker=self._worker.worker_id, in_hand=in_hand
        )
        seen, self._unheld = self._unheld, {row["id"] for row in rows}
        return [_stalled_job(row, given_up=True) for row in rows if row["id"] in seen]

    async def threads_with_jobs(self) -> set[str]:
        """Threads that have a job which waits or runs."""
        rows = await self._app.connector.execute_query_all_async(
            "select distinct lock from procrastinate_jobs where status in ('todo', 'doing') and lock is not null"
        )
        return {row["lock"] for row in rows}

    async def _run_once(self) -> None:
        worker = _Worker(
            app=self._app,
            queues=self._queues,
            concurrency=self._concurrency,
            install_signal_handlers=False,
            delete_jobs="always",
            fetch_job_polling_interval=_POLL_SECONDS,
            update_heartbeat_interval=self._heartbeat,
            # Who is pruned cannot be asked any more since when it is silent.
            stalled_worker_timeout=10 * self._lease,
            shutdown_graceful_timeout=self._drain,
        )
        self._worker, self._unheld = worker, set()
        self._manager.room = worker.room
        working = asyncio.create_task(worker.run())  # type: ignore[no-untyped-call]
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
            worker.stop()  # type: ignore[no-untyped-call]  # it finishes what it has begun, within the drain's bound
            await working
        finally:
            stopping.cancel()
            await self._manager.give_back()

    def pass_over(self, thread_id: str, run_id: str) -> None:
        """The thread's next run is for a worker of another queue. From any thread, while `advance` works on it."""
        self._passed[thread_id] = run_id

    async def _advance(self, thread_id: str) -> None:
        await self._work(thread_id)
        run_id = self._passed.pop(thread_id, None)
        if run_id is not None and self._sent.get(thread_id) == run_id:
            await self._send_later(thread_id)
        # A worker that stops leaves the thread's later runs to others, and this job was theirs too.
        elif run_id is not None or self._stopping.is_set():
            await self._wake(thread_id)  # before this job ends: its end tells them
        if run_id is not None:
            self._sent[thread_id] = run_id
            self._sent.move_to_end(thread_id)
            while len(self._sent) > _SENT_KEPT:
                self._sent.popitem(last=False)

    async def _send_later(self, thread_id: str) -> None:
        """Of a run that was sent on and came back, because its queue's workers know another queue for it: so its job
        goes from one to the other until somebody's settings change, but not all the time.
        """
        place = await blocking(self._locate, thread_id)
        if place is not None:
            logger.warning(
                "thread %s waits for %s, whose workers send it back: is RUNS_ES_QUEUES the same everywhere?",
                thread_id,
                place.queue,
            )
            due = datetime.now(UTC) + timedelta(seconds=_SEND_BACK_SECONDS)
            request = Request(thread_id, place, due.isoformat())
            await self._app.connector.execute_query_all_async(
                f"{ENQUEUE} returning id", **enqueue_parameters([request])
            )

    async def _wake(self, thread_id: str, *, begun: bool = False) -> None:
        """Give the thread a job where its next run belongs, if it has one. What has `begun` does not wait behind all
        of its priority that has not.
        """
        place = await blocking(self._locate, thread_id)
        if place is not None:
            request = Request(thread_id, place, begun=begun)
            await self._app.connector.execute_query_all_async(MOVE, **enqueue_parameters([request]))

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)
