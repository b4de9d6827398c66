"""The facts of the whole store, in the order of their commits or thread by thread, in portions that are bounded in
number and in bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from psycopg import Connection
from psycopg.rows import TupleRow
from psycopg.types.numeric import Int8

from runs_es.domain import Recorded
from runs_es.log import codec
from runs_es.log.arrays import Texts
from runs_es.log.reader import FACT_COLUMNS as FACT_COLUMNS
from runs_es.log.reader import recorded

# A state's length is known without reading it, so what goes over `max_bytes` is not fetched; nor is a fact that nobody
# wants, but for the last, which says how far the portion goes. Topics that nobody knows are for the caller to stumble
# over.
_PORTION = f"""
select {FACT_COLUMNS}, position as at, number
  from (select f.*, row_number() over w as number, lead(position) over w is null as is_last,
               topic = any(%b::text[]) or topic <> all(%b::text[]) as is_wanted,
               sum(octet_length(state)) over w as bytes
          from (select * from events_facts where position > %b::bigint order by position limit %b::bigint) f
        window w as (order by position rows unbounded preceding)) f
 where bytes - octet_length(state) < %b::bigint and (is_wanted or is_last or bytes >= %b::bigint)
 order by position
"""
_THREADS = f"""
select {FACT_COLUMNS}
  from (select f.*, sum(octet_length(state)) over (order by thread_id, revision rows unbounded preceding)
                    - octet_length(state) as before
          from events_facts f
         where (thread_id, revision) > (%b::text, %b::bigint) and position <= %b::bigint
           and (topic = any(%b::text[]) or topic <> all(%b::text[]))
         order by thread_id, revision limit %b::bigint) f
 where before < %b::bigint
 order by thread_id, revision
"""
_COUNT = "select count(*) from events_facts where position <= %s and (topic = any(%s) or topic <> all(%s))"
LAST_REVISION = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A fact that this version cannot read, such as one of a topic that it does not know."""

    position: int
    topic: str
    error: Exception

    def concerns(self, topics: frozenset[str] | None) -> bool:
        """Whether it has to be read by who wants these topics: an unknown one may be anybody's."""
        return topics is None or self.topic in topics or self.topic not in codec.versions


@dataclass(slots=True)
class Portion:
    """Facts that follow each other, and behind them, if there is one, the fact that cannot be read.

    It goes up to position `last`, over `size` facts, those that nobody wants included.
    """

    last: int
    size: int = 0
    recordeds: list[Recorded] = field(default_factory=list)
    unreadable: Unreadable | None = None


Row: TypeAlias = tuple[Any, ...]


def thread_by_thread(
    connection: Connection[TupleRow],
    after: tuple[str, int],
    target: int,
    topics: frozenset[str] | None,
    limit: int,
    max_bytes: int,
) -> list[Row]:
    """Rows, for `recorded_or_not`, of the facts up to position `target` that come after this thread and revision."""
    known = list(codec.versions)
    wanted = known if topics is None else sorted(topics)
    parameters = (after[0], Int8(after[1]), Int8(target), Texts(wanted), Texts(known), Int8(limit), Int8(max_bytes))
    return connection.execute(_THREADS, parameters, binary=True).fetchall()


def place_of(row: Row) -> tuple[str, int]:
    """Thread and revision of a row, to go on after it."""
    return row[0], row[4]


def recorded_or_not(row: Row) -> Recorded | Unreadable:
    """The fact of a row, or why there is none."""
    try:
        return recorded(row)
    except Exception as error:  # noqa: BLE001  (for the caller to raise, or to pass over)
        return Unreadable(row[5], row[1], error)


def count(connection: Connection[TupleRow], target: int, topics: frozenset[str] | None) -> int:
    """How many facts `thread_by_thread` will read."""
    known = list(codec.versions)
    with connection.transaction():
        connection.execute("set local enable_seqscan = on")
        row = connection.execute(_COUNT, (target, known if topics is None else sorted(topics), known)).fetchone()
    assert row is not None
    return int(row[0])


def last_position(connection: Connection[TupleRow]) -> int:
    """The position of the newest fact; 0 when there is none."""
    row = connection.execute("select coalesce(max(position), 0) from events_facts").fetchone()
    assert row is not None
    return int(row[0])


def after(
    connection: Connection[TupleRow],
    position: int,
    limit: int,
    max_bytes: int,
    topics: frozenset[str] | None = None,
) -> Portion:
    """The facts after `position`: over at most `limit`, no more once they come to `max_bytes`, and of these `topics`
    (None: all).
    """
    return portion_of(position, rows_after(connection, position, limit, max_bytes, topics), topics)


def rows_after(
    connection: Connection[TupleRow], position: int, limit: int, max_bytes: int, topics: frozenset[str] | None
) -> list[Row]:
    """What `portion_of` makes the portion of."""
    known = list(codec.versions)
    wanted = known if topics is None else sorted(topics)
    bytes_ = Int8(max_bytes)
    parameters = (Texts(wanted), Texts(known), Int8(position), Int8(limit), bytes_, bytes_)
    return connection.execute(_PORTION, parameters, binary=True).fetchall()


def portion_of(position: int, rows: Sequence[Row], topics: frozenset[str] | None) -> Portion:
    """The portion of these rows, which follow `position` and were read for `topics`."""
    portion = Portion(position)
    for row in rows:
        try:
            portion.recordeds.append(recorded(row[:-2]))
        except Exception as error:  # noqa: BLE001  (kept, and raised by whoever has dealt with the facts before it)
            unreadable = Unreadable(row[-2], row[1], error)
            if unreadable.concerns(topics):
                portion.unreadable = unreadable
                break
        portion.last, portion.size = row[-2:]
    return portion


def union(topics: Iterable[frozenset[str] | None]) -> frozenset[str] | None:
    """All that one of them wants."""
    everything: frozenset[str] = frozenset()
    for each in topics:
        if each is None:
            return None
        everything |= each
    return everything
