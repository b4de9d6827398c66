"""Crons: runs by a schedule, each tick exactly one, however many processes look after it and whichever is killed.

A tick's run is created under an idempotency key made of cron and tick, on a thread that follows from them too, so who
else fires the same tick, or fires it again after a kill, meets the run that is there. Only then `cron.fired` moves the
cron to its next tick, stating the revision that was read: a tick is passed over only by a fact.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, Protocol

from runs_es.domain import (
    AssistantNotFound,
    ConflictError,
    CronCreated,
    CronDeleted,
    CronFact,
    CronFired,
    CronNotFound,
    CronSkipped,
    CronUpdated,
    LimitExceeded,
    Provenance,
    StoreUnavailable,
    ThreadNotFound,
    UnsupportedStrategyError,
    WriteConflict,
    checked_id,
    cron_thread,
    now,
)
from runs_es.domain.values import checked_mapping
from runs_es.log.append import ANONYMOUS
from runs_es.log.event_log import EventLog
from runs_es.service.commands import CreateRunCommand
from runs_es.service.schedule import Schedule
from runs_es.service.views import RunSnapshot
from runs_es.settings import Settings

logger = logging.getLogger(__name__)

_TRIES = 20
_THREADS = uuid.UUID("0b9b4a1c-5f0e-5c8e-9d1e-6d1f4a6a2c11")  # under which a tick's own thread gets its id


@dataclass(frozen=True, kw_only=True)
class CronSnapshot:
    """A cron as it stood at `revision` of its thread of the log. Times are ISO 8601 in UTC."""

    cron_id: str
    assistant_id: str
    schedule: str
    timezone: str | None
    end_time: str | None
    enabled: bool
    run_thread_id: str | None
    on_run_completed: str | None
    payload: dict[str, Any]
    metadata: dict[str, Any]
    user_id: str | None
    created_at: str
    updated_at: str
    next_run_date: str | None
    revision: int

    @property
    def tick(self) -> datetime | None:
        """When it is due."""
        return None if self.next_run_date is None else datetime.fromisoformat(self.next_run_date)


@dataclass(frozen=True, kw_only=True)
class NewCron:
    """What a cron is to be. `payload` and `metadata` are its runs'."""

    assistant_id: str
    schedule: str
    timezone: str | None = None
    end_time: datetime | None = None
    enabled: bool = True
    run_thread_id: str | None = None
    on_run_completed: Literal["delete", "keep"] | None = None
    payload: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    user_id: str | None = None


class CronReader(Protocol):
    """The read model of crons."""

    def current(self, cron_id: str) -> CronSnapshot | None:
        """The cron with all that was written before; None when there is none. Raises StoreUnavailable."""

    def owned(self, user_id: str | None) -> int:
        """How many crons a user has; None: all that there are."""

    def of_thread(self, thread_id: str) -> Sequence[str]:
        """Ids of crons whose runs are on this thread, as far as is known."""


# Makes of a cron the command that starts its run on a thread. Raises ValueError where it cannot be run as it is.
Launch = Callable[[CronSnapshot, str], CreateRunCommand]
Start = Callable[[CreateRunCommand], RunSnapshot]


class Crons:
    """Makes, changes and fires crons. Synchronous: on an event loop, call through a thread."""

    def __init__(
        self,
        log: EventLog,
        reader: CronReader,
        start: Start,
        settings: Settings,
        check_webhook: Callable[[object], None] = lambda _: None,
    ) -> None:
        self._log = log
        self._reader = reader
        self._start = start
        self._settings = settings
        self._check_webhook = check_webhook  # raises ValueError for one that its runs would be refused with

    # --- what is to run ---

    def create(self, new: NewCron, *, provenance: Provenance = ANONYMOUS) -> CronSnapshot:
        """Make a cron. Raises ValueError for a schedule that is none or too dense, and for one cron too many."""
        schedule = self._schedule(new.schedule, new.timezone)
        _check_end(new.end_time)
        self._check_payload(new.payload)
        checked_mapping("metadata", new.metadata)
        if new.run_thread_id is not None:
            checked_id("run_thread_id", new.run_thread_id)
        if self._reader.owned(new.user_id) >= self._settings.max_crons_per_user:
            raise ValueError(
                f"there are {self._settings.max_crons_per_user} crons already (RUNS_ES_MAX_CRONS_PER_USER); delete one"
            )
        cron_id = str(uuid.uuid4())
        fact = CronCreated(
            thread_id=cron_thread(cron_id),
            occurred_at=now(),
            cron_id=cron_id,
            assistant_id=new.assistant_id,
            schedule=new.schedule,
            timezone=new.timezone,
            end_time=None if new.end_time is None else _told(new.end_time),
            enabled=new.enabled,
            run_thread_id=new.run_thread_id,
            on_run_completed=new.on_run_completed,
            payload=new.payload,
            metadata=new.metadata,
            user_id=new.user_id,
            next_run_date=_next(schedule, datetime.now(UTC), new.end_time) if new.enabled else None,
        )
        self._append(fact, 0, provenance)
        return self._found(cron_id)

    def update(
        self,
        cron_id: str,
        change: Callable[[CronSnapshot], Mapping[str, Any]],
        *,
        provenance: Provenance = ANONYMOUS,
    ) -> CronSnapshot:
        """Give fields of a cron new values, those that `change` answers for the cron as it is; it may be asked again.

        A new schedule counts from now on. Raises CronNotFound, ValueError as `create`, WriteConflict.
        """
        for _ in range(_TRIES):
            cron = self._found(cron_id)
            changes = dict(change(cron))
            if not changes:
                return cron
            self._check_payload(changes.get("payload") or {})
            checked_mapping("metadata", changes.get("metadata") or {})
            fact = CronUpdated(
                thread_id=cron_thread(cron_id),
                occurred_at=now(),
                cron_id=cron_id,
                changes=changes,
                next_run_date=self._moved(cron, changes),
            )
            if self._append(fact, cron.revision, provenance):
                return self._found(cron_id)
        raise WriteConflict(f"cron {cron_id} is written to by too many at once; try again")

    def delete(self, cron_id: str, *, provenance: Provenance = ANONYMOUS) -> None:
        """Let it be due no more. Runs that it started stay. Raises CronNotFound, WriteConflict."""
        for _ in range(_TRIES):
            cron = self._found(cron_id)
            if self._append(_deleted(cron_id), cron.revision, provenance):
                return
        raise WriteConflict(f"cron {cron_id} is written to by too many at once; try again")

    def forget_thread(self, thread_id: str, *, provenance: Provenance = ANONYMOUS) -> None:
        """Delete the crons of a thread that is gone, lest they go on when its id is used again. What this misses goes
        when it is due and finds no thread.
        """
        because = replace(provenance, reason=f"its thread {thread_id} was deleted")
        for cron_id in self._reader.of_thread(thread_id):
            try:
                self.delete(cron_id, provenance=because)
            except (CronNotFound, WriteConflict, StoreUnavailable) as error:
                logger.info("cron %s is left to its next tick: %s", cron_id, error)

    def _found(self, cron_id: str) -> CronSnapshot:
        cron = self._reader.current(cron_id)
        if cron is None:
            raise CronNotFound(cron_id)
        return cron

    def _moved(self, cron: CronSnapshot, changes: Mapping[str, Any]) -> str | None:
        """When the changed cron is due: as before, where nothing was said about that."""
        told = {
            name: changes.get(name, getattr(cron, name)) for name in ("schedule", "timezone", "end_time", "enabled")
        }
        schedule = (
            self._schedule(told["schedule"], told["timezone"]) if {"schedule", "timezone"} & changes.keys() else None
        )
        end = None if told["end_time"] is None else datetime.fromisoformat(told["end_time"])
        if "end_time" in changes:
            _check_end(end)
        if not told["enabled"]:
            return None
        if schedule is None and cron.tick is not None:
            return cron.next_run_date if end is None or cron.tick <= end else None
        schedule = schedule or Schedule(told["schedule"], told["timezone"])
        return _next(schedule, datetime.now(UTC), end)

    def _check_payload(self, payload: Mapping[str, Any]) -> None:
        checked_mapping("payload", payload)
        if payload.get("webhook") is not None:
            self._check_webhook(payload["webhook"])

    def _schedule(self, text: str, timezone: str | None) -> Schedule:
        schedule = Schedule(text, timezone)
        moment = datetime.now(UTC)
        if schedule.after(moment) is None:
            raise ValueError(f"schedule: {text!r} never comes")
        gap = schedule.shortest_gap(moment)
        least = self._settings.cron_min_seconds
        if gap is not None and gap.total_seconds() < least:
            raise ValueError(
                f"schedule: {text!r} comes every {gap.total_seconds():g} s; {least:g} s must be between two"
                " (RUNS_ES_CRON_MIN_SECONDS; of six fields the first is seconds)"
            )
        return schedule

    # --- running it ---

    def fire(self, cron: CronSnapshot, moment: datetime, launch: Launch) -> bool:
        """Do what a cron that is due needs at a moment: start the run of its tick, or pass over ticks that were missed.

        False when there was nothing to do: somebody else was faster, or `cron` is out of date.
        """
        tick = cron.tick
        if tick is None or tick > moment:
            return False
        head = self._log.reader.head(cron_thread(cron.cron_id))
        if head is None or head.revision != cron.revision:
            return False  # deleted, changed or fired since it was read
        schedule = Schedule(cron.schedule, cron.timezone)
        end = None if cron.end_time is None else datetime.fromisoformat(cron.end_time)
        go_on_at = self._after_missed(schedule, tick, moment, moment if end is None else min(moment, end))
        if go_on_at != tick and not self._is_started(cron, tick):
            reason = f"missed: no server ran it by {_told(moment)}"
            return self._skip(cron, reason, None if end and go_on_at and go_on_at > end else go_on_at)
        following = _next(schedule, tick, end)
        try:
            run = self._run(cron, tick, launch)
        except ThreadNotFound:
            reason = f"its thread {cron.run_thread_id} is gone"
            return self._append(_deleted(cron.cron_id), cron.revision, _provenance(cron, reason))
        except (ConflictError, ValueError, LimitExceeded, AssistantNotFound, UnsupportedStrategyError) as refused:
            return self._skip(cron, f"refused: {refused}", following)
        fired = CronFired(
            thread_id=cron_thread(cron.cron_id),
            occurred_at=now(),
            cron_id=cron.cron_id,
            tick=_told(tick),
            run_id=run.run_id,
            run_thread_id=run.thread_id,
            next_run_date=following,
        )
        return self._append(fired, cron.revision, _provenance(cron, "due"))

    def _after_missed(self, schedule: Schedule, tick: datetime, moment: datetime, last: datetime) -> datetime | None:
        """The tick to go on with: the one that is due, unless it is so late that it counts as missed.

        Of those missed the latest may still be run: see `cron_missed`. `last` is the last moment that may be run for.
        """
        oldest = moment - timedelta(seconds=self._settings.cron_catch_up_seconds)
        if tick >= oldest:
            return tick
        first = schedule.after(oldest - timedelta(microseconds=1))
        if (first is not None and first <= last) or self._settings.cron_missed == "skip":
            return first
        latest = schedule.latest(last)
        return tick if latest is None or latest <= tick else latest

    def _run(self, cron: CronSnapshot, tick: datetime, launch: Launch) -> RunSnapshot:
        """The run of a tick, just created or found."""
        thread_id, key = _place_of(cron, tick)
        command = launch(cron, thread_id)
        command = CreateRunCommand(
            **{
                **vars(command),
                "thread_id": thread_id,
                "idempotency_key": key,
                "provenance": _provenance(cron, f"due at {_told(tick)}"),
            }
        )
        try:
            return self._start(command)
        except ConflictError:
            # Another process may have created it since we looked, and its run is what keeps the thread busy.
            if self._log.reader.by_idem_key(thread_id, key) is None:
                raise
            return self._start(command)

    def _is_started(self, cron: CronSnapshot, tick: datetime) -> bool:
        """Whether another process has created the tick's run, for which by now it would be too late."""
        return self._log.reader.by_idem_key(*_place_of(cron, tick)) is not None

    def _skip(self, cron: CronSnapshot, reason: str, following: datetime | str | None) -> bool:
        fact = CronSkipped(
            thread_id=cron_thread(cron.cron_id),
            occurred_at=now(),
            cron_id=cron.cron_id,
            tick=str(cron.next_run_date),
            reason=reason[:1000],
            next_run_date=_told(following) if isinstance(following, datetime) else following,
        )
        logger.warning("cron %s: the run of %s is left out, %s", cron.cron_id, fact.tick, fact.reason)
        return self._append(fact, cron.revision, _provenance(cron, None))

    def _append(self, fact: CronFact, expected: int, provenance: Provenance) -> bool:
        """False when the cron is not at that revision any more."""
        try:
            self._log.append(fact.thread_id, [fact], expected=expected, provenance=provenance).result()
        except WriteConflict:
            return False
        return True


def _deleted(cron_id: str) -> CronDeleted:
    return CronDeleted(thread_id=cron_thread(cron_id), occurred_at=now(), cron_id=cron_id)


def _next(schedule: Schedule, moment: datetime, end: datetime | None) -> str | None:
    tick = schedule.after(moment)
    return None if tick is None or (end is not None and tick > end) else _told(tick)


def _check_end(end: datetime | None) -> None:
    if end is not None and end <= datetime.now(UTC):
        raise ValueError(f"end_time: {_told(end)} has passed")


def _place_of(cron: CronSnapshot, tick: datetime) -> tuple[str, str]:
    """The thread of a tick's run, and the idempotency key that makes it one run."""
    key = f"cron:{cron.cron_id}:{_told(tick)}"
    return cron.run_thread_id or str(uuid.uuid5(_THREADS, key)), key


def _told(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat()


def _provenance(cron: CronSnapshot, reason: str | None) -> Provenance:
    return Provenance(actor=f"cron:{cron.cron_id}", reason=reason, causation_id=cron.cron_id)
