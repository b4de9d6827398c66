"""What the readers ask of the log itself: a run or a thread as its facts tell, and whether it is there at all."""

from __future__ import annotations

from runs_es.domain import Run
from runs_es.log.reader import LogReader

# Facts of a thread itself have no run; the index by run finds them without passing over everything else.
_TOMBSTONE = (
    "select coalesce(max(seq), 0) from events_facts"
    " where thread_id = %s and run_id is null and topic in ('thread.deleted', 'thread.erased') and seq <= %s"
)

_GONE = (
    "select min(seq) from events_facts"
    " where thread_id = %s and run_id is null and topic in ('thread.deleted', 'thread.erased') and seq > %s"
)


def tombstone(reader: LogReader, thread_id: str, upto: int = 2**63 - 1) -> int:
    """The seq at which the thread was last deleted or erased, not after `upto`; 0 when it never was.

    What is before it is gone.
    """
    with reader.connection() as connection:
        row = connection.execute(_TOMBSTONE, (thread_id, upto)).fetchone()
    assert row is not None
    return int(row[0])


def gone_at(reader: LogReader, thread_id: str, after: int) -> int | None:
    """The seq at which the thread was first deleted or erased after `after`; None while it was not."""
    with reader.connection() as connection:
        row = connection.execute(_GONE, (thread_id, after)).fetchone()
    return row[0] if row is not None else None


def find_run(reader: LogReader, run_id: str, thread_id: str | None = None) -> Run | None:
    """The run as its facts tell; None when there is none, or it or its thread was deleted since."""
    recordeds = reader.run_facts(run_id, thread_id)
    run = Run.fold(recorded.fact for recorded in recordeds)
    if run is None or run.deleted:
        return None
    created = max(recorded.seq for recorded in recordeds if recorded.fact.topic == "run.created")
    return run if created > tombstone(reader, run.thread_id) else None


def may_see(user_id: str | None, owner: str | None) -> bool:
    """Whether what `owner` owns is there for `user_id`. None asks as everybody; what has no owner is everybody's."""
    return user_id is None or owner is None or owner == user_id
