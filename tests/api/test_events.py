"""Stored events and messages, with the cursor that streams have."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.api.conftest import events_of, new_thread

MESSAGES = [{"id": f"m{n}", "type": "ai" if n % 2 else "human", "content": str(n)} for n in range(6)]


async def ran(client: httpx.AsyncClient) -> str:
    """Where a run is that recorded messages and streamed values."""
    thread = await new_thread(client)
    script = {"messages": MESSAGES, "frames": [["values", {"n": n}] for n in range(5)]}
    answer = await client.post(f"/threads/{thread}/runs/wait", json={"assistant_id": "scripted", "input": script})
    return str(answer.headers["content-location"])


async def listed(client: httpx.AsyncClient, where: str, **params: Any) -> list[dict[str, Any]]:
    answer = await client.get(where, params=params)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()
    assert [event["seq"] for event in found] == sorted(event["seq"] for event in found)
    return found


async def test_an_events_envelope_is_the_same_everywhere(client: httpx.AsyncClient):
    where = await ran(client)
    for place in (f"{where}/events", f"{where}/messages"):
        for event in await listed(client, place):
            assert list(event) == [
                "thread_id", "run_id", "seq", "event_type", "category", "content", "metadata", "created_at",
            ]  # fmt: skip


async def test_events_of_a_run_have_the_numbers_of_its_stream(client: httpx.AsyncClient):
    where = await ran(client)
    streamed = events_of((await client.get(f"{where}/stream")).text)[:-1]
    stored = await listed(client, f"{where}/events", types="stream")
    assert [(str(event["seq"]), event["event_type"]) for event in stored] == [
        (event["id"], event["event"]) for event in streamed
    ]


async def test_cursors_give_the_first_after_and_the_last_before(client: httpx.AsyncClient):
    where = await ran(client)
    for place in (f"{where}/events", f"{where.partition('/runs')[0]}/events", f"{where}/messages"):
        every = [event["seq"] for event in await listed(client, place, after_seq=0)]

        async def seqs(_place: str = place, **params: Any) -> list[int]:
            return [event["seq"] for event in await listed(client, _place, **params)]

        assert await seqs(limit=2) == every[-2:]
        assert await seqs(limit=2, after_seq=every[1]) == every[2:4]
        assert await seqs(limit=2, before_seq=every[4]) == every[2:4]
        assert await seqs(limit=2, after_seq=every[0], before_seq=every[4]) == every[1:3]


async def test_types_are_repeated_or_written_with_commas(client: httpx.AsyncClient):
    where = await ran(client)
    wanted = {"run.created", "run.completed"}
    for params in ({"types": "run.created,run.completed"}, {"types": ["run.created", "run.completed"]}):
        assert {event["event_type"] for event in await listed(client, f"{where}/events", **params)} == wanted


async def test_messages_are_found_by_type(client: httpx.AsyncClient):
    where = await ran(client)
    assert len(await listed(client, f"{where}/messages")) == 6
    assert len(await listed(client, f"{where}/messages", types="message")) == 6
    assert [m["content"]["id"] for m in await listed(client, f"{where}/messages", types="ai", limit=2)] == ["m3", "m5"]
    first = await listed(client, f"{where}/messages", types="ai", limit=2, after_seq=0)
    assert [m["content"]["id"] for m in first] == ["m1", "m3"]
    thread = where.partition("/runs")[0]
    assert [m["content"]["id"] for m in await listed(client, f"{thread}/messages", types="human", limit=1)] == ["m4"]


@pytest.mark.parametrize(
    "params", [{"limit": 0}, {"limit": 2001}, {"after_seq": -1}, {"before_seq": "x"}, {"after_seq": 2**63}]
)
async def test_a_cursor_or_limit_out_of_bounds_is_refused_by_name(client: httpx.AsyncClient, params: dict[str, Any]):
    where = await ran(client)
    answer = await client.get(f"{where}/events", params=params)
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith(next(iter(params)))


async def test_lists_say_how_far_they_go(client: httpx.AsyncClient):
    where = await ran(client)
    for place in ("events", "messages"):
        answer = await client.get(f"{where}/{place}")
        assert int(answer.headers["x-runs-position"]) > 0
        assert "x-runs-stale" not in answer.headers
