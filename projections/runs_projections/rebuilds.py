"""Where rebuilds stand: one row a projection and version, so that one that was killed goes on from where it was."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from psycopg import Connection
from psycopg.errors import InsufficientPrivilege, LockNotAvailable
from psycopg.rows import TupleRow

from runs_projections import tables
from runs_projections.projection import AnyProjection


@dataclass(frozen=True, slots=True)
class Rebuild:
    """`thread_id`: threads up to it are in the new table, with the facts up to `target`. Once filled, all facts up to
    `position` are. `facts` were read so far.
    """

    phase: str
    target: int
    thread_id: str
    position: int
    facts: int

    @property
    def is_filled(self) -> bool:
        return self.phase == "catching up"


def find(connection: Connection[TupleRow], projection: AnyProjection) -> Rebuild | None:
    """The rebuild of this version that is under way, or was when its process ended."""
    row = connection.execute(
        "select phase, target, thread_id, position, facts from rebuilds"
        " where name = %s and version = %s and phase <> 'done'",
        (projection.name, projection.version),
    ).fetchone()
    return Rebuild(*row) if row else None


def begin(connection: Connection[TupleRow], projection: AnyProjection, target: int) -> Rebuild:
    connection.execute(
        "insert into rebuilds (name, version, table_name, phase, target) values (%s, %s, %s, 'filling', %s)"
        " on conflict (name, version) do update set table_name = excluded.table_name, phase = 'filling',"
        "   target = excluded.target, thread_id = '', position = 0, facts = 0, begun_at = clock_timestamp(),"
        "   drop_at = null",
        (projection.name, projection.version, projection.table.name, target),
    )
    return Rebuild("filling", target, "", 0, 0)


def note_threads(connection: Connection[TupleRow], projection: AnyProjection, thread_id: str, facts: int) -> None:
    """Threads up to this one are in; part of the transaction that put them in."""
    _update(connection, projection, "thread_id = %s, facts = %s", thread_id, facts)


def note_filled(connection: Connection[TupleRow], projection: AnyProjection) -> None:
    _update(connection, projection, "phase = 'catching up', position = target")


def note_position(connection: Connection[TupleRow], projection: AnyProjection, position: int, facts: int) -> None:
    """Facts up to this position are in; part of the transaction that put them in."""
    _update(connection, projection, "position = %s, facts = %s", position, facts)


def note_done(connection: Connection[TupleRow], projection: AnyProjection, grace: float) -> None:
    """Swapped; what was replaced may go after `grace` seconds."""
    _update(connection, projection, "phase = 'done', drop_at = clock_timestamp() + make_interval(secs => %s)", grace)


def _update(connection: Connection[TupleRow], projection: AnyProjection, changes: str, *values: object) -> None:
    connection.execute(
        f"update rebuilds set {changes} where name = %s and version = %s",
        (*values, projection.name, projection.version),
    )


def drop_retired(connection: Connection[TupleRow], schema: str) -> None:
    """Drop the tables that were replaced and whose grace is over."""
    due = connection.execute(
        "select name, version, table_name from rebuilds where drop_at <= clock_timestamp()"
    ).fetchall()
    for name, version, table_name in due:
        # Whoever owns the tables, or comes when nobody reads this one, will do it.
        with suppress(InsufficientPrivilege, LockNotAvailable):
            tables.drop_retired(connection, schema, table_name)
            connection.execute("update rebuilds set drop_at = null where name = %s and version = %s", (name, version))
