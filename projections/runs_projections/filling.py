"""The first and largest part of a rebuild: the log thread by thread, folded in memory, copied in whole rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any, TypeAlias

import psycopg
from psycopg import Connection
from psycopg.rows import TupleRow

from runs_es.domain import StoreUnavailable, UnknownTopic
from runs_projections import feed, store
from runs_projections.feed import Row, Unreadable
from runs_projections.projection import AnyProjection, AnyTable, Fold

OnProgress: TypeAlias = Callable[[int, int], None]


class RebuildFailed(Exception):
    """A projection cannot take a fact; carries its position."""

    def __init__(self, name: str, position: int, error: Exception) -> None:
        super().__init__(f"{name} cannot take the facts up to position {position}: {type(error).__name__}: {error}")
        self.position = position


@contextmanager
def taking(name: str, position: int) -> Iterator[None]:
    """Whatever goes wrong in here with the facts up to `position` or their rows is raised as RebuildFailed."""
    try:
        yield
    except psycopg.OperationalError:
        raise  # of the database, or a lock that is waited for again
    except Exception as error:
        raise RebuildFailed(name, position, error) from error


def not_read(name: str, fact: Unreadable) -> Exception:
    """What to raise at a fact that the projection wants and that cannot be read."""
    return fact.error if isinstance(fact.error, UnknownTopic) else RebuildFailed(name, fact.position, fact.error)


class Progress:
    """Facts done, and facts to do in all."""

    def __init__(self, tell: OnProgress | None) -> None:
        self.done = 0
        self._tell, self._total = tell, 0

    def expect(self, facts: int) -> None:
        self._total += facts

    def add(self, facts: int) -> None:
        self.done += facts
        self._total = max(self._total, self.done)  # the log grows meanwhile
        if self._tell is not None and facts:
            self._tell(self.done, self._total)

    def finish(self) -> None:
        self._total = self.done
        if self._tell is not None:
            self._tell(self.done, self._total)


@dataclass(slots=True)
class Filled:
    """The rows of whole threads up to `thread_id`, and how many facts they come from."""

    thread_id: str
    facts: int
    rows: list[Any]

    def write(self, connection: Connection[TupleRow], table: AnyTable) -> None:
        if self.rows:
            store.copy(connection, table, self.rows)


def threads(
    connection: Connection[TupleRow],
    projection: AnyProjection,
    after: str,
    target: int,
    skipped: frozenset[int],
    batch: int,
    max_bytes: int,
) -> Iterator[Filled]:
    """The rows of all threads after `after`, of their facts up to `target`, some whole threads at a time.

    Raises UnknownTopic, and RebuildFailed for a fact that cannot be read or taken.
    """
    pending: _Thread | None = None
    filled = Filled(after, 0, [])
    for rows in _portions(connection, after, target, projection.topics, batch, max_bytes):
        for thread_id, of_thread in groupby(rows, key=itemgetter(0)):
            if pending is not None and pending.thread_id != thread_id:
                pending.add_to(filled)
                pending = None
            pending = pending or _Thread(projection, thread_id)
            pending.apply(of_thread, skipped)
        if filled.facts:
            yield filled
            filled = Filled(filled.thread_id, 0, [])
    if pending is not None:
        pending.add_to(filled)
        yield filled


class _Thread:
    """A thread whose facts are being read."""

    def __init__(self, projection: AnyProjection, thread_id: str) -> None:
        self.thread_id = thread_id
        self._facts = 0
        self._name = projection.name
        self._fold: Fold[Any] = Fold(projection)

    def apply(self, rows: Iterator[Row], skipped: frozenset[int]) -> None:
        for row in rows:
            self._facts += 1
            fact = feed.recorded_or_not(row)
            if fact.position in skipped:
                continue
            if isinstance(fact, Unreadable):
                raise not_read(self._name, fact) from fact.error
            try:
                self._fold.apply(fact)
            except Exception as error:
                raise RebuildFailed(self._name, fact.position, error) from error

    def add_to(self, filled: Filled) -> None:
        filled.thread_id = self.thread_id
        filled.facts += self._facts
        filled.rows += self._fold.rows.values()


def _portions(
    connection: Connection[TupleRow],
    after: str,
    target: int,
    topics: frozenset[str] | None,
    batch: int,
    max_bytes: int,
) -> Iterator[list[Row]]:
    """Rows of facts, thread by thread. While one portion is folded the next is read."""

    def read(place: tuple[str, int]) -> list[Row]:
        return feed.thread_by_thread(connection, place, target, topics, batch, max_bytes)

    with ThreadPoolExecutor(1, "runs-es rebuild reader") as reader:
        rows = read((after, feed.LAST_REVISION))
        while rows:
            following = reader.submit(read, feed.place_of(rows[-1]))
            yield rows
            rows = following.result()


def check_same_log(primary: Connection[TupleRow], other: Connection[TupleRow], position: int) -> None:
    """Raises StoreUnavailable when the newest fact of `other` is not also in `primary`: no replica of it."""
    statement = "select thread_id, seq, topic, md5(state) from events_facts where position = %s"
    here, there = (each.execute(statement, (position,)).fetchone() for each in (primary, other))
    if here != there:
        raise StoreUnavailable(f"the source is no replica of this log: it has another fact at position {position}")
