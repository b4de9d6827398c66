"""Runs a graph for one attempt of a run: streams its frames, records its messages, says how it ended.

The frames are the platform's. `metadata`, `error` and `end` belong to the worker, which knows when a run really ends.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any

from langchain_core.messages import BaseMessage
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import START
from langgraph.types import StateSnapshot

from runs_es.domain import LeaseLost, LimitExceeded
from runs_es.execution.langgraph.context import context_for
from runs_es.execution.langgraph.encoding import encode, plain
from runs_es.execution.langgraph.factories import Opening
from runs_es.execution.langgraph.graphs import GraphRegistry, over
from runs_es.execution.langgraph.large_frames import shortened, shortened_state
from runs_es.execution.langgraph.messages import MessageFrames, NewMessages
from runs_es.execution.langgraph.request import Breakpoints, GraphRequest, durability_of
from runs_es.execution.langgraph.resume import must_be_asked
from runs_es.execution.langgraph.retryable import may_pass
from runs_es.execution.langgraph.saver import CheckpointPool, FencedPostgresSaver
from runs_es.execution.protocol import ActiveRun, RunOutcome

if TYPE_CHECKING:
    from runs_es.execution.langgraph.graphs import Graph

logger = logging.getLogger(__name__)

SaverFactory = Callable[[ActiveRun], BaseCheckpointSaver[Any]]
Namespace = tuple[str, ...]


class LangGraphExecutor:
    """The `RunExecutor` of graphs. `saver_for` gives each attempt its own checkpointer."""

    def __init__(self, registry: GraphRegistry, saver_for: SaverFactory) -> None:
        self._registry = registry
        self._saver_for = saver_for

    @classmethod
    def over_pool(cls, registry: GraphRegistry, pool: CheckpointPool, schema: str) -> LangGraphExecutor:
        """State in PostgreSQL, behind the fence of each run's thread. `schema` is the log's."""

        def saver_for(run: ActiveRun) -> FencedPostgresSaver:
            return FencedPostgresSaver(
                pool,
                schema=schema,
                thread_id=run.run.thread_id,
                run_id=run.run.run_id,
                fence=run.fence,
                behind=durability_of(run.run.kwargs) != "sync",
                thread_is_new=getattr(run, "thread_is_new", False),
            )

        return cls(registry, saver_for)

    async def execute(self, run: ActiveRun) -> RunOutcome:
        request = GraphRequest.of(run.run, run.attempt, self._registry)
        opening = Opening("threads.create_run", request.config, request.context, run.run.user_id)
        async with self._registry.opened(request.graph_id, opening) as made, _saving(self._saver_for(run)) as saver:
            return await self._execute(run, request, over(made, saver), saver)

    async def _execute(
        self, run: ActiveRun, request: GraphRequest, graph: Graph, saver: BaseCheckpointSaver[Any]
    ) -> RunOutcome:
        frames = _Frames(run, request)
        if run.attempt > 1:
            head = await graph.aget_state(request.thread_config)
            if (head.metadata or {}).get("run_id") == request.run_id:
                if await _stands_at_breakpoint(graph, request, head):
                    await frames.send_pause(head)
                    await frames.retain(head)
                    return _outcome(head)
                request = request.continued()
            elif request.resume is not None and isinstance(saver, FencedPostgresSaver):
                # The answer may have been taken, and the next question asked, without a checkpoint: in one node.
                await saver.restart()
        await _must_be_there(saver, request)
        if request.strict:
            must_be_asked(request.resume, await graph.aget_state(request.config))
        await _stream(graph, request, frames)
        head = await graph.aget_state(request.thread_config)
        if frames.may_differ(head):
            # A node has changed a message in place. Whether that was saved only the database knows.
            if isinstance(saver, FencedPostgresSaver):
                saver.forget_newest()
            head = await graph.aget_state(request.thread_config)
            await frames.record(head.values)
        await frames.retain(head)
        return _outcome(head)

    def is_retryable(self, error: Exception) -> bool:
        """See retryable.py."""
        return may_pass(error)


@asynccontextmanager
async def _saving(saver: BaseCheckpointSaver[Any]) -> AsyncIterator[BaseCheckpointSaver[Any]]:
    """When left, what the graph saved is durable, also where the graph failed or was cancelled."""
    fenced = saver if isinstance(saver, FencedPostgresSaver) else None
    try:
        yield saver
    except BaseException:
        try:
            if fenced is not None:
                await fenced.flush()
        except Exception as error:
            if isinstance(error, LeaseLost):
                raise
            logger.warning("a state could not be saved: %s", error)  # how the graph ended says more
        raise
    if fenced is not None:
        await fenced.flush()


class CheckpointNotFound(Exception):
    """The run was to begin at a checkpoint that its thread does not have."""


async def _must_be_there(saver: BaseCheckpointSaver[Any], request: GraphRequest) -> None:
    """Raises CheckpointNotFound. LangGraph would begin with an empty state, which then would be the thread's newest."""
    checkpoint_id = request.config["configurable"].get("checkpoint_id")
    if checkpoint_id is not None and await saver.aget_tuple(request.config) is None:
        raise CheckpointNotFound(f"thread {request.thread_id} has no checkpoint {checkpoint_id}")


async def _stream(graph: Graph, request: GraphRequest, frames: _Frames) -> None:
    stream: Any = graph.astream(
        request.input,
        request.config,
        context=context_for(graph.context_schema, request.context),
        stream_mode=request.graph_modes,
        subgraphs=request.subgraphs,
        interrupt_before=request.interrupt_before,
        interrupt_after=request.interrupt_after,
        durability=request.durability,
    )
    # Closed at once however this ends. A generator left to the garbage collector would keep the graph's tasks running
    # after a cancel or a lost lease.
    async with aclosing(stream):
        async for item in stream:
            namespace, mode, payload = item if request.subgraphs else ((), *item)
            await frames.send(namespace, mode, payload)


class _Frames:
    """Writes what LangGraph streams as the frames that the request asked for."""

    def __init__(self, run: ActiveRun, request: GraphRequest) -> None:
        self._run = run
        self._wanted = request.modes
        self._tuples = request.message_form == "tuple"
        self._built = MessageFrames()
        self._new = NewMessages(request.thread_id)

    async def send(self, namespace: Namespace, mode: str, payload: Any) -> None:
        match mode:
            case "values":
                await self._send_values(namespace, payload)
            case "messages" if not self._tuples:
                await self._send_message(*payload)
            case _:
                await self._publish(_name(mode, namespace), encode(payload))

    async def send_pause(self, head: StateSnapshot) -> None:
        """What an attempt shows that finds the graph waiting at a breakpoint already."""
        if "updates" in self._wanted:
            await self.send((), "updates", {"__interrupt__": []})
        await self._send_values((), head.values)

    async def retain(self, head: StateSnapshot) -> None:
        """After a run from an earlier checkpoint: what the thread lists and its state no longer holds leaves the list,
        for those turns were done anew. What a graph takes out of its state by itself stays in its users' history.
        """
        kwargs = self._run.run.kwargs
        if not (kwargs.get("checkpoint_id") or (kwargs.get("checkpoint") or {}).get("checkpoint_id")):
            return
        held = self._new.ids(head.values)
        if held is not None:
            await self._run.retain_messages(held, "not in the state that the run left")

    async def record(self, state: Any) -> None:
        """Record the messages of a state that are not as they were recorded last."""
        for message in self._new.of(state):
            await self._run.record_message(message)

    def may_differ(self, head: StateSnapshot) -> bool:
        """Whether messages of the state that the run left may be others than those recorded."""
        return self._new.changed_in_place or self._new.differ(head.values)

    async def _send_values(self, namespace: Namespace, state: Any) -> None:
        """Messages first: who reads a message in this frame finds it recorded."""
        messages: list[bytes] = []
        if not namespace:
            await self.record(state)
            state, messages = self._new.encoded(state)
        if "values" in self._wanted:
            event = _name("values", namespace)
            try:
                await self._run.publish(event, encode(state))
            except LimitExceeded as error:
                await self._publish(event, shortened_state(state, messages, error, self._run.run))

    async def _send_message(self, message: BaseMessage, metadata: dict[str, Any]) -> None:
        for event, data in self._built.of(message, metadata):
            await self._publish(event, data)

    async def _publish(self, event: str, data: bytes) -> None:
        """Stream a frame; one that is too large is replaced by one that says so, and the run goes on."""
        try:
            await self._run.publish(event, data)
        except LimitExceeded as error:
            await self._run.publish(event, shortened(event, data, error, self._run.run))


def _name(mode: str, namespace: Namespace) -> str:
    return "|".join((mode, *namespace))


def _outcome(head: StateSnapshot) -> RunOutcome:
    """A graph that has a next step without having failed waits for a human.

    At a breakpoint there is nothing to answer: its tasks stand there with an empty list.
    """
    waiting = {task.id: plain([_interrupt(each) for each in task.interrupts]) for task in head.tasks}
    asked = {task_id: interrupts for task_id, interrupts in waiting.items() if interrupts}
    return RunOutcome(
        interrupts=(asked or waiting) if head.next else {},
        checkpoint_id=(head.config.get("configurable") or {}).get("checkpoint_id"),
    )


def _interrupt(interrupt: Any) -> dict[str, Any]:
    return {"id": interrupt.id, "value": interrupt.value}


async def _stands_at_breakpoint(graph: Graph, request: GraphRequest, head: StateSnapshot) -> bool:
    """Whether an earlier attempt stopped at a breakpoint and was lost before it could say so.

    Going on from there would be taken for a human's consent. That LangGraph passes a breakpoint when it is started
    again without input is how a human gives it. (Breakpoints that a subgraph was compiled with are not looked at.)
    """
    before = request.interrupt_before or graph.interrupt_before_nodes
    after = request.interrupt_after or graph.interrupt_after_nodes
    if not head.next or not (before or after):
        return False
    if _hits(before, head.next):
        return True
    parent = await graph.aget_state(head.parent_config) if after and head.parent_config else None
    return parent is not None and _hits(after, parent.next)


def _hits(breakpoints: Breakpoints | Any, nodes: tuple[str, ...]) -> bool:
    own = set(nodes) - {START}
    return bool(own) if breakpoints == "*" else not own.isdisjoint(breakpoints or ())
