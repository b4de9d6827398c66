"""`?as_of=` and `?as_of_time=` on runs, threads and message lists, and what differs between two moments."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.api.conftest import new_thread

MESSAGES = [{"id": f"m{n}", "type": "ai" if n % 2 else "human", "content": str(n)} for n in range(6)]


async def ran(client: httpx.AsyncClient, thread: str | None = None, **script: Any) -> str:
    """Where a run is that recorded messages and streamed values."""
    thread = thread or await new_thread(client, metadata={"topic": "first"})
    script = {
        "messages": MESSAGES,
        "frames": [["values", {"n": n, "list": list(range(n))}] for n in range(3)],
        **script,
    }
    answer = await client.post(f"/threads/{thread}/runs/wait", json={"assistant_id": "scripted", "input": script})
    return str(answer.headers["content-location"])


async def facts(client: httpx.AsyncClient, where: str) -> dict[str, int]:
    """The seq of each kind of fact."""
    events = (await client.get(f"{where}/events", params={"after_seq": 0})).json()
    return {event["event_type"]: event["seq"] for event in reversed(events)}


async def test_a_run_is_shown_as_it_was(client: httpx.AsyncClient):
    where = await ran(client)
    seqs = await facts(client, where)
    for topic, status in (("run.created", "pending"), ("run.started", "running"), ("run.completed", "success")):
        answer = await client.get(where, params={"as_of": seqs[topic]})
        assert answer.status_code == 200
        assert answer.json()["status"] == status
        assert answer.headers["x-runs-as-of"] == str(seqs[topic])
    now = await client.get(where)
    assert "x-runs-as-of" not in now.headers
    assert now.json() == answer.json()


async def test_a_thread_is_shown_as_it_was_without_values(client: httpx.AsyncClient):
    where = await ran(client)
    thread = where.partition("/runs")[0]
    await client.patch(thread, json={"metadata": {"topic": "second"}})
    seqs = await facts(client, where)

    then = (await client.get(thread, params={"as_of": seqs["run.started"]})).json()

    assert (then["status"], then["metadata"]["topic"], then["values"]) == ("busy", "first", None)
    assert (await client.get(thread)).json()["metadata"]["topic"] == "second"


async def test_messages_are_listed_as_they_were(client: httpx.AsyncClient):
    where = await ran(client)
    thread = where.partition("/runs")[0]
    third = (await client.get(f"{where}/messages", params={"limit": 1, "before_seq": 10**9})).json()[0]["seq"] - 3
    await ran(client, thread.rpartition("/")[2], messages=[{"id": "m0", "type": "human", "content": "edited"}])

    for place in (thread, where):
        then = await client.get(f"{place}/messages", params={"as_of": third})
        assert [message["content"]["content"] for message in then.json()] == ["0", "1", "2"]
        assert then.headers["x-runs-has-more"] == "false"
        paged = await client.get(f"{place}/messages", params={"as_of": third, "limit": 2, "after_seq": 0})
        assert [message["content"]["content"] for message in paged.json()] == ["0", "1"]
        assert paged.headers["x-pagination-next"] == str(paged.json()[-1]["seq"])
    now = (await client.get(f"{thread}/messages")).json()
    assert [message["content"]["content"] for message in now] == ["1", "2", "3", "4", "5", "edited"]


async def test_a_time_means_the_last_seq_recorded_by_then(client: httpx.AsyncClient):
    where = await ran(client)
    started = next(
        event for event in (await client.get(f"{where}/events")).json() if event["event_type"] == "run.started"
    )
    answer = await client.get(where, params={"as_of_time": started["created_at"]})
    assert answer.json()["status"] == "running"
    assert int(answer.headers["x-runs-as-of"]) >= started["seq"]
    # As it stands in a URL that nobody escaped: the plus arrives as a space.
    unescaped = await client.get(f"{where}?as_of_time={started['created_at']}")
    assert unescaped.json() == answer.json()
    assert (await client.get(where, params={"as_of_time": "2999-01-01T00:00:00Z"})).json()["status"] == "success"
    assert (await client.get(where, params={"as_of_time": "1999-01-01T00:00:00Z"})).status_code == 404


@pytest.mark.parametrize(
    ("params", "status", "detail"),
    [
        ({"as_of": "x"}, 422, "as_of"),
        ({"as_of": -1}, 422, "as_of"),
        ({"as_of": 2**63}, 422, "as_of"),
        ({"as_of": 10_000}, 422, "as_of is 10000, but the thread has only come to seq"),
        ({"as_of_time": "yesterday"}, 422, "as_of_time must be an ISO 8601 time"),
        ({"as_of_time": "2026-01-01T00:00:00"}, 422, "as_of_time must carry an offset"),
        ({"as_of": 1, "as_of_time": "2026-01-01T00:00:00Z"}, 422, "say either as_of or as_of_time"),
        ({"as_of": 0}, 404, "not found"),
    ],
)
async def test_a_moment_that_makes_no_sense_is_refused_in_words(
    client: httpx.AsyncClient, params: dict[str, Any], status: int, detail: str
):
    where = await ran(client)
    thread = where.partition("/runs")[0]
    for place in (where, thread, f"{thread}/messages", f"{where}/messages"):
        answer = await client.get(place, params=params)
        assert answer.status_code == status, answer.text
        assert detail in answer.json()["detail"]


async def test_a_deleted_run_is_there_as_of_before_and_a_deleted_thread_is_not(client: httpx.AsyncClient):
    where = await ran(client)
    thread = where.partition("/runs")[0]
    ended = (await facts(client, where))["run.completed"]
    await client.delete(where)
    assert (await client.get(where)).status_code == 404
    assert (await client.get(where, params={"as_of": ended})).json()["status"] == "success"
    assert (await client.get(where, params={"as_of": ended + 1})).status_code == 404
    await client.delete(thread)
    assert (await client.get(where, params={"as_of": ended})).status_code == 404
    await client.post("/threads", json={"thread_id": thread.rpartition("/")[2]})
    assert (await client.get(where, params={"as_of": ended})).status_code == 404


async def test_a_diff_of_two_moments_says_what_changed(client: httpx.AsyncClient):
    where = await ran(client)
    seqs = await facts(client, where)
    values = [event["seq"] for event in (await client.get(f"{where}/events", params={"types": "values"})).json()]

    found = (await client.get(f"{where}/diff", params={"from": values[0], "to": values[2]})).json()

    assert found["state"] == [
        {"path": "/n", "change": "changed", "from": 0, "to": 2},
        {"path": "/list/0", "change": "added", "to": 0},
        {"path": "/list/1", "change": "added", "to": 1},
    ]
    assert (found["run"], found["messages"], found["truncated"]) == ([], [], False)
    whole = (await client.get(f"{where}/diff")).json()
    assert (whole["from"]["seq"], whole["from"]["status"]) == (seqs["run.created"], "pending")
    assert whole["to"]["status"] == "success"
    assert {"path": "/status", "change": "changed", "from": "pending", "to": "success"} in whole["run"]
    assert [(each["message_id"], each["change"]) for each in whole["messages"]] == [
        (f"m{n}", "added") for n in range(6)
    ]


async def test_a_diff_of_two_runs_compares_messages_in_their_order(client: httpx.AsyncClient):
    one = await ran(client, messages=[{"id": "a", "type": "human", "content": "hello"}], frames=[])
    two = await ran(
        client,
        messages=[{"id": "b", "type": "human", "content": "bye"}, {"id": "c", "type": "ai", "content": "!"}],
        frames=[["values", {"n": 1}]],
        fail="boom",
    )
    found = (await client.get(f"{one}/diff", params={"with": two.rpartition("/")[2]})).json()
    assert (found["from"]["status"], found["to"]["status"]) == ("success", "error")
    assert {"path": "/error", "change": "changed", "from": None, "to": "boom"} in found["run"]
    changed, added = found["messages"]
    assert changed["changes"] == [{"path": "/content/content", "change": "changed", "from": "hello", "to": "bye"}]
    assert (added["message_id"], added["change"], added["to"]["content"]) == ("c", "added", "!")
    assert found["state"] == [{"path": "", "change": "changed", "from": None, "to": {"n": 1}}]


@pytest.mark.parametrize(
    ("params", "status"),
    [
        ({"from": 3, "to": 2}, 422),
        ({"from": 1}, 404),
        ({"to": 99_999}, 422),
        ({"with": "x"}, 422),
        ({"with": "00000000-0000-4000-8000-000000000000"}, 404),
        ({"with": "00000000-0000-4000-8000-000000000000", "from": 2}, 422),
    ],
)
async def test_a_diff_of_what_is_not_there_is_refused(client: httpx.AsyncClient, params: dict[str, Any], status: int):
    where = await ran(client)
    answer = await client.get(f"{where}/diff", params=params)
    assert answer.status_code == status, answer.text
    assert "detail" in answer.json()
