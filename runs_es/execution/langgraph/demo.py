"""The demo agent: a LangGraph graph that needs no key and no network, and shows what the platform can do.

What it does depends on the last human message ("use the tool", "ask me", "fail", "long") or on the keys beside
`messages` in the input: `tokens`, `delay`, `tool`, `ask`, `fail`. The keys count for one run, so they are ephemeral.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import uuid4

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.chat_models import agenerate_from_stream
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    AnyMessage,
    BaseMessage,
    HumanMessage,
    ToolMessage,
)
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langgraph.channels import EphemeralValue
from langgraph.config import get_stream_writer
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import interrupt
from typing_extensions import TypedDict  # the standard one lacks what JSON schemas need before 3.12

DELAY = 0.03
MAX_TOKENS = 100_000
LONG_TOKENS = 400
LONG_DELAY = 0.05

HELP = (
    "I am the demo agent of runs-es. There is no model behind me, only this text, sent word by word as a model would. "
    'Say "use the tool" and I look up the time. Say "ask me" and I stop until you answer. '
    'Say "long" and I talk for twenty seconds, so that you can close the page, come back, and miss nothing. '
    'Say "fail" and I break, so that you see what a failed run leaves behind.'
)
FILLER = (
    "Every word of this answer was written to the log before you saw it. Cut the connection, wait, and join again: "
    "the stream goes on exactly where you left it, and whoever joins later gets the same bytes as you. "
)


class Plan(TypedDict):
    """What one run is going to do."""

    tokens: int | None
    delay: float
    tool: bool
    ask: bool
    fail: bool


class State(TypedDict, total=False):
    messages: Annotated[list[AnyMessage], add_messages]
    plan: Plan
    tokens: Annotated[int | None, EphemeralValue]
    delay: Annotated[float | None, EphemeralValue]
    tool: Annotated[bool | None, EphemeralValue]
    ask: Annotated[bool | None, EphemeralValue]
    fail: Annotated[bool | None, EphemeralValue]


class DemoChatModel(BaseChatModel):
    """Streams `text` word by word, or the call of a tool; a chat model in every other respect."""

    text: str = ""
    call: str | None = None
    delay: float = DELAY

    @property
    def _llm_type(self) -> str:
        return "runs-es-demo"

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        for part in self._parts():
            chunk = ChatGenerationChunk(message=part)
            if run_manager is not None:
                await run_manager.on_llm_new_token(part.text, chunk=chunk)
            yield chunk
            await asyncio.sleep(self.delay)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        """Takes its time as well when nobody watches the tokens."""
        return await agenerate_from_stream(self._astream(messages, stop, run_manager, **kwargs))

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=AIMessage(self.text))])

    def _parts(self) -> list[AIMessageChunk]:
        parts = [AIMessageChunk(content=word) for word in re.findall(r"\S+\s*", self.text)]
        if self.call is not None:
            pieces = [
                tool_call_chunk(name=self.call, args="", id=f"call_{uuid4().hex[:12]}", index=0),
                tool_call_chunk(name=None, args='{"zone": ', id=None, index=0),
                tool_call_chunk(name=None, args='"UTC"}', id=None, index=0),
            ]
            parts += [AIMessageChunk(content="", tool_call_chunks=[piece]) for piece in pieces]
        parts[-1].chunk_position = "last"
        return parts


async def listen(state: State) -> dict[str, Any]:
    """Decide what this run is going to do."""
    said = set(re.findall(r"\w+", _last_human_text(state.get("messages", [])).lower()))
    tokens, delay = state.get("tokens"), state.get("delay")
    if "long" in said:
        tokens, delay = tokens or LONG_TOKENS, LONG_DELAY if delay is None else delay
    plan = Plan(
        tokens=min(int(tokens), MAX_TOKENS) if tokens else None,
        delay=DELAY if delay is None else float(delay),
        tool=bool(state.get("tool")) or "tool" in said,
        ask=bool(state.get("ask")) or "ask" in said,
        fail=bool(state.get("fail")) or "fail" in said,
    )
    get_stream_writer()({"step": "listen", "plan": plan})
    return {"plan": plan}


async def ask(state: State) -> dict[str, Any]:
    """Stop until a human answers. The answer goes on as what the human said."""
    answer = interrupt({"question": "Shall I go on? Answer with anything you like.", "options": ["yes", "no"]})
    return {"messages": [HumanMessage(answer if isinstance(answer, str) else json.dumps(answer))]}


async def answer(state: State) -> dict[str, Any]:
    """The "model": calls the tool first if that is the plan, then talks."""
    plan, messages = state["plan"], state.get("messages", [])
    if plan["fail"]:
        raise ValueError("this run failed because you asked it to; the next one will not")
    get_stream_writer()({"step": "answer"})
    if plan["tool"] and not (messages and isinstance(messages[-1], ToolMessage)):
        model = DemoChatModel(call="clock", delay=plan["delay"])
    else:
        model = DemoChatModel(text=_reply(plan, messages), delay=plan["delay"])
    return {"messages": [await model.ainvoke(messages)]}


async def use_tool(state: State) -> dict[str, Any]:
    """The one tool: what time it is."""
    last = state["messages"][-1]
    calls = last.tool_calls if isinstance(last, AIMessage) else []
    get_stream_writer()({"step": "tool", "calls": [call["name"] for call in calls]})
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"messages": [ToolMessage(now, tool_call_id=str(call["id"]), name=call["name"]) for call in calls]}


def _after_listening(state: State) -> str:
    return "ask" if state["plan"]["ask"] else "answer"


def _after_answering(state: State) -> str:
    last = state["messages"][-1]
    return "tool" if isinstance(last, AIMessage) and last.tool_calls else END


def _reply(plan: Plan, messages: Sequence[AnyMessage]) -> str:
    if plan["tokens"]:
        words = itertools.cycle(re.findall(r"\S+\s*", FILLER))
        return "".join(itertools.islice(words, plan["tokens"])).rstrip()
    if messages and isinstance(messages[-1], ToolMessage):
        return (
            f"The tool says that it is {messages[-1].text}. What you saw was a tool call, its result, and this answer."
        )
    said = _last_human_text(messages)
    if plan["ask"]:
        return (
            f"Thank you, you answered “{said}”. The run that asked is a success; this one continued where it stopped."
        )
    return f"You said “{said}”. {HELP}" if said else HELP


def _last_human_text(messages: Sequence[AnyMessage]) -> str:
    return next((str(message.text) for message in reversed(messages) if isinstance(message, HumanMessage)), "")


def _build() -> StateGraph[State, None, State, State]:
    builder = StateGraph(State)
    for name, node in {"listen": listen, "ask": ask, "answer": answer, "tool": use_tool}.items():
        builder.add_node(name, node)
    builder.add_edge(START, "listen")
    builder.add_conditional_edges("listen", _after_listening, ["ask", "answer"])
    builder.add_edge("ask", "answer")
    builder.add_conditional_edges("answer", _after_answering, ["tool", END])
    builder.add_edge("tool", "answer")
    return builder


graph = _build().compile(name="agent")
