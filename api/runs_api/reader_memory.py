"""Bytes that wait for readers, over all streams of the process: a share for each, and a bound for all.

What a reader does not take has to be kept for it. So the more streams are open, the less each keeps; and when the bound
is reached all the same, the reader that has taken nothing for longest is cut off. It comes back with its cursor.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
from collections import deque
from collections.abc import Callable
from typing import Protocol

logger = logging.getLogger(__name__)

MOST_A_STREAM = 256 * 1024
LEAST_A_STREAM = 8 * 1024
# A stream keeps rows it has read, frames that wait, a piece under way, and the server's copy of that.
_PARTS = 4
_STALLED_SECONDS = 1.0
_LOOK_SECONDS = 0.1
# Memory is given back to the system when so much was held, and a quarter of it is left.
_WORTH_GIVING_BACK = 16 * 1024 * 1024
_GIVE_BACK_AFTER_SECONDS = 5.0


class Reader(Protocol):
    """A stream with a client at its other end."""

    @property
    def sending_since(self) -> float | None:
        """When the send under way began, by the loop's clock; None when there is none."""

    def cut(self) -> None:
        """End it, because its client takes nothing."""


class ReaderMemory:
    """Counts the bytes kept for readers. Belongs to one event loop.

    `on_share` is told how many bytes a stream may keep of each kind, whenever that changes.
    """

    def __init__(self, most: int, on_share: Callable[[int], None] = lambda _: None) -> None:
        self._most = most
        self._on_share = on_share
        self._held: dict[Reader, int] = {}
        self._peak = 0
        # First come, first served; one timer looks after all of them.
        self._waiting: deque[tuple[asyncio.Future[None], Reader, int]] = deque()
        self._looking: asyncio.TimerHandle | None = None
        self._cut: set[Reader] = set()  # still here, on their way out
        self._giving_back: asyncio.TimerHandle | None = None
        self._trimming: asyncio.Task[None] | None = None
        self.held = 0

    @property
    def share(self) -> int:
        """How many bytes a stream may keep of each kind."""
        return min(max(self._most // (_PARTS * max(len(self._held), 1)), LEAST_A_STREAM), MOST_A_STREAM)

    def join(self, reader: Reader) -> None:
        """One more stream."""
        self._held[reader] = 0
        self._on_share(self.share)

    def leave(self, reader: Reader) -> None:
        """It has ended, and holds nothing any more."""
        self.give(reader, self._held.get(reader, 0))
        self._held.pop(reader, None)
        self._cut.discard(reader)
        self._on_share(self.share)

    async def take(self, reader: Reader, size: int) -> None:
        """Count bytes for a reader, once there is room. One that holds nothing gets some when nobody holds any."""
        if not self._waiting and self._has_room(size):
            self._count(reader, size)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((turn, reader, size))
        self._plan_to_look()
        await turn

    def give(self, reader: Reader, size: int) -> None:
        """Bytes that were sent or dropped."""
        size = min(size, self._held.get(reader, 0))
        if size:
            self._held[reader] -= size
            self.held -= size
            self._let_in()
            self._plan_to_give_back()

    def _has_room(self, size: int) -> bool:
        return not self.held or self.held + size <= self._most

    def _count(self, reader: Reader, size: int) -> None:
        if reader in self._held:
            self._held[reader] += size
            self.held += size
            self._peak = max(self._peak, self.held)

    def _let_in(self) -> None:
        """Count for those who wait longest, as far as there is room."""
        while self._waiting:
            turn, reader, size = self._waiting[0]
            if not turn.done():  # else its stream has ended meanwhile
                if not self._has_room(size):
                    return
                self._count(reader, size)
                turn.set_result(None)
            self._waiting.popleft()

    def _plan_to_look(self) -> None:
        if self._looking is None:
            self._looking = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._look)

    def _look(self) -> None:
        self._looking = None
        self._let_in()
        if self._waiting:
            self._cut_who_stall(self._waiting[0][2])
            self._plan_to_look()

    def _cut_who_stall(self, size: int) -> None:
        """Cut as many as it takes to have room for `size`, those that have taken nothing for longest first."""
        before = asyncio.get_running_loop().time() - _STALLED_SECONDS
        missing = self.held + size - self._most - sum(self._held[reader] for reader in self._cut)
        stalled = [
            (since, reader)
            for reader, held in self._held.items()
            if held and reader not in self._cut and (since := reader.sending_since) is not None and since <= before
        ]
        stalled.sort(key=lambda each: each[0], reverse=True)
        going = len(self._cut)
        while stalled and missing > 0:
            _, reader = stalled.pop()
            missing -= self._held[reader]
            self._cut.add(reader)
            reader.cut()
        if (cut := len(self._cut) - going) > 0:
            logger.info("streams hold %d bytes for readers: %d that take nothing are cut off", self.held, cut)

    def _plan_to_give_back(self) -> None:
        if self._giving_back is None and self._peak >= _WORTH_GIVING_BACK and self.held <= self._peak // 4:
            loop = asyncio.get_running_loop()
            self._giving_back = loop.call_later(_GIVE_BACK_AFTER_SECONDS, self._give_back)

    def _give_back(self) -> None:
        self._giving_back = None
        self._peak = self.held
        self._trimming = asyncio.get_running_loop().create_task(asyncio.to_thread(trim))


def trim() -> None:
    """Give free memory back to the system, where the C library can (glibc); it keeps it for itself otherwise."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        return
