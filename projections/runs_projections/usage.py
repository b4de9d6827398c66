"""The read model `usage`: what each message says it took to make, by run, thread and model.

Tokens come from a message's `usage_metadata`, the model's name from its `response_metadata`. One row a run and
message, of its newest version: a message that is recorded again is not counted again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runs_es.domain import MessageRecorded, Recorded, RunDeleted, ThreadDeleted, ThreadErased
from runs_projections import messages
from runs_projections.projection import BIGINT, TEXT, Column, Projection, Table

UNKNOWN_MODEL = ""
_MOST = 2**53


@dataclass(frozen=True, slots=True)
class UsageRow:
    """Tokens of one message. `input_tokens` holds those read from and written to a cache, `output_tokens` reasoning."""

    thread_id: str
    run_id: str
    message_id: str
    seq: int
    model: str
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int


def evolve(row: UsageRow | None, recorded: Recorded) -> UsageRow | None:
    """What the newest version of a message says; None where it says nothing of usage."""
    fact = recorded.fact
    if not isinstance(fact, MessageRecorded):
        return row
    content = _mapping(fact.content)
    usage = _mapping(content.get("usage_metadata"))
    if not usage:
        return None
    inputs, outputs = _mapping(usage.get("input_token_details")), _mapping(usage.get("output_token_details"))
    return UsageRow(
        thread_id=fact.thread_id,
        run_id=fact.run_id,
        message_id=fact.message_id,
        seq=recorded.seq,
        model=_model(_mapping(content.get("response_metadata"))),
        input_tokens=_count(usage.get("input_tokens")),
        output_tokens=_count(usage.get("output_tokens")),
        cache_read_tokens=_count(inputs.get("cache_read")),
        cache_write_tokens=_count(inputs.get("cache_creation")),
        reasoning_tokens=_count(outputs.get("reasoning")),
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _count(value: Any) -> int:
    """What a model's client reports is not ours to trust: anything but a sensible number of tokens is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST else 0


def _model(metadata: Mapping[str, Any]) -> str:
    for name in ("model_name", "model"):
        value = metadata.get(name)
        if isinstance(value, str) and value:
            return value
    return UNKNOWN_MODEL


USAGE = Projection(
    name="usage",
    version=1,
    table=Table(
        name="usage",
        migrated=True,
        row=UsageRow,
        key=("thread_id", "run_id", "message_id"),
        hashed=("run_id",),
        columns=(
            Column("thread_id", TEXT),
            Column("run_id", TEXT),
            Column("message_id", TEXT),
            Column("seq", BIGINT),
            Column("model", TEXT),
            Column("input_tokens", BIGINT),
            Column("output_tokens", BIGINT),
            Column("cache_read_tokens", BIGINT),
            Column("cache_write_tokens", BIGINT),
            Column("reasoning_tokens", BIGINT),
        ),
    ),
    # It has the rows that `messages` has, or fewer.
    key=messages.key,
    evolve=evolve,
    clears=messages.clears,
    # A message that left the list has been paid for.
    topics=frozenset(kind.topic for kind in (MessageRecorded, RunDeleted, ThreadDeleted, ThreadErased)),
)
