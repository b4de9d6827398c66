"""With a header that names the user: each sees their own, and nobody learns of another's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from runs_es.settings import Settings
from runs_projections.wiring import Store
from tests.api.conftest import client_of, new_thread

ADA, BOB = {"X-User": "ada"}, {"X-User": "bob"}
RUN: dict[str, Any] = {"assistant_id": "scripted", "input": {}}


@pytest.fixture
def store_settings_with_users(store_settings: Settings) -> Settings:
    return store_settings.model_copy(update={"user_header": "X-User", "max_joins_per_user": 1})


@pytest.fixture
async def client(store: Store, store_settings_with_users: Settings) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(store, store_settings_with_users) as client:
        yield client


async def as_ada(client: httpx.AsyncClient) -> httpx.AsyncClient:
    client.headers.update(ADA)
    return client


@pytest.mark.parametrize("headers", [{}, {"X-User": ""}, {"X-User": "  "}])
async def test_a_request_that_names_no_user_is_refused(client: httpx.AsyncClient, headers: dict[str, str]):
    for method, place in [("POST", "/threads"), ("POST", "/runs"), ("POST", "/assistants/search")]:
        answer = await client.request(method, place, json=RUN, headers=headers)
        assert answer.status_code == 401
        assert "RUNS_ES_USER_HEADER" in answer.json()["detail"]


async def test_two_names_are_refused_for_one_may_be_the_clients_own(client: httpx.AsyncClient):
    answer = await client.post("/threads", json={}, headers=[("X-User", "ada"), ("X-User", "root")])
    assert answer.status_code == 401


async def test_a_name_that_is_too_long_is_refused_by_the_name_of_its_header(client: httpx.AsyncClient):
    answer = await client.post("/threads", json={}, headers={"X-User": "x" * 256})
    assert (answer.status_code, answer.json()["detail"][:6]) == (422, "X-User")


@pytest.mark.parametrize(
    "odd",
    [
        *map(str.encode, ("bob\u00a0", "\u3000bob", "bob\u0085", "\u2003bob", "bob\u2028", "b\u0085ob", "bob\ufeff")),
        b"\xa0bob",  # as latin-1
        b"bob\x85",
        b"\x1fbob",
    ],
)
async def test_odd_characters_around_a_name_never_make_it_anothers(client: httpx.AsyncClient, odd: bytes):
    bobs = (await client.post("/threads", json={}, headers=BOB)).json()["thread_id"]
    answer = await client.get(f"/threads/{bobs}", headers=[(b"X-User", odd)])
    assert answer.status_code in (401, 404)  # refused, or another user


async def test_space_of_http_around_a_name_is_no_part_of_it(client: httpx.AsyncClient):
    bobs = (await client.post("/threads", json={}, headers=BOB)).json()["thread_id"]
    assert (await client.get(f"/threads/{bobs}", headers={"X-User": " \tbob\t "})).status_code == 200


async def test_the_server_says_that_it_is_up_to_anybody(client: httpx.AsyncClient):
    assert (await client.get("/ok")).json() == {"ok": True, "services": {}}
    assert (await client.get("/info")).status_code == 200


async def test_a_user_may_have_any_name(client: httpx.AsyncClient):
    answer = await client.post("/threads", json={}, headers=[(b"X-User", "zoë".encode())])
    thread = answer.json()["thread_id"]
    events = await client.get(f"/threads/{thread}/events", headers=[(b"X-User", "zoë".encode())])
    assert events.json()[0]["metadata"]["actor"] == "user:zoë"


async def test_what_is_anothers_reads_as_absent_everywhere(client: httpx.AsyncClient):
    await as_ada(client)
    thread = await new_thread(client)
    place = (await client.post(f"/threads/{thread}/runs/wait", json=RUN)).headers["content-location"]
    run = place.rpartition("/")[2]
    absent = [
        ("GET", f"/threads/{thread}"),
        ("PATCH", f"/threads/{thread}"),
        ("GET", f"/threads/{thread}/state"),
        ("GET", f"/threads/{thread}/history"),
        ("GET", f"/threads/{thread}/runs"),
        ("GET", f"/threads/{thread}/events"),
        ("GET", f"/threads/{thread}/messages"),
        ("POST", f"/threads/{thread}/runs"),
        ("POST", f"/threads/{thread}/runs/stream"),
        ("POST", f"/threads/{thread}/runs/wait"),
        ("GET", place),
        ("GET", f"{place}/stream"),
        ("GET", f"{place}/join"),
        ("GET", f"{place}/events"),
        ("GET", f"{place}/messages"),
        ("POST", f"{place}/cancel"),
        ("DELETE", place),
        ("GET", f"/runs/{run}/stream"),
        ("GET", f"/runs/{run}/join"),
        ("DELETE", f"/threads/{thread}"),
    ]
    for method, where in absent:
        answer = await client.request(method, where, json=RUN if method in ("POST", "PATCH") else None, headers=BOB)
        assert answer.status_code == 404, (method, where)
        assert (await client.get(place)).status_code == 200, (method, where)
    assert (await client.post("/threads/search", json={"ids": [thread]}, headers=BOB)).json() == []
    assert (await client.post("/threads/count", json={"ids": [thread]}, headers=BOB)).json() == 0
    assert (await client.post("/threads/count", json={"ids": [thread]})).json() == 1


async def test_anothers_thread_cannot_be_taken_over_by_making_it_again(client: httpx.AsyncClient):
    await as_ada(client)
    thread = await new_thread(client)
    for body in ({"thread_id": thread}, {"thread_id": thread, "if_exists": "do_nothing"}):
        assert (await client.post("/threads", json=body, headers=BOB)).status_code == 409
    answer = await client.post(f"/threads/{thread}/runs", json={**RUN, "if_not_exists": "create"}, headers=BOB)
    assert answer.status_code == 404


async def test_a_stateless_run_belongs_to_who_started_it_also_after_its_thread_has_gone(client: httpx.AsyncClient):
    await as_ada(client)
    where = (await client.post("/runs/stream", json=RUN)).headers["location"]
    assert (await client.get(where)).status_code == 200
    assert (await client.get(where, headers=BOB)).status_code == 404
    in_thread = (await client.post("/runs/wait", json=RUN)).headers["content-location"]
    for path in ("history", "diff", "events", "messages"):
        assert (await client.get(f"{in_thread}/{path}")).status_code == 200
        assert (await client.get(f"{in_thread}/{path}", headers=BOB)).status_code == 404


async def test_the_graph_is_told_who_the_user_is(client: httpx.AsyncClient):
    await as_ada(client)
    asked = {**RUN, "config": {"configurable": {"user_id": "root"}}}
    run = (await client.post("/runs", json=asked)).json()
    assert run["kwargs"]["config"]["configurable"]["user_id"] == "ada"


async def test_a_user_has_a_limit_of_open_streams(client: httpx.AsyncClient):
    await as_ada(client)
    seat = client._transport.app.state.edge.joins.admit("ada")  # type: ignore[attr-defined]
    for place in ("/runs/stream", "/runs/wait"):
        answer = await client.post(place, json=RUN)
        assert answer.status_code == 429
        assert answer.headers["retry-after"] == "1"
        assert (await client.post(place, json=RUN, headers=BOB)).status_code == 200
    seat.release()
    assert (await client.post("/runs/wait", json=RUN)).status_code == 200
