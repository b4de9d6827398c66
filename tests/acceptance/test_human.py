"""Pauses for a human, over two servers: questions and breakpoints, answers by value and id, two at the same moment."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from langgraph_sdk import get_client
from langgraph_sdk.client import LangGraphClient
from langgraph_sdk.errors import ConflictError, NotFoundError

from runs_es.log.reader import LogReader
from tests.acceptance.server import Server
from tests.conftest import SCHEMA

FOLDER = Path(__file__).parent / "questions"
NAMES = ("one_by_one", "steps_and_questions", "in_one_node", "side_by_side", "in_a_subgraph", "steps")
QUESTIONS = ("one?", "two?", "three?")
START: dict[str, Any] = {"steps": []}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("questions") / "langgraph.json"
    path.write_text(json.dumps({"graphs": {name: f"{FOLDER}/graphs.py:{name}" for name in NAMES}}))
    return path


@pytest.fixture(scope="module")
def servers(module_database_url: str, config: Path) -> Iterator[list[Server]]:
    with ExitStack() as stack:
        yield [stack.enter_context(Server(module_database_url, config=config)) for _ in range(2)]


@pytest.fixture
async def clients(servers: list[Server]) -> AsyncIterator[list[LangGraphClient]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(get_client(url=server.url)) for server in servers]


@pytest.fixture(scope="module")
def log(module_database_url: str, servers: list[Server]) -> Iterator[LogReader]:
    reader = LogReader(module_database_url, SCHEMA)
    yield reader
    reader.close()


async def paused(client: LangGraphClient, graph: str) -> str:
    thread_id = str((await client.threads.create())["thread_id"])
    result: Any = await client.runs.wait(thread_id, graph, input=START)
    assert sorted(each["value"] for each in result.get("__interrupt__", ())) == sorted(await waiting(client, thread_id))
    return thread_id


async def waiting(client: LangGraphClient, thread_id: str) -> dict[str, str]:
    """What the thread waits for, question: id; the same in the thread, the list of threads and the state."""
    thread, state = await client.threads.get(thread_id), await client.threads.get_state(thread_id)
    (listed,) = await client.threads.search(ids=[thread_id])
    shown = {each["value"]: each["id"] for asked in thread["interrupts"].values() for each in asked}
    by_task = {task["id"]: task["interrupts"] for task in state["tasks"] if task["interrupts"]}
    assert thread["interrupts"] == listed["interrupts"] == by_task
    assert {each["value"]: each["id"] for each in state["interrupts"]} == shown
    assert thread["status"] == listed["status"] == ("interrupted" if state["next"] else "idle")
    return shown


async def steps(client: LangGraphClient, thread_id: str) -> list[str]:
    values: Any = (await client.threads.get_state(thread_id))["values"]
    return list(values["steps"])


async def resume(client: LangGraphClient, thread_id: str, graph: str, value: Any, **options: Any) -> Any:
    return await client.runs.wait(thread_id, graph, command={"resume": value}, raise_error=False, **options)


async def at_once(
    clients: list[LangGraphClient], thread_id: str, graph: str, resumes: list[Any], **options: Any
) -> Any:
    """Runs that answer, created at the same moment through both servers: (answer, result) of each that was admitted."""

    async def one(client: LangGraphClient, value: Any) -> tuple[Any, str] | None:
        try:
            run = await client.runs.create(thread_id, graph, command={"resume": value}, **options)
        except ConflictError:
            return None
        return value, run["run_id"]

    turns = zip(clients * len(resumes), resumes, strict=False)
    created = [run for run in await asyncio.gather(*(one(*turn) for turn in turns)) if run is not None]
    results = await asyncio.gather(*(clients[0].runs.join(thread_id, run_id) for _, run_id in created))
    return list(zip(created, results, strict=True))


def one_acted(log: LogReader, thread_id: str) -> list[str]:
    """The runs that answered. Each was created when the one before it had ended: it was for what that one left."""
    facts = log.facts(thread_id)
    at = {(each.fact.topic, each.fact.run_id): each.seq for each in facts if each.fact.topic.startswith("run.")}  # type: ignore[attr-defined]
    _, *began = [run for topic, run in at if topic == "run.started"]
    ends = [at["run.completed", run] for run in began]
    for run, end in zip(began[1:], ends, strict=False):
        assert at["run.created", run] > end, "a run answered what it could not have seen"
    return began


@pytest.mark.parametrize("strategy", ["enqueue", "reject"])
@pytest.mark.parametrize("graph", ["one_by_one", "in_one_node"])
async def test_of_answers_at_the_same_moment_exactly_one_acts(
    clients: list[LangGraphClient], log: LogReader, graph: str, strategy: Any
) -> None:
    refused = 0
    for _ in range(3):
        thread_id = await paused(clients[0], graph)
        found = await at_once(clients, thread_id, graph, ["ann", "bob", "eve"], multitask_strategy=strategy)
        began = one_acted(log, thread_id)
        answers = {run: value for (value, run), _ in found}
        told = [f"{question}: {answers[run]}" for question, run in zip(QUESTIONS, began, strict=False)]
        if graph == "one_by_one":
            assert await steps(clients[1], thread_id) == told
            assert list(await waiting(clients[1], thread_id)) == list(QUESTIONS[len(began) :][:1])
        for (_, run_id), result in found:
            run = await clients[0].runs.get(thread_id, run_id)
            if run_id not in began:
                refused += 1
                assert (run["status"], result["__error__"]["error"]) == ("error", "UnknownInterruptError")
                stream = clients[1].runs.join_stream(thread_id, run_id, last_event_id="-1")
                assert [part.event async for part in stream] == ["error", "end"]
        if strategy == "reject":
            assert len(found) == len(began)
    assert strategy == "reject" or refused


async def test_an_answer_that_was_overtaken_leaves_the_next_question_open(clients: list[LangGraphClient]) -> None:
    client = clients[0]
    thread_id = await paused(client, "steps_and_questions")
    slow = {"resume": "ann", "update": {"delay": 0.3}}
    first = await client.runs.create(thread_id, "steps_and_questions", command=slow)  # type: ignore[arg-type]
    late = await resume(clients[1], thread_id, "steps_and_questions", "bob")
    assert late["__error__"]["error"] == "UnknownInterruptError"
    assert (await client.runs.get(thread_id, first["run_id"]))["status"] == "success"
    assert list(await waiting(client, thread_id)) == ["two?"]
    assert await steps(client, thread_id) == ["one?: ann", "slow"]
    assert "__error__" not in await resume(client, thread_id, "steps_and_questions", "bob")
    assert await steps(client, thread_id) == ["one?: ann", "slow", "two?: bob"]


async def test_an_answer_whose_rival_was_cancelled_before_it_began_acts(clients: list[LangGraphClient]) -> None:
    client = clients[0]
    thread_id = await paused(client, "one_by_one")
    rival = await client.runs.create(thread_id, "one_by_one", command={"resume": "ann"}, after_seconds=3600)
    await client.runs.cancel(thread_id, rival["run_id"])
    assert list(await waiting(client, thread_id)) == ["one?"]
    await resume(clients[1], thread_id, "one_by_one", "bob")
    assert await steps(client, thread_id) == ["one?: bob"]


async def test_several_questions_are_answered_by_id_together_or_one_after_the_other(
    clients: list[LangGraphClient],
) -> None:
    client = clients[0]
    for order in (("left?", "right?"), ("right?", "left?")):
        thread_id = await paused(client, "side_by_side")
        asked = await waiting(client, thread_id)
        by_value = await resume(client, thread_id, "side_by_side", "which?", strict_resume=True)
        assert by_value["__error__"]["error"] == "UnknownInterruptError"
        assert await waiting(client, thread_id) == asked
        first, second = order
        left = await resume(client, thread_id, "side_by_side", {asked[first]: "yes"})
        assert [each["value"] for each in left["__interrupt__"]] == [second]
        assert await waiting(client, thread_id) == {second: asked[second]}
        await resume(client, thread_id, "side_by_side", {asked[second]: "no"})
        assert await waiting(client, thread_id) == {}
        assert sorted(await steps(client, thread_id)) == sorted([f"{first}: yes", f"{second}: no", "both"])
    thread_id = await paused(client, "side_by_side")
    asked = await waiting(client, thread_id)
    await resume(client, thread_id, "side_by_side", {name: question for question, name in asked.items()})
    assert sorted(await steps(client, thread_id)) == ["both", "left?: left?", "right?: right?"]


async def test_two_humans_who_answer_different_questions_at_once_both_count_and_the_same_one_once(
    clients: list[LangGraphClient],
) -> None:
    thread_id = await paused(clients[0], "side_by_side")
    asked = await waiting(clients[0], thread_id)
    left, right = asked["left?"], asked["right?"]
    found = await at_once(clients, thread_id, "side_by_side", [{left: "ann"}, {right: "bob"}, {left: "eve"}])
    assert await waiting(clients[1], thread_id) == {}
    taken = "ann" if "__error__" not in found[0][1] else "eve"
    assert sorted(await steps(clients[0], thread_id)) == ["both", f"left?: {taken}", "right?: bob"]


async def test_a_strict_answer_to_what_does_not_wait_fails_and_changes_nothing(clients: list[LangGraphClient]) -> None:
    client = clients[0]
    for graph in ("one_by_one", "steps"):
        thread_id = await paused(client, graph)
        before, asked = await client.threads.get_state(thread_id), await waiting(client, thread_id)
        wrong: list[Any] = [{"0" * 32: "x"}, {}]
        for answer in [*wrong, *([] if asked else ["x"])]:
            result = await resume(client, thread_id, graph, answer, strict_resume=True)
            assert result["__error__"]["error"] == "UnknownInterruptError"
            assert (await client.runs.list(thread_id))[0]["status"] == "error"
            assert await client.threads.get_state(thread_id) == before
            assert await waiting(client, thread_id) == asked
            lenient = await resume(client, thread_id, graph, answer)  # ignored, as the platform does
            assert "__error__" not in lenient
            assert await waiting(client, thread_id) == asked
            before = await client.threads.get_state(thread_id)
    assert (await client.http.get("/info"))["flags"]["strict_resume"] is True


async def test_a_question_in_a_subgraph_is_shown_there_and_answered(clients: list[LangGraphClient]) -> None:
    client = clients[0]
    thread_id = await paused(client, "in_a_subgraph")
    asked = await waiting(client, thread_id)
    assert list(asked) == ["inner?"]
    (task,) = (await client.threads.get_state(thread_id, subgraphs=True))["tasks"]
    assert [each["interrupts"][0]["value"] for each in task["state"]["tasks"]] == ["inner?"]
    await resume(client, thread_id, "in_a_subgraph", {asked["inner?"]: "yes"}, strict_resume=True)
    assert await waiting(client, thread_id) == {}
    assert await steps(client, thread_id) == ["inner?: yes", "after"]


@pytest.mark.parametrize(
    ("where", "stops"),
    [
        ({"interrupt_before": ["b"]}, [["a"]]),
        ({"interrupt_after": ["b"]}, [["a", "b"]]),
        ({"interrupt_before": "*"}, [[], ["a"], ["a", "b"]]),
        ({"interrupt_after": "*"}, [["a"], ["a", "b"]]),
    ],
    ids=str,
)
@pytest.mark.parametrize("how", [{"input": None}, {"command": {"resume": "on"}}], ids=["input null", "command"])
async def test_breakpoints_stop_each_time_and_are_passed_by_either(
    clients: list[LangGraphClient], where: Any, stops: list[list[str]], how: Any
) -> None:
    client = clients[0]
    thread_id = str((await client.threads.create())["thread_id"])
    await client.runs.wait(thread_id, "steps", input=START, **where)
    for reached in stops:
        assert await steps(client, thread_id) == reached
        assert (await client.threads.get(thread_id))["status"] == "interrupted"
        state = await client.threads.get_state(thread_id)
        assert state["next"] == ["abc"[len(reached)]]
        assert [task["interrupts"] for task in state["tasks"]] == [[]]
        await client.runs.wait(thread_id, "steps", **how, **where)
    assert await steps(client, thread_id) == ["a", "b", "c"]
    assert (await client.threads.get(thread_id))["status"] == "idle"


async def test_of_two_who_let_a_paused_run_go_on_at_once_one_does(
    clients: list[LangGraphClient], log: LogReader
) -> None:
    thread_id = str((await clients[0].threads.create())["thread_id"])
    await clients[0].runs.wait(thread_id, "steps", input=START, interrupt_before="*")
    runs = await asyncio.gather(
        *(client.runs.create(thread_id, "steps", input=None, interrupt_before="*") for client in clients)
    )
    await asyncio.gather(*(clients[0].runs.join(thread_id, run["run_id"]) for run in runs))
    assert len(await steps(clients[0], thread_id)) == len(one_acted(log, thread_id))


async def test_a_command_sends_elsewhere_and_changes_the_state(clients: list[LangGraphClient]) -> None:
    client = clients[0]
    thread_id = await paused(client, "steps")
    command: Any = {"goto": "b", "update": {"steps": ["again"]}}
    await client.runs.wait(thread_id, "steps", command=command)
    assert await steps(client, thread_id) == ["a", "b", "c", "again", "b", "c"]
    with_input: Any = {"goto": {"node": "c", "input": {"steps": []}}}
    await client.runs.wait(thread_id, "steps", command=with_input)
    assert (await steps(client, thread_id))[6:] == ["c"]


async def test_a_run_from_an_earlier_checkpoint_asks_that_question_again(clients: list[LangGraphClient]) -> None:
    client = clients[0]
    thread_id = await paused(client, "one_by_one")
    first = (await client.threads.get_state(thread_id))["checkpoint"]
    await resume(client, thread_id, "one_by_one", "ann")
    assert list(await waiting(client, thread_id)) == ["two?"]
    for named in ({"checkpoint_id": first["checkpoint_id"]}, {"checkpoint": first}):
        again: Any = await client.runs.wait(thread_id, "one_by_one", input=None, **named)  # type: ignore[arg-type]
        assert [each["value"] for each in again["__interrupt__"]] == ["one?"]
        assert list(await waiting(client, thread_id)) == ["one?"]
    await resume(client, thread_id, "one_by_one", "bob")
    assert await steps(client, thread_id) == ["one?: bob"]


async def test_what_a_run_finds_missing_is_made_or_refused_and_what_it_leaves_kept_or_deleted(
    clients: list[LangGraphClient],
) -> None:
    client = clients[0]
    missing = str(uuid.uuid4())
    with pytest.raises(NotFoundError):
        await client.runs.create(missing, "steps", input=START, if_not_exists="reject")
    await client.runs.wait(missing, "steps", input=START, if_not_exists="create")
    assert await steps(client, missing) == ["a", "b", "c"]
    for mode in ("keep", "delete"):
        run: Any = await client.http.post(
            "/runs", json={"assistant_id": "steps", "input": START, "on_completion": mode}
        )
        result: Any = await client.http.get(f"/runs/{run['run_id']}/join")
        assert result["steps"] == ["a", "b", "c"]
        if mode == "keep":
            assert await steps(client, run["thread_id"]) == ["a", "b", "c"]
        else:
            with pytest.raises(NotFoundError):
                await client.threads.get(run["thread_id"])


@pytest.mark.faults
async def test_a_kill_goes_on_from_the_last_checkpoint_unless_none_was_to_be_saved_before_the_exit(
    database_url: str, config: Path
) -> None:
    """Killed in the second of three steps. What each attempt did is told by its `updates`, behind its `metadata`."""
    asked: list[Any] = [{"durability": each} for each in ("sync", "async", "exit")]
    asked += [{"checkpoint_during": during} for during in (True, False)]
    redone = [["b", "c"], ["b", "c"], ["a", "b", "c"], ["b", "c"], ["a", "b", "c"]]
    quick = {"RUNS_ES_HEARTBEAT_SECONDS": "0.3", "RUNS_ES_LEASE_SECONDS": "2", "RUNS_ES_SWEEP_SECONDS": "0.3"}
    with Server(database_url, config=config, env=quick) as server:
        runs = []
        async with get_client(url=server.url) as client:
            for options in asked:
                thread_id = (await client.threads.create())["thread_id"]
                given = {"steps": [], "delay": 1.0}
                body = {"assistant_id": "steps", "input": given, "stream_mode": ["updates"], **options}
                run: Any = await client.http.post(f"/threads/{thread_id}/runs", json=body)
                runs.append((thread_id, run["run_id"]))
            with closing(LogReader(database_url, SCHEMA)) as reader:
                while not all(has_streamed(reader, thread_id, b'"a"') for thread_id, _ in runs):
                    pass
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            for (thread_id, run_id), expected in zip(runs, redone, strict=True):
                seen: list[Any] = []
                async for part in client.runs.join_stream(thread_id, run_id, last_event_id="-1"):
                    seen.append(part.data["attempt"] if part.event == "metadata" else next(iter(part.data or {}), None))
                assert seen == [1, "a", 2, *expected, None]
                assert await steps(client, thread_id) == ["a", "b", "c"]


def has_streamed(reader: LogReader, thread_id: str, text: bytes) -> bool:
    rows = reader.rows_after(thread_id, 0, 100)
    return any(text in body for row in rows if row.is_page for body in row.bodies)
