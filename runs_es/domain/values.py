"""Identifiers, enumerations and the sequence number: the words everything else is said in."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, NewType

RunId = NewType("RunId", str)
ThreadId = NewType("ThreadId", str)
AssistantId = NewType("AssistantId", str)
UserId = NewType("UserId", str)

MAX_ID_LENGTH = 255
_RFC3339 = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?(Z|[+-][0-9]{2}:[0-9]{2})")


def checked_id(field: str, value: object) -> str:
    """`value` without surrounding space. Raises ValueError naming `field` when blank, no string, or unstorable."""
    if not isinstance(value, str):
        raise ValueError(f"{field} must be a string, not {type(value).__name__}")
    stripped = value.strip()
    if not stripped:
        raise ValueError(f"{field} must not be empty")
    if len(stripped) > MAX_ID_LENGTH:
        raise ValueError(f"{field} must have at most {MAX_ID_LENGTH} characters")
    if "\x00" in stripped:
        raise ValueError(f"{field} must not contain a NUL character")
    return stripped


class RunStatus(StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    SUCCESS = "success"
    ERROR = "error"
    TIMEOUT = "timeout"
    INTERRUPTED = "interrupted"

    # The contract names the members in lower case; both spellings are the same object.
    pending = PENDING
    running = RUNNING
    success = SUCCESS
    error = ERROR
    timeout = TIMEOUT
    interrupted = INTERRUPTED


class DisconnectMode(StrEnum):
    CANCEL = "cancel"
    CONTINUE = "continue"

    cancel = CANCEL
    continue_ = CONTINUE


class RunScope(StrEnum):
    STATEFUL = "stateful"
    STATELESS = "stateless"
    TEMPORARY_THREAD = "temporary_thread"

    stateful = STATEFUL
    stateless = STATELESS
    temporary_thread = TEMPORARY_THREAD


class MultitaskStrategy(StrEnum):
    REJECT = "reject"
    INTERRUPT = "interrupt"
    ROLLBACK = "rollback"
    ENQUEUE = "enqueue"

    reject = REJECT
    interrupt = INTERRUPT
    rollback = ROLLBACK
    enqueue = ENQUEUE


class CancelAction(StrEnum):
    INTERRUPT = "interrupt"
    ROLLBACK = "rollback"

    interrupt = INTERRUPT
    rollback = ROLLBACK


class RequeueCause(StrEnum):
    """Why an attempt ended without an outcome."""

    WORKER_LOST = "worker_lost"
    WORKER_STOPPED = "worker_stopped"  # in good order: it does not count against the run
    RETRY = "retry"  # an error that may pass


class ThreadStatus(StrEnum):
    IDLE = "idle"
    BUSY = "busy"
    INTERRUPTED = "interrupted"
    ERROR = "error"


class EventCategory(StrEnum):
    """What kind of thing a stored event is. `message` ones are eligible for message lists."""

    MESSAGE = "message"
    LIFECYCLE = "lifecycle"
    TRACE = "trace"
    OUTPUTS = "outputs"
    ERROR = "error"
    CONTEXT = "context"
    SUBAGENT = "subagent"
    MIDDLEWARE = "middleware"
    WORKSPACE = "workspace"
    STREAM = "stream"


TERMINAL_RUN_STATUSES = frozenset({RunStatus.SUCCESS, RunStatus.ERROR, RunStatus.TIMEOUT, RunStatus.INTERRUPTED})


def is_terminal_status(status: RunStatus | str) -> bool:
    """Whether nothing can follow `status`. Raises ValueError for a word that is no status."""
    return RunStatus(status) in TERMINAL_RUN_STATUSES


@dataclass(frozen=True, order=True, slots=True)
class EventSeq:
    """A thread-local sequence number. Stored events start at 1; 0 means "before the first"."""

    value: int

    def __post_init__(self) -> None:
        if isinstance(self.value, bool) or not isinstance(self.value, int):
            raise ValueError(f"EventSeq must be an integer, not {type(self.value).__name__}")
        if self.value < 0:
            raise ValueError(f"EventSeq must not be negative, got {self.value}")

    def next(self) -> EventSeq:
        """The number after this one."""
        return EventSeq(self.value + 1)


def now() -> str:
    """The present moment, ISO 8601 with offset and microseconds."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def checked_time(field: str, value: str | datetime) -> str:
    """`value` as ISO 8601 with an offset. Raises ValueError naming `field` when it has none or is no time."""
    if isinstance(value, datetime):
        moment = value
    else:
        try:
            moment = datetime.fromisoformat(value)
        except (TypeError, ValueError):
            raise ValueError(f"{field} must be an ISO 8601 time, got {value!r}") from None
    if moment.tzinfo is None:
        raise ValueError(f"{field} must carry an offset, got {value!r}")
    # Python reads more spellings than others do; what is stored is the common one.
    return value if isinstance(value, str) and _RFC3339.fullmatch(value) else moment.isoformat(timespec="microseconds")


def checked_text(field: str, value: object) -> str | None:
    """`value`, a text or None. Raises ValueError naming `field` for anything else."""
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{field} must be a string or None, not {type(value).__name__}")
    return value


def checked_count(field: str, value: object, least: int = 0) -> None:
    """Raises ValueError naming `field` unless `value` is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{field} must be a whole number of at least {least}, got {value!r}")


def names_of(field: str, value: object) -> tuple[str, ...]:
    """Several names as given: one text is one name. Raises ValueError naming `field` for what is not texts."""
    if isinstance(value, str):
        return (value,)
    try:
        names: tuple[object, ...] = tuple(value)  # type: ignore[arg-type]
    except TypeError:
        raise ValueError(f"{field} must be a string or a list of strings, not {type(value).__name__}") from None
    texts = tuple(name for name in names if isinstance(name, str))
    if len(texts) < len(names):
        raise ValueError(f"{field} must be strings, each one")
    return texts


def checked_mapping(field: str, value: object) -> None:
    """Raises ValueError naming `field` unless `value` is a mapping of JSON values: see `checked_json`."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{field} must be a mapping, not {type(value).__name__}")
    checked_json(field, value)


def checked_json(field: str, value: object) -> None:
    """Raises ValueError naming `field` for numbers that JSON does not have, and for nesting without an end.

    An encoder would write null for NaN, which is a loss without a word.
    """
    try:
        _check_numbers(field, value)
    except RecursionError:
        raise ValueError(f"{field} is nested too deeply, or holds itself") from None


def _check_numbers(field: str, value: object) -> None:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{field} is {value}, which JSON does not have; use None or a text")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(item, str):
                _check_numbers(f"{field}.{key}", item)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            if not isinstance(item, str):
                _check_numbers(f"{field}[{index}]", item)


def copied(value: Any) -> Any:
    """A deep copy of JSON-like data; leaves are shared. Several times faster than `copy.deepcopy`."""
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [copied(item) for item in value]
    return value
