"""Runs across threads, page by page from the newest; a page begins behind the last run of the one before.

A run's place in this order never changes, so whoever turns pages while runs are created and end meets each run that
was there at the beginning exactly once, and none that came later.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Any

import orjson

from runs_es.domain.values import checked_time
from runs_es.service.commands import FindRunsQuery
from runs_es.service.views import RunSnapshot
from runs_projections.stored_text import encoded, searchable, storable

_NEWEST_FIRST = "moment(t.created_at) desc, t.run_id desc, t.thread_id desc"


def cursor_of(run: RunSnapshot) -> str:
    """The cursor of the page that follows this run."""
    place = orjson.dumps([run.created_at, run.run_id, run.thread_id])
    return urlsafe_b64encode(place).decode().rstrip("=")


def _place(cursor: str) -> tuple[str, str, str]:
    try:
        created_at, run_id, thread_id = orjson.loads(urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        return checked_time("created_at", created_at), storable(run_id), storable(thread_id)
    except (ValueError, TypeError):
        raise ValueError("after is no cursor: take it from the X-Pagination-Next of the page before") from None


def runs_source(query: FindRunsQuery) -> tuple[str, str, dict[str, Any]]:
    """Which runs, in which order, and the parameters of that. Raises ValueError for a time or cursor that is none."""
    conditions: list[str] = []
    parameters: dict[str, Any] = {}
    for name in ("thread_id", "assistant_id", "status"):
        if (value := getattr(query, name)) is not None:
            conditions.append(f"t.{name} = %({name})s")
            parameters[name] = storable(value)
    _of_users(query, conditions, parameters)
    if query.metadata:
        conditions.append("searchable(t.metadata) @> %(metadata)s::jsonb")
        parameters["metadata"] = searchable(encoded(query.metadata))
    for name, sign in (("created_after", ">"), ("created_before", "<")):
        if (time := getattr(query, name)) is not None:
            conditions.append(f"moment(t.created_at) {sign} %({name})s::timestamptz")
            parameters[name] = checked_time(name, time)
    if query.after is not None:
        at, run_id, thread_id = _place(query.after)
        # Said of the time alone too: that is what the index knows.
        conditions.append("moment(t.created_at) <= %(at)s::timestamptz")
        conditions.append("(moment(t.created_at), t.run_id, t.thread_id) < (%(at)s::timestamptz, %(run)s, %(thread)s)")
        parameters |= {"at": at, "run": run_id, "thread": thread_id}
    order = _NEWEST_FIRST
    if query.thread_id is not None:
        # Sorted after the thread's runs are found: in the index by time an old thread's lie behind everybody else's.
        order = order.replace("moment(t.created_at)", "moment(t.created_at) + interval '0'")
    return f"where {' and '.join(conditions)}" if conditions else "", order, parameters


def _of_users(query: FindRunsQuery, conditions: list[str], parameters: dict[str, Any]) -> None:
    """The index holds the beginning of a user's id."""
    same = "left(t.user_id, 64) = left(%({0})s, 64) and t.user_id = %({0})s"
    if query.owner is not None:
        conditions.append(same.format("owner"))
        parameters["owner"] = storable(query.owner)
    if query.user_id is not None and query.user_id != query.owner:
        conditions.append(f"(left(t.user_id, 64) is null or ({same.format('user')}))")
        parameters["user"] = storable(query.user_id)
