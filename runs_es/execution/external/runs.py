"""What an external worker does with a run: claim, append, renew, finish, release.

It keeps to the same rules as our own worker: a claim id, under a fence, with its frames counted. Everything may be sent
again after a lost answer: frames land where they are expected or not at all, messages and facts have keys, and an end
that was written is told again.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from runs_es.domain import (
    TERMINAL_FACTS,
    EventCategory,
    EventRecorded,
    Fact,
    LeaseLost,
    LimitExceeded,
    Provenance,
    Recorded,
    RequeueCause,
    Run,
    RunClaimed,
    RunFailed,
    RunNotFound,
    RunStarted,
    RunStatus,
    StoreUnavailable,
    Thread,
    Timeouts,
    WriteConflict,
    now,
)
from runs_es.execution.external.leases import Granted, Leases
from runs_es.execution.external.names import ExternalAssistants
from runs_es.execution.external.values import Claimed, Content, Ending, Refused, Stated, Written
from runs_es.execution.failures import room_for_traceback
from runs_es.execution.protocol import refuse_reserved
from runs_es.execution.recording import KnownMessages
from runs_es.execution.worker import Claim, Restore, WorkerLimits, decision
from runs_es.log.append import Append, FactItem, PageItem
from runs_es.log.decisions import Decision, Decisions
from runs_es.log.event_log import EventLog
from runs_es.log.pages import frame
from runs_es.log.reader import Head
from runs_es.log.run_writer import MAX_PAGE_BYTES

logger = logging.getLogger(__name__)

KEPT_CLAIMS = 4096
_TRIES = 3


@dataclass(slots=True)
class _Known:
    """A claim as it was found to hold, under this fence."""

    thread_id: str
    run: Run
    fence: int
    worker_id: str

    @property
    def provenance(self) -> Provenance:
        return Provenance(actor=f"worker:{self.worker_id}")


class ExternalRuns:
    """Synchronous; callers on an event loop go through a thread. `waiting` names threads that have a due run of these
    assistants, as far as read models know; `wake` has our own workers look at a thread.
    """

    def __init__(
        self,
        log: EventLog,
        decisions: Decisions,
        assistants: ExternalAssistants,
        *,
        waiting: Callable[[Collection[str]], list[str]],
        wake: Callable[[str], None],
        limits: WorkerLimits | None = None,
        restore: Restore | None = None,
    ) -> None:
        self.assistants = assistants
        self.leases = Leases(log.reader)
        self._log = log
        self._decisions = decisions
        self._waiting = waiting
        self._wake = wake
        self._limits = limits or WorkerLimits()
        self._restore = restore or (lambda *_: None)
        self._known: OrderedDict[str, _Known] = OrderedDict()
        log.history.watch(self._forget)
        self._claiming: set[str] = set()
        self._lock = threading.Lock()

    # --- claiming ---

    def claim(
        self, assistant_ids: Collection[str], worker_id: str, seconds: float, claim_id: str | None = None
    ) -> Claimed | None:
        """Take the oldest due run of these assistants; None when there is none. With a `claim_id` of the worker's
        making the same request gives the same claim again. Raises Refused when that claim does not hold any more.
        """
        if claim_id is not None and (again := self._claimed_before(claim_id)) is not None:
            return again
        for thread_id in self._waiting(assistant_ids):
            if not self._begin(thread_id):
                continue  # another request of this process is there
            try:
                claimed = self._claim(thread_id, assistant_ids, worker_id, seconds, claim_id or uuid.uuid4().hex)
            except (Refused, StoreUnavailable):
                raise
            except Exception:  # one thread that cannot be read keeps no worker from the others
                logger.exception("thread %s has a run for external workers that cannot be claimed", thread_id)
                continue
            finally:
                self._end_of(thread_id)
            if claimed is not None:
                return claimed
        return None

    def _claim(
        self, thread_id: str, assistant_ids: Collection[str], worker_id: str, seconds: float, claim_id: str
    ) -> Claimed | None:
        claim = Claim(
            claim_id,
            worker_id,
            self._limits.max_attempts,
            self._restore,
            lambda run: run.status is RunStatus.PENDING and run.assistant_id in assistant_ids,
        )

        granted: list[Granted] = []

        def give_back() -> None:
            while granted:
                self.leases.give_back(claim_id, granted.pop())

        def grant() -> None:
            give_back()  # of the try before, which may have been for another run
            granted.append(self._grant(claim, seconds))

        def decide(thread: Thread, head: Head) -> Decision:
            decided = claim.decide(thread, head)
            if _starts(decided.facts):
                # Before the claim is in the log: a server that is killed in between leaves a lease for nothing, never
                # a claim that nobody watches.
                decided.prepare = grant
            return decided

        while True:
            decided = self._decisions.make(
                thread_id,
                decide,
                provenance=Provenance(actor=f"worker:{worker_id}"),
            )
            if decided.appended is None or claim.run is None:
                give_back()
                return None
            if not decided.appended.current:
                return None  # its acknowledgement was lost: the lease ends by itself
            if _starts(decided.facts):
                break
            self._settled(thread_id)  # it only had to be ended: the next one
        known = _Known(thread_id, claim.run, decided.appended.fence, worker_id)
        self._keep(claim_id, known)
        # Again, now that the claim is in the log: where this process stood still between, the lease may have ended, or
        # another request with the same id has given it back. No claim is to be without one.
        until = self._grant(claim, seconds).until
        return Claimed(claim.run, claim_id, known.fence, decided.appended.frames, until)

    def _grant(self, claim: Claim, seconds: float) -> Granted:
        run = claim.run
        assert run is not None
        timeouts = _timeouts(run, self._limits.timeouts)
        left = None if timeouts.wall is None else timeouts.wall - _seconds_since(run.started_at)
        granted = self.leases.grant(
            claim.claim_id,
            thread_id=run.thread_id,
            run_id=run.run_id,
            worker_id=claim.worker_id,
            seconds=seconds,
            left=left,
            idle=timeouts.idle,
        )
        if granted is None:
            raise Refused(f"claim {claim.claim_id} is being made by another request, or was lost at once", "lost")
        return granted

    def _claimed_before(self, claim_id: str) -> Claimed | None:
        """The claim that an earlier request with this id made, if it did."""
        holder = self.leases.holder(claim_id)
        if holder is None:
            return None
        thread, head = self._decisions.look(holder[0])
        try:
            run = thread.claimed(holder[1], claim_id)
        except LeaseLost:
            return None  # granted, and then somebody else was faster
        until = self.leases.until(claim_id)
        if until is None:
            raise Refused(f"claim {claim_id} has expired", "lost")
        return Claimed(run, claim_id, head.fence, head.frames, until, run.cancel_requested)

    def _forget(self) -> None:
        with self._lock:
            self._known.clear()

    def _begin(self, thread_id: str) -> bool:
        with self._lock:
            if thread_id in self._claiming:
                return False
            self._claiming.add(thread_id)
            return True

    def _end_of(self, thread_id: str) -> None:
        with self._lock:
            self._claiming.discard(thread_id)

    # --- writing ---

    def append(self, stated: Stated, content: Content) -> Written:
        """Write all of `content`, or nothing. Raises Refused, LimitExceeded, ValueError."""
        bodies = self._bodies(content.frames)
        known = self._holding(stated)
        for attempt in range(_TRIES):
            items = self._facts(known, content) + _pages(known.run.run_id, bodies)
            if not items:
                return self._nothing_new(stated, known)
            request = Append(known.thread_id, items, fence=known.fence, frames=stated.frames)
            try:
                appended = self._log.writer.submit(request).result()
            except WriteConflict:
                known = self._look(stated)
                landed = self._landed(known, stated, bodies)
                if landed is not None:
                    return landed
                if attempt == _TRIES - 1:
                    raise
                continue
            until = self.leases.extend(stated.claim_id, known.fence, wrote=True)
            return Written(known.fence, stated.frames + len(bodies), appended.last_seq, until)
        raise AssertionError("unreachable")

    def _bodies(self, frames: Sequence[tuple[str, bytes]]) -> list[bytes]:
        bodies = []
        for event, data in frames:
            refuse_reserved(event)
            body = frame(event, data)
            if len(body) > self._log.max_event_bytes:
                raise LimitExceeded(
                    f"a frame of {len(body)} bytes is over the limit of {self._log.max_event_bytes}"
                    " (RUNS_ES_MAX_FRAME_BYTES)"
                )
            bodies.append(body)
        return bodies

    def _facts(self, known: _Known, content: Content) -> list[FactItem | PageItem]:
        """The messages and facts that are not recorded yet."""
        run, items = known.run, list[FactItem | PageItem]()
        if content.messages:
            messages = KnownMessages(self._log.reader.message_keys(known.thread_id))
            for message in content.messages:
                if (keyed := messages.recorded(run, message)) is not None:
                    items.append(self._log.item(keyed[0], known.provenance, keyed[1]))
        for event_type, category, data, metadata, key in content.facts:
            own_key = f"external:{run.run_id}:{key}"
            if self._log.reader.by_idem_key(known.thread_id, own_key) is not None:
                continue
            fact = EventRecorded(
                thread_id=known.thread_id,
                run_id=run.run_id,
                occurred_at=now(),
                event_type=event_type,
                kind=EventCategory(category),
                content=data,
                metadata=dict(metadata),
            )
            items.append(self._log.item(fact, known.provenance, own_key))
        return items

    def _nothing_new(self, stated: Stated, known: _Known) -> Written:
        """All of it is recorded already, or it is empty: then it is a word that the worker lives."""
        known = self._look(stated)
        head = self._log.reader.head(known.thread_id)
        assert head is not None
        _same_frames(head.frames, stated.frames)
        return Written(known.fence, head.frames, head.seq, self.leases.extend(stated.claim_id, known.fence, wrote=True))

    def _landed(self, known: _Known, stated: Stated, bodies: Sequence[bytes]) -> Written | None:
        """What the first of two equal requests wrote; None when there was none and this may be tried again.

        Raises Refused when the thread has frames that are not these.
        """
        head = self._log.reader.head(known.thread_id)
        assert head is not None
        if head.frames == stated.frames:
            return None
        if bodies and head.frames == stated.frames + len(bodies):
            seq, found = self._last_frames(known, head, len(bodies))
            if found == list(bodies):
                until = self.leases.extend(stated.claim_id, known.fence, wrote=True)
                return Written(known.fence, head.frames, seq, until)
        _same_frames(head.frames, stated.frames)
        return None

    def _last_frames(self, known: _Known, head: Head, count: int) -> tuple[int, list[bytes]]:
        """The seq of the run's last frame, and its last `count` frames; fewer when there are not so many."""
        found: list[bytes] = []
        before, last = head.seq + 1, 0
        while len(found) < count:
            rows = self._log.reader.rows_before(known.thread_id, before, 16)
            if not rows:
                break
            for row in reversed(rows):
                before = row.first
                if not row.is_page:
                    continue
                if row.run_id != known.run.run_id:
                    return last, found
                last = last or row.last
                found = [*row.bodies, *found]
        return last, found[-count:]

    # --- saying that one lives, and ending ---

    def renew(self, stated: Stated) -> tuple[Written, str | None]:
        """Extend the lease; and whether, and how, the run is to be cancelled, which the lease is not extended for.

        Raises Refused.
        """
        try:
            known = self._look(stated)
            until = self.leases.extend(stated.claim_id, known.fence, wrote=False)
            if until is None:
                self._look(stated)  # cancelled in between?
                raise Refused(f"run {stated.run_id}: the lease has expired", "lost")
        except Refused as refused:
            if refused.reason != "cancelled":
                raise
            head = self._log.reader.head(refused.details["thread_id"]) or Head(0, 0, 0, 0)
            until = self.leases.until(stated.claim_id)
            return Written(head.fence, head.frames, head.seq, until), refused.details["action"]
        now_there = self._log.reader.head(known.thread_id)
        assert now_there is not None
        return Written(known.fence, now_there.frames, now_there.seq, until), None

    def finish(self, stated: Stated, content: Content, ending: Ending) -> Run:
        """Write what is left and how the run came out; the run as it ended. One that was to be cancelled is cancelled,
        whatever it came to, and what is left of it is not written. Raises Refused.
        """
        if (ended := self._ended_before(stated)) is not None:
            return ended
        frames = stated.frames
        try:
            if content:
                frames = self.append(stated, content).frames
        except Refused as refused:
            if refused.reason != "cancelled":
                raise

        def how(run: Run, head: Head) -> None:
            if run.cancel_requested is not None:
                run.mark_cancelled(action=run.cancel_requested)
                return
            _same_frames(head.frames, frames)
            room = room_for_traceback(self._log.max_event_bytes)
            ending.mark(run, show_errors=self._limits.show_errors, max_traceback_bytes=room)

        return self._close(stated, how)

    def release(self, stated: Stated) -> Run:
        """Hand the run back for another worker; one that was to be cancelled is cancelled. Raises Refused."""
        recordeds, claim = self._history(stated)
        if claim.claim_id == stated.claim_id and recordeds[-1].fact.topic == "run.requeued":
            return _folded(recordeds)

        def how(run: Run, _: Head) -> None:
            if run.cancel_requested is not None:
                run.mark_cancelled(action=run.cancel_requested)
            else:
                run.requeue(RequeueCause.WORKER_STOPPED)

        return self._close(stated, how)

    def _close(self, stated: Stated, how: Callable[[Run, Head], None]) -> Run:
        """End the attempt by a decision on the thread as it is now, if the claim still stands."""
        recordeds, claim = self._history(stated)
        thread_id = recordeds[0].fact.thread_id
        closed: list[Run] = []

        def decide(thread: Thread, head: Head) -> Decision:
            run = thread.claimed(stated.run_id, stated.claim_id)
            how(run, head)
            closed[:] = [run]
            return decision(run, thread.closed(run), self._restore)

        try:
            who = Provenance(actor=f"worker:{claim.worker_id}")
            decided = self._decisions.make(thread_id, decide, provenance=who)
        except Refused:
            raise
        except LeaseLost:
            if (ended := self._ended_before(stated)) is not None:
                return ended
            raise self._why_lost(stated) from None
        self.leases.drop(stated.claim_id)
        self._settled(thread_id)
        _log_failure(closed[0], decided.facts, claim.worker_id)
        return closed[0]

    def _ended_before(self, stated: Stated) -> Run | None:
        """The run, if this claim has ended it already. Raises Refused when somebody else has, RunNotFound."""
        recordeds, claim = self._history(stated)
        run = _folded(recordeds)
        if not run.is_terminal:
            return None
        by = next(each.provenance.actor for each in recordeds if isinstance(each.fact, TERMINAL_FACTS))
        if claim.claim_id == stated.claim_id and by == f"worker:{claim.worker_id}":
            return run
        raise self._why_lost(stated)

    # --- what is known ---

    def _holding(self, stated: Stated) -> _Known:
        """The claim, looked up only where it was not, or the worker states another fence."""
        with self._lock:
            known = self._known.get(stated.claim_id)
        if known is not None and known.fence == stated.fence and known.run.run_id == stated.run_id:
            return known
        return self._look(stated)

    def _look(self, stated: Stated) -> _Known:
        """The claim as the log has it now. Raises Refused when it does not hold, or the run is to be cancelled."""
        recordeds, claim = self._history(stated)
        thread_id = recordeds[0].fact.thread_id
        thread, head = self._decisions.look(thread_id)
        try:
            run = thread.claimed(stated.run_id, stated.claim_id)
        except LeaseLost:
            raise self._why_lost(stated) from None
        if run.cancel_requested is not None:
            raise Refused(
                f"run {run.run_id} is to be cancelled ({run.cancel_requested})",
                "cancelled",
                thread_id=thread_id,
                action=run.cancel_requested.value,
            )
        known = _Known(thread_id, run, head.fence, claim.worker_id)
        self._keep(stated.claim_id, known)
        return known

    def _keep(self, claim_id: str, known: _Known) -> None:
        with self._lock:
            self._known[claim_id] = known
            self._known.move_to_end(claim_id)
            while len(self._known) > KEPT_CLAIMS:
                self._known.popitem(last=False)

    def _why_lost(self, stated: Stated) -> Refused:
        """Who has the run now, or how it ended."""
        recordeds, claim = self._history(stated)
        run = _folded(recordeds)
        if run.is_terminal or run.deleted:
            text = f"run {run.run_id} has ended ({'deleted' if run.deleted else run.status.value})"
            return Refused(text, "ended", status=run.status.value)
        if claim.claim_id == stated.claim_id:
            return Refused(f"run {run.run_id} was put back: its lease had expired, or it was released", "lost")
        return Refused(
            f"run {run.run_id} is in its attempt {run.attempt}, by worker {claim.worker_id}",
            "lost",
            attempt=run.attempt,
            worker_id=claim.worker_id,
        )

    def _history(self, stated: Stated) -> tuple[list[Recorded], RunClaimed]:
        """The run's facts, and its last claim. Raises RunNotFound when it was never claimed."""
        recordeds = self._log.reader.run_facts(stated.run_id)
        claims = [each.fact for each in recordeds if isinstance(each.fact, RunClaimed)]
        if not claims:
            raise RunNotFound(stated.run_id)
        return recordeds, claims[-1]

    def _settled(self, thread_id: str) -> None:
        """Our own workers may have the next run of the thread."""
        thread, _ = self._decisions.look(thread_id)
        due = thread.next_due() if thread.exists else None
        if due is not None and self.assistants.leave(due):
            self._wake(thread_id)


def _folded(recordeds: Sequence[Recorded]) -> Run:
    run = Run.fold(each.fact for each in recordeds)
    assert run is not None
    return run


def _log_failure(run: Run, facts: Sequence[Fact], worker_id: str) -> None:
    """One line for a run that its external worker says has failed: the worker's own log has the traceback."""
    failed = next((fact for fact in facts if isinstance(fact, RunFailed) and fact.run_id == run.run_id), None)
    if failed is not None:
        fields = {"run_id": run.run_id, "thread_id": run.thread_id, "attempt": run.attempt, "worker_id": worker_id}
        logger.error("run %s failed: %s: %s", run.run_id, failed.error_type, failed.error, extra=fields)


def _starts(facts: Sequence[Fact]) -> bool:
    return any(isinstance(fact, RunStarted) for fact in facts)


def _pages(run_id: str, bodies: Sequence[bytes]) -> list[FactItem | PageItem]:
    """Frames as pages whose size is bounded, so that a stored row and a reader's step are."""
    pages: list[FactItem | PageItem] = []
    begun: list[bytes] = []
    size = 0
    for body in bodies:
        if begun and size + len(body) > MAX_PAGE_BYTES:
            pages.append(PageItem(run_id, begun))
            begun, size = [], 0
        begun.append(body)
        size += len(body)
    return [*pages, PageItem(run_id, begun)] if begun else pages


def _same_frames(there: int, stated: int) -> None:
    if there != stated:
        raise Refused(f"the thread has {there} frames, not {stated} as stated", "frames", frames=there)


def _timeouts(run: Run, default: Timeouts) -> Timeouts:
    try:
        return Timeouts.of(run.kwargs.get("config") or {}, default)
    except ValueError:  # recorded by somebody else than the service
        return default


def _seconds_since(moment: str | None) -> float:
    if moment is None:
        return 0.0
    return max((datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds(), 0.0)
