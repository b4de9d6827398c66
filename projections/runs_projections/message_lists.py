"""Pages of messages from their read model, at a cost that does not grow with the thread.

One entry a message id, the newest version: an older one lies beneath it and is not shown, nor one beneath a removal.
Messages of one type come by an index that has the type in it, hidden ones by one of their own.
"""

from __future__ import annotations

from typing import Any

from runs_es.service.commands import ListRunMessagesQuery
from runs_es.service.views import RunMessageView
from runs_projections.freshness import Listed, TrackedTable
from runs_projections.messages import MessageRow
from runs_projections.stored_text import storable


def list_messages(table: TrackedTable[MessageRow], query: ListRunMessagesQuery, needed: int) -> Listed[RunMessageView]:
    """The page that `query` asks for; `needed` is the position that makes it current."""
    source, order, parameters = messages_source(query, table.projection.table.name)
    rows = table.listed(needed, source, order, query.limit, 0, parameters)
    views = [row.view() for row in rows]
    ascending = query.after_seq is not None
    return Listed(views if ascending else views[::-1], current=rows.current, position=rows.position)


def messages_source(query: ListRunMessagesQuery, table: str) -> tuple[str, str, dict[str, Any]]:
    """What to list, in which order, and the parameters of that."""
    order = "asc" if query.after_seq is not None else "desc"
    parameters = {
        "thread": storable(query.thread_id),
        "run": storable(query.run_id) if query.run_id is not None else None,
        "after": query.after_seq,
        "before": query.before_seq,
        "types": [storable(kind) for kind in query.types] if query.types is not None else None,
    }
    if query.types is None:
        return f"where {_conditions(query, table, 't')}", f"t.seq {order}", parameters
    # Type by type, each from the end that the page begins at: then no type's rarity makes the whole thread be read.
    source = (
        f"where t.thread_id = %(thread)s and t.seq in (select m.seq from unnest(%(types)s::text[]) k(kind)"
        f" cross join lateral (select m.seq from {table} m where m.event_type = k.kind"
        f" and {_conditions(query, table, 'm')} order by m.seq {order} limit {max(query.limit, 0):d}) m)"
    )
    return source, f"t.seq {order}", parameters


def _conditions(query: ListRunMessagesQuery, table: str, alias: str) -> str:
    """Said of the newest version as a comparison, made row by row until the page is full: of an anti-join the planner
    may make a hash of the whole thread. `>=` and not `=`, of which it would expect so few rows that it sorts them all.
    """
    conditions = [
        f"{alias}.thread_id = %(thread)s",
        f"not {alias}.removed",
        f"{alias}.seq >= (select max(n.seq) from {table} n"
        f" where n.thread_id = {alias}.thread_id and n.message_id = {alias}.message_id)",
    ]
    if query.visibility != "all":
        conditions.append(f"{'' if query.visibility == 'hidden' else 'not '}{alias}.hidden")
    if query.run_id is not None:
        conditions.append(f"{alias}.run_id = %(run)s")
    if query.after_seq is not None:
        conditions.append(f"{alias}.seq > %(after)s")
    if query.before_seq is not None:
        conditions.append(f"{alias}.seq < %(before)s")
    return " and ".join(conditions)
