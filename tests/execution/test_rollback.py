"""Cancel by rollback: the thread is what it was before the run, and the log still tells of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from runs_es.domain import CancelAction, Provenance, RunNotFound, RunScope
from runs_es.service.commands import (
    CancelRunCommand,
    CreateRunCommand,
    GetRunQuery,
    ListRunMessagesQuery,
    ListRunsQuery,
)
from runs_es.settings import Settings
from runs_projections.wiring import Store, open_store
from tests.execution.test_worker import QUICK, until

GRAPHS = Path(__file__).parent / "wire_graphs" / "graph.py"
TABLES = ("checkpoints", "checkpoint_blobs", "checkpoint_writes")
SLOW = {"n_tokens": 5000, "delay": 0.005}
WHO = Provenance(actor="user:ada", reason="the wrong question")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graphs") / "langgraph.json"
    path.write_text(json.dumps({"graphs": {"agent": f"{GRAPHS}:agent", "nested": f"{GRAPHS}:nested"}}))
    return path


async def within(
    settings: Settings, config: Path, body: Callable[[Store], Awaitable[None]], *, work: bool = True
) -> None:
    quick = settings.model_copy(update=QUICK)
    store = await asyncio.to_thread(lambda: open_store(quick, config=config, work=work))
    try:
        async with store.reading_state():
            await asyncio.wait_for(body(store), 40)
    finally:
        await asyncio.to_thread(store.close)


def command(graph: str = "agent", text: str = "hello", **given: Any) -> CreateRunCommand:
    options = {key: given.pop(key) for key in ("command", "scope", "multitask_strategy") if key in given}
    messages = {"messages": [{"role": "user", "content": text, "id": text}]}
    asked = None if "command" in options else {**messages, **given}
    modes = ("values", "messages-tuple")
    return CreateRunCommand(
        thread_id="t", create_thread=True, assistant_id=graph, input=asked, stream_mode=modes, **options
    )


def saved(settings: Settings) -> dict[str, list[Any]]:
    """All that is stored of checkpoints."""
    with psycopg.connect(str(settings.database_url)) as connection:
        return {
            table: connection.execute(
                sql.SQL("select * from runs_es_checkpoints.{} t order by t::text").format(sql.Identifier(table))
            ).fetchall()
            for table in TABLES
        }


async def seen(store: Store, graph: str = "agent") -> dict[str, Any]:
    """What a reader finds of the thread."""
    assert store.state is not None
    runs = await store.service.list_runs(ListRunsQuery(thread_id="t"))
    thread = await asyncio.to_thread(store.threads.get, "t")
    assert thread is not None
    (found,) = await asyncio.to_thread(lambda: store.threads.search(ids=["t"]))
    assert found.status == thread.status
    return {
        "state": await store.state.get("t", graph),
        "history": await store.state.history("t", graph, 50),
        "runs": [(run.run_id, run.status) for run in runs],
        "messages": await store.service.list_run_messages(ListRunMessagesQuery(thread_id="t")),
        "thread": (thread.status, thread.interrupts, thread.error, found.status, found.interrupts, found.error),
    }


async def busy(store: Store, run_id: str) -> None:
    """Wait until the run has recorded a message, and so has saved state."""
    await until(lambda: bool(store.log.reader.facts("t", run_id=run_id, topics=["message.recorded"])))


def story(store: Store, run_id: str) -> list[tuple[str, str | None, str | None]]:
    facts = store.log.reader.run_facts(run_id)
    return [(each.fact.topic, each.provenance.actor, each.provenance.reason) for each in facts]


@pytest.mark.parametrize("graph", ["agent", "nested"])
async def test_a_running_run_that_is_rolled_back_leaves_nothing_but_its_story(
    settings: Settings, config: Path, graph: str
) -> None:
    async def body(store: Store) -> None:
        await store.service.create_and_wait(command(graph))
        before, kept = await seen(store, graph), saved(settings)
        run = await store.service.create_background(command(graph, "again", **SLOW))
        await busy(store, run.run_id)
        await until(lambda: len(saved(settings)["checkpoints"]) > len(kept["checkpoints"]))
        rollback = CancelRunCommand(run_id=run.run_id, action=CancelAction.ROLLBACK, wait=True, provenance=WHO)
        await store.service.cancel(rollback)
        assert await store.service.get_run(GetRunQuery(run_id=run.run_id)) is None
        assert await seen(store, graph) == before
        assert saved(settings) == kept
        topics = [topic for topic, _, _ in story(store, run.run_id)]
        assert topics[-3:] == ["run.cancel_requested", "run.cancelled", "run.deleted"]
        assert ("run.cancel_requested", WHO.actor, WHO.reason) in story(store, run.run_id)
        assert await store.service.result("t", run.run_id) == {}
        with pytest.raises(RunNotFound):
            await store.service.cancel(rollback)

    await within(settings, config, body)


async def test_an_answer_that_is_rolled_back_leaves_the_question_open(settings: Settings, config: Path) -> None:
    async def body(store: Store) -> None:
        await store.service.create_and_wait(command(n_tokens=2, ask=True))
        before, kept = await seen(store), saved(settings)
        assert before["thread"][0] == "interrupted"
        # The answer, and then a wait in the model: it is sent back there, with a text that takes its time.
        asked = {"resume": "no", "goto": "model", "update": SLOW}
        run = await store.service.create_background(command(command=asked))
        await until(lambda: saved(settings)["checkpoint_writes"] != kept["checkpoint_writes"])
        await store.service.cancel(CancelRunCommand(run_id=run.run_id, action=CancelAction.ROLLBACK, wait=True))
        assert saved(settings) == kept
        assert await seen(store) == before
        values = await store.service.create_and_wait(command(command={"resume": "yes"}))
        assert values["answer"] == "yes"
        with psycopg.connect(str(settings.database_url)) as connection:
            undone = connection.execute("select distinct run_id from runs_es.checkpoint_undo").fetchall()
        assert run.run_id not in [run_id for (run_id,) in undone]

    await within(settings, config, body)


async def test_runs_that_never_began_and_delayed_ones_are_rolled_back_at_once(settings: Settings, config: Path) -> None:
    async def body(store: Store) -> None:
        running = await store.service.create_background(command(**SLOW))
        enqueued = await store.service.create_background(command(text="later"))
        delayed = await store.service.create_background(
            CreateRunCommand(thread_id="t", assistant_id="agent", after_seconds=3600)
        )
        for run in (enqueued, delayed):
            await store.service.cancel(CancelRunCommand(run_id=run.run_id, action=CancelAction.ROLLBACK))
            assert await store.service.get_run(GetRunQuery(run_id=run.run_id)) is None
            assert [topic for topic, _, _ in story(store, run.run_id)][1:] == [
                "run.cancel_requested", "run.cancelled", "run.deleted",
            ]  # fmt: skip
        assert [run_id for run_id, _ in (await seen(store))["runs"]] == [running.run_id]
        await store.service.cancel(CancelRunCommand(run_id=running.run_id, wait=True))

    await within(settings, config, body)


async def test_what_an_attempt_saved_before_its_worker_stopped_is_rolled_back_by_the_next(
    settings: Settings, config: Path
) -> None:
    found: dict[str, Any] = {}

    async def first(store: Store) -> None:
        await store.service.create_and_wait(command())
        found.update(seen=await seen(store), saved=saved(settings))
        run = await store.service.create_background(command(text="again", **SLOW))
        await busy(store, run.run_id)
        found["run"] = run.run_id

    async def without_a_worker(store: Store) -> None:
        await store.service.cancel(CancelRunCommand(run_id=found["run"], action=CancelAction.ROLLBACK))
        await store.service.cancel(CancelRunCommand(run_id=found["run"]))  # does not weaken what was asked before
        assert await store.service.get_run(GetRunQuery(run_id=found["run"])) is not None
        assert saved(settings) != found["saved"]

    async def next_one(store: Store) -> None:
        await store.service.ended("t", found["run"])
        assert await seen(store) == found["seen"]
        assert saved(settings) == found["saved"]
        topics = [topic for topic, _, _ in story(store, found["run"])]
        assert topics[-4:] == ["run.requeued", "run.cancel_requested", "run.cancelled", "run.deleted"]

    await within(settings, config, first)
    await within(settings, config, without_a_worker, work=False)
    await within(settings, config, next_one)


async def test_a_temporary_thread_leaves_with_the_run_that_is_rolled_back(settings: Settings, config: Path) -> None:
    async def body(store: Store) -> None:
        run = await store.service.create_background(command(scope=RunScope.TEMPORARY_THREAD, **SLOW))
        await busy(store, run.run_id)
        await store.service.cancel(CancelRunCommand(run_id=run.run_id, action=CancelAction.ROLLBACK, wait=True))
        assert await asyncio.to_thread(store.threads.get, "t") is None

    await within(settings, config, body)
