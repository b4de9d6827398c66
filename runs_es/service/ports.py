"""The ports of the store, and what its application service needs and others bring.

`RunRepository`, `RunEventLog`, `RunStreamBroker`, `RunExecutionScheduler` and `RunSupervisor` are asynchronous and are
what a store offers as `repository`, `event_log`, `broker`, `scheduler` and `supervisor`. The blocking ones beneath them
are brought by `runs_projections`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

from runs_es.domain import CancelAction, Fact, Provenance, Run
from runs_es.service.commands import ListRunMessagesQuery, ListRunsQuery
from runs_es.service.views import RunMessageView, RunSnapshot, StoredRunEvent
from runs_es.streams.broker import RunStreamEvent


class RunRepository(Protocol):
    """Runs, one and many."""

    async def save(self, run: Run, *, provenance: Provenance = ...) -> None:
        """Append the run's pending facts. Raises WriteConflict when it changed in between, ThreadNotFound."""

    async def get(self, run_id: str, *, thread_id: str | None = None, user_id: str | None = None) -> Run | None:
        """The run as its facts tell, always current; None when absent, deleted, or another's."""

    async def list_by_thread(
        self, thread_id: str, *, user_id: str | None = None, limit: int = 100, offset: int = 0
    ) -> list[RunSnapshot]:
        """A thread's runs, newest first; waits, bounded, for the thread's newest fact."""

    async def delete(self, run_id: str, *, provenance: Provenance = ...) -> bool:
        """Take a run out of every read model, ending it first where it has not; False when there is none."""


class RunEventLog(Protocol):
    """Stored events of runs. Lists come in ascending seq: `after_seq` gives the first `limit` after it,
    `before_seq` the last `limit` before it, both the first in between, neither the latest.
    """

    async def append(self, events: Sequence[Fact], *, provenance: Provenance = ...) -> list[StoredRunEvent]:
        """Append facts of one thread. Raises ValueError for facts of several, ThreadNotFound, RunNotFound."""

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


class RunStreamBroker(Protocol):
    """Streams of runs, to publish and to subscribe to; backed by the log."""

    async def publish(self, run_id: str, event: str, data: Any) -> None:
        """Append one frame of a run that is executed in this process. Raises LeaseLost for any other."""

    async def publish_terminal(self, run_id: str, *, event: str = "end", data: Any = None) -> None:
        """Return once all frames are durable; the run's end is its terminal fact."""

    def subscribe(
        self, run_id: str, *, last_event_id: str | None = None, heartbeat_interval: float = 15.0
    ) -> AsyncIterator[RunStreamEvent]:
        """The run's events after an id, then live, until its end."""

    async def cleanup(self, run_id: str, *, delay: float = 0) -> None:
        """Free memory after `delay` seconds; history stays."""


class RunExecutionHandle(Protocol):
    """A run that was handed to the workers."""

    @property
    def run_id(self) -> str: ...

    async def wait(self) -> None:
        """Return once the run has ended."""


class RunExecutionScheduler(Protocol):
    """Has recorded runs executed."""

    async def start(self, run_id: str) -> RunExecutionHandle:
        """Hand a run to the workers; one handed over before stays so. Raises RunNotFound."""


class RunSupervisor(Protocol):
    """Controls runs that were handed to the workers."""

    async def cancel(self, run_id: str, *, action: CancelAction = CancelAction.INTERRUPT) -> bool:
        """Stop a run; False when it has ended before, or there is none."""


class WorkQueue(Protocol):
    """Says who should work. Called after the commit; losing a call costs a sweep, not a run."""

    def wake(self, thread_id: str, *, due_at: str | None = None, run: Run | None = None, behind: bool = False) -> None:
        """The thread has work, now or at `due_at`; `run` is what it is, as far as the caller knows, next or `behind`
        others. Returns at once.
        """


class BlockingRunRepository(Protocol):
    """Runs, one and many. Callers on an event loop go through a thread, or take `RunRepository`."""

    def save(self, run: Run, provenance: Provenance = ...) -> None:
        """Append the run's pending facts. Raises WriteConflict when its thread changed in between."""

    def get(self, run_id: str, *, thread_id: str | None = None, user_id: str | None = None) -> Run | None:
        """The run as its facts tell, always current; None when absent, deleted, or another's."""

    def list_by_thread(self, query: ListRunsQuery) -> list[RunSnapshot]:
        """A thread's runs from the read model, newest first; waits, bounded, for the thread's newest fact."""

    def delete(self, run_id: str, *, provenance: Provenance = ...) -> None:
        """Take an ended run out of every read model. Raises RunNotFound."""

    def active_threads(self) -> list[str]:
        """Threads with a run that is pending or running, as far as the read model knows; for sweeps."""

    def unfinished_threads(self, user_id: str | None = None) -> list[str]:
        """Threads with a run that has not ended, and that the user may see; waits, bounded, for the newest fact."""


class BlockingRunEventLog(Protocol):
    """Stored events of runs, as `RunEventLog`, in the caller's thread."""

    def append(self, events: Sequence[Fact], provenance: Provenance = ...) -> list[StoredRunEvent]:
        """Append facts of one thread. Raises ValueError for facts of several, WriteConflict when it keeps changing."""

    def list_messages_by_run(self, query: ListRunMessagesQuery) -> list[RunMessageView]:
        """One entry a message id, at the seq of its newest version."""

    def list_events_by_run(
        self,
        thread_id: str,
        run_id: str | None,
        *,
        after_seq: int | None = None,
        before_seq: int | None = None,
        limit: int = 500,
        types: Sequence[str] | None = None,
    ) -> list[StoredRunEvent]:
        """Facts and frames; `run_id` None means of the whole thread. `types` are event types or categories."""
