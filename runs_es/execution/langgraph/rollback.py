"""Takes back what a run did to its thread's checkpoints, so that the state is the one before it.

A checkpoint says in its metadata which run wrote it. A run also adds writes to the checkpoint that it begins at, where
it resumes or updates: of those `FencedPostgresSaver` keeps a copy as they were, in `checkpoint_undo`.
"""

from __future__ import annotations

from psycopg import sql
from psycopg.errors import LockNotAvailable

from runs_es.database.migrate import checkpoint_schema
from runs_es.domain import StoreUnavailable
from runs_es.log.locks import thread_lock_key
from runs_es.log.reader import LogReader

# In one statement, so that it fits into a pipeline. Entries of other runs are of ended ones: nobody rolls those back.
_KEEP = """
with run as (select %s::text thread_id, %s::text run_id, %s::text checkpoint_ns, %s::text checkpoint_id),
old as (delete from {log}.checkpoint_undo u using run where u.thread_id = run.thread_id and u.run_id <> run.run_id)
insert into {log}.checkpoint_undo
select run.*, (select coalesce(jsonb_agg(to_jsonb(w)), '[]') from {saved}.checkpoint_writes w
                where w.thread_id = run.thread_id and w.checkpoint_ns = run.checkpoint_ns
                  and w.checkpoint_id = run.checkpoint_id)
  from run on conflict do nothing
"""
_OWN = "thread_id = %(thread)s and metadata ->> 'run_id' = %(run)s"
_STATEMENTS = (
    # Blobs that no checkpoint had before: a version is written with the first checkpoint that names it, and the
    # checkpoint that a run began at names all those that were there.
    f"""
    with own as (select * from {{saved}}.checkpoints where {_OWN}),
    made as (select distinct o.checkpoint_ns, v.key, v.value
               from own o, jsonb_each_text(o.checkpoint -> 'channel_versions') v),
    base as (select distinct b.checkpoint_ns, v.key, v.value
               from {{saved}}.checkpoints b, jsonb_each_text(b.checkpoint -> 'channel_versions') v
              where b.thread_id = %(thread)s and b.metadata ->> 'run_id' is distinct from %(run)s
                and (b.checkpoint_ns, b.checkpoint_id) in (select checkpoint_ns, parent_checkpoint_id from own)),
    gone as (select * from made except select * from base)
    delete from {{saved}}.checkpoint_blobs l using gone g
     where l.thread_id = %(thread)s and (l.checkpoint_ns, l.channel, l.version) = (g.checkpoint_ns, g.key, g.value)
    """,
    f"""
    delete from {{saved}}.checkpoint_writes w using {{saved}}.checkpoints c
     where w.thread_id = %(thread)s and c.{_OWN}
       and (w.checkpoint_ns, w.checkpoint_id) = (c.checkpoint_ns, c.checkpoint_id)
    """,
    f"delete from {{saved}}.checkpoints where {_OWN}",
    # A task's writes may be stored before the checkpoint that they belong to, which then was refused.
    """
    delete from {saved}.checkpoint_writes w
     where w.thread_id = %(thread)s
       and not exists (select from {saved}.checkpoints c where (c.thread_id, c.checkpoint_ns, c.checkpoint_id)
                                                             = (w.thread_id, w.checkpoint_ns, w.checkpoint_id))
    """,
    """
    delete from {saved}.checkpoint_writes w using {log}.checkpoint_undo u
     where (u.thread_id, u.run_id) = (%(thread)s, %(run)s)
       and (w.thread_id, w.checkpoint_ns, w.checkpoint_id) = (u.thread_id, u.checkpoint_ns, u.checkpoint_id)
    """,
    """
    insert into {saved}.checkpoint_writes
    select w.* from {log}.checkpoint_undo u, jsonb_populate_recordset(null::{saved}.checkpoint_writes, u.writes) w
     where (u.thread_id, u.run_id) = (%(thread)s, %(run)s)
    """,
    "delete from {log}.checkpoint_undo where (thread_id, run_id) = (%(thread)s, %(run)s)",
)


def keep_writes(schema: str) -> sql.Composed:
    """The statement that keeps a copy of a checkpoint's writes: thread, run, checkpoint's namespace and id."""
    return _named(_KEEP, schema)


def take_back(schema: str) -> list[sql.Composed]:
    """The statements that undo what a run did: parameters `thread` and `run`."""
    return [_named(each, schema) for each in _STATEMENTS]


class CheckpointRollback:
    """Safe in several processes at once. `schema` is the log's."""

    def __init__(self, reader: LogReader, schema: str) -> None:
        self._reader = reader
        self._schema = schema
        self._statements = take_back(schema)

    def restore(self, thread_id: str, run_id: str) -> None:
        """Make the thread's state what it was before the run; a second time it finds nothing to do.

        To be called once the fence is above that of the run's attempts. Raises StoreUnavailable when a checkpoint is
        being written too long.
        """
        with self._reader.connection() as connection, connection.transaction():
            try:
                connection.execute("select pg_advisory_xact_lock(%s)", (thread_lock_key(self._schema, thread_id),))
            except LockNotAvailable as error:
                raise StoreUnavailable(f"checkpoints of thread {thread_id} are being written too long") from error
            for statement in self._statements:
                connection.execute(statement, {"thread": thread_id, "run": run_id})


def _named(statement: str, schema: str) -> sql.Composed:
    names = {"log": sql.Identifier(schema), "saved": sql.Identifier(checkpoint_schema(schema))}
    return sql.SQL(statement).format(**names)
