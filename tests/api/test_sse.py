"""The bytes of a stream, and how it ends in each way that a stream can end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable

import orjson
import pytest

from runs_api.sse import HEARTBEAT, MAX_PIECE, EventStream
from runs_es.domain import StoreUnavailable
from runs_es.log.append import PAGE_TOPIC
from runs_es.log.pages import encode_page, frame
from runs_es.log.reader import Row
from runs_es.settings import Settings
from runs_es.streams.cursor import End, Frames, Gap, Step
from tests.api.asgi import Connection

STILL = Settings(stream_heartbeat_seconds=60)
QUICK = Settings(stream_heartbeat_seconds=0.01)


def page(first: int, *events: tuple[str, object]) -> Frames:
    bodies = [frame(event, orjson.dumps(data)) for event, data in events]
    return Frames([Row(first, first + len(bodies) - 1, "r", PAGE_TOPIC, encode_page(bodies))])


async def stepping(steps: Iterable[Step]) -> AsyncIterator[Step]:
    for step in steps:
        yield step


async def waiting(*steps: Step) -> AsyncIterator[Step]:
    """These, and then nothing for ever."""
    for step in steps:
        yield step
    await asyncio.Event().wait()


async def turns(count: int) -> None:
    """Let every other task have this many turns."""
    for _ in range(count):
        await asyncio.sleep(0)


def stream(steps: AsyncIterator[Step], settings: Settings = STILL, **named: object) -> EventStream:
    return EventStream(steps, settings, headers={"Location": "/runs/r/stream", "Content-Location": "/runs/r"}, **named)


async def sent(steps: AsyncIterator[Step], settings: Settings = STILL, **named: object) -> Connection:
    connection = Connection()
    await asyncio.wait_for(connection.start(stream(steps, settings, **named)), 10)
    return connection


async def test_frames_and_the_end_go_out_byte_for_byte_and_the_stream_closes_cleanly():
    connection = await sent(stepping([page(6, ("metadata", {"attempt": 1})), page(7, ("values", {})), End(9)]))
    assert connection.body == (
        b'event: metadata\r\ndata: {"attempt":1}\r\nid: 6\r\n\r\n'
        b"event: values\r\ndata: {}\r\nid: 7\r\n\r\n"
        b"event: end\r\ndata: null\r\nid: 9\r\n\r\n"
    )
    assert connection.complete


async def test_the_headers_keep_proxies_from_buffering_and_say_where_to_come_back():
    connection = await sent(stepping([End(1)]))
    assert connection.messages[0]["status"] == 200
    assert connection.headers == {
        "content-type": "text/event-stream; charset=utf-8",
        "cache-control": "no-cache, no-transform",
        "x-accel-buffering": "no",
        "x-content-type-options": "nosniff",
        "location": "/runs/r/stream",
        "content-location": "/runs/r",
    }


async def test_everything_that_is_available_goes_out_in_one_send():
    steps = [page(n, ("values", {"n": n})) for n in range(1, 101)]
    connection = await sent(stepping([*steps, End(101)]))
    assert len(connection.pieces) == 1


async def test_one_send_is_bounded():
    large = "x" * 100_000
    steps = [page(n, ("values", large)) for n in range(1, 21)]
    connection = await sent(stepping([*steps, End(21)]))
    assert len(connection.pieces) > 1
    assert max(map(len, connection.pieces)) < MAX_PIECE + len(large) + 100


async def test_a_fast_stream_lets_other_tasks_have_their_turn():
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    connection = await sent(stepping([*(page(n, ("values", "x" * 100_000)) for n in range(1, 101)), End(101)]))
    task.cancel()
    assert connection.complete
    assert turns > 20


async def test_the_end_event_can_be_turned_off():
    connection = await sent(stepping([page(1, ("values", 1)), End(2)]), Settings(stream_end_event=False))
    assert connection.body == b"event: values\r\ndata: 1\r\nid: 1\r\n\r\n"
    assert connection.complete


async def test_a_gap_is_said_without_an_id_and_closes_the_stream():
    connection = await sent(stepping([Gap("r", 99, 4, 20)]))
    assert connection.body == (
        b'event: gap\r\ndata: {"code":"stream_replay_gap","run_id":"r","requested_event_id":"99",'
        b'"earliest_available_event_id":"4","latest_available_event_id":"20"}\r\n\r\n'
    )
    assert connection.complete


async def test_a_filter_by_mode_hides_other_modes_but_never_metadata_error_and_end():
    steps = [page(1, ("metadata", 1), ("values", 2), ("values|child:1", 3), ("custom", 4), ("error", 5)), End(6)]
    connection = await sent(stepping(steps), modes=frozenset({"custom"}))
    names = [line for line in connection.body.split(b"\r\n") if line.startswith(b"event: ")]
    assert names == [b"event: metadata", b"event: custom", b"event: error", b"event: end"]


async def test_an_idle_stream_sends_heartbeats_that_no_decoder_takes_for_an_event():
    connection = Connection()
    task = connection.start(stream(waiting(), QUICK))
    await connection.until(HEARTBEAT * 2)
    assert HEARTBEAT == b": heartbeat\r\n"
    task.cancel()


async def test_heartbeats_go_on_while_a_filter_hides_everything():
    async def busy() -> AsyncIterator[Step]:
        for n in range(1, 1_000_000):
            yield page(n, ("values", n))
            await asyncio.sleep(0)

    connection = Connection()
    task = connection.start(stream(busy(), QUICK, modes=frozenset({"custom"})))
    await connection.until(HEARTBEAT * 2)
    task.cancel()


async def test_without_an_end_the_connection_is_cut_and_what_was_there_still_goes_out():
    connection = await sent(stepping([page(1, ("values", 1))]))
    assert connection.body == b"event: values\r\ndata: 1\r\nid: 1\r\n\r\n"
    assert not connection.complete


async def test_a_store_that_fails_cuts_the_connection():
    async def failing() -> AsyncIterator[Step]:
        yield page(1, ("values", 1))
        raise StoreUnavailable("gone")

    connection = await sent(failing())
    assert b"id: 1" in connection.body
    assert not connection.complete


class Left:
    """Counts how often a stream says that its client left, and that it is closed."""

    def __init__(self) -> None:
        self.left = self.closed = 0

    async def on_left(self) -> None:
        self.left += 1

    def on_close(self) -> None:
        self.closed += 1


async def test_a_client_that_leaves_is_told_of_and_the_steps_are_closed():
    left, ended = Left(), asyncio.Event()

    async def steps() -> AsyncIterator[Step]:
        try:
            async for step in waiting(page(1, ("values", 1))):
                yield step
        finally:
            ended.set()

    connection = Connection()
    task = connection.start(stream(steps(), on_client_left=left.on_left, on_close=left.on_close))
    await connection.until(b"id: 1")
    connection.gone.set()
    await asyncio.wait_for(task, 10)
    assert (left.left, left.closed) == (1, 1)
    await asyncio.wait_for(ended.wait(), 10)


@pytest.mark.parametrize("steps", [[End(1)], [Gap("r", 9, None, None)], []], ids=["end", "gap", "drain"])
async def test_neither_the_end_nor_a_gap_nor_a_drain_counts_as_a_client_that_left(steps: list[Step]):
    left = Left()
    await sent(stepping(steps), on_client_left=left.on_left, on_close=left.on_close)
    assert (left.left, left.closed) == (0, 1)


async def test_a_client_that_leaves_after_a_gap_was_found_has_not_left_the_run():
    left = Left()
    connection = Connection()
    connection.reads.clear()  # the gap waits to be sent
    task = connection.start(stream(stepping([Gap("r", 9, None, None)]), on_client_left=left.on_left))
    await turns(10)
    connection.gone.set()
    await turns(10)
    connection.reads.set()
    await asyncio.wait_for(task, 10)
    assert left.left == 0


async def test_a_server_that_says_by_an_error_that_the_client_left_is_understood():
    left = Left()
    connection = Connection()
    connection.broken = True
    await connection.start(stream(waiting(), on_client_left=left.on_left, on_close=left.on_close))
    assert (left.left, left.closed) == (1, 1)


async def test_a_reader_that_takes_nothing_is_cut_off_and_has_not_left():
    left = Left()
    connection = Connection()
    slow = Settings(send_timeout_seconds=0.05, stream_heartbeat_seconds=60)
    connection.reads.clear()
    task = connection.start(stream(waiting(page(1, ("values", 1))), slow, on_client_left=left.on_left))
    await asyncio.wait_for(task, 10)
    assert not connection.complete
    assert left.left == 0


async def test_a_slow_reader_gets_larger_pieces_rather_than_more_of_them():
    more = asyncio.Event()

    async def steps() -> AsyncIterator[Step]:
        yield page(1, ("values", 1))
        await more.wait()
        for n in range(2, 50):
            yield page(n, ("values", n))
            await asyncio.sleep(0)
        yield End(50)

    connection = Connection()
    task = connection.start(stream(steps()))
    await connection.until(b"id: 1\r")
    connection.reads.clear()
    more.set()
    await turns(200)
    connection.reads.set()
    await asyncio.wait_for(task, 10)
    assert connection.body.count(b"event: values") == 49
    assert len(connection.pieces) <= 4
