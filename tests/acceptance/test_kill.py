"""`kill -9` of the server in the middle of streamed runs: what any client had received is in the log, with the same id
and bytes; every run comes to an end; a client of the SDK that was cut goes on by itself.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from langgraph_sdk import get_client

from tests.acceptance.oracle import SEED, Ledger, Tally
from tests.acceptance.server import Received, Server, read_stream, split_events

QUICK = {"RUNS_ES_HEARTBEAT_SECONDS": "0.3", "RUNS_ES_LEASE_SECONDS": "1.5", "RUNS_ES_SWEEP_SECONDS": "0.3"}
RUN: dict[str, Any] = {
    "assistant_id": "agent",
    "input": {"messages": [{"role": "user", "content": "hello"}], "tokens": 150, "delay": 0.01},
    "stream_mode": ["values", "messages-tuple", "custom"],
}


@pytest.fixture
def server(database_url: str) -> Iterator[Server]:
    with Server(database_url, env=QUICK) as server:
        yield server


async def raw_client(url: str, thread_id: str, received: Received, grew: asyncio.Event) -> None:
    """Stream a run and keep every whole event that arrived before the connection died; tell when there are more."""
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        try:
            async with client.stream("POST", f"/threads/{thread_id}/runs/stream", json=RUN) as response:
                received.location = response.headers["location"]
                rest = b""
                async for chunk in response.aiter_raw():
                    events, rest = split_events(rest + chunk)
                    received.events += events
                    grew.set()
        except httpx.TransportError:
            return


async def sdk_client(url: str, thread_id: str) -> list[tuple[str | None, str]]:
    """Stream a run through the SDK; (id, event) of all that it yields over its own reconnects."""
    seen: list[tuple[str | None, str]] = []
    async with get_client(url=url) as client:
        stream = client.runs.stream(thread_id, RUN["assistant_id"], input=RUN["input"], stream_mode=RUN["stream_mode"])
        async for part in stream:
            seen.append((part.id, part.event))
    return seen


async def one_kill(server: Server, tally: Tally) -> None:
    """Two raw clients and one of the SDK; kill -9 at a random moment; restart; compare."""
    dice = random.Random(tally.seed)
    async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
        threads = [(await client.post("/threads", json={})).json()["thread_id"] for _ in range(3)]
    received = [Received(), Received()]
    grew = asyncio.Event()
    raw = [asyncio.create_task(raw_client(server.url, threads[n], received[n], grew)) for n in range(2)]
    sdk = asyncio.create_task(sdk_client(server.url, threads[2]))
    enough = dice.randint(1, 120)
    while min(len(each.events) for each in received) < enough:
        grew.clear()
        await asyncio.wait_for(grew.wait(), 30)
    await asyncio.to_thread(server.kill)
    tally.faults["server killed"] += 1
    await asyncio.gather(*raw)
    await asyncio.to_thread(server.start)
    seen = await asyncio.wait_for(sdk, 60)

    ids = [int(seq) for seq, event in seen if seq]
    assert ids == sorted(set(ids)), "the SDK's client saw an event twice or out of order"
    assert seen[-1][1] == "end"
    for each in received:
        assert each.ids, "the client was cut before it saw anything"
        whole = await asyncio.to_thread(replay, server.url, each.location)
        assert whole.events[: len(each.events)] == each.events
        assert whole.events[-1][1].startswith(b"event: end")
    whole_sdk = await asyncio.to_thread(replay, server.url, sdk_location(server.url, threads[2]))
    assert ids == whole_sdk.ids
    for thread_id in threads:
        assert statuses(server.url, thread_id) == ["success"]
    tally.faults["run taken over"] += sum(body.count(b'"attempt":2') for _, body in whole_sdk.events)
    tally.runs += 3
    tally.events += sum(len(each.events) for each in received) + len(ids)


def replay(url: str, location: str) -> Received:
    with httpx.Client(base_url=url, timeout=60) as client:
        return read_stream(client, "GET", location, headers={"Last-Event-ID": "-1"})


def sdk_location(url: str, thread_id: str) -> str:
    (run,) = httpx.get(f"{url}/threads/{thread_id}/runs", timeout=60).json()
    return f"/threads/{thread_id}/runs/{run['run_id']}/stream"


def statuses(url: str, thread_id: str) -> list[str]:
    return [run["status"] for run in httpx.get(f"{url}/threads/{thread_id}/runs", timeout=60).json()]


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.faults) for seed in (2, 3))])
async def test_killing_the_server_loses_nothing_that_a_client_had_seen(
    server: Server, ledger: Ledger, seed: int
) -> None:
    await one_kill(server, ledger.tally("kill -9 of the server", seed))


@pytest.mark.faults
@pytest.mark.timeout(900)
async def test_twenty_kills_lose_nothing_that_a_client_had_seen(server: Server, ledger: Ledger) -> None:
    for seed in range(SEED, SEED + 20):
        await one_kill(server, ledger.tally("kill -9 of the server", seed))


def test_the_data_of_an_embedded_database_survives_a_kill(folder: Path) -> None:
    env = {**QUICK, "RUNS_ES_DATA_DIR": str(folder / "data")}
    server = Server("", env=env)
    server.unset("RUNS_ES_DATABASE_URL")
    with server:
        thread_id = httpx.post(f"{server.url}/threads", json={}, timeout=10).json()["thread_id"]
        server.kill()
        server.start()
        assert httpx.get(f"{server.url}/threads/{thread_id}", timeout=10).status_code == 200
        assert server.stop() == 0
