"""The application service: the eight use cases on runs, and what threads need beside them.

Everything here is asynchronous at the edge and synchronous beneath: a use case is one hop to a thread and back. It
knows the log, the streams and its ports; HTTP, queues and read models are other people's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextvars import copy_context
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeVar

import orjson
import uuid_utils

from runs_es.domain import (
    ConflictError,
    Fact,
    FramesGone,
    LimitExceeded,
    Provenance,
    Run,
    RunCreated,
    RunFact,
    RunNotFound,
    RunScope,
    RunStatus,
    StoreUnavailable,
    Thread,
    ThreadUpdated,
    Timeouts,
    now,
    priority_of,
)
from runs_es.domain.policies import MultitaskDecision
from runs_es.log.append import ANONYMOUS
from runs_es.log.decisions import Decision, Decisions
from runs_es.log.pages import data_of, event_of
from runs_es.log.reader import Head, LogReader, Row
from runs_es.service.cancellation import Cancellation
from runs_es.service.commands import (
    CancelRunCommand,
    CancelRunsCommand,
    CreateRunCommand,
    GetRunQuery,
    JoinRunStreamCommand,
    ListRunMessagesQuery,
    ListRunsQuery,
)
from runs_es.service.ports import RunEventLog, RunExecutionScheduler, RunRepository
from runs_es.service.views import RunMessageView, RunSnapshot, RunStreamHandle
from runs_es.streams.broker import RunStreamEvent, stream_events
from runs_es.streams.cursor import End, Gap, RunStreams, parse_cursor

T = TypeVar("T")

MAX_AFTER_SECONDS = 366 * 86400


def new_id() -> str:
    """A UUIDv7: ids sort by time of creation."""
    return str(uuid_utils.uuid7())


class RunsApplicationService:
    """The store's use cases. A run of another thread or user reads as absent."""

    def __init__(
        self,
        *,
        decisions: Decisions,
        reader: LogReader,
        streams: RunStreams,
        runs: RunRepository,
        events: RunEventLog,
        scheduler: RunExecutionScheduler,
        threads: Executor,
    ) -> None:
        self._decisions = decisions
        self._reader = reader
        self._streams = streams
        self._runs = runs
        self._events = events
        self._scheduler = scheduler
        self._threads = threads
        self._cancellation = Cancellation(decisions, runs, scheduler)
        # Deletes what executors keep of a thread that is gone; called before its id is used again.
        self.forget: Callable[[str], None] = lambda _: None
        # Raises ValueError for a `webhook` that nothing can be sent to.
        self.check_webhook: Callable[[object], None] = lambda _: None

    async def create_background(self, command: CreateRunCommand) -> RunSnapshot:
        """Record a run and have it executed. Raises ThreadNotFound; ConflictError for `reject` on a busy thread."""
        return await self._call(self._create, command)

    def check(self, command: CreateRunCommand) -> None:
        """Raise what a creation is refused for whatever its thread: LimitExceeded, ValueError. Records nothing."""
        if not 0 <= command.after_seconds <= MAX_AFTER_SECONDS:
            raise LimitExceeded(f"after_seconds must be between 0 and {MAX_AFTER_SECONDS}")
        Timeouts.of(command.config)
        priority_of(command.config)
        if (webhook := command.options.get("webhook")) is not None:
            self.check_webhook(webhook)

    def create_now(self, command: CreateRunCommand) -> RunSnapshot:
        """As `create_background`, for callers without an event loop: it blocks."""
        return self._create(command)

    async def create_and_stream(
        self, command: CreateRunCommand, *, heartbeat_interval: float = 15.0
    ) -> RunStreamHandle:
        """As `create_background`, and open its stream from the start."""
        created = await self.create_background(command)
        return await self._open(created.thread_id, created.run_id, 0, heartbeat_interval)

    async def create_and_wait(self, command: CreateRunCommand) -> Any:
        """As `create_background`, and return the run's result once it has ended: see `result`."""
        created = await self.create_background(command)
        return await self.result(created.thread_id, created.run_id)

    async def join_stream(self, command: JoinRunStreamCommand) -> RunStreamHandle:
        """Open a run's stream after an id. Raises RunNotFound, BadSequence."""
        after = parse_cursor(command.last_event_id)
        run = await self._call(self._visible, command.run_id, command.thread_id, command.user_id)
        return await self._open(run.thread_id, run.run_id, after, command.heartbeat_interval)

    async def cancel(self, command: CancelRunCommand) -> RunSnapshot:
        """Stop a run that has not ended. Raises RunNotFound also for one that has.

        One that is rolled back is absent from then on; what comes back is then the run as it was found.
        """
        run = await self._call(self._visible, command.run_id, command.thread_id, command.user_id)
        await self._call(self._cancellation.of_runs, run.thread_id, [run.run_id], command.action, command.provenance)
        if command.wait:
            await self.ended(run.thread_id, run.run_id)
        current = await self._call(self._runs.get, run.run_id)
        return RunSnapshot.from_run(current or run)

    async def cancel_several(self, command: CancelRunsCommand) -> int:
        """Stop all runs that the command means and that have not ended; how many those were."""
        return await self._call(self._cancellation.several, command)

    async def get_run(self, query: GetRunQuery) -> RunSnapshot | None:
        """The run as its facts tell: always current. None when there is none that the caller may see."""
        run = await self._call(lambda: self._runs.get(query.run_id, thread_id=query.thread_id, user_id=query.user_id))
        return RunSnapshot.from_run(run) if run else None

    async def get_recorded_run(self, query: GetRunQuery) -> RunSnapshot | None:
        """The same, and a stateless run also after its thread has gone: for those who may still join its stream."""
        run = await self.get_run(query)
        if run is not None:
            return run
        try:
            recorded = await self._call(self._visible, query.run_id, None, query.user_id)
        except RunNotFound:
            return None
        return RunSnapshot.from_run(recorded) if query.thread_id in (None, recorded.thread_id) else None

    async def list_runs(self, query: ListRunsQuery) -> list[RunSnapshot]:
        """A thread's runs, newest first."""
        return await self._call(self._runs.list_by_thread, query)

    async def list_run_messages(self, query: ListRunMessagesQuery) -> list[RunMessageView]:
        """Messages in ascending seq."""
        return await self._call(self._events.list_messages_by_run, query)

    # --- beyond the eight: waiting, deleting, threads ---

    async def ended(self, thread_id: str, run_id: str) -> int:
        """Wait until the run has ended; the seq of its terminal fact."""
        stream = await self._streams.open(thread_id, run_id)
        if stream.ended_at is not None:
            stream.release()
            return stream.ended_at
        async for step in stream.steps():
            if isinstance(step, End):
                return step.seq
            if isinstance(step, Gap):
                break
        bounds = await self._call(self._reader.bounds, thread_id, run_id)
        if bounds is None:
            raise RunNotFound(run_id)
        if bounds.ended is None:
            raise StoreUnavailable("this server is shutting down; ask again")
        return bounds.ended

    async def result(self, thread_id: str, run_id: str) -> Any:
        """What the run came to, once it has ended: its last `values` frame, else `{}`; for a failure
        `{"__error__": {"error", "message"}}`; nothing came of one that was rolled back. Raises RunNotFound for a run
        that was deleted, also while it was waited for, and FramesGone when retention may have taken that frame.
        """
        await self.ended(thread_id, run_id)
        return await self._call(self._result, thread_id, run_id)

    async def delete_run(self, thread_id: str, run_id: str, *, user_id: str | None, provenance: Provenance) -> None:
        """Take the run out of every read model; one that has not ended is cancelled first. Raises RunNotFound."""
        run = await self._call(self._visible, run_id, thread_id, user_id)
        await self._call(self._delete_run, run, provenance)

    async def create_thread(
        self,
        thread_id: str | None,
        *,
        metadata: dict[str, Any] | None = None,
        user_id: str | None = None,
        provenance: Provenance = ANONYMOUS,
    ) -> str:
        """Make a thread; returns its id. Raises ThreadExists."""
        return await self._call(self._create_thread, thread_id or new_id(), metadata or {}, user_id, provenance)

    async def update_thread(self, thread_id: str, metadata: dict[str, Any], *, provenance: Provenance) -> None:
        """Merge `metadata` into the thread's. Raises ThreadNotFound."""
        await self._call(
            lambda: self._decisions.make(
                thread_id, lambda thread, _: Decision([thread.update(metadata)]), provenance=provenance
            )
        )

    async def delete_thread(self, thread_id: str, *, provenance: Provenance) -> None:
        """Cancel what runs in it and take the thread out of every read model. Raises ThreadNotFound."""
        await self._call(self._delete_thread, thread_id, provenance)

    # --- the synchronous halves ---

    def _create(self, command: CreateRunCommand) -> RunSnapshot:
        self.check(command)
        thread_id = command.thread_id or new_id()
        run_id = command.run_id or new_id()
        behind = [False]

        def decide(thread: Thread, _: Head) -> Decision:
            behind[:] = [thread.has_turns_before_a_new_run()]
            if command.run_id is not None and not command.run_id_is_new and self._reader.run_facts(command.run_id):
                raise ConflictError(f"Run with ID {command.run_id} already exists")
            facts = self._birth(thread, run_id, command)
            return Decision(facts, provenances=_provenances(facts, run_id, command.provenance))

        decided = self._decisions.make(
            thread_id, decide, provenance=command.provenance, idempotency_key=command.idempotency_key
        )
        created = next((fact for fact in decided.facts if isinstance(fact, RunCreated)), None)
        if created is None:
            return self._made_before(thread_id, command.idempotency_key)
        run = Run(created)
        # Where it took the place of others, their job may wait elsewhere: then it is looked up where the next belongs.
        alone = all(getattr(fact, "run_id", run_id) == run_id for fact in decided.facts)
        self._scheduler.wake(thread_id, due_at=created.due_at, run=run if alone else None, behind=alone and behind[0])
        return RunSnapshot.from_run(run)

    def _made_before(self, thread_id: str, key: str | None) -> RunSnapshot:
        """The run that the same idempotency key made."""
        first = self._reader.by_idem_key(thread_id, key or "")
        facts = self._reader.facts(thread_id, topics=["run.created"])
        created = next(each.fact for each in facts if first is not None and each.seq >= first.seq)
        assert isinstance(created, RunCreated)
        run = self._runs.get(created.run_id) or Run(created)
        return RunSnapshot.from_run(run)

    def _birth(self, thread: Thread, run_id: str, command: CreateRunCommand) -> list[Fact]:
        """The facts of a new run: its thread, where that is new, what it adds to the thread, and itself."""
        facts: list[Fact] = []
        metadata = thread.metadata
        if not thread.exists and (command.thread_id is None or command.create_thread):
            facts.append(self._born(thread, {}, command.user_id))
            metadata = {}
        elif command.user_id is not None and thread.user_id not in (None, command.user_id):
            thread = Thread(thread.thread_id)  # another user's: as if it were not there
        if not facts and thread.admit(command.multitask_strategy) is MultitaskDecision.CANCEL_EXISTING:
            facts += thread.supersede(command.multitask_strategy)
        added = {key: value for key, value in command.thread_metadata.items() if metadata.get(key) != value}
        if added:
            facts.append(ThreadUpdated(thread_id=thread.thread_id, occurred_at=now(), metadata=added))
        due_at = None
        if command.after_seconds:
            due_at = (datetime.now(UTC) + timedelta(seconds=command.after_seconds)).isoformat(timespec="microseconds")
        run = Run.create(
            run_id=run_id,
            thread_id=thread.thread_id,
            assistant_id=command.assistant_id,
            scope=command.scope,
            multitask_strategy=command.multitask_strategy,
            on_disconnect=command.on_disconnect,
            metadata={**metadata, **command.thread_metadata, **command.metadata},
            kwargs=command.kwargs(),
            model_name=command.model_name,
            user_id=command.user_id if command.user_id is not None else thread.user_id,
            due_at=due_at,
        )
        return [*facts, *run.pull_events()]

    def _born(self, thread: Thread, metadata: dict[str, Any], user_id: str | None) -> Fact:
        """The thread's first fact, or the first of its next life: that begins with nothing of the last one."""
        created = thread.create(metadata=metadata, user_id=user_id)
        if thread.revision:
            self.forget(thread.thread_id)
        return created

    def _delete_run(self, seen: Run, provenance: Provenance) -> None:
        def decide(thread: Thread, _: Head) -> Decision:
            return Decision(thread.delete_run(seen.run_id))

        self._decisions.make(seen.thread_id, decide, provenance=provenance)
        self._scheduler.wake(seen.thread_id)

    def _create_thread(
        self, thread_id: str, metadata: dict[str, Any], user_id: str | None, provenance: Provenance
    ) -> str:
        def decide(thread: Thread, _: Head) -> Decision:
            return Decision([self._born(thread, metadata, user_id)])

        self._decisions.make(thread_id, decide, provenance=provenance)
        return thread_id

    def _delete_thread(self, thread_id: str, provenance: Provenance) -> None:
        def decide(thread: Thread, _: Head) -> Decision:
            return Decision(thread.delete())

        self._decisions.make(thread_id, decide, provenance=provenance)

    def _visible(self, run_id: str, thread_id: str | None, user_id: str | None) -> Run:
        """The run, if the caller may see it. A stateless run stays visible after its thread has gone."""
        run = self._runs.get(run_id, thread_id=thread_id, user_id=user_id)
        if run is None and thread_id is None:
            run = Run.fold(recorded.fact for recorded in self._reader.run_facts(run_id))
            if run is not None and (run.scope is RunScope.STATEFUL or run.deleted or _is_anothers(run, user_id)):
                run = None
        if run is None:
            raise RunNotFound(run_id)
        return run

    async def _open(self, thread_id: str, run_id: str, after: int, heartbeat: float) -> RunStreamHandle:
        stream = await self._streams.open(thread_id, run_id, after, heartbeat=heartbeat)
        events: AsyncIterator[RunStreamEvent] = stream_events(stream)
        return RunStreamHandle(run_id=run_id, thread_id=thread_id, events=events, stream=stream)

    def _result(self, thread_id: str, run_id: str) -> Any:
        run = self._runs.get(run_id, thread_id=thread_id) or self._gone(thread_id, run_id)
        if run.is_rolled_back:
            return {}
        if run.status in (RunStatus.ERROR, RunStatus.TIMEOUT):
            return {"__error__": {"error": run.error_type or "Error", "message": run.error or ""}}
        bounds = self._reader.bounds(thread_id, run_id)
        if bounds is None or bounds.started is None or bounds.ended is None:
            return {}
        values = last_values(self._reader, thread_id, run_id, bounds.started, bounds.ended)
        return _with_questions(values, run)

    def _gone(self, thread_id: str, run_id: str) -> Run:
        """A run that no read model has any more, but has a result: rolled back, or gone with its temporary thread.

        Raises RunNotFound for one that was deleted, or whose thread was.
        """
        run = Run.fold(recorded.fact for recorded in self._reader.run_facts(run_id, thread_id))
        if run is None:
            raise RunNotFound(run_id)
        if not run.is_rolled_back and (run.deleted or run.scope is not RunScope.TEMPORARY_THREAD):
            raise RunNotFound(run_id)
        return run

    async def _call(self, function: Callable[..., T], *arguments: object) -> T:
        call = partial(copy_context().run, function, *arguments)
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)


def last_values(reader: LogReader, thread_id: str, run_id: str, first: int, last: int) -> Any:
    """The data of the last `values` frame between two seqs; `{}` when there is none. Raises FramesGone at a hole."""
    for row in _backwards(reader, thread_id, first, last):
        if row.is_page and row.run_id == run_id:
            for body in reversed(row.bodies):
                if event_of(body) == "values":
                    return orjson.loads(data_of(body))
    return {}


def _backwards(reader: LogReader, thread_id: str, first: int, last: int) -> Iterator[Row]:
    """The rows between two seqs, the newest first. Raises FramesGone where one is missing."""
    before = last + 1
    while before > first:
        rows = reader.rows_before(thread_id, before, 16)
        if not rows:
            raise FramesGone(f"retention has deleted frames of thread {thread_id} before {before}")
        for row in reversed(rows):
            if row.last < before - 1:
                raise FramesGone(
                    f"retention has deleted the frames {row.last + 1} to {before - 1} of thread {thread_id}"
                )
            yield row
            before = row.first


def _with_questions(values: Any, run: Run) -> Any:
    """All that a run asked when it paused. LangGraph's last values have one question of several, or none."""
    asked = [question for questions in run.interrupts.values() for question in questions]
    if not asked or not isinstance(values, dict) or values == {}:
        return values
    # Agents that are not LangGraph's may ask without an id, and show what they like.
    listed = values.get("__interrupt__")
    shown = {key: each for each in listed if (key := _key(each))} if isinstance(listed, list) else {}
    return {**values, "__interrupt__": [shown.get(_key(question), question) for question in asked]}


def _key(question: Any) -> str:
    key = question.get("id") if isinstance(question, dict) else None
    return key if isinstance(key, str) else ""


def _provenances(facts: Sequence[Fact], run_id: str, provenance: Provenance) -> list[Provenance]:
    """Of the facts that come with a new run: those that end others say in favour of which."""
    superseding = replace(provenance, reason=f"superseded by run {run_id}", causation_id=run_id)
    return [superseding if isinstance(fact, RunFact) and fact.run_id != run_id else provenance for fact in facts]


def _is_anothers(run: Run, user_id: str | None) -> bool:
    return user_id is not None and run.user_id not in (None, user_id)
