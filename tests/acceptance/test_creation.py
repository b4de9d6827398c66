"""`kill -9` of a server on the way from a request for a run to its job in the queue: what is in the log is executed
once, by workers of their own; what is not was promised to nobody.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from runs_es.domain import TERMINAL_TOPICS
from tests.acceptance.oracle import SEED, Ledger, Tally
from tests.acceptance.server import Server
from tests.acceptance.test_processes import QUICK, worker
from tests.conftest import new_folder
from tests.log.holding_proxy import HoldingProxy

# Where the server is killed: whether that statement is held before it begins, whether the run is in the log by then.
POINTS = {
    "before its run is written": (True, False),
    "before its run is committed": (False, False),
    "between its run and its job": (True, True),
    "before its job is committed": (False, True),
    "once its job is there": (None, True),
}
KINDS = ("alone", "delayed", "second", "superseding", "temporary")


@dataclass
class Request:
    """A client's, of one kind. `token` stands in the run's metadata; `run_id` is what it was told."""

    kind: str
    token: str
    thread_id: str | None = None
    run_id: str | None = None

    @property
    def body(self) -> dict[str, Any]:
        return {
            "assistant_id": "agent",
            "input": {"messages": [{"role": "user", "content": "hello"}], "tokens": 2},
            "metadata": {"token": self.token},
            "after_seconds": 1 if self.kind == "delayed" else 0,
            "multitask_strategy": "interrupt" if self.kind == "superseding" else "enqueue",
        }

    async def send(self, client: httpx.AsyncClient) -> None:
        try:
            answer = await client.post(f"/threads/{self.thread_id}/runs" if self.thread_id else "/runs", json=self.body)
        except httpx.TransportError:
            return  # killed: this client knows nothing
        assert answer.status_code == 200, answer.text
        self.run_id = answer.json()["run_id"]


@dataclass
class Story:
    """What the log says of one run."""

    token: str | None
    run_id: str
    thread_id: str
    topics: list[str] = field(default_factory=list)
    times: dict[str, datetime] = field(default_factory=dict)

    @property
    def waited(self) -> float:
        """Seconds from its creation to its claim."""
        return (self.times["run.claimed"] - self.times["run.created"]).total_seconds()


class Database:
    """What is in it."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection

    def rows(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        return self._connection.execute(statement, parameters).fetchall()

    def stories(self) -> list[Story]:
        rows = self.rows(
            "select thread_id, run_id, topic, recorded_at, convert_from(state, 'utf8')::jsonb -> 'metadata' ->> 'token'"
            " from runs_es.events_facts where topic like 'run.%%' order by position"
        )
        stories: dict[str, Story] = {}
        for thread_id, run_id, topic, at, token in rows:
            story = stories.setdefault(run_id, Story(token, run_id, thread_id))
            story.topics.append(topic)
            story.times.setdefault(topic, at)
        return list(stories.values())

    def settled(self) -> bool:
        """Whether every run has ended, and the queue is empty."""
        unfinished = (
            "select 1 from runs_es.events_facts c where topic = 'run.created' and not exists (select from"
            " runs_es.events_facts e where (e.thread_id, e.run_id) = (c.thread_id, c.run_id) and e.topic = any(%s))"
        )
        jobs = "select 1 from runs_es_queue.procrastinate_jobs"
        return self.rows(unfinished, list(TERMINAL_TOPICS)) == self.rows(jobs) == []

    async def settle(self, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not self.settled():
            assert time.monotonic() < deadline, ("a run or a job was left behind", self.stories())
            await asyncio.to_thread(threading.Event().wait, 0.02)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield Database(connection)


@contextmanager
def doomed(database_url: str) -> Iterator[tuple[Server, HoldingProxy]]:
    """A server that executes nothing, and what stands between it and the database; two workers beside it."""
    with ExitStack() as stack:
        folder: Path = stack.enter_context(new_folder())
        proxy = stack.enter_context(HoldingProxy(database_url, folder))
        for _ in range(2):
            stack.enter_context(worker(database_url))
        yield stack.enter_context(Server(proxy.url, env=QUICK, options=["--no-worker"])), proxy


async def requests(client: httpx.AsyncClient, names: Sequence[str], kills: int) -> list[Request]:
    """A few of each kind; threads of their own, some with a run that keeps them busy."""
    made = []
    for number, kind in enumerate(names):
        request = Request(kind, f"token-{kills}-{number}-{kind}.")
        if kind != "temporary":
            request.thread_id = (await client.post("/threads", json={})).json()["thread_id"]
        if kind in ("second", "superseding"):
            before = Request("alone", f"token-{kills}-{number}-before.", request.thread_id)
            await before.send(client)
        made.append(request)
    return made


def strike(proxy: HoldingProxy, server: Server, point: str, victim: Request) -> threading.Event:
    """Have the server killed when it has come so far with the victim's request; set by then."""
    struck = threading.Event()
    whole, in_log = POINTS[point]
    task = b"runs_es.wake" if victim.kind == "delayed" else b"runs_es.advance"
    # What a temporary thread is called nobody knows before; the token of its run stands in no job.
    job = (task, victim.thread_id.encode()) if victim.thread_id else (task,)
    markers = job if in_log else (victim.token.encode(), b"run.created")

    def kill() -> None:
        server.kill()
        proxy.drop()
        struck.set()

    if whole is None:
        proxy.before_cut = kill
        proxy.arm(*markers)
    else:
        proxy.hold(*markers, on_hold=kill, whole=whole)
    return struck


async def one_kill(
    database: Database, server: Server, proxy: HoldingProxy, tally: Tally, point: str, kind: str
) -> None:
    """Requests of all kinds at once, of which one, of this kind, is the server's last."""
    dice = random.Random(tally.seed)
    kinds = [kind, *dice.choices([each for each in KINDS if kind != "temporary" or each == "delayed"], k=4)]
    async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
        asked = await requests(client, kinds, tally.seed)
        struck = strike(proxy, server, point, asked[0])
        order = dice.sample(asked, len(asked))
        await asyncio.gather(*(request.send(client) for request in order))
        # Jobs are written behind the answer: once its run is in the log, a client may have been told of it.
        assert await asyncio.to_thread(struck.wait, 20), "the server was not killed"
    assert asked[0].run_id is None or POINTS[point][1]
    tally.faults[f"server killed {point}"] += 1
    await database.settle()
    await asyncio.to_thread(server.start)
    await check(database, server, asked, tally, in_log=POINTS[point][1])


async def check(database: Database, server: Server, asked: list[Request], tally: Tally, *, in_log: bool) -> None:
    stories = database.stories()
    of_request = {story.token: story for story in stories}
    assert len(of_request) == len(stories), "a request made two runs"
    for story in stories:
        assert sum(topic in TERMINAL_TOPICS for topic in story.topics) == 1, story
        assert story.topics.count("run.claimed") <= 1, story
    for request in asked:
        told = of_request.get(request.token)
        assert told is not None or request.run_id is None, "a run that a client was told of is not there"
        if told is not None:
            assert request.run_id in (None, told.run_id)
            assert told.topics == ["run.created", "run.claimed", "run.started", "run.completed"], told
            tally.runs += 1
            tally.events += len(told.topics)
    last = of_request.get(asked[0].token)
    assert (last is not None) == in_log
    if last is not None:
        tally.measured = f"the run that the kill hit was claimed {last.waited:.2f} s after it was created"
    async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
        for request in asked:
            if request.thread_id is not None:
                assert (await client.get(f"/threads/{request.thread_id}")).json()["status"] in ("idle", "interrupted")


async def test_a_run_whose_server_is_killed_before_it_is_queued_is_executed_once(
    database_url: str, database: Database, ledger: Ledger
) -> None:
    with doomed(database_url) as (server, proxy):
        tally = ledger.tally("kill -9 while runs are created", 1)
        await one_kill(database, server, proxy, tally, "between its run and its job", "alone")


@pytest.mark.faults
@pytest.mark.timeout(900)
async def test_fifty_kills_while_runs_are_created_lose_none_and_execute_none_twice(
    database_url: str, database: Database, ledger: Ledger
) -> None:
    """Twice at each point for each kind of run."""
    cases = [(point, kind) for point in POINTS for kind in KINDS] * 2
    with doomed(database_url) as (server, proxy):
        for number, (point, kind) in enumerate(cases):
            tally = ledger.tally("kill -9 while runs are created", SEED + number)
            await one_kill(database, server, proxy, tally, point, kind)
