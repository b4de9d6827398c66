"""Commands and queries: what a caller asks for, plain frozen values that are checked when they are made.

Required and common fields may be given by position, in the order written; all others by name. Ids lose surrounding
space, one text for several names is one name, and enums may be given as their values. A field of another type, a blank
id or a number out of range raises ValueError, or TypeError for a `last_event_id` that is no text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal

from runs_es.domain import CancelAction, DisconnectMode, MultitaskStrategy, Provenance, RunScope, RunStatus
from runs_es.domain.values import checked_count, checked_id, checked_text, checked_time, names_of
from runs_es.streams.cursor import check_cursor_type, check_heartbeat

_IDS = ("run_id", "thread_id", "assistant_id")
_STATUSES = ("pending", "running", "all")
_VISIBILITIES = ("all", "shown", "hidden")


class _Checked:
    """Changes fields of a frozen value while it is made."""

    def _check_ids(self, *required: str) -> None:
        for name in _IDS:
            value = getattr(self, name, None)
            if value is not None or name in required:
                self._set(name, checked_id(name, value))
        checked_text("user_id", getattr(self, "user_id", None))

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)


@dataclass(frozen=True)
class CreateRunCommand(_Checked):
    """Start a run. Without `thread_id` it gets a thread of its own, which goes when the run ends (`temporary_thread`)
    or stays (`stateless`), by `scope`.

    `metadata` is the run's own; the thread's is laid under it. `thread_metadata` is merged into the thread's.
    `config` may bound its time: `timeout_seconds`, `idle_timeout_seconds` (see `Timeouts`); and say its `priority`.
    `run_id_is_new` says that the id was made for this command, so that nobody need look whether there is such a run.
    `options` are further fields of the request, recorded as they came (webhook, checkpoint, durability, …).
    """

    thread_id: str | None = None
    assistant_id: str | None = None
    input: Any = None
    command: Mapping[str, Any] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    context: Mapping[str, Any] = field(default_factory=dict)
    scope: RunScope = RunScope.STATEFUL
    on_disconnect: DisconnectMode = DisconnectMode.CONTINUE
    multitask_strategy: MultitaskStrategy = MultitaskStrategy.ENQUEUE
    stream_mode: Sequence[str] | str | None = ("values",)
    stream_subgraphs: bool = False
    interrupt_before: Sequence[str] | str | None = None
    interrupt_after: Sequence[str] | str | None = None
    _: KW_ONLY
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

    def __post_init__(self) -> None:
        self._check_ids()
        self._set("scope", RunScope(self.scope))
        self._set("on_disconnect", DisconnectMode(self.on_disconnect))
        self._set("multitask_strategy", MultitaskStrategy(self.multitask_strategy))
        modes = names_of("stream_mode", ("values",) if self.stream_mode is None else self.stream_mode)
        self._set("stream_mode", tuple(dict.fromkeys(modes)))
        for name in ("interrupt_before", "interrupt_after"):
            nodes = getattr(self, name)
            if nodes is not None and nodes != "*":
                self._set(name, list(names_of(name, nodes)))
        for name in ("metadata", "config", "context", "options", "thread_metadata", "command"):
            value = getattr(self, name)
            if not isinstance(value, Mapping) and not (name == "command" and value is None):
                raise ValueError(f"{name} must be a mapping, not {type(value).__name__}")
        for name in ("model_name", "idempotency_key"):
            checked_text(name, getattr(self, name))
        if isinstance(self.after_seconds, bool) or not isinstance(self.after_seconds, int | float):
            raise ValueError(f"after_seconds must be a number, not {type(self.after_seconds).__name__}")

    def kwargs(self) -> dict[str, Any]:
        """The request as recorded on the run."""
        return {
            "input": self.input,
            "command": self.command,
            "config": dict(self.config),
            "context": dict(self.context),
            "stream_mode": list(self.stream_mode or ()),
            "interrupt_before": self.interrupt_before,
            "interrupt_after": self.interrupt_after,
            "temporary": self.scope is RunScope.TEMPORARY_THREAD,
            "subgraphs": self.stream_subgraphs,
            **self.options,
        }


@dataclass(frozen=True)
class CancelRunCommand(_Checked):
    """Stop a run. With `wait`, return only once it has ended."""

    run_id: str
    action: CancelAction = CancelAction.INTERRUPT
    wait: bool = False
    _: KW_ONLY
    thread_id: str | None = None
    user_id: str | None = None
    provenance: Provenance = Provenance()  # noqa: RUF009

    def __post_init__(self) -> None:
        self._check_ids("run_id")
        self._set("action", CancelAction(self.action))


@dataclass(frozen=True, kw_only=True)
class CancelRunsCommand(_Checked):
    """Stop these runs of a thread, or, without a thread, all of the caller's that have this status."""

    thread_id: str | None = None
    run_ids: Sequence[str] = ()
    status: Literal["pending", "running", "all"] = "all"
    action: CancelAction = CancelAction.INTERRUPT
    user_id: str | None = None
    provenance: Provenance = Provenance()  # noqa: RUF009

    def __post_init__(self) -> None:
        self._check_ids()
        self._set("run_ids", names_of("run_ids", self.run_ids))
        self._set("action", CancelAction(self.action))
        if self.status not in _STATUSES:
            raise ValueError(f"status must be one of {', '.join(_STATUSES)}, got {self.status!r}")


@dataclass(frozen=True)
class JoinRunStreamCommand(_Checked):
    """Read a run's stream after `last_event_id`: from its start for None, `-1` and `0`."""

    run_id: str
    last_event_id: str | None = None
    _: KW_ONLY
    thread_id: str | None = None
    user_id: str | None = None
    heartbeat_interval: float = 15.0

    def __post_init__(self) -> None:
        self._check_ids("run_id")
        check_cursor_type(self.last_event_id)
        check_heartbeat(self.heartbeat_interval)


@dataclass(frozen=True)
class GetRunQuery(_Checked):
    """One run, always current."""

    run_id: str
    thread_id: str | None = None
    user_id: str | None = None

    def __post_init__(self) -> None:
        self._check_ids("run_id")


@dataclass(frozen=True)
class ListRunsQuery(_Checked):
    """A thread's runs, newest first."""

    thread_id: str
    user_id: str | None = None
    limit: int = 100
    _: KW_ONLY
    offset: int = 0
    status: str | None = None

    def __post_init__(self) -> None:
        self._check_ids("thread_id")
        checked_count("limit", self.limit)
        checked_count("offset", self.offset)
        _check_status(self.status)


@dataclass(frozen=True)
class ListRunMessagesQuery(_Checked):
    """A page of messages, in ascending seq; `run_id` None means of the whole thread.

    `types` are event types (human, ai, tool, …), None all of them. Hidden messages are those that say so of themselves.
    """

    thread_id: str
    run_id: str | None = None
    limit: int = 50
    before_seq: int | None = None
    after_seq: int | None = None
    _: KW_ONLY
    user_id: str | None = None
    types: Sequence[str] | None = None
    visibility: Literal["all", "shown", "hidden"] = "all"

    def __post_init__(self) -> None:
        self._check_ids("thread_id")
        check_page(self.limit, self.before_seq, self.after_seq)
        if self.types is not None:
            self._set("types", names_of("types", self.types))
        if self.visibility not in _VISIBILITIES:
            raise ValueError(f"visibility must be one of {', '.join(_VISIBILITIES)}, got {self.visibility!r}")


def check_page(limit: object, before_seq: object, after_seq: object) -> None:
    """Raises ValueError unless these bound a page of events."""
    checked_count("limit", limit)
    for name, seq in (("before_seq", before_seq), ("after_seq", after_seq)):
        if seq is not None:
            checked_count(name, seq)


@dataclass(frozen=True, kw_only=True)
class FindRunsQuery(_Checked):
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

    def __post_init__(self) -> None:
        self._check_ids()
        for name in ("owner", "after"):
            checked_text(name, getattr(self, name))
        for name in ("created_after", "created_before"):
            if (moment := getattr(self, name)) is not None:
                checked_time(name, moment)
        if self.metadata is not None and not isinstance(self.metadata, Mapping):
            raise ValueError(f"metadata must be a mapping, not {type(self.metadata).__name__}")
        checked_count("limit", self.limit)
        _check_status(self.status)


def _check_status(status: object) -> None:
    if status is not None:
        RunStatus(status)  # type: ignore[arg-type]
