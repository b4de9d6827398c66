"""Decisions that depend on a strategy and on what is in flight, and on nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from runs_es.domain.values import CancelAction, MultitaskStrategy, RunStatus

_IN_FLIGHT = frozenset({RunStatus.PENDING, RunStatus.RUNNING})


class MultitaskDecision(StrEnum):
    ALLOW = "allow"
    REJECT = "reject"
    CANCEL_EXISTING = "cancel_existing"
    ENQUEUE = "enqueue"

    allow = ALLOW
    reject = REJECT
    cancel_existing = CANCEL_EXISTING
    enqueue = ENQUEUE


@dataclass(frozen=True, slots=True)
class MultitaskPolicy:
    """What a new run does when its thread is busy."""

    strategy: MultitaskStrategy = MultitaskStrategy.ENQUEUE

    def __post_init__(self) -> None:
        object.__setattr__(self, "strategy", MultitaskStrategy(self.strategy))

    def decide(self, active_runs: Sequence[Any] | int) -> MultitaskDecision:
        """The decision, given the thread's runs, of which only those in flight count, or how many are in flight."""
        if not isinstance(active_runs, int):
            active_runs = sum(run.status in _IN_FLIGHT for run in active_runs)
        if not active_runs:
            return MultitaskDecision.ALLOW
        match self.strategy:
            case MultitaskStrategy.REJECT:
                return MultitaskDecision.REJECT
            case MultitaskStrategy.ENQUEUE:
                return MultitaskDecision.ENQUEUE
            case _:
                return MultitaskDecision.CANCEL_EXISTING


@dataclass(frozen=True, slots=True)
class CancelPolicy:
    """What cancelling means for the thread's state."""

    action: CancelAction = CancelAction.INTERRUPT

    def __post_init__(self) -> None:
        object.__setattr__(self, "action", CancelAction(self.action))

    @property
    def rolls_back_checkpoint(self) -> bool:
        return self.action is CancelAction.ROLLBACK
