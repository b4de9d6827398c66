"""The bound on a request while the database is away: whatever it waits for, it is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from runs_es.database.outage import ANSWER_SECONDS, Outage

_AGAIN_SECONDS = 0.25


class LateRequest:
    """Cancels the current task `seconds` after it began, if nothing was answered and the database is away then.

    A request that is slow for another reason goes on, and is looked at again as much later.
    """

    def __init__(self, outage: Outage, seconds: float, is_answered: Callable[[], bool]) -> None:
        self.reason: str | None = None
        self._cancelled = 0
        self._outage = outage
        self._seconds = seconds
        self._is_answered = is_answered
        self._task = asyncio.current_task()
        self._loop = asyncio.get_running_loop()
        self._asking: asyncio.Task[None] | None = None
        self._timer = self._loop.call_later(seconds, self._due)

    def stop(self) -> None:
        """Look no more: the request has ended."""
        self._timer.cancel()
        if self._asking is not None:
            self._asking.cancel()

    def was_mine(self) -> bool:
        """Whether the task was cancelled here; it may then go on."""
        self._timer.cancel()
        if self._task is not None:
            for _ in range(self._cancelled):
                self._task.uncancel()
        return self._cancelled > 0

    def _due(self) -> None:
        if not self._is_answered():
            self._asking = self._loop.create_task(self._ask())

    async def _ask(self) -> None:
        if self._outage.reason is None:
            self._outage.noticed()
            await asyncio.sleep(1.3 * ANSWER_SECONDS)
        if self._is_answered():
            return
        if self._outage.reason is None:
            self._timer = self._loop.call_later(self._seconds, self._due)
        elif self._task is not None:
            self.reason = self._outage.reason
            self._cancel(self._task)

    def _cancel(self, task: asyncio.Task[None]) -> None:
        """End the request. Again a little later: what waits for an answer first asks the database, for 10 s, to
        cancel the query, and gives its connection up when it is cancelled meanwhile.
        """
        self._cancelled += 1
        task.cancel()
        self._timer = self._loop.call_later(_AGAIN_SECONDS, self._cancel, task)
