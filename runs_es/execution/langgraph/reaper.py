"""Deletes the checkpoints of threads that are gone: temporary ones after their run, and what a crash left of others.

It follows the log's `thread.deleted` facts by position, like a projection, with a tracking row of its own. And a thread
that is made again under its old id is cleaned before, so that it begins with nothing.
"""

from __future__ import annotations

from typing import Any

from psycopg import Connection, sql

from runs_es.log.locks import thread_lock_key
from runs_es.log.reader import LogReader

NAME = "checkpoints"
_TABLES = ("checkpoint_writes", "checkpoint_blobs", "checkpoints")
_BATCH = 200
_IS_GONE = (
    "select topic in ('thread.deleted', 'thread.erased') from events_facts where thread_id = %s"
    " and topic in ('thread.created', 'thread.deleted', 'thread.erased') order by seq desc limit 1"
)


class CheckpointReaper:
    """Safe in several processes at once. `schema` is the log's."""

    def __init__(self, reader: LogReader, schema: str) -> None:
        self._reader = reader
        self._schema = schema
        places = [sql.Identifier(f"{schema}_checkpoints", table) for table in _TABLES]
        self._deletes = [
            sql.SQL("delete from {} where thread_id = %s").format(place)
            for place in (*places, sql.Identifier(schema, "checkpoint_undo"))
        ]

    def forget(self, thread_id: str) -> None:
        """Delete the checkpoints of a thread that is gone; of one that lives, nothing."""
        with self._reader.connection() as connection, connection.transaction():
            self._delete(connection, thread_id)

    def reap(self) -> int:
        """Delete what is due; answers how many threads that were."""
        with self._reader.connection() as connection, connection.transaction():
            connection.execute("insert into tracking values (%s, 1, 0) on conflict do nothing", (NAME,))
            # The row is the turn: another process that reaps waits here, and then finds nothing left.
            held = connection.execute("select position from tracking where name = %s for update", (NAME,)).fetchone()
            newest = connection.execute("select coalesce(max(position), 0) from events_facts").fetchone()
            assert held is not None
            assert newest is not None
            gone = connection.execute(
                "select max(position), thread_id from events_facts where position > %s and position <= %s"
                " and topic in ('thread.deleted', 'thread.erased') group by thread_id order by 1 limit %s",
                (held[0], newest[0], _BATCH),
            ).fetchall()
            for _, thread_id in gone:
                self._delete(connection, thread_id)
            reached = gone[-1][0] if len(gone) == _BATCH else newest[0]
            connection.execute("update tracking set position = %s where name = %s", (max(reached, held[0]), NAME))
            return len(gone)

    def _delete(self, connection: Connection[Any], thread_id: str) -> None:
        # Exclusive against savers and claims: a thread made again in this moment cannot have saved anything yet.
        connection.execute("select pg_advisory_xact_lock(%s)", (thread_lock_key(self._schema, thread_id),))
        row = connection.execute(_IS_GONE, (thread_id,)).fetchone()
        if row is not None and row[0]:
            for delete in self._deletes:
                connection.execute(delete, (thread_id,))
