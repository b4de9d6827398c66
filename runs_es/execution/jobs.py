"""The queue's statements, each for many jobs at once.

procrastinate has one transaction for each job to defer, to fetch and to finish, and its fetch compares every job that
waits with every other. At a hundred runs a second these took more of the database than the log did.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import psycopg
from procrastinate.jobs import Job, Status
from procrastinate.manager import JobManager

from runs_es.database.reporting import report
from runs_es.database.sessions import connect
from runs_es.domain import StoreUnavailable
from runs_es.execution.routes import DEFAULT_QUEUE, Place

logger = logging.getLogger(__name__)

ADVANCE = "runs_es.advance"
WAKE = "runs_es.wake"
_BATCH = 500

# What procrastinate's own trigger says when a job is inserted.
_TELL = """
select pg_notify('procrastinate_queue_v1#' || queue_name, '{"type": "job_inserted", "job_id": ' || id || '}') from
"""

# Among equals the lower id is taken first, so ids are given in the order in which jobs were asked for. Rows are locked
# in the order of their threads, or two processes that insert for the same ones would wait for each other.
_INSERT = """
insert into procrastinate_jobs (id, queue_name, task_name, priority, lock, queueing_lock, args, scheduled_at)
select id, queue, task, priority, case when due is null then thread end, case when due is null then thread end,
       jsonb_build_object('thread_id', thread, 'assistants', assistants), due
  from (select nextval(pg_get_serial_sequence('procrastinate_jobs', 'id')) id, each.*
          from (select *
                  from unnest(%(queues)s::text[], %(tasks)s::text[], %(priorities)s::int[], %(threads)s::text[],
                              %(due)s::timestamptz[], %(assistants)s::jsonb[])
                       with ordinality as asked (queue, task, priority, thread, due, assistants, place)
                 order by place) each) numbered
 order by thread
    on conflict (queueing_lock) where status = 'todo'
"""

# A thread has at most one job that waits, and it waits where the thread's next run belongs. What is inserted tells of
# itself, what is moved does not.
ENQUEUE = _INSERT + " do nothing"
MOVE = f"""
with placed as (
  {_INSERT} do update set queue_name = excluded.queue_name, priority = excluded.priority, args = excluded.args
   where (procrastinate_jobs.queue_name, procrastinate_jobs.priority, procrastinate_jobs.args)
         <> (excluded.queue_name, excluded.priority, excluded.args)
  returning queue_name, id, xmax <> 0 moved)
{_TELL} placed where moved
"""

# Who serves named assistants leaves the jobs of others; one that names none was made before jobs did.
_FETCH = """
with candidate as (
  select id from procrastinate_jobs job
   where status = 'todo' and queue_name = any(%(queues)s) and (scheduled_at is null or scheduled_at <= now())
     and (%(served)s::text[] is null or args -> 'assistants' is null or args -> 'assistants' ?| %(served)s::text[])
     and (lock is null or not exists (
       select from procrastinate_jobs other where other.lock = job.lock and other.status = 'doing'))
   order by priority desc, id limit %(room)s for update skip locked)
update procrastinate_jobs job set status = 'doing', worker_id = %(worker)s from candidate where job.id = candidate.id
returning job.*
"""

# Whoever wants the next job of the same thread could not have it before, and is not told by its insertion any more.
_FINISH = f"""
with gone as (
  delete from procrastinate_jobs where id = any(%(ids)s) and status in ('todo', 'doing') returning lock)
{_TELL} procrastinate_jobs where status = 'todo' and queueing_lock in (select lock from gone)
"""

# One whose thread has another job by now is not needed any more.
_GIVE_BACK = f"""
with gone as (
  delete from procrastinate_jobs j where id = any(%(ids)s) and exists (
    select from procrastinate_jobs other where other.queueing_lock = j.queueing_lock and other.status = 'todo')),
back as (
  update procrastinate_jobs j set status = 'todo', worker_id = null where id = any(%(ids)s) and not exists (
    select from procrastinate_jobs other where other.queueing_lock = j.queueing_lock and other.status = 'todo')
  returning queue_name, id)
{_TELL} back
"""


def queue_name(queue: str) -> str:
    """The name of one of our queues in procrastinate's table."""
    return "runs" if queue == DEFAULT_QUEUE else f"runs.{queue}"


@dataclass(frozen=True, slots=True)
class Request:
    """A thread wants a job, in that place; with `due`, one that wakes it then (ISO 8601). What has `begun` comes before
    what has not, among equals.
    """

    thread_id: str
    place: Place
    due: str | None = None
    begun: bool = False


def enqueue_parameters(requests: Sequence[Request]) -> dict[str, Any]:
    """Of ENQUEUE and MOVE, which take a thread without `due` only once."""
    return {
        "queues": [queue_name(each.place.queue) for each in requests],
        "tasks": [ADVANCE if each.due is None else WAKE for each in requests],
        "priorities": [2 * each.place.priority + each.begun for each in requests],
        "threads": [each.thread_id for each in requests],
        "due": [each.due for each in requests],
        "assistants": [orjson.dumps(each.place.assistants).decode() for each in requests],
    }


Locate = Callable[[str], Place | None]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A thread wants a job: at `place`, or where its next run belongs. One that comes `behind` others of its thread
    leaves their job where it waits.
    """

    thread_id: str
    place: Place | None = None
    due: str | None = None
    behind: bool = False


class Deferrals:
    """Writes jobs from a thread of its own, all that were asked for meanwhile at once. What it fails to write, and what
    is lost with the process, a sweep finds. `locate` says where a thread's next run belongs; None: it has none.
    """

    def __init__(self, url: str, schema: str, locate: Locate) -> None:
        self._url, self._schema, self._locate = url, schema, locate
        self._connection: psycopg.Connection[Any] | None = None
        self._asked: deque[Wanted] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="runs-es queue", daemon=True)
        self._thread.start()

    def ask(self, wanted: Wanted) -> None:
        """Returns at once, from any thread."""
        with self._wake:
            self._asked.append(wanted)
            self._wake.notify()

    def close(self) -> None:
        """Write what was asked for, and end."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(10)

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._asked or self._closing)
                if not self._asked:
                    break
                batch = [self._asked.popleft() for _ in range(min(len(self._asked), _BATCH))]
            try:
                self._write_anew(batch)
            except Exception as error:  # noqa: BLE001  (reported)
                self._disconnect()
                report(logger, error, "threads could not be queued, the sweep will find them")
        self._disconnect()

    def _write_anew(self, batch: Sequence[Wanted]) -> None:
        """Where the connection has died since the last batch, over another: only so is that noticed."""
        if self._connection is not None:
            try:
                self._write(batch)
                return
            except psycopg.OperationalError:
                self._disconnect()
        self._write(batch)

    def _write(self, batch: Sequence[Wanted]) -> None:
        """A thread's next run has its job where it belongs, whatever waits there for one that has gone. A run behind
        others changes nothing about theirs, of those in this batch neither.
        """
        following: dict[str, Request] = {}
        first: dict[str, Request] = {}
        delayed = []
        for each in batch:
            place = each.place or self._located(each.thread_id)
            if each.due is not None:
                delayed.append(Request(each.thread_id, place or Place(), each.due))
            elif each.behind and place is not None:
                following.setdefault(each.thread_id, Request(each.thread_id, place))
            elif place is not None:
                first[each.thread_id] = Request(each.thread_id, place)
        for statement, requests in ((MOVE, list(first.values())), (ENQUEUE, [*following.values(), *delayed])):
            if requests:
                self._connected().execute(statement, enqueue_parameters(requests))

    def _located(self, thread_id: str) -> Place | None:
        """One thread that cannot be folded does not keep others from their jobs; whoever takes its own says why."""
        try:
            return self._locate(thread_id)
        except StoreUnavailable:
            raise
        except Exception as error:  # noqa: BLE001  (reported)
            report(logger, error, "thread %s cannot be read", thread_id)
            return Place()

    def _connected(self) -> psycopg.Connection[Any]:
        if self._connection is None:
            self._connection = connect(self._url, self._schema, "queue")
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class BatchedJobs(JobManager):
    """procrastinate's manager for one worker: it fetches as many jobs as there is room for, and finishes together what
    ends together. Belongs to one event loop. Takes jobs of the assistants `served` alone, of any where that is None.
    """

    def __init__(self, connector: Any, served: Collection[str] | None = None) -> None:
        super().__init__(connector)
        self._served = sorted(served) if served is not None else None
        self.room: Callable[[], int] = lambda: 1
        self._fetched: deque[Job] = deque()
        self._ended: list[int] = []
        self._finishing: asyncio.Task[None] | None = None

    async def fetch_job(self, queues: Iterable[str] | None, worker_id: int) -> Job | None:
        if not self._fetched:
            rows = await self.connector.execute_query_all_async(
                _FETCH, queues=list(queues or ()), worker=worker_id, room=max(self.room(), 1), served=self._served
            )
            for row in rows:
                row["args"].pop("assistants", None)  # what a job is for is no argument of its task
            jobs = sorted(map(Job.from_row, rows), key=lambda job: (-job.priority, job.id or 0))
            self._fetched.extend(jobs)
        return self._fetched.popleft() if self._fetched else None

    @property
    def in_hand(self) -> list[int]:
        """Jobs fetched and not yet begun."""
        return [job.id for job in self._fetched if job.id is not None]

    async def give_back(self) -> None:
        """What was fetched and not begun waits again, for whoever comes."""
        ids = self.in_hand
        self._fetched.clear()
        if ids:
            await self.connector.execute_query_all_async(_GIVE_BACK, ids=ids)

    async def finish_job(self, job: Job, status: Status, delete_job: bool) -> None:
        assert job.id is not None
        assert delete_job
        self._ended.append(job.id)
        if self._finishing is None or self._finishing.done():
            self._finishing = asyncio.create_task(self._finish_all())
        await asyncio.shield(self._finishing)

    async def _finish_all(self) -> None:
        """One statement at a time; what ends meanwhile goes with the next."""
        while self._ended:
            ids, self._ended = self._ended, []
            await self.connector.execute_query_all_async(_FINISH, ids=ids)
