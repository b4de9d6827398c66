"""Reading a projection of your own: rows of a thread, or all, that say how current they are."""

from __future__ import annotations

from typing import Generic, TypeVar

from runs_es.log.event_log import EventLog
from runs_projections.freshness import Listed, TrackedTable, TrackingPoll, Waiter
from runs_projections.projection import Projection
from runs_projections.stored_text import storable

R = TypeVar("R")

_WAIT = 2.0


class ProjectedRows(Generic[R]):
    """Rows of one projection. Waits up to `wait` seconds until they show what the caller may know of."""

    def __init__(
        self, log: EventLog, projection: Projection[R], waiter: Waiter | None = None, *, wait: float = _WAIT
    ) -> None:
        self._reader, self._key = log.reader, ", ".join(f"t.{name}" for name in projection.table.key)
        self._table = TrackedTable(log.reader, projection, waiter or TrackingPoll(log.reader, [projection]), wait)

    def of_thread(self, thread_id: str, *, limit: int = 1000, offset: int = 0) -> Listed[R]:
        """The rows of a thread, in the order of their key."""
        needed = self._reader.last_position(thread_id)
        parameters = {"thread": storable(thread_id)}
        return self._table.listed(needed, "where t.thread_id = %(thread)s", self._key, limit, offset, parameters)

    def all(self, *, limit: int = 1000, offset: int = 0) -> Listed[R]:
        """The rows of all threads, in the order of their key."""
        return self._table.listed(self._reader.last_position(), "", self._key, limit, offset, {})
