"""A run's facts in words: what `runs-es history` shows."""

from __future__ import annotations

from typing import Any

import orjson

from runs_es.domain import (
    EventRecorded,
    Fact,
    MessageRecorded,
    MessageRemoved,
    Recorded,
    RequeueCause,
    RunCancelled,
    RunCancelRequested,
    RunClaimed,
    RunCompleted,
    RunCreated,
    RunFailed,
    RunRequeued,
    RunStarted,
    ThreadRestored,
)
from runs_es.log import codec
from runs_es.log.reader import LogReader

_MOST = 100


def facts_of(reader: LogReader, run_id: str) -> list[Recorded]:
    """Every fact of the run, messages and traces included, in order; also of a run that was deleted."""
    lifecycle = reader.run_facts(run_id)
    if not lifecycle:
        return []
    return reader.facts(lifecycle[0].fact.thread_id, run_id=run_id)


def as_json(recorded: Recorded) -> dict[str, Any]:
    """A fact with everything that is known of it."""
    provenance = recorded.provenance
    return {
        "seq": recorded.seq,
        "revision": recorded.revision,
        "position": recorded.position,
        "thread_id": recorded.fact.thread_id,
        "topic": recorded.fact.topic,
        "fact": orjson.loads(codec.encode(recorded.fact)),
        "recorded_at": recorded.recorded_at,
        "actor": provenance.actor,
        "reason": provenance.reason,
        "correlation_id": provenance.correlation_id,
        "causation_id": provenance.causation_id,
    }


def what(fact: Fact, *, for_operator: bool = False) -> str:
    """The fact's topic, and what matters most in it, on one line. Hidden errors show `for_operator` only."""
    detail = " ".join(_detail(fact, for_operator).split())
    if len(detail) > _MOST:
        detail = detail[: _MOST - 1] + "…"
    return f"{fact.topic}  {detail}".rstrip()


def traceback_of(fact: Fact) -> str:
    """What is recorded of an agent's traceback, for the operator alone."""
    return fact.traceback if isinstance(fact, RunFailed | RunRequeued) else ""


def _detail(fact: Fact, for_operator: bool) -> str:
    match fact:
        case RunCreated():
            due = f", due {fact.due_at}" if fact.due_at else ""
            return f"assistant {fact.assistant_id or 'none'}{due}"
        case RunClaimed():
            return f"attempt {fact.attempt} by {fact.worker_id}"
        case RunStarted():
            return f"attempt {fact.attempt}"
        case RunRequeued():
            return f"attempt {fact.attempt}{_why(fact, fact.error if for_operator else fact.shown_error)}"
        case RunCompleted():
            return "waits for a human" if fact.interrupts else ""
        case RunFailed():
            error = fact.error if for_operator else fact.shown_error
            return ": ".join(part for part in (fact.status, fact.error_type, error) if part)
        case RunCancelRequested() | RunCancelled():
            return fact.action.value
        case ThreadRestored():
            return f"{fact.numbers} numbers of a lost history are passed over"
        case MessageRecorded():
            return f"{fact.event_type}: {_text(fact.content)}"
        case MessageRemoved():
            return f"{fact.message_id}: {fact.reason}"
        case EventRecorded():
            return f"{fact.event_type}: {_text(fact.content)}"
        case _:
            return ""


def _why(requeued: RunRequeued, error: str) -> str:
    match requeued.cause:
        case RequeueCause.WORKER_LOST:
            since = f", silent since {requeued.silent_since}" if requeued.silent_since else ""
            return f": lost its worker {requeued.worker_id}{since}"
        case RequeueCause.WORKER_STOPPED:
            return f": its worker {requeued.worker_id} stopped"
        case RequeueCause.RETRY:
            return f": again at {requeued.due_at}, after {requeued.error_type}: {error}"
    return ""


def _text(content: Any) -> str:
    """The text of a message, or its JSON."""
    inner = content.get("content", content) if isinstance(content, dict) else content
    return inner if isinstance(inner, str) else orjson.dumps(inner, default=str).decode()
