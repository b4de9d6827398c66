"""`GET /runs`: runs across threads."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from runs_es.settings import Settings
from runs_projections.wiring import Store
from tests.api.conftest import client_of, new_thread

BODY: dict[str, Any] = {"assistant_id": "scripted", "input": {}}


async def ran(client: httpx.AsyncClient, thread: str | None = None, **fields: Any) -> str:
    thread = thread or await new_thread(client)
    answer = await client.post(f"/threads/{thread}/runs/wait", json={**BODY, **fields})
    return str(answer.headers["content-location"].rpartition("/")[2])


async def found(client: httpx.AsyncClient, **params: Any) -> list[str]:
    answer = await client.get("/runs", params=params)
    assert answer.status_code == 200, answer.text
    assert int(answer.headers["x-runs-position"]) > 0
    return [run["run_id"] for run in answer.json()]


async def test_runs_of_all_threads_are_listed_newest_first_page_by_page(client: httpx.AsyncClient):
    mark = {"metadata": {"batch": "pages"}}
    expected = [await ran(client, **mark) for _ in range(5)][::-1]
    met: list[str] = []
    params: dict[str, Any] = {"limit": 2, "metadata": json.dumps(mark["metadata"])}
    while True:
        answer = await client.get("/runs", params=params)
        met += [run["run_id"] for run in answer.json()]
        more = answer.headers["x-runs-has-more"] == "true"
        assert more == ("x-pagination-next" in answer.headers)
        if not more:
            break
        params["after"] = answer.headers["x-pagination-next"]
        await ran(client, **mark)
    assert met == expected


async def test_filters_narrow_and_select_leaves_out_what_runs_were_given(client: httpx.AsyncClient):
    thread = await new_thread(client)
    good = await ran(client, thread)
    bad = await ran(client, thread, input={"fail": "boom"})
    assert await found(client, thread_id=thread) == [bad, good]
    assert await found(client, thread_id=thread, status="error") == [bad]
    assert await found(client, thread_id=thread, assistant_id="another") == []
    assert await found(client, created_before="1999-01-01T00:00:00Z") == []
    answer = await client.get("/runs", params={"thread_id": thread, "select": "run_id,status"})
    assert answer.json() == [{"run_id": bad, "status": "error"}, {"run_id": good, "status": "success"}]


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"status": "x"}, "status"),
        ({"limit": 0}, "limit"),
        ({"metadata": "[1]"}, "metadata: must be a JSON object"),
        ({"metadata": "{"}, "metadata: must be a JSON object"),
        ({"created_after": "yesterday"}, "created_after must be an ISO 8601 time"),
        ({"created_before": "2026-01-01"}, "created_before must carry an offset"),
        ({"after": "x"}, "after is no cursor"),
        ({"thread_id": "x"}, "Invalid thread ID"),
    ],
)
async def test_what_makes_no_sense_is_refused_by_name(client: httpx.AsyncClient, params: dict[str, Any], words: str):
    answer = await client.get("/runs", params=params)
    assert answer.status_code == 422
    assert words in answer.json()["detail"]


async def test_a_user_finds_only_what_is_their_own(store: Store, store_settings: Settings):
    settings = store_settings.model_copy(update={"user_header": "X-User"})
    async with client_of(store, settings) as client:
        mine: dict[str, str] = {}
        for user in ("ada", "bob"):
            client.headers["X-User"] = user
            mine[user] = await ran(client, metadata={"batch": "users"})
        for user in ("ada", "bob"):
            client.headers["X-User"] = user
            assert await found(client, metadata='{"batch":"users"}') == [mine[user]]
            assert await found(client, user_id=user, metadata='{"batch":"users"}') == [mine[user]]
            assert await found(client, user_id="bob" if user == "ada" else "ada") == []
