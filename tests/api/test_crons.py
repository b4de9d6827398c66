"""Crons over HTTP: whose they are, and what is taken of a request."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from runs_es.settings import Settings
from runs_projections.wiring import Store
from tests.api.conftest import client_of, new_thread

ADA, BOB = {"X-User": "ada"}, {"X-User": "bob"}
CRON: dict[str, Any] = {"assistant_id": "scripted", "schedule": "@daily"}


@pytest.fixture
async def users(store: Store, store_settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(store, store_settings.model_copy(update={"user_header": "X-User"})) as client:
        yield client


async def made(client: httpx.AsyncClient, headers: dict[str, str] | None = None, **fields: Any) -> dict[str, Any]:
    answer = await client.post("/runs/crons", json={**CRON, **fields}, headers=headers)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


async def test_a_cron_of_another_user_reads_as_absent_everywhere(users: httpx.AsyncClient) -> None:
    cron = await made(users, ADA)
    assert cron["user_id"] == "ada"
    where = f"/runs/crons/{cron['cron_id']}"
    for method in ("GET", "PATCH", "DELETE"):
        answer = await users.request(method, where, json={"enabled": False} if method == "PATCH" else None, headers=BOB)
        assert (answer.status_code, answer.json()) == (404, {"detail": f"Cron with ID {cron['cron_id']} not found"})
    assert (await users.get(where, headers=ADA)).json() == cron
    for headers, count in ((ADA, 1), (BOB, 0)):
        assert (await users.post("/runs/crons/count", json={}, headers=headers)).json() == count
        assert len((await users.post("/runs/crons/search", json={}, headers=headers)).json()) == count
    thread = (await users.post("/threads", json={}, headers=ADA)).json()["thread_id"]
    answer = await users.post(f"/threads/{thread}/runs/crons", json=CRON, headers=BOB)
    assert answer.status_code == 404
    assert (await users.delete(where, headers=ADA)).status_code == 204


async def test_a_client_reads_its_own_writes_of_crons_at_once(client: httpx.AsyncClient) -> None:
    for number in range(5):
        cron = await made(client, metadata={"own": number})
        where = f"/runs/crons/{cron['cron_id']}"
        found = await client.post("/runs/crons/search", json={"metadata": {"own": number}})
        assert found.json() == [cron]
        assert "x-runs-stale" not in found.headers
        patched = await client.patch(where, json={"enabled": False})
        assert (patched.json()["enabled"], (await client.get(where)).json()) == (False, patched.json())
        await client.delete(where)
        assert (await client.get(where)).status_code == 404
        assert (await client.post("/runs/crons/count", json={"metadata": {"own": number}})).json() == 0


async def test_fields_of_single_runs_and_unknown_ones_are_ignored_and_nothing_changes_nothing(
    client: httpx.AsyncClient,
) -> None:
    cron = await made(client, command={"resume": 1}, after_seconds=5, colour="red", input={"a": None})
    assert cron["payload"] == {"assistant_id": "scripted", "input": {"a": None}}
    answer = await client.patch(f"/runs/crons/{cron['cron_id']}", json={"assistant_id": "other", "colour": "blue"})
    assert answer.json() == cron


async def test_an_end_without_an_offset_is_utc_and_null_takes_it_away(client: httpx.AsyncClient) -> None:
    cron = await made(client, end_time="2999-01-01T12:00:00")
    assert cron["end_time"] == "2999-01-01T12:00:00+00:00"
    where = f"/runs/crons/{cron['cron_id']}"
    moved = await client.patch(where, json={"end_time": "2999-01-01T12:00:00+02:00", "schedule": None})
    assert (moved.json()["end_time"], moved.json()["schedule"]) == ("2999-01-01T10:00:00+00:00", "@daily")
    assert (await client.patch(where, json={"end_time": None})).json()["end_time"] is None


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ({"schedule": "@daily"}, "assistant_id: "),
        ({"assistant_id": "scripted"}, "schedule: "),
        ({**CRON, "schedule": 5}, "schedule: "),
        ({**CRON, "schedule": "* * * * * *"}, "RUNS_ES_CRON_MIN_SECONDS"),
        ({**CRON, "end_time": "tomorrow"}, "end_time: "),
        ({**CRON, "end_time": "9999-12-31T23:59:59-12:00"}, "end_time: lies outside of the calendar"),
        ({**CRON, "config": {"recursion_limit": 0}}, "config.recursion_limit: "),
        ({**CRON, "interrupt_before": 7}, "interrupt_before: "),
        ({**CRON, "webhook": "http://127.0.0.1/"}, "webhook: "),
    ],
)
async def test_what_makes_no_cron_is_refused_by_the_name_of_the_field(
    client: httpx.AsyncClient, body: dict[str, Any], problem: str
) -> None:
    answer = await client.post("/runs/crons", json=body)
    assert answer.status_code == 422
    assert problem in answer.json()["detail"]


async def test_an_id_that_is_none_is_refused_and_one_that_is_unknown_is_absent(client: httpx.AsyncClient) -> None:
    assert (await client.get("/runs/crons/yesterday")).json() == {"detail": "Invalid cron ID: must be a UUID"}
    assert (await client.get("/runs/crons/4c84a93e-e3bb-4bee-8a34-654ef0152289")).status_code == 404


async def test_context_and_configurable_together_are_refused_as_for_a_run(client: httpx.AsyncClient) -> None:
    thread = await new_thread(client)
    body = {**CRON, "context": {"a": 1}, "config": {"configurable": {"b": 2}}}
    assert (await client.post(f"/threads/{thread}/runs/crons", json=body)).status_code == 400


async def test_the_crons_of_a_thread_go_with_it_and_do_not_come_back_with_its_id(client: httpx.AsyncClient) -> None:
    thread, other = await new_thread(client), await new_thread(client)
    for place, enabled in ((thread, True), (thread, False), (other, True)):
        answer = await client.post(f"/threads/{place}/runs/crons", json={**CRON, "enabled": enabled})
        assert answer.status_code == 200
    assert (await client.delete(f"/threads/{thread}")).status_code == 204
    assert (await client.post("/threads", json={"thread_id": thread})).status_code == 200
    counts = [(await client.post("/runs/crons/count", json={"thread_id": each})).json() for each in (thread, other)]
    assert counts == [0, 1]
