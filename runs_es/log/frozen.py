"""Sessions of frozen processes: whose client was stopped, or its machine went away, in the middle of a write.

No transaction of ours waits for its client while others wait for its locks. One that does is cut off: what it had
written is undone, and should its process wake up, it tries again and is refused, or comes in late.
"""

from __future__ import annotations

import logging
from typing import LiteralString

from psycopg import Connection
from psycopg.rows import TupleRow

logger = logging.getLogger(__name__)

WRITER = "runs-es writer"
# An append is one statement, so its transaction waits for nothing; a checkpoint is several, and a deletion many.
_WRITER_SECONDS, _HOLDER_SECONDS = 0.5, 4.0
_CUT: LiteralString = """
with frozen as materialized (
  select pid, application_name, extract(epoch from clock_timestamp() - xact_start)::float8 seconds
    from pg_stat_activity
   where datname = current_database() and wait_event = 'ClientRead' and pid <> pg_backend_pid()
     and xact_start < clock_timestamp() - make_interval(secs => %s) and {which})
select application_name, seconds from frozen where pg_terminate_backend(pid)
"""
_WRITERS: LiteralString = "application_name = %s"
# How a 64-bit advisory key stands in pg_locks.
_HOLDERS: LiteralString = """pid in (select l.pid from pg_locks l
   where l.locktype = 'advisory' and l.granted and l.objsubid = 1
     and l.database = (select oid from pg_database where datname = current_database())
     and (l.classid::bigint << 32) | l.objid::bigint = %s)"""


def cut_frozen_writers(connection: Connection[TupleRow]) -> int:
    """Cut off appends that wait for their client; how many."""
    return _cut(connection, _CUT.format(which=_WRITERS), (_WRITER_SECONDS, WRITER))


def cut_frozen_holders(connection: Connection[TupleRow], key: int) -> int:
    """Cut off those who hold the advisory lock `key` and wait for their client; how many."""
    return _cut(connection, _CUT.format(which=_HOLDERS), (_HOLDER_SECONDS, key))


def _cut(connection: Connection[TupleRow], statement: LiteralString, parameters: tuple[float, object]) -> int:
    rows = connection.execute(statement, parameters).fetchall()
    for name, seconds in rows:
        logger.warning("cut off %s, frozen in the middle of a write for %.1f s", name or "a session", seconds)
    return len(rows)
