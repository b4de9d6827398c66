"""The network between client and server breaks: at every byte, with every kind of end, slowly or not at all.

A client here does what any resuming client does: it keeps whole events, and comes back with the last id it saw.
"""

from __future__ import annotations

import asyncio
import json
import random
import select
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import psycopg
import pytest

from tests.acceptance.network_proxy import Fault, NetworkProxy, Plan
from tests.acceptance.oracle import MODES, SEED, Client, Ledger, create, said
from tests.acceptance.server import Server

SEND_TIMEOUT = 1.0
ENV = {"RUNS_ES_SEND_TIMEOUT_SECONDS": str(SEND_TIMEOUT), "RUNS_ES_STREAM_HEARTBEAT_SECONDS": "0.1"}
CUTS = [Fault.CLOSE, Fault.RESET, Fault.HALF_DOWN]

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


# --- fixtures ---


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
    await loop.sock_sendall(plain, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nLast-Event-ID: -1\r\n\r\n".encode())
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


async def test_a_stream_cut_after_any_byte_goes_on_exactly_where_it_was_cut(server: Server, ledger: Ledger) -> None:
    await sweep(server, ledger, 1, ["custom"], 1)


async def test_live_streams_cut_at_random_are_whole_beside_an_undisturbed_joiner(
    server: Server, ledger: Ledger
) -> None:
    await broken_live(server, ledger, 2, 3, 4)


async def test_joining_again_and_again_while_frames_flow_misses_and_repeats_none(
    server: Server, ledger: Ledger
) -> None:
    path = await create(server.port, said(150, 0.005))
    await hop(server, ledger, 3, path, "append between read and subscribe", 4)


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


async def test_a_cut_behind_a_heartbeat_or_in_one_moves_no_cursor(server: Server, ledger: Ledger) -> None:
    await heartbeats(server, ledger, 5, 9)


async def test_a_stalled_connection_holds_up_nobody_else_and_goes_on_whole(server: Server, ledger: Ledger) -> None:
    await stall(server, ledger, 6, 3)


async def test_readers_that_never_read_hold_up_nobody_else(server: Server, ledger: Ledger) -> None:
    await never_read(server, ledger, 7, 5)


async def test_a_reader_that_never_reads_is_cut_off_at_the_send_timeout(server: Server, ledger: Ledger) -> None:
    path = await create(server.port, {"count": 1000, "size": 8192}, assistant="burst", modes=["custom"])
    await Client(path).follow(server.port)
    with await never_reading(server.port, path) as idle:
        watch = select.poll()
        watch.register(idle, 0)  # an error or a hang-up is told all the same
        assert await asyncio.to_thread(watch.poll, (SEND_TIMEOUT + 4) * 1000), "it still holds its connection"
    ledger.tally("a reader that never reads is cut off", 8).faults["never reads"] = 1


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
    await sweep(server, ledger, SEED, MODES, len(CUTS))
    for seed in range(SEED + 10, SEED + 16):
        await broken_live(server, ledger, seed, 4, 8)
        path = await create(server.port, said(300, 0.005))
        await hop(server, ledger, seed, path, "append between read and subscribe", 5)
        path = await create(server.port, {"count": 2000, "size": 0}, assistant="burst")
        await hop(server, ledger, seed, path, "many events in one millisecond", 3)
        await heartbeats(server, ledger, seed, 12)
        await stall(server, ledger, seed, 6)
        await never_read(server, ledger, seed, 10)
