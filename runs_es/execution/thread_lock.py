"""The exclusive side of a thread's advisory lock.

A checkpoint is written under the shared side, after its writer has compared the thread's fence. Whoever has raised the
fence and is then granted the exclusive side knows that every older checkpoint is either written or will be refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from psycopg.errors import LockNotAvailable

from runs_es.domain import StoreUnavailable
from runs_es.log.frozen import cut_frozen_holders
from runs_es.log.locks import thread_lock_key
from runs_es.log.reader import LogReader

_TRIES = 5


def barrier(reader: LogReader, schema: str, wait_seconds: float) -> Callable[[str], None]:
    """For a worker, after its claim and before it executes anything: returns once older claims write no checkpoint.

    The lock is let go of in the same statement, so that nobody who freezes holds it. Who froze while writing a
    checkpoint is cut off. Raises StoreUnavailable when others write for too long.
    """
    timeout = f"{max(int(wait_seconds * 1000), 1)}ms"

    def wait(thread_id: str) -> None:
        key = thread_lock_key(schema, thread_id)
        for _ in range(_TRIES):
            with reader.connection() as connection:
                try:
                    connection.execute(
                        "select set_config('lock_timeout', %s, true), pg_advisory_xact_lock(%s)", (timeout, key)
                    )
                except LockNotAvailable:
                    cut_frozen_holders(connection, key)
                else:
                    return
        raise _too_long(thread_id)

    return wait


def exclusive(reader: LogReader, schema: str) -> Callable[[str], AbstractContextManager[None]]:
    """Holds the lock while entered. Waits for at most the reader's lock_timeout, and raises StoreUnavailable then.

    In a transaction, so that a process that freezes holds it for no longer than its idle timeout.
    """

    @contextmanager
    def hold(thread_id: str) -> Iterator[None]:
        with reader.connection() as connection, connection.transaction():
            try:
                connection.execute("set local idle_in_transaction_session_timeout = '10s'")
                connection.execute("select pg_advisory_xact_lock(%s)", (thread_lock_key(schema, thread_id),))
            except LockNotAvailable as error:
                raise _too_long(thread_id) from error
            yield

    return hold


def _too_long(thread_id: str) -> StoreUnavailable:
    return StoreUnavailable(f"checkpoints of thread {thread_id} are being written too long")
