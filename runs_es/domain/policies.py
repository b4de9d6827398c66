"""Decisions that depend on a strategy and on what is in flight, and on nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from runs_es.domain.values import CancelAction, MultitaskStrategy


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

    strategy: MultitaskStrategy

    def decide(self, active_runs: Sequence[Any] | int) -> MultitaskDecision:
        """The decision, given the runs in flight (or their number)."""
        in_flight = active_runs if isinstance(active_runs, int) else len(active_runs)
        if not in_flight:
            return MultitaskDecision.ALLOW
        match MultitaskStrategy(self.strategy):
            case MultitaskStrategy.REJECT:
                return MultitaskDecision.REJECT
            case MultitaskStrategy.ENQUEUE:
                return MultitaskDecision.ENQUEUE
            case _:
                return MultitaskDecision.CANCEL_EXISTING


@dataclass(frozen=True, slots=True)
class CancelPolicy:
    """What cancelling means for the thread's state."""

    action: CancelAction

    @property
    def rolls_back_checkpoint(self) -> bool:
        return CancelAction(self.action) is CancelAction.ROLLBACK
