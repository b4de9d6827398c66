"""The read model `messages`: the newest version that each run recorded of each message.

A list shows one entry a message id, the newest of all runs. The version of an earlier run is kept beneath it, so that
deleting the run that edited a message brings back what was there before, by deleting rows and no more. A removal is a
version too, without content: while it is the newest one, the message is not listed.
"""

from __future__ import annotations

from dataclasses import dataclass

import orjson

from runs_es.domain import MessageRecorded, MessageRemoved, Recorded, RunDeleted, ThreadDeleted, ThreadErased
from runs_es.service.views import RunMessageView
from runs_projections.projection import BIGINT, BOOL, JSON, TEXT, Column, Key, Projection, Scope, Table
from runs_projections.stored_text import encoded, utc
from runs_projections.visibility import is_listed


@dataclass(frozen=True, slots=True)
class MessageRow:
    """`content` and `metadata` are JSON text; `seq` is of the newest version, `first_seq` of the run's first.

    Of a message that the run removed, `event_type` is empty and `content` null.
    """

    thread_id: str
    run_id: str
    message_id: str
    seq: int
    first_seq: int
    event_type: str
    content: str
    metadata: str
    created_at: str
    removed: bool = False

    def view(self) -> RunMessageView:
        return RunMessageView(
            thread_id=self.thread_id,
            run_id=self.run_id,
            seq=self.seq,
            event_type=self.event_type,
            content=orjson.loads(self.content),
            metadata=orjson.loads(self.metadata),
            created_at=self.created_at,
        )


def _is_hidden(row: MessageRow) -> bool:
    # Most messages have neither word in them, and reading their JSON takes longer than looking.
    if '"hidden"' not in row.metadata and '"hide_from_ui"' not in row.content:
        return False
    return is_listed(row.view(), "hidden")


def key(recorded: Recorded) -> Key | None:
    fact = recorded.fact
    return (
        (fact.thread_id, fact.run_id, fact.message_id) if isinstance(fact, MessageRecorded | MessageRemoved) else None
    )


def clears(recorded: Recorded) -> Scope | None:
    match recorded.fact:
        case ThreadDeleted() | ThreadErased() as fact:
            return (fact.thread_id,)
        case RunDeleted() as fact:
            return fact.thread_id, fact.run_id
        case _:
            return None


def evolve(row: MessageRow | None, recorded: Recorded) -> MessageRow | None:
    """The message as this fact tells it."""
    match recorded.fact:
        case MessageRecorded() as fact:
            said = fact.event_type, encoded(fact.content), encoded(fact.metadata)
        case MessageRemoved() as fact:
            said = "", "null", "{}"
        case _:
            return row
    event_type, content, metadata = said
    return MessageRow(
        thread_id=fact.thread_id,
        run_id=fact.run_id,
        message_id=fact.message_id,
        seq=recorded.seq,
        first_seq=row.first_seq if row else recorded.seq,
        event_type=event_type,
        content=content,
        metadata=metadata,
        created_at=utc(recorded.recorded_at),
        removed=isinstance(fact, MessageRemoved),
    )


MESSAGES = Projection(
    name="messages",
    version=1,
    table=Table(
        name="messages",
        migrated=True,
        row=MessageRow,
        key=("thread_id", "run_id", "message_id"),
        hashed=("run_id",),
        columns=(
            Column("thread_id", TEXT),
            Column("run_id", TEXT),
            Column("message_id", TEXT),
            Column("seq", BIGINT),
            Column("first_seq", BIGINT),
            Column("event_type", TEXT),
            Column("content", JSON),
            Column("metadata", JSON),
            Column("created_at", TEXT),
            Column("removed", BOOL),
            Column("hidden", BOOL, _is_hidden),
        ),
    ),
    key=key,
    evolve=evolve,
    clears=clears,
    topics=frozenset(kind.topic for kind in (MessageRecorded, MessageRemoved, RunDeleted, ThreadDeleted, ThreadErased)),
)
