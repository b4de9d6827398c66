"""When an attempt has taken too long, or has been silent for too long."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from runs_es.domain import Timeouts
from runs_es.execution.attempt import Attempt


class Deadline:
    """The time that one attempt has, from any thread. The run's time goes on where an earlier attempt left it."""

    def __init__(self, attempt: Attempt, timeouts: Timeouts) -> None:
        self._attempt = attempt
        self._timeouts = timeouts
        self._begun = time.monotonic() - _seconds_since(attempt.run.started_at)

    def left(self) -> float | None:
        """Seconds until it may have passed; None when it never does."""
        ends = [end for end in (self._wall_end(), self._idle_end()) if end is not None]
        return max(min(ends) - time.monotonic(), 0) if ends else None

    def passed(self) -> str | None:
        """Why the attempt is to be stopped; None while it may go on."""
        now = time.monotonic()
        wall, idle = self._wall_end(), self._idle_end()
        if wall is not None and now >= wall:
            return self._timeouts.why("wall")
        if idle is not None and now >= idle:
            return self._timeouts.why("idle")
        return None

    def _wall_end(self) -> float | None:
        return None if self._timeouts.wall is None else self._begun + self._timeouts.wall

    def _idle_end(self) -> float | None:
        if self._timeouts.idle is None:
            return None
        # Who waits for room in the database is not silent: it has something to say.
        since = time.monotonic() if self._attempt.waits_for_room else self._attempt.active_at
        return since + self._timeouts.idle


def _seconds_since(moment: str | None) -> float:
    if moment is None:
        return 0.0
    return max((datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds(), 0.0)
