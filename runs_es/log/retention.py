"""How long pages are kept: by age and by size through whole segments, those of certain runs, a thread erased for good.

Segments go oldest first and never out of order, so what is left of a run is always its end, and the bounds in a `gap`
are exact. Facts stay, unless their whole thread is erased.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import psycopg
from psycopg import Connection, sql

from runs_es.database.reporting import report
from runs_es.domain import (
    TERMINAL_TOPICS,
    ConflictError,
    Fact,
    Provenance,
    RunCompleted,
    RunFailed,
    RunStatus,
    Thread,
    ThreadErased,
    ThreadNotFound,
    now,
)
from runs_es.log import codec, segments, session
from runs_es.log.append import PAGE_TOPIC
from runs_es.log.decisions import Decision, Decisions
from runs_es.log.event_log import EventLog
from runs_es.log.reader import Head
from runs_es.log.segments import Segment, State
from runs_es.settings import Settings

logger = logging.getLogger(__name__)

INTERVAL = 600.0
# What is kept spans at least so many segments: with fewer, one too large or too old could never go in time.
_MINIMUM_SEGMENTS = 4
_DAY = 86_400.0
# A drop waits so long for open readers of the log; it holds up nobody meanwhile, and the next round finishes it.
_DROP_WAIT = "30s"

_CONTENTS = """
with held as materialized (select thread_id, run_id, count(*) as pages from {table} group by thread_id, run_id)
select coalesce(sum(pages), 0)::bigint, count(*),
       count(*) filter (where not exists (
         select from events_facts f where f.thread_id = held.thread_id and f.run_id = held.run_id
            and f.topic = any(%(ends)s)))
  from held
"""

_ENDED = """
select f.position, f.thread_id, f.run_id, f.topic, f.state, f.seq,
       (select min(s.seq) from events_facts s where s.thread_id = f.thread_id and s.run_id = f.run_id)
  from events_facts f
 where f.position > %(after)s and f.topic = any(%(ends)s)
   and (%(thread)s::text is null or f.thread_id = %(thread)s)
   and f.recorded_at <= clock_timestamp() - %(days)s * interval '1 day'
 order by f.position limit %(limit)s
"""
_OF_RUNS = """
 unnest(%(threads)s::text[], %(runs)s::text[], %(first)s::bigint[], %(last)s::bigint[])
   r(thread_id, run_id, first, last)
 where e.thread_id = r.thread_id and e.segment > 0 and e.seq between r.first and r.last and e.run_id = r.run_id
"""
_RUNS_A_BATCH = 100


class Action(StrEnum):
    KEEP = "keep"
    ROTATE = "rotate"
    DROP = "drop"


class RetentionBusy(RuntimeError):
    """Another process applies retention to this store at this moment."""


@dataclass(frozen=True, slots=True)
class Step:
    """What happens to a segment, and why. `rows` and `runs` (that lose frames) are counted where it is dropped;
    elsewhere `rows` is an estimate and `runs` None.
    """

    segment: Segment
    action: Action
    why: str
    rows: int
    runs: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """A step for every segment, the oldest first. `runs` counts each run once that loses frames."""

    steps: Sequence[Step]
    runs: int

    @property
    def drops(self) -> list[Step]:
        return [step for step in self.steps if step.action is Action.DROP]

    @property
    def rotates(self) -> bool:
        return any(step.action is Action.ROTATE for step in self.steps)

    @property
    def bytes_back(self) -> int:
        """The disk space that comes back."""
        return sum(step.segment.size for step in self.drops)


def is_asked_for(settings: Settings) -> bool:
    """Whether pages are to go at all."""
    return settings.keep_streams_days is not None or settings.keep_streams_bytes is not None


def connect(url: str, schema: str) -> Connection[Any]:
    """A connection for `plan` and `apply`."""
    return session.connect(url, schema, "retention", lock_timeout=_DROP_WAIT, jit="off")


def plan(connection: Connection[Any], settings: Settings) -> Plan:
    """What `apply` would do now. Reads only."""
    held = segments.listing(connection)
    total = sum(segment.size for segment in held)
    steps: list[Step] = []
    blocked: str | None = None
    for segment in held[:-1]:
        step = _step(connection, segment, total, blocked, settings)
        if step.action is Action.DROP:
            total -= segment.size
        else:
            blocked = blocked or f"waits for segment {segment.number}"
        steps.append(step)
    steps.append(_step_of_current(connection, held[-1], settings))
    return Plan(steps, _runs_in(connection, [step for step in steps if step.action is Action.DROP]))


def apply(connection: Connection[Any], settings: Settings) -> Plan:
    """Drop what is no longer to be kept, begin a new segment where it is time; returns what was done.

    `connection` must be autocommit. May be killed at any point: the next call goes on from there. Raises RetentionBusy
    when another process is at it, and psycopg's LockNotAvailable when a long reader holds up a drop.
    """
    with _alone(connection):
        for segment in segments.listing(connection)[:-1]:
            if segment.state is State.ATTACHED and not segment.is_closed:
                segments.close(connection, segment.number)
        planned = plan(connection, settings)
        for step in planned.steps:
            if step.action is Action.DROP:
                segments.drop(connection, step.segment.number)
            elif step.action is Action.ROTATE:
                segments.rotate(connection)
    return planned


def _step(connection: Connection[Any], segment: Segment, total: int, blocked: str | None, settings: Settings) -> Step:
    """The step of a segment that is not the current one."""
    if segment.state is not State.ATTACHED:
        # No reader sees these pages any more, whatever the settings say by now.
        return Step(segment, Action.DROP, "its drop was begun before", *_contents(connection, segment)[:2])
    why = _expired(segment, total, settings)
    if why is None:
        return Step(segment, Action.KEEP, "within what is kept", segment.rows)
    if blocked is not None:
        return Step(segment, Action.KEEP, f"{why}; {blocked}", segment.rows)
    if not segment.is_closed:
        return Step(segment, Action.KEEP, f"{why}; to be closed first", segment.rows)
    # Closed, hence stable: a run that has ended by now cannot have another page here, and no run begins here.
    rows, runs, running = _contents(connection, segment)
    if running:
        held = "a run that is" if running == 1 else f"{running} runs that are"
        return Step(segment, Action.KEEP, f"{why}; holds pages of {held} still running", rows)
    return Step(segment, Action.DROP, why, rows, runs)


def _step_of_current(connection: Connection[Any], segment: Segment, settings: Settings) -> Step:
    seconds, size = _limits(settings)
    why = None
    if segment.size > size:
        why = f"larger than {size:,} bytes"
    elif segment.age > seconds:
        why = f"older than {seconds / 3600:g} hours"
    if why is None:
        return Step(segment, Action.KEEP, "current", segment.rows)
    table = sql.Identifier(f"events_p{segment.number}")
    if connection.execute(sql.SQL("select from {} limit 1").format(table)).fetchone() is None:
        return Step(segment, Action.KEEP, "current, empty", 0)
    return Step(segment, Action.ROTATE, why, segment.rows)


def _limits(settings: Settings) -> tuple[float, float]:
    """Age in seconds and size at which the current segment is followed by a new one."""
    seconds, size = settings.segment_hours * 3600, float(settings.segment_bytes)
    if settings.keep_streams_days is not None:
        seconds = min(seconds, settings.keep_streams_days * _DAY / _MINIMUM_SEGMENTS)
    if settings.keep_streams_bytes is not None:
        size = min(size, settings.keep_streams_bytes / _MINIMUM_SEGMENTS)
    return seconds, size


def _expired(segment: Segment, total: int, settings: Settings) -> str | None:
    """Why the segment is no longer to be kept; None when it is. `total` is the size of it and all newer ones."""
    days, size = settings.keep_streams_days, settings.keep_streams_bytes
    # Its newest page is as old as its closing: no page goes earlier than promised.
    if days is not None and segment.closed_for is not None and segment.closed_for > days * _DAY:
        return f"all of it older than {days:g} days"
    if size is not None and total > size:
        return f"over {size:,} bytes in all"
    return None


def _contents(connection: Connection[Any], segment: Segment) -> tuple[int, int, int]:
    """Rows, runs, and runs that have not ended, of a segment, whether or not it is still attached."""
    if segment.state is State.GONE:
        return 0, 0, 0
    statement = sql.SQL(_CONTENTS).format(table=sql.Identifier(f"events_p{segment.number}"))
    row = connection.execute(statement, {"ends": list(TERMINAL_TOPICS)}).fetchone()
    assert row is not None
    return row[0], row[1], row[2]


def _runs_in(connection: Connection[Any], drops: Sequence[Step]) -> int:
    """How many runs these segments hold pages of, each counted once."""
    tables = [step.segment.number for step in drops if step.segment.state is not State.GONE]
    if len(tables) <= 1:
        return sum(step.runs or 0 for step in drops)
    each = [
        sql.SQL("select thread_id, run_id from {}").format(sql.Identifier(f"events_p{number}")) for number in tables
    ]
    row = connection.execute(sql.SQL("select count(*) from ({}) held").format(sql.SQL(" union ").join(each))).fetchone()
    assert row is not None
    return int(row[0])


@contextmanager
def _alone(connection: Connection[Any]) -> Iterator[None]:
    """Hold the store's retention lock. Of the session, since a concurrent detach cannot be inside a transaction; a
    process that is killed lets go of it with its session.
    """
    key = {"key": "runs-es retention"}
    lock = "hashtextextended(%(key)s || ' ' || current_schema(), 0)"
    row = connection.execute(f"select pg_try_advisory_lock({lock})", key).fetchone()
    if row is None or not row[0]:
        raise RetentionBusy("another process is applying retention to this store; try again when it is done")
    try:
        yield
    finally:
        if not connection.closed and not connection.broken:
            connection.execute(f"select pg_advisory_unlock({lock})", key)


class RetentionTimer:
    """Applies retention now and every `interval` seconds, in a thread of its own, one process of a store at a time."""

    def __init__(self, log: EventLog, settings: Settings, *, interval: float = INTERVAL) -> None:
        self._log = log
        self._settings = settings
        self._interval = interval
        self._closing = threading.Event()
        self._connection: Connection[Any] | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, if a setting asks for it."""
        if is_asked_for(self._settings):
            self._thread = threading.Thread(target=self._run, name="runs-es retention", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Stop, also in the middle of a drop: whoever comes next finishes it."""
        self._closing.set()
        if self._thread is None:
            return
        while self._thread.is_alive():
            # Again and again: the thread may have been between two statements.
            connection = self._connection
            if connection is not None and not connection.closed:
                connection.cancel_safe(timeout=5)
            self._thread.join(0.5)

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                self._round()
            except psycopg.errors.LockNotAvailable:
                logger.info("retention is held up by a long reader of the log; goes on in %g s", self._interval)
            except Exception as error:  # noqa: BLE001  (reported)
                if not self._closing.is_set():
                    report(logger, error, "retention failed, tries again in %g s", self._interval)
            self._closing.wait(self._interval)

    def _round(self) -> None:
        with connect(self._log.url, self._log.schema) as connection:
            self._connection = connection
            try:
                done = apply(connection, self._settings)
            except RetentionBusy as error:
                logger.debug("%s", error)
                return
            finally:
                self._connection = None
        for step in done.steps:
            if step.action is Action.ROTATE:
                logger.info("segment %d of the log is closed: %s", step.segment.number, step.why)
            elif step.action is Action.DROP:
                size, runs = step.segment.size, step.runs
                logger.info(
                    "segment %d dropped: %s; %d pages of %s runs, %d bytes",
                    *(step.segment.number, step.why, step.rows, runs, size),
                )


# --- pages of certain runs ---


@dataclass(frozen=True, slots=True)
class Deleted:
    """Of how many runs pages were deleted, or would be, and how many."""

    runs: int
    rows: int


def delete_pages(
    connection: Connection[Any],
    *,
    thread_id: str | None = None,
    statuses: Collection[RunStatus] | None = None,
    older_than_days: float = 0.0,
    dry_run: bool = False,
) -> Deleted:
    """Delete all pages of runs that have ended: those of a thread, with these statuses, ended so long ago.

    In small transactions, each of whole runs, so that a run has all its pages or none. The space is for new pages; a
    dropped segment gives it back. `connection` must be autocommit. Raises RetentionBusy.
    """
    wanted = {"ends": list(TERMINAL_TOPICS), "thread": thread_id, "days": older_than_days, "limit": _RUNS_A_BATCH}
    runs = rows = after = 0
    with _alone(connection):
        while found := connection.execute(_ENDED, {**wanted, "after": after}, binary=True).fetchall():
            after = found[-1][0]
            chosen = [
                (thread, run, first, last)
                for _, thread, run, topic, state, last, first in found
                if statuses is None or _status(codec.decode(topic, state, thread)) in statuses
            ]
            counts = _deleted(connection, chosen, dry_run)
            runs, rows = runs + len(counts), rows + sum(counts)
    return Deleted(runs, rows)


def _deleted(connection: Connection[Any], chosen: Sequence[tuple[str, str, int, int]], dry_run: bool) -> list[int]:
    """How many pages each of these runs had, if any."""
    names = ("threads", "runs", "first", "last")
    values = {name: [run[index] for run in chosen] for index, name in enumerate(names)}
    if dry_run:
        statement = f"select count(*) from events e, {_OF_RUNS} group by r.run_id"
    else:
        statement = (
            f"with gone as (delete from events e using {_OF_RUNS} returning r.run_id)"
            " select count(*) from gone group by run_id"
        )
    with connection.transaction():
        if not dry_run:
            connection.execute("set local runs_es.maintenance = 'delete pages'")
        return [count for (count,) in connection.execute(statement, values)]


def _status(fact: Fact) -> RunStatus:
    """What a run is that ended with this fact."""
    if isinstance(fact, RunFailed):
        return fact.status
    return RunStatus.SUCCESS if isinstance(fact, RunCompleted) else RunStatus.INTERRUPTED


# --- erasing a thread ---


@dataclass(frozen=True, slots=True)
class Erased:
    """The seq and position of the fact that stays, and how many rows were deleted."""

    seq: int
    position: int
    rows: int


@dataclass(frozen=True, slots=True)
class Erasable:
    """What an erasure of a thread would delete. `active` are the runs that have not ended."""

    runs: int
    active: int
    facts: int
    pages: int

    @property
    def is_nothing(self) -> bool:
        return not (self.facts or self.pages)


def erasable(log: EventLog, thread_id: str, *, force: bool = False) -> Erasable:
    """Count what `erase_thread` would delete, and refuse what it refuses. Changes nothing."""
    head, facts = log.reader.lifecycle(thread_id)
    thread = Thread.fold(thread_id, (each.fact for each in facts))
    _check_erasable(thread, head.revision if head is not None else 0, force)
    with log.reader.connection() as connection:
        row = connection.execute(
            "select count(distinct run_id), count(*) filter (where topic <> %(page)s),"
            " count(*) filter (where topic = %(page)s)"
            " from events where thread_id = %(thread)s and topic <> %(erased)s",
            {"thread": thread_id, "page": PAGE_TOPIC, "erased": ThreadErased.topic},
        ).fetchone()
    assert row is not None
    return Erasable(runs=row[0], active=len(thread.active), facts=row[1], pages=row[2])


def _check_erasable(thread: Thread, revision: int, force: bool) -> None:
    if revision == 0:
        raise ThreadNotFound(thread.thread_id)
    if thread.active and not force:
        raise ConflictError(
            f"thread {thread.thread_id} has {len(thread.active)} active run(s): cancel them first, or end them by force"
        )


def erase_thread(log: EventLog, thread_id: str, *, provenance: Provenance, force: bool = False) -> Erased:
    """Delete all that is known of a thread but its head row and a `thread.erased` fact that says who and why.

    The fact comes first: it shuts out every writer, and projections apply it. Killed in between, call it again. Raises
    ThreadNotFound, and ConflictError while a run is active, unless `force` ends it.
    """

    def decide(thread: Thread, head: Head) -> Decision:
        _check_erasable(thread, head.revision, force)
        last = _last_erasure(log, thread_id)
        if last is not None and last[0] == head.revision:
            return Decision(())  # only the deletion is to be done
        erased = ThreadErased(thread_id=thread_id, occurred_at=now(), events=head.seq)
        return Decision([*_endings(thread), erased])

    Decisions(log).make(thread_id, decide, provenance=provenance)
    last = _last_erasure(log, thread_id)
    assert last is not None
    _, seq, position = last
    with session.connect(log.url, log.schema, "erasure") as connection, connection.transaction():
        connection.execute("set local runs_es.maintenance = 'erase'")
        # By seq, not all there is: the id may have been created again meanwhile. Earlier erasures stay on record.
        deleted = connection.execute(
            "delete from events where thread_id = %s and seq < %s and topic <> %s",
            (thread_id, seq, ThreadErased.topic),
        )
    return Erased(seq, position, deleted.rowcount)


def _last_erasure(log: EventLog, thread_id: str) -> tuple[int, int, int] | None:
    """Revision, seq and position of the thread's newest erasure."""
    found = log.reader.facts(thread_id, topics=[ThreadErased.topic])
    return (found[-1].revision, found[-1].seq, found[-1].position) if found else None


def _endings(thread: Thread) -> list[Fact]:
    """Ends of the runs in flight, so that whoever follows one is told."""
    facts: list[Fact] = []
    for active in thread.active.values():
        run = active.copy()
        run.request_cancel()
        run.mark_cancelled()
        facts += run.pull_events()
    return facts
