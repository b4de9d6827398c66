"""What every worker does beside its runs: it looks for work that nobody will do, and sees to it that somebody does.

- Jobs of workers that have fallen silent: the log is told that the run has lost its worker, and the job is replaced.
- Jobs of this worker's own that it does not work on: their end could not be written.
- Threads with something to do, but no job: their job, or the wake of a delayed run, was lost.
- What executors keep of threads that are gone (`reap`).

A worker that was merely slow finds the fence raised and is refused; nothing here decides who may write.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from runs_es.database.reporting import report
from runs_es.domain import LeaseLost, Provenance, Thread
from runs_es.execution.blocking import blocking
from runs_es.execution.queue import JobQueue, QueueWorker, StalledJob
from runs_es.execution.worker import Accepts
from runs_es.log.decisions import Decision, Decisions
from runs_es.log.reader import Head

logger = logging.getLogger(__name__)


class Sweep:
    """One worker's; all workers may sweep at once."""

    def __init__(
        self,
        jobs: QueueWorker,
        queue: JobQueue,
        decisions: Decisions,
        active_threads: Callable[[], list[str]],
        *,
        worker_id: str,
        accepts: Accepts | None = None,
        reap: Callable[[], int] | None = None,
    ) -> None:
        self._jobs = jobs
        self._queue = queue
        self._decisions = decisions
        self._active_threads = active_threads
        self._actor = f"sweep:{worker_id}"
        self._accepts = accepts or (lambda _: True)
        self._reap = reap

    async def round(self) -> None:
        """Everything once. What fails is tried again by the next round, and keeps nothing else from being done."""
        for part in (self._give_stalled_jobs_away, self._give_jobs_to_forgotten, self._reap_what_is_gone):
            await _guarded(part, "a sweep failed")

    async def _give_stalled_jobs_away(self) -> None:
        for job in await self._jobs.stalled():
            await _guarded(lambda job=job: self._give_away(job), f"thread {job.thread_id} could not be swept")  # type: ignore[misc]

    async def _give_away(self, job: StalledJob) -> None:
        """First the log, then the queue: while the job stands, nobody else has been given the thread, so the claim that
        is there is the lost worker's, unless the job has no lock (a wake), or it is of a run that our workers do not
        take: external ones have no jobs. Of several who sweep at once one writes, the others find the claim gone.
        """
        thread, _ = await blocking(self._decisions.look, job.thread_id)
        run = thread.in_flight
        if not await self._jobs.is_stalled(job):
            return  # it is heard of again, as all are when the database comes back; or another sweep was faster
        if run is not None and job.has_lock and self._accepts(run):
            assert run.claim_id is not None
            with suppress(LeaseLost):
                await blocking(self._lose, job, run.run_id, run.claim_id, run.worker_id)
        if await self._jobs.give_away(job):
            logger.warning("thread %s had lost its worker; another takes over", job.thread_id)

    def _lose(self, job: StalledJob, run_id: str, claim_id: str, worker_id: str) -> None:
        since = f"silent since {job.silent_since}" if job.silent_since else "it is not known since when"
        who = Provenance(actor=self._actor, reason=f"worker {worker_id} lost, {since}")

        def decide(thread: Thread, _: Head) -> Decision:
            return Decision(thread.lose(run_id, claim_id, job.silent_since))

        self._decisions.make(job.thread_id, decide, provenance=who)

    async def _give_jobs_to_forgotten(self) -> None:
        active = set(await blocking(self._active_threads))
        if active:
            for thread_id in active - await self._jobs.threads_with_jobs():
                await blocking(self._queue.wake, thread_id)

    async def _reap_what_is_gone(self) -> None:
        if self._reap is not None:
            await blocking(self._reap)


async def _guarded(part: Callable[[], Awaitable[None]], what: str) -> None:
    try:
        await part()
    except Exception as error:  # noqa: BLE001  (reported)
        report(logger, error, "%s; the next round tries again", what)
