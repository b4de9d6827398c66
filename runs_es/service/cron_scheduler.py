"""Fires crons that are due. One thread a process; one of the processes leads, the others look after what it leaves.

Who leads holds an advisory lock as long as its session lives. That only saves work: a follower fires what has been due
for a while, so a leader that hangs delays ticks and loses none, and two who fire the same tick make one run (crons.py).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b
from typing import Any

import psycopg
from psycopg import Connection

from runs_es.database.reporting import report
from runs_es.log import session
from runs_es.service.crons import CronSnapshot

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.5  # new crons, and those whose date was changed by another process, are seen within that
FOLLOWER_SECONDS = 2.0
_SHORTEST_PAUSE = 0.02  # for the read model to hear of what was just fired
_FAILED_SECONDS = 30.0  # a cron that cannot be fired is left alone for so long
_CLOSE_SECONDS = 5.0  # what is under way with a database that does not answer is done again elsewhere
_AT_ONCE = 8
_BATCH = 200


@dataclass(frozen=True, slots=True)
class Due:
    """Crons whose tick has come by `moment`, and when the next of the others is due."""

    moment: datetime
    crons: list[CronSnapshot]
    next_at: datetime | None


# (session, seconds that a tick must be late, most crons, ids of crons to leave out)
FindDue = Callable[[Connection[Any], float, int, Collection[str]], Due]
Fire = Callable[[CronSnapshot, datetime], bool]


class CronScheduler:
    """Looks for due crons from `start` to `close`, in a thread of its own."""

    def __init__(self, url: str, schema: str, find: FindDue, fire: Fire) -> None:
        self._url, self._schema = url, schema
        self._find, self._fire = find, fire
        digest = blake2b(schema.encode(), digest_size=8, person=b"runs-es:crons")
        self._key = int.from_bytes(digest.digest(), "big", signed=True)
        self._connection: Connection[Any] | None = None
        self._leads = False
        self._failed: dict[str, float] = {}
        self._closing = threading.Event()
        self._pool = ThreadPoolExecutor(_AT_ONCE, "runs-es cron")
        self._thread = threading.Thread(target=self._run, name="runs-es crons", daemon=True)

    @property
    def leads(self) -> bool:
        """Whether this process fires ticks as they come."""
        return self._leads

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Finish what is being fired, if that is soon, and let another process lead."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_SECONDS)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _run(self) -> None:
        try:
            while not self._closing.is_set():
                try:
                    pause = self._round()
                except Exception as error:  # noqa: BLE001  (reported)
                    # Most likely the database went away; whatever it is, crons must not stop for it.
                    report(logger, error, "crons could not be looked after, trying again")
                    self._disconnect()
                    pause = LOOK_SECONDS
                self._closing.wait(pause)
        finally:
            self._disconnect()

    def _round(self) -> float:
        """Fire what is due; how long to wait before the next round."""
        connection = self._session()
        late = 0.0 if self._leads else FOLLOWER_SECONDS
        self._failed = {cron_id: until for cron_id, until in self._failed.items() if until > time.monotonic()}
        due = self._find(connection, late, _BATCH, self._failed)
        list(self._pool.map(lambda cron: self._guarded(cron, due.moment), due.crons))
        if due.crons:
            return _SHORTEST_PAUSE
        if not self._leads or due.next_at is None:
            return LOOK_SECONDS
        return min(max((due.next_at - due.moment).total_seconds(), _SHORTEST_PAUSE), LOOK_SECONDS)

    def _guarded(self, cron: CronSnapshot, moment: datetime) -> None:
        try:
            self._fire(cron, moment)
        except Exception as error:  # noqa: BLE001  (reported)
            report(logger, error, "cron %s could not be fired; it is tried again", cron.cron_id)
            self._failed[cron.cron_id] = time.monotonic() + _FAILED_SECONDS

    def _session(self) -> Connection[Any]:
        """The session that finds crons, and leads where nobody else does."""
        if self._connection is None:
            self._connection = session.connect(self._url, self._schema, "crons", statement_timeout="30s")
        if not self._leads:
            row = self._connection.execute("select pg_try_advisory_lock(%s)", (self._key,)).fetchone()
            self._leads = row == (True,)
        return self._connection

    def _disconnect(self) -> None:
        self._leads = False
        if self._connection is not None:
            try:
                self._connection.close()
            except psycopg.Error:
                logger.debug("the session of the crons was lost already", exc_info=True)
            self._connection = None
