"""Requests parked because the database has no room for them just now, each with what its writer has queued behind it.

They are tried again until there is room. Only requests of an attempt are held: its producer waits once its buffer is
full, so they are bounded. Whoever has no writer is told at once. Everything here is called under the log writer's lock.
"""

from __future__ import annotations

import logging
import time
from collections import deque

from psycopg.errors import DiskFull, InsufficientResources, OutOfMemory

from runs_es.log.append import Append, Writer

logger = logging.getLogger(__name__)

NO_ROOM = (DiskFull, OutOfMemory, InsufficientResources)
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 1.0


class Parked:
    """By writer, the request to try and those that must not overtake it."""

    def __init__(self) -> None:
        self._queues: dict[Writer, deque[Append]] = {}
        self._next = 0.0
        self._pause = _FIRST_PAUSE
        self.reason: str | None = None  # what the database said last; None when there is room

    def __bool__(self) -> bool:
        return bool(self._queues)

    def hold(self, requests: list[Append], reason: str) -> None:
        """Keep requests that have just failed, all of them of writers."""
        if self.reason is None:
            logger.error("the database has no room, appends wait and are tried again until it has: %s", reason)
        self.reason = reason
        for request in requests:
            assert request.writer is not None
            if request.writer not in self._queues:
                self._queues[request.writer] = deque((request,))
        self._next = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def joins(self, request: Append) -> bool:
        """Whether the request has to wait behind a held one; it does from now on."""
        queue = self._queues.get(request.writer) if request.writer is not None else None
        if queue is None:
            return False
        queue.append(request)
        return True

    def due(self) -> list[Append]:
        """The requests to try now, one a thread; they stay held until `release`."""
        if time.monotonic() < self._next:
            return []
        return list({queue[0].thread_id: queue[0] for queue in self._queues.values()}.values())

    @property
    def seconds_left(self) -> float | None:
        """Until the next try; None when nothing is held."""
        return max(self._next - time.monotonic(), 0.0) if self._queues else None

    def release(self, writer: Writer) -> list[Append]:
        """Hold nothing more of this writer; what there was."""
        released = list(self._queues.pop(writer, ()))
        if not self._queues and self.reason is not None:
            logger.warning("the database has room again")
            self.reason, self._pause = None, _FIRST_PAUSE
        return released

    def release_all(self) -> list[Append]:
        return [request for writer in list(self._queues) for request in self.release(writer)]
