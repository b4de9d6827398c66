"""Workers that stop in the middle of their work and wake up after others have taken over: SIGSTOP, SIGCONT."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest

from runs_es.log.event_log import EventLog
from tests.acceptance.lost_workers import (
    forked_checkpoints,
    holders,
    pid_of,
    steps_config,
    story_of,
    workers_registered,
)
from tests.acceptance.oracle import SEED, Client, Ledger, Tally, create, ended_well
from tests.acceptance.server import Server
from tests.acceptance.test_processes import worker
from tests.log.holding_proxy import HoldingProxy

WAIT = 1.0  # RUNS_ES_APPEND_WAIT_SECONDS
ENV = {
    "RUNS_ES_HEARTBEAT_SECONDS": "0.3",
    "RUNS_ES_LEASE_SECONDS": "1.5",
    "RUNS_ES_SWEEP_SECONDS": "0.3",
    "RUNS_ES_APPEND_WAIT_SECONDS": str(WAIT),
}
SLOW_MACHINE = 1.5  # seconds that a request may take there, when nothing is in its way
# What stands in no other statement than the write in question.
MARKERS = {"a page": b"event: custom", "facts": b'"interrupts":{}', "a checkpoint": b'"source": "loop"'}
MODES = ("values", "custom")  # the values tell which process saved which step


@pytest.fixture
def config(folder: Path) -> Path:
    return steps_config(folder)


@pytest.fixture
def server(database_url: str, config: Path) -> Iterator[Server]:
    with Server(database_url, config=config, env=ENV, options=["--no-worker"]) as server:
        yield server


def of(client: Client) -> str:
    return client.path.split("/")[2]


async def taken_over(client: Client) -> None:
    while not any(b'"attempt":2' in body for _, body in client.events):
        await client.has(len(client.events) + 1)


async def longest_waits(server: Server, client: Client) -> tuple[float, float]:
    """Seconds that others wait at most, until the run is taken over: on other threads, and on the run's own."""
    waits = ([0.0], [0.0])
    over = asyncio.create_task(taken_over(client))
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:

        async def ask(kind: int) -> None:
            while not over.done():
                begun = time.monotonic()
                if kind == 0:
                    answer = await http.post("/threads", json={})
                else:
                    answer = await http.patch(f"/threads/{of(client)}", json={"metadata": {"at": str(begun)}})
                assert answer.status_code == 200, answer.text
                waits[kind].append(time.monotonic() - begun)

        await asyncio.gather(over, ask(0), ask(1))
    return max(waits[0]), max(waits[1])


async def frozen_in_a_write(url: str, server: Server, config: Path, folder: Path, tally: Tally, what: str) -> None:
    """Freeze a worker while the server holds its write open; wake it up when another has taken its run over.

    An append is open when the server has it all but for its end. A checkpoint is several statements: the server has the
    thread's lock and the fence, and waits for the state.
    """
    options = ["--config", str(config)]
    (folder / "s").mkdir()
    with HoldingProxy(url, folder / "s") as proxy, worker(proxy.url, options, ENV) as first:
        while await asyncio.to_thread(workers_registered, url) < 1:
            assert first.poll() is None
        client = Client(await create(server.port, {"steps": 4, "frames": 20, "delay": 0.02}, modes=MODES))
        following = asyncio.create_task(client.follow(server.port))
        await client.has(5)
        stop = partial(os.kill, first.pid, signal.SIGSTOP)
        proxy.hold(MARKERS[what], on_hold=stop, whole=what == "a checkpoint")
        assert await asyncio.to_thread(proxy.held.wait, 30)
        tally.faults["worker frozen"] += 1
        with worker(url, options, ENV) as second:
            others, own = await longest_waits(server, client)
            begun = time.monotonic()
            await client.has(len(client.events) + 1)  # the new attempt's first, once nobody writes for the old one
            began = time.monotonic() - begun
            proxy.release()
            first.send_signal(signal.SIGCONT)
            await following
            await ended_well(server.port, client.path)
            second.kill()
            # Who woke up works on, on what he is given.
            after = Client(await create(server.port, {"steps": 2, "frames": 3, "delay": 0.01}, modes=MODES))
            await after.follow(server.port)
        assert first.poll() is None
    tally.measured = (
        f"others waited at most {others:.2f} s, on the same thread {own:.2f} s;"
        f" attempt 2 showed something {began:.2f} s after it was announced"
    )
    await tally.check(server.port, client, after)
    with EventLog(url) as log:
        story = story_of(log, [of(client), of(after)])
        assert {pid for pid, *_ in story_of(log, [of(after)]).tenures} == {first.pid}
    assert forked_checkpoints(url, of(client)) == 0
    assert story.claims == 3
    assert max(others, own) < WAIT + SLOW_MACHINE


async def test_a_worker_frozen_while_it_ends_a_run_holds_nobody_up_and_writes_nothing_more(
    database_url: str, server: Server, config: Path, folder: Path, ledger: Ledger
) -> None:
    tally = ledger.tally("worker frozen in the append of facts", 0)
    await frozen_in_a_write(database_url, server, config, folder, tally, "facts")


@pytest.mark.faults
async def test_a_worker_frozen_while_it_writes_a_page_holds_nobody_up_and_writes_nothing_more(
    database_url: str, server: Server, config: Path, folder: Path, ledger: Ledger
) -> None:
    tally = ledger.tally("worker frozen in the append of a page", 0)
    await frozen_in_a_write(database_url, server, config, folder, tally, "a page")


@pytest.mark.faults
async def test_a_worker_frozen_while_it_saves_a_checkpoint_holds_nobody_up_and_writes_nothing_more(
    database_url: str, server: Server, config: Path, folder: Path, ledger: Ledger
) -> None:
    tally = ledger.tally("worker frozen in the middle of a checkpoint", 0)
    await frozen_in_a_write(database_url, server, config, folder, tally, "a checkpoint")


@pytest.mark.faults
@pytest.mark.timeout(300)
async def test_workers_frozen_at_random_moments_past_their_lease_write_nothing_more(
    database_url: str, server: Server, config: Path, ledger: Ledger
) -> None:
    """Two workers, ten runs; ten times the one that is at work is frozen until others have what it had."""
    dice, tally = random.Random(SEED), ledger.tally("worker frozen past its lease", SEED)
    options = ["--config", str(config)]
    env = {**ENV, "RUNS_ES_MAX_ATTEMPTS": "50"}
    clients: list[Client] = []
    with worker(database_url, options, env) as one, worker(database_url, options, env) as two:
        processes = {one.pid: one, two.pid: two}
        for _ in range(10):
            given = {"steps": 6, "frames": 60, "delay": 0.005}
            new = [Client(await create(server.port, given, modes=MODES)) for _ in range(4)]
            following = [asyncio.create_task(each.follow(server.port)) for each in new]
            await new[0].has(dice.randint(10, 150))
            held = [pid_of(actor) for actor in await asyncio.to_thread(holders, database_url)]
            victim = processes[dice.choice([pid for pid in held if pid is not None])]
            victim.send_signal(signal.SIGSTOP)
            tally.faults["worker frozen"] += 1
            while victim.pid in [pid_of(actor) for actor in await asyncio.to_thread(holders, database_url)]:
                assert victim.poll() is None
            victim.send_signal(signal.SIGCONT)
            await asyncio.gather(*following)
            clients += new
        assert one.poll() is None
        assert two.poll() is None
    await tally.check(server.port, *clients)
    await ended_well(server.port, *(client.path for client in clients))
    with EventLog(database_url) as log:
        story = story_of(log, [of(client) for client in clients])
    tally.faults["run taken over"] += story.claims - story.runs
    assert story.claims >= story.runs + 10
