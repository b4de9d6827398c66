"""Two servers behind one port are stopped and started again, one after the other, under clients of the SDK: no request
fails, no event is lost, and every run ends well, once.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from typing import Any

import orjson
import psycopg
import pytest
from langgraph_sdk import get_client
from langgraph_sdk.client import LangGraphClient
from langgraph_sdk.schema import StreamPart

from tests.acceptance.balancer import Balancer
from tests.acceptance.oracle import SEED, Client, Ledger, Tally, said
from tests.acceptance.server import Server

QUICK = {
    "RUNS_ES_HEARTBEAT_SECONDS": "0.3",
    "RUNS_ES_LEASE_SECONDS": "1.5",
    "RUNS_ES_SWEEP_SECONDS": "0.3",
    "RUNS_ES_DRAIN_SECONDS": "0.5",
}
MODES = ["values", "messages-tuple", "custom"]

# The SDK says so where a stream was cut before its first event; it then asks for all of it, and gets it.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Reconnecting without a Last-Event-ID"),
    pytest.mark.filterwarnings("ignore:Request failed, attempting reconnect"),
]


@pytest.fixture
def servers(database_url: str) -> Iterator[list[Server]]:
    with ExitStack() as stack:
        yield [stack.enter_context(Server(database_url, env=QUICK)) for _ in range(2)]


class Traffic:
    """Clients that stream, wait for and poll runs, each through a pool of kept connections, until told to stop."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.stopping = False
        self.streaming = asyncio.Event()
        self.requests: Counter[str] = Counter()
        self.streamed: dict[str, list[StreamPart]] = {}  # by the stream's path
        self.created: list[tuple[str, str]] = []

    async def stream(self, tokens: int, delay: float) -> None:
        """Runs streamed from their creation to their end."""
        async with get_client(url=self.url) as client:
            while not self.stopping:
                thread_id, parts, made = await self._thread(client), [], []
                stream = client.runs.stream(
                    thread_id,
                    "agent",
                    input=said(tokens, delay),
                    stream_mode=MODES,
                    on_run_created=made.append,
                )
                async for part in stream:
                    parts.append(part)
                    self.streaming.set()
                self.requests["stream"] += 1
                self._keep(thread_id, made[0]["run_id"], parts)

    async def create_and_join(self) -> None:
        """Runs created in the background, then joined; and one that nobody waits for."""
        async with get_client(url=self.url) as client:
            while not self.stopping:
                thread_id, parts = await self._thread(client), []
                run = await client.runs.create(thread_id, "agent", input=said(20, 0.01), stream_mode=MODES)
                async for part in client.runs.join_stream(thread_id, run["run_id"], last_event_id="-1"):
                    parts.append(part)
                self.requests["create and join"] += 1
                self._keep(thread_id, run["run_id"], parts)
                left = await client.runs.create(thread_id, "agent", input=said(2))
                self.created.append((thread_id, left["run_id"]))

    async def wait(self) -> None:
        """Runs whose result is waited for."""
        async with get_client(url=self.url) as client:
            while not self.stopping:
                thread_id = await self._thread(client)
                values = await client.runs.wait(thread_id, "agent", input=said(20, 0.01))
                assert [message["type"] for message in values["messages"]] == ["human", "ai"]
                self.requests["wait"] += 1

    async def poll(self) -> None:
        """Small requests over one kept connection, as fast as they are answered."""
        async with get_client(url=self.url) as client:
            thread_id = await self._thread(client)
            while not self.stopping:
                await client.threads.get(thread_id)
                await client.runs.list(thread_id)
                self.requests["get"] += 2

    async def _thread(self, client: LangGraphClient) -> str:
        self.requests["create thread"] += 1
        return str((await client.threads.create())["thread_id"])

    def _keep(self, thread_id: str, run_id: str, parts: list[StreamPart]) -> None:
        self.created.append((thread_id, run_id))
        self.streamed[f"/threads/{thread_id}/runs/{run_id}/stream"] = parts


async def restart(server: Server) -> None:
    """As a deployment does: SIGTERM, wait for the end, start, wait for /ok."""
    assert await asyncio.to_thread(server.stop) == 0
    await asyncio.to_thread(server.start)


async def in_the_middle(url: str, server: Server) -> None:
    """Return when the server has just begun one of the long runs, which it cannot finish while it stops."""
    has_one = (
        "select exists (select from runs_es.events_facts c join runs_es.events_facts r"
        "  on r.topic = 'run.created' and (r.thread_id, r.run_id) = (c.thread_id, c.run_id)"
        " where c.topic = 'run.claimed' and c.actor like %s and c.recorded_at > clock_timestamp() - interval '1 s'"
        "   and position('\"tokens\":100,'::bytea in r.state) > 0)"
    )
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        while await (await connection.execute(has_one, (f"%:{server.pid}:%",))).fetchone() != (True,):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def roll(url: str, servers: list[Server], tally: Tally, rounds: int, clients: int) -> None:
    """`rounds` rolling restarts under traffic; then every stream against the log, and every run's facts."""
    async with Balancer([server.port for server in servers]) as balancer:
        traffic = Traffic(balancer.port)
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(traffic.stream(100, 0.03))
                group.create_task(traffic.create_and_join())
                group.create_task(traffic.wait())
                group.create_task(traffic.poll())
            for server in servers * rounds:
                traffic.streaming.clear()
                await traffic.streaming.wait()
                await in_the_middle(url, server)
                await restart(server)
                tally.faults["server restarted"] += 1
            traffic.stopping = True
        assert set(balancer.turned_away) == {server.port for server in servers}
        for path, parts in traffic.streamed.items():
            compare(tally, parts, (await Client(path).follow(balancer.port)).events)
    tally.faults["run handed over"] += ended_once(url, traffic)
    assert tally.faults["run handed over"], "no run was in the middle of a restart"
    tally.requests = traffic.requests.total()


def compare(tally: Tally, parts: list[StreamPart], log: list[tuple[int | None, bytes]]) -> None:
    """What the SDK's client yielded over its reconnects, event for event, against the log."""
    expected = [(str(seq), *_parsed(body)) for seq, body in log]
    got = [(part.id, part.event, part.data) for part in parts]
    tally.note([int(part.id or 0) for part in parts], {seq or 0 for seq, _ in log})
    tally.runs += 1
    assert got == expected


def _parsed(body: bytes) -> tuple[str, Any]:
    event, data = (line.partition(b": ")[2] for line in body.split(b"\r\n")[:2])
    return event.decode(), orjson.loads(data)


def ended_once(url: str, traffic: Traffic) -> int:
    """Every run of the store ended, in success, once; how many were handed over."""
    with psycopg.connect(url) as connection:
        rows = connection.execute(
            "select thread_id, run_id, array_agg(topic order by seq)"
            "  from runs_es.events_facts where run_id is not null group by 1, 2"
        ).fetchall()
    runs = {(thread, run): Counter(topics) for thread, run, topics in rows}
    assert set(traffic.created) <= set(runs)
    ends = ("run.completed", "run.failed", "run.cancelled")
    assert {tuple(topics[end] for end in ends) for topics in runs.values()} == {(1, 0, 0)}
    return sum(topics["run.requeued"] for topics in runs.values())


async def test_a_rolling_restart_fails_no_request_and_loses_no_event(
    database_url: str, servers: list[Server], ledger: Ledger
) -> None:
    await roll(database_url, servers, ledger.tally("rolling restart of two servers", 1), 1, 2)


async def connect_and_ask(port: int, answers: Counter[bytes], most: int | None = None) -> None:
    """A new connection for each of `most` requests, until the first is refused. One that is reset raises."""
    for _ in count() if most is None else range(most):
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionRefusedError:
            return
        writer.write(b"GET /ok HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answers[(await reader.read())[:15]] += 1
        writer.transport.abort()


async def test_whoever_connects_while_a_server_stops_is_answered_or_refused(database_url: str, ledger: Ledger) -> None:
    answers: Counter[bytes] = Counter()
    with Server(database_url, env=QUICK) as server:
        async with asyncio.TaskGroup() as group:
            for _ in range(20):
                group.create_task(connect_and_ask(server.port, answers))
            for _ in range(20):  # the others have begun meanwhile
                await connect_and_ask(server.port, answers, most=1)
            assert await asyncio.to_thread(server.stop) == 0
    assert set(answers) == {b"HTTP/1.1 200 OK"}
    tally = ledger.tally("connections made while a server stops", 1)
    tally.faults["server stopped"], tally.requests = 1, answers.total()


@pytest.mark.faults
@pytest.mark.timeout(900)
async def test_ten_rolling_restarts(database_url: str, servers: list[Server], ledger: Ledger) -> None:
    await roll(database_url, servers, ledger.tally("rolling restart of two servers", SEED), 10, 4)
