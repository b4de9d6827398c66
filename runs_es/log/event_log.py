"""The log as the rest of the store sees it: append, read, and be told of what was committed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future

from runs_es.database.outage import outage_of
from runs_es.database.reporting import report
from runs_es.database.sessions import WAIT_SECONDS
from runs_es.domain import Fact, LimitExceeded, Provenance
from runs_es.log.append import ANONYMOUS, PAGE_TOPIC, Append, Appended, FactItem, PageItem
from runs_es.log.hints import Hints
from runs_es.log.pages import KEY_BYTES
from runs_es.log.reader import LogReader, Row
from runs_es.log.writer import LOCK_SECONDS, LogWriter

logger = logging.getLogger(__name__)

MAX_PROVENANCE = 2000  # characters of actor, reason, correlation and causation id
MAX_KEY = 512  # characters of an idempotency key, which is indexed

OnCommit = Callable[[Sequence[tuple[Append, Appended]]], None]
OnHints = Callable[[Mapping[str, int]], None]


class EventLog:
    """One per process. `url` is any PostgreSQL connection string; `schema` must be migrated."""

    def __init__(
        self,
        url: str,
        schema: str = "runs_es",
        *,
        pool_size: int = 8,
        max_event_bytes: int = 16 * 1024 * 1024,
        key_bytes: int = KEY_BYTES,
        lock_seconds: float = LOCK_SECONDS,
        wait_seconds: float = WAIT_SECONDS,
    ) -> None:
        self.url = url
        self.schema = schema
        self.wait_seconds = wait_seconds
        self.outage = outage_of(url)
        self.max_event_bytes = max_event_bytes
        self._on_commit: list[OnCommit] = []
        self._on_hints: list[OnHints] = []
        self._on_poll: list[Callable[[], None]] = []
        self.reader = LogReader(url, schema, pool_size=pool_size, timeout=wait_seconds, key_bytes=key_bytes)
        self.writer = LogWriter(url, schema, self._committed, key_bytes=key_bytes, lock_seconds=lock_seconds)
        self._hints = Hints(url, schema, self._hinted, self._poll)

    def close(self) -> None:
        """Write what is queued, then let go of every connection."""
        self.writer.close()
        self._hints.close()
        self.reader.close()

    def __enter__(self) -> EventLog:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def watch(
        self,
        *,
        on_commit: OnCommit | None = None,
        on_hints: OnHints | None = None,
        on_poll: Callable[[], None] | None = None,
    ) -> None:
        """Be told of this process's commits, of other processes' (`{thread_id: seq}`), and every second or so.

        Called in the log's own threads: return quickly and do not raise.
        """
        for callback, listeners in ((on_commit, self._on_commit), (on_hints, self._on_hints), (on_poll, self._on_poll)):
            if callback is not None:
                listeners.append(callback)  # type: ignore[arg-type]

    def append(
        self,
        thread_id: str,
        facts: Sequence[Fact],
        *,
        expected: int,
        frames: int | None = None,
        fence: int | None = None,
        page: tuple[str, list[bytes]] | None = None,
        page_first: bool = False,
        provenance: Provenance | Sequence[Provenance] = ANONYMOUS,
        idempotency_key: str | None = None,
    ) -> Future[Appended]:
        """Append a command's facts, and behind or before them a `page` (run id, bodies), if the revision is `expected`.

        The future fails with WriteConflict where it is not. With an `idempotency_key` seen before in the thread the
        first result comes back. Who and why are of all facts, or one each. Raises LimitExceeded for a fact that is too
        large.
        """
        who = [provenance] * len(facts) if isinstance(provenance, Provenance) else provenance
        items: list[FactItem | PageItem] = [
            self.item(fact, why, idempotency_key if index == 0 else None)
            for index, (fact, why) in enumerate(zip(facts, who, strict=True))
        ]
        if page is not None:
            items.insert(0 if page_first else len(items), PageItem(*page))
        return self.writer.submit(Append(thread_id, items, expected=expected, fence=fence, frames=frames))

    def item(self, fact: Fact, provenance: Provenance = ANONYMOUS, idem_key: str | None = None) -> FactItem:
        """A fact ready to append. Raises LimitExceeded when it is too large, ValueError for text nobody can store."""
        for name in ("actor", "reason", "correlation_id", "causation_id"):
            _check_text(name, getattr(provenance, name), MAX_PROVENANCE)
        _check_text("idempotency_key", idem_key, MAX_KEY)
        item = FactItem.of(fact, provenance, idem_key)
        if len(item.state) > self.max_event_bytes:
            raise LimitExceeded(
                f"{fact.topic} of {len(item.state)} bytes is over the limit of {self.max_event_bytes}"
                " (RUNS_ES_MAX_FRAME_BYTES)",
                len(item.state),
                self.max_event_bytes,
            )
        return item

    def _committed(self, committed: Sequence[tuple[Append, Appended]]) -> None:
        for listener in self._on_commit:
            _guarded(listener, committed)
        self._hints.send({appended.thread_id: appended.last_seq for _, appended in committed})

    def _hinted(self, hints: Mapping[str, int]) -> None:
        for listener in self._on_hints:
            _guarded(listener, hints)

    def _poll(self) -> None:
        for listener in self._on_poll:
            _guarded(listener)


def _check_text(name: str, text: str | None, most: int) -> None:
    """One text that PostgreSQL will not take would refuse its whole batch."""
    if text is None:
        return
    if len(text) > most:
        raise ValueError(f"{name} must have at most {most} characters, got {len(text)}")
    if "\x00" in text or (not text.isascii() and any("\ud800" <= each <= "\udfff" for each in text)):
        raise ValueError(f"{name} must not contain NUL or lone surrogates")


def _guarded(listener: Callable[..., None], *arguments: object) -> None:
    # A listener's bug must not stop the writer: its poll will find what it missed here.
    try:
        listener(*arguments)
    except Exception as error:  # noqa: BLE001  (reported)
        report(logger, error, "a listener of the log failed")


def rows_of(request: Append, appended: Appended) -> list[Row]:
    """The rows that a committed request became."""
    rows: list[Row] = []
    seq = appended.first_seq
    frames = appended.frames - sum(len(item.bodies) for item in request.items if isinstance(item, PageItem))
    for item in request.items:
        if isinstance(item, FactItem):
            rows.append(
                Row(seq, seq, item.run_id, item.topic, item.state, None, None, appended.recorded_at, item.provenance)
            )
            seq += 1
        else:
            size = len(item.bodies)
            row = Row(seq, seq + size - 1, item.run_id, PAGE_TOPIC, item.state, frames, None, appended.recorded_at)
            row.know(item.bodies)
            rows.append(row)
            seq, frames = seq + size, frames + size
    return rows
