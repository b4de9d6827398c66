"""Requests that never become whole are refused in time, and their connections closed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop

from runs_api.server import AbortableProtocol, ArrivalBounds, BoundedConfig, DrainingServer, bound_socket

QUICK = ArrivalBounds(header_seconds=0.3, body_seconds=0.3, head_bytes=4096)


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the length of the body."""
    if scope["type"] != "http":
        return
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size += len(message["body"])
        more = message["more_body"]
    body = str(size).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def serving(bounds: ArrivalBounds) -> AsyncIterator[int]:
    """The port of a server with these bounds."""
    started = asyncio.Event()
    config = BoundedConfig(echo, http=AbortableProtocol, log_config=None, lifespan="off", timeout_graceful_shutdown=1)
    config.arrival = bounds
    server = DrainingServer(config, on_start=started.set, on_stop=lambda: None)
    listener = bound_socket("127.0.0.1", 0)
    running = asyncio.create_task(server.serve([listener]))
    await asyncio.wait_for(started.wait(), 20)
    yield listener.getsockname()[1]
    server.should_exit = True
    await asyncio.wait_for(running, 20)


async def answer_to(port: int, sent: bytes) -> bytes:
    """All that the server says until it closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    try:
        return await asyncio.wait_for(reader.read(), 20)
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("half", "setting"),
    [
        (b"", b"RUNS_ES_HEADER_TIMEOUT_SECONDS"),
        (b"GE", b"RUNS_ES_HEADER_TIMEOUT_SECONDS"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX-A: ", b"RUNS_ES_HEADER_TIMEOUT_SECONDS"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345", b"RUNS_ES_BODY_TIMEOUT_SECONDS"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc", b"RUNS_ES_BODY_TIMEOUT_SECONDS"),
    ],
)
async def test_half_a_request_is_refused_with_the_name_of_the_setting(half: bytes, setting: bytes):
    async with serving(QUICK) as port:
        answer = await answer_to(port, half)
    assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert setting in answer


async def test_three_hundred_half_requests_are_all_closed():
    async with serving(QUICK) as port:
        answers = await asyncio.gather(*(answer_to(port, b"GET / HTTP/1.1\r\nHost: x\r\n") for _ in range(300)))
    assert {answer[:12] for answer in answers} == {b"HTTP/1.1 408"}


def test_half_bodies_are_all_closed_on_the_loop_that_servers_run_on():
    half = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n1"

    async def answers() -> list[bytes]:
        async with serving(QUICK) as port:
            return await asyncio.gather(*(answer_to(port, half) for _ in range(300)))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert {answer[:12] for answer in runner.run(answers())} == {b"HTTP/1.1 408"}


async def test_a_request_that_comes_byte_by_byte_gets_no_more_time_for_it():
    async with serving(QUICK) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        reading = asyncio.create_task(reader.read())
        writer.write(b"GET / HTTP/1.1\r\nX-Slow: ")
        while not reading.done():
            writer.write(b"a")
            await asyncio.wait((reading,), timeout=0.05)
        assert reading.result().startswith(b"HTTP/1.1 408")
        writer.close()


async def test_whole_requests_on_a_kept_connection_are_never_too_late():
    async with serving(QUICK) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc")
        assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n3"), 20)
        closed = asyncio.create_task(reader.read())
        await asyncio.wait((closed,), timeout=3 * QUICK.header_seconds)  # idle for longer than any bound
        assert not closed.done()
        closed.cancel()
        writer.close()


async def test_a_large_body_may_take_longer_the_more_of_it_has_come():
    async with serving(ArrivalBounds(header_seconds=5, body_seconds=0.2)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 200001\r\n\r\n" + b"x" * 200_000)
        reading = asyncio.create_task(reader.readuntil(b"200001"))
        await asyncio.wait((reading,), timeout=0.6)
        writer.write(b"x")
        assert (await asyncio.wait_for(reading, 20)).startswith(b"HTTP/1.1 200")
        writer.close()


async def test_headers_that_never_end_are_refused_however_fast_they_come():
    async with serving(ArrivalBounds(head_bytes=4096)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        reading = asyncio.create_task(reader.read())
        writer.write(b"GET / HTTP/1.1\r\nX-Long: ")
        try:
            while not reading.done():
                writer.write(b"a" * 1024)
                await writer.drain()
                await asyncio.sleep(0)
        except ConnectionError:
            pass
        answer = await asyncio.gather(reading, return_exceptions=True)
        assert isinstance(answer[0], ConnectionError) or answer[0].startswith(b"HTTP/1.1 431")
        writer.close()
