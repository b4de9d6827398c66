"""States, messages and frames over the limit of a frame: the run goes on, and what stands in for them says so."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from runs_es.domain import LimitExceeded, Run
from runs_es.execution.langgraph.large_frames import shortened, shortened_state
from runs_es.execution.omissions import short_message
from runs_es.settings import Settings
from runs_es.webhooks.payload import ended_run
from runs_es.webhooks.state_left import open_state_left
from runs_projections.wiring import Store, open_store
from tests.api.conftest import client_of, events_of, new_thread

IMAGE = 40_000
LIMIT = 100_000
GRAPH = """
from typing import Annotated, Any
from typing_extensions import TypedDict
from langchain_core.messages import AIMessage, ToolMessage
from langgraph.config import get_stream_writer
from langgraph.graph import START, StateGraph
from langgraph.graph.message import add_messages

class State(TypedDict, total=False):
    messages: Annotated[list, add_messages]
    count: int
    blob: str
    large: int

def step(state: State) -> dict[str, Any]:
    get_stream_writer()("x" * state.get("count", 0))
    said = AIMessage(f"seen {len(state['messages'])}", id=f"a{len(state['messages'])}")
    large = [ToolMessage("y" * state["large"], tool_call_id="c", id="large")] if "large" in state else []
    return {"messages": [said, *large], "blob": "b" * state.get("count", 0)}

builder = StateGraph(State)
builder.add_node("step", step)
builder.add_edge(START, "step")
graph = builder.compile()
"""


def image(size: int = IMAGE) -> dict[str, Any]:
    url = f"data:image/png;base64,{'A' * size}"
    return {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}


@pytest.fixture
def store(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "large.py").write_text(GRAPH)
    (tmp_path / "langgraph.json").write_text('{"graphs": {"agent": "./large.py:graph"}}')
    small = settings.model_copy(update={"drain_seconds": 0, "max_frame_bytes": LIMIT})
    with open_store(small, config=tmp_path / "langgraph.json") as opened:
        yield opened


@pytest.fixture
async def client(store: Store) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(store, store.settings) as client:
        yield client


async def streamed(client: httpx.AsyncClient, thread: str, modes: list[str], **given: Any) -> list[tuple[str, Any]]:
    body = {"assistant_id": "agent", "input": given, "stream_mode": modes}
    answer = await client.post(f"/threads/{thread}/runs/stream", json=body)
    assert answer.status_code == 200, answer.text
    events = [(each["event"], orjson.loads(each["data"])) for each in events_of(answer.text)]
    assert not [data for event, data in events if event == "error"]
    return events


async def test_a_thread_whose_state_outgrows_a_frame_goes_on(client: httpx.AsyncClient) -> None:
    thread = await new_thread(client)
    for number in range(3):
        events = await streamed(client, thread, ["values"], messages=[image()])
        shown = [data for event, data in events if event == "values"][-1]
        assert ("__omitted__" in shown) == (number == 2)
    said = shown["__omitted__"]
    assert said["bytes"] > LIMIT == said["limit"]
    assert (said["setting"], said["thread_id"]) == ("RUNS_ES_MAX_FRAME_BYTES", thread)
    assert said["read"] == f"/threads/{thread}/state"
    ((left_out, size),) = said["messages"].items()
    assert size > IMAGE
    assert [message["type"] for message in shown["messages"]] == ["human", "ai"] * 3
    short = next(message for message in shown["messages"] if message["id"] == left_out)
    assert short["content"] == f"[{size} bytes omitted]"
    state = (await client.get(said["read"])).json()["values"]
    assert [len(orjson.dumps(message)) > IMAGE for message in state["messages"]] == [True, False] * 3
    waited = await client.post(
        f"/threads/{thread}/runs/wait", json={"assistant_id": "agent", "input": {"messages": [image(10)]}}
    )
    assert [len(orjson.dumps(message)) > IMAGE for message in waited.json()["messages"][:6]] == [True, False] * 3
    listed = (await client.get(f"/threads/{thread}/messages")).json()
    assert [len(orjson.dumps(each["content"])) > IMAGE for each in listed[:6]] == [True, False] * 3


async def test_a_webhook_has_the_whole_state_when_the_last_frame_was_too_large(
    client: httpx.AsyncClient, store: Store
) -> None:
    thread = await new_thread(client)
    await streamed(client, thread, ["values"], messages=[image(10)], count=2 * LIMIT)
    (run,) = (await client.get(f"/threads/{thread}/runs")).json()
    ended = await asyncio.to_thread(ended_run, store.log.reader, thread, run["run_id"])
    assert ended is not None
    assert ended.values is None, "not what stands in for them: the deliverer then asks for the state"
    assert store.registry is not None
    async with open_state_left(store.registry, store.database.url, store.settings.db_schema) as state_left:
        assert len((await state_left(ended.run))["blob"]) == 2 * LIMIT


async def test_a_message_that_is_too_large_itself_is_listed_short_and_recorded_once(client: httpx.AsyncClient) -> None:
    thread = await new_thread(client)
    for _ in range(2):
        await streamed(client, thread, ["values", "updates"], messages=[image(10)], large=2 * LIMIT)
    versions = (await client.get(f"/threads/{thread}/messages/large/versions")).json()
    assert len(versions) == 1
    assert versions[0]["content"]["content"].endswith(" bytes omitted]")
    state = (await client.get(f"/threads/{thread}/state")).json()["values"]
    assert max(len(orjson.dumps(message)) for message in state["messages"]) > 2 * LIMIT
    refused = {"assistant_id": "agent", "input": {"messages": [image(2 * LIMIT)]}}
    answer = await client.post(f"/threads/{thread}/runs", json=refused)
    assert (answer.status_code, "RUNS_ES_MAX_FRAME_BYTES" in answer.text) == (413, True), "an input over the limit"


async def test_frames_of_every_mode_are_replaced_and_other_channels_left_out(client: httpx.AsyncClient) -> None:
    thread = await new_thread(client)
    modes = ["values", "updates", "custom", "messages-tuple"]
    events = await streamed(client, thread, modes, messages=[image(10)], count=2 * LIMIT)
    last = {event: data for event, data in events if data is not None}
    assert last["values"]["__omitted__"]["channels"] == {"blob": 2 * LIMIT + 2}
    assert (last["values"]["count"], len(last["values"]["messages"])) == (2 * LIMIT, 2)
    assert last["updates"]["__omitted__"]["bytes"] > 2 * LIMIT
    assert last["custom"]["__omitted__"]["bytes"] > 2 * LIMIT
    assert last["messages"][0]["type"] == "ai"


RUN = Run.create(run_id="r", thread_id="t", assistant_id="agent")


@pytest.mark.parametrize("event", ["messages", "messages/partial", "messages/complete", "messages|child:1"])
def test_a_large_message_of_a_stream_stays_a_message(event: str) -> None:
    data = orjson.dumps([{"type": "ai", "id": "a", "content": "x" * 5000, "name": None}, {"langgraph_step": 1}])
    replaced = orjson.loads(shortened(event, data, LimitExceeded("too large", 5100, 1024), RUN))
    assert replaced[0]["type"] == "ai"
    assert replaced[0]["id"] == "a"
    assert replaced[0]["content"] == f"[{len(data)} bytes omitted]"
    assert replaced[0]["__omitted__"]["bytes"] == 5100
    assert replaced[1] == {"langgraph_step": 1}


def test_a_replacement_fits_however_many_parts_there_are() -> None:
    messages = [orjson.dumps({"type": "human", "id": str(n), "content": "x" * 50}) for n in range(2000)]
    state = {"messages": [None] * 2000, "n": 1}
    replaced = shortened_state(state, messages, LimitExceeded("too large", sum(map(len, messages)), 1024), RUN)
    assert len(replaced) < 1024
    assert orjson.loads(replaced)["__omitted__"]["limit"] == 1024


def test_a_short_message_keeps_what_pairs_calls_with_results() -> None:
    calls = [{"name": "read", "args": {"text": "x" * 100}, "id": "c1", "type": "tool_call"}]
    short = short_message(
        {"type": "ai", "id": "a", "content": "x" * 100, "tool_calls": calls, "usage_metadata": 1}, 300
    )
    assert short == {
        "content": "[300 bytes omitted]",
        "additional_kwargs": {},
        "response_metadata": {},
        "type": "ai",
        "id": "a",
        "tool_calls": [{"name": "read", "args": {}, "id": "c1", "type": "tool_call"}],
        "__omitted__": {"bytes": 300},
    }
    assert short_message({"type": "tool", "tool_call_id": "c1", "content": "x"}, 9)["tool_call_id"] == "c1"
