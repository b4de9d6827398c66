"""An agent that streams so many frames a second, each saying when it was published."""

from __future__ import annotations

import asyncio
import time
from typing import TypedDict

from langgraph.config import get_stream_writer
from langgraph.graph import END, START, StateGraph


class State(TypedDict):
    frames: int
    rate: float
    delay: float


async def tick(state: State) -> dict[str, int]:
    write = get_stream_writer()
    await asyncio.sleep(state["delay"])  # until all subscribers have come
    started = time.monotonic()
    for index in range(state["frames"]):
        await asyncio.sleep(max(0.0, started + index / state["rate"] - time.monotonic()))
        write({"at": time.time_ns(), "text": "a few words as a model streams them, about a hundred bytes of it in all"})
    return {}


graph = StateGraph(State).add_node(tick).add_edge(START, "tick").add_edge("tick", END).compile()
