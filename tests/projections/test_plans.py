"""Lists go by index however large the tables are: what EXPLAIN says of the statements behind them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psycopg
import pytest

from runs_es.log.event_log import EventLog
from runs_es.service.commands import FindRunsQuery, ListRunMessagesQuery
from runs_projections import store, tracking
from runs_projections.freshness import TrackedTable, TrackingPoll
from runs_projections.message_lists import messages_source
from runs_projections.messages import MESSAGES
from runs_projections.projection import AnyProjection
from runs_projections.readers import _threads_source
from runs_projections.run_lists import runs_source
from runs_projections.runs import RUNS
from runs_projections.threads import THREADS

FILL = """
insert into runs select 't' || n % 40, 'r' || n, 'a', case when n % 100 = 0 then 'error' else 'success' end, 's', 'e',
                        json_build_object('n', n), '{}', (now() + n * interval '1 second')::text, '', null, null, null,
                        'user' || n % 500, 1, '{}', null, null, n, n, n from generate_series(1, 4000) n;
insert into messages select 't' || n % 40, 'r' || n % 400, 'm' || n, n, n,
                            case when n % 97 = 0 then 'human' else 'ai' end, '{}', '{}', ''
                       from generate_series(1, 20000) n;
insert into threads_v2 select 't' || n, 'idle', '{}', 'user' || n % 500, '', '', null, '{}', null, '[]', null, 'idle',
                           n, n, n, now() + n * interval '1 second', now() - n * interval '1 second', null,
                           jsonb_build_object('n', n) from generate_series(1, 5000) n;
"""


@pytest.fixture
def filled(log: EventLog) -> EventLog:
    with psycopg.connect(log.url, autocommit=True) as connection:
        connection.execute("set search_path to runs_es")
        connection.execute(FILL)
        for table in ("runs", "messages", "threads_v2"):
            connection.execute(f"analyze {table}")
    return log


def plan(log: EventLog, projection: AnyProjection, source: str, order: str, parameters: Mapping[str, Any]) -> str:
    table = TrackedTable(log.reader, projection, TrackingPoll(log.reader), 0.0)
    statement = table.listing(source, order, 50, 0)
    named = {**parameters, "projection": projection.name, "version": projection.version}
    with log.reader.connection() as connection:
        lines = connection.execute(f"explain (costs off) {statement}", named, prepare=False).fetchall()
    return "\n".join(line for (line,) in lines)


def test_the_newest_runs_of_a_thread(filled: EventLog) -> None:
    assert "runs_newest" in plan(filled, RUNS, "where t.thread_id = %(thread)s", "t.created_seq desc", {"thread": "t7"})


@pytest.mark.parametrize(
    ("query", "index"),
    [
        (ListRunMessagesQuery(thread_id="t7"), "messages_thread"),
        (ListRunMessagesQuery(thread_id="t7", after_seq=100), "messages_thread"),
        (ListRunMessagesQuery(thread_id="t7", before_seq=15000), "messages_thread"),
        (ListRunMessagesQuery(thread_id="t7", run_id="r7"), "messages_run"),
        (ListRunMessagesQuery(thread_id="t7", visibility="shown"), "messages_thread"),
        (ListRunMessagesQuery(thread_id="t7", visibility="hidden"), "messages_hidden"),
    ],
)
def test_messages_are_found_in_order_and_their_newest_version_by_key(
    filled: EventLog, query: ListRunMessagesQuery, index: str
) -> None:
    source, order, parameters = messages_source(query, "messages")

    found = plan(filled, MESSAGES, source, order, parameters)

    assert f"using {index} on messages t" in found or f"Backward using {index} on messages t" in found
    assert "messages_key on messages n" in found


@pytest.mark.parametrize("types", [("human",), ("human", "ai")])
def test_messages_of_a_type_are_found_by_it(filled: EventLog, types: tuple[str, ...]) -> None:
    for query in (
        ListRunMessagesQuery(thread_id="t7", types=types),
        ListRunMessagesQuery(thread_id="t7", types=types, after_seq=100),
    ):
        source, order, parameters = messages_source(query, "messages")
        found = plan(filled, MESSAGES, source, order, parameters)
        assert "messages_types on messages m" in found
        assert "Seq Scan on messages" not in found


@pytest.mark.parametrize(
    ("asked", "index"),
    [
        ({}, "runs_created"),
        ({"created_before": "2030-01-01T00:00:00Z"}, "runs_created"),
        ({"status": "error"}, "runs_status"),
        ({"user_id": "user7"}, "runs_user"),
        ({"owner": "user7"}, "runs_user"),
        ({"metadata": {"n": 7}}, "runs_metadata"),
        ({"thread_id": "t7"}, "runs_newest"),
    ],
)
def test_runs_across_threads_are_found_by_what_is_asked(filled: EventLog, asked: dict[str, Any], index: str) -> None:
    source, order, parameters = runs_source(FindRunsQuery(**asked))
    found = plan(filled, RUNS, source, order, parameters)
    assert index in found
    assert "Seq Scan on runs" not in found


@pytest.mark.parametrize(
    ("order", "filters", "index"),
    [
        ("t.created_order desc, t.thread_id desc", {}, "threads_v2_created"),
        ("t.updated_order desc, t.thread_id desc", {}, "threads_v2_updated"),
        ("t.created_order desc, t.thread_id desc", {"metadata": {"n": 7}}, "threads_v2_metadata"),
        ("t.created_order desc, t.thread_id desc", {"user_id": "user7"}, "threads_v2_user"),
        ("t.created_order desc, t.thread_id desc", {"ids": ["t7"]}, "threads_v2_pkey"),
        ("t.created_order desc, t.thread_id desc", {"status": "busy"}, "threads_v2_status"),
    ],
)
def test_threads_are_found_by_what_they_are_sorted_or_filtered_by(
    filled: EventLog, order: str, filters: dict[str, Any], index: str
) -> None:
    asked: dict[str, Any] = {"ids": None, "metadata": None, "status": None, "user_id": None, **filters}
    source, parameters = _threads_source(**asked)

    assert index in plan(filled, THREADS, source, order, parameters)


@pytest.mark.parametrize(
    ("projection", "index"), [(RUNS, "runs_pkey"), (MESSAGES, "messages_key"), (THREADS, "threads_v2_pkey")]
)
def test_a_batch_reads_its_rows_by_their_unique_index(filled: EventLog, projection: AnyProjection, index: str) -> None:
    with tracking.connect(filled.url, filled.schema, "test") as connection:
        connection.execute("set plan_cache_mode = force_custom_plan")
        statement = store._select_by_key(projection.table).replace("%b::text[]", "array['a', 'b']")
        lines = connection.execute(f"explain (costs off) {statement}").fetchall()

    assert any(index in line for (line,) in lines)
