"""A graph that answers each message, and removes the one that it is told to forget."""

from __future__ import annotations

from typing import Annotated, Any, TypedDict

from langchain_core.messages import AIMessage, AnyMessage, RemoveMessage
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages


class State(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]


def answer(state: State) -> dict[str, Any]:
    said = state["messages"][-1]
    if said.text.startswith("forget "):
        return {"messages": [RemoveMessage(id=said.text.removeprefix("forget "))]}
    return {"messages": [AIMessage(f"you said: {said.text}", id=f"answer-{said.id}")]}


graph = StateGraph(State).add_node(answer).add_edge(START, "answer").add_edge("answer", END).compile()
