"""Crons of the unmodified SDK against real servers: they are made, found, changed, they fire; and however servers are
killed while they do, each tick has exactly one run in the log.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import psycopg
import pytest
from langgraph_sdk import get_client
from langgraph_sdk.client import LangGraphClient
from langgraph_sdk.errors import NotFoundError, UnprocessableEntityError

from runs_es.domain import TERMINAL_TOPICS, CronFired, CronSkipped, RunCreated, cron_thread
from runs_es.log import codec
from runs_es.service.schedule import Schedule
from tests.acceptance.oracle import SEED, Ledger, Tally
from tests.acceptance.server import Server

EVERY_SECOND = "* * * * * *"
HELLO = {"messages": [{"role": "user", "content": "hello"}], "tokens": 1}
ENV = {
    "RUNS_ES_CRON_MIN_SECONDS": "1",
    "RUNS_ES_CRON_CATCH_UP_SECONDS": "300",
    "RUNS_ES_HEARTBEAT_SECONDS": "0.3",
    "RUNS_ES_LEASE_SECONDS": "1.5",
    "RUNS_ES_SWEEP_SECONDS": "0.3",
    "RUNS_ES_DRAIN_SECONDS": "0",
}


@pytest.fixture(scope="module")
def server(module_database_url: str) -> Iterator[Server]:
    with Server(module_database_url, env=ENV) as server:
        yield server


@pytest.fixture
async def client(server: Server) -> AsyncIterator[LangGraphClient]:
    async with get_client(url=server.url) as client:
        yield client


async def eventually(condition: Any, seconds: float = 30) -> Any:
    """What `condition` answers once it is true."""
    deadline = time.monotonic() + seconds
    while not (answer := await condition()):
        assert time.monotonic() < deadline, "it did not become so"
        await asyncio.to_thread(threading.Event().wait, 0.05)
    return answer


class Story:
    """What the log says of a cron: its ticks, and the runs that were created for it."""

    def __init__(self, database_url: str, cron_id: str) -> None:
        with psycopg.connect(database_url) as connection:
            own = connection.execute(
                "select thread_id, topic, state from runs_es.events_facts where thread_id = %s order by seq",
                (cron_thread(cron_id),),
            ).fetchall()
            runs = connection.execute(
                "select thread_id, state from runs_es.events_facts where topic = 'run.created' order by position"
            ).fetchall()
            ends = connection.execute(
                "select run_id from runs_es.events_facts where topic = any(%s)", (list(TERMINAL_TOPICS),)
            ).fetchall()
            keys = connection.execute(
                "select idem_key from runs_es.events_facts where idem_key like %s", (f"cron:{cron_id}:%",)
            ).fetchall()
        facts = [codec.decode(topic, state, thread) for thread, topic, state in own]
        self.fired = [fact for fact in facts if isinstance(fact, CronFired)]
        self.skipped = [fact for fact in facts if isinstance(fact, CronSkipped)]
        created = [codec.decode("run.created", state, thread) for thread, state in runs]
        self.created = [
            fact for fact in created if isinstance(fact, RunCreated) and fact.metadata.get("cron_id") == cron_id
        ]
        self.ends = Counter(run_id for (run_id,) in ends)
        self.keyed = Counter(key.split(":", 2)[2] for (key,) in keys)

    @property
    def ticks(self) -> list[datetime]:
        return [datetime.fromisoformat(fact.tick) for fact in self.fired]

    def check(self, schedule: str) -> None:
        """Every tick from the first to the last fired has exactly one run, and the facts name it."""
        assert self.skipped == []
        assert self.ticks == sorted(set(self.ticks))
        expected = [self.ticks[0]]
        while expected[-1] < self.ticks[-1]:
            following = Schedule(schedule).after(expected[-1])
            assert following is not None
            expected.append(following)
        assert self.ticks == expected, "a tick was left out"
        assert len({fact.run_id for fact in self.created}) == len(self.created)
        assert set(self.keyed.values()) == {1}, "a tick has more than one run"
        assert set(self.keyed) >= {fact.tick for fact in self.fired}
        fired = [fact.run_id for fact in self.fired]
        # The newest may have its run already, and not its fact yet.
        assert [fact.run_id for fact in self.created if fact.run_id in fired] == fired
        assert len(self.created) == len(self.keyed)
        assert set(self.ends.values()) == {1}, "a run ended twice"


# --- the SDK ---


async def test_a_cron_is_made_found_counted_changed_and_deleted(client: LangGraphClient) -> None:
    cron: Any = await client.crons.create(
        "agent",
        schedule="27 15 * * mon-fri",
        input=HELLO,
        metadata={"team": "blue"},
        config={"tags": ["daily"], "recursion_limit": 7},
        timezone=ZoneInfo("America/New_York"),
        end_time=datetime.now(UTC) + timedelta(days=30),
        multitask_strategy="interrupt",
        on_run_completed="keep",
        stream_mode=["values", "custom"],
        durability="exit",
        interrupt_before=["tools"],
    )
    local = datetime.fromisoformat(cron["next_run_date"]).astimezone(ZoneInfo("America/New_York"))
    assert (local.hour, local.minute, local.weekday() < 5) == (15, 27, True)
    assert (cron["timezone"], cron["thread_id"], cron["on_run_completed"]) == ("America/New_York", None, "keep")
    assert cron["enabled"] is True
    assert cron["payload"]["input"] == HELLO
    assert cron["payload"]["config"] == {"tags": ["daily"], "recursion_limit": 7}
    assert cron["payload"]["stream_mode"] == ["values", "custom"]

    assert await client.crons.search(metadata={"team": "blue"}) == [cron]
    assert await client.crons.search(metadata={"team": "blue"}, enabled=False) == []
    assert await client.crons.search(assistant_id="agent", metadata={"team": "blue"}) == [cron]
    assert await client.crons.count(metadata={"team": "blue"}) == 1
    assert await client.crons.count(assistant_id="agent", metadata={"team": "red"}) == 0

    changed: Any = await client.crons.update(
        cron["cron_id"], schedule="@hourly", end_time=None, input={"other": 1}, metadata={"shift": 2}
    )
    assert (changed["schedule"], changed["end_time"]) == ("@hourly", None)
    assert datetime.fromisoformat(changed["next_run_date"]) - datetime.now(UTC) <= timedelta(hours=1)
    assert changed["payload"] == {**cron["payload"], "input": {"other": 1}}
    assert changed["metadata"] == {"team": "blue", "shift": 2}
    assert changed["updated_at"] > cron["updated_at"]
    unchanged = {"timezone", "created_at", "on_run_completed", "assistant_id", "enabled"}
    assert {name: changed[name] for name in unchanged} == {name: cron[name] for name in unchanged}

    off: Any = await client.crons.update(cron["cron_id"], enabled=False)
    assert (off["enabled"], off["next_run_date"]) == (False, None)

    await client.crons.delete(cron["cron_id"])
    assert await client.crons.search(metadata={"team": "blue"}) == []
    with pytest.raises(NotFoundError, match="Cron with ID"):
        await client.crons.update(cron["cron_id"], enabled=True)


async def test_crons_are_listed_in_pages_and_by_any_of_their_fields(client: LangGraphClient, server: Server) -> None:
    thread = await client.threads.create()
    made: list[Any] = [
        await client.crons.create_for_thread(thread["thread_id"], "agent", schedule=f"{minute} 3 1 * *")
        for minute in (30, 10, 20)
    ]
    newest_first = [cron["cron_id"] for cron in reversed(made)]
    found = await client.crons.search(thread_id=thread["thread_id"])
    assert [cron["cron_id"] for cron in found] == newest_first
    by_date = await client.crons.search(thread_id=thread["thread_id"], sort_by="next_run_date", sort_order="asc")
    assert [cron["schedule"][:2] for cron in by_date] == ["10", "20", "30"]
    only = await client.crons.search(thread_id=thread["thread_id"], select=["cron_id", "schedule"], limit=1, offset=2)
    assert only == [{"cron_id": newest_first[2], "schedule": "30 3 1 * *"}]
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
        page = await http.post("/runs/crons/search", json={"thread_id": thread["thread_id"], "limit": 2})
        assert (page.headers["x-pagination-total"], page.headers["x-pagination-next"]) == ("3", "2")
        last = await http.post("/runs/crons/search", json={"thread_id": thread["thread_id"], "offset": 2})
        assert last.headers["x-pagination-total"] == "3"
        assert "x-pagination-next" not in last.headers
        assert (await http.get(f"/runs/crons/{newest_first[0]}")).json() == found[0]
    assert await client.crons.count(thread_id=thread["thread_id"]) == 3


async def test_a_cron_on_a_thread_runs_there_within_a_second_of_each_tick(client: LangGraphClient) -> None:
    thread = await client.threads.create()
    cron: Any = await client.crons.create_for_thread(
        thread["thread_id"], "agent", schedule=EVERY_SECOND, input=HELLO, metadata={"by": "clock"}
    )

    async def two_runs() -> Any:
        runs = await client.runs.list(thread["thread_id"])
        ended = [run for run in runs if run["status"] == "success"]
        return ended if len(ended) >= 2 else None

    runs = await eventually(two_runs)
    await client.crons.delete(cron["cron_id"])
    assert all(run["metadata"]["cron_id"] == cron["cron_id"] and run["metadata"]["by"] == "clock" for run in runs)
    assert {run["assistant_id"] for run in runs} == {cron["assistant_id"]}
    state = await client.threads.get_state(thread["thread_id"])
    assert state["values"]["messages"][0]["content"] == "hello"


async def test_a_thread_that_a_cron_is_to_keep_stays_and_is_found_by_the_cron(client: LangGraphClient) -> None:
    kept: Any = await client.crons.create("agent", schedule=EVERY_SECOND, input=HELLO, on_run_completed="keep")
    gone: Any = await client.crons.create("agent", schedule=EVERY_SECOND, input=HELLO)
    assert gone["on_run_completed"] == "delete"

    async def threads() -> Any:
        found = await client.threads.search(metadata={"cron_id": kept["cron_id"]}, status="idle")
        return found if len(found) >= 2 and found[0]["values"] else None

    found = await eventually(threads)
    await client.crons.delete(kept["cron_id"])
    await client.crons.delete(gone["cron_id"])
    for thread in found:
        assert len(await client.runs.list(thread["thread_id"])) == 1

    async def none_left() -> bool:
        return await client.threads.count(metadata={"cron_id": gone["cron_id"]}) == 0

    await eventually(none_left)


async def test_a_busy_thread_lets_a_cron_that_rejects_leave_its_ticks_out(
    client: LangGraphClient, server: Server, module_database_url: str
) -> None:
    thread = await client.threads.create()
    busy = await client.runs.create(thread["thread_id"], "agent", input={**HELLO, "tokens": 500, "delay": 0.1})
    cron: Any = await client.crons.create_for_thread(
        thread["thread_id"], "agent", schedule=EVERY_SECOND, input=HELLO, multitask_strategy="reject"
    )

    async def skipped() -> Any:
        return (await asyncio.to_thread(Story, module_database_url, cron["cron_id"])).skipped

    (first, *_) = await eventually(skipped)
    assert first.reason == "refused: " + (
        "Thread is already running a task. Wait for it to finish or choose a different multitask strategy."
    )
    await client.crons.delete(cron["cron_id"])
    await client.runs.cancel(thread["thread_id"], busy["run_id"], wait=True)
    assert len(await client.runs.list(thread["thread_id"])) == 1


async def test_a_cron_goes_with_its_thread(client: LangGraphClient) -> None:
    thread = await client.threads.create()
    cron: Any = await client.crons.create_for_thread(thread["thread_id"], "agent", schedule=EVERY_SECOND, input=HELLO)
    await client.threads.delete(thread["thread_id"])

    async def gone() -> bool:
        return await client.crons.count(thread_id=thread["thread_id"]) == 0

    await eventually(gone)
    with pytest.raises(NotFoundError):
        await client.crons.delete(cron["cron_id"])


async def test_what_makes_no_cron_is_refused_in_words(client: LangGraphClient) -> None:
    thread = await client.threads.create()
    refused: list[tuple[str, dict[str, Any]]] = [
        (r"schedule: '61 \* \* \* \*' is no schedule \(bad minute\); it has five fields", {"schedule": "61 * * * *"}),
        ("schedule: 'daily' is no schedule", {"schedule": "daily"}),
        ("timezone: 'Europe/Atlantis' is no IANA time zone", {"schedule": "@daily", "timezone": "Europe/Atlantis"}),
        ("end_time: .* has passed", {"schedule": "@daily", "end_time": datetime(2020, 1, 1, tzinfo=UTC)}),
        ("multitask_strategy", {"schedule": "@daily", "multitask_strategy": "hope"}),
        ("stream_mode", {"schedule": "@daily", "stream_mode": "debug"}),
        ("on_run_completed", {"schedule": "@daily", "on_run_completed": "burn"}),
    ]
    for problem, fields in refused:
        with pytest.raises(UnprocessableEntityError, match=problem):
            await client.crons.create("agent", **fields)
    with pytest.raises(UnprocessableEntityError, match="Invalid assistant: 'nobody'"):
        await client.crons.create("nobody", schedule="@daily")
    with pytest.raises(NotFoundError):
        await client.crons.create_for_thread("4c84a93e-e3bb-4bee-8a34-654ef0152289", "agent", schedule="@daily")
    cron: Any = await client.crons.create_for_thread(thread["thread_id"], "agent", schedule="@daily")
    with pytest.raises(UnprocessableEntityError, match="bad hour"):
        await client.crons.update(cron["cron_id"], schedule="0 25 * * *")
    with pytest.raises(UnprocessableEntityError, match="on_run_completed: is for crons without a thread"):
        await client.crons.update(cron["cron_id"], on_run_completed="keep")
    await client.crons.delete(cron["cron_id"])


# --- several servers, and kills ---


async def made_crons(url: str) -> list[tuple[str, str]]:
    """(id, schedule) of three crons: temporary threads, kept ones, and one thread."""
    async with get_client(url=url) as client:
        thread = await client.threads.create()
        crons: list[Any] = [
            await client.crons.create("agent", schedule=EVERY_SECOND, input=HELLO),
            await client.crons.create("agent", schedule="*/2 * * * * *", input=HELLO, on_run_completed="keep"),
            await client.crons.create_for_thread(thread["thread_id"], "agent", schedule=EVERY_SECOND, input=HELLO),
        ]
    return [(cron["cron_id"], cron["schedule"]) for cron in crons]


async def fired(database_url: str, crons: list[tuple[str, str]], more: int) -> None:
    """Wait until each cron has fired so many ticks more than now."""

    async def counts() -> list[int]:
        stories = [await asyncio.to_thread(Story, database_url, cron_id) for cron_id, _ in crons]
        return [len(story.fired) for story in stories]

    before = await counts()

    async def enough() -> bool:
        return all(now - then >= more for now, then in zip(await counts(), before, strict=True))

    await eventually(enough, 90)


async def all_ended(database_url: str, crons: list[tuple[str, str]]) -> None:
    """Wait until the runs that were fired by now have ended."""
    stories = [await asyncio.to_thread(Story, database_url, cron_id) for cron_id, _ in crons]
    runs = {fact.run_id for story in stories for fact in story.fired}

    async def ended() -> bool:
        story = await asyncio.to_thread(Story, database_url, crons[0][0])
        return runs <= story.ends.keys()

    await eventually(ended, 60)


async def killed(database_url: str, tally: Tally, kills: int) -> None:
    """Two servers share crons; one or both are killed at random moments, and started again."""
    dice = random.Random(tally.seed)
    with Server(database_url, env=ENV) as first, Server(database_url, env=ENV) as second:
        crons = await made_crons(first.url)
        await fired(database_url, crons, 1)
        for _ in range(kills):
            # Right after a whole second, when ticks are being fired.
            moment = datetime.now(UTC).microsecond / 1e6
            await asyncio.sleep(1 - moment + dice.uniform(0, 0.06))
            victims = dice.choice([[first], [second], [first, second]])
            for victim in victims:
                await asyncio.to_thread(victim.kill)
                tally.faults["server killed"] += 1
            for victim in victims:
                await asyncio.to_thread(victim.start)
            await fired(database_url, crons, 2)
        await all_ended(database_url, crons)
    for cron_id, schedule in crons:
        story = Story(database_url, cron_id)
        story.check(schedule)
        tally.runs += len(story.created)


async def test_ticks_that_two_servers_share_while_one_is_killed_have_one_run_each(
    database_url: str, ledger: Ledger
) -> None:
    await killed(database_url, ledger.tally("kill -9 during ticks of crons", 1), 1)


@pytest.mark.faults
@pytest.mark.timeout(900)
async def test_twenty_kills_during_ticks_leave_out_none_and_run_none_twice(database_url: str, ledger: Ledger) -> None:
    await killed(database_url, ledger.tally("kill -9 during ticks of crons", SEED), 20)
