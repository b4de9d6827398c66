"""Webhooks over HTTP: what is accepted, what is kept, and where to look."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from runs_es.settings import Settings
from runs_projections.wiring import Store
from tests.api.conftest import client_of, new_thread
from tests.webhooks.conftest import settled
from tests.webhooks.receiver import Receiver


@pytest.fixture(scope="module")
def store_settings(store_settings: Settings) -> Settings:
    changes = {"webhook_allowed_networks": ["127.0.0.0/8"], "webhook_attempts": 1, "webhook_timeout_seconds": 5}
    return Settings.model_validate({**store_settings.model_dump(), **changes})


@pytest.fixture
async def stranger(store: Store, store_settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """A client whose proxy says who it is."""
    async with client_of(store, store_settings.model_copy(update={"user_header": "x-user"})) as client:
        yield client


ROUTES = [
    "/threads/{t}/runs",
    "/threads/{t}/runs/stream",
    "/threads/{t}/runs/wait",
    "/runs",
    "/runs/stream",
    "/runs/wait",
]


@pytest.mark.parametrize("route", ROUTES)
async def test_every_way_to_create_a_run_takes_a_webhook(store: Store, client: httpx.AsyncClient, route: str) -> None:
    with Receiver() as receiver:
        place = route.format(t=await new_thread(client))
        body = {"assistant_id": "a", "input": {"frames": [["values", {"n": 1}]]}, "webhook": receiver.url()}
        answer = await client.post(place, json=body)
        assert answer.status_code == 200, answer.text
        receiver.wait_for(lambda it: len(it.acknowledged) == 1)
        (request,) = receiver.requests
        assert request.json["status"] == "success"
        assert request.json["values"] == {"n": 1}
        assert request.json["run_id"] in answer.headers["content-location"]


@pytest.mark.parametrize("route", ROUTES)
async def test_a_webhook_to_an_address_that_is_not_public_is_refused_and_no_run_is_made(
    store: Store, client: httpx.AsyncClient, route: str
) -> None:
    thread_id = await new_thread(client)
    body = {"assistant_id": "a", "webhook": "http://169.254.169.254/latest/meta-data"}
    answer = await client.post(route.format(t=thread_id), json=body)
    assert answer.status_code == 422
    assert answer.json()["detail"] == (
        "webhook: 169.254.169.254 is a link-local address, and webhooks go to public addresses only;"
        " RUNS_ES_WEBHOOK_ALLOWED_NETWORKS allows others"
    )
    assert (await client.get(f"/threads/{thread_id}/runs")).json() == []


async def test_a_run_says_how_its_webhook_stands(store: Store, client: httpx.AsyncClient) -> None:
    thread_id = await new_thread(client)
    with Receiver(lambda *_: 500) as receiver:
        body: dict[str, Any] = {"assistant_id": "a", "webhook": receiver.url(), "after_seconds": 3600}
        run = (await client.post(f"/threads/{thread_id}/runs", json=body)).json()
        assert run["kwargs"]["webhook"] == receiver.url()
        place = f"/threads/{thread_id}/runs/{run['run_id']}"
        expected = {
            "thread_id": thread_id,
            "run_id": run["run_id"],
            "delivery_id": f"msg_{run['run_id']}",
            "url": receiver.url(),
            "state": "waiting",
            "attempts": 0,
            "last_status": None,
            "last_error": None,
            "last_attempt_at": None,
            "next_attempt_at": None,
            "delivered_at": None,
        }
        assert (await client.get(f"{place}/webhook")).json() == expected
        assert (await client.post(f"{place}/cancel")).status_code == 202
        settled(store, thread_id, run["run_id"], "failed")
        found = (await client.get(f"{place}/webhook")).json()
    at = found.pop("last_attempt_at")
    assert at.endswith("+00:00")
    failed = {"state": "failed", "attempts": 1, "last_status": 500, "last_error": "the receiver answered 500"}
    assert found == {name: value for name, value in (expected | failed).items() if name != "last_attempt_at"}
    metrics = (await client.get("/metrics")).text
    assert 'runs_es_webhooks{state="failed"} 1.0' in metrics
    assert 'runs_es_webhooks{state="pending"} 0.0' in metrics


async def test_there_is_nothing_to_see_of_a_run_without_one_or_of_another_user(
    client: httpx.AsyncClient, stranger: httpx.AsyncClient
) -> None:
    thread_id = await new_thread(client)
    run = (await client.post(f"/threads/{thread_id}/runs", json={"assistant_id": "a"})).json()
    answer = await client.get(f"/threads/{thread_id}/runs/{run['run_id']}/webhook")
    assert (answer.status_code, answer.json()["detail"]) == (
        404,
        f"Run {run['run_id']} was created without a webhook",
    )
    ada, bob = {"x-user": "ada"}, {"x-user": "bob"}
    mine = (await stranger.post("/threads", json={}, headers=ada)).json()["thread_id"]
    body = {"assistant_id": "a", "webhook": "https://hooks.example.org/", "after_seconds": 3600}
    theirs = (await stranger.post(f"/threads/{mine}/runs", json=body, headers=ada)).json()["run_id"]
    assert (await stranger.get(f"/threads/{mine}/runs/{theirs}/webhook", headers=ada)).status_code == 200
    assert (await stranger.get(f"/threads/{mine}/runs/{theirs}/webhook", headers=bob)).status_code == 404
