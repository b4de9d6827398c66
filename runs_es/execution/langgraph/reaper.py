"""Deletes the checkpoints of threads that are gone: temporary ones after their run, and what a crash left of others.

It follows the log's `thread.deleted` facts by position, like a projection, with a tracking row of its own.
"""

from __future__ import annotations

from collections.abc import Callable

from psycopg import sql

from runs_es.log.locks import thread_lock_key
from runs_es.log.reader import LogReader

NAME = "checkpoints"
_TABLES = ("checkpoint_writes", "checkpoint_blobs", "checkpoints")
_BATCH = 200


def reaper(reader: LogReader, schema: str) -> Callable[[], int]:
    """A function that deletes what is due and answers how many threads that were. Safe in several processes."""
    deletes = [
        sql.SQL("delete from {} where thread_id = %s").format(sql.Identifier(f"{schema}_checkpoints", table))
        for table in _TABLES
    ]

    def reap() -> int:
        with reader.connection() as connection, connection.transaction():
            connection.execute("insert into tracking values (%s, 1, 0) on conflict do nothing", (NAME,))
            # The row is the turn: another process that reaps waits here, and then finds nothing left.
            held = connection.execute("select position from tracking where name = %s for update", (NAME,)).fetchone()
            assert held is not None
            newest = connection.execute("select coalesce(max(position), 0) from events_facts").fetchone()
            assert newest is not None
            gone = connection.execute(
                "select max(position), thread_id from events_facts where position > %s and position <= %s"
                " and topic in ('thread.deleted', 'thread.erased') group by thread_id order by 1 limit %s",
                (held[0], newest[0], _BATCH),
            ).fetchall()
            for _, thread_id in gone:
                connection.execute("select pg_advisory_xact_lock(%s)", (thread_lock_key(schema, thread_id),))
                # A thread made again under its old id keeps what it has by now.
                again = connection.execute(
                    "select from events_facts where thread_id = %s and topic = 'thread.created'"
                    " and seq > (select max(seq) from events_facts where thread_id = %s and topic = 'thread.deleted')",
                    (thread_id, thread_id),
                ).fetchone()
                if again is None:
                    for delete in deletes:
                        connection.execute(delete, (thread_id,))
            reached = gone[-1][0] if len(gone) == _BATCH else newest[0]
            connection.execute("update tracking set position = %s where name = %s", (max(reached, held[0]), NAME))
            return len(gone)

    return reap
