"""Agents that do what ends a process or its event loop, and one that streams beside them."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Any, TypedDict

from langgraph.config import get_stream_writer
from langgraph.graph import END, START, StateGraph

FRAMES = 300
GATE = Path(os.environ.get("GATE", "gate"))  # the other run has ended


class State(TypedDict, total=False):
    what: str
    seconds: float
    done: str


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("it cannot be printed")

    __repr__ = __str__

    def __reduce__(self) -> Any:
        raise RuntimeError("it cannot be pickled")


class Stop(BaseException):
    pass


def exits(state: State) -> State:
    argparse.ArgumentParser().parse_args(["--no-such-option"])
    return {"done": "never"}


async def exits_in_a_task(state: State) -> State:
    async def leave() -> None:
        await asyncio.sleep(0)
        sys.exit(4)

    await asyncio.gather(leave(), asyncio.sleep(60))
    return {"done": "never"}


async def exits_in_a_callback(state: State) -> State:
    asyncio.get_running_loop().call_later(0.01, sys.exit, 5)
    await asyncio.sleep(60)
    return {"done": "never"}


async def stops_the_loop(state: State) -> State:
    asyncio.get_running_loop().stop()
    await asyncio.sleep(60)
    return {"done": "never"}


async def cancels_itself(state: State) -> State:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(60)
    return {"done": "never"}


async def unprintable(state: State) -> State:
    raise Unprintable


async def times_out(state: State) -> State:
    async with asyncio.timeout(0.01):
        await asyncio.sleep(60)
    return {"done": "never"}


async def interrupts(state: State) -> State:
    raise KeyboardInterrupt


async def closes(state: State) -> State:
    raise GeneratorExit


async def stops(state: State) -> State:
    raise Stop("enough")


async def blocks(state: State) -> State:
    time.sleep(state["seconds"])  # noqa: ASYNC251
    return {"done": "blocked"}


_left: list[asyncio.Task[None]] = []


async def leaves_a_task(state: State) -> State:
    async def die() -> None:
        await asyncio.sleep(0.5)
        _left.clear()
        sys.exit(6)

    _left.append(asyncio.create_task(die()))
    return {"done": "left"}


async def streams(state: State) -> State:
    write = get_stream_writer()
    for number in range(FRAMES):
        while number == FRAMES // 2 and not GATE.exists():  # noqa: ASYNC110, ASYNC240
            await asyncio.sleep(0.02)
        write({"number": number})
        await asyncio.sleep(0)
    return {"done": "streamed"}


nodes = {
    node.__name__: node
    for node in (
        exits,
        exits_in_a_task,
        exits_in_a_callback,
        stops_the_loop,
        cancels_itself,
        unprintable,
        times_out,
        interrupts,
        closes,
        stops,
        blocks,
        leaves_a_task,
        streams,
    )
}
builder = StateGraph(State)
for name, node in nodes.items():
    builder.add_node(name, node)
    builder.add_edge(name, END)
builder.add_conditional_edges(START, lambda state: state["what"], list(nodes))
graph = builder.compile()
