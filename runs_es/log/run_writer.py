"""The writer of one attempt of a run: it alone knows the fence and the frame count that its claim gave it.

Frames published while a commit is under way share the next one. Once one of its requests is refused, so is all that
it has queued and all that it will ever try.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future

from runs_es.domain import LeaseLost
from runs_es.log.append import Append, Appended, FactItem, PageItem
from runs_es.log.writer import LogWriter

# A page is split here, so that a reader's step and a stored row stay bounded.
MAX_PAGE_BYTES = 256 * 1024


class RunWriter:
    """Appends pages and facts of one attempt, in the order of the calls. Callable from any thread.

    `on_settled(refused)` is called in the log's thread whenever one of its requests is being decided.
    """

    def __init__(
        self,
        log: LogWriter,
        *,
        thread_id: str,
        run_id: str,
        fence: int,
        frames: int,
        on_settled: Callable[[bool], None] | None = None,
    ) -> None:
        self.thread_id = thread_id
        self.run_id = run_id
        self.fence = fence
        self.refused = False
        self._queued = 0  # bytes ever; changed under the log's lock
        self._settled = 0  # bytes ever; changed in the log's thread
        self._ended = False
        self._log = log
        self._frames = frames
        self._open: Append | None = None
        self._open_bytes = 0
        self._on_settled = on_settled
        self._last: Future[Appended] | None = None

    @property
    def uncommitted(self) -> int:
        """Bytes queued and not yet durable."""
        return self._queued - self._settled

    def publish(self, *bodies: bytes) -> None:
        """Queue frames' bodies, in order. Raises LeaseLost when this writer has been refused."""
        with self._log.lock:
            request = self._request()
            self._add_frames(request, bodies)
            self._enqueue(request)

    def _add_frames(self, request: Append, bodies: Sequence[bytes]) -> None:
        size = sum(map(len, bodies))
        last = request.items[-1] if request.items else None
        if isinstance(last, PageItem):
            last.extend(bodies, size)
        else:
            request.items.append(PageItem(self.run_id, list(bodies)))
        self._frames += len(bodies)
        self._open_bytes += size
        self._queued += size

    def record(self, *facts: FactItem, frames: Sequence[bytes] = (), last: bool = False) -> Future[Appended]:
        """Queue facts behind all that was published before; the future is that of the request they are in. No frame of
        another thread comes between `frames` and the facts.

        With `last` nothing may follow them: whoever still publishes is refused.
        """
        size = sum(len(item.state) for item in facts)
        with self._log.lock:
            request = self._request()
            if frames:
                self._add_frames(request, frames)
            request.items.extend(facts)
            self._open_bytes += size
            self._queued += size
            self._ended = self._ended or last
            self._enqueue(request)
            return request.future

    def last(self) -> Future[Appended] | None:
        """The future of the newest request: when it is done, so is everything queued so far."""
        with self._log.lock:
            return self._last

    def _request(self) -> Append:
        """The open request, or a new one when it was sent or is full. The caller holds the lock."""
        if self.refused:
            raise LeaseLost(f"run {self.run_id} is no longer this worker's to write")
        if self._ended:
            raise LeaseLost(f"run {self.run_id} has ended")
        if self._open is None or self._open.sealed or self._open_bytes >= MAX_PAGE_BYTES:
            self._open = Append(self.thread_id, [], fence=self.fence, frames=self._frames, writer=self)
            self._open_bytes = 0
        return self._open

    def _enqueue(self, request: Append) -> None:
        if request.future is self._last:
            return
        self._last = request.future
        self._log.submit_locked(request)

    def settled(self, request: Append, *, refused: bool) -> None:
        """As `Writer` says."""
        self._settled += request.size
        if self._on_settled is not None:
            self._on_settled(refused)
