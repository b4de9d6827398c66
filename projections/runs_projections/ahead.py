"""Reading ahead: while a full portion of facts is folded and written, the next one is read over a second connection.

What lies between two positions of the log never changes, so a portion that was read early is as good as one read late.
The other thread only reads: were it to make facts of the rows, the driver's would have to wait for the interpreter each
time that the database has answered it. `decode` makes them in the driver's thread.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TypeAlias

import psycopg
from psycopg import Connection
from psycopg.rows import TupleRow

from runs_projections import feed, tracking
from runs_projections.feed import Portion, Row

_Asked: TypeAlias = tuple[int, frozenset[str] | None]


class ReadAhead:
    """Of one driver. Holds a connection from the first `begin` until `close`."""

    def __init__(self, url: str, schema: str) -> None:
        self._url, self._schema = url, schema
        self._connection: Connection[TupleRow] | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._asked: _Asked | None = None
        self._rows: Future[list[Row]] | None = None
        self._portion: Portion | None = None

    def begin(self, position: int, limit: int, max_bytes: int, topics: frozenset[str] | None) -> None:
        """Read what comes after `position`, unless something is being read or is waited for."""
        if self._rows is not None and (self._asked == (position, topics) or not self._rows.done()):
            return
        # What was read before is not asked for any more: its projection went on elsewhere, or stands still.
        self._portion = None
        self._thread = self._thread or ThreadPoolExecutor(1, "runs-es projector reader")
        self._asked = position, topics
        self._rows = self._thread.submit(self._read, position, limit, max_bytes, topics)

    def decode(self) -> None:
        """Make facts of what was read, if it has been: for moments in which the driver waits for the database."""
        if self._asked is not None and self._portion is None and self._rows is not None and self._rows.done():
            with suppress(psycopg.Error):
                self._portion = feed.portion_of(self._asked[0], self._rows.result(), self._asked[1])

    def take(self, position: int, topics: frozenset[str] | None) -> Portion | None:
        """What was read ahead after `position`; None when that was not asked for, or failed."""
        if self._rows is None or self._asked != (position, topics):
            return None
        rows, portion = self._rows, self._portion
        self._rows = self._portion = None
        if portion is not None:
            return portion
        with suppress(psycopg.Error):
            return feed.portion_of(position, rows.result(), topics)
        self.close()
        return None

    def close(self) -> None:
        """Let go of the connection, and of what nobody took."""
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)
        if self._connection is not None:
            self._connection.close()
        self._thread = self._connection = self._rows = self._portion = None

    def _read(self, position: int, limit: int, max_bytes: int, topics: frozenset[str] | None) -> list[Row]:
        if self._connection is None:
            self._connection = tracking.connect(self._url, self._schema, "projector reader")
        return feed.rows_after(self._connection, position, limit, max_bytes, topics)
