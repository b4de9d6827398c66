"""How a claim waits for work: woken by what is committed anywhere, at most so often, and looked after by a poll."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from runs_es.log.append import Append, Appended, FactItem
from runs_es.log.event_log import EventLog
from runs_es.streams.hub import Channel

T = TypeVar("T")

# A thread is due for another claim when a run is created, put back or ended.
_TOPICS = frozenset(
    {"run.created", "run.requeued", "run.completed", "run.failed", "run.cancelled", "run.deleted", "thread.deleted"}
)
_PAUSE = 0.05  # seconds between two looks of one claim: other processes' hints come with every page
_POLL = 1.0  # seconds; heals lost hints and sees runs that have become due


class Arrivals:
    """Says that there may be work. One a process."""

    def __init__(self, log: EventLog) -> None:
        self._channel = Channel("", 0)
        self._closed = False
        log.watch(on_commit=self._committed, on_hints=self._hinted)

    async def first(self, look: Callable[[], Coroutine[Any, Any, T | None]], seconds: float) -> T | None:
        """What `look` finds, tried whenever there may be something new; None after so many seconds, or when closing."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while True:
            version, begun = self._channel.version, loop.time()
            found = await look()
            if found is not None or self._closed or loop.time() >= until:
                return found
            await asyncio.sleep(max(min(begun + _PAUSE, until) - loop.time(), 0))
            await self._channel.changed(version, min(_POLL, max(until - loop.time(), 0)))

    def close(self) -> None:
        """Nobody is to wait any more."""
        self._closed = True
        self._channel.wake(0)

    def _committed(self, committed: Sequence[tuple[Append, Appended]]) -> None:
        for request, _ in committed:
            if any(isinstance(item, FactItem) and item.topic in _TOPICS for item in request.items):
                self._channel.wake(0)
                return

    def _hinted(self, hints: Mapping[str, int]) -> None:
        self._channel.wake(0)
