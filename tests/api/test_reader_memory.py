"""What waits for readers has a bound over all streams; who takes nothing is cut off for the others."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest

from runs_api import reader_memory
from runs_api.reader_memory import LEAST_A_STREAM, MOST_A_STREAM, ReaderMemory
from runs_api.sse import Encoded, EventStream
from runs_es.log.append import PAGE_TOPIC
from runs_es.log.pages import encode_page
from runs_es.log.reader import Row
from runs_es.settings import Settings
from runs_es.streams.cursor import End, Frames
from tests.api.asgi import Connection

MIB = 1024 * 1024


class Reader:
    """A stream that a test stalls by hand."""

    def __init__(self, sending_since: float | None = None) -> None:
        self.sending_since = sending_since
        self.was_cut = asyncio.Event()
        self.cuts = 0

    def cut(self) -> None:
        self.cuts += 1
        self.was_cut.set()


async def test_the_more_streams_are_open_the_less_each_keeps():
    shares: list[int] = []
    memory = ReaderMemory(8 * MIB, shares.append)
    readers = [Reader() for _ in range(5000)]
    for reader in readers:
        memory.join(reader)
    assert shares[0] == MOST_A_STREAM
    assert shares == sorted(shares, reverse=True)
    assert shares[99] * 4 * 100 <= 8 * MIB
    assert shares[-1] == LEAST_A_STREAM
    for reader in readers:
        memory.leave(reader)
    assert memory.share == MOST_A_STREAM


async def test_at_the_bound_the_reader_that_took_nothing_for_longest_is_cut_off():
    now = asyncio.get_running_loop().time()
    memory = ReaderMemory(1000)
    older, old, live, new = Reader(now - 60), Reader(now - 30), Reader(), Reader()
    for reader in (older, old, live, new):
        memory.join(reader)
    await memory.take(old, 500)
    await memory.take(older, 400)
    taking = asyncio.create_task(memory.take(new, 300))
    await asyncio.wait_for(older.was_cut.wait(), 10)
    assert not taking.done()
    assert (old.was_cut.is_set(), live.was_cut.is_set()) == (False, False)
    memory.leave(older)  # as its stream does once it was cut
    await asyncio.wait_for(taking, 10)
    assert memory.held == 800


async def test_however_many_wait_a_reader_is_cut_off_once_and_those_are_cut_that_are_enough(
    caplog: pytest.LogCaptureFixture,
):
    caplog.set_level("INFO", "runs_api.reader_memory")
    now = asyncio.get_running_loop().time()
    memory = ReaderMemory(1000)
    stalled = [Reader(now - 60 + number) for number in range(10)]
    new = [Reader() for _ in range(100)]
    for reader in (*stalled, *new):
        memory.join(reader)
    for reader in stalled:
        await memory.take(reader, 100)
    taking = [asyncio.create_task(memory.take(reader, 150)) for reader in new]
    await asyncio.wait_for(stalled[1].was_cut.wait(), 10)
    for _ in range(3):  # nothing is cut twice while the stream of one that was cut ends slowly
        memory.give(stalled[9], 1)
        await asyncio.sleep(reader_memory._LOOK_SECONDS)
    assert [reader.cuts for reader in stalled] == [1, 1, 0, 0, 0, 0, 0, 0, 0, 0]
    assert [record.getMessage() for record in caplog.records] == [
        "streams hold 1000 bytes for readers: 2 that take nothing are cut off"
    ]
    memory.leave(stalled[0])
    memory.leave(stalled[1])
    await asyncio.wait_for(taking[0], 10)  # the one that waited longest
    assert [task.done() for task in taking[1:]] == [False] * 99
    for task in taking:
        task.cancel()
    await asyncio.gather(*taking, return_exceptions=True)


async def test_a_reader_that_is_quick_is_waited_for():
    memory = ReaderMemory(1000)
    quick, new = Reader(asyncio.get_running_loop().time() + 3600), Reader()
    memory.join(quick)
    memory.join(new)
    await memory.take(quick, 900)
    taking = asyncio.create_task(memory.take(new, 300))
    await asyncio.sleep(0)
    memory.give(quick, 900)
    await asyncio.wait_for(taking, 10)
    assert (quick.was_cut.is_set(), memory.held) == (False, 300)


async def test_a_frame_over_the_bound_is_sent_when_nobody_else_holds_anything():
    memory = ReaderMemory(1000)
    reader = Reader()
    memory.join(reader)
    await asyncio.wait_for(memory.take(reader, 5000), 10)
    assert memory.held == 5000


async def test_streams_that_nobody_reads_stay_within_the_bound_and_give_it_back():
    memory = ReaderMemory(2 * MIB)
    settings = Settings(send_timeout_seconds=0.5)
    most = 0

    async def frames() -> AsyncIterator[Encoded | End]:
        nonlocal most
        for _ in range(200):
            yield Encoded(b"x" * 50_000)
            most = max(most, memory.held)
        yield End(1)

    connections = [Connection() for _ in range(60)]
    for connection in connections:
        connection.reads.clear()
    streams = [EventStream(frames(), settings, headers={}, memory=memory) for _ in connections]
    await asyncio.gather(*(c.start(s) for c, s in zip(connections, streams, strict=True)))
    assert most <= 2 * MIB
    assert (memory.held, memory.share) == (0, MOST_A_STREAM)


async def test_a_reader_that_reads_gets_everything_beside_those_that_do_not():
    memory = ReaderMemory(MIB)
    settings = Settings(send_timeout_seconds=600)

    async def frames() -> AsyncIterator[Encoded | End]:
        for number in range(100):
            yield Encoded(b"%06d" % number + b"x" * 50_000)
        yield End(1)

    stalled = [Connection() for _ in range(20)]
    for connection in stalled:
        connection.reads.clear()
    waiting = [c.start(EventStream(frames(), settings, headers={}, memory=memory)) for c in stalled]
    reading = Connection()
    await asyncio.wait_for(reading.start(EventStream(frames(), settings, headers={}, memory=memory)), 60)
    assert len(reading.body) > 100 * 50_006
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


@pytest.mark.parametrize("modes", [None, frozenset({"custom"})])
async def test_large_pages_are_decoded_beside_the_event_loop(modes: frozenset[str] | None):
    threads: list[int] = []

    class Page(Row):
        @property
        def bodies(self) -> list[bytes]:
            threads.append(threading.get_ident())
            return super().bodies

    async def steps() -> AsyncIterator[Frames | End]:
        for seq, size in enumerate([3 * MIB, 1000], 1):
            state = encode_page([b'event: custom\r\ndata: "%b"\r\n' % (b"x" * size)])
            yield Frames([Page(seq, seq, "run", PAGE_TOPIC, state)])
        yield End(3)

    connection = Connection()
    stream = EventStream(steps(), Settings(), headers={}, modes=modes, memory=ReaderMemory(64 * MIB))
    await asyncio.wait_for(connection.start(stream), 60)
    here = threading.get_ident()
    large, small = threads[: len(threads) // 2], threads[len(threads) // 2 :]
    assert here not in large
    assert set(small) == {here}
    assert connection.body.count(b"x") >= 3 * MIB + 1000


async def test_memory_is_given_back_to_the_system_after_a_peak(monkeypatch: pytest.MonkeyPatch):
    trimmed = asyncio.Event()
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(reader_memory, "_GIVE_BACK_AFTER_SECONDS", 0.0)
    monkeypatch.setattr(reader_memory, "trim", lambda: loop.call_soon_threadsafe(trimmed.set))
    memory = ReaderMemory(64 * MIB)
    reader = Reader()
    memory.join(reader)
    await memory.take(reader, 20 * MIB)
    memory.leave(reader)
    await asyncio.wait_for(trimmed.wait(), 10)


def test_a_system_that_cannot_take_memory_back_is_no_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reader_memory.ctypes, "CDLL", lambda _: SimpleNamespace())
    reader_memory.trim()
