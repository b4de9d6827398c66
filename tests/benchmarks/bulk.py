"""A large log at once: facts copied straight into the tables, as the writer would have left them.

Not a way to write a log: nothing is checked, nobody is told. For measurements that need a million facts.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import psycopg

from runs_es.log import codec
from tests.projections.measure import story

FACTS_A_THREAD = len(story("t"))
_AT_ONCE = 50  # threads whose facts come in turn, as those of threads that are busy at the same time do
_PLACE = "0000-the-thread-0000"


def thread_name(number: int) -> str:
    """The id of a thread: a UUID, and before any that the server makes."""
    return f"00000000-0000-4000-8000-{number:012d}"


LAST = thread_name(999_999_999_999)


def fill(url: str, schema: str, facts: int) -> int:
    """Add threads with about `facts` facts in all to an empty log; returns how many facts that were."""
    threads = facts // FACTS_A_THREAD
    with psycopg.connect(url) as connection:
        connection.execute(f"set search_path to {schema}")
        with connection.cursor().copy(
            "copy events_facts (thread_id, seq, segment, n, run_id, topic, state, revision, position, recorded_at)"
            " from stdin"
        ) as copying:
            for row in _rows(threads):
                copying.write_row(row)
        connection.execute(
            "insert into heads (thread_id, head, revision, fence) select thread_id, max(seq), max(revision), 1000"
            " from events_facts group by 1"
        )
        connection.execute("select setval('event_position', (select max(position) from events_facts))")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"vacuum analyze {schema}.events_facts")
        connection.execute(f"analyze {schema}.heads")
    return threads * FACTS_A_THREAD


def _rows(threads: int) -> Iterator[tuple[object, ...]]:
    template = [(getattr(fact, "run_id", None), fact.topic, codec.encode(fact).decode()) for fact in story(_PLACE)]
    begun = datetime(2026, 1, 1, tzinfo=UTC)
    position = 0
    for first in range(0, threads, _AT_ONCE):
        names = [thread_name(number) for number in range(first, min(first + _AT_ONCE, threads))]
        for revision, (run_id, topic, state) in enumerate(template, 1):
            for name in names:
                position += 1
                yield (
                    name,
                    revision,
                    0,
                    1,
                    None if run_id is None else run_id.replace(_PLACE, name),
                    topic,
                    state.replace(_PLACE, name).encode(),
                    revision,
                    position,
                    begun + timedelta(milliseconds=position),
                )
