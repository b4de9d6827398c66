"""What a thread, its runs and its messages were as of an earlier seq: the facts up to it, folded in memory by the same
`evolve` that keeps the read models.

Nothing here is kept: the answer for a seq never changes, so there is nothing to keep up to date. Facts before the
deletion of a thread that preceded the seq play no part, as in every fold.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from runs_es.domain import CursorLost, MessageRecorded, Recorded, ThreadNotFound
from runs_es.domain.values import checked_time
from runs_es.log.reader import CONTENT_TOPICS, FACT_COLUMNS, LogReader, recorded
from runs_es.service.commands import ListRunMessagesQuery
from runs_es.service.views import RunMessageView, RunSnapshot, ThreadSnapshot
from runs_projections.lookups import may_see, tombstone
from runs_projections.messages import MESSAGES, MessageRow
from runs_projections.projection import Fold, Projection
from runs_projections.runs import RUNS, RunRow
from runs_projections.threads import THREADS, ThreadRow
from runs_projections.visibility import is_listed

R = TypeVar("R")

_CHUNK = 2000  # facts at a time
_MESSAGE_TOPICS = ("message.recorded", "message.removed", "run.deleted", "thread.deleted", "thread.erased")


@dataclass(frozen=True, slots=True)
class AsOf:
    """A moment of a thread: a `seq`, or a `time` (ISO 8601 with offset). Exactly one of them."""

    seq: int | None = None
    time: str | None = None

    def __post_init__(self) -> None:
        if (self.seq is None) == (self.time is None):
            raise ValueError("say either as_of or as_of_time, not both")
        if self.time is not None:
            object.__setattr__(self, "time", checked_time("as_of_time", self.time))


class Past:
    """Readings as of a seq. Equal, at every seq, to the fold of all facts up to it."""

    def __init__(self, reader: LogReader) -> None:
        self._reader = reader

    def seq_at(self, thread_id: str, moment: AsOf) -> int:
        """The seq that a moment means: for a time, that of the last fact recorded by then, 0 where there is none.

        Raises ThreadNotFound, ValueError for a seq that has not been reached, whose answer would still change, and
        CursorLost for one that a restore has passed over.
        """
        head = self._reader.head(thread_id)
        if head is None:
            raise ThreadNotFound(thread_id)
        if moment.seq is not None:
            if moment.seq > head.seq:
                raise ValueError(f"as_of is {moment.seq}, but the thread has only come to seq {head.seq}")
            if moment.seq and self._reader.is_of_lost_history(thread_id, moment.seq):
                raise CursorLost(moment.seq)
            return moment.seq
        with self._reader.connection() as connection:
            # `recorded_at` never falls as seq rises.
            row = connection.execute(
                "select seq from events_facts where thread_id = %s and recorded_at <= %s order by seq desc limit 1",
                (thread_id, moment.time),
            ).fetchone()
        return int(row[0]) if row is not None else 0

    def shown_at(self, thread_id: str, moment: AsOf) -> int:
        """As `seq_at`, but 0 for what lies before the thread's last deletion: that is not shown any more."""
        seq = self.seq_at(thread_id, moment)
        return seq if seq > tombstone(self._reader, thread_id) else 0

    def run(self, thread_id: str, run_id: str, seq: int, user_id: str | None = None) -> RunSnapshot | None:
        """The run as of `seq`; None before it was created, after it was deleted, or when it is another's."""
        row = self.run_row(thread_id, run_id, seq)
        return row.snapshot() if row is not None and may_see(user_id, row.user_id) else None

    def run_row(self, thread_id: str, run_id: str, seq: int) -> RunRow | None:
        """As `run`, for everybody: the row that the read model had."""
        facts = self._facts(thread_id, seq, "run_id = %(run)s and topic <> all(%(topics)s)", run_id, CONTENT_TOPICS)
        return _folded(RUNS, facts).get((thread_id, run_id))

    def thread(self, thread_id: str, seq: int, user_id: str | None = None) -> ThreadSnapshot | None:
        """The thread as of `seq`; None before it was created, after it was deleted, or when it is another's."""
        row = self.thread_row(thread_id, seq)
        return row.snapshot() if row is not None and may_see(user_id, row.user_id) else None

    def thread_row(self, thread_id: str, seq: int) -> ThreadRow | None:
        """As `thread`, for everybody: the row that the read model had."""
        facts = self._facts(thread_id, seq, "topic <> all(%(topics)s)", None, CONTENT_TOPICS)
        return _folded(THREADS, facts).get((thread_id,))

    def messages(self, query: ListRunMessagesQuery, seq: int) -> list[RunMessageView]:
        """The page of messages that `query` had as of `seq`, as `ProjectedEvents.list_messages_by_run` lists them."""
        folding: Fold[MessageRow] = Fold(_BARE)
        hidden: set[int] = set()
        for each in self._facts(query.thread_id, seq, "topic = any(%(topics)s)", None, _MESSAGE_TOPICS):
            # Contents are read again for the page alone: those of a long thread need not fit into memory.
            if isinstance(each.fact, MessageRecorded) and not is_listed(each.fact, "shown"):
                hidden.add(each.seq)
            folding.apply(each)
        page = _page(newest_versions(folding.rows.values()), query, hidden)
        return [row.view() for row in self._whole(query.thread_id, page)]

    def messages_of_run(self, thread_id: str, run_id: str, seq: int) -> list[MessageRow]:
        """All that the run had recorded as of `seq`, whether or not another run has edited it since; whole, by seq."""
        condition = "run_id = %(run)s and topic = any(%(topics)s)"
        rows = _folded(MESSAGES, self._facts(thread_id, seq, condition, run_id, _MESSAGE_TOPICS)).values()
        return sorted((row for row in rows if not row.removed), key=lambda row: row.first_seq)

    def _whole(self, thread_id: str, rows: Sequence[MessageRow]) -> list[MessageRow]:
        """These rows with their contents."""
        with self._reader.connection() as connection:
            found = connection.execute(
                f"select {FACT_COLUMNS} from events_facts where thread_id = %s and seq = any(%s)",
                (thread_id, [row.seq for row in rows]),
                binary=True,
            ).fetchall()
        facts = {fact.seq: fact for fact in map(recorded, found)}
        # One that is missing was erased meanwhile.
        whole = (MESSAGES.evolve(row, facts[row.seq]) for row in rows if row.seq in facts)
        return [row for row in whole if row is not None]

    def _facts(
        self, thread_id: str, seq: int, condition: str, run_id: str | None, topics: Sequence[str]
    ) -> Iterator[Recorded]:
        """Facts of the thread's life that `seq` lies in, up to it, in short reads."""
        parameters = {"thread": thread_id, "run": run_id, "topics": list(topics), "seq": seq}
        after = tombstone(self._reader, thread_id, seq)
        while True:
            with self._reader.connection() as connection:
                rows = connection.execute(
                    f"select {FACT_COLUMNS} from events_facts where thread_id = %(thread)s and seq > %(after)s"
                    f" and seq <= %(seq)s and {condition} order by seq limit {_CHUNK}",
                    {**parameters, "after": after},
                    binary=True,
                ).fetchall()
            yield from map(recorded, rows)
            if len(rows) < _CHUNK:
                return
            after = rows[-1][3]


def newest_versions(rows: Iterable[MessageRow]) -> list[MessageRow]:
    """Of each message id its newest version, in order of seq; not of those that are removed."""
    newest: dict[str, MessageRow] = {}
    for row in rows:
        known = newest.get(row.message_id)
        if known is None or row.seq > known.seq:
            newest[row.message_id] = row
    return sorted((row for row in newest.values() if not row.removed), key=lambda row: row.seq)


def _page(rows: Iterable[MessageRow], query: ListRunMessagesQuery, hidden: set[int]) -> list[MessageRow]:
    """The rows that `query` asks for, of all that are listed."""
    after, before = query.after_seq or 0, query.before_seq
    found = [
        row
        for row in rows
        if row.seq > after
        and (before is None or row.seq < before)
        and (query.run_id is None or row.run_id == query.run_id)
        and (query.types is None or row.event_type in query.types)
        and (query.visibility == "all" or (row.seq in hidden) == (query.visibility == "hidden"))
    ]
    if query.limit <= 0:
        return []
    return found[: query.limit] if query.after_seq is not None else found[-query.limit :]


def _without_content(row: MessageRow | None, each: Recorded) -> MessageRow | None:
    new = MESSAGES.evolve(row, each)
    return None if new is None else replace(new, content="null", metadata="{}")


_BARE = replace(MESSAGES, evolve=_without_content)


def _folded(projection: Projection[R], facts: Iterable[Recorded]) -> dict[tuple[str, ...], R]:
    folding: Fold[R] = Fold(projection)
    for each in facts:
        folding.apply(each)
    return folding.rows
