"""Opening the store from Python: without LangGraph, in a coroutine, with arguments that are wrong, and two at once."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runs_es import (
    ActiveRun,
    CreateRunCommand,
    FunctionExecutor,
    GetRunQuery,
    RunStatus,
    Settings,
    Store,
    StoreUnavailable,
    open_store,
    open_store_async,
)

# An interpreter in which LangGraph is not installed.
_BLOCKED = """
import sys

class NoLangGraph:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("langgraph", "langchain_core", "langsmith"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NoLangGraph())
"""


def without_langgraph(code: str, database_url: str, folder: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "RUNS_ES_DATABASE_URL": database_url}
    return subprocess.run(
        [sys.executable, "-c", _BLOCKED + code],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def test_the_store_opens_without_langgraph_to_read_and_to_record(empty_database_url: str, tmp_path: Path) -> None:
    code = """
from runs_es import Settings, open_store
with open_store(Settings(), work=False) as store:
    print(store.registry.names, store.threads.search())
    assert not any(name.startswith("langgraph") for name in sys.modules if sys.modules[name])
"""
    ran = without_langgraph(code, empty_database_url, tmp_path)
    assert ran.stdout.strip() == "[] []", ran.stderr


def test_functions_are_executed_without_langgraph(database_url: str, tmp_path: Path) -> None:
    (tmp_path / "agents.py").write_text("async def shout(given):\n    return {'said': given.upper()}\n")
    (tmp_path / "langgraph.json").write_text(json.dumps({"graphs": {"shout": "./agents.py:shout"}}))
    code = """
import asyncio
from runs_es import CreateRunCommand, Settings, open_store_async

async def main():
    async with open_store_async(Settings(), config="langgraph.json") as store:
        run = await store.service.create_background(CreateRunCommand(assistant_id="shout", input="hello"))
        print(await store.service.result(run.thread_id, run.run_id))
        async with store.reading_state():
            print((await store.state.get(run.thread_id, "shout"))["values"])

asyncio.run(main())
"""
    ran = without_langgraph(code, database_url, tmp_path)
    assert ran.stdout.splitlines() == ["{'said': 'HELLO'}", "{'said': 'HELLO'}"], ran.stderr


def test_what_needs_langgraph_says_so(database_url: str, tmp_path: Path) -> None:
    ran = without_langgraph("from runs_es import open_store; open_store()", database_url, tmp_path)
    assert "the demo agent needs LangGraph. Install runs-es[langgraph]" in ran.stderr.splitlines()[-1]
    (tmp_path / "graph.py").write_text("from langgraph.graph import StateGraph\ngraph = StateGraph(dict)\n")
    (tmp_path / "langgraph.json").write_text(json.dumps({"graphs": {"mine": "./graph.py:graph"}}))
    code = "from runs_es import open_store; open_store(config='langgraph.json')"
    ran = without_langgraph(code, database_url, tmp_path)
    assert "LangGraph is missing" in ran.stderr.splitlines()[-1]
    assert "install runs-es[langgraph]" in ran.stderr.splitlines()[-1]


class Executes:
    """Ends each run at once and remembers for whom."""

    def __init__(self) -> None:
        self.seen: list[str | None] = []

    async def execute(self, run: ActiveRun) -> None:
        self.seen.append(run.run.assistant_id)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"executor": object()}, TypeError, "executor must have a method `async def execute"),
        ({"executor": Executes}, TypeError, "Executes is a class"),
        ({"settings": "postgresql://localhost/x"}, TypeError, "settings must be a runs_es.Settings, not str"),
        ({"config": 3}, TypeError, "config must be the path"),
        ({"executor": Executes(), "config": "langgraph.json"}, ValueError, "an executor or a config"),
        ({"executor": Executes(), "queues": "gpu"}, ValueError, "no queue gpu: RUNS_ES_QUEUES knows default"),
        ({"executor": Executes(), "assistants": [3]}, ValueError, "assistants must be strings"),
    ],
)
def test_arguments_are_refused_before_anything_is_opened(
    settings: Settings, arguments: dict[str, Any], error: type[Exception], text: str
) -> None:
    nowhere = settings.model_copy(update={"database_url": "postgresql://nobody@127.0.0.1:1/none"})
    with pytest.raises(error, match=text):
        open_store(**{"settings": nowhere, **arguments})


async def test_opening_and_closing_in_a_coroutine_block_no_loop(settings: Settings) -> None:
    loop_thread = threading.get_ident()
    opened_in: list[int] = []
    closed_in: list[int] = []
    entered = Store._open
    leaving = Store.close

    class Watched(Executes):
        pass

    def noted_open(store: Store, arguments: Any) -> None:
        opened_in.append(threading.get_ident())
        entered(store, arguments)

    def noted_close(store: Store) -> None:
        closed_in.append(threading.get_ident())
        leaving(store)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "_open", noted_open)
        patch.setattr(Store, "close", noted_close)
        async with open_store_async(settings, executor=Watched()) as store:
            run = await store.service.create_background(CreateRunCommand(assistant_id="a"))
            await store.service.ended(run.thread_id, run.run_id)
    assert len(opened_in) == len(closed_in) == 1
    assert loop_thread not in opened_in + closed_in


async def test_who_gives_up_waiting_for_the_store_to_open_leaves_none_open(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go, closed = threading.Event(), threading.Event(), threading.Event()
    entered, leaving = Store._open, Store.close

    def slow_open(store: Store, arguments: Any) -> None:
        begun.set()
        assert go.wait(30)
        entered(store, arguments)

    def noted_close(store: Store) -> None:
        leaving(store)
        closed.set()

    monkeypatch.setattr(Store, "_open", slow_open)
    monkeypatch.setattr(Store, "close", noted_close)

    async def use() -> None:
        async with open_store_async(settings, executor=Executes()):
            raise AssertionError("it was given up before")

    using = asyncio.create_task(use())
    await asyncio.to_thread(begun.wait, 30)
    using.cancel()
    with pytest.raises(asyncio.CancelledError):
        await using
    go.set()
    assert await asyncio.to_thread(closed.wait, 30)


async def test_each_of_two_stores_executes_the_assistants_that_it_names(settings: Settings) -> None:
    parrots, crows = Executes(), Executes()
    async with (
        open_store_async(settings, executor=parrots, assistants="parrot") as store,
        open_store_async(settings, executor=crows, assistants=["crow", "raven"]) as other,
    ):
        asked = ["parrot", "crow", "raven", "parrot", "crow", "parrot"]
        # Made by either store, and on threads of all kinds: one behind the other too.
        runs = [
            await [store, other][number % 2].service.create_background(
                CreateRunCommand(thread_id=f"t{number // 3}", create_thread=True, assistant_id=name)
            )
            for number, name in enumerate(asked)
        ]
        for run in runs:
            await store.service.ended(run.thread_id, run.run_id)
        snapshots = [await store.service.get_run(GetRunQuery(run.run_id)) for run in runs]
    assert [each and each.status for each in snapshots] == [RunStatus.SUCCESS] * len(runs)
    assert sorted(parrots.seen, key=str) == ["parrot"] * 3
    assert sorted(crows.seen, key=str) == ["crow", "crow", "raven"]


async def test_a_run_that_nobody_serves_waits_for_who_does(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    quick = settings.model_copy(update={"sweep_seconds": 0.05})
    parrots, anybody = Executes(), Executes()
    async with open_store_async(quick, executor=parrots, assistants="parrot") as store:
        lonely = await store.service.create_background(CreateRunCommand("lonely", "crow", create_thread=True))
        # Older than these, and looked at by several sweeps meanwhile.
        for _ in range(3):
            run = await store.service.create_background(CreateRunCommand(assistant_id="parrot"))
            await store.service.ended(run.thread_id, run.run_id)
        waiting = await store.service.get_run(GetRunQuery(lonely.run_id))
        assert waiting is not None
        assert (waiting.status, waiting.attempt) == (RunStatus.PENDING, 0)
        async with open_store_async(quick, executor=anybody):
            await store.service.ended(lonely.thread_id, lonely.run_id)
    assert parrots.seen == ["parrot"] * 3
    assert anybody.seen == ["crow"]
    assert (
        "runs of the assistant crow stay pending until another store serves them; this one serves: parrot"
        in caplog.text
    )


async def test_a_misspelt_assistant_is_told_with_the_nearest_name(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_store_async(settings, executor=Executes(), assistants=["parrot", "crow"]) as store:
        await store.service.create_background(CreateRunCommand(assistant_id="parot"))
        await store.service.create_background(CreateRunCommand())
    assert "runs of the assistant parot (did you mean parrot?) stay pending" in caplog.text
    assert "runs that name no assistant stay pending" in caplog.text


async def test_functions_and_attributes_name_the_assistants_too(settings: Settings) -> None:
    async def shout(given: str) -> dict[str, str]:
        return {"said": given.upper()}

    class Crow(Executes):
        assistants = ("crow",)

    crows = Crow()
    async with (
        open_store_async(settings, executor=FunctionExecutor({"shout": shout})) as store,
        open_store_async(settings, executor=crows),
    ):
        for name, result in (("shout", {"said": "HI"}), ("crow", {}), ("shout", {"said": "HI"}), ("crow", {})):
            assert await store.service.create_and_wait(CreateRunCommand(assistant_id=name, input="hi")) == result
    assert crows.seen == ["crow", "crow"]


async def test_a_closed_store_says_so_whatever_it_is_asked(settings: Settings) -> None:
    store = await asyncio.to_thread(lambda: open_store(settings, executor=Executes()))
    await store.service.create_thread("t")
    run = await store.service.create_background(CreateRunCommand("t", "a"))
    await store.service.ended("t", run.run_id)
    await asyncio.to_thread(store.close)
    await asyncio.to_thread(store.close)  # to close twice is no error

    calls: list[Callable[[], Any]] = [
        lambda: store.service.create_background(CreateRunCommand("t", "a")),
        lambda: store.service.create_and_stream(CreateRunCommand("t", "a")),
        lambda: store.service.get_run(GetRunQuery(run.run_id)),
        lambda: store.service.create_thread("u"),
        lambda: store.service.ended("t", run.run_id),
        lambda: store.repository.get(run.run_id),
        lambda: store.repository.list_by_thread("t"),
        lambda: store.repository.delete(run.run_id),
        lambda: store.event_log.list_messages_by_run("t", run.run_id),
        lambda: store.event_log.list_events_by_run("t", None),
        lambda: store.scheduler.start(run.run_id),
        lambda: store.supervisor.cancel(run.run_id),
        lambda: anext(store.broker.subscribe(run.run_id)),
        lambda: asyncio.to_thread(store.runs.get, run.run_id),
        lambda: asyncio.to_thread(store.threads.search),
        lambda: asyncio.to_thread(store.events.list_events_by_run, "t", None),
        lambda: asyncio.to_thread(store.usage.by_model, "t"),
    ]
    for call in calls:
        with pytest.raises(StoreUnavailable, match=r"^the store is closed$"):
            await call()
