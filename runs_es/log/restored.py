"""What an operator says of a log at another place: it was restored, or nothing was lost.

After a restore every thread gets one fact that covers 2^32 numbers or a multiple of that, so that no number of the lost
history is given out again: a cursor from there is inside that row and is told so, for as long as the log exists.
Positions go on as much later. The multiple is drawn at random. One backup may be restored twice, and nothing in it
tells the second time of the first: the two then go on at different numbers, except by a chance of 1 in SPREAD.

A thread that is not raised is told by its head alone, which is below its epoch's numbers; so a kill at any
point leaves nothing but threads to raise, and the next call goes on.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from psycopg import Connection

from runs_es.domain import StoreUnavailable, ThreadRestored, now
from runs_es.log import codec, session
from runs_es.log.history import State, StateQuery
from runs_es.log.numbers import MAX_EPOCH, RESTORED, WIDE

logger = logging.getLogger(__name__)

OnProgress = Callable[[int], None]

SPREAD = 1024  # a restore takes the numbers up by 1 to so many times 2^32: room for some 4,000 restores
_BATCH = 500  # threads a transaction

_BEGIN = """
update history set epoch = %s, is_raised = false, token = %s, doubt = coalesce(doubt, 'runs-es restored was called')
"""
_PLACE = "system_identifier = %s, timeline = %s, database_oid = %s, heads_oid = %s"
_END = f"update history set is_raised = true, doubt = null, token = %s, {_PLACE}"
# The fence rises by as much as the numbers: no claim of the lost history states one that will ever be given again.
_RAISE = """
with won as materialized (
  select thread_id from heads
   where thread_id > %(after)s and head <= %(base)s and head / 4294967296 = %(epoch)s
   order by thread_id limit %(limit)s for no key update),
upd as (
  update heads s
     set head = s.head + %(numbers)s, revision = s.revision + 1, fence = s.fence + %(numbers)s,
         at = greatest(clock_timestamp(), s.at),
         chain = sha256(s.chain || int8send(s.head + %(numbers)s) || %(digest)s)
    from won where s.thread_id = won.thread_id
  returning s.thread_id, s.head, s.revision, s.at, s.chain),
ins as (
  insert into events (thread_id, seq, segment, n, topic, state, revision, position, page_segment, actor, reason,
                      link, recorded_at)
  select thread_id, head, 0, %(n)s, %(topic)s, %(state)s, revision, nextval('event_position'),
         (select max(segment) from segments), %(actor)s, %(reason)s, chain, at
    from upd order by thread_id)
select max(thread_id), count(*) from upd
"""


class RestoreBusy(RuntimeError):
    """Another process raises the threads of this store at this moment."""


def connect(url: str, schema: str) -> Connection[Any]:
    """A session for the functions below."""
    return session.connect(url, schema, "restored", enable_seqscan="off", jit="off", lock_timeout="30s")


def state_of(connection: Connection[Any]) -> State:
    """What the store says of its history."""
    return StateQuery().read(connection)


def threads_left(connection: Connection[Any], state: State) -> int:
    """How many threads `restore_numbers` has to raise: all of them, or those that a call before has left."""
    base = (state.epoch if not state.is_raised else MAX_EPOCH) * WIDE
    row = connection.execute("select count(*) from heads where head <= %s", (base,)).fetchone()
    assert row is not None
    return int(row[0])


def restore_numbers(
    connection: Connection[Any],
    *,
    lost_restores: int = 0,
    actor: str = "runs-es restored",
    reason: str = "the store was restored",
    only_if_in_doubt: bool = False,
    on_progress: OnProgress | None = None,
) -> int:
    """Take every thread's numbers past those of the lost history; returns how many threads this call has raised.

    `lost_restores` is how often the lost history had itself been restored since the backup: all numbers that it can
    have come to are passed over. May be killed at any point, and called again. `on_progress` is told how many threads
    are done.

    Raises RestoreBusy, and StoreUnavailable when no numbers are left.
    """
    with _alone(connection):
        before = state_of(connection)
        if before.is_raised:
            if only_if_in_doubt and before.doubt is None:
                return 0  # another process has done it
            _begin(connection, before, 1 + lost_restores * SPREAD)
            _cut_writers(connection)
        state = state_of(connection)
        done = 0
        while raised := _raise(connection, state, actor, reason, done, on_progress):
            done += raised
        return done


def restore_in_doubt(url: str, schema: str) -> None:
    """As `restore_numbers`, if it is in doubt which history this is; what fails is logged, and tried again later."""
    try:
        with connect(url, schema) as connection:
            restore_numbers(connection, reason="RUNS_ES_ON_NEW_HISTORY says so", only_if_in_doubt=True)
    except RestoreBusy as busy:
        logger.info("%s", busy)
    except Exception:
        logger.exception("the threads could not be raised; tries again")


def say_not_lost(connection: Connection[Any]) -> None:
    """Take the place where the log lies for the one of its history. Raises RestoreBusy, StoreUnavailable."""
    with _alone(connection):
        state = state_of(connection)
        if not state.is_raised:
            raise StoreUnavailable("`runs-es restored` was begun: run it again to its end")
        connection.execute(
            f"update history set doubt = null, token = %s, {_PLACE}", (uuid.uuid4(), *state.place.parts())
        )


@contextmanager
def _alone(connection: Connection[Any]) -> Iterator[None]:
    lock = "hashtextextended('runs-es restored ' || current_schema(), 0)"
    if connection.execute(f"select pg_try_advisory_lock({lock})").fetchone() != (True,):
        raise RestoreBusy("another process is at it; this one waits for its end")
    try:
        yield
    finally:
        if not connection.closed and not connection.broken:
            connection.execute(f"select pg_advisory_unlock({lock})")


def _begin(connection: Connection[Any], before: State, epochs: int) -> None:
    """Refuse all writers, and let positions and the threads that are made from now on begin above the lost ones."""
    epoch = before.epoch + epochs
    if epoch > MAX_EPOCH:
        raise StoreUnavailable(f"no numbers are left: epoch {epoch} is over the last one, {MAX_EPOCH}")
    drawn = secrets.randbelow(min(SPREAD, MAX_EPOCH - epoch + 1))
    epoch, epochs = epoch + drawn, epochs + drawn
    with connection.transaction():
        _wait_for_appends(connection)
        # Not undone with the transaction, and may be repeated: positions have room.
        connection.execute("select setval('event_position', last_value + %s) from event_position", (epochs * WIDE,))
        connection.execute(_BEGIN, (epoch, uuid.uuid4()))


def _cut_writers(connection: Connection[Any]) -> None:
    """End the sessions of processes that append: none of them may go on before it has looked at the history again.

    Those of roles that this one may not end are left: they look every second.
    """
    statement = (
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where datname = current_database() and application_name like 'runs-es writer%'"
        "   and pg_has_role(usesysid, 'member')"
    )
    connection.execute(statement)


def _wait_for_appends(connection: Connection[Any]) -> None:
    """Hold the lock that facts are appended under, until the transaction ends."""
    row = connection.execute("select current_schema()").fetchone()
    assert row is not None
    connection.execute("select pg_advisory_xact_lock(%s)", (session.append_lock_key(row[0]),))


def _raise(
    connection: Connection[Any], state: State, actor: str, reason: str, done: int, on_progress: OnProgress | None
) -> int:
    """Raise all threads that are there, batch by batch; 0 when there were none, and writers are let in again."""
    raised, after = 0, ""
    while True:
        with connection.transaction():
            _wait_for_appends(connection)
            last, count = _raise_batch(connection, state, after, actor, reason)
            if not count and not raised:
                # Under the lock, so no thread can have been made below the epoch's numbers since.
                connection.execute(_END, (uuid.uuid4(), *state.place.parts()))
                return 0
        if not count:
            return raised
        raised, after = raised + count, last
        if on_progress is not None:
            on_progress(done + raised)


def _raise_batch(connection: Connection[Any], state: State, after: str, actor: str, reason: str) -> tuple[str, int]:
    base = state.epoch * WIDE
    # As many epochs up as it lacks. All that lack as many go together; others, if there are any, by a later pass.
    row = connection.execute(
        "select head / %s from heads where thread_id > %s and head <= %s order by thread_id limit 1",
        (WIDE, after, base),
    ).fetchone()
    if row is None:
        return after, 0
    epochs = state.epoch - int(row[0])
    fact = ThreadRestored(thread_id="all", occurred_at=now(), epoch=state.epoch, numbers=epochs * WIDE)
    encoded = codec.encode(fact)
    found = connection.execute(
        _RAISE,
        {
            "after": after,
            "base": base,
            "limit": _BATCH,
            "epoch": row[0],
            "numbers": epochs * WIDE,
            "digest": hashlib.sha256(hashlib.sha256(encoded).digest()).digest(),
            "n": -epochs,
            "topic": RESTORED,
            "state": encoded,
            "actor": actor,
            "reason": reason,
        },
    ).fetchone()
    assert found is not None
    return found[0], found[1]
