"""Runs on threads of their own."""

from __future__ import annotations

from typing import Any

import httpx

from runs_projections.wiring import Store
from tests.api.conftest import events_of

FRAMES = [["values", {"n": 1}], ["values", {"n": 2}]]


def body(on_completion: str = "delete", **script: Any) -> dict[str, Any]:
    return {"assistant_id": "scripted", "input": script, "on_completion": on_completion}


async def test_the_location_of_a_stream_replays_it_after_its_thread_has_gone(client: httpx.AsyncClient):
    live = await client.post("/runs/stream", json=body(frames=FRAMES))
    run = events_of(live.text)[0]["data"].split('"')[3]
    assert live.headers["location"] == f"/runs/{run}/stream"
    assert live.headers["content-location"] == f"/runs/{run}"
    replay = await client.get(live.headers["location"], headers={"Last-Event-ID": "-1"})
    assert replay.text == live.text.replace(": heartbeat\r\n", "")
    joined = await client.get(f"/runs/{run}/join")
    assert joined.json() == {"n": 2}
    assert joined.headers["location"] == f"/runs/{run}/join"


async def test_a_wait_names_the_thread_and_a_place_that_outlives_it(client: httpx.AsyncClient):
    answer = await client.post("/runs/wait", json=body(frames=FRAMES))
    assert answer.json() == {"n": 2}
    _, _, thread, _, run = answer.headers["content-location"].split("/")
    assert answer.headers["location"] == f"/runs/{run}/join"
    assert (await client.get(f"/threads/{thread}")).status_code == 404
    assert (await client.get(answer.headers["location"])).json() == {"n": 2}


async def test_the_record_of_a_run_is_read_after_its_thread_has_gone(client: httpx.AsyncClient):
    said = [{"id": "m", "type": "human", "content": "hello"}]
    where = (await client.post("/runs/wait", json=body(frames=FRAMES, messages=said))).headers["content-location"]
    assert (await client.get(where)).status_code == 404
    page = await client.get(f"{where}/history")
    assert page.status_code == 200
    assert "run.completed" in page.text
    assert "thread.deleted" not in page.text
    events = (await client.get(f"{where}/events")).json()
    assert [each["event_type"] for each in events].count("values") == 2
    started = next(each["seq"] for each in events if each["event_type"] == "run.started")
    told = (await client.get(f"{where}/diff", params={"from": started})).json()
    assert told["run"][0] == {"path": "/status", "change": "changed", "from": "running", "to": "success"}
    assert told["state"] == [{"path": "", "change": "changed", "from": None, "to": {"n": 2}}]
    assert [each["message_id"] for each in told["messages"]] == ["m"]
    then = await client.get(where, params={"as_of": started})
    assert (then.status_code, then.json()["status"]) == (200, "running")
    (message,) = (await client.get(f"{where}/messages")).json()
    assert message["content"]["content"] == "hello"
    followed = await client.get(f"{where}/events", headers={"Accept": "text/event-stream"})
    seen = [each["id"] for each in events_of(followed.text) if each.get("event") != "end" and "id" in each]
    assert seen == [str(each["seq"]) for each in events]


async def test_a_run_of_a_deleted_thread_that_was_not_temporary_stays_unread(client: httpx.AsyncClient):
    thread = (await client.post("/threads", json={})).json()["thread_id"]
    where = (await client.post(f"/threads/{thread}/runs/wait", json=body(frames=FRAMES))).headers["content-location"]
    assert (await client.delete(f"/threads/{thread}")).status_code == 204
    for path in ("history", "diff", "events", "messages"):
        assert (await client.get(f"{where}/{path}")).status_code == 404


async def test_a_thread_that_is_to_be_kept_stays(client: httpx.AsyncClient):
    answer = await client.post("/runs/wait", json=body("keep", frames=FRAMES))
    where = answer.headers["content-location"]
    run = (await client.get(where)).json()
    assert run["status"] == "success"
    assert run["kwargs"]["temporary"] is False


async def test_a_run_in_the_background_says_where_it_is(client: httpx.AsyncClient):
    answer = await client.post("/runs", json=body(frames=FRAMES))
    run = answer.json()
    assert answer.headers["content-location"] == f"/runs/{run['run_id']}"
    assert run["kwargs"]["temporary"] is True
    assert (await client.get(f"/runs/{run['run_id']}/join")).json() == {"n": 2}


async def test_a_deleted_run_is_not_found_here_either(client: httpx.AsyncClient):
    answer = await client.post("/runs/wait", json=body("keep"))
    where = answer.headers["content-location"]
    run = where.rpartition("/")[2]
    assert (await client.delete(where)).status_code == 204
    for place in ("stream", "join"):
        assert (await client.get(f"/runs/{run}/{place}")).status_code == 404


async def test_a_batch_is_recorded_in_order_or_not_at_all(client: httpx.AsyncClient, store: Store):
    given = [body("keep", frames=[["values", {"n": n}]]) for n in range(3)]
    runs = (await client.post("/runs/batch", json=given)).json()
    results = [(await client.get(f"/runs/{run['run_id']}/join")).json() for run in runs]
    assert results == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert len({run["thread_id"] for run in runs}) == 3
    before = store.log.reader.last_position()
    for wrong in (
        {**body(), "on_completion": "burn"},
        {**body(), "command": {"resume": "x"}},
        {**body(), "webhook": "http://10.0.0.1/"},
    ):
        refused = await client.post("/runs/batch", json=[body(), wrong])
        assert refused.status_code in (400, 422)
    for given, why in (
        ([], "The request body: List should have at least 1 item after validation, not 0"),
        ([body()] * 1001, "The request body: List should have at most 1000 items after validation, not 1001"),
        (body(), "The request body must be a JSON list"),
        ([body(), {}], "[1].assistant_id: Field required"),
        ([body(), "x"], "[1]: Input should be a valid dictionary or object to extract fields from"),
    ):
        refused = await client.post("/runs/batch", json=given)
        assert (refused.status_code, refused.json()) == (422, {"detail": why})
    assert store.log.reader.last_position() == before
