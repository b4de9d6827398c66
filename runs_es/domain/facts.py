"""The facts: everything that can happen to a thread and its runs, one frozen dataclass each.

A fact carries all that a rebuild needs. Who did it and why stand beside it in `Provenance`, because every fact has
them; where it stands in the log is in `Recorded`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, TypeAlias

from runs_es.domain.values import (
    CancelAction,
    DisconnectMode,
    EventCategory,
    MultitaskStrategy,
    RequeueCause,
    RunScope,
    RunStatus,
    checked_id,
    checked_text,
    checked_time,
    copied,
    now,
)

MAX_EVENT_TYPE = 32
MAX_CATEGORY = 16
# Facts about the store itself. No thread of a user: those are UUIDs at the HTTP edge, and this one is never created.
SYSTEM_THREAD = "runs-es.system"
_CRON_THREADS = "runs-es.cron."


@dataclass(frozen=True, kw_only=True)
class Fact:
    """Something that happened in a thread, at `occurred_at` (ISO 8601 with offset), now if not said."""

    topic: ClassVar[str]
    optional: ClassVar[frozenset[str]] = frozenset()  # identifiers that may be None
    category: EventCategory = field(default=EventCategory.LIFECYCLE, init=False, repr=False, compare=False)

    thread_id: str
    occurred_at: str = field(default_factory=now)

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name in IDENTIFIERS and not (value is None and item.name in self.optional):
                self._set(item.name, checked_id(item.name, value))
            elif item.name in _COPIED:
                self._set(item.name, copied(value))
            elif item.name in ENUMS and value is not None:
                self._set(item.name, ENUMS[item.name](value))
        self._set("occurred_at", checked_time("occurred_at", self.occurred_at))

    @property
    def raises_fence(self) -> bool:
        """Whether it changes who may write: a worker whose claim is older is refused from then on."""
        return False

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)


IDENTIFIERS = frozenset({"thread_id", "run_id", "assistant_id", "claim_id", "message_id", "cron_id"})
_COPIED = frozenset({"metadata", "kwargs", "content", "interrupts", "payload", "changes"})
ENUMS: dict[str, Any] = {
    "scope": RunScope,
    "multitask_strategy": MultitaskStrategy,
    "on_disconnect": DisconnectMode,
    "action": CancelAction,
    "status": RunStatus,
    "cause": RequeueCause,
    "category": EventCategory,
}


@dataclass(frozen=True, kw_only=True)
class ThreadCreated(Fact):
    topic: ClassVar[str] = "thread.created"
    metadata: Mapping[str, Any] = field(default_factory=dict)
    user_id: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        checked_text("user_id", self.user_id)


@dataclass(frozen=True, kw_only=True)
class ThreadUpdated(Fact):
    """`metadata` is merged into the thread's, key by key."""

    topic: ClassVar[str] = "thread.updated"
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ThreadDeleted(Fact):
    """A tombstone: the thread leaves every read model, its log stays."""

    topic: ClassVar[str] = "thread.deleted"

    @property
    def raises_fence(self) -> bool:
        return True


@dataclass(frozen=True, kw_only=True)
class ThreadErased(Fact):
    """The last fact of a thread whose other events are erased for good; `events` says how many were."""

    topic: ClassVar[str] = "thread.erased"
    events: int = 0

    @property
    def raises_fence(self) -> bool:
        return True


@dataclass(frozen=True, kw_only=True)
class ThreadRestored(Fact):
    """The store was restored: what the thread had beyond the seq before this fact's numbers is lost.

    The fact covers `numbers` numbers, which end with its own seq, so that none of the lost ones is given out again.
    `epoch` counts restores.
    """

    topic: ClassVar[str] = "thread.restored"
    epoch: int
    numbers: int

    @property
    def raises_fence(self) -> bool:
        return True


@dataclass(frozen=True, kw_only=True)
class RunFact(Fact):
    """A fact about one run."""

    run_id: str


@dataclass(frozen=True, kw_only=True)
class FactOfAttempt(RunFact):
    """A fact that stops the `attempt` under way: 0 where nobody works on the run, None where that is not known.

    At 0 no worker is disturbed by it, in particular not that of another run of the thread.
    """

    attempt: int | None = None

    @property
    def raises_fence(self) -> bool:
        return self.attempt != 0


@dataclass(frozen=True, kw_only=True)
class RunCreated(RunFact):
    """A run was asked for. `due_at` (ISO 8601) delays it; `kwargs` is the request as it came.

    Without an `assistant_id` it is for an executor that needs none.
    """

    topic: ClassVar[str] = "run.created"
    optional: ClassVar[frozenset[str]] = frozenset({"assistant_id"})
    assistant_id: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    scope: RunScope = RunScope.STATEFUL
    multitask_strategy: MultitaskStrategy = MultitaskStrategy.ENQUEUE
    on_disconnect: DisconnectMode = DisconnectMode.CONTINUE
    model_name: str | None = None
    user_id: str | None = None
    due_at: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        checked_text("user_id", self.user_id)
        checked_text("model_name", self.model_name)
        if self.due_at is not None:
            self._set("due_at", checked_time("due_at", self.due_at))


@dataclass(frozen=True, kw_only=True)
class RunClaimed(RunFact):
    """A worker took the run. Only the writer whose `claim_id` this is may go on writing for it."""

    topic: ClassVar[str] = "run.claimed"
    claim_id: str
    attempt: int = 1
    worker_id: str = ""

    @property
    def raises_fence(self) -> bool:
        return True


@dataclass(frozen=True, kw_only=True)
class RunStarted(RunFact):
    """An attempt began to execute. `first_frame` counts the frames the thread had before it."""

    topic: ClassVar[str] = "run.started"
    attempt: int = 1
    first_frame: int = 0


@dataclass(frozen=True, kw_only=True)
class RunRequeued(RunFact):
    """An attempt ended without an outcome; None for a `cause` was recorded before causes were.

    `worker_id` had claimed it, and was last heard of at `silent_since` (ISO 8601), where it was lost and that is known.
    A retry is due at `due_at` (ISO 8601), after `error`, `error_type` being the exception's class name. `traceback` and
    `error_hidden` are as in `RunFailed`.
    """

    topic: ClassVar[str] = "run.requeued"
    attempt: int = 1
    cause: RequeueCause | None = None
    worker_id: str = ""
    silent_since: str | None = None
    due_at: str | None = None
    error: str = ""
    error_type: str = ""
    traceback: str = ""
    error_hidden: bool = False

    @property
    def raises_fence(self) -> bool:
        return True

    @property
    def shown_error(self) -> str:
        """The text that clients see."""
        return hidden_error(self.run_id) if self.error_hidden else self.error


@dataclass(frozen=True, kw_only=True)
class RunCancelRequested(FactOfAttempt):
    topic: ClassVar[str] = "run.cancel_requested"
    action: CancelAction = CancelAction.INTERRUPT


@dataclass(frozen=True, kw_only=True)
class RunCompleted(RunFact):
    """Success. `interrupts` is not empty when the run paused for a human: `{task_id: [{"id", "value"}]}`."""

    topic: ClassVar[str] = "run.completed"
    interrupts: Mapping[str, Any] = field(default_factory=dict)
    checkpoint_id: str | None = None

    @property
    def raises_fence(self) -> bool:
        return True


@dataclass(frozen=True, kw_only=True)
class RunFailed(FactOfAttempt):
    """`status` is error or timeout; `error` is the text, if there is one, `error_type` the exception's class name.

    `traceback` is for the operator and never shown to clients. With `error_hidden` they see `shown_error` instead of
    the text. The fact decides this, not a setting: what was shown once is replayed the same under any later setting.
    """

    topic: ClassVar[str] = "run.failed"
    status: RunStatus = RunStatus.ERROR
    error: str | None = None
    error_type: str = "Error"
    traceback: str = ""
    error_hidden: bool = False

    @property
    def shown_error(self) -> str | None:
        """The text that clients see; None where there is none."""
        return hidden_error(self.run_id) if self.error_hidden else self.error

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.status not in (RunStatus.ERROR, RunStatus.TIMEOUT):
            raise ValueError(f"status of a failed run must be error or timeout, got {self.status}")


@dataclass(frozen=True, kw_only=True)
class RunCancelled(FactOfAttempt):
    topic: ClassVar[str] = "run.cancelled"
    action: CancelAction = CancelAction.INTERRUPT


@dataclass(frozen=True, kw_only=True)
class RunDeleted(FactOfAttempt):
    """A tombstone: the run leaves every read model, its facts stay in the log."""

    topic: ClassVar[str] = "run.deleted"


@dataclass(frozen=True, kw_only=True)
class MessageRecorded(RunFact):
    """A human, AI or tool message, whole. One fact an id and content: an edited message is a new fact."""

    topic: ClassVar[str] = "message.recorded"
    message_id: str
    event_type: str = "message"
    content: Any = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("category", EventCategory.MESSAGE)
        _check_length("event_type", self.event_type, MAX_EVENT_TYPE)


@dataclass(frozen=True, kw_only=True)
class MessageRemoved(RunFact):
    """The run left a state without this message: it leaves the thread's list, and comes back if it is recorded again.

    What was recorded of it stays in the log.
    """

    topic: ClassVar[str] = "message.removed"
    message_id: str
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class EventRecorded(RunFact):
    """Anything else an executor wants kept: traces, outputs, subagent steps."""

    topic: ClassVar[str] = "event.recorded"
    event_type: str
    kind: EventCategory = EventCategory.TRACE
    content: Any = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("kind", EventCategory(self.kind))
        self._set("category", self.kind)
        _check_length("event_type", self.event_type, MAX_EVENT_TYPE)


@dataclass(frozen=True, kw_only=True)
class ProjectionFact(Fact):
    """What an operator decided about a projection that stood still at `position`. Kept in SYSTEM_THREAD."""

    projection: str
    version: int
    position: int


@dataclass(frozen=True, kw_only=True)
class ProjectionRetried(ProjectionFact):
    """It is to try the fact at `position` again."""

    topic: ClassVar[str] = "projection.retried"


@dataclass(frozen=True, kw_only=True)
class ProjectionSkipped(ProjectionFact):
    """It passes over the fact at `position`: now, and whenever this version is rebuilt."""

    topic: ClassVar[str] = "projection.skipped"


def cron_thread(cron_id: str) -> str:
    """The thread of the log that holds the facts of a cron; no thread of a user either."""
    return _CRON_THREADS + cron_id


@dataclass(frozen=True, kw_only=True)
class CronFact(Fact):
    """A fact about a cron, kept in its `cron_thread`. `next_run_date` (ISO 8601) is when it is due after this fact."""

    cron_id: str
    next_run_date: str | None = None


@dataclass(frozen=True, kw_only=True)
class CronCreated(CronFact):
    """A run is to be started by a schedule: on `run_thread_id`, or where that is None on a thread of its own each time.

    `payload` is the request of its runs as it came, `metadata` theirs.
    """

    topic: ClassVar[str] = "cron.created"
    assistant_id: str
    schedule: str
    timezone: str | None = None
    end_time: str | None = None
    enabled: bool = True
    run_thread_id: str | None = None
    on_run_completed: str | None = None
    payload: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    user_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class CronUpdated(CronFact):
    """`changes` are new values of fields of `CronCreated`."""

    topic: ClassVar[str] = "cron.updated"
    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class CronDeleted(CronFact):
    """A tombstone. Runs that it started stay."""

    topic: ClassVar[str] = "cron.deleted"


@dataclass(frozen=True, kw_only=True)
class CronFired(CronFact):
    """The run of the time `tick` (ISO 8601) is in the log."""

    topic: ClassVar[str] = "cron.fired"
    tick: str
    run_id: str
    run_thread_id: str


@dataclass(frozen=True, kw_only=True)
class CronSkipped(CronFact):
    """No run for `tick`, nor for others until `next_run_date`; `reason` says why."""

    topic: ClassVar[str] = "cron.skipped"
    tick: str
    reason: str = ""


def hidden_error(run_id: str) -> str:
    """The text in the place of an error that clients may not read. The id finds it in the log and in the history."""
    return f"An internal error occurred (id {run_id})"


def _check_length(field_name: str, value: str, most: int) -> None:
    if not isinstance(value, str) or not 1 <= len(value) <= most:
        raise ValueError(f"{field_name} must have 1 to {most} characters, got {value!r}")


RunEvent: TypeAlias = RunCreated | RunStarted | RunCompleted | RunFailed | RunCancelled
TERMINAL_FACTS = (RunCompleted, RunFailed, RunCancelled)
TERMINAL_TOPICS = frozenset(fact.topic for fact in TERMINAL_FACTS)
FACT_TYPES: tuple[type[Fact], ...] = (
    ThreadCreated,
    ThreadUpdated,
    ThreadDeleted,
    ThreadErased,
    ThreadRestored,
    RunCreated,
    RunClaimed,
    RunStarted,
    RunRequeued,
    RunCancelRequested,
    RunCompleted,
    RunFailed,
    RunCancelled,
    RunDeleted,
    MessageRecorded,
    MessageRemoved,
    EventRecorded,
    ProjectionRetried,
    ProjectionSkipped,
    CronCreated,
    CronUpdated,
    CronDeleted,
    CronFired,
    CronSkipped,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Who caused a fact, and why. `correlation_id` ties facts of one request, `causation_id` names what led here."""

    actor: str | None = None
    reason: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A fact as it stands in the log.

    `seq` counts all events of the thread, `revision` its facts, `position` the facts of the whole store.
    """

    fact: Fact
    seq: int
    revision: int
    position: int
    recorded_at: str
    provenance: Provenance = Provenance()
