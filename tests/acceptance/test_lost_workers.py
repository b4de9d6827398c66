"""Workers killed at random moments, over and over: every run ends once, nobody writes after his turn, and whoever reads
a stream gets what is in the log.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from runs_es.log.event_log import EventLog
from tests.acceptance.lost_workers import Fleet, Story, steps_config, story_of
from tests.acceptance.oracle import SEED, Client, Ledger, Tally, create
from tests.acceptance.server import Server
from tests.benchmarks.figures import percentile

WORKERS = 3
EVENTS_OF_A_RUN = 45  # of those below, about, with what is streamed again
ENV = {
    "RUNS_ES_HEARTBEAT_SECONDS": "0.3",
    "RUNS_ES_LEASE_SECONDS": "1.5",
    "RUNS_ES_SWEEP_SECONDS": "0.3",
    "RUNS_ES_MAX_ATTEMPTS": "6",
}


@pytest.fixture
def config(folder: Path) -> Path:
    return steps_config(folder)


@pytest.fixture
def server(database_url: str, config: Path) -> Iterator[Server]:
    """A server that executes nothing: what it streams other processes write."""
    with Server(database_url, config=config, env=ENV, options=["--no-worker"]) as server:
        yield server


class Crowd:
    """Runs that begin as kills go on, each followed by a client to its end."""

    def __init__(self, port: int, dice: random.Random) -> None:
        self._port = port
        self._dice = dice
        self._following: set[asyncio.Task[Client]] = set()
        self.clients: list[Client] = []

    async def start(self, count: int) -> None:
        for _ in range(count):
            given = {
                "steps": self._dice.randint(2, 6),
                "frames": self._dice.randint(3, 20),
                "delay": self._dice.choice((0.01, 0.02, 0.04)),
            }
            client = Client(await create(self._port, given, modes=("values", "custom")))
            self.clients.append(client)
            self._following.add(asyncio.create_task(client.follow(self._port)))

    async def seen(self, more: int) -> None:
        """Wait until the clients have so many more events, or every run has ended."""
        enough = self._events() + more
        while self._events() < enough:
            going = [client for client in self.clients if not client.ended]
            if not going:
                return
            for client in going:
                client.grew.clear()
            grew = [asyncio.create_task(client.grew.wait()) for client in going]
            await asyncio.wait(grew, return_when=asyncio.FIRST_COMPLETED)
            for each in grew:
                each.cancel()

    def _events(self) -> int:
        return sum(len(client.events) for client in self.clients)

    async def ended(self) -> None:
        await asyncio.gather(*self._following)


async def kill_over_and_over(
    fleet: Fleet, crowd: Crowd, dice: random.Random, *, runs: int, kills: int, full: bool
) -> None:
    """So many kills, spread evenly over so many runs: the next at most `most` events later."""
    most, at_once = (1 if full else 2) * EVENTS_OF_A_RUN * runs // kills, 20
    for kill in range(kills):
        if full:
            await asyncio.to_thread(fleet.wait_until_full)
        due = at_once + (runs - at_once) * kill // max(kills - 1, 1)
        await crowd.start(max(min(runs, due) - len(crowd.clients), 0))
        await crowd.seen(dice.randint(1, most))
        await asyncio.to_thread(lambda: fleet.kill(fleet.choose(dice)))
    await crowd.ended()


def told(story: Story, fleet: Fleet) -> str:
    took = story.takeovers(fleet.kills)
    figures = ", ".join(f"{name} {percentile(took, share):.2f} s" for name, share in (("p50", 0.5), ("p99", 0.99)))
    return (
        f"{story.claims} claims of {story.runs} runs, {story.given_up} given up after {ENV['RUNS_ES_MAX_ATTEMPTS']}"
        f" attempts, {story.frames} frames in the log; takeover of {len(took)} runs: {figures}, max {took[-1]:.2f} s"
    )


async def lose_workers(
    url: str, server: Server, config: Path, tally: Tally, *, runs: int, kills: int, full: bool = False
) -> Story:
    """The whole scenario; what the log says of it. With `full`, each worker is there before the next is killed."""
    dice = random.Random(tally.seed)
    with ExitStack() as stack:
        fleet = await asyncio.to_thread(Fleet, url, config, ENV, WORKERS, stack)
        crowd = Crowd(server.port, dice)
        await kill_over_and_over(fleet, crowd, dice, runs=runs, kills=kills, full=full)
    tally.faults["worker killed"] += len(fleet.kills)
    await tally.check(server.port, *crowd.clients)
    with EventLog(url) as log:
        story = story_of(log, [client.path.split("/")[2] for client in crowd.clients])
    assert story.runs == runs
    tally.faults["run taken over"] += story.claims - story.runs
    tally.measured = told(story, fleet)
    return story


async def test_eight_kills_of_three_workers_leave_every_run_with_one_end_and_no_late_row(
    database_url: str, server: Server, config: Path, ledger: Ledger
) -> None:
    tally = ledger.tally("kill -9 of one of three workers", 7)
    story = await lose_workers(database_url, server, config, tally, runs=20, kills=8)
    assert story.claims > story.runs, "no kill hit a run"


@pytest.mark.faults
@pytest.mark.timeout(1200)
async def test_two_hundred_kills_of_three_workers_over_five_hundred_runs(
    database_url: str, server: Server, config: Path, ledger: Ledger
) -> None:
    tally = ledger.tally("kill -9 of one of three workers", SEED)
    story = await lose_workers(database_url, server, config, tally, runs=500, kills=200, full=True)
    assert story.claims > 600


@pytest.mark.faults
@pytest.mark.timeout(600)
async def test_kills_that_come_faster_than_workers_start_lose_nothing(
    database_url: str, server: Server, config: Path, ledger: Ledger
) -> None:
    tally = ledger.tally("kill -9 before the last one's successor is there", SEED)
    await lose_workers(database_url, server, config, tally, runs=100, kills=60)
