"""What a caller asks for: commands and queries, plain frozen values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from runs_es.domain import CancelAction, DisconnectMode, MultitaskStrategy, Provenance, RunScope


@dataclass(frozen=True, kw_only=True)
class CreateRunCommand:
    """Start a run. Without `thread_id` it gets a thread of its own, which goes when the run ends (`temporary_thread`)
    or stays (`stateless`), by `scope`.

    `metadata` is the run's own; the thread's is laid under it. `thread_metadata` is merged into the thread's.
    `config` may bound its time: `timeout_seconds`, `idle_timeout_seconds` (see `Timeouts`); and say its `priority`.
    `run_id_is_new` says that the id was made for this command, so that nobody need look whether there is such a run.
    `options` are further fields of the request, recorded as they came (webhook, checkpoint, durability, …).
    """

    assistant_id: str
    thread_id: str | None = None
    input: Any = None
    command: Mapping[str, Any] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    context: Mapping[str, Any] = field(default_factory=dict)
    scope: RunScope = RunScope.STATEFUL
    on_disconnect: DisconnectMode = DisconnectMode.CONTINUE
    multitask_strategy: MultitaskStrategy = MultitaskStrategy.ENQUEUE
    stream_mode: Sequence[str] = ("values",)
    stream_subgraphs: bool = False
    interrupt_before: Sequence[str] | str | None = None
    interrupt_after: Sequence[str] | str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    run_id: str | None = None
    run_id_is_new: bool = False
    model_name: str | None = None
    after_seconds: float = 0.0
    create_thread: bool = False
    thread_metadata: Mapping[str, Any] = field(default_factory=dict)
    user_id: str | None = None
    provenance: Provenance = Provenance()  # noqa: RUF009  (frozen)
    idempotency_key: str | None = None

    def kwargs(self) -> dict[str, Any]:
        """The request as recorded on the run."""
        return {
            "input": self.input,
            "command": self.command,
            "config": dict(self.config),
            "context": dict(self.context),
            "stream_mode": list(self.stream_mode),
            "interrupt_before": self.interrupt_before,
            "interrupt_after": self.interrupt_after,
            "temporary": self.scope is RunScope.TEMPORARY_THREAD,
            "subgraphs": self.stream_subgraphs,
            **self.options,
        }


@dataclass(frozen=True, kw_only=True)
class CancelRunCommand:
    """Stop a run. With `wait`, return only once it has ended."""

    run_id: str
    action: CancelAction = CancelAction.INTERRUPT
    wait: bool = False
    thread_id: str | None = None
    user_id: str | None = None
    provenance: Provenance = Provenance()  # noqa: RUF009


@dataclass(frozen=True, kw_only=True)
class CancelRunsCommand:
    """Stop these runs of a thread, or, without a thread, all of the caller's that have this status."""

    thread_id: str | None = None
    run_ids: Sequence[str] = ()
    status: Literal["pending", "running", "all"] = "all"
    action: CancelAction = CancelAction.INTERRUPT
    user_id: str | None = None
    provenance: Provenance = Provenance()  # noqa: RUF009


@dataclass(frozen=True, kw_only=True)
class JoinRunStreamCommand:
    """Read a run's stream after `last_event_id`: from its start for None, `-1` and `0`."""

    run_id: str
    last_event_id: str | None = None
    thread_id: str | None = None
    user_id: str | None = None
    heartbeat_interval: float = 15.0


@dataclass(frozen=True, kw_only=True)
class GetRunQuery:
    run_id: str
    thread_id: str | None = None
    user_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class ListRunsQuery:
    """A thread's runs, newest first."""

    thread_id: str
    user_id: str | None = None
    limit: int = 100
    offset: int = 0
    status: str | None = None


@dataclass(frozen=True, kw_only=True)
class ListRunMessagesQuery:
    """A page of messages, in ascending seq; `run_id` None means of the whole thread.

    `types` are event types (human, ai, tool, …), None all of them. Hidden messages are those that say so of themselves.
    """

    thread_id: str
    run_id: str | None = None
    limit: int = 50
    before_seq: int | None = None
    after_seq: int | None = None
    user_id: str | None = None
    types: Sequence[str] | None = None
    visibility: Literal["all", "shown", "hidden"] = "all"


@dataclass(frozen=True, kw_only=True)
class FindRunsQuery:
    """Runs of all threads, newest first; `user_id` is who asks, `owner` whose runs are asked for.

    `created_after` and `created_before` (ISO 8601 with offset) bound the time of creation, neither included. `metadata`
    is what a run's must hold. `after` is the cursor of the page before.
    """

    user_id: str | None = None
    owner: str | None = None
    thread_id: str | None = None
    assistant_id: str | None = None
    status: str | None = None
    metadata: Mapping[str, Any] | None = None
    created_after: str | None = None
    created_before: str | None = None
    limit: int = 100
    after: str | None = None
