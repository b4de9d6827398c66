"""Deciding on a thread: fold it, let a function decide, append what it decided if nothing changed in between.

A process keeps the folds of its busiest threads and reads only what is new. A kept fold is never more than a guess:
the append states the revision it stands for, and a guess that is out of date loses and is made again.
"""

from __future__ import annotations

import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from runs_es.domain import Fact, Provenance, Recorded, RunCancelRequested, Thread, WriteConflict
from runs_es.log.append import ANONYMOUS, Appended
from runs_es.log.causes import caused
from runs_es.log.event_log import EventLog
from runs_es.log.reader import Head

MAX_TRIES = 200
_NO_HEAD = Head(0, 0, 0, 0)
# The global generator belongs to the embedding program, which may seed it.
_jitter = random.Random()  # noqa: S311


@dataclass(slots=True)
class Decision:
    """What to append: facts, and a page (run id, bodies): a run's first frames behind them, its last before them.

    `provenances` are who and why of each fact, where not of all the caller's. `prepare` makes true outside the log what
    the facts will say; it is called before each try, so it may be called again, and for facts that then lose.
    """

    facts: Sequence[Fact]
    page: tuple[str, list[bytes]] | None = None
    page_first: bool = False
    provenances: Sequence[Provenance] | None = None
    prepare: Callable[[], None] | None = None


@dataclass(frozen=True, slots=True)
class Decided:
    """What was appended: nothing, when there was nothing to do or it was done under the same key before."""

    facts: Sequence[Fact]
    appended: Appended | None
    repeated: bool = False


Decide = Callable[[Thread, Head], Decision]


@dataclass(slots=True)
class _Fold:
    thread: Thread
    revision: int = 0
    head: Head | None = None  # as this process last saw it
    lock: threading.Lock = field(default_factory=threading.Lock)


class Decisions:
    """Commands on threads, one at a time a thread and process. Synchronous; callers on a loop go through a thread."""

    def __init__(self, log: EventLog, *, kept_threads: int = 2048) -> None:
        self._log = log
        self._kept = kept_threads
        self._folds: OrderedDict[str, _Fold] = OrderedDict()
        self._lock = threading.Lock()

    def make(
        self,
        thread_id: str,
        decide: Decide,
        *,
        provenance: Provenance = ANONYMOUS,
        idempotency_key: str | None = None,
    ) -> Decided:
        """Append what `decide` answers for the thread as it is.

        `decide` may be called several times and must not keep the thread. Whatever it raises is raised here. Raises
        WriteConflict when other processes got in between too often, StoreUnavailable when the database is away.
        """
        if idempotency_key is not None and self._log.reader.by_idem_key(thread_id, idempotency_key) is not None:
            return Decided((), None, repeated=True)
        with self._fold(thread_id) as fold:
            decision = self._guessed(fold, decide)
            for attempt in range(MAX_TRIES):
                if decision is None:
                    self._refresh(fold)
                    decision = decide(fold.thread, fold.head or _NO_HEAD)
                if not decision.facts:
                    return Decided((), None)
                if decision.prepare is not None:
                    decision.prepare()
                try:
                    asked = self._log.append(
                        thread_id,
                        decision.facts,
                        expected=fold.revision,
                        frames=(fold.head or _NO_HEAD).frames if decision.page else None,
                        page=decision.page,
                        page_first=decision.page_first,
                        provenance=decision.provenances or self._provenances(thread_id, decision.facts, provenance),
                        idempotency_key=idempotency_key,
                    )
                    appended = self._log.outage.result(asked, self._log.wait_seconds)
                except WriteConflict:
                    decision = None
                    # Other processes decide on the same thread: back off a little, more the longer it lasts.
                    time.sleep(_jitter.uniform(0, min(0.001 * 2 ** min(attempt, 6), 0.05)))
                    continue
                if appended.repeated:
                    return Decided((), None, repeated=True)
                fold.head = None
                if appended.current:
                    for fact in decision.facts:
                        fold.thread.apply(fact)
                    fold.revision = fold.thread.revision = appended.revision
                    fold.head = Head(appended.last_seq, appended.revision, appended.fence, appended.frames)
                return Decided(decision.facts, appended)
        raise WriteConflict(f"thread {thread_id} is written to by too many at once; try again")

    def _provenances(self, thread_id: str, facts: Sequence[Fact], who: Provenance) -> Sequence[Provenance]:
        def request_of(run_id: str) -> Recorded | None:
            requests = self._log.reader.facts(thread_id, run_id=run_id, topics=[RunCancelRequested.topic])
            return requests[-1] if requests else None  # a later one is the stronger one

        return caused(facts, who, request_of)

    def look(self, thread_id: str) -> tuple[Thread, Head]:
        """The thread as it is now, folded afresh for the caller to keep."""
        head, facts = self._log.reader.lifecycle(thread_id)
        thread = Thread.fold(thread_id, (recorded.fact for recorded in facts))
        thread.revision = head.revision if head else 0
        return thread, head or _NO_HEAD

    @staticmethod
    def _guessed(fold: _Fold, decide: Decide) -> Decision | None:
        """What to append, if the thread is still as this process left it: a read less. None where that is not likely
        because a worker writes to it, or where being wrong would do harm: an answer that is no append is never a guess.
        """
        if fold.head is None or fold.thread.in_flight is not None:
            return None
        try:
            decision = decide(fold.thread, fold.head)
        except Exception:  # noqa: BLE001  (it may be right about the thread as it is, so it is asked again)
            return None
        return decision if decision.facts and decision.prepare is None else None

    def _refresh(self, fold: _Fold) -> None:
        head, facts = self._log.reader.lifecycle(fold.thread.thread_id, fold.revision)
        fold.head = head
        if head is not None:
            for recorded in facts:
                fold.thread.apply(recorded.fact)
            fold.revision = fold.thread.revision = head.revision

    @contextmanager
    def _fold(self, thread_id: str) -> Iterator[_Fold]:
        with self._lock:
            fold = self._folds.pop(thread_id, None) or _Fold(Thread(thread_id))
            self._folds[thread_id] = fold
            while len(self._folds) > self._kept:
                self._folds.popitem(last=False)
        with fold.lock:
            yield fold
