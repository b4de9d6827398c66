"""Cancelling: a run, several of a thread, or all of a status, each thread in one append."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from runs_es.domain import CancelAction, Provenance, Run, RunEnded, RunNotFound, RunStatus, Thread
from runs_es.log.decisions import Decision, Decisions
from runs_es.log.reader import Head
from runs_es.service.commands import CancelRunsCommand
from runs_es.service.ports import BlockingRunRepository, WorkQueue


class Cancellation:
    """Synchronous. Which runs are meant is decided on each thread as it is when its cancels are appended."""

    def __init__(self, decisions: Decisions, runs: BlockingRunRepository, queue: WorkQueue) -> None:
        self._decisions = decisions
        self._runs = runs
        self._queue = queue

    def of_runs(self, thread_id: str, run_ids: Collection[str], action: CancelAction, provenance: Provenance) -> None:
        """Cancel those of these runs that have not ended. Raises RunEnded when all have, RunNotFound when gone."""
        wanted = frozenset(run_ids)
        if self._cancel(thread_id, lambda run: run.run_id in wanted, action, provenance):
            return
        for run_id in sorted(wanted):
            if (run := self._runs.get(run_id, thread_id=thread_id)) is not None:
                raise RunEnded(run_id, run.status)
        raise RunNotFound(", ".join(sorted(wanted)))

    def several(self, command: CancelRunsCommand) -> int:
        """Cancel what the command means; how many runs that were."""
        wanted = frozenset(command.run_ids)
        statuses = frozenset(RunStatus if command.status == "all" else [RunStatus(command.status)])

        def meant(run: Run) -> bool:
            if command.user_id is not None and run.user_id not in (None, command.user_id):
                return False
            return run.run_id in wanted if command.thread_id is not None else run.status in statuses

        threads: Sequence[str] = (
            [command.thread_id] if command.thread_id is not None else self._runs.unfinished_threads(command.user_id)
        )
        return sum(self._cancel(thread_id, meant, command.action, command.provenance) for thread_id in threads)

    def _cancel(
        self, thread_id: str, meant: Callable[[Run], bool], action: CancelAction, provenance: Provenance
    ) -> int:
        found: list[Run] = []
        others: list[Run] = []

        def decide(thread: Thread, _: Head) -> Decision:
            found[:] = [run.copy() for run in thread.active.values() if meant(run)]
            others[:] = [run.copy() for run in thread.active.values() if not meant(run)]
            return Decision(thread.cancel_several(found, action))

        self._decisions.make(thread_id, decide, provenance=provenance)
        waited = [run for run in found if not run.under_way]
        # To roll back what an earlier attempt left is a worker's work; and what comes next may be for another queue.
        if (waited and others) or (action is CancelAction.ROLLBACK and any(run.attempt for run in waited)):
            self._queue.wake(thread_id)
        return len(found)
