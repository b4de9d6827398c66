"""Messages that are no longer in the thread's state leave its list and stay in its log; with real graphs."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from runs_es.settings import Settings
from runs_projections import rebuild
from runs_projections.wiring import Store, open_store
from tests.api.conftest import client_of, new_thread

GRAPH = Path(__file__).parent / "forgetful_graph.py"


@pytest.fixture
def graphs(store_settings: Settings, tmp_path: Path) -> Iterator[Store]:
    config = tmp_path / "langgraph.json"
    config.write_text(json.dumps({"graphs": {"forgetful": f"{GRAPH}:graph"}}))
    with open_store(store_settings, config=config) as opened:
        yield opened


@pytest.fixture
async def client(graphs: Store, store_settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(graphs, store_settings) as client:
        yield client


async def say(client: httpx.AsyncClient, thread: str, name: str, text: str, **more: Any) -> str:
    """The run in which a human said so."""
    body = {
        "assistant_id": "forgetful",
        "input": {"messages": [{"id": name, "type": "human", "content": text}]},
        **more,
    }
    answer = await client.post(f"/threads/{thread}/runs/wait", json=body)
    assert answer.status_code == 200, answer.text
    return str(answer.headers["content-location"].rpartition("/")[2])


async def listed(client: httpx.AsyncClient, place: str, **params: Any) -> list[str]:
    answer = await client.get(f"{place}/messages", params=params)
    assert answer.status_code == 200, answer.text
    return [message["content"]["id"] for message in answer.json()]


async def head(client: httpx.AsyncClient, thread: str) -> int:
    return int((await client.get(f"/threads/{thread}/events", params={"limit": 1})).json()[-1]["seq"])


async def checkpoint(client: httpx.AsyncClient, thread: str) -> str:
    return str((await client.get(f"/threads/{thread}/state")).json()["checkpoint"]["checkpoint_id"])


async def test_a_turn_done_anew_from_an_earlier_checkpoint_replaces_the_old_one(
    client: httpx.AsyncClient, store_settings: Settings
) -> None:
    thread = await new_thread(client)
    place = f"/threads/{thread}"
    await say(client, thread, "q1", "one")
    start = await checkpoint(client, thread)
    second = await say(client, thread, "q2", "two")
    assert await listed(client, place) == ["q1", "answer-q1", "q2", "answer-q2"]
    before = await head(client, thread)

    third = await say(client, thread, "q3", "two, better", checkpoint_id=start)

    assert await listed(client, place) == ["q1", "answer-q1", "q3", "answer-q3"]
    assert await listed(client, f"{place}/runs/{second}") == []
    for params in ({"types": "human"}, {"types": "human", "after_seq": 0}, {"types": "human", "visibility": "shown"}):
        assert await listed(client, place, **params) == ["q1", "q3"]
    assert await listed(client, place, as_of=before) == ["q1", "answer-q1", "q2", "answer-q2"]
    assert await listed(client, place, as_of=await head(client, thread)) == ["q1", "answer-q1", "q3", "answer-q3"]

    facts = (await client.get(f"{place}/events", params={"types": "message.removed"})).json()
    assert [(fact["content"]["message_id"], fact["run_id"]) for fact in facts] == [("q2", third), ("answer-q2", third)]
    assert {fact["content"]["reason"] for fact in facts} == {"not in the state that the run left"}
    versions = (await client.get(f"{place}/messages/answer-q2/versions")).json()
    assert [version["content"]["content"] for version in versions] == ["you said: two"]
    diff = (await client.get(f"{place}/runs/{second}/diff", params={"with": third})).json()
    assert [change["message_id"] for change in diff["messages"]] == ["q3", "answer-q3"]
    assert rebuild(store_settings.database_url, ["messages"], verify=True).differences == ()

    # Deleting the run that did it anew brings back what it had replaced.
    assert (await client.delete(f"{place}/runs/{third}")).status_code == 204
    assert await listed(client, place) == ["q1", "answer-q1", "q2", "answer-q2"]


async def test_a_message_that_the_graph_takes_out_of_its_state_stays_in_its_users_history(
    client: httpx.AsyncClient,
) -> None:
    thread = await new_thread(client)
    place = f"/threads/{thread}"
    await say(client, thread, "q1", "one")
    await say(client, thread, "q2", "forget q1")
    state = (await client.get(f"{place}/state")).json()["values"]["messages"]
    assert "q1" not in [message["id"] for message in state]
    assert await listed(client, place) == ["q1", "answer-q1", "q2"]
    assert (await client.get(f"{place}/events", params={"types": "message.removed"})).json() == []
