"""`select` names fields; a name that is none is refused, everywhere."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from langgraph_sdk import schema

from tests.api.conftest import new_thread

THREAD = "00000000-0000-0000-0000-000000000000"


@pytest.mark.parametrize(
    ("method", "path", "request_"),
    [
        ("GET", f"/threads/{THREAD}/runs", {"params": {"select": "AAA"}}),
        ("GET", f"/threads/{THREAD}/runs", {"params": {"select": "run_id,AAA"}}),
        ("GET", "/runs", {"params": {"select": ["status", "AAA"]}}),
        ("POST", "/threads/search", {"json": {"select": ["AAA"]}}),
        ("POST", "/assistants/search", {"json": {"select": ["AAA"]}}),
        ("POST", "/runs/crons/search", {"json": {"select": ["cron_id", "AAA"]}}),
    ],
)
async def test_a_field_that_is_none_is_refused_by_name(
    client: httpx.AsyncClient, method: str, path: str, request_: dict[str, Any]
):
    answer = await client.request(method, path, **request_)
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("select: 'AAA' is no field; there are ")


async def test_every_field_that_the_sdk_knows_may_be_asked_for(client: httpx.AsyncClient):
    thread = await new_thread(client)
    for path, fields in (
        ("/threads/search", schema.ThreadSelectField),
        ("/assistants/search", schema.AssistantSelectField),
        ("/runs/crons/search", schema.CronSelectField),
    ):
        answer = await client.post(path, json={"select": list(fields.__args__)})
        assert answer.status_code == 200, answer.text
    names = ",".join(schema.RunSelectField.__args__)
    assert (await client.get(f"/threads/{thread}/runs", params={"select": names})).status_code == 200


async def test_an_empty_select_shows_everything(client: httpx.AsyncClient):
    thread = await new_thread(client)
    (found,) = (await client.post("/threads/search", json={"ids": [thread], "select": []})).json()
    assert found["thread_id"] == thread
