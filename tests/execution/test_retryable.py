"""Which errors of a graph may pass, and that its run then goes on from its last checkpoint."""

from __future__ import annotations

import asyncio
import errno
import json
from pathlib import Path

import httpx
import psycopg
import pytest
import requests

from runs_es.domain import RunStatus
from runs_es.execution.langgraph.retryable import may_pass
from runs_es.service.commands import CreateRunCommand, GetRunQuery
from runs_es.settings import Settings
from runs_projections.wiring import open_store
from tests.execution.test_worker import QUICK

FLAKY = """
import operator
from typing import Annotated, TypedDict

import httpx
from langgraph.graph import END, START, StateGraph

from runs_es.execution import RetryableError

calls = []


class State(TypedDict, total=False):
    done: Annotated[list, operator.add]


async def first(state: State) -> dict:
    calls.append("first")
    return {"done": ["first"]}


async def second(state: State) -> dict:
    calls.append("second")
    if calls.count("second") == 1:
        raise httpx.ReadTimeout("the model does not answer")
    if calls.count("second") == 2:
        raise RetryableError("not yet")
    return {"done": list(calls)}


builder = StateGraph(State)
builder.add_node(first)
builder.add_node(second)
builder.add_edge(START, "first")
builder.add_edge("first", "second")
builder.add_edge("second", END)
graph = builder.compile()
"""


class APIConnectionError(Exception):
    """As clients of models call it."""


class APITimeoutError(APIConnectionError):
    pass


class APIStatusError(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status_code = status


def answered(status: int) -> httpx.HTTPStatusError:
    request = httpx.Request("POST", "http://model.example/")
    return httpx.HTTPStatusError("no", request=request, response=httpx.Response(status, request=request))


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError(),
        httpx.ConnectError("x"),
        httpx.ReadTimeout("x"),
        requests.ConnectionError(),
        APITimeoutError(),
        APIStatusError(429),
        APIStatusError(529),
        answered(503),
        psycopg.OperationalError("the server closed the connection"),
        TimeoutError(errno.ETIMEDOUT, "Connection timed out"),
        OSError(errno.EHOSTUNREACH, "No route to host"),
    ],
    ids=repr,
)
def test_networks_overloaded_providers_and_an_absent_database_may_pass(error: Exception) -> None:
    assert may_pass(error)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("connection"),
        APIStatusError(400),
        APIStatusError(401),
        APIStatusError(500),
        answered(404),
        psycopg.ProgrammingError("no such table"),
        FileNotFoundError(),
        TimeoutError("a time that the graph set itself"),
        OSError("without a number"),
    ],
    ids=repr,
)
def test_what_is_wrong_stays_wrong(error: Exception) -> None:
    assert not may_pass(error)


async def test_a_graph_goes_on_from_its_last_checkpoint(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "flaky.py").write_text(FLAKY)
    (tmp_path / "langgraph.json").write_text(json.dumps({"graphs": {"agent": "./flaky.py:graph"}}))
    quick = settings.model_copy(update={**QUICK, "retry_seconds": 0.05})
    store = await asyncio.to_thread(lambda: open_store(quick, config=tmp_path / "langgraph.json"))
    try:
        asked = CreateRunCommand(thread_id="t", create_thread=True, assistant_id="agent", input={"done": ["asked"]})
        result = await asyncio.wait_for(store.service.create_and_wait(asked), 30)
        assert result == {"done": ["asked", "first", "first", "second", "second", "second"]}
        (run,) = store.log.reader.facts("t", topics=["run.completed"])
        found = await store.service.get_run(GetRunQuery(run_id=run.fact.run_id))  # type: ignore[attr-defined]
        assert found is not None
        assert (found.status, found.attempt) == (RunStatus.SUCCESS, 3)
    finally:
        await asyncio.to_thread(store.close)
