"""Message lists as a product pages them, and the versions of one message."""

from __future__ import annotations

from typing import Any

import httpx

from tests.api.conftest import new_thread


async def said(client: httpx.AsyncClient, messages: list[dict[str, Any]], thread: str | None = None) -> str:
    """Where a run is that recorded these messages."""
    thread = thread or await new_thread(client)
    body = {"assistant_id": "scripted", "input": {"messages": messages}}
    answer = await client.post(f"/threads/{thread}/runs/wait", json=body)
    return str(answer.headers["content-location"])


def message(name: str, content: str = "", **fields: Any) -> dict[str, Any]:
    return {"id": name, "type": "ai", "content": content, **fields}


async def test_paging_either_way_meets_every_message_once(client: httpx.AsyncClient):
    where = await said(client, [message(f"m{n}") for n in range(7)])
    for place in (where, where.partition("/runs")[0]):
        for cursor, start in (("after_seq", 0), ("before_seq", 10**9)):
            met: list[str] = []
            at: str | int | None = start
            while at is not None:
                answer = await client.get(f"{place}/messages", params={cursor: at, "limit": 3})
                page = [each["content"]["id"] for each in answer.json()]
                met = met + page if cursor == "after_seq" else page + met
                at = answer.headers.get("x-pagination-next")
                assert answer.headers["x-runs-has-more"] == ("true" if at is not None else "false")
            assert met == [f"m{n}" for n in range(7)]


async def test_hidden_messages_are_left_out_or_listed_alone(client: httpx.AsyncClient):
    hidden = {"additional_kwargs": {"hide_from_ui": True}}
    where = await said(client, [message(f"m{n}", **(hidden if n % 3 == 0 else {})) for n in range(7)])

    async def listed(**params: Any) -> list[str]:
        return [each["content"]["id"] for each in (await client.get(f"{where}/messages", params=params)).json()]

    assert len(await listed()) == 7
    assert await listed(visibility="shown") == ["m1", "m2", "m4", "m5"]
    assert await listed(visibility="hidden") == ["m0", "m3", "m6"]
    assert await listed(visibility="shown", limit=2, after_seq=0) == ["m1", "m2"]
    assert await listed(visibility="shown", limit=1) == ["m5"]
    assert (await client.get(f"{where}/messages", params={"visibility": "x"})).status_code == 422


async def test_an_edited_message_is_one_entry_and_keeps_its_versions(client: httpx.AsyncClient):
    where = await said(client, [message("m", "first"), message("other", '"message_id":"m"')])
    thread = where.partition("/runs")[0]
    edit = await said(client, [message("m", "second")], thread.rpartition("/")[2])

    listed = (await client.get(f"{thread}/messages")).json()
    assert [each["content"]["content"] for each in listed if each["content"]["id"] == "m"] == ["second"]
    versions = (await client.get(f"{thread}/messages/m/versions")).json()
    assert [(each["content"]["content"], each["run_id"]) for each in versions] == [
        ("first", where.rpartition("/")[2]),
        ("second", edit.rpartition("/")[2]),
    ]
    newest = (await client.get(f"{thread}/messages/m/versions", params={"limit": 1})).json()
    assert [each["content"]["content"] for each in newest] == ["second"]

    await client.delete(edit)
    listed = (await client.get(f"{thread}/messages")).json()
    assert [each["content"]["content"] for each in listed if each["content"]["id"] == "m"] == ["first"]
    assert (await client.get(f"{thread}/messages/m/versions")).json() == versions
    assert (await client.get(f"{thread}/messages/never/versions")).status_code == 404
