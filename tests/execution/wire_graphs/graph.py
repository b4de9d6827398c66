"""Two small graphs, `agent` and `nested` around it, whose streams on a reference server are in recorded.json."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import AsyncIterator
from typing import Annotated, Any, TypedDict

from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, AnyMessage
from langchain_core.outputs import ChatGenerationChunk
from langgraph.config import get_stream_writer
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import interrupt


class State(TypedDict, total=False):
    messages: Annotated[list[AnyMessage], add_messages]
    n_tokens: int
    delay: float
    fail: bool
    ask: bool
    steps: Annotated[list[str], operator.add]
    answer: Any


class Typist(GenericFakeChatModel):
    """Types its one message, with a pause after each word and each space."""

    pause: float = 0.0

    async def _astream(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        for chunk in self._stream(messages, stop=stop, **kwargs):
            if run_manager is not None and chunk.text:
                await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk
            await asyncio.sleep(self.pause)


async def plan(state: State) -> dict[str, Any]:
    get_stream_writer()({"phase": "plan"})
    return {"steps": ["plan"]}


async def model(state: State) -> dict[str, Any]:
    if state.get("fail"):
        raise ValueError("boom from model")
    count = state.get("n_tokens") or 5
    words = AIMessage(content=" ".join(f"t{number}" for number in range(count)))
    typed: AIMessageChunk | None = None
    async for chunk in Typist(messages=iter([words]), pause=state.get("delay") or 0.0).astream(
        state.get("messages") or []
    ):
        typed = chunk if typed is None else typed + chunk
    assert typed is not None
    get_stream_writer()({"phase": "model", "n": count})
    return {"messages": [AIMessage(content=typed.content, id=typed.id)], "steps": ["model"]}


async def gate(state: State) -> dict[str, Any]:
    if not state.get("ask"):
        return {"steps": ["gate"]}
    return {"answer": interrupt({"question": "continue?"}), "steps": ["gate"]}


def _built() -> StateGraph[State]:
    builder = StateGraph(State)
    builder.add_node("plan", plan)
    builder.add_node("model", model)
    builder.add_node("gate", gate)
    builder.add_edge(START, "plan")
    builder.add_edge("plan", "model")
    builder.add_edge("model", "gate")
    builder.add_edge("gate", END)
    return builder


agent = _built().compile(name="agent")

_outer = StateGraph(State)
_outer.add_node("child", _built().compile())
_outer.add_edge(START, "child")
_outer.add_edge("child", END)
nested = _outer.compile(name="nested")
