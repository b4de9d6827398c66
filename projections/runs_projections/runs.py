"""The read model `runs`: one row a run that is there, as `runs_es.domain.Run` would fold it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from runs_es.domain import (
    FACT_TYPES,
    Fact,
    MultitaskStrategy,
    Recorded,
    RunCancelled,
    RunCancelRequested,
    RunClaimed,
    RunCompleted,
    RunCreated,
    RunDeleted,
    RunFact,
    RunFailed,
    RunRequeued,
    RunScope,
    RunStarted,
    RunStatus,
    ThreadDeleted,
    ThreadErased,
)
from runs_es.log.reader import CONTENT_TOPICS
from runs_es.service.views import RunSnapshot
from runs_projections.projection import BIGINT, INT, JSON, TEXT, Column, Key, Projection, Scope, Table, changed
from runs_projections.stored_text import encoded


@dataclass(frozen=True)
class RunRow:
    """`metadata`, `kwargs` and `interrupts` are JSON text. `last_seq` and `position` are of the last fact applied.

    `assistant_id` is empty for a run without an assistant: no id is.
    """

    thread_id: str
    run_id: str
    assistant_id: str
    status: str
    scope: str
    multitask_strategy: str
    metadata: str
    kwargs: str
    created_at: str
    updated_at: str
    error: str | None
    error_type: str | None
    model_name: str | None
    user_id: str | None
    attempt: int
    interrupts: str
    checkpoint_id: str | None
    due_at: str | None
    created_seq: int
    last_seq: int
    position: int

    def snapshot(self) -> RunSnapshot:
        return RunSnapshot(
            run_id=self.run_id,
            thread_id=self.thread_id,
            assistant_id=self.assistant_id or None,
            status=RunStatus(self.status),
            scope=RunScope(self.scope),
            multitask_strategy=MultitaskStrategy(self.multitask_strategy),
            metadata=orjson.loads(self.metadata),
            kwargs=orjson.loads(self.kwargs),
            created_at=self.created_at,
            updated_at=self.updated_at,
            error=self.error,
            error_type=self.error_type,
            model_name=self.model_name,
            user_id=self.user_id,
            attempt=self.attempt,
            interrupts=orjson.loads(self.interrupts),
            checkpoint_id=self.checkpoint_id,
        )


def key(recorded: Recorded) -> Key | None:
    fact = recorded.fact
    if isinstance(fact, RunFact) and fact.topic not in CONTENT_TOPICS:
        return fact.thread_id, fact.run_id
    return None


def clears(recorded: Recorded) -> Scope | None:
    return (recorded.fact.thread_id,) if isinstance(recorded.fact, ThreadDeleted | ThreadErased) else None


def evolve(row: RunRow | None, recorded: Recorded) -> RunRow | None:
    """The run after one of its facts. What comes after its deletion, or its thread's, changes nothing."""
    fact = recorded.fact
    if isinstance(fact, RunCreated):
        return _created(fact, recorded)
    if row is None or isinstance(fact, RunDeleted):
        return None
    changes = _changes(fact)
    if changes is None:
        return row
    return changed(row, updated_at=fact.occurred_at, last_seq=recorded.seq, position=recorded.position, **changes)


def _changes(fact: Fact) -> dict[str, Any] | None:
    """What a fact changes beside the time; None when it says nothing about the run itself."""
    match fact:
        case RunClaimed():
            return {"attempt": fact.attempt}
        case RunStarted():
            return {"status": RunStatus.RUNNING.value, "attempt": fact.attempt}
        case RunRequeued():
            return {"status": RunStatus.PENDING.value}
        case RunCancelRequested():
            return {}
        case RunCompleted():
            interrupts = encoded(fact.interrupts)
            return {"status": RunStatus.SUCCESS.value, "interrupts": interrupts, "checkpoint_id": fact.checkpoint_id}
        case RunFailed():
            return {"status": fact.status.value, "error": fact.shown_error, "error_type": fact.error_type}
        case RunCancelled():
            return {"status": RunStatus.INTERRUPTED.value}
        case _:
            return None


def _created(fact: RunCreated, recorded: Recorded) -> RunRow:
    return RunRow(
        thread_id=fact.thread_id,
        run_id=fact.run_id,
        assistant_id=fact.assistant_id or "",
        status=RunStatus.PENDING.value,
        scope=fact.scope.value,
        multitask_strategy=fact.multitask_strategy.value,
        metadata=encoded(fact.metadata),
        kwargs=encoded(fact.kwargs),
        created_at=fact.occurred_at,
        updated_at=fact.occurred_at,
        error=None,
        error_type=None,
        model_name=fact.model_name,
        user_id=fact.user_id,
        attempt=0,
        interrupts="{}",
        checkpoint_id=None,
        due_at=fact.due_at,
        created_seq=recorded.seq,
        last_seq=recorded.seq,
        position=recorded.position,
    )


RUNS = Projection(
    name="runs",
    version=1,
    table=Table(
        name="runs",
        migrated=True,
        row=RunRow,
        key=("thread_id", "run_id"),
        columns=(
            Column("thread_id", TEXT),
            Column("run_id", TEXT),
            Column("assistant_id", TEXT),
            Column("status", TEXT),
            Column("scope", TEXT),
            Column("multitask_strategy", TEXT),
            Column("metadata", JSON),
            Column("kwargs", JSON),
            Column("created_at", TEXT),
            Column("updated_at", TEXT),
            Column("error", TEXT),
            Column("error_type", TEXT),
            Column("model_name", TEXT),
            Column("user_id", TEXT),
            Column("attempt", INT),
            Column("interrupts", JSON),
            Column("checkpoint_id", TEXT),
            Column("due_at", TEXT),
            Column("created_seq", BIGINT),
            Column("last_seq", BIGINT),
            Column("position", BIGINT),
        ),
    ),
    key=key,
    evolve=evolve,
    clears=clears,
    topics=frozenset(
        fact.topic
        for fact in FACT_TYPES
        if (issubclass(fact, RunFact) and fact.topic not in CONTENT_TOPICS) or fact in (ThreadDeleted, ThreadErased)
    ),
)
