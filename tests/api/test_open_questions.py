"""What a thread waits for after a run that failed, was cancelled, ran out of time or was lost: what its state says.

The graph asks in one node beside another one, so a question can stand open whatever becomes of the run.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from runs_es.domain import Provenance, Thread
from runs_es.log.decisions import Decision
from runs_es.log.reader import Head
from runs_es.settings import Settings
from runs_projections.wiring import Store, open_store
from tests.api.conftest import client_of, new_thread

GRAPH = """
import asyncio
import operator
from typing import Annotated
from typing_extensions import TypedDict
from langgraph.graph import START, StateGraph
from langgraph.types import interrupt

class State(TypedDict, total=False):
    out: Annotated[list, operator.add]
    beside: str

async def ask(state: State) -> dict:
    answer = interrupt({"question": "go on?"})
    if answer == "fail":
        raise ValueError("after the answer")
    if answer == "hang":
        await asyncio.Event().wait()
    return {"out": [answer]}

async def beside(state: State) -> dict:
    if state.get("beside") == "fail":
        raise ValueError("beside the question")
    if state.get("beside") == "hang":
        await asyncio.Event().wait()
    return {}

builder = StateGraph(State)
for node in (ask, beside):
    builder.add_node(node)
    builder.add_edge(START, node.__name__)
graph = builder.compile()
"""


@pytest.fixture
def store(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "asking.py").write_text(GRAPH)
    (tmp_path / "langgraph.json").write_text('{"graphs": {"agent": "./asking.py:graph"}}')
    quick = settings.model_copy(update={"drain_seconds": 0})
    with open_store(quick, config=tmp_path / "langgraph.json") as opened:
        yield opened


@pytest.fixture
async def client(store: Store) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(store, store.settings) as client:
        yield client


async def run(client: httpx.AsyncClient, thread: str, **fields: Any) -> Any:
    answer = await client.post(f"/threads/{thread}/runs/wait", json={"assistant_id": "agent", **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def cancelled(client: httpx.AsyncClient, thread: str, **fields: Any) -> None:
    """A run that is cancelled once it runs."""
    answer = await client.post(f"/threads/{thread}/runs", json={"assistant_id": "agent", **fields})
    path = f"/threads/{thread}/runs/{answer.json()['run_id']}"
    deadline = time.monotonic() + 20
    while (await client.get(path)).json()["status"] != "running":
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    assert (await client.post(f"{path}/cancel", params={"wait": 1})).status_code == 200


async def shown(client: httpx.AsyncClient, thread: str) -> tuple[str, dict[str, Any]]:
    """The thread's status and interrupts, the same wherever they are shown; the state waits for the same."""
    one = (await client.get(f"/threads/{thread}")).json()
    (found,) = (await client.post("/threads/search", json={"ids": [thread]})).json()
    selected = {"ids": [thread], "select": ["interrupts", "status"]}
    (few,) = (await client.post("/threads/search", json=selected)).json()
    state = (await client.get(f"/threads/{thread}/state")).json()
    assert one["interrupts"] == found["interrupts"] == few["interrupts"]
    assert one["status"] == found["status"] == few["status"]
    assert [each for interrupts in one["interrupts"].values() for each in interrupts] == state["interrupts"]
    return one["status"], one["interrupts"]


def values_of(interrupts: dict[str, Any]) -> list[Any]:
    return [each["value"] for waiting in interrupts.values() for each in waiting]


OPEN = [{"question": "go on?"}]


async def test_a_failure_beside_a_question_and_after_its_answer_leaves_it_open(client: httpx.AsyncClient) -> None:
    thread = await new_thread(client)
    assert (await run(client, thread, input={"beside": "fail"}))["__error__"]["message"] == "beside the question"
    status, waits = await shown(client, thread)
    assert (status, values_of(waits)) == ("error", OPEN)

    thread = await new_thread(client)
    await run(client, thread, input={})
    before = await shown(client, thread)
    assert (await run(client, thread, command={"resume": "fail"}))["__error__"]["message"] == "after the answer"
    assert await shown(client, thread) == ("error", before[1])


async def test_a_cancelled_run_leaves_open_what_its_state_waits_for(client: httpx.AsyncClient) -> None:
    thread = await new_thread(client)
    await run(client, thread, input={})
    before = await shown(client, thread)
    await cancelled(client, thread, command={"resume": "hang"})
    assert await shown(client, thread) == ("interrupted", before[1])


async def test_a_run_that_is_out_of_time_leaves_open_what_its_state_waits_for(client: httpx.AsyncClient) -> None:
    thread = await new_thread(client)
    await run(client, thread, input={})
    before = await shown(client, thread)
    late = await run(client, thread, command={"resume": "hang"}, config={"timeout_seconds": 0.5})
    assert late["__error__"]["error"] == "TimeoutError"
    assert await shown(client, thread) == ("error", before[1])


async def test_a_run_whose_workers_were_lost_leaves_open_what_its_state_waits_for(
    client: httpx.AsyncClient, store: Store
) -> None:
    thread = await new_thread(client)
    await run(client, thread, input={})
    before = await shown(client, thread)
    later = {"assistant_id": "agent", "command": {"resume": "yes"}, "after_seconds": 3600}
    created = (await client.post(f"/threads/{thread}/runs", json=later)).json()["run_id"]

    def claimed(folded: Thread, head: Head) -> Decision:
        run = folded.run(created)
        return Decision(folded.claim(run, claim_id="lost", worker_id="lost", frames=head.frames, max_attempts=1))

    def lose() -> None:
        for _ in range(2):  # the second finds that the worker of the first is lost, and that there is no attempt left
            store.decisions.make(thread, claimed, provenance=Provenance(actor="sweep"))

    await asyncio.to_thread(lose)
    ended = (await client.get(f"/threads/{thread}/runs/{created}")).json()
    assert ended["status"] == "error"
    assert await shown(client, thread) == ("error", before[1])


async def test_a_question_that_was_answered_before_the_failure_is_not_open(client: httpx.AsyncClient) -> None:
    thread = await new_thread(client)
    await run(client, thread, input={})
    await run(client, thread, command={"resume": "yes"})
    assert await shown(client, thread) == ("idle", {})
