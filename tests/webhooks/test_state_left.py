"""What a webhook says of a graph's state: as streamed, or as the run left it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runs_es.domain import RunScope
from runs_es.execution.langgraph.graphs import GraphRegistry
from runs_es.service.commands import CreateRunCommand, GetRunQuery
from runs_es.settings import Settings
from runs_es.webhooks.state_left import open_state_left
from runs_projections.wiring import Store, open_store
from tests.conftest import SCHEMA
from tests.webhooks.conftest import QUICK, settled
from tests.webhooks.receiver import Receiver


@pytest.fixture(scope="module")
def demo(module_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    folder: Path = tmp_path_factory.mktemp("data")
    given = {"database_url": module_database_url, "data_dir": folder, "db_schema": SCHEMA}
    with open_store(Settings.model_validate({**given, **QUICK})) as store:
        yield store


def told(store: Store, receiver: Receiver, said: str, **fields: Any) -> dict[str, Any]:
    """The webhook of a run of the demo agent."""
    command = CreateRunCommand(
        assistant_id="agent",
        input={"messages": [{"role": "user", "content": said}], "tokens": 2, "delay": 0},
        config={"configurable": {"graph_id": "agent"}},
        options={"webhook": receiver.url()},
        **fields,
    )
    run = asyncio.run(store.service.create_background(command))
    settled(store, run.thread_id, run.run_id, "delivered")
    return receiver.requests[-1].json


@pytest.mark.parametrize("modes", [("values",), ("updates",)])
def test_the_values_are_those_that_the_run_ended_with_whatever_it_streamed(
    demo: Store, receiver: Receiver, modes: tuple[str, ...]
) -> None:
    body = told(demo, receiver, "hello", stream_mode=modes)
    assert body["status"] == "success"
    assert [message["type"] for message in body["values"]["messages"]] == ["human", "ai"]


def test_a_run_that_streamed_no_values_on_a_temporary_thread_has_none(demo: Store, receiver: Receiver) -> None:
    body = told(demo, receiver, "hello", stream_mode=("updates",), scope=RunScope.TEMPORARY_THREAD)
    assert (body["status"], body["values"]) == ("success", None)


def test_a_pause_for_a_human_is_a_success_whose_values_ask(demo: Store, receiver: Receiver) -> None:
    body = told(demo, receiver, "ask me", stream_mode=("values",))
    assert body["status"] == "success"
    assert body["values"]["__interrupt__"]


def test_a_run_whose_graph_is_not_there_any_more_is_told_without_values(demo: Store) -> None:
    command = CreateRunCommand(
        assistant_id="agent",
        input={"messages": [{"role": "user", "content": "hello"}], "tokens": 2, "delay": 0},
        config={"configurable": {"graph_id": "agent"}},
    )
    run = asyncio.run(demo.service.create_background(command))
    asyncio.run(demo.service.ended(run.thread_id, run.run_id))
    ended = asyncio.run(demo.service.get_run(GetRunQuery(run_id=run.run_id)))
    assert ended is not None

    async def values(registry: GraphRegistry) -> Any:
        async with open_state_left(registry, demo.database.url, SCHEMA) as state_left:
            return await state_left(ended)

    assert asyncio.run(values(GraphRegistry.demo()))["messages"]
    assert asyncio.run(values(GraphRegistry({}))) is None
