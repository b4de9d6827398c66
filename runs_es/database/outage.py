"""Whether the database answers, as one process knows it: noticed once, said once, and looked after until it is over.

A failure to reach the database is told to `noticed`. One thread then asks again and again; the first failure is
logged, the return is logged, and pools that wait are told to connect at once. Their own back-off grows with the
outage, so without this they would stay away for as long again.
"""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import Future
from typing import Protocol, TypeVar
from weakref import WeakSet, WeakValueDictionary

import psycopg

from runs_es.database.errors import reason
from runs_es.domain.errors import StoreUnavailable

logger = logging.getLogger(__name__)

T = TypeVar("T")

LOOK_SECONDS = 0.25  # between two questions while the database is away
ANSWER_SECONDS = 1.0  # a database that takes longer to answer `select 1` counts as away
_ABANDON_SECONDS = 10.0  # a question that hangs is given up and asked again: its connection may be dead for ever
_CONNECT_SECONDS = 5  # libpq's own bound of one attempt
# How the server ends a session whose transaction stood still; no operational errors to psycopg.
ENDED = (psycopg.errors.IdleInTransactionSessionTimeout, psycopg.errors.TransactionTimeout)
_SILENT = f"it does not answer within {ANSWER_SECONDS:g} s"


_patience = threading.local()


def be_patient(seconds: float) -> None:
    """Have the calling thread wait so long for a database that is away: nobody waits for an answer of it."""
    _patience.seconds = seconds


def patience(seconds: float) -> float:
    """How long the calling thread waits for a database that is away; `seconds` unless it is patient."""
    return float(getattr(_patience, "seconds", seconds))


class Wakeable(Protocol):
    """A pool that can be told to connect now."""

    def wake(self) -> None:
        """Connect for those who wait. Called in the thread of the outage: returns at once."""


class Outage:
    """Knows whether one database is away. Safe to call from any thread."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._lock = threading.Lock()
        self._looking: threading.Thread | None = None
        self._verdict = threading.Event()  # set once the look under way knows
        self._reason: str | None = None
        self._since = 0.0
        self._ended = -LOOK_SECONDS  # when the last look came to its end
        self._waiting: WeakSet[Wakeable] = WeakSet()

    @property
    def reason(self) -> str | None:
        """What is wrong, and since when; None when the database answers as far as is known."""
        text = self._reason
        return None if text is None else f"{text} (for {time.monotonic() - self._since:.0f} s)"

    def noticed(self) -> None:
        """Have the database looked after, because something failed to reach it. Returns at once."""
        with self._lock:
            if self._looking is None:
                self._verdict.clear()
                self._looking = threading.Thread(target=self._look, name="runs-es outage", daemon=True)
                self._looking.start()

    def is_away(self, seconds: float = ANSWER_SECONDS + 0.5) -> bool:
        """Ask whether the database is away now; takes at most `seconds`."""
        if self._reason is not None:
            return True
        self.noticed()
        self._verdict.wait(seconds)
        return self._reason is not None

    def result(self, future: Future[T], seconds: float) -> T:
        """The future's result. Raises StoreUnavailable after `seconds`, if the database is away then."""
        while True:
            try:
                return future.result(patience(seconds))
            except TimeoutError:
                if future.done() or not self.is_away():
                    continue
                was_sent = not future.cancel()
                known = "it is not known whether this was written" if was_sent else "nothing was written"
                lost = psycopg.OperationalError(self.reason or "")
                raise StoreUnavailable(f"the database does not answer, {known}: {self.reason}") from lost

    def wake(self, pool: Wakeable) -> None:
        """Tell this pool when the database is back, for as long as the pool exists."""
        self._waiting.add(pool)

    # --- the thread that looks ---

    def _look(self) -> None:
        # Who is refused for another reason (too many connections) notices again at once: not more often than this.
        time.sleep(max(self._ended + LOOK_SECONDS - time.monotonic(), 0.0))
        while (trouble := self._ask()) is not None:
            if self._reason is None:
                self._since = time.monotonic()
                logger.warning("the database does not answer, trying again until it does: %s", trouble)
            self._reason = trouble
            self._verdict.set()
            time.sleep(LOOK_SECONDS)
        with self._lock:
            was_away, self._reason, self._looking = self._reason is not None, None, None
            self._ended = time.monotonic()
            self._verdict.set()
        if was_away:
            logger.warning("the database answers again, after %.1f s", time.monotonic() - self._since)
        for pool in list(self._waiting):
            pool.wake()

    def _ask(self) -> str | None:
        """What is wrong; None when the database answers. In a thread, because nothing bounds a query that hangs."""
        answer: Future[str | None] = Future()
        threading.Thread(target=_question, args=(self._url, answer), name="runs-es outage probe", daemon=True).start()
        asked = time.monotonic()
        while True:
            try:
                return answer.result(ANSWER_SECONDS)
            except TimeoutError:
                if self._reason is None or time.monotonic() - asked > _ABANDON_SECONDS:
                    return _SILENT


def _question(url: str, answer: Future[str | None]) -> None:
    try:
        with psycopg.connect(
            url, autocommit=True, application_name="runs-es outage", connect_timeout=_CONNECT_SECONDS
        ) as connection:
            connection.execute("select 1")
    except psycopg.Error as error:
        answer.set_result(reason(error).splitlines()[0])
    except BaseException as error:
        answer.set_result(f"{type(error).__name__}: {error}")
        raise
    else:
        answer.set_result(None)


_outages: WeakValueDictionary[str, Outage] = WeakValueDictionary()
_lock = threading.Lock()


def outage_of(url: str) -> Outage:
    """The one `Outage` of this database in this process; it lives as long as somebody holds it."""
    with _lock:
        found = _outages.get(url)
        if found is None:
            found = _outages[url] = Outage(url)
        return found


def is_lost(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, says that the connection or the server is gone."""
    while error is not None:
        if isinstance(error, psycopg.InterfaceError):
            return True
        if isinstance(error, ENDED):
            return True
        # No SQLSTATE: the client noticed it. 08: the connection. 57P01 to 57P05: it was ended, or none is accepted.
        if isinstance(error, psycopg.OperationalError) and (error.sqlstate or "08").startswith(("08", "57P")):
            return True
        error = error.__cause__
    return False
