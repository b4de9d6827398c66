"""What is too small for a thread of its own, and that all else has one."""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver

from runs_es.execution.agent_threads import AgentThreads
from runs_es.execution.langgraph.sizes import is_quick


async def where(threads: AgentThreads, function: Any, *arguments: Any) -> Any:
    asyncio.get_running_loop().set_default_executor(threads)
    return await asyncio.to_thread(function, *arguments)


async def test_quick_work_is_done_in_the_loops_own_thread_and_all_else_in_another() -> None:
    threads = AgentThreads(2, lambda function, arguments: (function, arguments) == (threading.get_ident, ()))
    assert await where(threads, threading.get_ident) == threading.get_ident()
    assert await where(threads, lambda: threading.get_ident()) != threading.get_ident()
    assert await where(AgentThreads(2), threading.get_ident) != threading.get_ident()


async def test_what_quick_work_raises_is_its_callers() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        await where(AgentThreads(1, lambda *_: True), int, "no number")


@pytest.mark.parametrize("is_quick", [True, False])
async def test_nothing_that_work_raises_keeps_its_caller_waiting(is_quick: bool) -> None:
    """Nor ends the thread or the loop."""
    threads = AgentThreads(1, lambda *_: is_quick)
    with pytest.raises(RuntimeError, match="StopIteration"):
        await asyncio.wait_for(where(threads, next, iter(())), 10)
    for error in (SystemExit, KeyboardInterrupt, GeneratorExit):
        with pytest.raises(error):
            await where(threads, raising, error)
    assert await where(threads, int, "4") == 4


def raising(error: type[BaseException]) -> None:
    raise error


async def test_what_was_not_asked_for_by_to_thread_has_a_thread() -> None:
    threads = AgentThreads(1, lambda *_: True)
    assert await asyncio.get_running_loop().run_in_executor(threads, threading.get_ident) != threading.get_ident()


async def test_agents_may_hand_what_has_no_name_to_a_thread() -> None:
    class Named:
        def __call__(self, text: str) -> int:
            return int(text)

    threads = AgentThreads(1, is_quick)
    assert await where(threads, partial(int, "11"), 2) == 3
    assert await where(threads, Named(), "4") == 4


class Odd:
    """A value that nobody knows the size of."""


@pytest.mark.parametrize(
    ("value", "quick"),
    [
        ({"number": 1, "text": "short", "none": None, "list": [1.5, True]}, True),
        ({"messages": [HumanMessage("hello"), AIMessage("and hello")]}, True),
        ({"text": "x" * 20_000}, False),
        ({"messages": [AIMessage("x" * 20_000)]}, False),
        ({"messages": [AIMessage([{"type": "text", "text": "x" * 20_000}])]}, False),
        ({"messages": [AIMessage("", tool_calls=[{"name": "f", "args": {"a": "x" * 20_000}, "id": "1"}])]}, False),
        ({"messages": [ToolMessage("", tool_call_id="1", artifact=b"x" * 20_000)]}, False),
        ({"messages": [HumanMessage("", extra="x" * 20_000)]}, False),
        (list(range(100)), False),
        ({"odd": Odd()}, False),
        (b"x" * 20_000, False),
    ],
)
def test_a_few_plain_values_are_quick_and_nothing_else(value: Any, quick: bool) -> None:
    saver: Any = AsyncPostgresSaver.__new__(AsyncPostgresSaver)
    assert is_quick(saver._dump_writes, ("t", "", "c", "task", "", [("channel", value)])) is quick
    assert not is_quick(saver.get_tuple, (value,))
    assert not is_quick(len, (value,))
