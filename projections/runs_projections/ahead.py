"""Reading ahead: while a full portion of facts is folded and written, the next one is read over a second connection.

What lies between two positions of the log never changes, so a portion that was read early is as good as one read late.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TypeAlias

import psycopg
from psycopg import Connection
from psycopg.rows import TupleRow

from runs_projections import feed, tracking
from runs_projections.feed import Portion

_Asked: TypeAlias = tuple[int, frozenset[str] | None]


class ReadAhead:
    """Of one driver. Holds a connection from the first `begin` until `close`."""

    def __init__(self, url: str, schema: str) -> None:
        self._url, self._schema = url, schema
        self._connection: Connection[TupleRow] | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._asked: _Asked | None = None
        self._portion: Future[Portion] | None = None

    def begin(self, position: int, limit: int, max_bytes: int, topics: frozenset[str] | None) -> None:
        """Read what comes after `position`, unless something is being read."""
        if self._portion is not None:
            return
        self._thread = self._thread or ThreadPoolExecutor(1, "runs-es projector reader")
        self._asked = position, topics
        self._portion = self._thread.submit(self._read, position, limit, max_bytes, topics)

    def take(self, position: int, topics: frozenset[str] | None) -> Portion | None:
        """What was read ahead after `position`; None when that was not asked for, or failed."""
        if self._portion is None or self._asked != (position, topics):
            return None
        portion, self._portion = self._portion, None
        with suppress(psycopg.Error):
            return portion.result()
        self.close()
        return None

    def close(self) -> None:
        """Let go of the connection, and of what nobody took."""
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)
        if self._connection is not None:
            self._connection.close()
        self._thread = self._connection = self._portion = None

    def _read(self, position: int, limit: int, max_bytes: int, topics: frozenset[str] | None) -> Portion:
        if self._connection is None:
            self._connection = tracking.connect(self._url, self._schema, "projector reader")
        return feed.after(self._connection, position, limit, max_bytes, topics)
