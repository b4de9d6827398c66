"""The Thread: what a command must know of a thread before it writes. Ended runs are forgotten but for the last."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from runs_es.domain.errors import ConflictError, RunNotFound, ThreadExists, ThreadNotFound
from runs_es.domain.facts import (
    Fact,
    RunCreated,
    RunDeleted,
    RunFact,
    ThreadCreated,
    ThreadDeleted,
    ThreadErased,
    ThreadUpdated,
)
from runs_es.domain.policies import MultitaskDecision, MultitaskPolicy
from runs_es.domain.run import Run
from runs_es.domain.values import MultitaskStrategy, RunId, RunStatus, ThreadId, ThreadStatus, copied, now


class Thread:
    """A fold of a thread's lifecycle facts. `revision` is how many facts it stands for, as the head row counts."""

    def __init__(self, thread_id: str) -> None:
        self.thread_id = ThreadId(thread_id)
        self.revision = 0
        self.exists = False
        self.user_id: str | None = None
        self.metadata: dict[str, Any] = {}
        self.created_at = ""
        self.updated_at = ""
        self.active: dict[RunId, Run] = {}  # in order of creation
        self.last_ended: Run | None = None

    @classmethod
    def fold(cls, thread_id: str, facts: Iterable[Fact]) -> Thread:
        thread = cls(thread_id)
        for fact in facts:
            thread.apply(fact)
        return thread

    @property
    def status(self) -> ThreadStatus:
        if self.active:
            return ThreadStatus.BUSY
        if self.last_ended is None:
            return ThreadStatus.IDLE
        return status_after(self.last_ended)

    def create(self, *, metadata: Mapping[str, Any] | None = None, user_id: str | None = None) -> ThreadCreated:
        """The fact that makes the thread. A deleted one may be created again. Raises ThreadExists."""
        if self.exists:
            raise ThreadExists(self.thread_id)
        return ThreadCreated(
            thread_id=self.thread_id, occurred_at=now(), metadata=dict(metadata or {}), user_id=user_id
        )

    def update(self, metadata: Mapping[str, Any]) -> ThreadUpdated:
        self._must_exist()
        return ThreadUpdated(thread_id=self.thread_id, occurred_at=now(), metadata=dict(metadata))

    def delete(self) -> ThreadDeleted:
        self._must_exist()
        return ThreadDeleted(thread_id=self.thread_id, occurred_at=now())

    def admit(self, strategy: MultitaskStrategy) -> MultitaskDecision:
        """Whether a new run may join. Raises ThreadNotFound; ConflictError when busy and `strategy` is reject."""
        self._must_exist()
        decision = MultitaskPolicy(strategy).decide(list(self.active.values()))
        if decision is MultitaskDecision.REJECT:
            raise ConflictError(
                "Thread is already running a task. Wait for it to finish or choose a different multitask strategy."
            )
        return decision

    def run(self, run_id: str) -> Run:
        """The active run of this id. Raises RunNotFound."""
        try:
            return self.active[RunId(run_id)]
        except KeyError:
            raise RunNotFound(run_id) from None

    def next_due(self, moment: str | None = None) -> Run | None:
        """The run to execute next: the one in flight (its worker is gone, if you may ask), else the oldest due."""
        running = next((run for run in self.active.values() if run.status is RunStatus.RUNNING), None)
        if running is not None:
            return running
        moment = moment or now()
        return next((run for run in self.active.values() if run.due_at is None or run.due_at <= moment), None)

    def apply(self, fact: Fact) -> None:
        """Fold one recorded fact in."""
        match fact:
            case ThreadCreated():
                self.exists, self.user_id = True, fact.user_id
                self.metadata, self.created_at = copied(fact.metadata), fact.occurred_at
                self.last_ended = None
            case ThreadUpdated():
                self.metadata = {**self.metadata, **copied(fact.metadata)}
            case ThreadDeleted() | ThreadErased():
                self.exists = False
                self.active.clear()
                self.last_ended = None
            case RunCreated():
                self.active[RunId(fact.run_id)] = Run(fact)
            case RunFact():
                self._apply_to_run(fact)
            case _:
                pass
        self.updated_at = fact.occurred_at

    def _apply_to_run(self, fact: RunFact) -> None:
        run = self.active.get(RunId(fact.run_id))
        if run is None:
            if isinstance(fact, RunDeleted) and self.last_ended and self.last_ended.run_id == fact.run_id:
                self.last_ended = None
            return
        run.apply(fact)
        if run.deleted:
            del self.active[run.run_id]
        elif run.is_terminal:
            del self.active[run.run_id]
            self.last_ended = run

    def _must_exist(self) -> None:
        if not self.exists:
            raise ThreadNotFound(self.thread_id)


def status_after(run: Run) -> ThreadStatus:
    """What a thread without runs in flight is, given the run that ended last."""
    if run.status in (RunStatus.ERROR, RunStatus.TIMEOUT):
        return ThreadStatus.ERROR
    if run.is_paused or (run.status is RunStatus.INTERRUPTED and run.attempt > 0):
        return ThreadStatus.INTERRUPTED
    return ThreadStatus.IDLE
