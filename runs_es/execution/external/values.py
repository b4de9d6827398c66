"""What external workers say and are told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from runs_es.domain import LeaseLost, Run, RunStatus
from runs_es.process_log import MAX_TRACEBACK_BYTES, bounded


class Refused(LeaseLost):
    """A write or word that came too late, or too early. `reason` is one of

    - `cancelled`: the run is to be stopped, as `action` says; only `finish` and `release` are left to do;
    - `lost`: the claim does not hold any more: the run was taken over, put back or deleted;
    - `ended`: the run has ended, with `status`;
    - `frames`: the thread has another number of `frames` than stated: an answer was missed, or a request.
    """

    def __init__(self, text: str, reason: str, **details: Any) -> None:
        super().__init__(text)
        self.reason = reason
        self.details = details


@dataclass(frozen=True, slots=True)
class Stated:
    """What the worker knows: its claim, the fence it was given or told last, the frames the thread has."""

    run_id: str
    claim_id: str
    fence: int
    frames: int = 0


@dataclass(frozen=True, slots=True)
class Content:
    """What a request brings, written in this order: messages, facts (type, category, content, metadata, key), frames
    (event, data as one line of JSON).
    """

    messages: Sequence[Mapping[str, Any]] = ()
    facts: Sequence[tuple[str, str, Any, Mapping[str, Any], str]] = ()
    frames: Sequence[tuple[str, bytes]] = ()

    def __bool__(self) -> bool:
        return bool(self.messages or self.facts or self.frames)


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run came out: `success`, with `interrupts` a pause for a human, `error` or `timeout`."""

    status: RunStatus
    interrupts: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    error_type: str = "Error"
    traceback: str = ""

    def mark(self, run: Run, *, show_errors: bool = True, max_traceback_bytes: int = MAX_TRACEBACK_BYTES) -> None:
        """End the run so. Without `show_errors` clients do not see the text; of the traceback the fact keeps at most
        `max_traceback_bytes`.
        """
        if self.status is RunStatus.SUCCESS:
            run.mark_completed(interrupts=self.interrupts)
            return
        mark = run.mark_timed_out if self.status is RunStatus.TIMEOUT else run.mark_failed
        kept = bounded(self.traceback, max_traceback_bytes)
        mark(self.error, error_type=self.error_type, traceback=kept, error_hidden=not show_errors)


@dataclass(frozen=True, slots=True)
class Claimed:
    """A run that is the worker's now. `cancel_requested` is set only where a claim is told again."""

    run: Run
    claim_id: str
    fence: int
    frames: int
    lease_until: datetime
    cancel_requested: str | None = None


@dataclass(frozen=True, slots=True)
class Written:
    """What is known after a request. `seq` is the last one it wrote; `lease_until` is None where the lease is lost, as
    the next write may find.
    """

    fence: int
    frames: int
    seq: int
    lease_until: datetime | None
