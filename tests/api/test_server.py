"""A real uvicorn on loopback: what clients see when they leave, and when the server does."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import uvicorn

from runs_api.app import create_app
from runs_api.server import DrainingServer, bound_socket
from runs_es.service.commands import ListRunsQuery
from runs_es.settings import Settings
from runs_projections.wiring import Store
from tests.api.conftest import ScriptedExecutor


class Loopback:
    """A server in this event loop."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self.listener = bound_socket("127.0.0.1", 0)
        self.port = self.listener.getsockname()[1]
        self.started = asyncio.Event()
        config = uvicorn.Config(create_app(store, settings), log_config=None, ws="none", timeout_graceful_shutdown=5)
        self.server = DrainingServer(config, on_start=self.started.set, on_stop=store.streams.close)
        self.serving = asyncio.create_task(self.server.serve([self.listener]))

    async def stop(self) -> None:
        self.server.should_exit = True
        await asyncio.wait_for(self.serving, 20)


@pytest.fixture
async def server(store: Store, store_settings: Settings) -> AsyncIterator[Loopback]:
    server = Loopback(store, store_settings)
    await asyncio.wait_for(server.started.wait(), 20)
    yield server
    await server.stop()
    store.streams.closing = False  # the next test of this module shares the store


class Raw:
    """One HTTP connection, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def until(self, text: bytes) -> bytes:
        return await asyncio.wait_for(self.reader.readuntil(text), 20)

    async def rest(self) -> bytes:
        return await asyncio.wait_for(self.reader.read(), 20)

    def leave(self) -> None:
        self.writer.close()


@asynccontextmanager
async def request(server: Loopback, method: str, path: str, json: Any = None) -> AsyncIterator[Raw]:
    body = httpx.Request(method, "http://x", json=json).content if json is not None else b""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    fields = f"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    head = f"{method} {path} HTTP/1.1\r\n{fields}\r\n\r\n"
    writer.write(head.encode() + body)
    yield Raw(reader, writer)
    writer.close()
    await writer.wait_closed()


def held(key: str, **fields: Any) -> dict[str, Any]:
    return {"assistant_id": "scripted", "input": {"hold": key, "frames": [["values", {"n": 1}]]}, **fields}


def run_of(head: bytes) -> str:
    """The run's path, out of the response's headers."""
    (line,) = [line for line in head.decode().split("\r\n") if line.startswith("content-location: ")]
    return line.partition(": ")[2]


async def ask(server: Loopback, path: str) -> httpx.Response:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", timeout=20) as client:
        return await client.get(path)


async def cancelled(store: Store, path: str) -> None:
    """Wait until the run has ended, and see that it was cancelled."""
    *_, thread, _, run = path.split("/")
    await asyncio.wait_for(store.service.ended(thread, run), 20)


async def new_thread(server: Loopback) -> str:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", timeout=60) as client:
        return str((await client.post("/threads", json={})).json()["thread_id"])


@pytest.mark.parametrize("place", ["stream", "wait"])
async def test_a_run_whose_creator_leaves_is_cancelled_if_so_asked(server: Loopback, store: Store, place: str):
    thread = await new_thread(server)
    async with request(
        server, "POST", f"/threads/{thread}/runs/{place}", held(uuid.uuid4().hex, on_disconnect="cancel")
    ) as raw:
        path = run_of(await raw.until(b"\r\n\r\n"))
        await raw.until(b": heartbeat\r\n" if place == "stream" else b"1\r\n\n\r\n")
        raw.leave()
        await cancelled(store, path)
    assert (await ask(server, path)).json()["status"] == "interrupted"
    events = (await ask(server, f"{path}/events?types=run.cancel_requested")).json()
    assert events[0]["metadata"]["reason"] == "the client disconnected (on_disconnect=cancel)"


@pytest.mark.parametrize("query", ["", "?cancel_on_disconnect=0"])
async def test_a_run_goes_on_when_its_creator_or_a_joiner_leaves(
    server: Loopback, executor: ScriptedExecutor, query: str
):
    thread, key = await new_thread(server), uuid.uuid4().hex
    async with request(server, "POST", f"/threads/{thread}/runs/stream", held(key)) as raw:
        path = run_of(await raw.until(b"\r\n\r\n"))
        await raw.until(b"id: ")
        raw.leave()
    async with request(server, "GET", f"{path}/stream{query}") as joiner:
        await joiner.until(b"id: ")
        joiner.leave()
    executor.release(key)
    assert (await ask(server, f"{path}/join")).json() == {"n": 1}
    assert (await ask(server, path)).json()["status"] == "success"


@pytest.mark.parametrize("place", ["stream", "join"])
async def test_a_joiner_that_asks_for_it_cancels_by_leaving(server: Loopback, store: Store, place: str):
    thread = await new_thread(server)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", timeout=60) as client:
        created = await client.post(f"/threads/{thread}/runs", json=held(uuid.uuid4().hex))
    path = created.headers["content-location"]
    async with request(server, "GET", f"{path}/{place}?cancel_on_disconnect=true") as joiner:
        await joiner.until(b"\r\n\r\n")
        joiner.leave()
        await cancelled(store, path)
    assert (await ask(server, path)).json()["status"] == "interrupted"


async def test_a_server_that_stops_cuts_its_streams_and_cancels_nothing(
    server: Loopback, store: Store, caplog: pytest.LogCaptureFixture
):
    thread = await new_thread(server)
    keys = [uuid.uuid4().hex for _ in range(2)]
    asked = held(keys[0], on_disconnect="cancel")
    async with (
        request(server, "POST", f"/threads/{thread}/runs/stream", asked) as raw,
        request(server, "POST", "/runs/wait", held(keys[1], on_disconnect="cancel")) as waiting,
    ):
        await raw.until(b'{"n":1}')
        await waiting.until(b"\r\n\r\n")
        await server.stop()
        for rest in (await raw.rest(), await waiting.rest()):
            assert not rest.endswith(b"0\r\n\r\n"), "a clean end would tell older clients that the run is over"
            assert b"event: end" not in rest
    snapshots = await store.service.list_runs(ListRunsQuery(thread_id=thread))
    assert [snapshot.status for snapshot in snapshots] == ["running"]
    assert "without completing response" not in caplog.text
    assert "graceful shutdown exceeded" not in caplog.text


async def test_a_port_that_is_taken_is_an_error_at_once(server: Loopback):
    with pytest.raises(OSError, match="already in use"):
        bound_socket("127.0.0.1", server.port)
