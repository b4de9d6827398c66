"""The Thread: what a command must know of a thread before it writes. Ended runs are forgotten but for the last."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from runs_es.domain.answers import UNKNOWN_INTERRUPT, answer_of, comes_too_late
from runs_es.domain.errors import ConflictError, LeaseLost, RunNotFound, ThreadExists, ThreadNotFound
from runs_es.domain.facts import (
    Fact,
    RunCreated,
    RunDeleted,
    RunFact,
    ThreadCreated,
    ThreadDeleted,
    ThreadErased,
    ThreadRestored,
    ThreadUpdated,
)
from runs_es.domain.policies import MultitaskDecision, MultitaskPolicy
from runs_es.domain.run import Run
from runs_es.domain.values import (
    CancelAction,
    MultitaskStrategy,
    RequeueCause,
    RunId,
    RunScope,
    RunStatus,
    ThreadId,
    ThreadStatus,
    checked_mapping,
    copied,
    now,
)


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
        # Of those that left something. One that was deleted since is still where the next goes on from.
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
        if self.last_ended is None or self.last_ended.deleted:
            return ThreadStatus.IDLE
        return status_after(self.last_ended)

    def create(self, *, metadata: Mapping[str, Any] | None = None, user_id: str | None = None) -> ThreadCreated:
        """The fact that makes the thread. A deleted one may be created again. Raises ThreadExists."""
        if self.exists:
            raise ThreadExists(self.thread_id)
        checked_mapping("metadata", metadata or {})
        return ThreadCreated(
            thread_id=self.thread_id, occurred_at=now(), metadata=dict(metadata or {}), user_id=user_id
        )

    def update(self, metadata: Mapping[str, Any]) -> ThreadUpdated:
        """The fact that merges `metadata` in. Raises ThreadNotFound; ValueError for what JSON does not have."""
        self._must_exist()
        checked_mapping("metadata", metadata)
        return ThreadUpdated(thread_id=self.thread_id, occurred_at=now(), metadata=dict(metadata))

    def delete(self) -> list[Fact]:
        """End what runs here and leave every read model. Raises ThreadNotFound."""
        self._must_exist()
        ended = [fact for run in self.active.values() for fact in _ended_now(run)]
        return [*ended, self._deleted()]

    def delete_run(self, run_id: str) -> list[Fact]:
        """Take a run out of every read model, ending it first where it has not. Its worker's next write is refused.

        One that is about to be rolled back leaves them with that.
        """
        active = self.active.get(RunId(run_id))
        if active is not None and active.cancel_requested is CancelAction.ROLLBACK:
            return []
        # Attempt 0: what raises the fence, where anything does, is the end of the run before it.
        gone = RunDeleted(thread_id=self.thread_id, run_id=run_id, occurred_at=now(), attempt=0)
        return [*(_ended_now(active) if active else []), gone]

    def cancel(self, run_id: str, action: CancelAction = CancelAction.INTERRUPT) -> list[Fact]:
        """Stop an active run: one that nobody works on ends at once, a running one is asked to. Raises RunNotFound.

        One whose earlier attempt may have left something to roll back is for a worker to end.
        """
        run = self.run(run_id).copy()
        run.request_cancel(action=action)
        if run.status is RunStatus.PENDING and (run.attempt == 0 or run.cancel_requested is CancelAction.INTERRUPT):
            run.mark_cancelled(action=run.cancel_requested or action)
        return self.closed(run)

    def cancel_several(self, runs: Iterable[Run], action: CancelAction) -> list[Fact]:
        """As `cancel`, for active runs of this thread."""
        facts: list[Fact] = []
        for run in runs:
            facts += self.cancel(run.run_id, action)
            if facts and isinstance(facts[-1], ThreadDeleted):
                break  # it was temporary, and the others ended with it
        return facts

    def supersede(self, strategy: MultitaskStrategy) -> list[Fact]:
        """Cancel all that is active in favour of a new run, which begins when the one in flight has ended."""
        action = CancelAction.ROLLBACK if strategy is MultitaskStrategy.ROLLBACK else CancelAction.INTERRUPT
        facts: list[Fact] = []
        for run in self.active.values():
            if run.scope is RunScope.TEMPORARY_THREAD:
                # Its end deletes the thread: not in the append that brings the new run.
                run = run.copy()
                run.request_cancel(action=action)
                facts += run.pull_events()
            else:
                facts += self.cancel(run.run_id, action)
        return facts

    def claim(self, run: Run, *, claim_id: str, worker_id: str, frames: int, max_attempts: int) -> list[Fact]:
        """Take an active run for its next attempt. A running one has lost its worker, or nobody would ask.

        The facts end with a `RunStarted`, or with a terminal fact when the run was to be cancelled, has lost
        `max_attempts` workers, or is to answer what has been answered. `frames` is how many frames the thread has.
        """
        run = run.copy()
        if run.status is RunStatus.RUNNING:
            run.requeue(RequeueCause.WORKER_LOST)
        lost = run.requeued_for in (None, RequeueCause.WORKER_LOST)
        if run.cancel_requested is not None:
            run.mark_cancelled(action=run.cancel_requested)
        elif lost and run.failed_attempts >= max_attempts:
            run.mark_failed(f"worker lost; gave up after {run.failed_attempts} attempts", error_type="WorkerLost")
        elif comes_too_late(run, self.last_ended):
            run.mark_failed(_too_late(self.last_ended), error_type=UNKNOWN_INTERRUPT)
        else:
            run.mark_claimed(claim_id=claim_id, worker_id=worker_id)
            run.mark_started(first_frame=frames)
        return self.closed(run)

    def lose(self, run_id: str, claim_id: str, silent_since: str | None) -> list[Fact]:
        """Put back a run whose worker is lost. Raises LeaseLost when it is not this claim's any more."""
        run = self.claimed(run_id, claim_id)
        run.requeue(RequeueCause.WORKER_LOST, silent_since=silent_since)
        return list(run.pull_events())

    def claimed(self, run_id: str, claim_id: str) -> Run:
        """A copy of the active run, if its last claim is this one. Raises LeaseLost."""
        run = self.active.get(RunId(run_id))
        if run is None or run.claim_id != claim_id:
            raise LeaseLost(f"run {run_id} is no longer this worker's to write")
        return run.copy()

    def closed(self, run: Run) -> list[Fact]:
        """The run's pending facts, and after a terminal one what follows: a run that is rolled back leaves every read
        model, a temporary thread goes with its run.

        Whatever else was enqueued on such a thread ends with it.
        """
        if run.is_rolled_back:
            run.mark_deleted()
        facts = list(run.pull_events())
        if run.is_terminal and run.scope is RunScope.TEMPORARY_THREAD and self.exists:
            others = [each for each in self.active.values() if each.run_id != run.run_id]
            facts += [fact for each in others for fact in _ended_now(each)]
            facts.append(self._deleted())
        return facts

    def _deleted(self) -> ThreadDeleted:
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
        """The run to execute next: the one in flight (its worker is gone, if you may ask), else the oldest due.

        While one that has begun waits for its next attempt, no other has its turn: the thread's state is half made.
        """
        moment = moment or now()
        begun = next((run for run in self.active.values() if run.attempt > 0), None)
        candidates = self.active.values() if begun is None else (begun,)
        return next((run for run in candidates if run.is_due(moment)), None)

    def has_turns_before_a_new_run(self) -> bool:
        """Whether a run that is created now has to wait for another one."""
        moment = now()
        return any(run.attempt > 0 or run.is_due(moment) for run in self.active.values())

    @property
    def in_flight(self) -> Run | None:
        """A copy of the run that a worker has claimed and not let go of."""
        return next((run.copy() for run in self.active.values() if run.status is RunStatus.RUNNING), None)

    def apply(self, fact: Fact) -> None:
        """Fold one recorded fact in."""
        if isinstance(fact, ThreadRestored):
            return  # of the store's doing: nothing happened in the thread
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
                run = Run(fact)
                run.answer = answer_of(run, self.active.values(), self.last_ended)
                self.active[run.run_id] = run
            case RunFact():
                self._apply_to_run(fact)
            case _:
                pass
        self.updated_at = fact.occurred_at

    def _apply_to_run(self, fact: RunFact) -> None:
        run = self.active.get(RunId(fact.run_id))
        if run is None:
            if self.last_ended is not None:
                self.last_ended.apply(fact)
            return
        run.apply(fact)
        if run.deleted:
            del self.active[run.run_id]
        elif run.is_terminal:
            del self.active[run.run_id]
            if not run.leaves_nothing:
                self.last_ended = run

    def _must_exist(self) -> None:
        if not self.exists:
            raise ThreadNotFound(self.thread_id)


def _ended_now(run: Run) -> list[Fact]:
    run = run.copy()
    run.request_cancel()
    run.mark_cancelled()
    return list(run.pull_events())


def _too_late(last_ended: Run | None) -> str:
    after = f" Run {last_ended.run_id} has ended since." if last_ended is not None else ""
    return f"What this run was to answer no longer waits.{after} Look at the thread's state, and answer what waits now."


def status_after(run: Run) -> ThreadStatus:
    """What a thread without runs in flight is, given the run that ended last, of those that left something."""
    if run.status in (RunStatus.ERROR, RunStatus.TIMEOUT):
        return ThreadStatus.ERROR
    if run.is_paused or run.status is RunStatus.INTERRUPTED:
        return ThreadStatus.INTERRUPTED
    return ThreadStatus.IDLE
