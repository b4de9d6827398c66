"""Graphs that ask: one question after the other, in one node, side by side, in a subgraph; and one without any."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import Callable
from typing import Annotated, Any, TypedDict

from langgraph.graph import START, StateGraph
from langgraph.types import interrupt


class State(TypedDict, total=False):
    steps: Annotated[list[str], operator.add]
    delay: float


def asks(*questions: str) -> Callable[[State], dict[str, Any]]:
    def node(state: State) -> dict[str, Any]:
        return {"steps": [f"{question}: {interrupt(question)}" for question in questions]}

    return node


def says(word: str) -> Callable[[State], Any]:
    async def node(state: State) -> dict[str, Any]:
        await asyncio.sleep(state.get("delay", 0))
        return {"steps": [word]}

    return node


def chain(**nodes: Any) -> Any:
    builder = StateGraph(State)
    for name, node in nodes.items():
        builder.add_node(name, node)
    for one, other in zip([START, *nodes], nodes, strict=False):
        builder.add_edge(one, other)
    return builder.compile()


def _side_by_side() -> Any:
    builder = StateGraph(State)
    builder.add_node("left", asks("left?"))
    builder.add_node("right", asks("right?"))
    builder.add_node("both", says("both"))
    builder.add_edge(START, "left")
    builder.add_edge(START, "right")
    builder.add_edge(["left", "right"], "both")
    return builder.compile()


one_by_one = chain(first=asks("one?"), second=asks("two?"), third=asks("three?"))
in_one_node = chain(node=asks("one?", "two?"))
side_by_side = _side_by_side()
in_a_subgraph = chain(outer=chain(inner=asks("inner?")), after=says("after"))
steps = chain(a=says("a"), b=says("b"), c=says("c"))
steps_and_questions = chain(first=asks("one?"), slow=says("slow"), second=asks("two?"))
