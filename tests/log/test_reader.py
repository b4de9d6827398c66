"""Reads cost what they return, however much there is besides."""

from __future__ import annotations

from contextlib import closing

import psycopg
import pytest

from runs_es.domain import StoreUnavailable
from runs_es.log.append import Append, PageItem
from runs_es.log.event_log import EventLog
from runs_es.log.pages import frame
from runs_es.log.reader import LogReader
from tests.conftest import SCHEMA
from tests.log.recording import Recording

ROWS = 1500
READ = "select coalesce(sum(idx_tup_read), 0) from pg_stat_all_indexes where relname = 'events_p1'"


def test_a_read_from_a_long_thread_fetches_what_it_returns_and_no_more(database_url: str) -> None:
    with EventLog(database_url, pool_size=1) as log:
        recording = Recording(log)
        head = log.reader.head(recording.thread_id)
        assert head is not None
        for number in range(ROWS):
            page = PageItem(recording.run.run_id, [frame("custom", b"%d" % number)])
            last = log.writer.submit(Append(recording.thread_id, [page], fence=head.fence, frames=number))
        last.result(30)
        before = fetched(log, database_url)
        # Nobody has analyzed the tables: the planner takes the thread for a small one.
        assert len(log.reader.rows_after(recording.thread_id, head.seq, 10)) == 10
        assert len(log.reader.rows_before(recording.thread_id, head.seq + ROWS, 10)) == 10
        assert 20 <= fetched(log, database_url) - before <= 30


def fetched(log: EventLog, url: str) -> int:
    """Rows that were ever fetched from the pages by way of an index."""
    with log.reader.connection() as connection:
        connection.execute("select pg_stat_force_next_flush()")
    with psycopg.connect(url) as connection:
        row = connection.execute(READ).fetchone()
    assert row is not None
    return int(row[0])


def test_who_finds_all_connections_busy_waits_for_one_once(database_url: str) -> None:
    with EventLog(database_url) as log, closing(LogReader(database_url, SCHEMA, pool_size=1, timeout=0.2)) as reader:
        recording = Recording(log)
        assert reader.lifecycle(recording.thread_id)[0] is not None
        with reader.connection():
            before = reader._pool.get_stats().get("requests_errors", 0)
            with pytest.raises(StoreUnavailable, match="busy"):
                reader.lifecycle(recording.thread_id)
            assert reader._pool.get_stats()["requests_errors"] - before == 1
