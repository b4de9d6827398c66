"""The worker: claims the oldest due run of a thread, has it executed, and writes how it ended.

It owns a run only as long as the log lets it write. A refused write, a hint or a poll makes it fold the thread again;
it goes on only if the run's last claim is its own, and then only to stop a cancelled run.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import orjson

from runs_es.domain import (
    Fact,
    LeaseLost,
    LimitExceeded,
    Provenance,
    RequeueCause,
    Run,
    RunFailed,
    RunScope,
    RunStarted,
    StoreUnavailable,
    Thread,
    ThreadNotFound,
    Timeouts,
    WriteConflict,
)
from runs_es.execution.attempt import Attempt
from runs_es.execution.attempt_execution import AttemptExecution, Ended
from runs_es.execution.attempt_failure import AgentExited, Failure, original_of
from runs_es.execution.blocking import blocking
from runs_es.execution.deadline import Deadline
from runs_es.execution.failures import log_failure
from runs_es.execution.protocol import RunExecutor, RunOutcome
from runs_es.execution.retry import Backoff
from runs_es.log.append import Append, Appended, FactItem
from runs_es.log.decisions import Decision, Decisions
from runs_es.log.event_log import EventLog
from runs_es.log.pages import frame
from runs_es.log.reader import Head
from runs_es.process_log import bound

logger = logging.getLogger(__name__)

Barrier = Callable[[str], None]
Restore = Callable[[str, str], None]
Accepts = Callable[[Run], bool]


class DeadlinePassed(TimeoutError):
    """The run's own time is up. Any other TimeoutError is an agent's, and an error."""


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """Numbers a worker keeps to; see the settings of the same names."""

    max_attempts: int = 3
    cancel_grace_seconds: float = 5.0
    publish_buffer_bytes: int = 4 * 1024 * 1024
    timeouts: Timeouts = Timeouts()  # noqa: RUF009  (frozen)
    backoff: Backoff = Backoff()  # noqa: RUF009  (frozen)
    show_errors: bool = True


@dataclass(slots=True)
class Claim:
    """The decision to take a thread's oldest due run, if the claimer `accepts` it; `run` is that run, as the claim made
    it.
    """

    claim_id: str
    worker_id: str
    max_attempts: int
    restore: Restore
    accepts: Accepts
    run: Run | None = None
    thread_is_new: bool = False  # nobody has ever claimed a run of it

    def decide(self, thread: Thread, head: Head) -> Decision:
        self.thread_is_new = head.fence == 0
        due = thread.next_due() if thread.exists else None
        if due is None or not self.accepts(due):
            self.run = None
            return Decision([])
        facts = thread.claim(
            due,
            claim_id=self.claim_id,
            worker_id=self.worker_id,
            frames=head.frames,
            max_attempts=self.max_attempts,
        )
        self.run = due.copy()
        for fact in facts:
            self.run.apply(fact)
        return decision(self.run, facts, self.restore)


class Worker:
    """Claims and ends runs on one event loop, and executes them on `agents`, by default the same loop.

    `barrier(thread_id)` is called once a run is claimed, and returns when no checkpoint of an older claim is being
    written any more. `restore(thread_id, run_id)` undoes what a run did to its
    thread's state, before the run is rolled back in the log; called again, it does nothing. A run that it does not
    `accept`, due or in flight, is another worker's, and its thread waits for that one. `on_requeue(thread_id, due_at)`
    is told of runs put back for another attempt.
    """

    def __init__(
        self,
        log: EventLog,
        decisions: Decisions,
        executor: RunExecutor,
        *,
        limits: WorkerLimits | None = None,
        barrier: Barrier | None = None,
        restore: Restore | None = None,
        accepts: Accepts | None = None,
        worker_id: str | None = None,
        on_requeue: Callable[[str, str | None], None] | None = None,
        agents: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.worker_id = worker_id or f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._log = log
        self._decisions = decisions
        self._executor = executor
        self._agents = agents
        self._on_requeue = on_requeue
        self._limits = limits or WorkerLimits()
        self._barrier = barrier or (lambda _: None)
        self._restore = restore or (lambda *_: None)
        self._accepts = accepts or (lambda _: True)
        self._provenance = Provenance(actor=f"worker:{self.worker_id}")
        self._attempts: dict[str, Attempt] = {}
        self._lock = threading.Lock()
        self._draining = False
        log.watch(on_commit=self._committed, on_hints=self._hinted, on_poll=self._poll)

    @property
    def active(self) -> int:
        """Runs in execution now."""
        return len(self._attempts)

    @property
    def executing(self) -> list[str]:
        """The ids of the runs in execution now. From any thread."""
        with self._lock:
            return [attempt.run.run_id for attempt in self._attempts.values()]

    async def advance(self, thread_id: str) -> None:
        """Execute what is due in the thread, one run after the other, until nothing is."""
        while not self._draining:
            attempt = await self._claim(thread_id)
            if attempt is None:
                return
            with bound(**self._fields(attempt.run)):
                goes_on = await self._execute(attempt)
            # Whoever took a run from us works on the thread now: to claim again would only take it back.
            if not goes_on:
                return

    def drain(self) -> None:
        """Begin no further run."""
        self._draining = True

    def _fields(self, run: Run) -> dict[str, Any]:
        """The fields of every line that this attempt and its agent log."""
        fields = {"run_id": run.run_id, "thread_id": run.thread_id, "attempt": run.attempt, "user_id": run.user_id}
        return {**fields, "worker_id": self.worker_id}

    # --- claiming ---

    async def _claim(self, thread_id: str) -> Attempt | None:
        """Claim the oldest due run. A run that ended instead of starting is passed over."""
        while True:
            claim = Claim(uuid.uuid4().hex, self.worker_id, self._limits.max_attempts, self._restore, self._accepts)
            decided = await blocking(
                self._decisions.make,
                thread_id,
                claim.decide,
                provenance=self._provenance,
            )
            if decided.appended is None or claim.run is None:
                return None
            if not decided.appended.current:
                return None  # its acknowledgement was lost, and by now the fence may be another's
            if any(isinstance(fact, RunStarted) for fact in decided.facts):
                return self._begin(claim, claim.run, decided.appended)

    def _begin(self, claim: Claim, run: Run, appended: Appended) -> Attempt:
        attempt = Attempt(
            self._log,
            run,
            claim.claim_id,
            appended,
            thread_is_new=claim.thread_is_new,
            provenance=self._provenance,
            buffer_bytes=self._limits.publish_buffer_bytes,
            agents=self._agents,
        )
        with self._lock:
            self._attempts[run.thread_id] = attempt
        return attempt

    # --- executing ---

    async def _execute(self, attempt: Attempt) -> bool:
        """Have the attempt executed and write its end. False when the run was lost to somebody else."""
        deadline = Deadline(attempt, self._timeouts_of(attempt.run))
        execution = AttemptExecution(
            attempt, partial(self._outcome, attempt, deadline), partial(self._failure, attempt.run)
        )
        execution.start()
        try:
            while not execution.has_ended():
                await self._undisturbed(attempt, deadline)
                if execution.has_ended():
                    break
                if attempt.disturbed.is_set() and not await self._still_ours(attempt, execution):
                    return True
                if (late := deadline.passed()) is not None:
                    await self._stop(execution)
                    await self._close(attempt, self._failure(attempt.run, DeadlinePassed(late)))
                    return True
            assert execution.ended is not None
            await self._finish(attempt, execution.ended)
        except LeaseLost as error:
            logger.info("%s", error)
            return False
        except asyncio.CancelledError:
            await self._hand_over(attempt, execution)
            raise
        finally:
            with self._lock:
                if self._attempts.get(attempt.run.thread_id) is attempt:
                    del self._attempts[attempt.run.thread_id]
            await self._stop(execution)
        return True

    def _timeouts_of(self, run: Run) -> Timeouts:
        try:
            return Timeouts.of(run.kwargs.get("config") or {}, self._limits.timeouts)
        except ValueError as error:  # recorded by somebody else than the service
            logger.warning("run %s: %s", run.run_id, error)
            return self._limits.timeouts

    async def _outcome(self, attempt: Attempt, deadline: Deadline) -> RunOutcome | BaseException:
        """How the agent's code ends. On the agents' loop; what would end that is not raised but returned."""
        if (late := deadline.passed()) is not None:  # an earlier attempt has used up the time
            return DeadlinePassed(late)
        try:
            if not attempt.thread_is_new:
                await blocking(self._barrier, attempt.run.thread_id)
            outcome = await self._executor.execute(attempt)
            if outcome is not None and not isinstance(outcome, RunOutcome):
                raise TypeError(f"the executor must return a RunOutcome or None, not {type(outcome).__name__}")
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except (SystemExit, KeyboardInterrupt) as error:
            return AgentExited(error)
        except BaseException as error:  # noqa: BLE001  (whatever it is, it ends this run alone)
            return error
        return outcome or RunOutcome()

    def _failure(self, run: Run, error: BaseException) -> Failure:
        """The failure that an exception is, logged with its traceback. For one of an agent, on the agents' loop."""
        if isinstance(error, DeadlinePassed):
            failure = Failure.late(str(error))
        else:
            failure = Failure.of(
                error,
                self._is_retryable,
                show_errors=self._limits.show_errors,
                max_event_bytes=self._log.max_event_bytes,
            )
        if not failure.lost_lease:
            log_failure(original_of(error), is_retried=self._is_retried(run, failure), fields=self._fields(run))
        return failure

    def _is_retried(self, run: Run, failure: Failure) -> bool:
        return failure.may_pass and run.failed_attempts + 1 < self._limits.max_attempts

    def _is_retryable(self, error: Exception) -> bool:
        """What the executor says; its code too may be the agent's."""
        ask = getattr(self._executor, "is_retryable", None)
        try:
            return ask is not None and bool(ask(error))
        except BaseException:
            logger.exception("the executor could not say whether an error may pass")
            return False

    async def _undisturbed(self, attempt: Attempt, deadline: Deadline) -> None:
        """Return when the executor ended, its deadline may have passed, or the run may be somebody else's by now."""
        with suppress(TimeoutError):
            async with asyncio.timeout(deadline.left()):
                await attempt.disturbed.wait()

    async def _still_ours(self, attempt: Attempt, execution: AttemptExecution) -> bool:
        """Fold again. False: the run was cancelled, and is stopped and ended. Raises LeaseLost when it is another's."""
        attempt.disturbed.clear()
        thread_id = attempt.run.thread_id
        fences = await blocking(self._log.reader.fences, [thread_id])
        if fences.get(thread_id) == attempt.fence and not attempt.writer.refused:
            return True
        thread, head = await blocking(self._decisions.look, thread_id)
        run = thread.claimed(attempt.run.run_id, attempt.claim_id)
        if run.cancel_requested is None and not attempt.writer.refused:
            attempt.writer.fence = head.fence  # raised by something that does not concern this run
            return True
        await self._stop(execution)
        await self._end(attempt, self._cancelled if run.cancel_requested else self._refused)
        return False

    async def _stop(self, execution: AttemptExecution) -> None:
        """Cancel the executor and give it its grace, once; what it does after that, the log refuses."""
        await execution.stop(self._limits.cancel_grace_seconds)

    async def _finish(self, attempt: Attempt, ended: Ended) -> None:
        """Close the attempt as its executor ended."""
        if not ended.interrupted:
            await self._close(attempt, ended.failure, ended.outcome)
            return
        logger.warning("run %s is put back: another run's agent cancelled its tasks", attempt.run.run_id)
        await self._put_back(attempt)

    async def _close(self, attempt: Attempt, failure: Failure | None, outcome: RunOutcome | None = None) -> None:
        """Write the terminal fact, or that the run is to be tried again, behind all frames. If that is refused, find
        out why.
        """
        try:
            if failure is not None and failure.lost_lease:
                raise LeaseLost(failure.text)
            if failure is not None and await self._retried(attempt, failure):
                return
            try:
                await self._write_end(attempt, failure, outcome)
            except (LimitExceeded, TypeError, ValueError) as unwritable:
                # What it ended with cannot be stored; that is how it ended, then.
                await self._write_end(attempt, self._failure(attempt.run, unwritable), None)
        except (WriteConflict, LeaseLost):
            thread, _ = await blocking(self._decisions.look, attempt.run.thread_id)
            current = thread.claimed(attempt.run.run_id, attempt.claim_id)
            await self._end(attempt, self._cancelled if current.cancel_requested else self._refused)

    async def _retried(self, attempt: Attempt, failure: Failure) -> bool:
        """Put the run back for another attempt, where its error may pass and there is an attempt left."""
        run = attempt.run.copy()
        if not self._is_retried(run, failure):
            return False
        due_at = self._limits.backoff.due_at(run, self._timeouts_of(run).wall)
        run.requeue(RequeueCause.RETRY, due_at=due_at, **failure.recorded)
        who = replace(self._provenance, reason=f"attempt {run.attempt} failed with an error that may pass")
        items = [self._log.item(fact, who) for fact in run.pull_events()]
        await asyncio.shield(asyncio.wrap_future(attempt.record(*items, last=True)))
        if self._on_requeue is not None:
            await blocking(self._on_requeue, run.thread_id, due_at)
        return True

    async def _write_end(self, attempt: Attempt, failure: Failure | None, outcome: RunOutcome | None) -> None:
        """How the attempt ended, as frame and fact; nothing is written before all of it is known to be writable."""

        def mark(run: Run) -> None:
            if failure is not None:
                _mark_failed(run, failure)
            else:
                assert outcome is not None
                run.mark_completed(interrupts=outcome.interrupts, checkpoint_id=outcome.checkpoint_id)

        run = attempt.run.copy()
        mark(run)
        who = self._provenance
        if failure is not None and failure.may_pass:
            who = replace(who, reason=f"gave up after {run.failed_attempts + 1} attempts")
        items = [self._log.item(fact, who) for fact in run.pull_events()]
        if run.scope is RunScope.TEMPORARY_THREAD:
            await attempt.flush()  # its end takes the thread along, and that is a decision on all of the thread
            await self._end(attempt, mark, who)
            return
        frames = [] if failure is None else [_error_frame(run)]
        # Shielded: a shutdown may stop our waiting, never the end's being written.
        await asyncio.shield(asyncio.wrap_future(attempt.record(*items, frames=frames, last=True)))

    async def _end(self, attempt: Attempt, how: Callable[[Run], None], who: Provenance | None = None) -> None:
        """End the run by a decision on the thread as it is now, if the claim still stands. A cancel by then wins."""

        def decide(thread: Thread, _: Head) -> Decision:
            run = thread.claimed(attempt.run.run_id, attempt.claim_id)
            (self._cancelled if run.cancel_requested else how)(run)
            return decision(run, thread.closed(run), self._restore)

        await blocking(self._decisions.make, attempt.run.thread_id, decide, provenance=who or self._provenance)

    @staticmethod
    def _cancelled(run: Run) -> None:
        assert run.cancel_requested is not None
        run.mark_cancelled(action=run.cancel_requested)

    @staticmethod
    def _refused(run: Run) -> None:
        run.mark_failed("the log refused this attempt's writes", error_type="WriteConflict")

    async def _hand_over(self, attempt: Attempt, execution: AttemptExecution) -> None:
        """The worker is shutting down in the middle of a run: put it back for another."""
        await self._stop(execution)
        await self._put_back(attempt)

    async def _put_back(self, attempt: Attempt) -> None:
        """Have the run executed again by whichever worker comes next; this attempt does not count against it."""
        try:
            with suppress(TimeoutError):  # where there is no room for its frames: nobody has seen them
                async with asyncio.timeout(self._limits.cancel_grace_seconds):
                    await attempt.flush()
            await self._end(attempt, lambda run: run.requeue(RequeueCause.WORKER_STOPPED))
            if self._on_requeue is not None:
                await blocking(self._on_requeue, attempt.run.thread_id, None)
        except (LeaseLost, WriteConflict, StoreUnavailable, ThreadNotFound) as error:
            logger.warning("run %s could not be handed over: %s", attempt.run.run_id, error)

    # --- learning that the fence was raised; called in the log's threads ---

    def _committed(self, committed: Sequence[tuple[Append, Appended]]) -> None:
        if not self._attempts:
            return
        for request, appended in committed:
            attempt = self._attempts.get(appended.thread_id)
            if attempt is not None and request.writer is not attempt.writer and _raises_fence(request):
                attempt.disturb()

    def _hinted(self, hints: Mapping[str, int]) -> None:
        for thread_id in hints:
            attempt = self._attempts.get(thread_id)
            if attempt is not None:
                attempt.disturb()

    def _poll(self) -> None:
        with self._lock:
            attempts = dict(self._attempts)
        if attempts:
            fences = self._log.reader.fences(list(attempts))
            for thread_id, attempt in attempts.items():
                if fences.get(thread_id) != attempt.fence:
                    attempt.disturb()


def _raises_fence(request: Append) -> bool:
    return any(isinstance(item, FactItem) and item.raises_fence for item in request.items)


def decision(run: Run, facts: Sequence[Fact], restore: Restore) -> Decision:
    """The facts with what belongs to them: `metadata` opens an attempt, `error` stands before a failure, and what a
    run did is undone before it is rolled back. By then the fence has been raised: its attempt saves nothing more.
    """
    if run.is_rolled_back:
        return Decision(facts, prepare=lambda: restore(run.thread_id, run.run_id))
    if any(isinstance(fact, RunStarted) for fact in facts):
        opening = orjson.dumps({"run_id": run.run_id, "attempt": run.attempt})
        return Decision(facts, (run.run_id, [frame("metadata", opening)]))
    if any(isinstance(fact, RunFailed) for fact in facts):
        return Decision(facts, (run.run_id, [_error_frame(run)]), page_first=True)
    return Decision(facts)


def _mark_failed(run: Run, failure: Failure) -> None:
    if failure.is_late:
        run.mark_timed_out(**failure.recorded)
    else:
        run.mark_failed(**failure.recorded)


def _error_frame(run: Run) -> bytes:
    return frame("error", orjson.dumps({"error": run.error_type, "message": run.error}))
