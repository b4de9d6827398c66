"""Which pause a resume is meant for.

Two people may answer the same question at the same moment, and both runs are created before either has begun. Which
question each of them saw is told by the log: the pause that stood when the run was created. When the turn of the second
has come, that pause is over; its answer must not reach whatever the graph asks next.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeGuard

from runs_es.domain.values import CancelAction, RunId, RunStatus

if TYPE_CHECKING:
    from runs_es.domain.run import Run

UNKNOWN_INTERRUPT = "UnknownInterruptError"  # error_type of a run whose answer was refused; its thread stays as it was
_INTERRUPT_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a run goes on from: the pause that the run `pause_of` left, or will leave.

    `named` are the interrupts that it answers by id; without any it answers by value, or passes a breakpoint. Of
    several that wait, two runs may each answer another; one is `contested` when an earlier one was to answer the same.
    """

    pause_of: RunId
    named: frozenset[str] = frozenset()
    contested: bool = False


def answer_of(run: Run, active: Iterable[Run], last_ended: Run | None) -> Answer | None:
    """What a run that is created now goes on from; None for one that begins anew, or at an earlier checkpoint."""
    command = run.kwargs.get("command") or {}
    by_command = command.get("resume") is not None
    if not by_command and (command or run.kwargs.get("input") is not None):
        return None
    checkpoint = run.kwargs.get("checkpoint_id") or (run.kwargs.get("checkpoint") or {}).get("checkpoint_id")
    if checkpoint is not None and (last_ended is None or last_ended.checkpoint_id != checkpoint):
        return None
    named = _named(command.get("resume"))
    before = [each for each in active if _goes_before(each, run)]
    for other in reversed(before):
        if other.cancel_requested is None and other.answer is not None and _overlap(other.answer.named, named):
            return Answer(other.answer.pause_of, named, contested=True)
    if before:
        return Answer(before[-1].run_id, named) if by_command else None
    if last_ended is None or (last_ended.status is RunStatus.SUCCESS and not last_ended.is_paused):
        return None  # nothing waits: for the executor to say
    return Answer(last_ended.run_id, named)


def comes_too_late(run: Run, last_ended: Run | None) -> bool:
    """Whether the pause that the run is to go on from is over, now that its turn has come."""
    answer = run.answer
    if answer is None or run.attempt > 0 or (answer.named and not answer.contested):
        return False
    return last_ended is None or last_ended.run_id != answer.pause_of


def _goes_before(other: Run, run: Run) -> bool:
    """Whether `other` will have ended, and left something, when `run` begins."""
    due = other.due_at is None or other.attempt > 0 or other.due_at <= run.created_at
    return due and other.cancel_requested is not CancelAction.ROLLBACK


def names_interrupts(resume: object) -> TypeGuard[Mapping[str, object]]:
    """Whether an answer is a map from ids of interrupts, as against a value that may be a map too."""
    return isinstance(resume, Mapping) and all(_INTERRUPT_ID.fullmatch(str(name)) for name in resume)


def _named(resume: object) -> frozenset[str]:
    return frozenset(resume) if names_interrupts(resume) else frozenset()


def _overlap(one: frozenset[str], other: frozenset[str]) -> bool:
    return not one or not other or not one.isdisjoint(other)
