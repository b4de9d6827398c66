"""Bytes that wait for readers, over all streams of the process: a share for each, and a bound for all.

What a reader does not take has to be kept for it. So the more streams are open, the less each keeps; and when the bound
is reached all the same, the reader that has taken nothing for longest is cut off. It comes back with its cursor.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
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
        self._freed = asyncio.Event()
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
        self._on_share(self.share)

    async def take(self, reader: Reader, size: int) -> None:
        """Count bytes for a reader, once there is room. One that holds nothing gets some when nobody holds any."""
        while self.held and self.held + size > self._most:
            self._cut_who_stalls()
            self._freed.clear()
            try:
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._freed.wait()
            except TimeoutError:
                continue
        if reader in self._held:
            self._held[reader] += size
            self.held += size
            self._peak = max(self._peak, self.held)

    def give(self, reader: Reader, size: int) -> None:
        """Bytes that were sent or dropped."""
        size = min(size, self._held.get(reader, 0))
        if size:
            self._held[reader] -= size
            self.held -= size
            self._freed.set()
            self._plan_to_give_back()

    def _cut_who_stalls(self) -> None:
        now = asyncio.get_running_loop().time()
        sending = [(since, reader) for reader in self._held if (since := reader.sending_since) is not None]
        since, reader = min(sending, key=lambda each: each[0], default=(now, None))
        if reader is not None and now - since >= _STALLED_SECONDS:
            logger.info("streams hold %d bytes for readers: one that takes nothing is cut off", self.held)
            reader.cut()

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
