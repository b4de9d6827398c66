"""The demo agent does what its answers promise."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.memory import InMemorySaver

from runs_es.execution.langgraph.demo import LONG_TOKENS, DemoChatModel, graph
from runs_es.execution.langgraph.executor import LangGraphExecutor
from runs_es.execution.langgraph.graphs import GraphRegistry
from tests.execution.recorded_run import RecordedRun


@pytest.fixture
def executor() -> LangGraphExecutor:
    saver = InMemorySaver()
    return LangGraphExecutor(GraphRegistry.demo(), lambda run: saver)


def said(text: str, thread_id: str | None = None, *modes: str, **keys: Any) -> RecordedRun:
    messages = [{"role": "user", "content": text}]
    kwargs = {"input": {"messages": messages, "delay": 0, **keys}, "stream_mode": list(modes) or ["values"]}
    return RecordedRun(kwargs, thread_id=thread_id)


def answer_of(run: RecordedRun) -> str:
    assert run.messages[-1]["type"] == "ai"
    return str(run.messages[-1]["content"])


async def test_it_streams_an_answer_that_says_what_can_be_tried(executor: LangGraphExecutor) -> None:
    run = said("hello", None, "messages-tuple", "custom", "updates", "values")
    await executor.execute(run)
    tokens = [message["content"] for message, _ in run.data_of("messages")]
    assert "".join(tokens) == answer_of(run)
    assert len(tokens) > 20
    for hint in ("hello", '"use the tool"', '"ask me"', '"long"', '"fail"'):
        assert hint in answer_of(run)
    assert [each["step"] for each in run.data_of("custom")] == ["listen", "answer"]
    assert [list(update) for update in run.data_of("updates")] == [["listen"], ["answer"]]


@pytest.mark.parametrize(("text", "keys"), [("please use the tool", {}), ("hi", {"tool": True})])
async def test_it_calls_a_tool_and_answers_with_the_result(executor: LangGraphExecutor, text: str, keys: Any) -> None:
    run = said(text, None, "messages", **keys)
    await executor.execute(run)
    human, call, result, answer = run.messages
    assert (human["type"], call["type"], result["type"], answer["type"]) == ("human", "ai", "tool", "ai")
    assert call["tool_calls"][0]["args"] == {"zone": "UTC"}
    assert result["tool_call_id"] == call["tool_calls"][0]["id"]
    assert result["content"] in answer["content"]
    assert "messages/complete" in run.events
    assert "messages/partial" in run.events


@pytest.mark.parametrize(("text", "keys"), [("ask me", {}), ("hi", {"ask": True})])
async def test_it_asks_and_goes_on_with_the_answer(executor: LangGraphExecutor, text: str, keys: Any) -> None:
    asking = said(text, **keys)
    (interrupts,) = (await executor.execute(asking)).interrupts.values()
    assert "question" in interrupts[0]["value"]
    answering = RecordedRun({"command": {"resume": {"go": "on"}}}, thread_id=asking.run.thread_id)
    assert (await executor.execute(answering)).interrupts == {}
    assert '“{"go": "on"}”' in answer_of(answering)


@pytest.mark.parametrize(("text", "keys"), [("fail", {}), ("hi", {"fail": True})])
async def test_it_fails_when_asked_to_and_works_again_after(executor: LangGraphExecutor, text: str, keys: Any) -> None:
    failing = said(text, **keys)
    with pytest.raises(ValueError, match="because you asked it to"):
        await executor.execute(failing)
    after = said("hello", failing.run.thread_id)
    await executor.execute(after)
    assert "You said “hello”" in answer_of(after)


@pytest.mark.parametrize(("text", "keys", "words"), [("long", {}, LONG_TOKENS), ("hi", {"tokens": 7}, 7)])
async def test_it_talks_as_long_as_asked(executor: LangGraphExecutor, text: str, keys: Any, words: int) -> None:
    run = said(text, None, "messages-tuple", **keys)
    await executor.execute(run)
    assert len(run.data_of("messages")) == words
    assert len(answer_of(run).split()) == words


async def test_a_run_that_talks_long_can_be_cancelled(executor: LangGraphExecutor) -> None:
    talking = asyncio.Event()
    run = said("long", None, "messages-tuple", delay=60)
    run.before_publish = lambda event: talking.set()
    task = asyncio.create_task(executor.execute(run))
    await talking.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(run.frames) == 1


async def test_what_is_asked_for_one_run_does_not_stick_to_the_thread(executor: LangGraphExecutor) -> None:
    first = said("hi", tokens=3)
    await executor.execute(first)
    second = said("hi", first.run.thread_id)
    await executor.execute(second)
    assert len(answer_of(second).split()) > 20


def test_it_needs_no_input_at_all() -> None:
    async def answer() -> Any:
        return await graph.ainvoke({"delay": 0})

    assert "demo agent" in asyncio.run(answer())["messages"][-1].text


def test_its_model_is_a_chat_model_in_the_ordinary_way_too() -> None:
    model = DemoChatModel(text="a few words", delay=0)
    assert model.invoke([HumanMessage("hi")]).text == "a few words"
    assert asyncio.run(model.ainvoke("hi")).text == "a few words"
