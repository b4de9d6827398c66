"""Segments: the partitions that pages go to. Facts are segment 0 and stay; pages go to the newest, old ones drop.

Which segment a page goes to is a number in a table, not a date: no clock takes part.
"""

from __future__ import annotations

from typing import Any

from psycopg import Connection, sql


def current(connection: Connection[Any]) -> int:
    """The segment that new pages go to."""
    row = connection.execute("select max(segment) from segments").fetchone()
    assert row is not None
    return int(row[0])


def rotate(connection: Connection[Any]) -> int:
    """Make the next segment and let new pages go there; returns its number. `connection` must be autocommit.

    The table is attached, not created in place: creating a partition would wait for every open reader.
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
        connection.execute("insert into segments (segment) values (%s)", (number,))
    return number


def drop(connection: Connection[Any], number: int) -> None:
    """Drop a segment and all its pages. Raises ValueError for the facts and for the current one."""
    if not 1 <= number < current(connection):
        raise ValueError(f"segment {number} cannot be dropped: it is current, or no segment of pages")
    table = sql.Identifier(f"events_p{number}")
    connection.execute(sql.SQL("alter table events detach partition {} concurrently").format(table))
    connection.execute(sql.SQL("drop table {}").format(table))
    connection.execute("delete from segments where segment = %s", (number,))
