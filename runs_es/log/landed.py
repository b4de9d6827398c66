"""Did it land? What is asked of a request that was refused: whether it is in the log already.

Two ways there: its acknowledgement was lost and it was sent again (`in_doubt`), or a command came twice under one
idempotency key. A worker's request that is merely refused is never looked up: that its successor recorded the same
message says nothing about the frames behind it.
"""

from __future__ import annotations

from psycopg import Connection
from psycopg.rows import TupleRow

from runs_es.log.append import Append, Appended, PageItem

# A fact's state holds its time to the microsecond, a page is asked for by the frames it begins at: both are the
# request's own if they are equal.
_BY_KEY = "select seq, position, recorded_at, state = %s from events_facts where thread_id = %s and idem_key = %s"
_BY_STATE = (
    "select seq, position, recorded_at, true from events_facts"
    " where thread_id = %s and run_id is not distinct from %s and topic = %s and state = %s"
)
_BY_FRAMES = (
    "select seq, null::bigint, recorded_at, true from events"
    " where thread_id = %s and segment >= 1 and run_id = %s and first_frame = %s and state = any(%s)"
)
_HEAD = "select head, revision, fence, frames from heads where thread_id = %s"


def landed_before(connection: Connection[TupleRow], request: Append, *, in_doubt: bool) -> Appended | None:
    """The result of the earlier landing, or None. `current` is False when others have written since."""
    offset, row = _trace(connection, request, in_doubt)
    if row is None:
        return None
    seq, position, at, is_ours = row
    if not is_ours and request.expected is None:
        return None
    head = connection.execute(_HEAD, (request.thread_id,)).fetchone()
    assert head is not None
    newest, revision, fence, frames = head
    first_seq = seq - offset
    last_seq = first_seq + size(request) - 1
    return Appended(
        request.thread_id,
        first_seq,
        last_seq,
        revision,
        fence,
        frames,
        position,
        at,
        repeated=not (is_ours and in_doubt),
        current=newest == last_seq,
    )


def size(request: Append) -> int:
    """How many events a request is: a fact counts one, a page its frames."""
    return sum(len(item.bodies) if isinstance(item, PageItem) else 1 for item in request.items)


def _trace(connection: Connection[TupleRow], request: Append, in_doubt: bool) -> tuple[int, TupleRow | None]:
    """A row (seq, position, recorded_at, is it ours) that the request may have left, and how far into it that is."""
    if not in_doubt and request.expected is None:
        return 0, None
    offset = 0
    for item in request.items:
        if isinstance(item, PageItem):
            if in_doubt:
                page = (request.thread_id, item.run_id, request.frames, item.forms)
                return offset + len(item.bodies) - 1, connection.execute(_BY_FRAMES, page).fetchone()
            offset += len(item.bodies)
        elif item.idem_key:
            key = (item.state, request.thread_id, item.idem_key)
            return offset, connection.execute(_BY_KEY, key).fetchone()
        elif in_doubt:
            fact = (request.thread_id, item.run_id, item.topic, item.state)
            return offset, connection.execute(_BY_STATE, fact).fetchone()
        else:
            offset += 1
    return offset, None
