"""Reading crons: one with all that was written before, lists that wait for their read model, and those that are due."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any

from psycopg import Connection
from psycopg.rows import TupleRow

from runs_es.domain import StoreUnavailable, cron_thread
from runs_es.log.event_log import EventLog
from runs_es.service.cron_scheduler import Due
from runs_es.service.crons import CronSnapshot
from runs_projections import store
from runs_projections.crons import CRONS
from runs_projections.freshness import Counted, Listed, TrackedTable, TrackingPoll, Waiter
from runs_projections.stored_text import encoded, searchable, storable

_WAIT = 2.0
_OF_THREAD = 10_000
_SORTS = {
    "cron_id": "t.cron_id {0}",
    "assistant_id": "t.assistant_id {0}, t.cron_id {0}",
    "thread_id": "t.run_thread_id {0} nulls last, t.cron_id {0}",
    "created_at": "t.created_order {0}, t.cron_id {0}",
    "updated_at": "t.updated_order {0}, t.cron_id {0}",
    "next_run_date": "t.next_order {0} nulls last, t.cron_id {0}",
    "end_time": "t.end_order {0} nulls last, t.cron_id {0}",
}


class ProjectedCrons:
    """Crons from their read model. A `user_id` of None asks as everybody; what has no user is everybody's."""

    def __init__(self, log: EventLog, waiter: Waiter | None = None, *, wait: float = _WAIT) -> None:
        self._reader = log.reader
        self._table = TrackedTable(log.reader, CRONS, waiter or TrackingPoll(log.reader, [CRONS]), wait)

    def current(self, cron_id: str) -> CronSnapshot | None:
        """The cron with all that was written before; None when there is none. Raises StoreUnavailable."""
        thread_id = cron_thread(cron_id)
        needed = self._reader.last_position(thread_id)
        rows = self._table.listed(needed, "where t.thread_id = %(thread)s", "t.cron_id", 1, 0, {"thread": thread_id})
        if not rows.current:
            raise StoreUnavailable("the list of crons lags behind the log; try again")
        return rows[0].snapshot() if rows else None

    def owned(self, user_id: str | None) -> int:
        """How many crons a user has; None: all that there are."""
        parameters = {"user": _stored(user_id)}
        same = "where left(t.user_id, 64) = left(%(user)s, 64) and t.user_id = %(user)s" if user_id is not None else ""
        return self._table.counted(self._reader.last_position(), same, parameters)

    def of_thread(self, thread_id: str) -> list[str]:
        """Ids of crons whose runs are on this thread, as far as the read model knows."""
        source = "where t.run_thread_id = %(thread)s"
        rows = self._table.listed(0, source, "t.cron_id", _OF_THREAD, 0, {"thread": storable(thread_id)})
        return [row.cron_id for row in rows]

    def search(
        self,
        *,
        limit: int,
        offset: int = 0,
        sort_by: str = "created_at",
        sort_order: str = "desc",
        **filters: Any,
    ) -> Listed[CronSnapshot]:
        """Crons that match, as `count`. Raises ValueError for another sort."""
        if sort_by not in _SORTS or sort_order not in ("asc", "desc"):
            raise ValueError(f"crons are sorted by {', '.join(_SORTS)}, asc or desc: not by {sort_by} {sort_order}")
        source, parameters = _source(**filters)
        order = _SORTS[sort_by].format(sort_order)
        rows = self._table.listed(self._reader.last_position(), source, order, limit, offset, parameters)
        return Listed((row.snapshot() for row in rows), current=rows.current, position=rows.position)

    def count(self, **filters: Any) -> Counted:
        """How many there are of an assistant, on a thread, enabled or not, with these metadata."""
        return self._table.counted(self._reader.last_position(), *_source(**filters))

    def due(self, connection: Connection[TupleRow], late: float, limit: int, without: Collection[str]) -> Due:
        """Crons whose tick was `late` seconds ago or earlier, the latest last, by the database's clock.

        Not waited for: what the read model does not know yet comes a moment later, and `Crons.fire` looks twice.
        """
        table = CRONS.table
        row = connection.execute(
            "select clock_timestamp(), (select min(next_order) from crons where next_order > clock_timestamp())"
        ).fetchone()
        assert row is not None
        moment: datetime = row[0]
        rows = connection.execute(
            f"select {store.select_list(table, 't')} from {table.name} t"
            " where t.next_order <= %s - %s * interval '1 second' and t.cron_id <> all(%s)"
            " order by t.next_order limit %s",
            (moment, late, list(without), limit),
            binary=True,
        ).fetchall()
        return Due(moment, [store.row_of(table, values).snapshot() for values in rows], row[1])


def _source(
    *,
    assistant_id: str | None = None,
    thread_id: str | None = None,
    enabled: bool | None = None,
    metadata: Mapping[str, Any] | None = None,
    user_id: str | None = None,
) -> tuple[str, dict[str, Any]]:
    conditions: list[str] = []
    parameters: dict[str, Any] = {}
    for column, value in (("assistant_id", assistant_id), ("run_thread_id", thread_id)):
        if value is not None:
            conditions.append(f"t.{column} = %({column})s")
            parameters[column] = storable(value)
    if enabled is not None:
        conditions.append("t.enabled = %(enabled)s")
        parameters["enabled"] = enabled
    if metadata:
        conditions.append("t.searchable @> %(metadata)s::jsonb")
        parameters["metadata"] = searchable(encoded(metadata))
    if user_id is not None:
        # The index holds the beginning of the id.
        conditions.append(
            "(left(t.user_id, 64) is null or (left(t.user_id, 64) = left(%(user)s, 64) and t.user_id = %(user)s))"
        )
        parameters["user"] = storable(user_id)
    return f"where {' and '.join(conditions)}" if conditions else "", parameters


def _stored(text: str | None) -> str | None:
    return None if text is None else storable(text)
