"""A thread's state and its history, read from LangGraph's checkpoints in the platform's shape (`ThreadState`)."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.types import PregelTask, StateSnapshot
from psycopg_pool import PoolTimeout

from runs_es.database.outage import is_lost
from runs_es.domain.errors import StoreUnavailable
from runs_es.domain.facts import hidden_error
from runs_es.execution.guard import guarded
from runs_es.execution.langgraph.encoding import plain
from runs_es.execution.langgraph.graphs import GraphRegistry, over
from runs_es.execution.langgraph.saver import CheckpointPool
from runs_es.execution.thread_state import empty_state

if TYPE_CHECKING:
    from runs_es.execution.langgraph.graphs import Graph

T = TypeVar("T")

_CHECKPOINT = ("checkpoint_id", "thread_id", "checkpoint_ns", "checkpoint_map")

logger = logging.getLogger(__name__)


class GraphStateReader:
    """Reads, and forgets, what runs left behind. Nothing here looks at a fence."""

    def __init__(self, registry: GraphRegistry, pool: CheckpointPool, *, show_errors: bool = True) -> None:
        self._registry = registry
        self._pool = pool
        self._show_errors = show_errors

    async def get(
        self,
        thread_id: str,
        graph_id: str | None,
        checkpoint_id: str | None = None,
        subgraphs: bool = False,
        checkpoint: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The newest state, or the one at a checkpoint; `empty_state()` when there is none.

        `checkpoint` names one of a subgraph: `{checkpoint_ns, checkpoint_id, checkpoint_map}`. Raises StoreUnavailable.
        """
        if graph_id is None:
            return empty_state()
        config = _config(
            thread_id, {**(checkpoint or {}), **({"checkpoint_id": checkpoint_id} if checkpoint_id else {})}
        )
        graph = await self._graph(graph_id)
        try:
            return self._state(await self._read(lambda: graph.aget_state(config, subgraphs=subgraphs)))
        except StoreUnavailable:
            raise
        except Exception as error:
            # The newest state may have writes pending that the graph's own reducers refuse; a run has failed on them.
            logger.warning(
                "the state of thread %s is read without what its last run left pending", thread_id, exc_info=error
            )
            saved = await self.history(thread_id, graph_id, 1, checkpoint=checkpoint)
            return saved[0] if saved and checkpoint_id is None else empty_state()

    async def history(
        self,
        thread_id: str,
        graph_id: str | None,
        limit: int,
        before: str | Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        checkpoint: Mapping[str, Any] | None = None,
    ) -> list[dict[str, Any]]:
        """The last `limit` states, newest first. `before` is a checkpoint id, or an object that holds one.

        Raises StoreUnavailable.
        """
        if graph_id is None:
            return []
        graph = await self._graph(graph_id)

        async def states() -> list[dict[str, Any]]:
            found = graph.aget_state_history(
                _config(thread_id, checkpoint or {}),
                filter=dict(metadata) if metadata else None,
                before=_config(thread_id, {"checkpoint_id": _checkpoint_id(before)}) if before else None,
                limit=limit,
            )
            return [self._state(state) async for state in found]

        return await self._read(states)

    async def values(
        self, thread_id: str, graph_id: str | None, checkpoint_id: str | None = None
    ) -> dict[str, Any] | None:
        """The newest values, or those at a checkpoint; None when no run of the thread has saved such a state."""
        state = await self.get(thread_id, graph_id, checkpoint_id)
        return None if state["checkpoint"] is None else state["values"]

    async def delete(self, thread_id: str) -> None:
        """Forget every checkpoint of the thread. Who calls this holds the thread's lock, or knows that nobody runs."""
        await AsyncPostgresSaver(self._pool).adelete_thread(thread_id)

    async def _read(self, read: Callable[[], Awaitable[T]]) -> T:
        """What `read` answers; when its connection turns out to be lost, over another. Raises StoreUnavailable."""
        for has_another in (True, False):
            try:
                found: T = await guarded(read())  # reducers are the graph's own code
                return found
            except PoolTimeout as error:
                raise StoreUnavailable(f"no connection for checkpoints: {self._pool.outage.reason or error}") from error
            except psycopg.Error as error:
                if not is_lost(error):
                    raise
                if not has_another:
                    raise StoreUnavailable(f"the database does not answer: {error}") from error
                await self._pool.drain()  # the others are as dead, and those just used are not asked
        raise AssertionError

    def _state(self, snapshot: StateSnapshot) -> dict[str, Any]:
        return thread_state(snapshot, show_errors=self._show_errors)

    async def _graph(self, graph_id: str) -> Graph:
        return over(await self._registry.look_at(graph_id), AsyncPostgresSaver(self._pool))


def thread_state(snapshot: StateSnapshot, *, show_errors: bool = True) -> dict[str, Any]:
    """The platform's shape of one LangGraph state. Without `show_errors` the errors of its tasks name the thread only:
    a checkpoint does not say which run a failed task belongs to.
    """
    if snapshot.created_at is None:
        return empty_state()
    checkpoint = _checkpoint(snapshot.config)
    parent = _checkpoint(snapshot.parent_config)
    state: dict[str, Any] = {
        "values": snapshot.values,
        "next": snapshot.next,
        "tasks": [_task(task, checkpoint, show_errors) for task in snapshot.tasks],
        "metadata": {**(snapshot.metadata or {}), "thread_id": checkpoint and checkpoint["thread_id"]},
        "created_at": snapshot.created_at,
        "checkpoint": checkpoint,
        "parent_checkpoint": parent,
        "interrupts": _interrupts(snapshot.interrupts),
        "checkpoint_id": checkpoint and checkpoint["checkpoint_id"],
        "parent_checkpoint_id": parent and parent["checkpoint_id"],
    }
    return dict(plain(state))


def _task(task: PregelTask, checkpoint: Mapping[str, Any] | None, show_errors: bool) -> dict[str, Any]:
    """A subgraph's state stands in `state` where it was asked for; else `checkpoint` says where it can be had."""
    nested = task.state
    return {
        "id": task.id,
        "name": task.name,
        "path": task.path,
        "error": None if task.error is None else _error(task.error, checkpoint, show_errors),
        "interrupts": _interrupts(task.interrupts),
        "checkpoint": None if nested is None or isinstance(nested, StateSnapshot) else _checkpoint(nested),
        "state": thread_state(nested, show_errors=show_errors) if isinstance(nested, StateSnapshot) else None,
        "result": task.result,
    }


def _error(error: Any, checkpoint: Mapping[str, Any] | None, show_errors: bool) -> str:
    if not show_errors:
        return hidden_error(str(checkpoint["thread_id"] if checkpoint else ""))
    return error if isinstance(error, str) else repr(error)


def _interrupts(interrupts: tuple[Any, ...]) -> list[dict[str, Any]]:
    return [{"id": interrupt.id, "value": interrupt.value} for interrupt in interrupts]


def _checkpoint(config: RunnableConfig | None) -> dict[str, Any] | None:
    configurable = (config or {}).get("configurable")
    return {key: configurable[key] for key in _CHECKPOINT if key in configurable} if configurable else None


def _config(thread_id: str, named: Mapping[str, Any]) -> RunnableConfig:
    where = {key: named[key] for key in _CHECKPOINT if named.get(key)}
    return {"configurable": {"checkpoint_ns": "", **where, "thread_id": thread_id}}


def _checkpoint_id(before: str | Mapping[str, Any]) -> Any:
    if isinstance(before, str):
        return before
    return before.get("checkpoint_id") or (before.get("configurable") or {}).get("checkpoint_id")
