"""The asynchronous ports of a store, over what it has: a call is one hop to a thread and back.

`runs_es.service.ports` says what each is for. Every one may be used from any event loop, and raises StoreUnavailable
once the store is closed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

from runs_es.domain import CancelAction, Fact, Provenance, Run, RunEnded, RunNotFound, checked_id
from runs_es.log.append import ANONYMOUS
from runs_es.service.application import RunsApplicationService
from runs_es.service.commands import CancelRunCommand, GetRunQuery, ListRunMessagesQuery, ListRunsQuery
from runs_es.service.ports import BlockingRunEventLog, BlockingRunRepository, WorkQueue
from runs_es.service.views import RunMessageView, RunSnapshot, StoredRunEvent
from runs_es.streams.cursor import in_thread


class AsyncRunRepository:
    """`RunRepository`. `threads` runs the blocking calls."""

    def __init__(self, runs: BlockingRunRepository, threads: Executor) -> None:
        self._runs = runs
        self._threads = threads

    async def save(self, run: Run, *, provenance: Provenance = ANONYMOUS) -> None:
        """Append the run's pending facts. Raises WriteConflict when it changed in between, ThreadNotFound."""
        await in_thread(self._threads, self._runs.save, run, provenance)

    async def get(self, run_id: str, *, thread_id: str | None = None, user_id: str | None = None) -> Run | None:
        """The run as its facts tell, always current; None when absent, deleted, or another's."""
        query = GetRunQuery(run_id, thread_id, user_id)
        return await in_thread(
            self._threads, lambda: self._runs.get(query.run_id, thread_id=query.thread_id, user_id=query.user_id)
        )

    async def list_by_thread(
        self, thread_id: str, *, user_id: str | None = None, limit: int = 100, offset: int = 0
    ) -> list[RunSnapshot]:
        """A thread's runs, newest first."""
        query = ListRunsQuery(thread_id, user_id, limit, offset=offset)
        return await in_thread(self._threads, self._runs.list_by_thread, query)

    async def delete(self, run_id: str, *, provenance: Provenance = ANONYMOUS) -> bool:
        """Take a run out of every read model, ending it first where it has not; False when there is none."""
        wanted = checked_id("run_id", run_id)
        try:
            await in_thread(self._threads, lambda: self._runs.delete(wanted, provenance=provenance))
        except RunNotFound:
            return False
        return True


class AsyncRunEventLog:
    """`RunEventLog`. `threads` runs the blocking calls."""

    def __init__(self, events: BlockingRunEventLog, threads: Executor) -> None:
        self._events = events
        self._threads = threads

    async def append(self, events: Sequence[Fact], *, provenance: Provenance = ANONYMOUS) -> list[StoredRunEvent]:
        """Append facts of one thread. Raises ValueError for facts of several, ThreadNotFound, RunNotFound."""
        return await in_thread(self._threads, self._events.append, events, provenance)

    async def list_messages_by_run(
        self,
        thread_id: str,
        run_id: str | None,
        *,
        limit: int = 50,
        before_seq: int | None = None,
        after_seq: int | None = None,
    ) -> list[RunMessageView]:
        """One entry a message id, at the seq of its newest version; `run_id` None means of the whole thread."""
        query = ListRunMessagesQuery(thread_id, run_id, limit, before_seq, after_seq)
        return await in_thread(self._threads, self._events.list_messages_by_run, query)

    async def list_events_by_run(
        self,
        thread_id: str,
        run_id: str | None,
        *,
        limit: int = 500,
        before_seq: int | None = None,
        after_seq: int | None = None,
        types: Sequence[str] | None = None,
    ) -> list[StoredRunEvent]:
        """Facts and frames; `run_id` None means of the whole thread. `types` are event types or categories."""
        return await in_thread(
            self._threads,
            lambda: self._events.list_events_by_run(
                thread_id, run_id, limit=limit, before_seq=before_seq, after_seq=after_seq, types=types
            ),
        )


@dataclass(frozen=True, slots=True)
class ExecutionHandle:
    """`RunExecutionHandle`: a run that the workers have been told of."""

    run_id: str
    thread_id: str
    _service: RunsApplicationService = field(repr=False, compare=False)

    async def wait(self) -> None:
        """Return once the run has ended."""
        await self._service.ended(self.thread_id, self.run_id)


class QueueScheduler:
    """`RunExecutionScheduler`: tells the workers of runs, by the job queue."""

    def __init__(
        self, get: Callable[[str], Run | None], queue: WorkQueue, service: RunsApplicationService, threads: Executor
    ) -> None:
        self._get = get
        self._queue = queue
        self._service = service
        self._threads = threads

    async def start(self, run_id: str) -> ExecutionHandle:
        """Hand a run to the workers; one handed over before stays so, one that has ended too. Raises RunNotFound."""
        run = await in_thread(self._threads, self._get, checked_id("run_id", run_id))
        if run is None:
            raise RunNotFound(run_id)
        if not run.is_terminal:
            self._queue.wake(run.thread_id, due_at=run.due_at)
        return ExecutionHandle(run.run_id, run.thread_id, self._service)


class ServiceSupervisor:
    """`RunSupervisor`: cancels by the application service."""

    def __init__(self, service: RunsApplicationService) -> None:
        self._service = service

    async def cancel(self, run_id: str, *, action: CancelAction = CancelAction.INTERRUPT) -> bool:
        """Stop a run, wherever it is executed; False when it has ended before, or there is none."""
        try:
            await self._service.cancel(CancelRunCommand(run_id, action))
        except (RunEnded, RunNotFound):
            return False
        return True
