"""Stored events, facts and streamed frames alike, read from the log itself: always current, and never folded.

A row of the log is a fact or a page of frames; a list is cut by events, so a page that lies across a cursor is split.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from psycopg.rows import namedtuple_row

from runs_es.domain import (
    FACT_TYPES,
    EventCategory,
    EventRecorded,
    Fact,
    MessageRecorded,
    Provenance,
    Recorded,
    RunFact,
    RunFailed,
    RunRequeued,
)
from runs_es.domain.facts import MAX_EVENT_TYPE
from runs_es.log import codec
from runs_es.log.append import PAGE_TOPIC
from runs_es.log.pages import data_of, event_of
from runs_es.log.reader import FACT_COLUMNS as FACT_COLUMNS
from runs_es.log.reader import KeyPageGone, LogReader, Row, recorded
from runs_es.service.views import StoredRunEvent
from runs_projections.lookups import tombstone
from runs_projections.stored_text import utc

_COLUMNS = f"{FACT_COLUMNS}, run_id, n"
_CHUNK = 64  # rows at a time: a page may have a megabyte
# Said of the fact elsewhere in the envelope, or not for clients.
_NOT_CONTENT = ("v", "run_id", "claim_id", "traceback", "error_hidden")
# Types that are never a frame's. `error` is a category, and the name of a frame too.
_OF_FACTS = frozenset({kind.topic for kind in FACT_TYPES} | set(EventCategory) - {"stream", "error"})


@dataclass(frozen=True, slots=True)
class _Range:
    """Which rows: of a thread or a run in it, with anything after `after` and before `before` (exclusive)."""

    thread_id: str
    run_id: str | None
    after: int
    before: int | None
    pages: tuple[int, int | None] | None  # where a run's pages lie; None: do not read pages


class EventTypes:
    """Which events are asked for, by type or category; None means all of them."""

    def __init__(self, types: Sequence[str] | None) -> None:
        self._facts = None if types is None else frozenset(types)
        self._frames = None if types is None or EventCategory.STREAM in types else frozenset(types) - _OF_FACTS

    @property
    def none(self) -> bool:
        return self._facts is not None and not self._facts

    @property
    def no_frames(self) -> bool:
        return self._frames is not None and not self._frames

    def has_fact(self, event: StoredRunEvent) -> bool:
        return self._facts is None or event.event_type in self._facts or event.category in self._facts

    def has_frame(self, event_type: str) -> bool:
        return self._frames is None or event_type in self._frames


def list_events(
    reader: LogReader,
    thread_id: str,
    run_id: str | None,
    *,
    after_seq: int | None,
    before_seq: int | None,
    limit: int,
    types: Sequence[str] | None,
    upto: int = 2**63 - 1,
) -> list[StoredRunEvent]:
    """As `RunEventLog.list_events_by_run`. What was before the thread's last deletion is not shown.

    With `upto` deletions after that seq do not count: for who may read what a deleted thread had.
    """
    wanted = EventTypes(types)
    if limit <= 0 or wanted.none:
        return []
    pages = None if wanted.no_frames else _where_pages_lie(reader, thread_id, run_id)
    after = max(after_seq or 0, tombstone(reader, thread_id, upto))
    events = _events(reader, _Range(thread_id, run_id, after, before_seq, pages), wanted, after_seq is not None)
    found = [event for event, _ in zip(events, range(limit), strict=False)]
    return found if after_seq is not None else found[::-1]


def message_versions(reader: LogReader, thread_id: str, message_id: str, limit: int) -> list[StoredRunEvent]:
    """All versions of a message, ascending, of deleted runs too: the newest `limit`, since the thread's last deletion.

    Reads all messages of the thread, but for their contents inside the database.
    """
    parameters = {
        "thread": thread_id,
        "after": tombstone(reader, thread_id),
        "named": b'"message_id":' + orjson.dumps(message_id),
        "before": 2**63 - 1,
    }
    found: list[Recorded] = []
    while True:
        with reader.connection() as connection:
            rows = connection.execute(
                f"select {FACT_COLUMNS} from events_facts where thread_id = %(thread)s and seq > %(after)s"
                " and seq < %(before)s and topic = 'message.recorded' and position(%(named)s in state) > 0"
                f" order by seq desc limit {_CHUNK}",
                parameters,
                binary=True,
            ).fetchall()
        found += [each for each in map(recorded, rows) if _is_of(each.fact, message_id)]
        if len(rows) < _CHUNK or len(found) >= limit:
            return [fact_event(each.fact, each.seq, each.recorded_at, each.provenance) for each in found[:limit][::-1]]
        parameters["before"] = rows[-1][3]


def _is_of(fact: Fact, message_id: str) -> bool:
    return isinstance(fact, MessageRecorded) and fact.message_id == message_id


def _where_pages_lie(reader: LogReader, thread_id: str, run_id: str | None) -> tuple[int, int | None] | None:
    if run_id is None:
        return 0, None
    bounds = reader.bounds(thread_id, run_id)
    return None if bounds is None or bounds.started is None else (bounds.started, bounds.ended)


def _events(reader: LogReader, rows: _Range, wanted: EventTypes, ascending: bool) -> Iterator[StoredRunEvent]:
    """All wanted events of these rows, read chunk by chunk."""
    after, before = rows.after, rows.before
    while True:
        chunk = _read(reader, _Range(rows.thread_id, rows.run_id, after, before, rows.pages), ascending)
        for row in chunk:
            events = _page_events(reader, row, rows, wanted) if row.topic == PAGE_TOPIC else _fact_events(row, wanted)
            yield from events if ascending else reversed(list(events))
        if len(chunk) < _CHUNK:
            return
        if ascending:
            after = chunk[-1].seq
        else:
            before = chunk[-1].seq - chunk[-1].n + 1


def _read(reader: LogReader, rows: _Range, ascending: bool) -> list[Any]:
    """The next chunk of rows, from the end that the list begins at."""
    bounds = "thread_id = %(thread)s and seq > %(after)s"
    if rows.before is not None:
        # One row may begin before the cursor and end behind it.
        bounds += (
            " and seq <= coalesce((select e.seq from events e where e.thread_id = %(thread)s and e.seq >= %(before)s"
            " order by e.seq limit 1), 9223372036854775807) and seq - n + 1 < %(before)s"
        )
    order = f"order by seq {'asc' if ascending else 'desc'} limit {_CHUNK}"
    parameters = {"thread": rows.thread_id, "after": rows.after, "before": rows.before, "run": rows.run_id}
    if rows.run_id is None:
        table = "events" if rows.pages is not None else "events_facts"
        statement = f"select {_COLUMNS} from {table} where {bounds} {order}"
    else:
        statement = f"(select {_COLUMNS} from events_facts where {bounds} and run_id = %(run)s {order})"
        if rows.pages is not None:
            bounds += " and segment > 0 and seq > %(started)s and seq < %(ended)s and run_id = %(run)s"
            parameters |= {"started": rows.pages[0], "ended": rows.pages[1] or 2**63 - 1}
            statement = f"{statement} union all (select {_COLUMNS} from events where {bounds} {order}) {order}"
    with reader.connection() as connection:
        return connection.cursor(row_factory=namedtuple_row).execute(statement, parameters, binary=True).fetchall()


def _page_events(reader: LogReader, row: Any, rows: _Range, wanted: EventTypes) -> Iterator[StoredRunEvent]:
    try:
        bodies, first = reader.bodies(row.thread_id, row.state), row.seq - row.n + 1
    except KeyPageGone:
        return  # retention has just cut this page too
    at = row.recorded_at.isoformat()
    yield from _frame_events(row.thread_id, row.run_id, bodies, first, at, rows.after, rows.before, wanted)


def _frame_events(
    thread_id: str,
    run_id: str,
    bodies: Sequence[bytes],
    first: int,
    recorded_at: str,
    after: int,
    before: int | None,
    wanted: EventTypes,
) -> Iterator[StoredRunEvent]:
    created_at = utc(recorded_at)
    for seq, body in enumerate(bodies, first):
        if seq <= after or (before is not None and seq >= before):
            continue
        name = event_of(body)
        event_type = name.split("|", 1)[0][:MAX_EVENT_TYPE]
        if not wanted.has_frame(event_type):
            continue
        yield StoredRunEvent(
            thread_id=thread_id,
            run_id=run_id,
            seq=seq,
            event_type=event_type,
            category=EventCategory.STREAM.value,
            content=_parsed(data_of(body)),
            metadata={"event": name},
            created_at=created_at,
        )


def row_events(thread_id: str, row: Row, after: int, wanted: EventTypes) -> list[StoredRunEvent]:
    """The wanted events of a row with everything known of it, after seq `after`, as lists have them."""
    if not row.is_page:
        fact = codec.decode(row.topic, row.state, thread_id)
        event = fact_event(fact, row.last, row.recorded_at, row.provenance)
        return [event] if wanted.has_fact(event) else []
    if wanted.no_frames:
        return []
    return list(_frame_events(thread_id, row.run_id or "", row.bodies, row.first, row.recorded_at, after, None, wanted))


def _parsed(data: bytes) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return data.decode(errors="replace")


def _fact_events(row: Any, wanted: EventTypes) -> Iterator[StoredRunEvent]:
    *fact_row, _, _ = row
    stored = recorded(fact_row)
    event = fact_event(stored.fact, stored.seq, stored.recorded_at, stored.provenance)
    if wanted.has_fact(event):
        yield event


def fact_event(fact: Fact, seq: int, recorded_at: str, provenance: Provenance) -> StoredRunEvent:
    """A fact as a stored event. A recorded message or event is shown as what was recorded, others as their fields."""
    event_type: str = fact.topic
    metadata: dict[str, Any] = {}
    if isinstance(fact, MessageRecorded | EventRecorded):
        event_type, content, metadata = fact.event_type, fact.content, dict(fact.metadata)
    else:
        fields = orjson.loads(codec.encode(fact))
        content = {name: value for name, value in fields.items() if name not in _NOT_CONTENT}
        if isinstance(fact, RunFailed | RunRequeued):
            content["error"] = fact.shown_error
    who = {name: value for name in _PROVENANCE if (value := getattr(provenance, name)) is not None}
    return StoredRunEvent(
        thread_id=fact.thread_id,
        run_id=fact.run_id if isinstance(fact, RunFact) else "",
        seq=seq,
        event_type=event_type,
        category=fact.category.value,
        content=content,
        metadata={**metadata, **who},
        created_at=utc(recorded_at),
    )


_PROVENANCE = ("actor", "reason", "correlation_id", "causation_id")
