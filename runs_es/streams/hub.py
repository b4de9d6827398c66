"""Who waits for which thread, and the frames of hot threads kept in memory.

A subscriber holds nothing but a cursor. What it reads comes from the ring when the ring reaches back far enough, else
from the database; a wake-up carries no data, so losing one, or having one too many, changes nothing.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Mapping, Sequence

from runs_es.log.append import Append, Appended
from runs_es.log.event_log import EventLog, rows_of
from runs_es.log.reader import Row


class Channel:
    """One watched thread: a version that grows with every commit, a ring of its newest rows, and who waits."""

    def __init__(self, thread_id: str, ring_bytes: int) -> None:
        self.thread_id = thread_id
        self.version = 0
        self.watchers = 0
        self.known = 0  # the newest seq heard of, from whichever process
        self._ring: deque[Row] = deque()
        self._size = 0
        self._limit = ring_bytes
        self._lock = threading.Lock()
        self._waiters: dict[asyncio.AbstractEventLoop, set[asyncio.Future[bool]]] = {}

    def push(self, rows: Sequence[Row]) -> None:
        """Rows just committed by this process, in order."""
        with self._lock:
            if self._ring and rows[0].first != self._ring[-1].last + 1:
                self._ring.clear()  # another process wrote in between: the ring may have no hole
                self._size = 0
            for row in rows:
                self._ring.append(row)
                self._size += _bytes(row)
            while self._size > self._limit and self._ring:
                self._size -= _bytes(self._ring.popleft())
        self.wake(rows[-1].last)

    def forget(self) -> None:
        """Let go of all that is known: the log may have another history by now."""
        with self._lock:
            self._ring.clear()
            self._size = self.known = 0
        self.wake(0)

    def read(self, seq: int, limit: int) -> list[Row] | None:
        """Rows that hold anything after `seq`, or None when the ring does not reach back to it."""
        with self._lock:
            if not self._ring or self._ring[0].first > seq + 1:
                return None
            if self._ring[-1].last <= seq:
                return [] if self.known <= seq else None
            newest_first: list[Row] = []
            for row in reversed(self._ring):
                if row.last <= seq:
                    break
                newest_first.append(row)
        return newest_first[::-1][:limit]

    def wake(self, seq: int) -> None:
        """Something up to `seq` may be there. From any thread."""
        with self._lock:
            self.known = max(self.known, seq)
            self.version += 1
            waiters, self._waiters = self._waiters, {}
        for loop, waiting in waiters.items():
            try:
                loop.call_soon_threadsafe(_release, waiting)
            except RuntimeError:
                continue  # that loop has closed; nobody waits there any more

    def heard(self, seq: int) -> None:
        """`seq` is in the database: nobody need be woken for it again, but who read before it was there must be now."""
        if seq > self.known:
            self.wake(seq)

    async def changed(self, version: int, timeout: float | None = None) -> bool:
        """Wait until `version` is no longer current; False after `timeout` seconds."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bool] = loop.create_future()
        with self._lock:
            if self.version != version:
                return True
            self._waiters.setdefault(loop, set()).add(waiter)
        timer = None if timeout is None else loop.call_later(timeout, _settle, waiter, False)
        try:
            return await waiter
        finally:
            if timer is not None:
                timer.cancel()
            with self._lock:
                if loop in self._waiters:
                    self._waiters[loop].discard(waiter)


def _bytes(row: Row) -> int:
    """What a row of the ring holds: its stored form, and for a page the frames as published and as they go out."""
    return len(row.state) + (2 * sum(map(len, row.bodies)) if row.is_page else 0)


def _settle(waiter: asyncio.Future[bool], changed: bool) -> None:
    if not waiter.done():
        waiter.set_result(changed)


def _release(waiting: set[asyncio.Future[bool]]) -> None:
    for waiter in waiting:
        _settle(waiter, True)


class Hub:
    """All channels of a process. Fed by the log: commits of this process, hints of others, a poll for lost hints."""

    def __init__(self, log: EventLog, *, ring_bytes: int) -> None:
        self._log = log
        self._ring_bytes = ring_bytes
        self._channels: dict[str, Channel] = {}
        self._lock = threading.Lock()
        log.watch(on_commit=self._committed, on_hints=self._hinted, on_poll=self._poll)
        log.history.watch(self._forget)

    def watch(self, thread_id: str) -> Channel:
        """The thread's channel; give it back with `release`."""
        with self._lock:
            channel = self._channels.get(thread_id)
            if channel is None:
                channel = self._channels[thread_id] = Channel(thread_id, self._ring_bytes)
            channel.watchers += 1
            return channel

    def release(self, channel: Channel) -> None:
        """Undo one `watch`; the last one frees the ring."""
        with self._lock:
            channel.watchers -= 1
            if channel.watchers == 0:
                self._channels.pop(channel.thread_id, None)

    @property
    def generation(self) -> int:
        """Another one: what was read before may be of another history (`HistoryGuard`)."""
        return self._log.history.generation

    def _forget(self) -> None:
        for channel in self._snapshot():
            channel.forget()

    def wake_all(self) -> None:
        """Wake every waiter, for instance so that it notices that the process is shutting down."""
        for channel in self._snapshot():
            channel.wake(0)

    def _committed(self, committed: Sequence[tuple[Append, Appended]]) -> None:
        for request, appended in committed:
            channel = self._channels.get(appended.thread_id)
            if channel is not None:
                channel.push(rows_of(request, appended))

    def _hinted(self, hints: Mapping[str, int]) -> None:
        for thread_id, seq in hints.items():
            channel = self._channels.get(thread_id)
            if channel is not None and seq > channel.known:
                channel.wake(seq)

    def _poll(self) -> None:
        channels = {channel.thread_id: channel for channel in self._snapshot()}
        if not channels:
            return
        for thread_id, seq in self._log.reader.heads(list(channels)).items():
            if seq > channels[thread_id].known:
                channels[thread_id].wake(seq)

    def _snapshot(self) -> list[Channel]:
        with self._lock:
            return list(self._channels.values())
