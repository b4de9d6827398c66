"""The network between client and server breaks: at every byte, with every kind of end, slowly or not at all.

A client here does what any resuming client does: it keeps whole events, and comes back with the last id it saw. The
oracle then compares what it got over all its connections with the log, byte for byte.
"""

from __future__ import annotations

import asyncio
import json
import random
import select
import socket
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import h11
import httpx
import psycopg
import pytest

from tests.acceptance.network_proxy import Fault, NetworkProxy, Plan
from tests.acceptance.server import Server, split_events

SEND_TIMEOUT = 1.0
ENV = {"RUNS_ES_SEND_TIMEOUT_SECONDS": str(SEND_TIMEOUT), "RUNS_ES_STREAM_HEARTBEAT_SECONDS": "0.1"}
CUTS = [Fault.CLOSE, Fault.RESET, Fault.HALF_DOWN]
MODES = ("values", "messages-tuple", "custom")

# A graph that writes `count` frames of `size` characters without a pause: many of them in one millisecond.
BURST = """
import random
from typing import TypedDict

from langgraph.config import get_stream_writer
from langgraph.graph import END, START, StateGraph


class State(TypedDict, total=False):
    count: int
    size: int


async def burst(state: State) -> State:
    write, dice = get_stream_writer(), random.Random(1)
    for number in range(state["count"]):
        write({"n": number, "text": dice.randbytes(state.get("size", 0) // 2).hex()})
    return {"count": 0}


builder = StateGraph(State)
builder.add_node("burst", burst)
builder.add_edge(START, "burst")
builder.add_edge("burst", END)
graph = builder.compile()
"""


# --- a client, and the oracle ---


@dataclass
class Client:
    """Follows one run over as many connections as it takes."""

    path: str
    events: list[tuple[int | None, bytes]] = field(default_factory=list)
    connections: int = 0
    refused: int = 0
    grew: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def last(self) -> int:
        return next((seq for seq, _ in reversed(self.events) if seq is not None), -1)

    @property
    def ended(self) -> bool:
        return bool(self.events) and self.events[-1][1].startswith(b"event: end")

    async def connect(self, port: int, *, stop_after: int | None = None) -> bytes:
        """One connection, until it ends, dies, or has brought `stop_after` events; returns what it cut in two."""
        self.connections += 1
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            return await self._read(reader, writer, stop_after)
        except ConnectionError:
            return b""
        finally:
            writer.transport.abort()

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, stop_after: int | None) -> bytes:
        http, rest = h11.Connection(h11.CLIENT), b""
        headers = {"Host": "localhost", "Last-Event-ID": str(self.last)}
        writer.write(http.send(h11.Request(method="GET", target=self.path, headers=list(headers.items()))) or b"")
        writer.write(http.send(h11.EndOfMessage()) or b"")
        start = len(self.events)
        while stop_after is None or len(self.events) - start < stop_after:
            match http.next_event():
                case h11.NEED_DATA:
                    with suppress(ConnectionError):
                        data = await reader.read(65536)
                        if data:
                            http.receive_data(data)
                            continue
                    return rest
                case h11.Response(status_code=503):
                    self.refused += 1
                    return b""
                case h11.Response(status_code=status):
                    assert status == 200, status
                case h11.Data(data=data):
                    whole, rest = split_events(rest + bytes(data))
                    room = None if stop_after is None else stop_after + start - len(self.events)
                    self.events += whole[:room]
                    self.grew.set()
                case h11.EndOfMessage():
                    assert rest == b"", "a clean end in the middle of an event"
                    return b""
        return rest

    async def follow(self, port: int, *, dice: random.Random | None = None, most: int = 12) -> Client:
        """Connect until the run has ended. With `dice`, leave each connection after a few events."""
        while not self.ended:
            await self.connect(port, stop_after=None if dice is None else dice.randint(1, most))
        return self

    async def has(self, count: int) -> None:
        """Wait for that many events."""
        while len(self.events) < count and not self.ended:
            self.grew.clear()
            await self.grew.wait()


@dataclass
class Tally:
    """What a scenario did and what the oracle found."""

    name: str
    seed: int
    faults: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    events: int = 0
    lost: int = 0
    repeated: int = 0
    reordered: int = 0

    async def check(self, port: int, *clients: Client) -> None:
        """Each client against the log, as a join from the start shows it. Fails on the first byte that differs."""
        for path in dict.fromkeys(client.path for client in clients):
            log = await Client(path).follow(port)
            self.runs += 1
            for client in clients:
                if client.path == path:
                    self.compare(client.events, log.events)

    def compare(self, got: list[tuple[int | None, bytes]], log: list[tuple[int | None, bytes]]) -> None:
        ids = [seq for seq, _ in got if seq is not None]
        assert len(ids) == len(got), "an event without an id"
        lost = set(log) - set(got)
        self.events += len(got)
        self.lost += len(lost)
        self.repeated += len(ids) - len(set(ids))
        self.reordered += sum(a > b for a, b in pairwise(ids))
        assert (self.lost, self.repeated, self.reordered) == (0, 0, 0), self
        assert b"".join(body for _, body in got) == b"".join(body for _, body in log)
        assert sum(body.startswith(b"event: end") for _, body in got) == 1

    def __str__(self) -> str:
        faults = ", ".join(f"{count} {kind}" for kind, count in sorted(self.faults.items()))
        return (
            f"{self.name} | seed {self.seed} | {faults} | {self.runs} runs, {self.events} events checked"
            f" | {self.lost} lost, {self.repeated} repeated, {self.reordered} reordered"
        )


class Ledger:
    """The tallies of a module."""

    def __init__(self) -> None:
        self._tallies: list[Tally] = []

    def tally(self, name: str, seed: int) -> Tally:
        self._tallies.append(Tally(name, seed))
        return self._tallies[-1]

    def table(self) -> list[str]:
        sums: Counter[str] = Counter()
        for each in self._tallies:
            sums.update(
                faults=each.faults.total(),
                events=each.events,
                lost=each.lost,
                repeated=each.repeated,
                reordered=each.reordered,
            )
        total = ", ".join(f"{sums[name]} {name}" for name in ("faults", "events", "lost", "repeated", "reordered"))
        return [*map(str, self._tallies), f"in all: {total}"]


def close_ledger(ledger: Ledger, request: pytest.FixtureRequest) -> None:
    """In a run of the long part, show the table; else it can be had with `-s`."""
    is_long = any(item.get_closest_marker("faults") for item in request.session.items)
    capture: Any = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled() if is_long else nullcontext():
        print("", *ledger.table(), sep="\n")


async def create(port: int, given: Mapping[str, Any], *, assistant: str = "agent", modes: Sequence[str] = MODES) -> str:
    """Start a run on a new thread; the path of its stream."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        thread_id = (await client.post("/threads", json={})).json()["thread_id"]
        body = {"assistant_id": assistant, "input": given, "stream_mode": list(modes)}
        answer = await client.post(f"/threads/{thread_id}/runs", json=body)
        assert answer.status_code == 200, answer.text
    return f"/threads/{thread_id}/runs/{answer.json()['run_id']}/stream"


def said(tokens: int, delay: float = 0) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "hello"}], "tokens": tokens, "delay": delay}


# --- fixtures ---


@pytest.fixture(scope="module")
def ledger(request: pytest.FixtureRequest) -> Iterator[Ledger]:
    kept = Ledger()
    yield kept
    close_ledger(kept, request)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("burst")
    folder.joinpath("burst.py").write_text(BURST)
    demo = "runs_es.execution.langgraph.demo:graph"
    graphs = {"agent": demo, "burst": "./burst.py:graph"}
    folder.joinpath("langgraph.json").write_text(json.dumps({"dependencies": ["."], "graphs": graphs}))
    return folder / "langgraph.json"


@pytest.fixture(scope="module")
def server(module_database_url: str, config: Path) -> Iterator[Server]:
    with Server(module_database_url, config=config, env=ENV) as server:
        yield server


# --- scenarios ---


async def sweep(server: Server, ledger: Ledger, seed: int, modes: Sequence[str], kinds: int) -> None:
    """Cut the stream of an ended run after each of its bytes, from the first of the status line to the last."""
    dice, tally = random.Random(seed), ledger.tally("a cut after every byte", seed)
    path = await create(server.port, said(2), modes=modes)
    whole = (await Client(path).follow(server.port)).events
    stream = b"".join(body for _, body in whole)
    async with NetworkProxy(server.port) as proxy:
        after = struck = 0
        while proxy.faults.total() == struck:  # until the cut lies behind the last byte
            for kind in dice.sample(CUTS, kinds):
                proxy.plan(Plan(kind, after))
                client, struck = Client(path), struck + 1
                cut = await client.connect(proxy.port)
                got = b"".join(body for _, body in client.events) + cut
                assert stream.startswith(got), f"{kind} after byte {after}"
                await client.follow(server.port)
                tally.compare(client.events, whole)
            after += 1
        tally.runs, tally.faults = 1, proxy.faults
        assert after > len(stream), "the head of the answer was cut as well"


async def broken_live(server: Server, ledger: Ledger, seed: int, runs: int, cuts: int) -> None:
    """Live runs, each with two joiners that are cut `cuts` times at random, and one that is left alone."""
    dice, tally = random.Random(seed), ledger.tally("cuts of live streams, three joiners a run", seed)
    async with NetworkProxy(server.port) as proxy:
        clients: list[Client] = []
        for _ in range(runs):
            path = await create(server.port, said(100, 0.01))
            clients += [Client(path) for _ in range(3)]
        kinds = [*CUTS, Fault.HALF_UP]
        proxy.plan(*(Plan(dice.choice(kinds), dice.randint(0, 6000)) for _ in range(2 * runs * cuts)))
        async with asyncio.TaskGroup() as group:
            for number, client in enumerate(clients):
                group.create_task(client.follow(server.port if number % 3 == 0 else proxy.port))
        tally.faults = proxy.faults
        assert tally.faults.total() > runs * cuts
    await tally.check(server.port, *clients)


async def hop(server: Server, ledger: Ledger, seed: int, path: str, name: str, hoppers: int) -> None:
    """Clients that leave each connection after a few events and join again at once, while frames flow."""
    tally = ledger.tally(name, seed)
    clients = [Client(path) for _ in range(hoppers)]
    async with asyncio.TaskGroup() as group:
        for number, client in enumerate(clients):
            group.create_task(client.follow(server.port, dice=random.Random(seed * 100 + number)))
    tally.faults["leave and join"] = sum(client.connections for client in clients)
    await tally.check(server.port, *clients)


async def heartbeats(server: Server, ledger: Ledger, seed: int, cuts: int) -> None:
    """Cut right behind a heartbeat, and in the middle of one: it is no event and moves no cursor."""
    dice, tally = random.Random(seed), ledger.tally("a cut at a heartbeat", seed)
    path = await create(server.port, said(12, 0.25))
    async with NetworkProxy(server.port) as proxy:
        proxy.plan(*(Plan(dice.choice(CUTS), marker=b": heartbeat\r\n"[: dice.randint(3, 13)]) for _ in range(cuts)))
        clients = [Client(path) for _ in range(3)]
        async with asyncio.TaskGroup() as group:
            for client in clients:
                group.create_task(client.follow(proxy.port))
        tally.faults = proxy.faults
        assert tally.faults.total() == cuts
    await tally.check(server.port, *clients)


async def never_read(server: Server, ledger: Ledger, seed: int, readers: int) -> None:
    """Clients that join a long run and take nothing, while others join it, and another run lives."""
    tally = ledger.tally("a reader that never reads, beside others", seed)
    long = await create(server.port, {"count": 1000, "size": 8192}, assistant="burst", modes=["custom"])
    live = await create(server.port, said(60, 0.01))
    await Client(long).follow(server.port)
    idle = [await never_reading(server.port, long) for _ in range(readers)]
    try:
        async with asyncio.timeout(20):
            others = [Client(long), Client(long), Client(live)]
            await asyncio.gather(*(client.follow(server.port) for client in others))
    finally:
        for each in idle:
            each.close()
    tally.faults["never reads"] = readers
    await tally.check(server.port, *others)


async def never_reading(port: int, path: str) -> socket.socket:
    """A client with a small window that asks for the stream and then takes nothing of it."""
    plain = socket.socket()
    plain.setblocking(False)
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(plain, ("127.0.0.1", port))
    await loop.sock_sendall(plain, f"GET {path} HTTP/1.1\r\nHost: x\r\nLast-Event-ID: -1\r\n\r\n".encode())
    return plain


async def stall(server: Server, ledger: Ledger, seed: int, readers: int) -> None:
    """Connections over which nothing passes for as long as another joiner needs for the whole run."""
    dice, tally = random.Random(seed), ledger.tally("a stall, and then it goes on", seed)
    path = await create(server.port, said(60, 0.01))
    async with NetworkProxy(server.port) as proxy:
        proxy.plan(*(Plan(Fault.STALL, dice.randint(1, 3000)) for _ in range(readers)))
        stalled = [Client(path) for _ in range(readers)]
        following = [asyncio.create_task(client.follow(proxy.port)) for client in stalled]
        await proxy.stalled.wait()
        other = await Client(path).follow(server.port)
        assert not any(client.ended for client in stalled)
        proxy.released.set()
        await asyncio.gather(*following)
        tally.faults = proxy.faults
    await tally.check(server.port, other, *stalled)


@pytest.mark.timeout(60)
async def test_a_stream_cut_after_any_byte_goes_on_exactly_where_it_was_cut(server: Server, ledger: Ledger) -> None:
    await sweep(server, ledger, 1, ["custom"], 1)


@pytest.mark.timeout(60)
async def test_live_streams_cut_at_random_are_whole_beside_an_undisturbed_joiner(
    server: Server, ledger: Ledger
) -> None:
    await broken_live(server, ledger, 2, 3, 4)


@pytest.mark.timeout(60)
async def test_joining_again_and_again_while_frames_flow_misses_and_repeats_none(
    server: Server, ledger: Ledger
) -> None:
    path = await create(server.port, said(150, 0.005))
    await hop(server, ledger, 3, path, "append between read and subscribe", 4)


@pytest.mark.timeout(60)
async def test_many_events_in_one_millisecond_are_told_apart(
    module_database_url: str, server: Server, ledger: Ledger
) -> None:
    path = await create(server.port, {"count": 600, "size": 0}, assistant="burst")
    await hop(server, ledger, 4, path, "many events in one millisecond", 3)
    with psycopg.connect(module_database_url) as connection:
        (most,) = connection.execute(
            "select max(sum) from (select sum(n) from runs_es.events where run_id = %s"
            " group by date_trunc('millisecond', recorded_at)) as together",
            (path.split("/")[4],),
        ).fetchone() or (0,)
    assert most > 50


@pytest.mark.timeout(60)
async def test_a_cut_behind_a_heartbeat_or_in_one_moves_no_cursor(server: Server, ledger: Ledger) -> None:
    await heartbeats(server, ledger, 5, 9)


@pytest.mark.timeout(60)
async def test_a_stalled_connection_holds_up_nobody_else_and_goes_on_whole(server: Server, ledger: Ledger) -> None:
    await stall(server, ledger, 6, 3)


@pytest.mark.timeout(60)
async def test_readers_that_never_read_hold_up_nobody_else(server: Server, ledger: Ledger) -> None:
    await never_read(server, ledger, 7, 5)


@pytest.mark.timeout(60)
async def test_a_reader_that_never_reads_is_cut_off_at_the_send_timeout(server: Server, ledger: Ledger) -> None:
    path = await create(server.port, {"count": 1000, "size": 8192}, assistant="burst", modes=["custom"])
    await Client(path).follow(server.port)
    with await never_reading(server.port, path) as idle:
        watch = select.poll()
        watch.register(idle, 0)  # an error or a hang-up is told all the same
        assert await asyncio.to_thread(watch.poll, (SEND_TIMEOUT + 4) * 1000), "it still holds its connection"
    ledger.tally("a reader that never reads is cut off", 8).faults["never reads"] = 1


@pytest.mark.timeout(60)
async def test_memory_does_not_grow_with_readers_that_never_read(server: Server, ledger: Ledger) -> None:
    path = await create(server.port, {"count": 3000, "size": 8192}, assistant="burst", modes=["custom"])
    for _ in range(3):
        await Client(path).follow(server.port)
    before = resident(server.pid)
    idle = [await never_reading(server.port, path) for _ in range(10)]
    await Client(path).follow(server.port)
    grown = resident(server.pid) - before
    for each in idle:
        each.close()
    assert grown < 10 * 3 * 1024, f"{grown} KiB for 10 readers"
    ledger.tally("memory of readers that never read", 9).faults["never reads"] = 10


def resident(pid: int) -> int:
    """KiB."""
    return int(subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, check=True).stdout)


@pytest.mark.faults
@pytest.mark.timeout(900)
async def test_all_of_it_at_length(server: Server, ledger: Ledger) -> None:
    await sweep(server, ledger, 101, MODES, len(CUTS))
    for seed in range(110, 116):
        await broken_live(server, ledger, seed, 4, 8)
        path = await create(server.port, said(300, 0.005))
        await hop(server, ledger, seed, path, "append between read and subscribe", 5)
        path = await create(server.port, {"count": 2000, "size": 0}, assistant="burst")
        await hop(server, ledger, seed, path, "many events in one millisecond", 3)
        await heartbeats(server, ledger, seed, 12)
        await stall(server, ledger, seed, 6)
        await never_read(server, ledger, seed, 10)
