"""Plain async functions as agents: what they are given, and what becomes of what they return, yield and raise."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from runs_es.domain import AssistantNotFound
from runs_es.execution import FunctionExecutor, RunOutcome
from runs_es.execution.langgraph.graphs import GraphLoadError, GraphRegistry, assistant_id
from tests.execution.recorded_run import RecordedRun


async def double(given: int) -> dict[str, int]:
    return {"n": 2 * given}


async def attempt(given: Any, run: Any) -> dict[str, int]:
    return {"attempt": run.attempt}


async def warm(given: Any, temperature: float = 0.5) -> dict[str, float]:
    return {"temperature": temperature}


async def pause(given: Any) -> RunOutcome:
    return RunOutcome(interrupts={"t": [{"id": "i", "value": 1}]})


async def count(given: int) -> AsyncIterator[Any]:
    for number in range(given):
        yield number
    yield "values", {"n": given}
    yield "not", "a", "pair"


AGENTS = {"double": double, "attempt": attempt, "warm": warm, "pause": pause, "count": count}


async def executed(name: str, given: Any = None, **options: Any) -> tuple[RunOutcome | None, list[tuple[str, Any]]]:
    run = RecordedRun({"input": given}, assistant_id=name, **options)
    return await FunctionExecutor(AGENTS).execute(run), run.frames


async def test_what_a_function_returns_is_the_runs_values() -> None:
    assert await executed("double", 21) == (None, [("values", {"n": 42})])
    assert await executed(assistant_id("double"), 21) == (None, [("values", {"n": 42})])


async def test_a_function_gets_the_run_if_it_asks_for_it() -> None:
    assert await executed("attempt", attempt=3) == (None, [("values", {"attempt": 3})])
    assert await executed("warm") == (None, [("values", {"temperature": 0.5})])


async def test_an_outcome_is_passed_on_and_no_frame() -> None:
    outcome, frames = await executed("pause")
    assert outcome == RunOutcome(interrupts={"t": [{"id": "i", "value": 1}]})
    assert frames == []


async def test_each_value_that_a_generator_yields_is_a_frame() -> None:
    _, frames = await executed("count", 2)
    assert frames == [("custom", 0), ("custom", 1), ("values", {"n": 2}), ("custom", ["not", "a", "pair"])]


async def test_a_generator_is_closed_at_once_when_its_run_is_cancelled() -> None:
    closed = asyncio.Event()

    async def endless(given: Any) -> AsyncIterator[int]:
        try:
            while True:
                yield 1
                await asyncio.sleep(0)
        finally:
            closed.set()

    task = asyncio.create_task(FunctionExecutor({"endless": endless}).execute(RecordedRun({}, assistant_id="endless")))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert closed.is_set()


async def test_runs_of_others_go_to_the_other_executor_or_fail_by_name() -> None:
    with pytest.raises(AssistantNotFound, match="there is no agent 'else'; known are: double, "):
        await executed("else")
    run = RecordedRun({"input": 1}, assistant_id="double")
    others = FunctionExecutor({"pause": pause}, others=FunctionExecutor(AGENTS))
    await others.execute(run)
    assert run.frames == [("values", {"n": 2})]


@pytest.mark.parametrize("wrong", [lambda given: given, 7, asyncio.sleep.__class__])
def test_what_is_no_async_function_is_refused_by_name(wrong: Any) -> None:
    with pytest.raises(ValueError, match="agent 'wrong' must be an async function"):
        FunctionExecutor({"wrong": wrong})


def registry(folder: Path, config: dict[str, Any]) -> GraphRegistry:
    (folder / "functional.py").write_text("async def agent(given): ...\nasync def nothing(): ...\n")
    (folder / "langgraph.json").write_text(json.dumps(config))
    return GraphRegistry.from_config(folder / "langgraph.json")


def test_a_configuration_may_name_functions_and_external_assistants(tmp_path: Path) -> None:
    found = registry(tmp_path, {"graphs": {"mine": "./functional.py:agent"}, "external": ["theirs"]})
    found.load_all()
    assert found.names == ["mine", "theirs"]
    assert list(found.functions) == ["mine"]
    assert [found.is_graph(name) for name in found.names] == [False, False]
    assert [found.resolve(found.assistant_id(name)) for name in found.names] == found.names
    with pytest.raises(GraphLoadError, match="it is a function"):
        found.get("mine")
    with pytest.raises(GraphLoadError, match="'theirs' is executed by external workers"):
        found.get("theirs")
    assert registry(tmp_path, {"external": ["theirs"]}).names == ["theirs"]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"external": "theirs"}, '"external" must be a list'),
        ({"external": [""]}, '"external" must be a list'),
        ({"graphs": {"a": "./functional.py:agent"}, "external": ["a"]}, "graph 'a' .* cannot be external as well"),
        ({"external": []}, "names no graphs"),
    ],
)
def test_a_configuration_of_externals_that_is_wrong_says_where_and_what(
    tmp_path: Path, config: dict[str, Any], said: str
) -> None:
    with pytest.raises(GraphLoadError, match=said):
        registry(tmp_path, config)
