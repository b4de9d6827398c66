"""The events lists as server-sent events: what the list has, from any id, replayed and live."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import httpx
import orjson
import psycopg
import pytest

from runs_api.caller import Caller
from runs_api.event_stream import followed
from runs_es.domain import Provenance
from tests.api.asgi import Connection
from tests.api.conftest import ScriptedExecutor, events_of, new_thread

SSE = {"Accept": "text/event-stream"}
SCRIPT = {
    "messages": [{"id": f"m{n}", "type": "ai", "content": str(n)} for n in range(3)],
    "frames": [["values", {"n": n}] for n in range(5)],
}
CALLER = Caller(None, Provenance(actor="api"))


async def ran(client: httpx.AsyncClient, thread: str, **script: Any) -> str:
    body = {"assistant_id": "scripted", "input": {**SCRIPT, **script}}
    return str((await client.post(f"/threads/{thread}/runs/wait", json=body)).headers["content-location"])


async def listed(client: httpx.AsyncClient, where: str, **params: Any) -> list[Any]:
    return (await client.get(f"{where}/events", params={"after_seq": 0, **params})).json()  # type: ignore[no-any-return]


def shown(body: str) -> list[Any]:
    return [orjson.loads(event["data"]) for event in events_of(body) if event["event"] != "end"]


async def test_a_run_that_ended_is_replayed_from_any_id_and_ends(client: httpx.AsyncClient):
    where = await ran(client, await new_thread(client))
    every = await listed(client, where)
    end = next(event["seq"] for event in every if event["event_type"] == "run.completed")
    for after in range(end + 2):
        for asked in ({"params": {"after_seq": after}}, {"headers": {"Last-Event-ID": str(after)}}):
            asked["headers"] = {**SSE, **asked.get("headers", {})}
            answer = await client.get(f"{where}/events", **asked)  # type: ignore[arg-type]
            if after > end:
                assert [event["event"] for event in events_of(answer.text)] == ["gap"]
                continue
            events = events_of(answer.text)
            assert shown(answer.text) == [event for event in every if event["seq"] > after]
            assert [(event["event"], int(event["id"])) for event in events[:-1]] == [
                (event["event_type"], event["seq"]) for event in every if event["seq"] > after
            ]
            assert events[-1] == {"event": "end", "data": "null", "id": str(end)}
    assert answer.headers["content-type"].startswith("text/event-stream")


@pytest.mark.parametrize("types", ["run.created,run.completed", "message", "stream", "values", "lifecycle", "nothing"])
async def test_a_filter_shows_what_the_list_has_and_always_the_end(client: httpx.AsyncClient, types: str):
    where = await ran(client, await new_thread(client))
    answer = await client.get(f"{where}/events", params={"types": types}, headers=SSE)
    assert shown(answer.text) == await listed(client, where, types=types)
    assert events_of(answer.text)[-1]["event"] == "end"


class Following:
    """A client that follows a thread or a run until it leaves."""

    def __init__(self, client: httpx.AsyncClient, thread: str, run: str | None, after: int, types: Any = None) -> None:
        self._edge = client._transport.app.state.edge  # type: ignore[attr-defined]
        self._asked = (thread, run, after, types)
        self.connection = Connection()

    async def __aenter__(self) -> Connection:
        response = await followed(self._edge, CALLER, *self._asked)
        self._task = self.connection.start(response)
        return self.connection

    async def __aexit__(self, *exc: object) -> None:
        self.connection.gone.set()
        await self._task


@pytest.mark.parametrize("types", [None, ["lifecycle", "message"]])
async def test_a_thread_is_followed_over_its_runs_until_it_is_deleted_live_as_replayed(
    client: httpx.AsyncClient, store: Any, types: list[str] | None
):
    thread = await new_thread(client)
    async with Following(client, thread, None, 0, types) as live:
        await live.until(b"event: thread.created")
        await ran(client, thread)
        second = await ran(client, thread)
        await live.until(b'"run_id":"%b"' % second.rpartition("/")[2].encode())
        every = await listed(client, f"/threads/{thread}", **({"types": types} if types else {}))
        await live.until(b"id: %d\r\n" % every[-1]["seq"])
        async with Following(client, thread, None, 0, types) as replayed:
            await replayed.until(b"id: %d\r\n" % every[-1]["seq"])
            assert _without_heartbeats(replayed.body) == _without_heartbeats(live.body)
            assert shown(_without_heartbeats(live.body).decode()) == every
            await client.delete(f"/threads/{thread}")
            for connection in (live, replayed):
                await connection.until(b"event: end")
        assert events_of(_without_heartbeats(live.body).decode())[-2]["event"] == "thread.deleted"
    assert client._transport.app.state.edge.joins.open == 0  # type: ignore[attr-defined]
    assert store.streams._hub._channels == {}


def _without_heartbeats(body: bytes) -> bytes:
    return body.replace(b": heartbeat\r\n", b"")


@pytest.mark.parametrize("types", [None, ["values"], ["lifecycle"]])
async def test_a_run_is_followed_from_before_it_begins(
    client: httpx.AsyncClient, executor: ScriptedExecutor, types: list[str] | None
):
    thread = await new_thread(client)
    hold = {"assistant_id": "scripted", "input": {"frames": [["values", {"busy": True}]], "hold": f"{thread}-1"}}
    first = (await client.post(f"/threads/{thread}/runs", json=hold)).json()["run_id"]
    body = {"assistant_id": "scripted", "input": SCRIPT}
    second = (await client.post(f"/threads/{thread}/runs", json=body)).json()["run_id"]
    async with Following(client, thread, second, 0, types) as live, Following(client, thread, first, 0) as busy:
        await busy.until(b"event: values")
        await live.until(b": heartbeat")
        executor.release(f"{thread}-1")
        await live.until(b"event: end")
        await busy.until(b"event: end")
    got = shown(_without_heartbeats(live.body).decode())
    assert got == await listed(client, f"/threads/{thread}/runs/{second}", **({"types": types} if types else {}))
    assert {event["run_id"] for event in got} == {second}


async def test_what_retention_cut_is_a_gap_that_says_where_to_go_on(client: httpx.AsyncClient, database: str):
    where = await ran(client, await new_thread(client))
    every = await listed(client, where)
    frames = [event["seq"] for event in every if event["category"] == "stream"]
    with psycopg.connect(database) as connection:
        connection.execute("set search_path to runs_es")
        connection.execute("set local runs_es.maintenance = 'test'")
        connection.execute(
            "delete from events where segment > 0 and thread_id = %s and seq = %s", (every[0]["thread_id"], frames[-1])
        )
    left = await listed(client, where)
    cut = next(a["seq"] + 1 for a, b in pairwise(left) if b["seq"] != a["seq"] + 1)
    after = next(event["seq"] for event in left if event["seq"] > cut)

    answer = await client.get(f"{where}/events", headers=SSE)

    *before, gap = events_of(answer.text)
    assert [int(event["id"]) for event in before] == [event["seq"] for event in left if event["seq"] < cut]
    assert gap["event"] == "gap"
    assert "id" not in gap
    told = orjson.loads(gap["data"])
    assert told["earliest_available_event_id"] == str(after)
    rest = await client.get(f"{where}/events", headers=SSE, params={"after_seq": after - 1})
    assert shown(rest.text) == [event for event in left if event["seq"] >= after]
    facts = await client.get(f"{where}/events", headers=SSE, params={"types": "lifecycle"})
    assert events_of(facts.text)[-1]["event"] == "end"


@pytest.fixture
def database(store_settings: Any) -> str:
    return str(store_settings.database_url)


@pytest.mark.parametrize(
    ("headers", "params", "status"),
    [
        ({"Last-Event-ID": "x"}, {}, 422),
        ({}, {"before_seq": 5}, 422),
        ({}, {"after_seq": -1}, 422),
        ({"Last-Event-ID": "99999"}, {}, 200),
    ],
)
async def test_a_cursor_that_makes_no_sense_is_refused(
    client: httpx.AsyncClient, headers: dict[str, str], params: dict[str, Any], status: int
):
    where = await ran(client, await new_thread(client))
    answer = await client.get(f"{where}/events", headers={**SSE, **headers}, params=params)
    assert answer.status_code == status
    if status == 200:
        assert [event["event"] for event in events_of(answer.text)] == ["gap"]


async def test_a_thread_that_is_not_there_is_404_and_takes_no_seat(client: httpx.AsyncClient, store: Any):
    nobody = "00000000-0000-4000-8000-000000000000"
    assert (await client.get(f"/threads/{nobody}/events", headers=SSE)).status_code == 404
    assert client._transport.app.state.edge.joins.open == 0  # type: ignore[attr-defined]


async def test_followers_count_as_joins(client: httpx.AsyncClient):
    thread = await new_thread(client)
    joins = client._transport.app.state.edge.joins  # type: ignore[attr-defined]
    async with Following(client, thread, None, 0) as following:
        await following.until(b"event: thread.created")
        assert joins.open == 1
    assert joins.open == 0


async def test_the_earlier_life_of_a_thread_is_not_shown(client: httpx.AsyncClient):
    thread = await new_thread(client)
    await ran(client, thread)
    await client.delete(f"/threads/{thread}")
    await new_thread(client, thread_id=thread)
    async with Following(client, thread, None, 0) as following:
        await following.until(b"event: thread.created")
        await asyncio.sleep(0)
    assert [event["event"] for event in events_of(_without_heartbeats(following.body).decode())] == ["thread.created"]
