"""The unmodified Python SDK against the server: the demo agent, and both graphs of the recorded reference server."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from langgraph_sdk import get_client
from langgraph_sdk.client import LangGraphClient
from langgraph_sdk.errors import ConflictError, NotFoundError

from runs_es.log import retention
from tests.acceptance.server import Server
from tests.conftest import SCHEMA

GRAPHS = Path(__file__).parent.parent / "execution" / "wire_graphs" / "graph.py"
HELLO = {"messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("project") / "langgraph.json"
    demo = "runs_es.execution.langgraph.demo:graph"
    path.write_text(json.dumps({"graphs": {"agent": f"{GRAPHS}:agent", "nested": f"{GRAPHS}:nested", "demo": demo}}))
    return path


@pytest.fixture(scope="module")
def server(module_database_url: str, config: Path) -> Iterator[Server]:
    with Server(module_database_url, config=config) as server:
        yield server


@pytest.fixture
async def client(server: Server) -> AsyncIterator[LangGraphClient]:
    async with get_client(url=server.url) as client:
        yield client


async def parts(stream: Any) -> list[tuple[str, Any]]:
    return [(part.event, part.data) async for part in stream]


def names(events: list[tuple[str, Any]]) -> list[str]:
    return [event for event, _ in events]


GRAPH_INPUTS = [
    ("agent", {**HELLO, "n_tokens": 3}),
    ("nested", {**HELLO, "n_tokens": 3}),
    ("demo", {**HELLO, "tokens": 3}),
]


@pytest.mark.parametrize(("graph", "given"), GRAPH_INPUTS)
@pytest.mark.parametrize("mode", ["values", "updates", "messages-tuple", "messages", "custom"])
async def test_each_stream_mode_begins_with_metadata_and_ends_with_end(
    client: LangGraphClient, graph: str, given: dict[str, Any], mode: Any
) -> None:
    thread = await client.threads.create()
    events = await parts(
        client.runs.stream(thread["thread_id"], graph, input=given, stream_mode=mode, stream_subgraphs=True)
    )
    assert names(events)[0] == "metadata"
    assert names(events)[-1] == "end"
    shown = "messages" if mode == "messages-tuple" else mode
    kinds = {name.partition("|")[0].partition("/")[0] for name in names(events)[1:-1]}
    assert kinds == {shown}


async def test_subgraph_frames_carry_their_namespace(client: LangGraphClient) -> None:
    thread = await client.threads.create()
    modes: Any = ["values", "updates", "messages-tuple", "custom"]
    stream = client.runs.stream(
        thread["thread_id"], "nested", input={**HELLO, "n_tokens": 2}, stream_mode=modes, stream_subgraphs=True
    )
    seen = names(await parts(stream))
    for kind in ("values", "updates", "messages", "custom"):
        assert any(name.startswith(f"{kind}|child:") for name in seen), (kind, seen)


@pytest.mark.parametrize(("graph", "given"), GRAPH_INPUTS)
async def test_wait_gives_the_final_values_which_state_and_history_show_too(
    client: LangGraphClient, graph: str, given: dict[str, Any]
) -> None:
    thread = await client.threads.create(metadata={"made_by": "a test"})
    thread_id = thread["thread_id"]
    values: Any = await client.runs.wait(thread_id, graph, input=given)
    assert [message["type"] for message in values["messages"]][:2] == ["human", "ai"]
    state = await client.threads.get_state(thread_id)
    assert state["values"]["messages"] == values["messages"]
    assert state["next"] == []
    history = await client.threads.get_history(thread_id, limit=3)
    assert history[0]["checkpoint"] == state["checkpoint"]
    assert len(history) == 3
    found = await client.threads.get(thread_id)
    assert found["status"] == "idle"
    assert found["values"]["messages"] == values["messages"]
    assert found["metadata"]["made_by"] == "a test"
    assert found["metadata"]["graph_id"] == graph


@pytest.mark.parametrize(("graph", "given"), GRAPH_INPUTS)
async def test_a_background_run_can_be_joined_listed_and_read(
    client: LangGraphClient, graph: str, given: dict[str, Any]
) -> None:
    thread_id = (await client.threads.create())["thread_id"]
    first = await client.runs.create(thread_id, graph, input=given, stream_mode=["updates"])
    assert first["status"] == "pending"
    second = await client.runs.create(thread_id, graph, input=given, stream_mode=["updates"])
    listed = await client.runs.list(thread_id)
    assert [run["run_id"] for run in listed] == [second["run_id"], first["run_id"]]
    joined = await parts(client.runs.join_stream(thread_id, first["run_id"]))
    assert names(joined)[0] == "metadata"
    assert names(joined)[-1] == "end"
    assert (await client.runs.get(thread_id, first["run_id"]))["status"] == "success"
    await client.runs.join(thread_id, second["run_id"])
    assert {run["status"] for run in await client.runs.list(thread_id)} == {"success"}
    again = await parts(client.runs.join_stream(thread_id, first["run_id"], last_event_id="-1"))
    assert again == joined


async def test_a_pause_for_a_human_is_resumed(client: LangGraphClient) -> None:
    thread_id = (await client.threads.create())["thread_id"]
    paused: Any = await client.runs.wait(thread_id, "agent", input={**HELLO, "n_tokens": 1, "ask": True})
    (question,) = paused["__interrupt__"]
    assert question["value"] == {"question": "continue?"}
    thread = await client.threads.get(thread_id)
    assert thread["status"] == "interrupted"
    assert [each[0]["value"] for each in thread["interrupts"].values()] == [{"question": "continue?"}]
    (run,) = await client.runs.list(thread_id)
    assert run["status"] == "success"
    resumed: Any = await client.runs.wait(thread_id, "agent", command={"resume": "yes"})
    assert resumed["answer"] == "yes"
    assert (await client.threads.get(thread_id))["status"] == "idle"


async def test_a_failing_graph_says_so_in_the_stream_the_run_and_the_thread(client: LangGraphClient) -> None:
    thread_id = (await client.threads.create())["thread_id"]
    events = await parts(client.runs.stream(thread_id, "agent", input={**HELLO, "fail": True}, stream_mode="updates"))
    assert ("error", {"error": "ValueError", "message": "boom from model"}) in events
    (run,) = await client.runs.list(thread_id)
    assert run["status"] == "error"
    thread: Any = await client.threads.get(thread_id)
    assert (thread["status"], thread["error"]["message"]) == ("error", "boom from model")
    with pytest.raises(Exception, match="boom from model"):
        await client.runs.wait(thread_id, "agent", input={**HELLO, "fail": True})


async def test_a_running_run_is_cancelled_and_history_says_by_whom(client: LangGraphClient, server: Server) -> None:
    thread_id = (await client.threads.create())["thread_id"]
    run = await client.runs.create(thread_id, "agent", input={**HELLO, "n_tokens": 3000, "delay": 0.01})
    async for part in client.runs.join_stream(thread_id, run["run_id"]):
        if part.event == "values":
            break
    await client.runs.cancel(thread_id, run["run_id"], wait=True)
    assert (await client.runs.get(thread_id, run["run_id"]))["status"] == "interrupted"
    with pytest.raises(NotFoundError):
        await client.runs.cancel(thread_id, run["run_id"])
    joined = await parts(client.runs.join_stream(thread_id, run["run_id"], last_event_id="-1"))
    assert names(joined)[-1] == "end"


async def test_reject_is_a_conflict_while_the_thread_is_busy(client: LangGraphClient) -> None:
    thread_id = (await client.threads.create())["thread_id"]
    busy = await client.runs.create(thread_id, "agent", input={**HELLO, "n_tokens": 500, "delay": 0.01})
    with pytest.raises(ConflictError):
        await client.runs.create(thread_id, "agent", input=HELLO, multitask_strategy="reject")
    await client.runs.cancel(thread_id, busy["run_id"], wait=True)


async def test_stateless_runs_stream_wait_and_leave_no_thread(client: LangGraphClient) -> None:
    created: list[Any] = []
    events = await parts(
        client.runs.stream(
            None, "agent", input={**HELLO, "n_tokens": 2}, stream_mode="updates", on_run_created=created.append
        )
    )
    assert names(events)[-1] == "end"
    values: Any = await client.runs.wait(None, "agent", input={**HELLO, "n_tokens": 2})
    assert values["steps"] == ["plan", "model", "gate"]
    assert created[0]["run_id"]


async def test_threads_are_found_by_metadata_and_deleted(client: LangGraphClient) -> None:
    thread_id = (await client.threads.create(metadata={"topic": "search me"}))["thread_id"]
    found = await client.threads.search(metadata={"topic": "search me"})
    assert [thread["thread_id"] for thread in found] == [thread_id]
    await client.threads.delete(thread_id)
    with pytest.raises(NotFoundError):
        await client.threads.get(thread_id)
    assert await client.threads.search(metadata={"topic": "search me"}) == []


async def test_assistants_are_the_registered_graphs(client: LangGraphClient) -> None:
    assistants = await client.assistants.search()
    assert {assistant["graph_id"] for assistant in assistants} == {"agent", "nested", "demo"}
    one = await client.assistants.get(assistants[0]["assistant_id"])
    assert one["graph_id"] == assistants[0]["graph_id"]


async def test_a_thread_whose_input_its_graph_refuses_can_still_be_read_and_found(client: LangGraphClient) -> None:
    thread_id = (await client.threads.create(metadata={"topic": "alien"}))["thread_id"]
    alien = {"messages": [{"role": "alien", "content": "x"}]}
    answer = await client.runs.wait(thread_id, "agent", input=alien, raise_error=False)
    assert "alien" in str(answer)
    assert (await client.threads.get(thread_id))["status"] == "error"
    await client.threads.get_state(thread_id)
    found = await client.threads.search(metadata={"topic": "alien"})
    assert [thread["thread_id"] for thread in found] == [thread_id]


async def test_a_run_whose_frames_retention_has_deleted_still_has_its_own_result(
    client: LangGraphClient, module_database_url: str
) -> None:
    thread_id = (await client.threads.create())["thread_id"]
    runs = []
    for tokens in (2, 3):
        run = await client.runs.create(thread_id, "demo", input={**HELLO, "tokens": tokens}, stream_mode=["values"])
        runs.append((run["run_id"], await client.runs.join(thread_id, run["run_id"])))
    with retention.connect(module_database_url, SCHEMA) as connection:
        assert retention.delete_pages(connection, thread_id=thread_id).runs == 2
    for (run_id, result), messages in zip(runs, (2, 4), strict=True):
        assert len(result["messages"]) == messages
        assert await client.runs.join(thread_id, run_id) == result
