"""What the tables hold, what a fold of the log says they must hold, and what the domain says of both."""

from __future__ import annotations

from typing import Any

from runs_es.domain import Recorded, Thread
from runs_es.log.event_log import EventLog
from runs_projections import PROJECTIONS, fold, store, tracking
from runs_projections.past import newest_versions
from runs_projections.projection import AnyProjection, Key
from tests.projections.histories import Teller

Rows = dict[str, dict[Key, Any]]


def stored(log: EventLog, projections: tuple[AnyProjection, ...] = PROJECTIONS) -> Rows:
    """All rows of all tables."""
    with tracking.connect(log.url, log.schema, "test") as connection:
        return {
            projection.name: {projection.table.key_of(row): row for row in store.scan(connection, projection.table)}
            for projection in projections
        }


def all_facts(log: EventLog) -> list[Recorded]:
    return log.reader.facts_after(0, 1_000_000)


def folded(log: EventLog) -> Rows:
    """The same, in memory, from the log."""
    recordeds = all_facts(log)
    return {projection.name: fold(projection, recordeds) for projection in PROJECTIONS}


def positions(log: EventLog) -> dict[str, int]:
    with tracking.connect(log.url, log.schema, "test") as connection:
        return tracking.positions(connection, PROJECTIONS)


def assert_tells_the_story(rows: Rows, tellers: list[Teller]) -> None:
    """The rows are what the domain's own folds say, which share no code with `evolve`."""
    for teller in tellers:
        thread_id = teller.thread.thread_id
        runs = {key[1]: row for key, row in rows["runs"].items() if key[0] == thread_id}
        assert sorted(runs) == sorted(teller.runs)
        for run_id, run in teller.runs.items():
            assert runs[run_id].status == run.status.value
            assert runs[run_id].attempt == run.attempt
            assert runs[run_id].snapshot().kwargs == run.kwargs
            assert list(runs[run_id].snapshot().kwargs) == list(run.kwargs)
            assert runs[run_id].snapshot().interrupts == run.interrupts
            assert (runs[run_id].error, runs[run_id].error_type) == (run.error, run.error_type)
            assert (runs[run_id].created_at, runs[run_id].updated_at) == (run.created_at, run.updated_at)
        newest = {message_id: kind for message_id, _, kind in teller.said}
        listed = newest_versions(row for row in rows["messages"].values() if row.thread_id == thread_id)
        assert {row.message_id: row.event_type for row in listed} == {
            message_id: kind for message_id, kind in newest.items() if kind is not None
        }
        assert_tells_of_thread(rows["threads"].get((thread_id,)), teller.thread)


def assert_tells_of_thread(row: Any, thread: Thread) -> None:
    assert (row is not None) == thread.exists
    if row is not None:
        assert row.status == thread.status.value
        assert row.snapshot().metadata == thread.metadata
        assert list(row.snapshot().metadata) == list(thread.metadata)
        assert [run_id for run_id, _ in row.active] == list(thread.active)
        assert row.user_id == thread.user_id
        assert row.created_at == thread.created_at
