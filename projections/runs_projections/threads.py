"""The read model `threads`: one row a thread that is there, as `runs_es.domain.Thread` would fold it.

Its status follows from the runs in flight and the run that ended last, so the row carries what it must know of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from runs_es.domain import (
    FACT_TYPES,
    TERMINAL_FACTS,
    Fact,
    Recorded,
    Run,
    RunClaimed,
    RunCreated,
    RunDeleted,
    RunFact,
    RunStarted,
    RunStatus,
    ThreadCreated,
    ThreadDeleted,
    ThreadErased,
    ThreadStatus,
    ThreadUpdated,
    status_after,
)
from runs_es.log.reader import CONTENT_TOPICS
from runs_es.service.views import ThreadSnapshot
from runs_projections.projection import BIGINT, JSON, JSONB, TEXT, TIME, Column, Key, Kind, Projection, Table, changed
from runs_projections.stored_text import encoded, moment_of

Active = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class ThreadRow:
    """`metadata`, `interrupts` and `error` are JSON text.

    `active` are the runs in flight and their attempts, in order of creation; `ended_run` is the run that ended last,
    `ended_status` what the thread is while none is in flight. `revision` and `position` are of the last fact applied.
    """

    thread_id: str
    status: str
    metadata: str
    user_id: str | None
    created_at: str
    updated_at: str
    state_updated_at: str | None
    interrupts: str
    error: str | None
    active: Active
    ended_run: str | None
    ended_status: str
    created_seq: int
    revision: int
    position: int

    def snapshot(self) -> ThreadSnapshot:
        return ThreadSnapshot(
            thread_id=self.thread_id,
            status=self.status,
            metadata=orjson.loads(self.metadata),
            created_at=self.created_at,
            updated_at=self.updated_at,
            user_id=self.user_id,
            interrupts=orjson.loads(self.interrupts),
            error=orjson.loads(self.error) if self.error is not None else None,
            state_updated_at=self.state_updated_at,
        )


def key(recorded: Recorded) -> Key | None:
    """Messages and traces say nothing about the thread's state."""
    return None if recorded.fact.topic in CONTENT_TOPICS else (recorded.fact.thread_id,)


def evolve(row: ThreadRow | None, recorded: Recorded) -> ThreadRow | None:
    """The thread after one of its facts. One that was deleted and is created again starts anew."""
    fact = recorded.fact
    if isinstance(fact, ThreadCreated):
        return _created(fact, recorded)
    if row is None or isinstance(fact, ThreadDeleted | ThreadErased):
        return None
    changes = _changes(row, fact)
    active = changes.get("active", row.active)
    return changed(
        row,
        updated_at=fact.occurred_at,
        revision=recorded.revision,
        position=recorded.position,
        status=ThreadStatus.BUSY.value if active else changes.get("ended_status", row.ended_status),
        **changes,
    )


def _changes(row: ThreadRow, fact: Fact) -> dict[str, Any]:
    """What a fact changes beside times and status."""
    match fact:
        case ThreadUpdated():
            return {"metadata": encoded({**orjson.loads(row.metadata), **fact.metadata})}
        case RunCreated():
            return {"active": (*_without(row.active, fact.run_id), (fact.run_id, 0))}
        case RunFact():
            attempt = next((attempt for run_id, attempt in row.active if run_id == fact.run_id), None)
            return _of_ended_run(row, fact) if attempt is None else _of_active_run(row, fact, attempt)
        case _:
            return {}


def _of_ended_run(row: ThreadRow, fact: RunFact) -> dict[str, Any]:
    if isinstance(fact, RunDeleted) and fact.run_id == row.ended_run:
        return {"ended_run": None, "ended_status": ThreadStatus.IDLE.value, "interrupts": "{}", "error": None}
    return {}


def _of_active_run(row: ThreadRow, fact: RunFact, attempt: int) -> dict[str, Any]:
    match fact:
        case RunClaimed() | RunStarted():
            return {"active": tuple((run_id, fact.attempt if run_id == fact.run_id else n) for run_id, n in row.active)}
        case RunDeleted():
            return {"active": _without(row.active, fact.run_id)}
        case _ if isinstance(fact, TERMINAL_FACTS):
            return {"active": _without(row.active, fact.run_id), **_left_behind(fact, attempt)}
        case _:
            return {}


def _left_behind(fact: RunFact, attempt: int) -> dict[str, Any]:
    """What an ended run leaves. The domain says what it means for the thread, so it is given a run like it."""
    run = Run(RunCreated(thread_id=fact.thread_id, run_id=fact.run_id, occurred_at=fact.occurred_at, assistant_id="-"))
    run.attempt = attempt
    run.apply(fact)
    if run.leaves_nothing:
        return {}
    status = status_after(run)
    return {
        "ended_run": fact.run_id,
        "ended_status": status.value,
        "interrupts": encoded(run.interrupts),
        "error": _error(run, status),
        "state_updated_at": fact.occurred_at,
    }


def _error(run: Run, status: ThreadStatus) -> str | None:
    if status is ThreadStatus.ERROR:
        return encoded({"error": run.error_type or "Error", "message": run.error or ""})
    if status is ThreadStatus.INTERRUPTED and run.status is RunStatus.INTERRUPTED:
        return encoded({"error": "UserInterrupt", "message": "run cancelled"})
    return None


def _without(active: Active, run_id: str) -> Active:
    return tuple(pair for pair in active if pair[0] != run_id)


def _created(fact: ThreadCreated, recorded: Recorded) -> ThreadRow:
    return ThreadRow(
        thread_id=fact.thread_id,
        status=ThreadStatus.IDLE.value,
        metadata=encoded(fact.metadata),
        user_id=fact.user_id,
        created_at=fact.occurred_at,
        updated_at=fact.occurred_at,
        state_updated_at=None,
        interrupts="{}",
        error=None,
        active=(),
        ended_run=None,
        ended_status=ThreadStatus.IDLE.value,
        created_seq=recorded.seq,
        revision=recorded.revision,
        position=recorded.position,
    )


def _active_of(text: str) -> Active:
    return tuple((run_id, attempt) for run_id, attempt in orjson.loads(text))


THREADS = Projection(
    name="threads",
    version=2,  # 1: a run that was cancelled before it began made a paused or failed thread idle
    table=Table(
        name="threads_v2",
        migrated=True,
        row=ThreadRow,
        key=("thread_id",),
        columns=(
            Column("thread_id", TEXT),
            Column("status", TEXT),
            Column("metadata", JSON),
            Column("user_id", TEXT),
            Column("created_at", TEXT),
            Column("updated_at", TEXT),
            Column("state_updated_at", TEXT),
            Column("interrupts", JSON),
            Column("error", JSON),
            Column("active", Kind("json", write=encoded, read=_active_of)),
            Column("ended_run", TEXT),
            Column("ended_status", TEXT),
            Column("created_seq", BIGINT),
            Column("revision", BIGINT),
            Column("position", BIGINT),
            # Facts carry times with any offset, as text; lists sort by the moment.
            Column("created_order", TIME, moment_of("created_at")),
            Column("updated_order", TIME, moment_of("updated_at")),
            Column("state_order", TIME, moment_of("state_updated_at")),
            Column("searchable", JSONB, lambda row: row.metadata),
        ),
    ),
    key=key,
    evolve=evolve,
    topics=frozenset(fact.topic for fact in FACT_TYPES) - set(CONTENT_TOPICS),
)
