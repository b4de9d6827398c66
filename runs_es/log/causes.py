"""Why a fact stands that somebody writes on another's behalf: who asked for it, with what reason, in which request.

A worker ends a run that a user cancelled, and a thread goes with its run. The writer stays the actor of such a fact;
`causation_id` names what led to it, and the reason says who that was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from runs_es.domain import (
    TERMINAL_FACTS,
    Fact,
    Provenance,
    Recorded,
    RequeueCause,
    RunCancelled,
    RunCancelRequested,
    RunDeleted,
    RunRequeued,
    ThreadDeleted,
)

MAX_REASON = 2000  # characters, as the log takes of a reason

# The newest request to cancel a run, by the run's id; None when there is none.
RequestOf = Callable[[str], Recorded | None]


def caused(facts: Sequence[Fact], who: Provenance, request_of: RequestOf) -> list[Provenance]:
    """The provenance of each of the facts that `who` appends together."""
    asked_here = {fact.run_id for fact in facts if isinstance(fact, RunCancelRequested)}
    ended = next((fact for fact in facts if isinstance(fact, TERMINAL_FACTS) and fact.run_id not in asked_here), None)
    if ended is None:
        return [_of_requeue(fact, who) for fact in facts]
    of_run = _asked(who, request_of(ended.run_id)) if isinstance(ended, RunCancelled) else who
    reason = f"run {ended.run_id} has ended, and its temporary thread with it"
    along = replace(of_run, reason=reason, causation_id=ended.run_id)
    return [_beside(fact, ended.run_id, who, of_run, along) for fact in facts]


def _beside(fact: Fact, ended: str, who: Provenance, of_run: Provenance, along: Provenance) -> Provenance:
    """The provenance of a fact that stands in one append with the end of the run `ended`."""
    if isinstance(fact, RunCancelled | RunDeleted) and fact.run_id == ended:
        return of_run  # what is rolled back is deleted for the same reason
    if isinstance(fact, ThreadDeleted | RunCancelRequested | RunCancelled):
        return along
    return _of_requeue(fact, who)


def _of_requeue(fact: Fact, who: Provenance) -> Provenance:
    if isinstance(fact, RunRequeued) and who.reason is None:
        return replace(who, reason=_why_requeued(fact))
    return who


def _asked(who: Provenance, request: Recorded | None) -> Provenance:
    """The provenance of what `who` does because of a request in the log."""
    if request is None:
        return who
    by = request.provenance
    told = f"cancel requested by {by.actor or 'somebody unnamed'}{f': {by.reason}' if by.reason else ''}"
    reason = f"{who.reason}; {told}" if who.reason else told
    return replace(who, reason=reason[:MAX_REASON], correlation_id=by.correlation_id, causation_id=str(request.seq))


def _why_requeued(fact: RunRequeued) -> str | None:
    match fact.cause:
        case RequeueCause.WORKER_LOST:
            return f"worker {fact.worker_id} lost"
        case RequeueCause.WORKER_STOPPED:
            return f"worker {fact.worker_id} stopped"
        case _:
            return None
