"""Segments: the partitions that pages go to. Facts are segment 0 and stay; pages go to the newest, old ones drop.

Which segment a page goes to is a number in a table, not a date: no clock takes part. A segment that is no longer the
newest is closed: the database refuses pages for it, and a process that still believed in it looks again. So what is
in a closed segment is no younger than its closing, and does not change until it is dropped.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from psycopg import Connection, sql
from psycopg.errors import LockNotAvailable

# Closing waits for the appends under way, and new ones wait behind it: it tries for a moment, often, so that an append
# never waits long, even where autovacuum has just begun on the segment.
_CLOSE_TRIES = 40
_CLOSE_WAIT = "150ms"
_CLOSE_PAUSE = 0.1

# The error is the one that a writer knows from a segment that is gone: it reads anew which one is current.
_CLOSED_FUNCTION = """
create or replace function refuse_page() returns trigger language plpgsql as $$
begin
  raise exception 'segment % is closed', new.segment
    using errcode = 'check_violation', hint = 'Pages go to the newest segment of the table segments.';
end $$
"""

_LIST = """
select s.segment, s.created_at, extract(epoch from clock_timestamp() - s.created_at)::float8,
       extract(epoch from clock_timestamp() - lead(s.created_at) over (order by s.segment))::float8,
       coalesce(pg_total_relation_size(c.oid), 0), coalesce(greatest(c.reltuples, t.n_live_tup, 0), 0)::bigint,
       case when c.oid is null then 'gone' when i.inhrelid is null then 'detached'
            when i.inhdetachpending then 'detaching' else 'attached' end,
       exists (select from pg_trigger g where g.tgrelid = c.oid and g.tgname = format('events_p%s_closed', s.segment))
  from segments s
  left join pg_class c on c.oid = to_regclass(format('events_p%s', s.segment))
  left join pg_inherits i on i.inhrelid = c.oid and i.inhparent = 'events'::regclass
  left join pg_stat_all_tables t on t.relid = c.oid
 order by s.segment
"""


class State(StrEnum):
    """How far a segment's drop has come; each but the first is what a killed drop leaves behind."""

    ATTACHED = "attached"
    DETACHING = "detaching"
    DETACHED = "detached"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment as it is. Ages are seconds by the database's clock; `closed_for` is None for the current one.

    `rows` is the planner's and the statistics' guess; `is_closed` says whether the database refuses pages for it.
    """

    number: int
    created_at: datetime
    age: float
    closed_for: float | None
    size: int
    rows: int
    state: State
    is_closed: bool


def listing(connection: Connection[Any]) -> list[Segment]:
    """All segments, the oldest first; the last is the current one."""
    rows = connection.execute(_LIST).fetchall()
    return [
        Segment(number, at, age, closed_for, size, held, State(state), is_closed)
        for number, at, age, closed_for, size, held, state, is_closed in rows
    ]


def current(connection: Connection[Any]) -> int:
    """The segment that new pages go to."""
    row = connection.execute("select max(segment) from segments").fetchone()
    assert row is not None
    return int(row[0])


def rotate(connection: Connection[Any]) -> int:
    """Make the next segment, let new pages go there, and close the one before; returns the new one's number.

    `connection` must be autocommit. The table is attached, not created in place: creating a partition would wait for
    every open reader.
    """
    with connection.transaction():
        connection.execute("lock table segments in exclusive mode")
        number = current(connection) + 1
        table = sql.Identifier(f"events_p{number}")
        check = sql.Identifier(f"events_p{number}_segment")
        kept = sql.Identifier(f"events_p{number}_kept")
        connection.execute(
            sql.SQL(
                "create table {table} (like events including all);"
                "alter table {table} set (toast_tuple_target = 8160);"
                "alter table {table} add constraint {check} check (segment = {number});"
                "alter table events attach partition {table} for values in ({number});"
                "create trigger {kept} before truncate on {table} for each statement execute function refuse_change();"
                "alter table {table} enable always trigger {kept};"
                "alter table {table} enable always trigger events_unchanged"
            ).format(table=table, check=check, kept=kept, number=sql.Literal(number))
        )
        connection.execute(_CLOSED_FUNCTION)
        connection.execute("insert into segments (segment) values (%s)", (number,))
    # After that commit, never before: a writer that is refused must find the next segment.
    close(connection, number - 1)
    return number


def close(connection: Connection[Any], number: int) -> bool:
    """Refuse pages for a segment that is not the current one from now on; False when it is too busy just now."""
    if not 1 <= number < current(connection):
        raise ValueError(f"segment {number} cannot be closed: it is current, or no segment of pages")
    statement = sql.SQL(
        "create or replace trigger {} before insert on {} for each row execute function refuse_page()"
    ).format(sql.Identifier(f"events_p{number}_closed"), sql.Identifier(f"events_p{number}"))
    for _ in range(_CLOSE_TRIES):
        try:
            with connection.transaction():
                connection.execute(sql.SQL("set local lock_timeout = {}").format(sql.Literal(_CLOSE_WAIT)))
                connection.execute(_CLOSED_FUNCTION)
                connection.execute(statement)
        except LockNotAvailable:
            time.sleep(_CLOSE_PAUSE)
        else:
            return True
    return False


def drop(connection: Connection[Any], number: int) -> None:
    """Drop a segment and all its pages, from wherever an earlier drop was killed.

    Raises ValueError for the facts and for the current one. `connection` must be autocommit.
    """
    if not 1 <= number < current(connection):
        raise ValueError(f"segment {number} cannot be dropped: it is current, or no segment of pages")
    state = next((segment.state for segment in listing(connection) if segment.number == number), State.GONE)
    table = sql.Identifier(f"events_p{number}")
    if state is State.ATTACHED:
        # Two transactions inside: between them nobody sees the pages any more, and who is killed leaves DETACHING.
        connection.execute(sql.SQL("alter table events detach partition {} concurrently").format(table))
    elif state is State.DETACHING:
        connection.execute(sql.SQL("alter table events detach partition {} finalize").format(table))
    # The row goes last: as long as it is there, the next run knows that there is something to finish.
    connection.execute(sql.SQL("drop table if exists {}").format(table))
    connection.execute("delete from segments where segment = %s", (number,))
