"""The read model `crons`: one row a cron that is there, with when it is due next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from runs_es.domain import (
    CronCreated,
    CronDeleted,
    CronFact,
    CronFired,
    CronSkipped,
    CronUpdated,
    Recorded,
    ThreadErased,
)
from runs_es.service.crons import CronSnapshot
from runs_projections.projection import BIGINT, BOOL, JSON, JSONB, TEXT, TIME, Column, Key, Projection, Table, changed
from runs_projections.stored_text import encoded, moment_of


@dataclass(frozen=True)
class CronRow:
    """`thread_id` is the cron's own in the log, `run_thread_id` its runs'; `payload` and `metadata` are JSON text.

    `revision` is of the last fact applied: what a change of the cron has to state.
    """

    thread_id: str
    cron_id: str
    assistant_id: str
    run_thread_id: str | None
    on_run_completed: str | None
    schedule: str
    timezone: str | None
    end_time: str | None
    enabled: bool
    payload: str
    metadata: str
    user_id: str | None
    created_at: str
    updated_at: str
    next_run_date: str | None
    revision: int

    def snapshot(self) -> CronSnapshot:
        fields = {name: value for name, value in vars(self).items() if name != "thread_id"}
        fields |= {"payload": orjson.loads(self.payload), "metadata": orjson.loads(self.metadata)}
        return CronSnapshot(**fields)


def key(recorded: Recorded) -> Key | None:
    fact = recorded.fact
    return (fact.thread_id,) if isinstance(fact, CronFact | ThreadErased) else None


def evolve(row: CronRow | None, recorded: Recorded) -> CronRow | None:
    """The cron after one of its facts."""
    fact = recorded.fact
    if isinstance(fact, CronCreated):
        return _created(fact, recorded)
    if row is None or not isinstance(fact, CronFact) or isinstance(fact, CronDeleted):
        return None
    changes: dict[str, Any] = {}
    if isinstance(fact, CronUpdated):
        told = {
            name: encoded(value) if name in ("payload", "metadata") else value for name, value in fact.changes.items()
        }
        changes = {**told, "updated_at": fact.occurred_at}
    return changed(row, next_run_date=fact.next_run_date, revision=recorded.revision, **changes)


def _created(fact: CronCreated, recorded: Recorded) -> CronRow:
    return CronRow(
        thread_id=fact.thread_id,
        cron_id=fact.cron_id,
        assistant_id=fact.assistant_id,
        run_thread_id=fact.run_thread_id,
        on_run_completed=fact.on_run_completed,
        schedule=fact.schedule,
        timezone=fact.timezone,
        end_time=fact.end_time,
        enabled=fact.enabled,
        payload=encoded(fact.payload),
        metadata=encoded(fact.metadata),
        user_id=fact.user_id,
        created_at=fact.occurred_at,
        updated_at=fact.occurred_at,
        next_run_date=fact.next_run_date,
        revision=recorded.revision,
    )


CRONS = Projection(
    name="crons",
    version=1,
    table=Table(
        name="crons",
        migrated=True,
        row=CronRow,
        key=("thread_id",),
        columns=(
            Column("thread_id", TEXT),
            Column("cron_id", TEXT),
            Column("assistant_id", TEXT),
            Column("run_thread_id", TEXT),
            Column("on_run_completed", TEXT),
            Column("schedule", TEXT),
            Column("timezone", TEXT),
            Column("end_time", TEXT),
            Column("enabled", BOOL),
            Column("payload", JSON),
            Column("metadata", JSON),
            Column("user_id", TEXT),
            Column("created_at", TEXT),
            Column("updated_at", TEXT),
            Column("next_run_date", TEXT),
            Column("revision", BIGINT),
            Column("created_order", TIME, moment_of("created_at")),
            Column("updated_order", TIME, moment_of("updated_at")),
            Column("end_order", TIME, moment_of("end_time")),
            Column("next_order", TIME, moment_of("next_run_date")),
            Column("searchable", JSONB, lambda row: row.metadata),
        ),
    ),
    key=key,
    evolve=evolve,
    topics=frozenset(
        kind.topic for kind in (CronCreated, CronUpdated, CronDeleted, CronFired, CronSkipped, ThreadErased)
    ),
)
