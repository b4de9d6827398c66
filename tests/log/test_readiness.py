"""What keeps a process from appending and reading, in words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import LiteralString

import psycopg
import pytest
from psycopg import conninfo, sql

from runs_es.database import grants
from runs_es.log.event_log import EventLog
from runs_es.log.readiness import what_is_missing

NOWHERE = "postgresql://127.0.0.1:1/none"
SECONDS = 30.0  # a slow machine is no missing database


def execute(url: str, *statements: LiteralString) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


@pytest.fixture
def role(database_url: str) -> Iterator[str]:
    """The URL of a role that may read all and append nothing."""
    name = f"reader_{conninfo.conninfo_to_dict(database_url)['dbname']}"
    with psycopg.connect(database_url, autocommit=True) as connection:
        for statement in (
            "create role {} login",
            "grant usage on schema runs_es, runs_es_queue to {}",
            "grant select on all tables in schema runs_es, runs_es_queue to {}",
        ):
            connection.execute(sql.SQL(statement).format(sql.Identifier(name)))
        yield conninfo.make_conninfo(database_url, user=name)
        connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where usename = %s", (name,)
        ).fetchall()
        connection.execute(sql.SQL("drop owned by {}").format(sql.Identifier(name)))
        connection.execute(sql.SQL("drop role {}").format(sql.Identifier(name)))


def test_a_log_that_can_be_written_and_read_lacks_nothing(database_url: str) -> None:
    with EventLog(database_url) as log:
        assert what_is_missing(log, SECONDS) == []
        assert what_is_missing(log, SECONDS) == []


def test_a_role_that_may_not_append_is_told_what_right_it_lacks(role: str) -> None:
    with EventLog(role) as log:
        (missing,) = what_is_missing(log, SECONDS)
    for right in ("INSERT on runs_es.heads", "UPDATE on runs_es.heads", "INSERT on runs_es.events"):
        assert right in missing
    assert "USAGE on runs_es.event_position" in missing
    assert "INSERT on runs_es_queue.procrastinate_jobs" in missing
    assert missing.startswith("the role reader_")


def test_a_role_with_what_is_granted_lacks_nothing_and_without_any_of_it_is_told(database_url: str, role: str) -> None:
    """The rights that are asked for are those that `runs-es grants` gives."""
    name = str(conninfo.conninfo_to_dict(role)["user"])
    with psycopg.connect(database_url, autocommit=True) as connection, EventLog(role) as log:
        wanted = grants.grants(connection, "runs_es")
        grants.apply(connection, name, wanted)
        assert what_is_missing(log, SECONDS) == []
        for each in wanted:
            on = (sql.SQL(each.kind), sql.Identifier(*each.name), sql.Identifier(name))
            connection.execute(sql.SQL("revoke all on {} {} from {}").format(*on))
            with psycopg.connect(role) as asked:
                said = grants.lacking(asked, "runs_es")
            connection.execute(each.statement(name))
            assert {f"{right.upper()} on {'.'.join(each.name)}" for right in each.rights} == set(said.split(", "))


def test_a_read_only_database_is_said(database_url: str) -> None:
    name = sql.Identifier(str(conninfo.conninfo_to_dict(database_url)["dbname"]))
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(sql.SQL("alter database {} set default_transaction_read_only = on").format(name))
    with EventLog(database_url) as log:
        assert what_is_missing(log, SECONDS) == ["the database is read-only: nothing can be appended"]


def test_a_writer_that_has_stopped_is_said(database_url: str) -> None:
    with closing(EventLog(database_url)) as log:
        log.writer.close()
        assert what_is_missing(log, SECONDS) == ["the log writer has stopped"]


def test_a_database_that_is_away_is_said_without_waiting_for_it() -> None:
    log = EventLog(NOWHERE, wait_seconds=0.5)
    try:
        assert log.outage.is_away(SECONDS)
        (missing,) = what_is_missing(log, SECONDS)
        assert missing.startswith("the database does not answer: ")
    finally:
        log.writer.close(0)
        log.reader.close()


def test_tables_that_are_gone_are_said(database_url: str) -> None:
    execute(database_url, "drop table runs_es.heads cascade")
    with EventLog(database_url) as log:
        assert any("heads" in each for each in what_is_missing(log, SECONDS))
