"""Many clients, two servers with a worker each, one thread: what the log says of every strategy, and of cancels."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from langgraph_sdk import get_client
from langgraph_sdk.client import LangGraphClient
from langgraph_sdk.errors import NotFoundError

from runs_es.domain import Provenance, Recorded
from runs_es.log.reader import LogReader
from tests.acceptance.oracle import SEED, Client, Ledger, Tally, said
from tests.acceptance.server import Server
from tests.conftest import SCHEMA

QUICK = {"RUNS_ES_HEARTBEAT_SECONDS": "0.3", "RUNS_ES_LEASE_SECONDS": "5", "RUNS_ES_SWEEP_SECONDS": "0.3"}
ENDS = ("run.completed", "run.failed", "run.cancelled")
STRATEGIES = ["enqueue", "reject", "interrupt", "rollback"]
Answers = dict[str, int]


@pytest.fixture(scope="module")
def servers(module_database_url: str) -> Iterator[list[Server]]:
    with ExitStack() as stack:
        yield [stack.enter_context(Server(module_database_url, env=QUICK)) for _ in range(2)]


@pytest.fixture(scope="module")
def log(module_database_url: str, servers: list[Server]) -> Iterator[LogReader]:
    reader = LogReader(module_database_url, SCHEMA)
    yield reader
    reader.close()


async def new_thread(servers: list[Server]) -> str:
    async with httpx.AsyncClient(base_url=servers[0].url, timeout=60) as client:
        return str((await client.post("/threads", json={})).json()["thread_id"])


async def create_many(
    servers: list[Server], thread_id: str, strategies: list[str], clients: int
) -> tuple[list[str], Counter[int]]:
    """A run for each of `strategies`, by `clients` at once at both servers; the runs, and how often which status."""
    runs: list[str] = []
    statuses: Counter[int] = Counter()
    left = list(enumerate(strategies))

    async def one(url: str) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            while left:
                number, strategy = left.pop()
                given = {"messages": [{"role": "user", "content": "hello", "id": f"m{number}"}], "tokens": 1}
                body = {"assistant_id": "agent", "input": given, "multitask_strategy": strategy}
                answer = await client.post(f"/threads/{thread_id}/runs", json=body)
                statuses[answer.status_code] += 1
                if answer.status_code == 200:
                    runs.append(answer.json()["run_id"])

    await asyncio.gather(*(one(servers[number % 2].url) for number in range(clients)))
    return runs, statuses


async def all_ended(servers: list[Server], log: LogReader, thread_id: str) -> None:
    """Wait until nothing is in flight: runs end in order of creation."""
    (*_, last) = log.facts(thread_id, topics=["run.created"])
    async with httpx.AsyncClient(base_url=servers[0].url, timeout=None) as client:
        await client.get(f"/threads/{thread_id}/runs/{last.fact.run_id}/join")  # type: ignore[attr-defined]
        assert (await client.get(f"/threads/{thread_id}")).json()["status"] == "idle"


def story(facts: list[Recorded]) -> dict[str, list[tuple[str, Provenance]]]:
    """The thread's runs in order of creation, each with what became of it. At no seq do two of them run."""
    runs: dict[str, list[tuple[str, Provenance]]] = {}
    running: set[str] = set()
    for recorded in facts:
        topic, run_id = recorded.fact.topic, getattr(recorded.fact, "run_id", "")
        if not run_id or topic == "message.recorded":
            continue
        runs.setdefault(run_id, []).append((topic, recorded.provenance))
        if topic == "run.started":
            running.add(run_id)
        elif topic in (*ENDS, "run.requeued"):
            running.discard(run_id)
        assert len(running) <= 1, f"{running} run at once at seq {recorded.seq}"
    assert not running
    return runs


def ends_of(told: dict[str, list[tuple[str, Provenance]]]) -> dict[str, str]:
    """How each run ended: exactly once."""
    ends = {run: [topic for topic, _ in facts if topic in ENDS] for run, facts in told.items()}
    assert {len(each) for each in ends.values()} == {1}
    return {run: end for run, (end,) in ends.items()}


async def check_strategy(
    servers: list[Server], log: LogReader, strategy: str, count: int, clients: int, tally: Tally
) -> None:
    begun = time.monotonic()
    thread_id = await new_thread(servers)
    runs, statuses = await create_many(servers, thread_id, [strategy] * count, clients)
    asked = time.monotonic() - begun
    await all_ended(servers, log, thread_id)
    took = time.monotonic() - begun
    facts = log.facts(thread_id)
    told = story(facts)
    ends = ends_of(told)
    assert set(told) == set(runs), "the log has other runs than the clients were told of"
    created = [each.fact.run_id for each in facts if each.fact.topic == "run.created"]  # type: ignore[attr-defined]
    started = [each.fact.run_id for each in facts if each.fact.topic == "run.started"]  # type: ignore[attr-defined]
    assert started == [run for run in created if run in set(started)], "a run overtook another"
    if strategy == "enqueue":
        assert started == created
    if strategy == "reject":
        assert statuses == {200: len(created), 409: count - len(created)}
        busy: set[str] = set()
        for recorded in facts:
            if recorded.fact.topic == "run.created":
                assert not busy, "a run was admitted to a busy thread"
                busy.add(recorded.fact.run_id)  # type: ignore[attr-defined]
            elif recorded.fact.topic in ENDS:
                busy.clear()
    else:
        assert statuses == {200: count}
    if strategy in ("enqueue", "reject"):
        assert set(ends.values()) == {"run.completed"}
    else:
        check_superseded(told, ends, strategy)
    await check_lists(servers, thread_id, ends, strategy)
    tally.runs += len(created)
    tally.events += len(facts)
    tally.measured = (
        f"{strategy}: {count} asked for by {clients} clients in {asked:.1f} s, answers {dict(statuses)};"
        f" of {len(created)} in the log {len(started)} began, one at a time and in order;"
        f" ends {dict(Counter(ends.values()))}; all ended after {took:.1f} s, seq {facts[-1].seq}"
    )


def check_superseded(told: dict[str, list[tuple[str, Provenance]]], ends: dict[str, str], strategy: str) -> None:
    """The last run completed; each that was cancelled says for which later one."""
    order = list(told)
    assert ends[order[-1]] == "run.completed"
    for number, (run, facts) in enumerate(told.items()):
        asked = [who for topic, who in facts if topic == "run.cancel_requested"]
        assert [who.reason for who in asked] == [f"superseded by run {order[number + 1]}" for _ in asked]
        assert (ends[run] == "run.cancelled") == bool(asked)
        deleted = facts[-1][0] == "run.deleted"
        assert deleted == (ends[run] == "run.cancelled" and strategy == "rollback")


async def check_lists(servers: list[Server], thread_id: str, ends: dict[str, str], strategy: str) -> None:
    """What both servers show is what the log says."""
    names = {"run.completed": "success", "run.cancelled": "interrupted"}
    shown = {run: names[end] for run, end in ends.items() if strategy != "rollback" or end != "run.cancelled"}
    for server in servers:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            listed = (await client.get(f"/threads/{thread_id}/runs", params={"limit": 1000})).json()
            assert {run["run_id"]: run["status"] for run in listed} == shown
            messages = (await client.get(f"/threads/{thread_id}/messages", params={"limit": 1000})).json()
            assert {message["run_id"] for message in messages} <= set(shown)


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_runs_of_one_thread_run_one_at_a_time_and_none_is_lost(
    servers: list[Server], log: LogReader, strategy: str, ledger: Ledger
) -> None:
    await check_strategy(servers, log, strategy, 60, 4, ledger.tally("runs of one thread", SEED))


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_a_thousand_runs_of_one_thread_by_sixteen_clients(
    servers: list[Server], log: LogReader, strategy: str, ledger: Ledger
) -> None:
    tally = ledger.tally("runs of one thread", SEED)
    await check_strategy(servers, log, strategy, 1000, 16, tally)


async def test_strategies_that_mix_on_one_thread_leave_one_end_each(servers: list[Server], log: LogReader) -> None:
    dice = random.Random(SEED)
    thread_id = await new_thread(servers)
    runs, statuses = await create_many(servers, thread_id, dice.choices(STRATEGIES, k=60), 4)
    await all_ended(servers, log, thread_id)
    told = story(log.facts(thread_id))
    assert set(ends_of(told)) == set(runs)
    assert set(statuses) <= {200, 409}


async def race(servers: list[Server], log: LogReader, dice: random.Random) -> str:
    """A run that is cancelled at one server when a client of the other has seen some of it; how it ended."""
    action = dice.choice(["interrupt", "rollback"])
    seen = dice.randint(0 if action == "interrupt" else 1, 14)  # who comes after a rollback finds no stream
    thread_id = await new_thread(servers)
    async with httpx.AsyncClient(base_url=servers[1].url, timeout=60) as client:
        given = said(5, dice.choice((0, 0.005, 0.02, 0.05)))
        body = {"assistant_id": "agent", "input": given, "stream_mode": ["messages-tuple", "values"]}
        run_id = (await client.post(f"/threads/{thread_id}/runs", json=body)).json()["run_id"]
        where = f"/threads/{thread_id}/runs/{run_id}"
        follower = Client(f"{where}/stream")
        following = asyncio.create_task(follower.follow(servers[0].port))
        await follower.has(seen)
        answer = await client.post(f"{where}/cancel", params={"action": action})
        await following
        found = await client.get(where)
    facts = log.facts(thread_id)
    (end,) = ends_of(story(facts)).values()
    assert (answer.status_code, end) in ((202, "run.cancelled"), (404, "run.completed"))
    if end == "run.completed":
        assert found.json()["status"] == "success"
    elif action == "rollback":
        assert found.status_code == 404
        assert facts[-1].fact.topic == "run.deleted"
    else:
        assert found.json()["status"] == "interrupted"
    assert follower.events[-1][1].startswith(b"event: end")
    return end


async def races(servers: list[Server], log: LogReader, count: int, at_once: int) -> Counter[str]:
    dice = random.Random(SEED)
    left = [random.Random(dice.random()) for _ in range(count)]
    ends: Counter[str] = Counter()

    async def some() -> None:
        while left:
            ends[await race(servers, log, left.pop())] += 1

    await asyncio.gather(*(some() for _ in range(at_once)))
    return ends


async def test_a_cancel_raced_against_completion_makes_one_end_that_the_answers_agree_with(
    servers: list[Server], log: LogReader
) -> None:
    assert (await races(servers, log, 30, 3)).total() == 30


@pytest.mark.faults
@pytest.mark.timeout(900)
async def test_a_thousand_cancels_raced_against_completion(
    servers: list[Server], log: LogReader, ledger: Ledger
) -> None:
    tally = ledger.tally("cancel raced against completion", SEED)
    ends = await races(servers, log, 1000, 8)
    tally.runs += ends.total()
    tally.measured = f"one end each that the answers agree with: {dict(ends)}"
    assert ends["run.completed"] > 50, ends
    assert ends["run.cancelled"] > 50, ends


async def shown(client: LangGraphClient, thread_id: str) -> dict[str, Any]:
    """All that a client finds of a thread, but for when it was changed last."""
    thread: Any = await client.threads.get(thread_id)
    return {
        "thread": {key: value for key, value in thread.items() if key != "updated_at"},
        "state": await client.threads.get_state(thread_id),
        "history": await client.threads.get_history(thread_id, limit=100),
        "messages": await client.http.get(f"/threads/{thread_id}/messages"),
        "runs": await client.runs.list(thread_id),
    }


async def test_the_sdk_cancels_rolls_back_supersedes_and_times_out(servers: list[Server], log: LogReader) -> None:
    slow = said(5000, 0.01)
    async with get_client(url=servers[0].url) as client:
        thread_id = (await client.threads.create())["thread_id"]
        await client.runs.wait(thread_id, "agent", input=said(2))
        before = await shown(client, thread_id)
        run = await client.runs.create(thread_id, "agent", input=slow)
        while not log.facts(thread_id, run_id=run["run_id"], topics=["message.recorded"]):
            pass
        await client.runs.cancel(thread_id, run["run_id"], wait=True, action="rollback")
        with pytest.raises(NotFoundError):
            await client.runs.get(thread_id, run["run_id"])
        assert await shown(client, thread_id) == before
        told = [each.fact.topic for each in log.facts(thread_id, run_id=run["run_id"])]
        assert (told[0], told[-3:]) == ("run.created", ["run.cancel_requested", "run.cancelled", "run.deleted"])
        assert "message.recorded" in told

        first = await client.runs.create(thread_id, "agent", input=slow)
        values = await client.runs.wait(thread_id, "agent", input=said(2), multitask_strategy="interrupt")
        assert values["messages"]
        assert (await client.runs.get(thread_id, first["run_id"]))["status"] == "interrupted"

        several = [await client.runs.create(thread_id, "agent", input=slow) for _ in range(3)]
        ids = [each["run_id"] for each in several]
        await client.runs.cancel_many(thread_id=thread_id, run_ids=ids[1:])
        assert (await client.runs.get(thread_id, ids[2]))["status"] == "interrupted"
        await client.runs.cancel_many(status="all", action="rollback")
        while (await client.threads.get(thread_id))["status"] == "busy":
            pass
        assert ids[0] not in [each["run_id"] for each in await client.runs.list(thread_id, limit=100)]
        with pytest.raises(NotFoundError):
            await client.runs.cancel_many(thread_id=thread_id, run_ids=ids)

        late: dict[str, Any] = {"timeout_seconds": 0.2}
        events = [
            part
            async for part in client.runs.stream(thread_id, "agent", input=slow, config=late)  # type: ignore[arg-type]
        ]
        assert [part.event for part in events][-2:] == ["error", "end"]
        assert events[-2].data["error"] == "TimeoutError"
        assert (await client.runs.list(thread_id))[0]["status"] == "timeout"
