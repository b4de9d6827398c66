"""The checkpointer behind the fence, and the states that are read back, on a real database."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver

from runs_es.domain import LeaseLost
from runs_es.execution.attempt_failure import AgentExited
from runs_es.execution.guard import guarded
from runs_es.execution.langgraph.executor import LangGraphExecutor
from runs_es.execution.langgraph.graphs import GraphRegistry, assistant_id
from runs_es.execution.langgraph.saver import MAX_WAITING, CheckpointPool, FencedPostgresSaver, open_checkpoint_pool
from runs_es.execution.langgraph.state import GraphStateReader
from runs_es.execution.thread_state import empty_state
from runs_es.log.locks import thread_lock_key
from tests.acceptance.questions.graphs import in_one_node
from tests.execution.conftest import Project
from tests.execution.recorded_run import RecordedRun
from tests.execution.test_langgraph_executor import Graphs

SCHEMA = "runs_es"
TABLES = ("checkpoints", "checkpoint_blobs", "checkpoint_writes")
NO_METADATA: Any = {"source": "loop", "step": 0, "parents": {}}


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[CheckpointPool]:
    async with open_checkpoint_pool(database_url, SCHEMA, 4) as opened:
        yield opened


@pytest.fixture
async def claimer(database_url: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """A session that raises fences, as whoever claims a run does."""
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
async def thread_id(claimer: psycopg.AsyncConnection[Any]) -> str:
    """A thread whose fence stands at 1."""
    name = str(uuid.uuid4())
    await claimer.execute("insert into runs_es.heads (thread_id, head, revision, fence) values (%s, 1, 1, 1)", (name,))
    return name


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> GraphRegistry:
    config = tmp_path_factory.mktemp("wire") / "langgraph.json"
    graphs = Path(__file__).parent / "wire_graphs" / "graph.py"
    config.write_text(f'{{"graphs": {{"agent": "{graphs}:agent", "nested": "{graphs}:nested"}}}}')
    return GraphRegistry.from_config(config)


def saver_of(pool: CheckpointPool, thread_id: str, fence: int = 1, *, behind: bool = False) -> FencedPostgresSaver:
    return FencedPostgresSaver(pool, schema=SCHEMA, thread_id=thread_id, run_id="run", fence=fence, behind=behind)


def config_of(thread_id: str, **more: Any) -> Any:
    return {"configurable": {"thread_id": thread_id, "checkpoint_ns": "", **more}}


async def write_something(saver: FencedPostgresSaver, thread_id: str) -> Any:
    checkpoint = empty_checkpoint()
    checkpoint["channel_values"] = {"kept": ["a", "list"], "short": "text"}
    checkpoint["channel_versions"] = {"kept": "1", "short": "1"}
    saved = await saver.aput(config_of(thread_id), checkpoint, NO_METADATA, {"kept": "1"})
    await saver.aput_writes(saved, [("kept", ["more"])], "task")
    return saved


async def rows(pool: CheckpointPool) -> list[int]:
    async with pool.connection() as connection:
        counts = [await (await connection.execute(f"select count(*) n from {table}")).fetchone() for table in TABLES]
    return [count["n"] for count in counts if count]


async def raise_fence(claimer: psycopg.AsyncConnection[Any], thread_id: str) -> None:
    async with claimer.transaction():
        await claimer.execute("select pg_advisory_xact_lock(%s)", (thread_lock_key(SCHEMA, thread_id),))
        await claimer.execute("update runs_es.heads set fence = fence + 1 where thread_id = %s", (thread_id,))


async def until_somebody_waits_for_a_lock(claimer: psycopg.AsyncConnection[Any]) -> None:
    waiting = "select count(*) from pg_locks where locktype = 'advisory' and not granted"
    while (await (await claimer.execute(waiting)).fetchone()) == (0,):
        pass


def test_the_key_of_a_thread_never_changes_and_differs_by_schema() -> None:
    assert thread_lock_key("runs_es", "t") == 5475342447650642849
    assert thread_lock_key("other", "t") != thread_lock_key("runs_es", "t") != thread_lock_key("runs_es", "u")
    assert all(-(2**63) <= thread_lock_key("s", str(n)) < 2**63 for n in range(100))


async def test_what_is_written_under_the_fence_is_read_back(pool: CheckpointPool, thread_id: str) -> None:
    saver = saver_of(pool, thread_id)
    saved = await write_something(saver, thread_id)
    found = await saver.aget_tuple(config_of(thread_id))
    assert found is not None
    assert found.config == saved
    assert found.checkpoint["channel_values"] == {"kept": ["a", "list"], "short": "text"}
    assert found.pending_writes == [("task", "kept", ["more"])]


async def test_a_stale_saver_cannot_write_anything(
    pool: CheckpointPool, claimer: psycopg.AsyncConnection[Any], thread_id: str
) -> None:
    stale = saver_of(pool, thread_id)
    saved = await write_something(stale, thread_id)
    before = await rows(pool)
    await raise_fence(claimer, thread_id)
    with pytest.raises(LeaseLost, match="wrote under fence 1, it is at 2"):
        await write_something(stale, thread_id)
    with pytest.raises(LeaseLost):
        await stale.aput_writes(saved, [("kept", 1)], "another task")
    with pytest.raises(LeaseLost):
        await stale.adelete_thread(thread_id)
    assert await rows(pool) == before
    assert await stale.aget_tuple(config_of(thread_id)) is not None
    await write_something(saver_of(pool, thread_id, fence=2), thread_id)


async def test_a_thread_that_the_log_does_not_know_cannot_be_written(pool: CheckpointPool) -> None:
    with pytest.raises(LeaseLost, match="no longer there"):
        await write_something(saver_of(pool, "nobody"), "nobody")


async def test_a_claim_waits_for_a_write_that_is_under_way(
    pool: CheckpointPool, claimer: psycopg.AsyncConnection[Any], thread_id: str, database_url: str
) -> None:
    async with await psycopg.AsyncConnection.connect(database_url) as writer:
        await writer.execute("select pg_advisory_xact_lock_shared(%s)", (thread_lock_key(SCHEMA, thread_id),))
        async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as claiming:
            claim = asyncio.create_task(raise_fence(claiming, thread_id))
            await until_somebody_waits_for_a_lock(claimer)
            assert not claim.done()
            await writer.rollback()
            await claim


async def test_a_write_that_waits_for_a_claim_sees_the_fence_that_the_claim_raised(
    pool: CheckpointPool, claimer: psycopg.AsyncConnection[Any], thread_id: str, database_url: str
) -> None:
    async with await psycopg.AsyncConnection.connect(database_url) as claiming:
        await claiming.execute("select pg_advisory_xact_lock(%s)", (thread_lock_key(SCHEMA, thread_id),))
        writing = asyncio.create_task(write_something(saver_of(pool, thread_id), thread_id))
        await until_somebody_waits_for_a_lock(claimer)
        await claiming.execute("update runs_es.heads set fence = 2 where thread_id = %s", (thread_id,))
        await claiming.commit()
    with pytest.raises(LeaseLost):
        await writing
    assert await rows(pool) == [0, 0, 0]


async def test_writers_of_one_thread_do_not_wait_for_each_other(
    pool: CheckpointPool, thread_id: str, database_url: str
) -> None:
    async with await psycopg.AsyncConnection.connect(database_url) as other:
        await other.execute("select pg_advisory_xact_lock_shared(%s)", (thread_lock_key(SCHEMA, thread_id),))
        await asyncio.wait_for(write_something(saver_of(pool, thread_id), thread_id), 10)


async def test_a_write_that_fails_leaves_nothing_behind(pool: CheckpointPool, thread_id: str) -> None:
    saver = saver_of(pool, thread_id)
    broken: Any = empty_checkpoint()
    broken["channel_values"] = {"kept": ["a", "list"], "short": "no \x00 in jsonb"}
    with pytest.raises(psycopg.DataError):
        await saver.aput(config_of(thread_id), broken, NO_METADATA, {"kept": "1"})
    assert await rows(pool) == [0, 0, 0]
    await write_something(saver, thread_id)


async def transactions_of(pool: CheckpointPool) -> set[str]:
    """Those that wrote what is in the tables."""
    async with pool.connection() as connection:
        found = [await (await connection.execute(f"select xmin::text x from {table}")).fetchall() for table in TABLES]
    return {row["x"] for rows_of in found for row in rows_of}


async def test_what_is_written_behind_is_written_together_and_seen_by_every_read(
    pool: CheckpointPool, thread_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The read ends the wait for more writes. On a slow machine the usual wait is over before the second write.
    monkeypatch.setattr("runs_es.execution.langgraph.saver._COLLECT_SECONDS", 60.0)
    saver = saver_of(pool, thread_id, behind=True)
    saved = await write_something(saver, thread_id)
    found = await saver.aget_tuple(config_of(thread_id))
    assert found is not None
    assert (found.config, found.pending_writes) == (saved, [("task", "kept", ["more"])])
    assert len(await transactions_of(pool)) == 1


async def test_of_a_new_thread_nothing_is_read_before_something_was_written(
    pool: CheckpointPool, thread_id: str
) -> None:
    await write_something(saver_of(pool, thread_id), thread_id)
    saver = FencedPostgresSaver(
        pool, schema=SCHEMA, thread_id=thread_id, run_id="run", fence=1, behind=True, thread_is_new=True
    )
    assert await saver.aget_tuple(config_of(thread_id)) is None  # it was promised that there is none
    saved = await write_something(saver, thread_id)
    found = await saver.aget_tuple(config_of(thread_id))
    assert found is not None
    assert found.config == saved


async def test_the_state_that_a_run_has_just_left_is_not_read_unless_something_was_added_to_it(
    pool: CheckpointPool, thread_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = saver_of(pool, thread_id, behind=True)
    read = saver._read_tuple
    reads: list[Any] = []

    async def noted(config: Any) -> Any:
        reads.append(config)
        return await read(config)

    monkeypatch.setattr(saver, "_read_tuple", noted)
    begun = empty_checkpoint()
    begun["channel_values"], begun["channel_versions"] = {"kept": ["a"], "short": "text"}, {"kept": "1", "short": "1"}
    first = await saver.aput(config_of(thread_id), begun, NO_METADATA, {"kept": "1"})
    at_hand = await saver.aget_tuple(config_of(thread_id))
    assert reads == []
    stored = await saver.aget_tuple(first)
    assert at_hand is not None
    assert stored is not None
    assert at_hand.config == stored.config
    assert at_hand.checkpoint == stored.checkpoint
    assert at_hand.parent_config is stored.parent_config is None
    await saver.aput_writes(first, [("kept", ["more"])], "task")
    found = await saver.aget_tuple(config_of(thread_id))
    assert found is not None
    assert found.pending_writes == [("task", "kept", ["more"])]
    late = empty_checkpoint()
    await saver.aput_writes(config_of(thread_id, checkpoint_id=late["id"]), [("kept", ["early"])], "task")
    await saver.aput(first, late, NO_METADATA, {})
    found = await saver.aget_tuple(config_of(thread_id))
    assert found is not None
    assert (found.checkpoint["id"], found.pending_writes) == (late["id"], [("task", "kept", ["early"])])
    assert len(reads) == 3


async def test_states_of_other_threads_are_read_whatever_is_known_of_its_own(
    pool: CheckpointPool, claimer: psycopg.AsyncConnection[Any], thread_id: str
) -> None:
    await claimer.execute("insert into runs_es.heads (thread_id, head, revision, fence) values ('other', 1, 1, 1)")
    saved = await write_something(saver_of(pool, "other"), "other")
    saver = FencedPostgresSaver(
        pool, schema=SCHEMA, thread_id=thread_id, run_id="run", fence=1, behind=True, thread_is_new=True
    )
    for _ in range(2):
        found = await saver.aget_tuple(config_of("other"))
        assert found is not None
        assert found.config == saved
        await saver.aput(config_of(thread_id), empty_checkpoint(), NO_METADATA, {})


async def test_a_write_behind_that_is_refused_fails_the_next_one_and_all_after_it(
    pool: CheckpointPool, claimer: psycopg.AsyncConnection[Any], thread_id: str
) -> None:
    stale = saver_of(pool, thread_id, behind=True)
    await raise_fence(claimer, thread_id)
    saved = await write_something(stale, thread_id)
    with pytest.raises(LeaseLost, match="wrote under fence 1, it is at 2"):
        await stale.flush()
    await claimer.execute("update runs_es.heads set fence = 1 where thread_id = %s", (thread_id,))
    with pytest.raises(LeaseLost):
        await stale.aput_writes(saved, [("kept", 1)], "another task")
    with pytest.raises(LeaseLost):
        await stale.aget_tuple(config_of(thread_id))
    assert await rows(pool) == [0, 0, 0]


async def test_a_graph_that_is_faster_than_the_database_waits_for_it(
    pool: CheckpointPool, claimer: psycopg.AsyncConnection[Any], thread_id: str, database_url: str
) -> None:
    saver = saver_of(pool, thread_id, behind=True)
    returned: list[int] = []

    async def write_many() -> None:
        saved = await write_something(saver, thread_id)
        for number in range(3 * MAX_WAITING):
            await saver.aput_writes(saved, [("kept", number)], f"task {number}")
            returned.append(number)

    async with await psycopg.AsyncConnection.connect(database_url) as holder:
        await holder.execute("select pg_advisory_xact_lock(%s)", (thread_lock_key(SCHEMA, thread_id),))
        writing = asyncio.create_task(write_many())
        await until_somebody_waits_for_a_lock(claimer)
        await asyncio.wait_for(saver._hurry.wait(), 20)
        assert len(returned) <= 2 * MAX_WAITING
        await holder.rollback()
    await writing
    await saver.flush()
    assert await rows(pool) == [1, 1, 1 + 3 * MAX_WAITING]


async def test_a_saver_writes_no_other_thread(pool: CheckpointPool, thread_id: str) -> None:
    saver = saver_of(pool, thread_id)
    for refused in (
        write_something(saver, "another"),
        saver.aput_writes(config_of("another", checkpoint_id="1"), [("kept", 1)], "task"),
        saver.adelete_thread("another"),
    ):
        with pytest.raises(PermissionError, match="may not write checkpoints of thread another"):
            await refused
    with pytest.raises(NotImplementedError):
        await saver.aprune([thread_id])


async def test_a_connection_that_was_cut_inside_a_write_is_replaced(
    pool: CheckpointPool, claimer: psycopg.AsyncConnection[Any], thread_id: str, database_url: str
) -> None:
    kill = "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and not granted"
    async with await psycopg.AsyncConnection.connect(database_url) as holder:
        await holder.execute("select pg_advisory_xact_lock(%s)", (thread_lock_key(SCHEMA, thread_id),))
        writing = asyncio.create_task(write_something(saver_of(pool, thread_id), thread_id))
        for _ in range(2):
            await until_somebody_waits_for_a_lock(claimer)
            await claimer.execute(kill)
        await holder.rollback()
    await writing
    assert await rows(pool) == [1, 1, 1]


async def test_the_sessions_of_the_pool_are_set_up_against_frozen_workers(pool: CheckpointPool) -> None:
    expected = {
        "search_path": '"runs_es_checkpoints"',
        "idle_in_transaction_session_timeout": "5s",
        "lock_timeout": "30s",
        "default_transaction_isolation": "read committed",
    }
    async with pool.connection() as connection:
        assert connection.autocommit
        for name, value in expected.items():
            row = await (await connection.execute("select current_setting(%s) v", (name,))).fetchone()
            assert row == {"v": value}


async def test_a_server_that_vanished_is_noticed_within_seconds(pool: CheckpointPool) -> None:
    async with pool.connection() as connection:
        found = connection.info.get_parameters()
    assert (found["keepalives_idle"], found["tcp_user_timeout"]) == ("5", "10000")


async def test_options_of_the_url_are_kept(database_url: str) -> None:
    url = psycopg.conninfo.make_conninfo(database_url, options="-c statement_timeout=7s")
    async with open_checkpoint_pool(url, SCHEMA, 1) as pool, pool.connection() as connection:
        row = await (await connection.execute("select current_setting('statement_timeout') v")).fetchone()
        assert row == {"v": "7s"}


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
async def test_a_run_whose_lease_is_lost_fails_with_lease_lost(
    pool: CheckpointPool,
    registry: GraphRegistry,
    claimer: psycopg.AsyncConnection[Any],
    thread_id: str,
    durability: str,
) -> None:
    executor = LangGraphExecutor.over_pool(registry, pool, SCHEMA)
    kwargs = {"input": {"messages": [], "n_tokens": 1}, "durability": durability}
    await executor.execute(RecordedRun(kwargs, thread_id=thread_id, fence=1))
    await raise_fence(claimer, thread_id)
    before = await rows(pool)
    with pytest.raises(LeaseLost):
        await executor.execute(RecordedRun(kwargs, thread_id=thread_id, fence=1))
    assert await rows(pool) == before


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
async def test_a_run_leaves_its_state_behind_whatever_the_durability(
    pool: CheckpointPool, registry: GraphRegistry, thread_id: str, durability: str
) -> None:
    kwargs = {"input": {"messages": [{"role": "user", "content": "hi"}], "n_tokens": 2}, "durability": durability}
    run = RecordedRun(kwargs, thread_id=thread_id, fence=1)
    outcome = await LangGraphExecutor.over_pool(registry, pool, SCHEMA).execute(run)
    state = await GraphStateReader(registry, pool).get(thread_id, "agent")
    assert state["values"] == run.frames[-1][1]
    assert state["checkpoint_id"] == outcome.checkpoint_id


async def test_a_state_has_the_shape_of_the_platform(
    pool: CheckpointPool, registry: GraphRegistry, thread_id: str
) -> None:
    kwargs = {"input": {"messages": [], "n_tokens": 1, "ask": True}}
    run = RecordedRun(kwargs, thread_id=thread_id, fence=1, metadata={"a": 1})
    outcome = await LangGraphExecutor.over_pool(registry, pool, SCHEMA).execute(run)
    reader = GraphStateReader(registry, pool)
    state = await reader.get(thread_id, "agent")
    assert list(state) == list(empty_state())
    assert state["next"] == ["gate"]
    ((task_id, interrupts),) = outcome.interrupts.items()
    assert state["interrupts"] == interrupts
    assert state["tasks"] == [
        {
            "id": task_id,
            "name": "gate",
            "path": ["__pregel_pull", "gate"],
            "error": None,
            "interrupts": interrupts,
            "checkpoint": None,
            "state": None,
            "result": None,
        }
    ]
    assert list(state["checkpoint"]) == ["checkpoint_id", "thread_id", "checkpoint_ns"]
    assert state["parent_checkpoint_id"] == state["parent_checkpoint"]["checkpoint_id"]
    assert state["created_at"].endswith("+00:00")
    expected = {"created_by": "system", "graph_id": "agent", "a": 1, "run_attempt": 1, "source": "loop", "step": 2}
    assert expected.items() <= state["metadata"].items()
    assert state["metadata"]["assistant_id"] == assistant_id("agent")
    assert (state["metadata"]["run_id"], state["metadata"]["thread_id"]) == (run.run.run_id, thread_id)


REDUCING = """
from typing import Annotated, Any, TypedDict
from langgraph.graph import START, StateGraph

def reduce(old, new):
    if new == "exit":
        raise SystemExit(3)
    if new == "interrupt":
        raise KeyboardInterrupt
    return new

class State(TypedDict, total=False):
    what: Annotated[Any, reduce]

builder = StateGraph(State)
builder.add_node("node", lambda state: {"what": state["what"][1:]})
builder.add_edge(START, "node")
graph = builder.compile()
"""


@pytest.mark.parametrize("what", ["exit", "interrupt"])
async def test_a_reducer_that_ends_its_process_does_not_end_the_one_that_reads_the_state(
    pool: CheckpointPool, project: Project, thread_id: str, what: str
) -> None:
    registry = GraphRegistry.from_config(
        project({"graphs": {"agent": "./reducing.py:graph"}}, {"reducing.py": REDUCING})
    )
    executor = LangGraphExecutor.over_pool(registry, pool, SCHEMA)
    run = RecordedRun({"input": {"what": f"x{what}"}}, thread_id=thread_id, fence=1)
    with pytest.raises(AgentExited):
        await guarded(executor.execute(run))
    state = await GraphStateReader(registry, pool).get(thread_id, "agent")
    assert state["values"] == {"what": f"x{what}"}


async def test_an_earlier_state_and_the_history_can_be_read(
    pool: CheckpointPool, registry: GraphRegistry, thread_id: str
) -> None:
    executor = LangGraphExecutor.over_pool(registry, pool, SCHEMA)
    run = RecordedRun({"input": {"messages": [], "n_tokens": 1}}, thread_id=thread_id, fence=1)
    await executor.execute(run)
    reader = GraphStateReader(registry, pool)
    history = await reader.history(thread_id, "agent", 10)
    assert [state["next"] for state in history] == [[], ["gate"], ["model"], ["plan"], ["__start__"]]
    assert history[0] == await reader.get(thread_id, "agent")
    assert history[2] == await reader.get(thread_id, "agent", history[2]["checkpoint_id"])
    assert history[-1]["parent_checkpoint"] is None
    assert history[1]["tasks"][0]["result"] == {"steps": ["gate"]}

    newest = history[0]["checkpoint_id"]
    assert await reader.history(thread_id, "agent", 1, before=newest) == history[1:2]
    assert await reader.history(thread_id, "agent", 1, before=history[0]["checkpoint"]) == history[1:2]
    assert (
        await reader.history(thread_id, "agent", 1, before={"configurable": {"checkpoint_id": newest}}) == history[1:2]
    )
    assert await reader.history(thread_id, "agent", 9, metadata={"source": "input"}) == history[-1:]
    assert await reader.history(thread_id, "agent", 9, metadata={"run_id": "another"}) == []
    assert await reader.values(thread_id, "agent") == history[0]["values"]


async def test_a_failed_step_stands_in_the_state(pool: CheckpointPool, registry: GraphRegistry, thread_id: str) -> None:
    run = RecordedRun({"input": {"messages": [], "fail": True}}, thread_id=thread_id, fence=1)
    with pytest.raises(ValueError, match="boom from model"):
        await LangGraphExecutor.over_pool(registry, pool, SCHEMA).execute(run)
    state = await GraphStateReader(registry, pool).get(thread_id, "agent")
    assert state["tasks"][0]["error"] == "ValueError('boom from model')"
    assert state["next"] == ["model"]


async def test_the_state_of_a_subgraph_is_named_and_shown_when_asked_for(
    pool: CheckpointPool, registry: GraphRegistry, thread_id: str
) -> None:
    kwargs = {"input": {"messages": [], "n_tokens": 1, "ask": True}}
    run = RecordedRun(kwargs, assistant_id="nested", thread_id=thread_id, fence=1)
    await LangGraphExecutor.over_pool(registry, pool, SCHEMA).execute(run)
    reader = GraphStateReader(registry, pool)
    (task,) = (await reader.get(thread_id, "nested"))["tasks"]
    assert task["state"] is None
    assert task["checkpoint"] == {"thread_id": thread_id, "checkpoint_ns": f"child:{task['id']}"}

    (shown,) = (await reader.get(thread_id, "nested", subgraphs=True))["tasks"]
    assert shown["state"]["next"] == ["gate"]
    assert shown["state"]["values"]["steps"] == ["plan", "model"]
    inner = await reader.get(thread_id, "nested", checkpoint=task["checkpoint"])
    assert inner["values"] == shown["state"]["values"]
    assert [state["next"] for state in await reader.history(thread_id, "nested", 2, checkpoint=task["checkpoint"])] == [
        ["gate"],
        ["model"],
    ]


async def test_a_thread_without_state_is_empty(pool: CheckpointPool, registry: GraphRegistry, thread_id: str) -> None:
    reader = GraphStateReader(registry, pool)
    for graph_id in ("agent", None):
        assert await reader.get(thread_id, graph_id) == empty_state()
        assert await reader.history(thread_id, graph_id, 10) == []
        assert await reader.values(thread_id, graph_id) is None
    assert await reader.get(thread_id, "agent", checkpoint_id=str(uuid.uuid4())) == empty_state()


async def test_deleting_a_thread_forgets_its_checkpoints_and_no_others(
    pool: CheckpointPool, registry: GraphRegistry, claimer: psycopg.AsyncConnection[Any], thread_id: str
) -> None:
    kept = str(uuid.uuid4())
    await claimer.execute("insert into runs_es.heads (thread_id, head, revision, fence) values (%s, 1, 1, 1)", (kept,))
    for each in (thread_id, kept):
        await write_something(saver_of(pool, each), each)
    await GraphStateReader(registry, pool).delete(thread_id)
    assert await rows(pool) == [1, 1, 1]
    assert await AsyncPostgresSaver(pool).aget_tuple(config_of(kept)) is not None


async def test_a_second_attempt_answers_the_question_it_was_given_again_and_not_the_next_one(
    pool: CheckpointPool, claimer: psycopg.AsyncConnection[Any], thread_id: str
) -> None:
    """Both questions are one node's, so the first attempt leaves no checkpoint between them."""
    executor = LangGraphExecutor.over_pool(Graphs(agent=in_one_node), pool, SCHEMA)
    await executor.execute(RecordedRun({"input": {"steps": []}}, thread_id=thread_id, fence=1))
    lost = RecordedRun({"command": {"resume": "yes"}}, thread_id=thread_id, fence=1)
    asked = await executor.execute(lost)  # its worker is lost before it can say so
    await raise_fence(claimer, thread_id)
    again = RecordedRun(lost.run.kwargs, thread_id=thread_id, run_id=lost.run.run_id, attempt=2, fence=2)
    outcome = await executor.execute(again)
    assert [interrupts[0]["value"] for interrupts in outcome.interrupts.values()] == ["two?"]
    assert outcome.interrupts == asked.interrupts
    last = RecordedRun({"command": {"resume": "no"}}, thread_id=thread_id, fence=2)
    await executor.execute(last)
    assert last.frames[-1] == ("values", {"steps": ["one?: yes", "two?: no"]})
