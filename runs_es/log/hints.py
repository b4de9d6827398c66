"""Hints between processes: "thread T has something up to seq N", over LISTEN and NOTIFY, never inside an append.

A NOTIFY in the append's transaction would take a lock of the whole cluster until its commit. Here one thread collects
what was committed and notifies at once, then at most every few milliseconds; a hint carries no data, and losing one
costs no more than the next poll.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping

import orjson
import psycopg

from runs_es.database.reporting import report
from runs_es.log import session

logger = logging.getLogger(__name__)

MAX_PAYLOAD = 7900  # bytes; PostgreSQL refuses 8000 and more
_INTERVAL = 0.005  # seconds between two notifications of a process
_POLL = 1.0  # seconds of silence after which the heads are looked at anyway

OnHints = Callable[[Mapping[str, int]], None]


class Hints:
    """Sends this process's hints and receives the others'. `on_poll` heals lost ones; both run in the listener."""

    def __init__(self, url: str, schema: str, on_hints: OnHints, on_poll: Callable[[], None]) -> None:
        self._url = url
        self._schema = schema
        self._channel = f"{schema}_hints"
        self._on_hints = on_hints
        self._on_poll = on_poll
        self._process = uuid.uuid4().hex[:12]
        self._pending: dict[str, int] = {}
        self._condition = threading.Condition()
        self._closing = threading.Event()
        self._threads = [
            threading.Thread(target=self._listen, name="runs-es listener", daemon=True),
            threading.Thread(target=self._notify, name="runs-es notifier", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def send(self, hints: Mapping[str, int]) -> None:
        """Queue hints; a later seq of a thread replaces an earlier one."""
        with self._condition:
            self._pending.update(hints)
            self._condition.notify()

    def close(self) -> None:
        self._closing.set()
        with self._condition:
            self._condition.notify()
        for thread in self._threads:
            thread.join(5)

    def _notify(self) -> None:
        connection: psycopg.Connection[tuple[object, ...]] | None = None
        while not self._closing.is_set():
            with self._condition:
                while not self._pending and not self._closing.is_set():
                    self._condition.wait()
                hints, self._pending = self._pending, {}
            try:
                connection = connection or session.connect(self._url, self._schema, "notifier")
                for payload in payloads(self._process, hints):
                    connection.execute("select pg_notify(%s, %s)", (self._channel, payload))
            except psycopg.Error as error:
                # The others' poll finds what this hint would have told them.
                logger.info("a hint was lost: %s", error)
                connection = None
                self._closing.wait(_POLL)
            self._closing.wait(_INTERVAL)
        if connection is not None:
            connection.close()

    def _listen(self) -> None:
        while not self._closing.is_set():
            try:
                with session.connect(self._url, self._schema, "listener") as connection:
                    connection.execute(psycopg.sql.SQL("listen {}").format(psycopg.sql.Identifier(self._channel)))
                    self._on_poll()  # whatever was missed while nobody listened
                    self._receive(connection)
            except Exception as error:  # noqa: BLE001  (reported)
                report(logger, error, "the listener of hints failed")
                self._closing.wait(_POLL)

    def _receive(self, connection: psycopg.Connection[tuple[object, ...]]) -> None:
        polled = time.monotonic()
        while not self._closing.is_set():
            for notification in connection.notifies(timeout=0.25, stop_after=1):
                sender, hints = orjson.loads(notification.payload)
                if sender != self._process:
                    self._on_hints(hints)
            if time.monotonic() - polled >= _POLL:
                self._on_poll()
                polled = time.monotonic()


def payloads(sender: str, hints: Mapping[str, int]) -> Iterator[str]:
    """`hints` as JSON texts of at most MAX_PAYLOAD bytes each: `[sender, {thread: seq}]`."""
    part: dict[str, int] = {}
    size = 64
    for thread_id, seq in hints.items():
        cost = len(orjson.dumps(thread_id)) + 22
        if part and size + cost > MAX_PAYLOAD:
            yield orjson.dumps([sender, part]).decode()
            part, size = {}, 64
        part[thread_id] = seq
        size += cost
    if part:
        yield orjson.dumps([sender, part]).decode()
