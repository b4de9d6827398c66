"""Cancelling over HTTP: by rollback, by list, by status."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.api.conftest import ScriptedExecutor, new_thread
from tests.api.test_runs import body, ended_run, held_run

NOBODY = "00000000-0000-4000-8000-000000000000"
NOTHING = "No matching runs to cancel. Please verify the thread ID and run IDs are correct,"


async def test_a_run_that_is_rolled_back_is_absent_and_its_story_is_not(client: httpx.AsyncClient):
    thread = await new_thread(client)
    run, _ = await held_run(client, thread)
    where = f"/threads/{thread}/runs/{run}"
    done = await client.post(f"{where}/cancel", params={"wait": 1, "action": "rollback", "reason": "a mistake"})
    assert (done.status_code, done.json()) == (200, {})
    assert done.headers["location"] == f"{where}/join"
    for path in (where, f"{where}/stream", f"{where}/join"):
        assert (await client.get(path)).status_code == 404
    assert (await client.get(f"/threads/{thread}/runs")).json() == []
    assert (await client.get(f"/threads/{thread}")).json()["status"] == "idle"
    again = await client.post(f"{where}/cancel", params={"action": "rollback"})
    assert (again.status_code, again.json()["detail"][: len(NOTHING)]) == (404, NOTHING)
    events = (await client.get(f"/threads/{thread}/events", params={"types": "lifecycle"})).json()
    told = [(event["event_type"], event["metadata"].get("reason")) for event in events if event["run_id"] == run]
    assert ("run.cancel_requested", "a mistake") in told
    assert told[-1][0] == "run.deleted"


async def test_runs_of_a_list_are_cancelled_and_those_that_ended_are_passed_over(client: httpx.AsyncClient):
    thread = await new_thread(client)
    ended = await ended_run(client, thread)
    running, _ = await held_run(client, thread)
    pending = (await client.post(f"/threads/{thread}/runs", json=body())).json()["run_id"]
    several = {"thread_id": thread, "run_ids": [ended, running, pending]}
    answer = await client.post("/runs/cancel", json=several, params={"reason": "all of them"})
    assert (answer.status_code, answer.content) == (204, b"")
    await client.get(f"/threads/{thread}/runs/{running}/join")
    statuses = {run["run_id"]: run["status"] for run in (await client.get(f"/threads/{thread}/runs")).json()}
    assert statuses == {ended: "success", running: "interrupted", pending: "interrupted"}
    again = await client.post("/runs/cancel", json=several)
    assert (again.status_code, again.json()["detail"][: len(NOTHING)]) == (404, NOTHING)


async def test_runs_of_a_status_are_cancelled_wherever_they_are(client: httpx.AsyncClient, executor: ScriptedExecutor):
    threads = [await new_thread(client) for _ in range(2)]
    runs = [(await client.post(f"/threads/{each}/runs", json={**body(), "after_seconds": 3600})).json()["run_id"]
            for each in threads]  # fmt: skip
    answer = await client.post("/runs/cancel", json={"status": "pending"}, params={"action": "rollback"})
    assert answer.status_code == 204
    for thread, run in zip(threads, runs, strict=True):
        assert (await client.get(f"/threads/{thread}/runs/{run}")).status_code == 404
    assert (await client.post("/runs/cancel", json={"status": "pending"})).status_code == 404


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"thread_id": NOBODY},
        {"run_ids": [NOBODY]},
        {"thread_id": NOBODY, "run_ids": []},
        {"thread_id": NOBODY, "run_ids": [NOBODY], "status": "all"},
        {"status": "success"},
        {"thread_id": "mine", "run_ids": [NOBODY]},
    ],
)
async def test_a_cancel_of_several_names_a_list_or_a_status(client: httpx.AsyncClient, asked: dict[str, Any]):
    assert (await client.post("/runs/cancel", json=asked)).status_code == 422


async def test_cancelling_runs_of_nowhere_is_404(client: httpx.AsyncClient):
    asked = {"thread_id": NOBODY, "run_ids": [NOBODY]}
    assert (await client.post("/runs/cancel", json=asked)).status_code == 404
    assert (await client.post("/runs/cancel", json=asked, params={"action": "stop"})).status_code == 422


@pytest.mark.parametrize("name", ["timeout_seconds", "idle_timeout_seconds"])
async def test_a_run_that_takes_too_long_ends_with_an_error_that_says_so(client: httpx.AsyncClient, name: str):
    thread = await new_thread(client)
    asked = {"assistant_id": "scripted", "input": {"hold": f"{name} {thread}"}, "config": {name: 0.1}}
    answer = await client.post(f"/threads/{thread}/runs/wait", json=asked)
    error = answer.json()["__error__"]
    assert error["error"] == "TimeoutError"
    assert name in error["message"]
    (run,) = (await client.get(f"/threads/{thread}/runs")).json()
    assert run["status"] == "timeout"
    refused = await client.post(f"/threads/{thread}/runs", json={**asked, "config": {name: 0}})
    assert (refused.status_code, refused.json()["detail"][:7]) == (422, "config.")
