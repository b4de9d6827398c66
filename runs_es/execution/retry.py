"""Errors that may pass: when the next attempt begins."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from runs_es.domain import Run

_MOST_DOUBLINGS = 62
# The global generator belongs to the embedding program, which may seed it.
_jitter = random.Random()  # noqa: S311


@dataclass(frozen=True, slots=True)
class Backoff:
    """Seconds: the first pause, doubled with each failed attempt up to the longest; up to half of it is taken off at
    random, so that runs that failed together do not come back together.
    """

    first: float = 1.0
    longest: float = 60.0

    def seconds(self, failed_attempts: int) -> float:
        """The pause after so many failed attempts, from 1 on."""
        whole = min(self.first * 2 ** min(failed_attempts - 1, _MOST_DOUBLINGS), self.longest)
        return float(whole * _jitter.uniform(0.5, 1.0))

    def due_at(self, run: Run, wall: float | None) -> str:
        """When a run whose attempt has just failed is due again: not after its time (`wall` seconds) is up, so that it
        ends then.
        """
        due = datetime.now(UTC) + timedelta(seconds=self.seconds(run.failed_attempts + 1))
        if wall is not None and run.started_at is not None:
            due = min(due, datetime.fromisoformat(run.started_at) + timedelta(seconds=wall))
        return due.astimezone(UTC).isoformat(timespec="microseconds")
