"""A client reads its own writes at once, on every route that reads them; lists say how far they go."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx

from tests.api.conftest import new_thread


async def ids(client: httpx.AsyncClient, place: str, key: str, **params: Any) -> list[Any]:
    answer = await client.get(place, params=params)
    assert answer.status_code == 200, answer.text
    assert int(answer.headers["x-runs-position"]) > 0
    assert "x-runs-stale" not in answer.headers
    return [each[key] for each in answer.json()]


async def test_a_thread_and_what_becomes_of_it(client: httpx.AsyncClient):
    for number in range(5):
        thread = await new_thread(client, metadata={"own": number})
        search = await client.post("/threads/search", json={"metadata": {"own": number}, "ids": [thread]})
        assert [each["thread_id"] for each in search.json()] == [thread]
        assert int(search.headers["x-runs-position"]) > 0
        assert (await client.get(f"/threads/{thread}")).json()["metadata"] == {"own": number}
        assert await ids(client, f"/threads/{thread}/events", "event_type") == ["thread.created"]

        patched = await client.patch(f"/threads/{thread}", json={"metadata": {"own": "changed"}})
        assert patched.json()["metadata"] == {"own": "changed"}
        count = await client.post("/threads/count", json={"metadata": {"own": "changed"}, "ids": [thread]})
        assert (count.json(), int(count.headers["x-runs-position"]) > 0) == (1, True)

        await client.delete(f"/threads/{thread}")
        assert (await client.get(f"/threads/{thread}")).status_code == 404
        assert (await client.post("/threads/search", json={"ids": [thread]})).json() == []


async def test_a_run_and_what_becomes_of_it(client: httpx.AsyncClient):
    for number in range(5):
        thread = await new_thread(client)
        body = {"assistant_id": "scripted", "input": {"hold": f"{thread}-{number}"}}
        run = (await client.post(f"/threads/{thread}/runs", json=body)).json()["run_id"]
        where = f"/threads/{thread}/runs/{run}"
        assert (await client.get(where)).json()["status"] in ("pending", "running")
        assert await ids(client, f"/threads/{thread}/runs", "run_id") == [run]
        assert await ids(client, "/runs", "run_id", limit=1, thread_id=thread) == [run]
        assert (await ids(client, "/runs", "run_id", limit=1))[0] == run
        assert (await ids(client, f"{where}/events", "event_type"))[0] == "run.created"
        assert (await client.get(f"/threads/{thread}")).json()["status"] == "busy"

        await client.post(f"{where}/cancel", params={"wait": "true"})
        assert (await client.get(where)).json()["status"] == "interrupted"
        assert await ids(client, "/runs", "run_id", thread_id=thread, status="interrupted") == [run]
        assert await ids(client, f"/threads/{thread}/runs", "status", status="interrupted") == ["interrupted"]
        assert (await client.get(f"{where}/diff")).json()["to"]["status"] == "interrupted"

        await client.delete(where)
        assert (await client.get(where)).status_code == 404
        assert await ids(client, f"/threads/{thread}/runs", "run_id") == []
        assert await ids(client, "/runs", "run_id", thread_id=thread) == []


async def test_messages_are_listed_the_moment_their_run_has_ended(client: httpx.AsyncClient):
    async def talk(number: int) -> None:
        thread = await new_thread(client)
        said = [{"id": f"m{number}", "type": "human", "content": "hello"}]
        body = {"assistant_id": "scripted", "input": {"messages": said}}
        answer = await client.post(f"/threads/{thread}/runs/wait", json=body)
        for place in (f"/threads/{thread}", answer.headers["content-location"]):
            for params in ({}, {"types": "human"}, {"visibility": "shown"}, {"after_seq": 0}):
                assert [each["id"] for each in await ids(client, f"{place}/messages", "content", **params)] == [
                    f"m{number}"
                ]
        versions = await client.get(f"/threads/{thread}/messages/m{number}/versions")
        assert len(versions.json()) == 1

    await asyncio.gather(*map(talk, range(10)))
