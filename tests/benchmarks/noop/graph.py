"""A graph that does nothing: what is left is what running it costs."""

from __future__ import annotations

from typing import TypedDict

from langgraph.graph import END, START, StateGraph


class State(TypedDict):
    number: int


async def nothing(state: State) -> dict[str, int]:
    return {"number": state["number"] + 1}


graph = StateGraph(State).add_node(nothing).add_edge(START, "nothing").add_edge("nothing", END).compile()
