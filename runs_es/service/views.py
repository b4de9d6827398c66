"""What a caller is shown: runs, messages, events, streams."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from runs_es.domain import MultitaskStrategy, Run, RunScope, RunStatus
from runs_es.streams.broker import RunStreamEvent
from runs_es.streams.cursor import RunStream


@dataclass(frozen=True)
class RunSnapshot:
    """A run as it stood when read."""

    run_id: str
    thread_id: str
    assistant_id: str | None = None
    status: RunStatus = RunStatus.PENDING
    metadata: dict[str, Any] = field(default_factory=dict)
    kwargs: dict[str, Any] = field(default_factory=dict)
    created_at: str = ""
    updated_at: str = ""
    error: str | None = None
    model_name: str | None = None
    _: KW_ONLY
    scope: RunScope = RunScope.STATEFUL
    multitask_strategy: MultitaskStrategy = MultitaskStrategy.ENQUEUE
    error_type: str | None = None
    user_id: str | None = None
    attempt: int = 0
    interrupts: dict[str, Any] = field(default_factory=dict)
    checkpoint_id: str | None = None

    @classmethod
    def from_run(cls, run: Run) -> RunSnapshot:
        return cls(
            run_id=run.run_id,
            thread_id=run.thread_id,
            assistant_id=run.assistant_id,
            status=run.status,
            scope=run.scope,
            multitask_strategy=run.multitask_strategy,
            metadata=dict(run.metadata),
            kwargs=dict(run.kwargs),
            created_at=run.created_at,
            updated_at=run.updated_at,
            error=run.error,
            error_type=run.error_type,
            model_name=run.model_name,
            user_id=run.user_id,
            attempt=run.attempt,
            interrupts=dict(run.interrupts),
            checkpoint_id=run.checkpoint_id,
        )


@dataclass(frozen=True, kw_only=True)
class ThreadSnapshot:
    """A thread as it stood when read. `error` is `{"error", "message"}` of the run that ended last, if it failed."""

    thread_id: str
    status: str
    metadata: dict[str, Any]
    created_at: str
    updated_at: str
    user_id: str | None = None
    interrupts: dict[str, Any] = field(default_factory=dict)
    error: dict[str, str] | None = None
    state_updated_at: str | None = None


@dataclass(frozen=True)
class RunMessageView:
    """One message. `seq` is its fact's, and the cursor of lists and streams."""

    thread_id: str
    run_id: str
    seq: int
    event_type: str
    content: Any = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    created_at: str = ""


@dataclass(frozen=True, kw_only=True)
class StoredRunEvent(RunMessageView):
    """Any stored event: a fact, or a streamed frame. `run_id` is empty for facts of the thread itself."""

    category: str


@dataclass(frozen=True)
class RunStreamHandle:
    """An open stream: iterate `events`, or take `stream` to have the bytes. Unless iterated, call `stream.release`."""

    run_id: str
    thread_id: str
    events: AsyncIterator[RunStreamEvent]
    stream: RunStream


def run_body(run: RunSnapshot) -> dict[str, Any]:
    """The run in the platform's shape."""
    return {
        "run_id": run.run_id,
        "thread_id": run.thread_id,
        "assistant_id": run.assistant_id,
        "metadata": run.metadata,
        "status": run.status,
        "kwargs": run.kwargs,
        "multitask_strategy": run.multitask_strategy,
        "created_at": run.created_at,
        "updated_at": run.updated_at,
        "langsmith_session_name": None,
    }
