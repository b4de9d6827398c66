"""Group commit: one thread, one connection, and whatever collects while a commit is under way is the next batch.

An idle log commits the first request at once, a busy one grows its batches. A batch holds one request a thread; a
request of a thread that has to wait keeps all later ones of that thread waiting behind it. Nothing is handed to
subscribers before its commit came back.

After a commit those it answered come back with their next write, while others are waiting already. Taking what waits
would split the producers into two halves that take turns, and every write would take two commits: so the next batch is
held for a moment, a part of what a commit takes, until as many wait as could.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import psycopg
from psycopg import Connection
from psycopg.errors import (
    CheckViolation,
    DataError,
    DeadlockDetected,
    LockNotAvailable,
    OperationalError,
    ProgramLimitExceeded,
    QueryCanceled,
    ReadOnlySqlTransaction,
    UniqueViolation,
)
from psycopg.rows import TupleRow

from runs_es.database.outage import is_lost
from runs_es.database.reporting import report
from runs_es.domain import StoreUnavailable, WriteConflict
from runs_es.log import append, session
from runs_es.log.append import Append, Appended
from runs_es.log.deltas import Deltas
from runs_es.log.frozen import cut_frozen_writers
from runs_es.log.history import HistoryGuard
from runs_es.log.landed import landed_before, size
from runs_es.log.pages import KEY_BYTES
from runs_es.log.parked import NO_ROOM, Parked

logger = logging.getLogger(__name__)

# The append joins its items to its requests by nested loops (hash joins are off, so that tables are met by index):
# both numbers are kept where their product does not matter.
MAX_BATCH_REQUESTS = 256
MAX_BATCH_ITEMS = 2048
MAX_BATCH_BYTES = 32 * 1024 * 1024
# Errors of a whole batch that may be one request's doing: it is tried again request by request.
_BATCH_ERRORS = (
    DeadlockDetected,
    LockNotAvailable,
    UniqueViolation,
    CheckViolation,
    QueryCanceled,
    ProgramLimitExceeded,
    DataError,
    UnicodeError,
)
_TRIES_ALONE = 5
_NO_ROOM_SECONDS = 30.0  # a request that was refused for want of room says so for that long, unless one fits
_LONGEST_PAUSE = 0.5  # seconds between two attempts to reach a database that is away
LOCK_SECONDS = 2.0  # that an append waits for locks of others, unless a setting says otherwise
# How long the next batch is held for those just answered: a part of the last commit's time, and never longer than this.
_HOLD_SHARE = 0.5
_HOLD_MOST_SECONDS = 0.002

OnCommit = Callable[[Sequence[tuple[Append, Appended]]], None]


class LogWriter:
    """Appends for this process. `submit` from any thread; `on_commit` is called in the writer's, in commit order."""

    def __init__(
        self,
        url: str,
        schema: str,
        on_commit: OnCommit,
        *,
        reconnect_seconds: float = 30.0,
        lock_seconds: float = LOCK_SECONDS,
        key_bytes: int = KEY_BYTES,
        history: HistoryGuard | None = None,
    ) -> None:
        self.history = history or HistoryGuard()
        self._generation = self.history.generation  # of the connection, and of what is in `_deltas`
        self._key_bytes = key_bytes
        self._url = url
        self._schema = schema
        self._on_commit = on_commit
        self._reconnect_seconds = reconnect_seconds
        self._lock_seconds = lock_seconds
        self._lock_key = session.append_lock_key(schema)
        self._condition = threading.Condition()
        self._queues: dict[str, deque[Append]] = {}
        self._ready: deque[str] = deque()
        self._parked = Parked()
        self._closing = False
        self._wanted = 1  # how many waiting threads wake the writer
        self._answered = 0  # by the last batch
        self._held_until = 0.0
        self._connection: Connection[TupleRow] | None = None
        self._segment = 0
        self._deltas = Deltas(key_bytes)
        self._unreplicated = False
        self._probes: deque[Future[None]] = deque()
        self._no_room: dict[bool, tuple[str, float]] = {}  # of pages, and of the rest: what was said, and when
        self._thread = threading.Thread(target=self._run, name="runs-es log writer", daemon=True)
        self._thread.start()

    @property
    def lock(self) -> threading.Condition:
        """Held while a request is added to or sealed; a writer that grows its open request takes it too."""
        return self._condition

    @property
    def waits_for_room(self) -> str | None:
        """What the database said when it had no room for what is to be appended; None when all is well."""
        if self._parked.reason is not None:
            return self._parked.reason
        recent = time.monotonic() - _NO_ROOM_SECONDS
        return next((said for said, at in list(self._no_room.values()) if at > recent), None)

    def submit(self, request: Append) -> Future[Appended]:
        """Queue a request. The future fails with WriteConflict when the log refused it."""
        with self._condition:
            return self.submit_locked(request)

    def submit_locked(self, request: Append) -> Future[Appended]:
        """As `submit`, by a caller that holds `lock`."""
        if self._closing:
            raise StoreUnavailable("the store is closing")
        if request.generation is None:
            request.generation = self.history.generation
        if not (self._parked and self._parked.joins(request)):
            self._queue(request)
        return request.future

    def _queue(self, request: Append) -> None:
        queue = self._queues.get(request.thread_id)
        if queue is None:
            self._queues[request.thread_id] = deque((request,))
            self._ready.append(request.thread_id)
            if len(self._ready) >= self._wanted:
                self._condition.notify()
        else:
            queue.append(request)

    def probe(self) -> Future[None]:
        """Ask whether appends are possible now: the writer tries one that appends nothing, in its turn.

        The future fails with what keeps appends from being written.
        """
        future: Future[None] = Future()
        with self._condition:
            if self._closing or not self._thread.is_alive():
                raise StoreUnavailable("the log writer has stopped")
            self._probes.append(future)
            self._condition.notify()
        return future

    def close(self, timeout: float = 30.0) -> None:
        """Append what is queued, then stop. Requests that cannot be appended in time fail with StoreUnavailable."""
        with self._condition:
            self._closing = True
            self._condition.notify()
        self._thread.join(timeout)
        self._refuse_all(StoreUnavailable("the store was closed before this could be written"))

    # --- the writer's thread ---

    def _run(self) -> None:
        while (batch := self._next_batch()) is not None:
            self._answer_probes()
            begun = time.perf_counter()
            pages = [request for request in batch if request.is_page]
            others = [request for request in batch if not request.is_page]
            for part in (others, pages):
                if part:
                    self._commit_or_refuse(part)
            self._answered, ended = len(batch), time.perf_counter()
            self._held_until = ended + min((ended - begun) * _HOLD_SHARE, _HOLD_MOST_SECONDS)
            if self._parked:
                self._try_parked()
        if self._connection is not None:
            self._connection.close()

    def _next_batch(self) -> list[Append] | None:
        """The first request of every waiting thread; blocks until there is one. Empty when parked ones are due, None
        when closing.
        """
        with self._condition:
            self._wait()
            if not self._ready:
                return [] if (self._parked or self._probes) and not self._closing else None
            batch: list[Append] = []
            items = octets = 0
            for _ in range(len(self._ready)):
                thread_id = self._ready.popleft()
                queue = self._queues[thread_id]
                request = queue.popleft()
                request.sealed = True
                # From here on it cannot be cancelled; one that was, is not sent, and all behind it are refused.
                if request.future.set_running_or_notify_cancel():
                    batch.append(request)
                    items += len(request.items)
                    octets += request.size
                elif request.writer is not None:
                    request.writer.refused = True
                    request.writer.settled(request, refused=True)
                if queue:
                    self._ready.append(thread_id)
                else:
                    del self._queues[thread_id]
                if len(batch) >= MAX_BATCH_REQUESTS or items >= MAX_BATCH_ITEMS or octets >= MAX_BATCH_BYTES:
                    break
            return batch

    def _wait(self) -> None:
        """Until a request waits; and a moment longer for those just answered. The caller holds the lock."""
        if self._answered > 1:
            self._wanted = min(len(self._ready) + self._answered, MAX_BATCH_REQUESTS)
            while len(self._ready) < self._wanted and not self._closing:
                if not self._condition.wait(self._held_until - time.perf_counter()):
                    break
            self._wanted = 1
        while not self._ready and not self._closing and not self._probes:
            if not self._condition.wait(self._parked.seconds_left):
                return  # those without room are due

    def _commit_or_refuse(self, batch: list[Append]) -> None:
        try:
            self._commit(batch)
        except StoreUnavailable as error:
            self._refuse(batch, error)
        except Exception as error:  # noqa: BLE001  (reported)
            report(logger, error, "appending failed")
            self._refuse(batch, StoreUnavailable(f"appending failed: {error}"))

    def _answer_probes(self) -> None:
        """Try an append of nothing, as facts and as pages: it needs every right that a real one needs."""
        while self._probes:
            probe = self._probes.popleft()
            if not probe.set_running_or_notify_cancel():
                continue
            try:
                connection = self._connect() if self._is_lost() else self._current_connection()
                connection.execute(append.APPEND_PAGES, append.page_parameters([], self._segment), binary=True)
                facts = append.fact_parameters([], self._segment, self._lock_key)
                connection.execute(append.APPEND_FACTS, facts, binary=True)
            except Exception as error:  # noqa: BLE001  (for who asks)
                probe.set_exception(error)
            else:
                probe.set_result(None)

    def _try_parked(self) -> None:
        """Those that are due once more; of each that is decided now, what had to wait behind it follows."""
        with self._condition:
            due = self._parked.due()
        for is_page in (False, True):
            if part := [request for request in due if request.is_page is is_page]:
                self._commit_or_refuse(part)
        with self._condition:
            for request in due:
                if request.future.done() and request.writer is not None:
                    for behind in self._parked.release(request.writer)[1:]:
                        self._queue(behind)

    def _commit(self, batch: list[Append]) -> None:
        try:
            answer = self._execute_in_current(batch)
        except _BATCH_ERRORS as error:
            logger.info("a batch of %d was refused whole (%s): trying one by one", len(batch), error)
            self._clear_the_way(error)
            for request in batch:
                self._commit_alone_or_refuse(request)
        except NO_ROOM as error:
            self._hold_or_refuse(batch, error)
        except OperationalError as error:
            if not self._is_lost(error):
                raise
            # Whether the batch landed is not known. Trying again is safe: what each request states makes a second
            # landing impossible, and a refusal is then looked into.
            logger.info("the log's connection failed: %s", error)
            self._reconnect()
            for request in batch:
                self._commit_alone_or_refuse(request, in_doubt=True)
        else:
            self._settle(batch, answer, in_doubt=False)

    def _commit_alone_or_refuse(self, request: Append, *, in_doubt: bool = False) -> None:
        """One request's trouble stays its own."""
        try:
            self._commit_alone(request, in_doubt=in_doubt)
        except StoreUnavailable as error:
            self._refuse([request], error)
        except Exception as error:  # noqa: BLE001  (reported)
            report(logger, error, "a request could not be appended")
            self._refuse([request], StoreUnavailable(f"this cannot be appended: {error}"))

    def _hold_or_refuse(self, batch: list[Append], error: Exception) -> None:
        """There is no room: attempts wait, everybody else is told. Of several, one's trouble is not the others'."""
        if len(batch) > 1 and not all(request.is_page and request.writer for request in batch):
            for request in batch:
                self._commit_alone_or_refuse(request)
        elif batch[0].writer is None or self._closing:
            self._no_room[batch[0].is_page] = str(error), time.monotonic()
            self._refuse(batch, StoreUnavailable(f"the database has no room, nothing was written: {error}"))
        else:
            with self._condition:
                self._parked.hold(batch, str(error))
                for request in batch:
                    for behind in self._take_queued(request):
                        self._parked.joins(behind)

    def _is_lost(self, error: BaseException | None = None) -> bool:
        """Whether there is no connection any more. A pooler says so by an error, before it closes the connection."""
        if self._connection is not None and is_lost(error):
            self._connection.close()
        return self._connection is None or self._connection.closed

    def _commit_alone(self, request: Append, *, in_doubt: bool = False) -> None:
        for attempt in range(_TRIES_ALONE):
            try:
                answer = self._execute_in_current([request])
            except _BATCH_ERRORS as error:
                self._clear_the_way(error)
                if attempt == _TRIES_ALONE - 1:
                    self._refuse([request], StoreUnavailable(f"the log could not be written: {error}"))
                    return
            except NO_ROOM as error:
                self._hold_or_refuse([request], error)
                return
            except OperationalError as error:
                if not self._is_lost(error):
                    raise
                logger.info("the log's connection failed: %s", error)
                self._reconnect()
                in_doubt = True
            else:
                self._settle([request], answer, in_doubt=in_doubt)
                return
        self._refuse([request], StoreUnavailable("the database does not stay reachable"))

    def _clear_the_way(self, error: Exception) -> None:
        """After a wait for locks that took too long: whoever froze while holding them holds nobody up for longer."""
        if isinstance(error, LockNotAvailable) and self._connection is not None:
            try:
                cut_frozen_writers(self._connection)
            except psycopg.Error as failure:
                logger.warning("frozen writers could not be looked for: %s", failure)

    def _execute_in_current(self, batch: list[Append]) -> dict[str, Appended]:
        """As `_execute`; where the segment was closed or dropped meanwhile, once more, for the one that is current."""
        segment = self._segment
        try:
            return self._execute(batch)
        except CheckViolation:
            self._read_segment()
            if self._segment == segment:
                raise
            return self._execute(batch)

    def _execute(self, batch: list[Append]) -> dict[str, Appended]:
        """Send a batch of one kind, pages or not; what won, by thread."""
        connection = self._current_connection()
        batch = [request for request in batch if request.generation == self._generation]
        if not batch:
            return {}
        self._deltas.encode(batch, self._segment)  # here and not under the lock, which every publisher needs
        parameters: tuple[object, ...] | dict[str, object]
        if batch[0].is_page:
            statement, parameters = append.APPEND_PAGES, append.page_parameters(batch, self._segment)
        else:
            statement = append.APPEND_FACTS
            parameters = append.fact_parameters(batch, self._segment, self._lock_key)
        try:
            rows = connection.execute(statement, parameters, prepare=True, binary=True).fetchall()
        except ReadOnlySqlTransaction:
            # A primary that has become a standby: with several hosts in the URL, the next connection finds the new one.
            connection.close()
            raise
        if self._unreplicated:
            self._unreplicated = False
            raise StoreUnavailable("the wait for the standby was cancelled: committed here, maybe not there")
        return _answer(batch, rows)

    def _settle(self, batch: Sequence[Append], answer: dict[str, Appended], *, in_doubt: bool) -> None:
        """Tell subscribers, then the requesters. What neither won nor landed before is refused."""
        won: list[tuple[Append, Appended]] = []
        others: list[Append] = []
        for request in batch:
            if request.future.done():
                continue
            appended = answer.get(request.thread_id)
            if appended is None:
                others.append(request)
            else:
                self._deltas.acknowledged(request, appended, self._segment)
                self.history.acknowledged(appended.position or 0)
                won.append((request, appended))
        # Those first: whatever happens while the others are looked up, these are in the log.
        self._hand_out(won)
        for request in others:
            appended = self._look_up(request, in_doubt=in_doubt)
            if appended is None:
                self._refuse([request], WriteConflict(f"thread {request.thread_id} changed meanwhile"))
            else:
                self._hand_out([(request, appended)])

    def _hand_out(self, won: Sequence[tuple[Append, Appended]]) -> None:
        # An earlier request's result is not this one's rows: subscribers have those from back then.
        fresh = [each for each in won if not each[1].repeated]
        if fresh:
            self._on_commit(fresh)
        for request, appended in won:
            self._no_room.pop(request.is_page, None)
            if request.writer is not None:
                request.writer.settled(request, refused=False)
            request.future.set_result(appended)

    def _look_up(self, request: Append, *, in_doubt: bool) -> Appended | None:
        """As `landed_before`, over another connection when this one is lost; None for one of another history."""
        for attempt in range(_TRIES_ALONE):
            try:
                assert self._connection is not None
                if request.generation != self._generation:
                    return None
                return landed_before(self._connection, request, in_doubt=in_doubt)
            except OperationalError as error:
                if not self._is_lost(error) or attempt == _TRIES_ALONE - 1:
                    raise
                logger.info("the log's connection failed: %s", error)
                self._reconnect()
        return None

    def _connect(self) -> Connection[TupleRow]:
        connection = session.connect_writer(self._url, self._schema, self._lock_seconds)
        connection.add_notice_handler(self._on_notice)
        try:
            self.history.admit(connection)
        except BaseException:
            connection.close()
            raise
        if self._generation != self.history.generation:
            self._generation = self.history.generation
            self._deltas = Deltas(self._key_bytes)  # their key pages may be in the log no more
        self._connection = connection
        self._read_segment()
        return connection

    def _current_connection(self) -> Connection[TupleRow]:
        """The connection, admitted to the history as this process knows it now."""
        if self._connection is not None and self._generation != self.history.generation:
            self._connection.close()
            self._connection = None
        return self._connection or self._connect()

    def _read_segment(self) -> None:
        assert self._connection is not None
        row = self._connection.execute("select max(segment) from segments").fetchone()
        assert row is not None
        self._segment = row[0]

    def _reconnect(self) -> None:
        """A new connection, tried for `reconnect_seconds`. Raises the last error when there is none by then."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        deadline = time.monotonic() + self._reconnect_seconds
        pause = 0.05
        while True:
            try:
                self._connect()
            except psycopg.Error:
                if time.monotonic() > deadline:
                    raise
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                return

    def _on_notice(self, diagnostic: psycopg.errors.Diagnostic) -> None:
        if "synchronous replication" in (diagnostic.message_primary or ""):
            self._unreplicated = True

    def _refuse(self, requests: Sequence[Append], error: Exception) -> None:
        """Fail requests, and with each all that its writer has queued behind it."""
        for request in requests:
            if request.future.done():
                continue  # decided already, alone
            self._deltas.forget(request)
            behind = self._take_behind(request)
            for each in (request, *behind):
                _fail(each, error)

    def _take_behind(self, request: Append) -> list[Append]:
        if request.writer is None:
            return []
        with self._condition:
            request.writer.refused = True
            held = [each for each in self._parked.release(request.writer) if each is not request]
            behind = held + self._take_queued(request)
            for each in behind:
                each.sealed = True
            return behind

    def _take_queued(self, request: Append) -> list[Append]:
        """Out of the queue what its writer has there. The caller holds the lock."""
        queue = self._queues.get(request.thread_id)
        if queue is None:
            return []
        behind = [each for each in queue if each.writer is request.writer]
        kept = deque(each for each in queue if each.writer is not request.writer)
        if kept:
            self._queues[request.thread_id] = kept
        else:
            del self._queues[request.thread_id]
            self._ready.remove(request.thread_id)
        return behind

    def _refuse_all(self, error: Exception) -> None:
        with self._condition:
            waiting = [request for queue in self._queues.values() for request in queue]
            waiting += self._parked.release_all()
            self._queues.clear()
            self._ready.clear()
        for request in waiting:
            _fail(request, error)


def _fail(request: Append, error: Exception) -> None:
    if request.writer is not None:
        request.writer.settled(request, refused=True)
    if not request.future.done():  # whoever asked may have given it up while it was queued
        request.future.set_exception(error)


def _answer(batch: Sequence[Append], rows: Sequence[Any]) -> dict[str, Appended]:
    sizes = {request.thread_id: size(request) for request in batch}
    return {
        thread_id: Appended(thread_id, head - sizes[thread_id] + 1, head, revision, fence, frames, position, at)
        for thread_id, head, revision, fence, frames, position, at in rows
    }
