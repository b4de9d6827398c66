"""Threads over HTTP, and the state in them."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from runs_es.execution.langgraph.graphs import GraphRegistry
from runs_es.execution.thread_state import empty_state
from runs_es.settings import Settings
from runs_projections.freshness import Listed
from runs_projections.wiring import Store
from tests.api.conftest import client_of, new_thread

NOBODY = "00000000-0000-0000-0000-000000000000"
CHECKPOINT = "1f1e67be-cc50-6882-8003-7245c4d63d63"
BEFORE_ANY_RUN = [
    "thread_id", "created_at", "updated_at", "state_updated_at", "metadata", "status", "config", "values",
]  # fmt: skip


async def run_to_end(client: httpx.AsyncClient, thread: str, **script: Any) -> None:
    answer = await client.post(f"/threads/{thread}/runs/wait", json={"assistant_id": "scripted", "input": script})
    assert answer.status_code == 200


async def test_a_new_thread_is_idle_and_has_no_values(client: httpx.AsyncClient):
    answer = await client.post("/threads", json={"metadata": {"a": 1}})
    thread = answer.json()
    assert list(thread) == BEFORE_ANY_RUN
    assert thread["metadata"] == {"a": 1}
    assert (thread["status"], thread["config"], thread["values"]) == ("idle", {}, None)
    assert thread["state_updated_at"] == thread["created_at"]
    assert (await client.get(f"/threads/{thread['thread_id']}")).json() == thread


async def test_a_thread_can_be_made_without_a_body(client: httpx.AsyncClient):
    assert (await client.post("/threads")).status_code == 200


async def test_a_thread_made_twice_is_a_conflict_unless_that_is_fine(client: httpx.AsyncClient):
    thread = str(uuid.uuid4())
    await new_thread(client, thread_id=thread, metadata={"a": 1})
    again = await client.post("/threads", json={"thread_id": thread})
    assert (again.status_code, again.json()) == (409, {"detail": f"Thread with ID {thread} already exists"})
    fine = await client.post("/threads", json={"thread_id": thread, "if_exists": "do_nothing"})
    assert fine.json()["metadata"] == {"a": 1}


async def test_after_a_run_a_thread_tells_of_it(client: httpx.AsyncClient):
    thread = await new_thread(client)
    await run_to_end(client, thread, fail="boom")
    found = (await client.get(f"/threads/{thread}")).json()
    assert list(found) == [*BEFORE_ANY_RUN, "error", "interrupts"]
    assert found["status"] == "error"
    assert found["error"] == {"error": "ValueError", "message": "boom"}
    assert found["config"] == {"configurable": {}}
    await run_to_end(client, thread, interrupts={"t1": [{"id": "i1", "value": "go on?"}]})
    found = (await client.get(f"/threads/{thread}")).json()
    assert (found["status"], found["interrupts"]) == ("interrupted", {"t1": [{"id": "i1", "value": "go on?"}]})


async def test_metadata_is_merged_and_nothing_is_sent_back_if_so_preferred(client: httpx.AsyncClient):
    thread = await new_thread(client, metadata={"a": 1})
    answer = await client.patch(f"/threads/{thread}", json={"metadata": {"b": 2}})
    assert answer.json()["metadata"] == {"a": 1, "b": 2}
    quiet = await client.patch(f"/threads/{thread}", json={"metadata": {"c": 3}}, headers={"Prefer": "return=minimal"})
    assert (quiet.status_code, quiet.content) == (204, b"")
    assert (await client.get(f"/threads/{thread}")).json()["metadata"] == {"a": 1, "b": 2, "c": 3}


async def test_a_deleted_thread_is_gone_and_can_be_made_again(client: httpx.AsyncClient):
    thread = await new_thread(client)
    await run_to_end(client, thread)
    assert (await client.delete(f"/threads/{thread}")).status_code == 204
    assert (await client.delete(f"/threads/{thread}")).status_code == 404
    assert (await client.get(f"/threads/{thread}/runs")).status_code == 404
    await new_thread(client, thread_id=thread)
    assert (await client.get(f"/threads/{thread}/runs")).json() == []


@pytest.mark.parametrize(
    ("method", "place"),
    [("GET", ""), ("PATCH", ""), ("DELETE", ""), ("GET", "/state"), ("GET", f"/state/{CHECKPOINT}"),
     ("POST", "/state/checkpoint"), ("GET", "/history"), ("POST", "/history"), ("GET", "/events"),
     ("GET", "/messages"), ("GET", "/runs")],
)  # fmt: skip
async def test_a_thread_that_is_not_there_is_a_404(client: httpx.AsyncClient, method: str, place: str):
    body = {"checkpoint": {}} if method in ("POST", "PATCH") else None
    answer = await client.request(method, f"/threads/{NOBODY}{place}", json=body)
    assert (answer.status_code, answer.json()) == (404, {"detail": f"Thread with ID {NOBODY} not found"})
    answer = await client.request(method, f"/threads/xyz{place}", json=body)
    assert (answer.status_code, answer.json()) == (422, {"detail": "Invalid thread ID: must be a UUID"})


async def test_state_cannot_be_written_yet(client: httpx.AsyncClient):
    thread = await new_thread(client)
    assert (await client.post(f"/threads/{thread}/state", json={"values": {}})).status_code == 405


# --- lists ---


async def test_threads_are_found_by_metadata_newest_first_page_by_page(client: httpx.AsyncClient):
    mark = uuid.uuid4().hex
    made = [await new_thread(client, metadata={"mark": mark, "n": n}) for n in range(3)]
    search = {"metadata": {"mark": mark}, "limit": 2}
    first = await client.post("/threads/search", json=search)
    assert [thread["thread_id"] for thread in first.json()] == made[:0:-1]
    assert (first.headers["x-pagination-total"], first.headers["x-pagination-next"]) == ("3", "2")
    assert int(first.headers["x-runs-position"]) > 0
    second = await client.post("/threads/search", json={**search, "offset": 2})
    assert [thread["thread_id"] for thread in second.json()] == made[:1]
    assert second.headers["x-pagination-total"] == "3"
    assert "x-pagination-next" not in second.headers
    beyond = await client.post("/threads/search", json={**search, "offset": 10000})
    assert (beyond.json(), beyond.headers["x-pagination-total"]) == ([], "10000")
    assert (await client.post("/threads/count", json={"metadata": {"mark": mark}})).json() == 3


async def test_threads_are_found_by_id_and_status_and_cut_to_the_fields_asked_for(client: httpx.AsyncClient):
    idle, failed = await new_thread(client), await new_thread(client)
    await run_to_end(client, failed, fail="boom")
    search = {"ids": [idle, failed], "status": "error", "select": ["thread_id", "status"]}
    answer = await client.post("/threads/search", json=search)
    assert answer.json() == [{"thread_id": failed, "status": "error"}]
    by_id = {"ids": [idle, failed], "sort_by": "thread_id", "sort_order": "asc", "select": ["thread_id"]}
    found = (await client.post("/threads/search", json=by_id)).json()
    assert [thread["thread_id"] for thread in found] == sorted([idle, failed])


async def test_a_list_that_is_behind_says_so(client: httpx.AsyncClient, store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(store.threads, "search", lambda **_: Listed([], current=False, position=7))
    answer = await client.post("/threads/search", json={})
    assert (answer.headers["x-runs-position"], answer.headers["x-runs-stale"]) == ("7", "true")


# --- state ---


class FakeState:
    """A `StateReader` that remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.deleted: list[str] = []
        self.busy = self.busiest = 0

    async def get(self, *asked: Any) -> dict[str, Any]:
        self.asked.append(asked)
        state = empty_state()
        return state if asked[2] == NOBODY else {**state, "values": {"n": 1}, "checkpoint": {"checkpoint_id": "c"}}

    async def history(self, *asked: Any, **named: Any) -> list[dict[str, Any]]:
        self.asked.append((*asked, named))
        return [empty_state()]

    async def values(
        self, thread_id: str, graph_id: str | None, checkpoint_id: str | None = None
    ) -> dict[str, Any] | None:
        self.busy += 1
        self.busiest = max(self.busiest, self.busy)
        await asyncio.sleep(0)
        self.busy -= 1
        return {"of": graph_id}

    async def delete(self, thread_id: str) -> None:
        self.deleted.append(thread_id)


class WithState:
    """A store that has graphs, and their state."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.registry = GraphRegistry.demo()
        self.state = FakeState()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    @asynccontextmanager
    async def reading_state(self) -> AsyncIterator[None]:
        yield


@pytest.fixture
def with_state(store: Store) -> WithState:
    return WithState(store)


@pytest.fixture
async def graphs(with_state: WithState, store_settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(with_state, store_settings) as client:
        yield client


async def test_values_are_those_of_the_threads_graph(graphs: httpx.AsyncClient):
    thread = await new_thread(graphs, metadata={"graph_id": "agent"})
    assert (await graphs.get(f"/threads/{thread}")).json()["values"] == {"of": "agent"}


@pytest.mark.parametrize("graph", ["gone", 5, None])
async def test_a_graph_that_is_not_there_any_more_shows_no_values(graphs: httpx.AsyncClient, graph: object):
    thread = await new_thread(graphs, metadata={"graph_id": graph})
    assert (await graphs.get(f"/threads/{thread}")).json()["values"] is None
    assert (await graphs.get(f"/threads/{thread}/state")).json() == empty_state()
    assert (await graphs.post(f"/threads/{thread}/history", json={})).json() == []


async def test_a_search_reads_few_states_at_the_same_time(graphs: httpx.AsyncClient, with_state: WithState):
    mark = uuid.uuid4().hex
    for _ in range(12):
        await new_thread(graphs, metadata={"graph_id": "agent", "mark": mark})
    found = (await graphs.post("/threads/search", json={"metadata": {"mark": mark}, "limit": 20})).json()
    assert [thread["values"] for thread in found] == [{"of": "agent"}] * 12
    assert with_state.state.busiest <= 8


async def test_state_is_read_as_asked_for(graphs: httpx.AsyncClient, with_state: WithState):
    thread = await new_thread(graphs, metadata={"graph_id": "agent"})
    where, asked = f"/threads/{thread}/state", with_state.state.asked
    assert (await graphs.get(where, params={"subgraphs": "true"})).json()["values"] == {"n": 1}
    assert asked[-1] == (thread, "agent", None, True, None)
    await graphs.get(f"{where}/{CHECKPOINT}")
    assert asked[-1] == (thread, "agent", CHECKPOINT, False, None)
    named = {"checkpoint_id": CHECKPOINT, "checkpoint_ns": "child:1"}
    await graphs.post(f"{where}/checkpoint", json={"checkpoint": named, "subgraphs": True})
    assert asked[-1] == (thread, "agent", None, True, named)


async def test_a_checkpoint_that_is_not_there_is_a_404(graphs: httpx.AsyncClient):
    thread = await new_thread(graphs, metadata={"graph_id": "agent"})
    answer = await graphs.get(f"/threads/{thread}/state/{NOBODY}")
    assert (answer.status_code, answer.json()) == (404, {"detail": f"Checkpoint with ID {NOBODY} not found"})
    answer = await graphs.get(f"/threads/{thread}/state/abc")
    assert (answer.status_code, answer.json()) == (422, {"detail": "Invalid checkpoint ID"})


async def test_history_is_read_as_asked_for(graphs: httpx.AsyncClient, with_state: WithState):
    thread = await new_thread(graphs, metadata={"graph_id": "agent"})
    where, asked = f"/threads/{thread}/history", with_state.state.asked
    assert (await graphs.get(where, params={"limit": 3, "before": CHECKPOINT})).json() == [empty_state()]
    assert asked[-1] == (thread, "agent", 3, {"before": CHECKPOINT, "metadata": None, "checkpoint": None})
    await graphs.post(where, json={"limit": 10, "metadata": {"a": 1}, "before": {"checkpoint_id": CHECKPOINT}})
    assert asked[-1] == (thread, "agent", 10, {"before": CHECKPOINT, "metadata": {"a": 1}, "checkpoint": None})


async def test_state_goes_with_its_thread(graphs: httpx.AsyncClient, with_state: WithState):
    thread = await new_thread(graphs)
    assert (await graphs.delete(f"/threads/{thread}")).status_code == 204
    assert with_state.state.deleted == [thread]
    assert (await graphs.delete(f"/threads/{thread}")).status_code == 404
    assert with_state.state.deleted == [thread]


async def test_a_run_without_values_has_its_result_from_the_state(graphs: httpx.AsyncClient):
    thread = await new_thread(graphs)
    question = {"id": "i1", "value": "go on?"}
    answer = await graphs.post(
        f"/threads/{thread}/runs/wait",
        json={"assistant_id": "agent", "input": {"interrupts": {"t1": [question]}}, "stream_mode": "updates"},
    )
    assert answer.json() == {"of": "agent", "__interrupt__": [question]}


# --- assistants ---

ASSISTANT = "fe096781-5601-53d2-b2f6-0d3403f7e9ca"


async def test_each_graph_is_an_assistant(graphs: httpx.AsyncClient):
    answer = await graphs.post("/assistants/search", json={"limit": 1})
    (found,) = answer.json()
    assert list(found) == [
        "assistant_id", "graph_id", "config", "context", "metadata", "name", "created_at", "updated_at", "version",
        "description",
    ]  # fmt: skip
    assert (found["assistant_id"], found["graph_id"]) == (ASSISTANT, "agent")
    assert (answer.headers["x-pagination-total"], "x-pagination-next" in answer.headers) == ("1", False)
    assert (await graphs.get(f"/assistants/{ASSISTANT}")).json() == found
    assert (await graphs.get(f"/assistants/{ASSISTANT}")).json() == found, "created_at stays"


@pytest.mark.parametrize(
    ("wanted", "count"),
    [({}, 1), ({"graph_id": "agent"}, 1), ({"graph_id": "x"}, 0), ({"name": "AGE"}, 1), ({"name": "x"}, 0),
     ({"metadata": {"created_by": "system"}}, 1), ({"metadata": {"a": 1}}, 0)],
)  # fmt: skip
async def test_assistants_are_found_by_graph_name_and_metadata(
    graphs: httpx.AsyncClient, wanted: dict[str, Any], count: int
):
    assert len((await graphs.post("/assistants/search", json=wanted)).json()) == count
    assert (await graphs.post("/assistants/count", json=wanted)).json() == count


async def test_an_assistant_that_is_not_there_is_a_404_and_a_name_is_no_id(graphs: httpx.AsyncClient):
    for place in ("", "/graph", "/schemas"):
        assert (await graphs.get(f"/assistants/{NOBODY}{place}")).status_code == 404
        answer = await graphs.get(f"/assistants/agent{place}")
        assert (answer.status_code, answer.json()) == (422, {"detail": "Invalid assistant ID: must be a UUID"})


async def test_a_graph_is_drawn_without_the_paths_of_its_code(graphs: httpx.AsyncClient):
    drawn = (await graphs.get(f"/assistants/{ASSISTANT}/graph")).json()
    assert {"id": "__start__", "type": "runnable", "data": {"name": "__start__"}} in drawn["nodes"]
    assert {"id": "__end__"} in drawn["nodes"]
    assert any(edge["source"] == "__start__" for edge in drawn["edges"])


async def test_a_graph_has_schemas(graphs: httpx.AsyncClient):
    found = (await graphs.get(f"/assistants/{ASSISTANT}/schemas")).json()
    assert found["graph_id"] == "agent"
    assert set(found) == {
        "graph_id", "input_schema", "output_schema", "state_schema", "config_schema", "context_schema",
    }  # fmt: skip
