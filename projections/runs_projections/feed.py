"""The facts of the whole store in the order of their commits, in portions that are bounded in number and in bytes."""

from __future__ import annotations

from dataclasses import dataclass, field

from psycopg import Connection
from psycopg.rows import TupleRow
from psycopg.types.numeric import Int8

from runs_es.domain import Recorded
from runs_es.log.reader import FACT_COLUMNS as FACT_COLUMNS
from runs_es.log.reader import recorded

# A state's length is known without reading it, so what goes over `max_bytes` is not fetched.
_PORTION = f"""
select {FACT_COLUMNS}, position as at
  from (select f.*, sum(octet_length(state)) over (order by position rows unbounded preceding) - octet_length(state)
               as before
          from events_facts f where position > %b::bigint order by position limit %b::bigint) f
 where before < %b::bigint
 order by position
"""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A fact that this version cannot read, such as one of a topic that it does not know."""

    position: int
    error: Exception


@dataclass(slots=True)
class Portion:
    """Facts that follow each other, and behind them, if there is one, the fact that cannot be read."""

    recordeds: list[Recorded] = field(default_factory=list)
    unreadable: Unreadable | None = None


def after(connection: Connection[TupleRow], position: int, limit: int, max_bytes: int) -> Portion:
    """The facts after `position`: at most `limit`, and no more once they come to `max_bytes`."""
    portion = Portion()
    rows = connection.execute(_PORTION, (Int8(position), Int8(limit), Int8(max_bytes)), binary=True).fetchall()
    for *fact_row, at in rows:
        try:
            portion.recordeds.append(recorded(fact_row))
        except Exception as error:  # noqa: BLE001  (kept, and raised by whoever has dealt with the facts before it)
            portion.unreadable = Unreadable(at, error)
            break
    return portion
