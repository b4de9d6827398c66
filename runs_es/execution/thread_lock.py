"""The exclusive side of a thread's advisory lock: held while a claim is appended.

A checkpoint is written under the shared side, after its writer has compared the thread's fence. So when the exclusive
side is granted, every checkpoint of an older claim is either written or will be refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from psycopg.errors import LockNotAvailable

from runs_es.domain import StoreUnavailable
from runs_es.log.locks import thread_lock_key
from runs_es.log.reader import LogReader


def exclusive(reader: LogReader, schema: str) -> Callable[[str], AbstractContextManager[None]]:
    """A guard for `Worker`. It waits for at most the reader's lock_timeout: a frozen writer of checkpoints is thrown
    out by the server before that.
    """

    @contextmanager
    def guard(thread_id: str) -> Iterator[None]:
        key = thread_lock_key(schema, thread_id)
        with reader.connection() as connection:
            try:
                connection.execute("select pg_advisory_lock(%s)", (key,))
            except LockNotAvailable as error:
                raise StoreUnavailable(f"checkpoints of thread {thread_id} are being written too long") from error
            try:
                yield
            finally:
                connection.execute("select pg_advisory_unlock(%s)", (key,))

    return guard
