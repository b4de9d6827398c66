"""LangGraph's Postgres checkpointer behind the thread's fence: an attempt that lost its lease cannot write state.

One saver an attempt over a shared pool, because a saver holds one lock around all its queries. Whoever has raised the
fence (claim, takeover, rollback) takes `thread_lock_key` exclusively before he reads or changes state; every write here
takes it shared and then looks at the fence, in one transaction. So a write is either seen by him, or refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import cache
from typing import Any, NamedTuple, cast

import psycopg
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import ChannelVersions, Checkpoint, CheckpointMetadata, CheckpointTuple
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.serde.base import SerializerProtocol
from psycopg import AsyncConnection, AsyncCursor, sql
from psycopg.rows import DictRow, dict_row

from runs_es.database.migrate import checkpoint_schema
from runs_es.database.outage import is_lost
from runs_es.database.sessions import WAIT_SECONDS, AsyncSessionPool
from runs_es.domain.errors import LeaseLost
from runs_es.execution.langgraph.rollback import keep_writes, take_back
from runs_es.log.locks import thread_lock_key

CheckpointPool = AsyncSessionPool

_PLACE = ("checkpoint_ns", "checkpoint_id")
_TRIES = 3
MAX_WAITING = 64  # writes, before a graph that is faster than the disk waits
_COLLECT_SECONDS = 0.005  # a graph of short steps has several writes by then, and they cost as much as one


def open_checkpoint_pool(url: str, schema: str, size: int, *, seconds: float = WAIT_SECONDS) -> CheckpointPool:
    """The pool that savers and readers share. It connects on `await pool.open()` or `async with pool`.

    `schema` is the log's, `seconds` how long to wait for a connection. A connection left inside a transaction is cut
    after 5 s: a worker that froze between taking the thread's lock and letting go of it must not keep its successor
    waiting.
    """
    return AsyncSessionPool(
        url,
        checkpoint_schema(schema),
        "checkpoints",
        size=size,
        seconds=seconds,
        least=2,
        connection_options={"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row},
        settings={
            "idle_in_transaction_session_timeout": "5s",
            "lock_timeout": "30s",
            "default_transaction_isolation": "read committed",  # the fence is read by a snapshot newer than the lock
        },
    )


class _Statements(NamedTuple):
    read_fence: sql.Composed
    check_fence: sql.Composed
    keep_writes: sql.Composed
    take_back: Sequence[sql.Composed]


@cache
def _statements(schema: str) -> _Statements:
    log = sql.Identifier(schema)
    return _Statements(
        sql.SQL("select fence from {}.heads where thread_id = %s").format(log),
        # Fails where the fence is another, and with it all that follows: no need to wait for an answer in between.
        sql.SQL("select 1 / count(*) from {}.heads where thread_id = %s and fence = %s").format(log),
        keep_writes(schema),
        take_back(schema),
    )


class FencedPostgresSaver(AsyncPostgresSaver):
    """Writes one thread's checkpoints as long as the thread's fence is the one this attempt was given.

    Any write after that raises LeaseLost and changes nothing. With `behind` a write returns before it is durable, and
    what it raises comes with a later one, or `flush`. Reads are not fenced, and see all writes. Of a thread that is
    new, as nobody has ever claimed a run of it, nothing is read before the first write: there is nothing.

    Checkpoints say which run wrote them; what a run adds to a checkpoint of an earlier one is preceded by a copy of
    what was there (rollback.py).
    """

    def __init__(
        self,
        pool: CheckpointPool,
        *,
        schema: str,
        thread_id: str,
        run_id: str,
        fence: int,
        behind: bool = False,
        thread_is_new: bool = False,
        serde: SerializerProtocol | None = None,
    ) -> None:
        super().__init__(pool, serde=serde)
        self._pool = pool
        self._thread_id = thread_id
        self._run_id = run_id
        self._earlier: set[tuple[str, str]] = set()  # checkpoints of earlier runs that were read, as (ns, id)
        self._fence = fence
        self._behind = behind
        self._is_empty = thread_is_new
        self._newest: CheckpointTuple | None = None  # the graph's, where this run made it and nothing was added to it
        self._written_to: set[tuple[str, str]] = set()  # checkpoints that this run added writes to
        self._waiting: list[_Batch] = []
        self._writing: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()
        self._lock_key = thread_lock_key(schema, thread_id)
        self._statements = _statements(schema)

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        asked = config["configurable"]
        if asked["thread_id"] == self._thread_id:  # a graph may look at other threads as well
            if self._is_empty:
                return None
            if self._newest is not None and not any(asked.get(key) for key in _PLACE):
                return self._newest  # how a run ends is asked of the state that it has just left
        found = await self._read_tuple(config)
        if found is not None and found.metadata.get("run_id") != self._run_id:
            self._earlier.add(_place(found.config))
        return found

    async def _read_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Tried again where the connection turns out to be dead."""
        for tries_left in reversed(range(_TRIES)):
            try:
                return await super().aget_tuple(config)
            except psycopg.OperationalError as error:
                if not tries_left:
                    raise
                if is_lost(error):
                    await self._pool.drain()
        raise AssertionError

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        self._must_be_mine(config["configurable"]["thread_id"])
        own = cast("CheckpointMetadata", {**metadata, "run_id": self._run_id})
        saved = await super().aput(config, checkpoint, own, new_versions)
        if not saved["configurable"].get("checkpoint_ns"):
            parent = config if config["configurable"].get("checkpoint_id") else None
            is_last_word = _place(saved) not in self._written_to
            self._newest = CheckpointTuple(saved, checkpoint, own, parent, []) if is_last_word else None
        return saved

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        self._must_be_mine(config["configurable"]["thread_id"])
        self._written_to.add(_place(config))
        if self._newest is not None and _place(config) == _place(self._newest.config):
            self._newest = None
        if _place(config) in self._earlier:
            await self._keep(config)
        await super().aput_writes(config, writes, task_id, task_path)

    async def _keep(self, config: RunnableConfig) -> None:
        """Note what the checkpoint of an earlier run has of writes, before this run adds its own: once a run."""
        namespace, checkpoint_id = _place(config)
        batch = _Batch()
        await batch.execute(self._statements.keep_writes, (self._thread_id, self._run_id, namespace, checkpoint_id))
        await self._commit(batch)
        self._earlier.discard((namespace, checkpoint_id))

    async def restart(self) -> None:
        """Take back what earlier attempts of this run saved."""
        batch = _Batch()
        for statement in self._statements.take_back:
            await batch.execute(statement, {"thread": self._thread_id, "run": self._run_id})
        self._newest = None
        await self._commit(batch)

    def forget_newest(self) -> None:
        """Read the newest state from the database next time: a node may have changed what was handed over here."""
        self._newest = None

    async def adelete_thread(self, thread_id: str) -> None:
        self._must_be_mine(thread_id)
        self._newest = None
        await super().adelete_thread(thread_id)

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        raise NotImplementedError("a run does not prune checkpoints; retention does")

    def _must_be_mine(self, thread_id: str) -> None:
        if thread_id != self._thread_id:
            raise PermissionError(f"a run of thread {self._thread_id} may not write checkpoints of thread {thread_id}")

    @asynccontextmanager
    async def _cursor(self, *, pipeline: bool = False) -> AsyncIterator[AsyncCursor[DictRow]]:
        """The parent asks for `pipeline` where it writes, and then never reads. That is what sets writes apart."""
        if not pipeline:
            if self._behind:
                await self.flush()
            async with super()._cursor() as cursor:
                yield cursor
            return
        # Statements are collected first: the parent serializes the state in between, and neither the thread's lock nor
        # a connection should be held meanwhile.
        batch = _Batch()
        yield cast("AsyncCursor[DictRow]", batch)
        await self._commit(batch)

    async def _commit(self, batch: _Batch) -> None:
        """Have `batch` written in its turn, and return when it is; `behind`, as soon as not too much waits."""
        if self._writing is not None and self._writing.done():
            if self._behind:
                self._writing.result()  # what failed stays failed: nothing that came later may be written without it
            self._writing = None
        self._is_empty = False
        self._waiting.append(batch)
        if self._writing is None:
            self._hurry.clear()
            self._writing = asyncio.create_task(self._write_waiting())
            # What a graph saves after its attempt has ended is refused, and nobody asks any more.
            self._writing.add_done_callback(_taken_note_of)
        if not self._behind or len(self._waiting) >= MAX_WAITING:
            await self.flush()

    async def flush(self) -> None:
        """Return when everything so far is durable. Raises LeaseLost, and what else a write may raise."""
        if self._writing is not None:
            self._hurry.set()
            await asyncio.shield(self._writing)

    async def _write_waiting(self) -> None:
        """Write what waits, each time all of it at once, in the order in which it came."""
        if self._behind:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), _COLLECT_SECONDS)
        while self._waiting:
            batches, self._waiting = self._waiting, []
            try:
                await self._commit_all(batches)
            except BaseException:
                self._waiting.clear()  # their writers are told
                raise

    async def _commit_all(self, batches: Sequence[_Batch]) -> None:
        """Upserts behind a fence may be tried again when the connection died.

        It dies when the server restarts, and when a graph blocked this process's event loop for so long inside the
        transaction that the server cut it.
        """
        for tries_left in reversed(range(_TRIES)):
            async with self._pool.connection() as connection:
                try:
                    await self._commit_on(connection, batches)
                    return
                except psycopg.Error as error:
                    # A pooler says that the session is gone before it closes the connection.
                    if not ((connection.closed or is_lost(error)) and tries_left):
                        raise
                    await self._pool.drain()

    async def _commit_on(self, connection: AsyncConnection[DictRow], batches: Sequence[_Batch]) -> None:
        """One transaction in one round trip: what a pipeline holds is one as long as nobody begins another."""
        try:
            async with connection.pipeline(), connection.cursor(binary=True) as cursor:
                await cursor.execute("select pg_advisory_xact_lock_shared(%s::bigint)", (self._lock_key,))
                # A statement of its own: its snapshot has to be newer than the lock.
                await cursor.execute(self._statements.check_fence, (self._thread_id, self._fence))
                for batch in batches:
                    await batch.replay(cursor)
        except psycopg.errors.DivisionByZero as refused:
            raise LeaseLost(await self._refusal(connection)) from refused

    async def _refusal(self, connection: AsyncConnection[DictRow]) -> str:
        found = await (await connection.execute(self._statements.read_fence, (self._thread_id,))).fetchone()
        now = "no longer there" if found is None else f"at {found['fence']}"
        return f"thread {self._thread_id}: this attempt wrote under fence {self._fence}, it is {now}"


def _taken_note_of(writing: asyncio.Task[None]) -> None:
    if not writing.cancelled():
        writing.exception()


def _place(config: RunnableConfig) -> tuple[str, str]:
    configurable = config["configurable"]
    return configurable.get("checkpoint_ns", ""), configurable["checkpoint_id"]


class _Batch:
    """Stands in for a cursor while the parent writes; keeps the statements for later."""

    def __init__(self) -> None:
        self._statements: list[tuple[bool, Any, Any]] = []

    async def execute(self, query: Any, params: Any = None) -> None:
        self._statements.append((False, query, params))

    async def executemany(self, query: Any, params_seq: Any) -> None:
        self._statements.append((True, query, list(params_seq)))

    async def replay(self, cursor: AsyncCursor[DictRow]) -> None:
        for many, query, params in self._statements:
            await (cursor.executemany(query, params) if many else cursor.execute(query, params))
