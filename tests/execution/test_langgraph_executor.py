"""The executor against the frames a reference server sent for the same graphs; pauses, answers, second attempts."""

from __future__ import annotations

import asyncio
import json
import operator
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypedDict
from uuid import uuid4

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, AnyMessage, HumanMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.config import get_stream_writer
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.runtime import Runtime
from langgraph.types import Command, Send, interrupt
from pydantic import BaseModel, ConfigDict, Field

from runs_es.domain import LeaseLost
from runs_es.execution.langgraph.encoding import encode
from runs_es.execution.langgraph.executor import CheckpointNotFound, LangGraphExecutor
from runs_es.execution.langgraph.graphs import GraphLoadError, GraphRegistry, assistant_id
from runs_es.execution.langgraph.messages import MessageFrames, NewMessages
from runs_es.execution.langgraph.request import GraphRequest
from tests.execution.recorded_run import RecordedRun

FIXTURE = Path(__file__).parent / "wire_graphs"
RECORDED = json.loads((FIXTURE / "recorded.json").read_text())
UUIDS = re.compile(
    r"lc_run--[0-9a-f-]{36}|[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|\b[0-9a-f]{32}\b"
)


class Graphs(GraphRegistry):
    """A registry of graphs that a test made itself."""

    def __init__(self, **graphs: Any) -> None:
        self._made = graphs
        super().__init__({})

    @property
    def names(self) -> list[str]:
        return list(self._made)

    def resolve(self, assistant_id_or_name: str) -> str | None:
        return assistant_id_or_name if assistant_id_or_name in self._made else None

    def get(self, name: str) -> Any:
        return self._made[name]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> GraphRegistry:
    config = tmp_path_factory.mktemp("wire") / "langgraph.json"
    graphs = {"agent": f"{FIXTURE}/graph.py:agent", "nested": f"{FIXTURE}/graph.py:nested"}
    config.write_text(json.dumps({"graphs": graphs}))
    return GraphRegistry.from_config(config)


@pytest.fixture
def saver() -> InMemorySaver:
    return InMemorySaver()


@pytest.fixture
def executor(registry: GraphRegistry, saver: InMemorySaver) -> LangGraphExecutor:
    return LangGraphExecutor(registry, lambda run: saver)


def executor_of(graph: Any, saver: InMemorySaver | None = None) -> LangGraphExecutor:
    """Runs `graph` as "agent", in memory."""
    kept = saver or InMemorySaver()
    return LangGraphExecutor(Graphs(agent=graph), lambda run: kept)


def normalised(frames: Any) -> str:
    """As text, so that the order of keys counts; every id as the number of its first appearance."""
    known = {assistant_id("agent"), assistant_id("nested")}
    seen: dict[str, str] = {}

    def numbered(match: re.Match[str]) -> str:
        return match[0] if match[0] in known else seen.setdefault(match[0], f"<{len(seen) + 1}>")

    text = UUIDS.sub(numbered, json.dumps(frames, ensure_ascii=False))
    return re.sub(r'"(langgraph_version|langchain-core|ls_provider)": "[^"]*"', r'"\1": "…"', text)


def scenario(title: str) -> dict[str, Any]:
    return next(each for each in RECORDED if each["title"] == title)


@pytest.mark.parametrize("title", [each["title"] for each in RECORDED if "resume with" not in each["title"]])
async def test_frames_are_those_of_the_reference_server(executor: LangGraphExecutor, title: str) -> None:
    recorded = scenario(title)
    run = RecordedRun(recorded["kwargs"], assistant_id=recorded["graph"])
    try:
        await executor.execute(run)
    except ValueError as error:
        assert str(error) == "boom from model"  # noqa: PT017 - only one scenario fails
    assert normalised([list(frame) for frame in run.frames]) == normalised(recorded["frames"])


async def test_a_paused_run_goes_on_with_the_answer_it_is_given(executor: LangGraphExecutor) -> None:
    asking = RecordedRun(scenario("HITL interrupt stream")["kwargs"])
    paused = await executor.execute(asking)
    (interrupts,) = paused.interrupts.values()
    assert interrupts == [{"id": interrupts[0]["id"], "value": {"question": "continue?"}}]
    assert asking.data_of("updates")[-1]["__interrupt__"][0]["id"] == interrupts[0]["id"]
    assert paused.checkpoint_id

    resume = scenario("resume with command")
    answering = RecordedRun(resume["kwargs"], thread_id=asking.run.thread_id)
    finished = await executor.execute(answering)
    assert normalised([list(frame) for frame in answering.frames]) == normalised(resume["frames"])
    assert finished.interrupts == {}
    assert finished.checkpoint_id > paused.checkpoint_id


@pytest.mark.parametrize("where", [{"interrupt_before": ["gate"]}, {"interrupt_after": ["model"]}])
async def test_a_breakpoint_is_a_pause_with_nothing_to_answer(executor: LangGraphExecutor, where: Any) -> None:
    run = RecordedRun({"input": {"messages": [], "n_tokens": 1}, **where})
    outcome = await executor.execute(run)
    assert list(outcome.interrupts.values()) == [[]]

    going_on = RecordedRun({"input": None, "stream_mode": ["updates"]}, thread_id=run.run.thread_id)
    assert (await executor.execute(going_on)).interrupts == {}
    assert going_on.frames == [("updates", {"gate": {"steps": ["gate"]}})]


async def test_a_run_that_ends_is_no_pause(executor: LangGraphExecutor) -> None:
    outcome = await executor.execute(RecordedRun({"input": {"messages": [], "n_tokens": 1}}))
    assert outcome.interrupts == {}


async def test_an_interrupt_inside_a_subgraph_pauses_the_run(executor: LangGraphExecutor) -> None:
    kwargs = {"input": {"messages": [], "n_tokens": 1, "ask": True}, "stream_mode": ["updates"]}
    outcome = await executor.execute(RecordedRun(kwargs, assistant_id="nested"))
    (interrupts,) = outcome.interrupts.values()
    assert interrupts[0]["value"] == {"question": "continue?"}


async def test_messages_are_recorded_once_each_and_before_the_values_that_hold_them(
    executor: LangGraphExecutor,
) -> None:
    run = RecordedRun({"input": {"messages": [{"role": "user", "content": "hi"}], "n_tokens": 2}})
    await executor.execute(run)
    assert [(message["type"], message["content"]) for message in run.messages] == [("human", "hi"), ("ai", "t0 t1")]
    assert run.messages == run.data_of("values")[-1]["messages"]
    assert run.log == ["message", "values", "values", "message", "values", "values"]


async def test_messages_are_recorded_when_nobody_asked_for_values(executor: LangGraphExecutor) -> None:
    run = RecordedRun({"input": {"messages": [{"role": "user", "content": "hi"}]}, "stream_mode": ["custom"]})
    await executor.execute(run)
    assert run.events == ["custom", "custom"]
    assert len(run.messages) == 2


async def test_messages_of_subgraphs_are_recorded_from_the_root_alone(executor: LangGraphExecutor) -> None:
    kwargs = {"input": {"messages": [{"role": "user", "content": "hi"}]}, "subgraphs": True}
    run = RecordedRun(kwargs, assistant_id="nested")
    await executor.execute(run)
    assert [message["type"] for message in run.messages] == ["human", "ai"]
    assert run.log[-2:] == ["message", "values"]


async def test_what_a_run_from_a_checkpoint_retains_are_the_messages_of_its_state_under_their_recorded_ids() -> None:
    class Plain(TypedDict):
        messages: list[Any]

    async def answer(state: Plain) -> Plain:
        return {"messages": [*state["messages"][1:], {"type": "ai", "content": "b"}, AIMessage("c", id="c")]}

    graph = StateGraph(Plain).add_node("answer", answer).add_edge(START, "answer").add_edge("answer", END).compile()
    given = [{"type": "human", "content": "gone", "id": "gone"}, {"type": "human", "content": "a"}]
    executor, first = executor_of(graph), RecordedRun({"input": {"messages": []}, "interrupt_before": "*"})
    begun = await executor.execute(first)
    asked = {"input": {"messages": given}, "checkpoint_id": begun.checkpoint_id}
    run = RecordedRun(asked, thread_id=first.run.thread_id)
    await executor.execute(run)

    by_content = {message["content"]: message["id"] for message in run.messages}
    assert by_content.keys() == {"gone", "a", "b", "c"}
    assert run.retained == [by_content["a"], by_content["b"], "c"]


async def test_a_state_without_messages_says_nothing_of_which_are_retained() -> None:
    async def step(state: dict[str, Any]) -> dict[str, Any]:
        return {"steps": ["step"]}

    run = RecordedRun({"input": {"steps": []}})
    await executor_of(one_node(step)).execute(run)
    assert run.retained is None


def test_a_state_in_which_nothing_changed_has_no_new_messages() -> None:
    state = {"messages": [HumanMessage(content="x", id=str(number)) for number in range(100)]}
    new = NewMessages("t")
    assert len(list(new.of(state))) == 100
    state["messages"] = [*state["messages"], HumanMessage(content="last", id="last")]
    assert [message["id"] for message in new.of(state)] == ["last"]
    assert not new.changed_in_place
    assert not new.differ(state)


def test_messages_of_langchain_are_encoded_without_a_dump(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [
        HumanMessage([{"type": "text", "text": "x"}], id="1", extra="kept"),
        AIMessage("a", tool_calls=[{"name": "t", "args": {"a": 1}, "id": "c", "type": "tool_call"}]),
        AIMessageChunk("x", tool_call_chunks=[{"name": "t", "args": "{", "id": "c", "index": 0}]),
        ToolMessage("r", tool_call_id="c", artifact={"bytes": b"x"}),
    ]
    dumped = [encode(message.model_dump(warnings=False)) for message in whole]
    for message in whole:
        monkeypatch.setattr(type(message), "model_dump", None)
    assert [encode(message) for message in whole] == dumped


class Talk(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]


CHANGES: list[tuple[str, Any]] = [
    ("content", [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]),
    ("response_metadata", {"model_name": "m-1"}),
    ("additional_kwargs", {"seen": True}),
    ("usage_metadata", {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}),
    ("tool_calls", [{"name": "clock", "args": {}, "id": "c", "type": "tool_call"}]),
]


@pytest.mark.parametrize(("part", "changed"), CHANGES, ids=[part for part, _ in CHANGES])
async def test_a_message_that_a_later_node_changes_in_place_is_recorded_by_that_run(part: str, changed: Any) -> None:
    async def say(state: Talk) -> dict[str, Any]:
        usage = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
        return {"messages": [AIMessage([{"type": "text", "text": "one"}], id="a", usage_metadata=usage)]}

    async def change(state: Talk) -> dict[str, Any]:
        message = state["messages"][-1]
        held = getattr(message, part)
        if isinstance(held, list):
            held[:] = changed
        else:
            held.clear()
            held.update(changed)
        return {"messages": [message]}

    saver = InMemorySaver()
    executor = executor_of(talk(say, change), saver)
    run = RecordedRun({"input": {"messages": [HumanMessage("hi", id="h")]}})
    await executor.execute(run)
    assert [(message["id"], message.get(part)) for message in run.messages][-1] == ("a", changed)
    assert [message["id"] for message in run.messages] == ["h", "a", "a"]
    assert run.data_of("values")[-1]["messages"][-1][part] == changed
    state = await talk(say, change).copy({"checkpointer": saver}).aget_state(thread_of(run))
    assert getattr(state.values["messages"][-1], part) == changed


async def test_a_change_in_place_that_is_not_saved_is_taken_back_from_the_list_by_the_same_run() -> None:
    async def say(state: Talk) -> dict[str, Any]:
        return {"messages": [AIMessage(["one"], id="a")]}

    async def change(state: Talk) -> dict[str, Any]:
        state["messages"][-1].content.append("two")
        return {}

    saver = InMemorySaver()
    run = RecordedRun({"input": {"messages": []}})
    await executor_of(talk(say, change), saver).execute(run)
    state = await talk(say, change).copy({"checkpointer": saver}).aget_state(thread_of(run))
    assert run.messages[-1]["content"] == state.values["messages"][-1].content


def talk(first: Any, second: Any) -> Any:
    builder = StateGraph(Talk)
    builder.add_node("first", first)
    builder.add_node("second", second)
    builder.add_edge(START, "first")
    builder.add_edge("first", "second")
    return builder.compile()


def thread_of(run: RecordedRun) -> Any:
    return {"configurable": {"thread_id": run.run.thread_id}}


def test_a_message_that_changed_is_new_whether_replaced_or_changed_in_place() -> None:
    new = NewMessages("t")
    message = HumanMessage("one", id="1")
    assert len(list(new.of({"messages": [message]}))) == 1
    assert list(new.of({"messages": [HumanMessage("one", id="1")]})) == []
    message.content = "two"
    assert [each["content"] for each in new.of({"messages": [message]})] == ["two"]
    assert [each["content"] for each in new.of({"messages": [HumanMessage("three", id="1")]})] == ["three"]


def test_a_message_without_id_gets_the_same_one_in_every_run() -> None:
    states = [{"messages": [{"role": "user", "content": "hi"}, {"role": "user", "content": "hi"}]} for _ in range(2)]
    first, second = (list(NewMessages("t").of(state)) for state in states)
    assert first == second
    assert first[0]["type"] == "human"
    assert first[0]["id"] != first[1]["id"] != ""
    assert next(NewMessages("other").of(states[0]))["id"] != first[0]["id"]


@pytest.mark.parametrize("state", [None, 7, {}, {"messages": "hi"}, {"messages": [7, None, {"content": "?"}]}])
def test_what_is_no_message_is_passed_over(state: Any) -> None:
    assert list(NewMessages("t").of(state)) == []


def test_a_message_that_is_no_chunk_is_complete() -> None:
    (metadata, complete) = MessageFrames().of(
        ToolMessage("12:00", tool_call_id="c", id="m"), {"langgraph_node": "tool"}
    )
    assert metadata == ("messages/metadata", b'{"m":{"metadata":{"langgraph_node":"tool"}}}')
    assert complete[0] == "messages/complete"
    assert json.loads(complete[1])[0]["type"] == "tool"


def test_partials_accumulate_and_interleaved_messages_stay_apart() -> None:
    frames = MessageFrames()
    sent = [
        frame
        for number, text in [(1, "a"), (2, "x"), (1, "b"), (2, "y")]
        for frame in frames.of(AIMessageChunk(content=text, id=str(number)), {})
    ]
    partial = [json.loads(data)[0] for event, data in sent if event == "messages/partial"]
    assert [(each["id"], each["content"], each["type"]) for each in partial] == [
        ("1", "a", "ai"),
        ("2", "x", "ai"),
        ("1", "ab", "ai"),
        ("2", "xy", "ai"),
    ]
    assert sum(event == "messages/metadata" for event, _ in sent) == 2


async def test_both_forms_of_messages_give_the_tuples_alone(executor: LangGraphExecutor) -> None:
    modes = ["messages", "messages-tuple"]
    run = RecordedRun({"input": {"messages": [], "n_tokens": 2}, "stream_mode": modes})
    await executor.execute(run)
    assert set(run.events) == {"messages"}


@pytest.mark.parametrize("mode", ["events", "debug", "tasks", "checkpoints", "nonsense"])
async def test_a_mode_that_is_not_offered_is_refused(executor: LangGraphExecutor, mode: str) -> None:
    with pytest.raises(ValueError, match=f"stream_mode {mode} is not offered"):
        await executor.execute(RecordedRun({"input": {}, "stream_mode": ["values", mode]}))


async def test_an_assistant_may_be_named_by_graph_by_id_or_in_the_config(executor: LangGraphExecutor) -> None:
    kwargs = {"input": {"messages": [], "n_tokens": 1}, "stream_mode": ["updates"]}
    for run in (
        RecordedRun(kwargs, assistant_id="agent"),
        RecordedRun(kwargs, assistant_id=assistant_id("agent")),
        RecordedRun({**kwargs, "config": {"configurable": {"graph_id": "agent"}}}, assistant_id="my-own"),
    ):
        await executor.execute(run)
        assert len(run.frames) == 3
    with pytest.raises(GraphLoadError, match="assistant stranger is no graph of this worker; it has: agent, nested"):
        await executor.execute(RecordedRun(kwargs, assistant_id="stranger"))


def test_the_config_names_the_run_and_a_request_cannot_rename_it(registry: GraphRegistry) -> None:
    asked = {
        "tags": ["t"],
        "recursion_limit": 7,
        "metadata": {"cm": 2, "run_id": "forged"},
        "configurable": {"mine": 1, "thread_id": "forged", "__pregel_checkpointer": {}},
    }
    run = RecordedRun({"config": asked}, metadata={"m": 1, "assistant_id": "forged"}, user_id="ada", attempt=2).run
    config: Any = GraphRequest.of(run, 2, registry).config
    assert config["tags"] == ["t"]
    assert config["recursion_limit"] == 7
    assert config["configurable"] == {
        "mine": 1,
        "run_id": run.run_id,
        "thread_id": run.thread_id,
        "graph_id": "agent",
        "assistant_id": assistant_id("agent"),
        "user_id": "ada",
        "langgraph_auth_user_id": "ada",
        "checkpoint_ns": "",
    }
    metadata = config["metadata"]
    assert (metadata["m"], metadata["cm"], metadata["run_attempt"]) == (1, 2, 2)
    assert metadata["run_id"] == run.run_id
    assert metadata["assistant_id"] == assistant_id("agent")


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"resume": "yes"}, Command(resume="yes")),
        ({"resume": False, "goto": None, "update": None}, Command(resume=False)),
        ({"update": {"n": 1}, "goto": "gate"}, Command(update={"n": 1}, goto=["gate"])),
        ({"update": [["n", 1]]}, Command(update=[("n", 1)])),
        ({"goto": [{"node": "gate", "input": {"n": 1}}]}, Command(goto=[Send("gate", {"n": 1})])),
    ],
)
def test_a_command_is_what_the_client_named(registry: GraphRegistry, asked: Any, expected: Any) -> None:
    assert GraphRequest.of(RecordedRun({"command": asked}).run, 1, registry).input == expected


@pytest.mark.parametrize(
    ("kwargs", "durability"),
    [
        ({}, "async"),
        ({"durability": "sync"}, "sync"),
        ({"checkpoint_during": False}, "exit"),
        ({"durability": None}, "async"),
    ],
)
def test_durability_is_as_asked(registry: GraphRegistry, kwargs: Any, durability: str) -> None:
    assert GraphRequest.of(RecordedRun(kwargs).run, 1, registry).durability == durability


async def test_a_run_may_start_from_an_older_checkpoint(executor: LangGraphExecutor) -> None:
    first = RecordedRun({"input": {"messages": [], "n_tokens": 1}, "interrupt_before": ["model"]})
    paused = await executor.execute(first)
    thread_id = first.run.thread_id
    await executor.execute(RecordedRun({"input": None}, thread_id=thread_id))
    fork = RecordedRun(
        {"input": None, "checkpoint_id": paused.checkpoint_id, "stream_mode": ["updates"]}, thread_id=thread_id
    )
    await executor.execute(fork)
    assert [list(update) for update in fork.data_of("updates")] == [["model"], ["gate"]]


@pytest.mark.parametrize(
    "named",
    [
        {"checkpoint_id": str(uuid4())},
        {"checkpoint": {"checkpoint_id": str(uuid4())}},
        {"config": {"configurable": {"checkpoint_id": str(uuid4())}}},
    ],
)
async def test_a_run_from_a_checkpoint_that_is_not_there_fails_and_leaves_the_state_as_it_was(
    executor: LangGraphExecutor, named: dict[str, Any]
) -> None:
    first = RecordedRun({"input": {"messages": [], "n_tokens": 1}})
    ended = await executor.execute(first)
    lost = RecordedRun({"input": {"messages": [], "n_tokens": 1}, **named}, thread_id=first.run.thread_id)
    with pytest.raises(CheckpointNotFound, match="has no checkpoint"):
        await executor.execute(lost)
    assert lost.frames == []
    again = RecordedRun({"input": None}, thread_id=first.run.thread_id)
    assert (await executor.execute(again)).checkpoint_id == ended.checkpoint_id


async def test_a_cancelled_run_stops_its_graph() -> None:
    started, stopped = asyncio.Event(), asyncio.Event()

    async def wait_for_ever(state: dict[str, Any]) -> dict[str, Any]:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()
        return {}

    task = asyncio.create_task(executor_of(one_node(wait_for_ever)).execute(RecordedRun({"input": {"steps": []}})))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert stopped.is_set()


async def test_a_lost_lease_stops_the_graph_at_the_next_frame() -> None:
    stopped = asyncio.Event()

    async def tell_and_wait(state: dict[str, Any]) -> dict[str, Any]:
        get_stream_writer()("a frame")
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()
        return {}

    def refuse(event: str) -> None:
        raise LeaseLost("gone")

    run = RecordedRun({"input": {"steps": []}, "stream_mode": ["custom"]}, before_publish=refuse)
    with pytest.raises(LeaseLost):
        await executor_of(one_node(tell_and_wait)).execute(run)
    assert stopped.is_set()


async def test_a_second_attempt_goes_on_from_what_the_first_one_saved() -> None:
    calls: list[str] = []

    async def first(state: dict[str, Any]) -> dict[str, Any]:
        calls.append("first")
        return {"steps": ["first"]}

    async def second(state: dict[str, Any]) -> dict[str, Any]:
        calls.append("second")
        if calls.count("second") == 1:
            raise ConnectionError("the worker was lost here")
        return {"steps": ["second"]}

    executor = executor_of(two_nodes(first, second))
    lost = RecordedRun({"input": {"steps": ["input"]}})
    with pytest.raises(ConnectionError):
        await executor.execute(lost)
    again = next_attempt(lost)
    await executor.execute(again)
    assert calls == ["first", "second", "second"]
    assert again.frames[-1] == ("values", {"steps": ["input", "first", "second"]})


async def test_a_second_attempt_does_not_answer_a_question_that_the_first_one_raised() -> None:
    async def ask_twice(state: dict[str, Any]) -> dict[str, Any]:
        return {"steps": [interrupt("first?")]}

    async def ask_again(state: dict[str, Any]) -> dict[str, Any]:
        return {"steps": [interrupt("second?")]}

    executor = executor_of(two_nodes(ask_twice, ask_again))
    asking = RecordedRun({"input": {"steps": []}})
    await executor.execute(asking)
    answering = RecordedRun({"command": {"resume": "yes"}}, thread_id=asking.run.thread_id)
    await executor.execute(answering)  # its worker is lost before it can say so
    outcome = await executor.execute(next_attempt(answering))
    assert [interrupts[0]["value"] for interrupts in outcome.interrupts.values()] == ["second?"]


@pytest.mark.parametrize("where", [{"interrupt_before": ["gate"]}, {"interrupt_after": "*"}])
async def test_a_second_attempt_does_not_pass_a_breakpoint_where_the_first_one_stopped(
    executor: LangGraphExecutor, where: Any
) -> None:
    kwargs = {"input": {"messages": [], "n_tokens": 1}, "stream_mode": ["values", "updates"], **where}
    lost = RecordedRun(kwargs)
    paused = await executor.execute(lost)
    again = next_attempt(lost)
    assert await executor.execute(again) == paused
    assert again.frames[0] == ("updates", {"__interrupt__": []})
    assert again.frames[1] == lost.frames[-2]


async def test_a_second_attempt_of_a_finished_run_shows_its_values_and_does_nothing(
    executor: LangGraphExecutor,
) -> None:
    lost = RecordedRun({"input": {"messages": [], "n_tokens": 1}})
    await executor.execute(lost)
    again = next_attempt(lost)
    assert (await executor.execute(again)).interrupts == {}
    assert again.frames == lost.frames[-1:]


async def test_a_checkpointer_that_the_graph_was_compiled_with_is_not_used() -> None:
    theirs, ours = InMemorySaver(), InMemorySaver()

    async def step(state: dict[str, Any]) -> dict[str, Any]:
        return {"steps": ["step"]}

    graph = one_node(step).copy({"checkpointer": theirs})
    await executor_of(graph, ours).execute(RecordedRun({"input": {"steps": []}}))
    assert ours.storage
    assert not theirs.storage


@pytest.mark.parametrize(("known", "seen"), [(None, "alice"), ("ada", "ada")])
async def test_a_node_sees_the_user_that_the_client_names_when_none_is_known(known: str | None, seen: str) -> None:
    async def look(state: dict[str, Any], config: RunnableConfig) -> dict[str, Any]:
        return {"steps": [config["configurable"]["user_id"]]}

    asked = {"input": {"steps": []}, "config": {"configurable": {"user_id": "alice"}}}
    run = RecordedRun(asked, user_id=known)
    await executor_of(one_node(look)).execute(run)
    assert run.frames[-1] == ("values", {"steps": [seen]})


async def test_context_reaches_the_graph() -> None:
    class Context(TypedDict):
        who: str

    async def greet(state: dict[str, Any], runtime: Runtime[Any]) -> dict[str, Any]:
        return {"steps": [runtime.context["who"]]}

    builder = StateGraph(Steps, context_schema=Context)
    builder.add_node("greet", greet)
    builder.add_edge(START, "greet")
    run = RecordedRun({"input": {"steps": []}, "context": {"who": "ada"}})
    await executor_of(builder.compile()).execute(run)
    assert run.frames[-1] == ("values", {"steps": ["ada"]})


@dataclass
class Preferences:
    model: str = "small"
    words: int = 3
    source: str = field(default="code", init=False)


class StrictPreferences(BaseModel):
    model_config = ConfigDict(extra="forbid")

    model: str = "small"
    words: int = Field(3, alias="length")


class OptionalPreferences(TypedDict, total=False):
    model: str


@pytest.mark.parametrize(
    ("schema", "asked", "seen"),
    [
        (Preferences, {}, Preferences()),
        (Preferences, {"model": "large"}, Preferences("large")),
        (Preferences, {"model": "large", "user_id": "ada", "source": "client"}, Preferences("large")),
        (StrictPreferences, {}, StrictPreferences()),
        (StrictPreferences, {"length": 5, "user_id": "ada"}, StrictPreferences(length=5)),
        (OptionalPreferences, {}, None),  # LangGraph's own: an empty dict counts as no context
        (OptionalPreferences, {"model": "large", "user_id": "ada"}, {"model": "large", "user_id": "ada"}),
        (None, {"model": "large"}, {"model": "large"}),
        (None, {}, None),
    ],
)
async def test_the_defaults_of_a_context_schema_apply_and_what_it_does_not_know_is_left_out(
    schema: Any, asked: dict[str, Any], seen: Any
) -> None:
    given: list[Any] = []

    async def look(state: dict[str, Any], runtime: Runtime[Any]) -> dict[str, Any]:
        given.append(runtime.context)
        return {}

    builder = StateGraph(Steps, context_schema=schema)
    builder.add_node("look", look)
    builder.add_edge(START, "look")
    await executor_of(builder.compile()).execute(RecordedRun({"input": {"steps": []}, "context": asked}))
    assert given == [seen]


async def test_a_frame_that_json_has_no_word_for_does_not_end_a_run() -> None:
    async def tell(state: dict[str, Any]) -> dict[str, Any]:
        get_stream_writer()({"set": {1}, (1, 2): b"x", "big": 2**70, "error": ValueError("x"), "lone": "\ud800"})
        return {"steps": []}

    run = RecordedRun({"input": {"steps": []}, "stream_mode": ["custom"]})
    await executor_of(one_node(tell)).execute(run)
    told = {"set": [1], "(1, 2)": "eA==", "big": 2.0**70, "error": {"error": "ValueError", "message": "x"}, "lone": "?"}
    assert run.frames == [("custom", told)]


class Steps(TypedDict):
    steps: Annotated[list[str], operator.add]


class Chat(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]


async def test_chunks_that_a_node_returns_are_recorded_as_the_messages_they_are() -> None:
    async def answer(state: Chat) -> dict[str, Any]:
        return {"messages": [AIMessageChunk(content="whole", id="1"), AIMessage("other", id="2")]}

    builder = StateGraph(Chat)
    builder.add_node("answer", answer)
    builder.add_edge(START, "answer")
    run = RecordedRun({"input": {"messages": []}})
    await executor_of(builder.compile()).execute(run)
    assert [(message["id"], message["type"]) for message in run.messages] == [("1", "ai"), ("2", "ai")]


def one_node(node: Any) -> Any:
    builder = StateGraph(Steps)
    builder.add_node("node", node)
    builder.add_edge(START, "node")
    builder.add_edge("node", END)
    return builder.compile()


def two_nodes(first: Any, second: Any) -> Any:
    builder = StateGraph(Steps)
    builder.add_node("first", first)
    builder.add_node("second", second)
    builder.add_edge(START, "first")
    builder.add_edge("first", "second")
    return builder.compile()


def next_attempt(lost: RecordedRun) -> RecordedRun:
    return RecordedRun(lost.run.kwargs, thread_id=lost.run.thread_id, run_id=lost.run.run_id, attempt=lost.attempt + 1)
