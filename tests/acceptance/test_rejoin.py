"""Exact rejoin: for every id of a long run a join returns exactly the rest, byte for byte; also after a restart, also
while the run is live.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.acceptance.server import Received, Server, read_stream, streaming

LONG = {"messages": [{"role": "user", "content": "hello"}], "tokens": 640, "delay": 0}
MODES = ["values", "updates", "messages-tuple", "custom"]


@pytest.fixture
def server(database_url: str) -> Iterator[Server]:
    with Server(database_url) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


def run_body(**values: object) -> dict[str, object]:
    return {"assistant_id": "agent", "input": {**LONG, **values}, "stream_mode": MODES}


def thread(client: httpx.Client) -> str:
    return str(client.post("/threads", json={}).json()["thread_id"])


def rest_after(client: httpx.Client, path: str, last: int) -> bytes:
    response = client.get(path, headers={"Last-Event-ID": str(last)})
    assert response.status_code == 200
    return response.content  # an ended run: no heartbeat in between


def check_every_id(client: httpx.Client, live: Received) -> int:
    """Join after each id; returns how many were exact, and fails on the first that is not."""
    whole, done = live.raw, 0
    for seq, body in live.events:
        assert seq is not None
        done += len(body)
        expected = whole[done:] or body  # after `end`'s own id: `end` again
        assert rest_after(client, live.location, seq) == expected, f"inexact after id {seq}"
    return len(live.events)


def test_every_id_of_a_long_run_rejoins_exactly_also_after_a_restart(server: Server, client: httpx.Client) -> None:
    live = read_stream(client, "POST", f"/threads/{thread(client)}/runs/stream", json=run_body())
    assert len(live.events) >= 600
    assert live.events[0][1].startswith(b"event: metadata\r\n")
    assert live.events[-1][1].startswith(b"event: end\r\ndata: null\r\nid: ")
    assert len(live.ids) == len(live.events)
    assert live.ids == sorted(set(live.ids))

    assert check_every_id(client, live) == len(live.events)
    assert server.stop() == 0
    server.start()
    assert check_every_id(client, live) == len(live.events)
    for start in ("-1", "0"):
        assert rest_after(client, live.location, int(start)) == live.raw
    assert client.get(live.location).content == live.raw


def test_fifty_joiners_of_a_live_run_get_exactly_the_rest(server: Server, client: httpx.Client) -> None:
    path = f"/threads/{thread(client)}/runs/stream"
    dice = random.Random(11)
    with (
        ThreadPoolExecutor(50) as joiners,
        streaming(client, "POST", path, json=run_body(delay=0.004)) as (live, reading),
    ):
        while next(reading) < 60:
            pass
        cursors = [dice.choice([0, *live.ids]) for _ in range(50)]
        joined = [joiners.submit(join, server.url, live.location, cursor) for cursor in cursors]
        for _ in reading:
            pass
    assert len(live.events) >= 600
    for cursor, future in zip(cursors, joined, strict=True):
        expected = [event for event in live.events if event[0] is not None and event[0] > cursor]
        assert future.result(30).events == expected


def join(url: str, path: str, cursor: int) -> Received:
    with httpx.Client(base_url=url, timeout=30) as client:
        return read_stream(client, "GET", path, headers={"Last-Event-ID": str(cursor)})
