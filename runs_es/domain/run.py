"""The Run: its state machine, folded from facts. A command decides, records a fact, applies it.

Nothing else changes a run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import copy
from datetime import datetime
from typing import Any

from runs_es.domain.answers import UNKNOWN_INTERRUPT, Answer
from runs_es.domain.errors import InvalidRunTransition
from runs_es.domain.facts import (
    Fact,
    RunCancelled,
    RunCancelRequested,
    RunClaimed,
    RunCompleted,
    RunCreated,
    RunDeleted,
    RunFact,
    RunFailed,
    RunRequeued,
    RunStarted,
)
from runs_es.domain.policies import CancelPolicy
from runs_es.domain.values import (
    AssistantId,
    CancelAction,
    DisconnectMode,
    MultitaskStrategy,
    RequeueCause,
    RunId,
    RunScope,
    RunStatus,
    ThreadId,
    UserId,
    checked_json,
    checked_mapping,
    checked_text,
    checked_time,
    copied,
    is_terminal_status,
    now,
)

_AFTER: dict[RunStatus, frozenset[RunStatus]] = {
    RunStatus.PENDING: frozenset({RunStatus.RUNNING, RunStatus.ERROR, RunStatus.TIMEOUT, RunStatus.INTERRUPTED}),
    RunStatus.RUNNING: frozenset({RunStatus.SUCCESS, RunStatus.ERROR, RunStatus.TIMEOUT, RunStatus.INTERRUPTED}),
}


class Run:
    """One execution of an agent on a thread.

    Make one with `create` (records a `RunCreated`) or `fold` (from recorded facts, records nothing).
    """

    def __init__(self, created: RunCreated) -> None:
        self.run_id = RunId(created.run_id)
        self.thread_id = ThreadId(created.thread_id)
        self.assistant_id = AssistantId(created.assistant_id) if created.assistant_id is not None else None
        self.user_id = UserId(created.user_id) if created.user_id is not None else None
        self.status = RunStatus.PENDING
        self.scope: RunScope = created.scope
        self.multitask_strategy: MultitaskStrategy = created.multitask_strategy
        self.on_disconnect: DisconnectMode = created.on_disconnect
        self.metadata: dict[str, Any] = copied(created.metadata)
        self.kwargs: dict[str, Any] = copied(created.kwargs)
        self.model_name = created.model_name
        self.created_at = created.occurred_at
        self.updated_at = created.occurred_at
        self.due_at = created.due_at
        self.started_at: str | None = None
        self.error: str | None = None  # as clients see it; the fact has the whole text
        self.error_type: str | None = None
        self.attempt = 0
        self.failed_attempts = 0  # whose worker was lost, or whose error may pass
        self.requeued_for: RequeueCause | None = None  # the last time
        self.claim_id: str | None = None
        self.worker_id = ""  # who claimed it last
        self.cancel_requested: CancelAction | None = None
        self.cancelled_by: CancelAction | None = None
        self.interrupts: dict[str, Any] = {}
        self.checkpoint_id: str | None = None
        self.deleted = False
        self.answer: Answer | None = None  # told by its thread
        self._pending: list[Fact] = []

    @classmethod
    def create(
        cls,
        *,
        run_id: str,
        thread_id: str,
        assistant_id: str | None = None,
        scope: RunScope = RunScope.STATEFUL,
        multitask_strategy: MultitaskStrategy = MultitaskStrategy.ENQUEUE,
        on_disconnect: DisconnectMode = DisconnectMode.CONTINUE,
        metadata: Mapping[str, Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        model_name: str | None = None,
        user_id: str | None = None,
        due_at: str | None = None,
        created_at: str | datetime | None = None,
    ) -> Run:
        """A pending run with one pending `RunCreated`.

        Raises ValueError for blank ids, a time without offset, and metadata or kwargs with what JSON does not have.
        """
        checked_mapping("metadata", metadata or {})
        for name, value in (kwargs or {}).items():
            checked_json(name, value)
        created = RunCreated(
            run_id=run_id,
            thread_id=thread_id,
            assistant_id=assistant_id,
            scope=scope,
            multitask_strategy=multitask_strategy,
            on_disconnect=on_disconnect,
            metadata=dict(metadata or {}),
            kwargs=dict(kwargs or {}),
            model_name=model_name,
            user_id=user_id,
            due_at=due_at,
            occurred_at=_moment("created_at", created_at),
        )
        run = cls(created)
        run._pending.append(created)
        return run

    @classmethod
    def fold(cls, facts: Iterable[Fact]) -> Run | None:
        """The run that `facts` (of one run, in order) tell of; None without a `RunCreated`."""
        run: Run | None = None
        for fact in facts:
            if isinstance(fact, RunCreated):
                run = cls(fact)
            elif run is not None:
                run.apply(fact)
        return run

    @property
    def is_terminal(self) -> bool:
        return is_terminal_status(self.status)

    @property
    def under_way(self) -> int:
        """The number of the attempt that a worker is executing; 0 when none is."""
        return max(self.attempt, 1) if self.status is RunStatus.RUNNING else 0

    def is_due(self, moment: str) -> bool:
        """Whether there is something to do for it now: one that runs or is to be cancelled does not wait."""
        waits = self.due_at is not None and self.due_at > moment
        return not waits or self.status is RunStatus.RUNNING or self.cancel_requested is not None

    @property
    def is_paused(self) -> bool:
        """Whether it succeeded by stopping to ask a human."""
        return self.status is RunStatus.SUCCESS and bool(self.interrupts)

    @property
    def is_rolled_back(self) -> bool:
        """Whether it was cancelled so that nothing of it stays but the log."""
        return self.cancelled_by is not None and CancelPolicy(self.cancelled_by).rolls_back_checkpoint

    @property
    def leaves_nothing(self) -> bool:
        """Whether its end leaves the thread what it was before: rolled back, cancelled before it ever began, or a
        resume whose answer was refused.
        """
        refused = self.status is RunStatus.ERROR and self.error_type == UNKNOWN_INTERRUPT
        return self.is_rolled_back or refused or (self.status is RunStatus.INTERRUPTED and self.attempt == 0)

    def copy(self) -> Run:
        """A run to decide on, without pending facts. Metadata and kwargs, which never change, are shared."""
        twin = copy(self)
        twin._pending = []
        return twin

    def pull_events(self) -> tuple[Fact, ...]:
        """The facts recorded since the last call; drains them."""
        pending, self._pending = self._pending, []
        return tuple(pending)

    def mark_claimed(self, *, claim_id: str, worker_id: str = "", at: str | datetime | None = None) -> None:
        """A worker takes the pending run for its next attempt."""
        if self.status is not RunStatus.PENDING:
            raise InvalidRunTransition(self.status, RunStatus.RUNNING)
        self._record(RunClaimed, at, claim_id=claim_id, worker_id=worker_id, attempt=self.attempt + 1)

    def mark_started(self, *, first_frame: int = 0, at: str | datetime | None = None) -> None:
        """pending -> running."""
        if self._must_become(RunStatus.RUNNING):
            self._record(RunStarted, at, attempt=max(self.attempt, 1), first_frame=first_frame)

    def mark_completed(
        self,
        *,
        interrupts: Mapping[str, Any] | None = None,
        checkpoint_id: str | None = None,
        at: str | datetime | None = None,
    ) -> None:
        """running -> success. With `interrupts` it is a pause for a human."""
        if self._must_become(RunStatus.SUCCESS):
            self._record(RunCompleted, at, interrupts=dict(interrupts or {}), checkpoint_id=checkpoint_id)

    def mark_failed(
        self,
        error: str | None = None,
        *,
        error_type: str = "Error",
        at: str | datetime | None = None,
        traceback: str = "",
        error_hidden: bool = False,
    ) -> None:
        """-> error. `traceback` is for the operator; with `error_hidden` clients do not see the text."""
        checked_text("error", error)
        if self._must_become(RunStatus.ERROR):
            values = {"traceback": traceback, "error_hidden": error_hidden, "attempt": self.under_way}
            self._record(RunFailed, at, error=error, error_type=error_type, **values)

    def mark_timed_out(
        self,
        error: str | None = None,
        *,
        error_type: str = "TimeoutError",
        at: str | datetime | None = None,
        traceback: str = "",
        error_hidden: bool = False,
    ) -> None:
        """-> timeout, with the parameters of `mark_failed`."""
        checked_text("error", error)
        if self._must_become(RunStatus.TIMEOUT):
            values = {"traceback": traceback, "error_hidden": error_hidden, "attempt": self.under_way}
            self._record(RunFailed, at, status=RunStatus.TIMEOUT, error=error, error_type=error_type, **values)

    def mark_cancelled(
        self, *, action: CancelAction = CancelAction.INTERRUPT, at: str | datetime | None = None
    ) -> None:
        """-> interrupted."""
        if self._must_become(RunStatus.INTERRUPTED):
            self._record(RunCancelled, at, action=action, attempt=self.under_way)

    def request_cancel(
        self, *, action: CancelAction = CancelAction.INTERRUPT, at: str | datetime | None = None
    ) -> None:
        """Ask the worker to stop. The first request counts, unless a later one is to roll back what it would leave."""
        if self.is_terminal:
            raise InvalidRunTransition(self.status, RunStatus.INTERRUPTED)
        stronger = self.cancel_requested is CancelAction.INTERRUPT and action is CancelAction.ROLLBACK
        if self.cancel_requested is None or stronger:
            self._record(RunCancelRequested, at, action=action, attempt=self.under_way)

    def requeue(
        self,
        cause: RequeueCause = RequeueCause.WORKER_LOST,
        *,
        silent_since: str | None = None,
        due_at: str | None = None,
        error: str = "",
        error_type: str = "",
        at: str | datetime | None = None,
        traceback: str = "",
        error_hidden: bool = False,
    ) -> None:
        """running -> pending: the attempt ended without an outcome. The next one begins at `due_at` at the earliest."""
        if self.status is not RunStatus.RUNNING:
            raise InvalidRunTransition(self.status, RunStatus.PENDING)
        why = {"silent_since": silent_since, "due_at": due_at, "error": error, "error_type": error_type}
        details = {"traceback": traceback, "error_hidden": error_hidden}
        self._record(RunRequeued, at, attempt=self.attempt, cause=cause, worker_id=self.worker_id, **why, **details)

    def mark_deleted(self, *, at: str | datetime | None = None) -> None:
        """Leave every read model. Deleting twice records nothing."""
        if not self.deleted:
            self._record(RunDeleted, at, attempt=self.under_way)

    def apply(self, fact: Fact) -> None:
        """Fold one recorded fact in. Facts of other runs and of the thread change nothing."""
        if not isinstance(fact, RunFact) or fact.run_id != self.run_id:
            return
        match fact:
            case RunClaimed():
                self.claim_id, self.attempt, self.worker_id = fact.claim_id, fact.attempt, fact.worker_id
            case RunStarted():
                self.status, self.attempt = RunStatus.RUNNING, fact.attempt
                self.started_at = self.started_at or fact.occurred_at
            case RunRequeued():
                self.status, self.claim_id = RunStatus.PENDING, None
                self.requeued_for, self.due_at = fact.cause, fact.due_at or self.due_at
                self.failed_attempts += fact.cause is not RequeueCause.WORKER_STOPPED
            case RunCancelRequested():
                self.cancel_requested = fact.action
            case RunCompleted():
                self.status = RunStatus.SUCCESS
                self.interrupts, self.checkpoint_id = copied(fact.interrupts), fact.checkpoint_id
            case RunFailed():
                self.status, self.error, self.error_type = fact.status, fact.shown_error, fact.error_type
            case RunCancelled():
                self.status, self.cancelled_by = RunStatus.INTERRUPTED, fact.action
            case RunDeleted():
                self.deleted = True
            case _:
                return  # messages and traces say nothing about the run's own state
        self.updated_at = fact.occurred_at

    def _must_become(self, target: RunStatus) -> bool:
        """False when it is so already. Raises InvalidRunTransition when it may not become so."""
        if self.status is target:
            return False
        if target not in _AFTER.get(self.status, frozenset()):
            raise InvalidRunTransition(self.status, target)
        return True

    def _record(self, kind: type[RunFact], at: str | datetime | None, **values: Any) -> None:
        fact = kind(run_id=self.run_id, thread_id=self.thread_id, occurred_at=_moment("at", at), **values)
        self.apply(fact)
        self._pending.append(fact)

    def __repr__(self) -> str:
        return f"Run({self.run_id!r}, {self.status.value}, attempt={self.attempt})"


def _moment(field: str, at: str | datetime | None) -> str:
    return now() if at is None else checked_time(field, at)
