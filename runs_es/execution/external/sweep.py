"""What happens when an external worker does not act: a lost one's run is put back, one that is cancelled or out of time
is ended. Each as a fact, behind which the worker can write nothing more.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from runs_es.database.reporting import report
from runs_es.domain import LeaseLost, Provenance, RequeueCause, Run, StoreUnavailable, Thread, Timeouts, WriteConflict
from runs_es.execution.external.leases import Lease, Leases
from runs_es.execution.worker import Restore, WorkerLimits, decision
from runs_es.log.decisions import Decision, Decisions
from runs_es.log.event_log import EventLog
from runs_es.log.reader import Head

logger = logging.getLogger(__name__)

ACTOR = "sweep"


class LeaseSweep:
    """Looks at leases every `interval` seconds, in a thread of its own. Any number of processes may do so at once: each
    thing that it does is decided on the thread as it is, and done once.
    """

    def __init__(
        self,
        log: EventLog,
        decisions: Decisions,
        *,
        wake: Callable[[str], None],
        interval: float,
        limits: WorkerLimits | None = None,
        restore: Restore | None = None,
    ) -> None:
        self._leases = Leases(log.reader)
        self._decisions = decisions
        self._wake = wake
        self._interval = interval
        self._limits = limits or WorkerLimits()
        self._restore = restore or (lambda *_: None)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="runs-es leases", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Return when what it is doing is done."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._closing.wait(self._interval):
            try:
                self.sweep()
            except Exception as error:  # noqa: BLE001  (reported)
                report(logger, error, "a sweep of leases failed, tries again in %g s", self._interval)

    def sweep(self) -> None:
        """Look at every lease that asks for it."""
        for lease in self._leases.due():
            try:
                self._look(lease)
            except (LeaseLost, WriteConflict) as error:
                logger.info("%s", error)
            except StoreUnavailable:
                raise
            except Exception as error:  # noqa: BLE001  (one thread that cannot be read keeps no other from its sweep)
                report(logger, error, "the lease of run %s cannot be looked at; tries again", lease.run_id)

    def _look(self, lease: Lease) -> None:
        thread, head = self._decisions.look(lease.thread_id)
        try:
            run = thread.claimed(lease.run_id, lease.claim_id)
        except LeaseLost:
            # Until it expires, its claim may be on the way into the log.
            if lease.expired:
                self._leases.drop_expired(lease.claim_id)
            else:
                self._leases.looked_at(lease.claim_id, head.fence)
            return
        if lease.expired:
            if self._leases.take(lease.claim_id):
                self._end(lease, "its lease expired", self._lose)
        elif run.cancel_requested is not None:
            self._leases.looked_at(lease.claim_id, head.fence, grace=self._limits.cancel_grace_seconds)
        elif lease.late is not None:
            self._end(lease, "out of time", lambda run: self._time_out(run, lease.late or ""))
        else:
            self._leases.looked_at(lease.claim_id, head.fence)

    def _end(self, lease: Lease, reason: str, how: Callable[[Run], None]) -> None:
        def decide(thread: Thread, _: Head) -> Decision:
            run = thread.claimed(lease.run_id, lease.claim_id)
            how(run)
            return decision(run, thread.closed(run), self._restore)

        provenance = Provenance(actor=ACTOR, reason=f"worker {lease.worker_id}: {reason}")
        self._decisions.make(lease.thread_id, decide, provenance=provenance)
        self._leases.drop(lease.claim_id)
        logger.warning("run %s is taken from worker %s: %s", lease.run_id, lease.worker_id, reason)
        self._wake(lease.thread_id)

    def _lose(self, run: Run) -> None:
        if run.cancel_requested is not None:
            run.mark_cancelled(action=run.cancel_requested)
            return
        run.requeue(RequeueCause.WORKER_LOST)
        if run.failed_attempts >= self._limits.max_attempts:
            run.mark_failed(f"worker lost; gave up after {run.failed_attempts} attempts", error_type="WorkerLost")

    def _time_out(self, run: Run, kind: str) -> None:
        if run.cancel_requested is not None:
            run.mark_cancelled(action=run.cancel_requested)
            return
        timeouts = Timeouts.of(run.kwargs.get("config") or {}, self._limits.timeouts)
        run.mark_timed_out(timeouts.why(kind))
