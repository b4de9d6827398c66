"""The state of threads whose agents keep no checkpoints, functions and external workers: what their runs showed last.

In the platform's shape of a state, so that whoever asks for a thread's values need not know what kind of agent it has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from itertools import islice
from typing import Any, TypeVar

from runs_es.domain import TERMINAL_TOPICS, FramesGone, Run, RunDeleted, ThreadDeleted, ThreadErased
from runs_es.execution.langgraph.graphs import GraphRegistry
from runs_es.execution.langgraph.state import GraphStateReader, empty_state
from runs_es.log.reader import LogReader
from runs_es.service.application import last_values
from runs_es.streams.cursor import MAX_SEQ

T = TypeVar("T")

_LOOK_AT = 10  # runs, from the last that ended on: one that failed may have shown nothing
_BATCH = 32
_ENDS = [*TERMINAL_TOPICS, RunDeleted.topic, ThreadDeleted.topic, ThreadErased.topic]


class ShownState:
    """Reads the last `values` frames from the log."""

    def __init__(self, reader: LogReader, threads: Executor) -> None:
        self._reader = reader
        self._threads = threads

    async def get(self, thread_id: str) -> dict[str, Any] | None:
        """The state as the last run showed it; None when no run of the thread has shown any."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._get, thread_id)

    def _get(self, thread_id: str) -> dict[str, Any] | None:
        head = self._reader.head(thread_id)
        last: Run | None = None
        for run in islice(self._ended(thread_id), _LOOK_AT):
            last = last or run
            if head is None or not head.frames:
                break  # no run of the thread has ever shown anything
            values = self._values(run)
            if values:
                return _state(values, run, paused=last)
        return _state({}, last, paused=last) if last is not None and last.is_paused else None

    def _ended(self, thread_id: str) -> Iterator[Run]:
        """The runs that the thread still has and that have ended, the last one first. Reads no more than is asked for:
        a thread may have thousands.
        """
        deleted: set[str | None] = set()
        for topic, run_id in self._ends(thread_id):
            if run_id is None:
                return  # the thread was deleted here
            if topic == RunDeleted.topic:
                deleted.add(run_id)
            elif run_id not in deleted:
                run = Run.fold(recorded.fact for recorded in self._reader.run_facts(run_id, thread_id))
                if run is not None:
                    yield run

    def _ends(self, thread_id: str) -> Iterator[tuple[str, str | None]]:
        """(topic, run) of the facts that end or delete runs, or, without a run, the thread; the newest first."""
        before = MAX_SEQ
        while True:
            found = self._reader.last_of(thread_id, _ENDS, before, _BATCH)
            for seq, topic, run_id in found:
                before = seq
                yield topic, run_id
            if len(found) < _BATCH:
                return

    def _values(self, run: Run) -> Any:
        bounds = self._reader.bounds(run.thread_id, run.run_id)
        if bounds is None or bounds.started is None or bounds.ended is None:
            return None
        try:
            return last_values(self._reader, run.thread_id, run.run_id, bounds.started, bounds.ended)
        except FramesGone:
            return None


class AssistantStates:
    """States of threads, of whatever kind their assistant is: one that is not a graph has its newest state alone, and
    no history.
    """

    def __init__(self, registry: GraphRegistry, graphs: GraphStateReader, shown: ShownState) -> None:
        self._registry = registry
        self._graphs = graphs
        self._shown = shown

    async def get(
        self,
        thread_id: str,
        graph_id: str | None,
        checkpoint_id: str | None = None,
        subgraphs: bool = False,
        checkpoint: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The newest state, or the one at a checkpoint; an empty one when there is none."""
        if graph_id is None or self._registry.is_graph(graph_id):
            return await self._graphs.get(thread_id, graph_id, checkpoint_id, subgraphs, checkpoint)
        named = checkpoint_id or (checkpoint or {}).get("checkpoint_id")
        return empty_state() if named else await self._shown.get(thread_id) or empty_state()

    async def history(
        self,
        thread_id: str,
        graph_id: str | None,
        limit: int,
        before: str | Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        checkpoint: Mapping[str, Any] | None = None,
    ) -> list[dict[str, Any]]:
        """The last states, newest first."""
        if graph_id is None or self._registry.is_graph(graph_id):
            return await self._graphs.history(thread_id, graph_id, limit, before, metadata, checkpoint)
        return []

    async def values(
        self, thread_id: str, graph_id: str | None, checkpoint_id: str | None = None
    ) -> dict[str, Any] | None:
        """The newest values; None when no run of the thread has left or shown any."""
        if graph_id is None or self._registry.is_graph(graph_id):
            return await self._graphs.values(thread_id, graph_id, checkpoint_id)
        state = await self._shown.get(thread_id)
        return None if state is None else state["values"]

    async def delete(self, thread_id: str) -> None:
        """Forget every checkpoint of the thread."""
        await self._graphs.delete(thread_id)


def _state(values: Any, run: Run, *, paused: Run) -> dict[str, Any]:
    """`run` showed the values; `paused` is the thread's last, which may wait for a human."""
    asked = paused.interrupts if paused.is_paused else {}
    tasks = [
        {
            "id": task_id,
            "name": "",
            "path": [],
            "error": None,
            "interrupts": interrupts,
            "checkpoint": None,
            "state": None,
            "result": None,
        }
        for task_id, interrupts in asked.items()
    ]
    return {
        **empty_state(),
        "values": values,
        "tasks": tasks,
        "metadata": {"run_id": run.run_id, "thread_id": run.thread_id},
        "created_at": run.updated_at,
        "interrupts": [each for interrupts in asked.values() for each in interrupts],
    }
