"""Runs of threads over HTTP: what is created, read, streamed, waited for, cancelled, deleted."""

from __future__ import annotations

import asyncio
import json
import uuid
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from runs_api.caller import Caller
from runs_api.delivery import Delivery
from runs_api.edge import Edge
from runs_es.domain import Provenance
from runs_es.log import retention
from runs_es.settings import Settings
from runs_projections.wiring import Store
from tests.api.asgi import Connection
from tests.api.conftest import ScriptedExecutor, events_of, new_thread

NOBODY = "00000000-0000-0000-0000-000000000000"
FRAMES = [["values", {"n": 1}], ["updates", {"a": 1}], ["values|child:1", {"c": 1}], ["values", {"n": 2}]]


def body(**script: Any) -> dict[str, Any]:
    return {"assistant_id": "scripted", "input": script, "stream_mode": ["values", "updates"]}


async def ended_run(client: httpx.AsyncClient, thread: str, **script: Any) -> str:
    """A run that has ended."""
    answer = await client.post(f"/threads/{thread}/runs/wait", json=body(**script))
    assert answer.status_code == 200, answer.text
    return answer.headers["content-location"].rpartition("/")[2]


async def held_run(client: httpx.AsyncClient, thread: str, **fields: Any) -> tuple[str, str]:
    """(run, key) of a run that goes on until the key is released."""
    key = uuid.uuid4().hex
    answer = await client.post(f"/threads/{thread}/runs", json={**body(hold=key), **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()["run_id"], key


async def test_a_run_in_the_background_answers_at_once_and_says_where_it_is(client: httpx.AsyncClient):
    thread = await new_thread(client)
    answer = await client.post(f"/threads/{thread}/runs", json=body())
    run = answer.json()
    assert answer.status_code == 200
    assert answer.headers["content-location"] == f"/threads/{thread}/runs/{run['run_id']}"
    assert list(run) == [
        "run_id",
        "thread_id",
        "assistant_id",
        "metadata",
        "status",
        "kwargs",
        "multitask_strategy",
        "created_at",
        "updated_at",
        "langsmith_session_name",
    ]
    assert run["status"] == "pending"
    assert run["multitask_strategy"] == "enqueue"


@pytest.mark.parametrize("event", ["end", "error", "metadata", "gap", "end|child:1"])
async def test_an_agent_that_says_what_is_the_stores_to_say_fails_and_its_stream_ends_once(
    client: httpx.AsyncClient, event: str
):
    thread = await new_thread(client)
    answer = await client.post(f"/threads/{thread}/runs/stream", json=body(frames=[[event, {}]]))
    events = events_of(answer.text)
    assert [each["event"] for each in events] == ["metadata", "error", "end"]
    assert "choose another name" in events[1]["data"]


@pytest.mark.parametrize("shown", [{}, {"__interrupt__": "what?"}, {"__interrupt__": ["what?", {"id": [1]}]}])
@pytest.mark.parametrize("question", [{"value": "what?"}, {"id": [1], "value": "what?"}, {"id": "i", "value": "what?"}])
async def test_the_result_of_a_pause_has_its_questions_however_the_agent_wrote_them(
    client: httpx.AsyncClient, question: dict[str, Any], shown: dict[str, Any]
):
    thread = await new_thread(client)
    asked = body(frames=[["values", {"n": 1, **shown}]], interrupts={"task": [question]})
    answer = await client.post(f"/threads/{thread}/runs/wait", json=asked)
    assert answer.json() == {"n": 1, "__interrupt__": [question]}


async def test_a_stream_has_every_event_with_its_id_and_ends_with_end(client: httpx.AsyncClient):
    thread = await new_thread(client)
    answer = await client.post(f"/threads/{thread}/runs/stream", json=body(frames=FRAMES))
    events = events_of(answer.text)
    assert [event["event"] for event in events] == ["metadata", "values", "updates", "values|child:1", "values", "end"]
    ids = [int(event["id"]) for event in events]
    assert ids == sorted(set(ids))
    run = answer.headers["content-location"].rpartition("/")[2]
    assert answer.headers["location"] == f"/threads/{thread}/runs/{run}/stream"
    assert (await client.get(f"/threads/{thread}/runs/{run}")).json()["status"] == "success"


async def test_replay_is_what_was_live_byte_for_byte_from_any_id(client: httpx.AsyncClient):
    def without_heartbeats(answer: httpx.Response) -> str:
        return answer.text.replace(": heartbeat\r\n", "")  # a slow machine has them in a replay too

    thread = await new_thread(client)
    live = await client.post(f"/threads/{thread}/runs/stream", json=body(frames=FRAMES))
    whole, where = without_heartbeats(live), live.headers["location"]
    assert without_heartbeats(await client.get(where)) == whole
    for start in ("-1", "0"):
        assert without_heartbeats(await client.get(where, headers={"Last-Event-ID": start})) == whole
    for event in events_of(whole):
        after = whole.partition(f"id: {event['id']}\r\n\r\n")[2] or whole[whole.index("event: end") :]
        assert without_heartbeats(await client.get(where, headers={"Last-Event-ID": event["id"]})) == after


async def test_the_header_wins_over_the_query(client: httpx.AsyncClient):
    thread = await new_thread(client)
    run = await ended_run(client, thread, frames=FRAMES)
    where = f"/threads/{thread}/runs/{run}/stream"
    whole = (await client.get(where)).text
    answer = await client.get(where, params={"last_event_id": "9"}, headers={"Last-Event-ID": "-1"})
    assert answer.text == whole
    assert (await client.get(where, params={"last_event_id": "9"})).text != whole


@pytest.mark.parametrize("bad", ["abc", "", "-2", "1.5", "1-1", "９", "99999999999999999999"])
async def test_a_cursor_that_is_none_is_refused_before_anything_is_looked_up(client: httpx.AsyncClient, bad: str):
    answer = await client.get(f"/threads/{NOBODY}/runs/{NOBODY}/stream", params={"last_event_id": bad})
    assert answer.status_code == 422
    assert "Last-Event-ID" in answer.json()["detail"]


async def test_an_id_beyond_the_thread_is_a_gap(client: httpx.AsyncClient):
    thread = await new_thread(client)
    run = await ended_run(client, thread)
    answer = await client.get(f"/threads/{thread}/runs/{run}/stream", headers={"Last-Event-ID": "999"})
    (event,) = events_of(answer.text)
    assert event["event"] == "gap"
    assert "id" not in event


async def test_who_has_seen_the_end_gets_it_again_or_a_204_if_asked_for(client: httpx.AsyncClient):
    thread = await new_thread(client)
    run = await ended_run(client, thread, frames=FRAMES)
    where = f"/threads/{thread}/runs/{run}/stream"
    *_, last, end = events_of((await client.get(where)).text)
    seen = {"Last-Event-ID": end["id"]}
    assert [event["event"] for event in events_of((await client.get(where, headers=seen)).text)] == ["end"]
    stopped = await client.get(where, params={"stop": "204"}, headers=seen)
    assert (stopped.status_code, stopped.content) == (204, b"")
    before = await client.get(where, params={"stop": "204"}, headers={"Last-Event-ID": last["id"]})
    assert [event["event"] for event in events_of(before.text)] == ["end"]
    beyond = await client.get(where, params={"stop": "204"}, headers={"Last-Event-ID": "999"})
    assert [event["event"] for event in events_of(beyond.text)] == ["gap"]


@pytest.mark.parametrize(
    "query", ["stream_mode=updates", "stream_mode=updates&stream_mode=custom", "stream_mode=updates,custom",
              'stream_mode=["updates","custom"]']
)  # fmt: skip
async def test_a_join_shows_only_the_modes_it_asks_for(client: httpx.AsyncClient, query: str):
    thread = await new_thread(client)
    run = await ended_run(client, thread, frames=FRAMES)
    answer = await client.get(f"/threads/{thread}/runs/{run}/stream?{query}")
    assert [event["event"] for event in events_of(answer.text)] == ["metadata", "updates", "end"]


@pytest.mark.parametrize("place", ["stream", "join"])
async def test_a_run_that_is_not_there_is_a_404_before_any_byte(client: httpx.AsyncClient, place: str):
    thread, other = await new_thread(client), await new_thread(client)
    run = await ended_run(client, other)
    for where in (f"/threads/{thread}/runs/{NOBODY}", f"/threads/{thread}/runs/{run}"):
        answer = await client.get(f"{where}/{place}")
        assert answer.status_code == 404
        assert answer.json() == {"detail": f"Run with ID {where.rpartition('/')[2]} not found"}


async def test_a_wait_answers_with_the_last_values(client: httpx.AsyncClient):
    thread = await new_thread(client)
    answer = await client.post(f"/threads/{thread}/runs/wait", json=body(frames=FRAMES))
    assert answer.json() == {"n": 2}
    assert answer.headers["location"] == answer.headers["content-location"] + "/join"
    assert (await client.get(answer.headers["location"])).json() == {"n": 2}


async def test_a_result_whose_frames_retention_has_deleted_says_so(client: httpx.AsyncClient, store: Store):
    thread = await new_thread(client)
    run = await ended_run(client, thread)
    with retention.connect(store.log.url, store.log.schema) as connection:
        assert retention.delete_pages(connection, thread_id=thread).runs == 1
    error = (await client.get(f"/threads/{thread}/runs/{run}/join")).json()["__error__"]
    assert error["error"] == "FramesGone"
    assert error["message"].startswith("retention has deleted the frames ")
    assert thread in error["message"]


async def test_a_failed_run_is_an_error_in_a_result_that_is_200(client: httpx.AsyncClient):
    thread = await new_thread(client)
    answer = await client.post(f"/threads/{thread}/runs/wait", json=body(frames=FRAMES, fail="boom"))
    assert answer.status_code == 200
    assert answer.json() == {"__error__": {"error": "ValueError", "message": "boom"}}


async def test_runs_are_listed_newest_first_with_only_the_fields_asked_for(client: httpx.AsyncClient):
    thread = await new_thread(client)
    first, second = await ended_run(client, thread), await ended_run(client, thread, fail="boom")
    where = f"/threads/{thread}/runs"
    answer = await client.get(where, params={"select": ["run_id", "status"]})
    assert answer.json() == [{"run_id": second, "status": "error"}, {"run_id": first, "status": "success"}]
    assert int(answer.headers["x-runs-position"]) > 0
    assert "x-runs-stale" not in answer.headers
    for params, found in [
        ({"limit": 1}, [second]),
        ({"limit": 1, "offset": 1}, [first]),
        ({"status": "success"}, [first]),
        ({"offset": 2}, []),
    ]:
        assert [run["run_id"] for run in (await client.get(where, params=params)).json()] == found


async def test_runs_of_a_thread_that_is_not_there_are_a_404(client: httpx.AsyncClient):
    assert (await client.get(f"/threads/{NOBODY}/runs")).json() == {"detail": f"Thread with ID {NOBODY} not found"}
    for place in ("", "/stream", "/wait"):
        answer = await client.post(f"/threads/{NOBODY}/runs{place}", json=body())
        assert (answer.status_code, answer.json()) == (404, {"detail": "Thread or assistant not found."})


async def test_a_thread_can_be_made_by_its_first_run(client: httpx.AsyncClient):
    thread = str(uuid.uuid4())
    answer = await client.post(f"/threads/{thread}/runs/wait", json={**body(frames=FRAMES), "if_not_exists": "create"})
    assert answer.json() == {"n": 2}
    assert (await client.get(f"/threads/{thread}")).json()["metadata"]["graph_id"] == "scripted"


async def test_a_busy_thread_refuses_a_run_that_does_not_want_to_wait(
    client: httpx.AsyncClient, executor: ScriptedExecutor
):
    thread = await new_thread(client)
    run, _ = await held_run(client, thread)
    answer = await client.post(f"/threads/{thread}/runs", json={**body(), "multitask_strategy": "reject"})
    assert answer.status_code == 409
    assert answer.json()["detail"].startswith("Thread is already running a task. Wait for it to finish")
    await client.post(f"/threads/{thread}/runs/{run}/cancel", params={"wait": 1})


async def test_a_run_can_be_cancelled_once(client: httpx.AsyncClient):
    thread = await new_thread(client)
    run, _ = await held_run(client, thread)
    where = f"/threads/{thread}/runs/{run}"
    refused = await client.post(f"{where}/cancel", params={"action": "stop"})
    assert (refused.status_code, refused.json()["detail"][:6]) == (422, "action")
    done = await client.post(f"{where}/cancel", params={"wait": "true", "reason": "enough"})
    assert done.status_code == 200
    assert done.headers["location"] == f"{where}/join"
    assert done.headers["content-location"] == where
    assert (await client.get(where)).json()["status"] == "interrupted"
    again = await client.post(f"{where}/cancel")
    assert again.status_code == 404
    assert again.json()["detail"].startswith("No matching runs to cancel. Please verify")
    events = (await client.get(f"{where}/events", params={"types": "run.cancel_requested"})).json()
    assert [event["metadata"]["reason"] for event in events] == ["enough"]


async def test_a_cancel_that_does_not_wait_is_accepted(client: httpx.AsyncClient):
    thread = await new_thread(client)
    run, _ = await held_run(client, thread)
    answer = await client.post(f"/threads/{thread}/runs/{run}/cancel")
    assert (answer.status_code, answer.content) == (202, b"")


async def test_a_deleted_run_is_gone(client: httpx.AsyncClient):
    thread = await new_thread(client)
    run = await ended_run(client, thread)
    where = f"/threads/{thread}/runs/{run}"
    assert (await client.delete(where)).status_code == 204
    for answer in (await client.get(where), await client.delete(where), await client.get(f"{where}/stream")):
        assert answer.status_code == 404
    assert (await client.get(f"/threads/{thread}/runs")).json() == []


@pytest.mark.parametrize("what", ["queued", "running", "thread"])
async def test_who_waits_for_a_run_that_is_deleted_has_the_platforms_error(
    client: httpx.AsyncClient, store: Store, store_settings: Settings, what: str
):
    thread = await new_thread(client)
    run, _ = await held_run(client, thread)
    if what == "queued":
        run, _ = await held_run(client, thread)
    edge = Edge(store, store_settings)
    delivery = Delivery(edge, Caller(None, Provenance()))
    where = {"location": "/here", "content_location": "/here"}
    connection = Connection()
    response = await delivery.joined_result(run, thread, cancels=False, **where)
    waiting = connection.start(response)
    await connection.until(b"\n")
    path = f"/threads/{thread}" if what == "thread" else f"/threads/{thread}/runs/{run}"
    assert (await client.delete(path)).status_code == 204
    await asyncio.wait_for(waiting, 20)
    edge.close()
    assert connection.messages[0]["status"] == 200
    assert json.loads(connection.body) == {"__error__": {"error": "HTTPException", "message": "404: Run not found"}}


async def test_a_run_waits_for_its_time(client: httpx.AsyncClient):
    thread = await new_thread(client)
    run, _ = await held_run(client, thread, after_seconds=3600)
    events = (await client.get(f"/threads/{thread}/runs/{run}/events")).json()
    assert events[0]["content"]["due_at"] is not None
    assert (await client.get(f"/threads/{thread}/runs/{run}")).json()["status"] == "pending"


async def test_what_a_request_causes_can_be_traced_to_it(client: httpx.AsyncClient):
    thread = await new_thread(client)
    answer = await client.post(f"/threads/{thread}/runs", json=body(), headers={"X-Request-Id": "req-7"})
    assert answer.headers["x-request-id"] == "req-7"
    events = (await client.get(f"{answer.headers['content-location']}/events", params={"types": "run.created"})).json()
    assert events[0]["metadata"] == {"actor": "api", "correlation_id": "req-7"}


async def test_nothing_stays_open_when_streams_have_ended(client: httpx.AsyncClient, store: Any):
    joins = client._transport.app.state.edge.joins
    thread = await new_thread(client)
    run = await ended_run(client, thread)
    await client.get(f"/threads/{thread}/runs/{run}/stream")
    await client.get(f"/threads/{thread}/runs/{run}/stream", params={"stop": "204"}, headers={"Last-Event-ID": "99"})
    await client.get(f"/threads/{thread}/runs/{NOBODY}/stream")
    await client.get(f"/threads/{thread}/runs/{NOBODY}/join")
    await client.post(f"/threads/{NOBODY}/runs/stream", json=body())
    await client.post(f"/threads/{NOBODY}/runs/wait", json=body())
    assert joins.open == 0
    assert store.streams._hub._channels == {}


async def test_nothing_stays_open_when_a_client_is_gone_before_the_first_byte(client: httpx.AsyncClient, store: Any):
    thread = await new_thread(client)
    run, _ = await held_run(client, thread)
    edge = client._transport.app.state.edge
    delivery = Delivery(edge, Caller(None, Provenance(actor="api")))
    response = await delivery.joined_stream(run, thread, None, modes=None, cancels=False, stop=False, base="")
    connection = Connection()
    connection.broken = True
    await connection.start(response)
    assert edge.joins.open == 0
    assert store.streams._hub._channels == {}


@pytest.mark.parametrize(("stopping", "cancelled"), [(False, ["r"]), (True, [])])
async def test_a_server_that_stops_takes_no_client_for_one_that_left(stopping: bool, cancelled: list[str]):
    asked: list[str] = []

    async def cancel(command: Any) -> None:
        asked.append(command.run_id)

    streams = SimpleNamespace(closing=stopping)
    edge: Any = SimpleNamespace(store=SimpleNamespace(service=SimpleNamespace(cancel=cancel), streams=streams))
    await Delivery(edge, Caller(None, Provenance(actor="api")))._canceller("t", "r")()
    assert asked == cancelled
