"""Lost sessions, and a database that is not there: what readers get, what is said, what a process that starts does."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest

from runs_api.errors import STATUSES
from runs_es.database import open_database
from runs_es.database.embedded import EmbeddedPostgres
from runs_es.database.outage import Outage, be_patient, is_lost, outage_of, patience
from runs_es.database.reporting import report
from runs_es.database.server_check import patiently
from runs_es.domain import StoreUnavailable
from runs_es.execution.langgraph.graphs import GraphRegistry
from runs_es.execution.langgraph.saver import open_checkpoint_pool
from runs_es.execution.langgraph.state import GraphStateReader
from runs_es.log.reader import LogReader
from runs_es.settings import Settings

SCHEMA = "runs_es"
NOWHERE = "postgresql://127.0.0.1:1/none"


def terminate_all(url: str) -> int:
    """End every other session of this database; how many."""
    with psycopg.connect(url, autocommit=True) as connection:
        ended = connection.execute(
            "select count(pg_terminate_backend(pid)) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'"
        ).fetchone()
    assert ended is not None
    return int(ended[0])


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


@pytest.fixture
def server(folder: Path) -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(folder / "data") as server:
        yield server


async def test_a_state_is_read_at_once_after_all_sessions_were_ended(database_url: str) -> None:
    async with open_checkpoint_pool(database_url, SCHEMA, 4) as pool:
        reader = GraphStateReader(GraphRegistry.demo(), pool)

        async def busy() -> None:
            async with pool.connection() as connection:
                await connection.execute("select pg_sleep(0.2)")

        await asyncio.gather(*(busy() for _ in range(8)))
        for _ in range(4):
            assert await asyncio.to_thread(terminate_all, database_url) >= 2
            assert (await reader.get("t", "agent"))["checkpoint"] is None
            assert await reader.history("t", "agent", 10) == []


async def test_idle_dead_sessions_cost_one_reconnect_and_not_one_each(database_url: str) -> None:
    async with open_checkpoint_pool(database_url, SCHEMA, 6, seconds=30) as pool:

        async def used() -> None:
            async with pool.connection() as connection:
                await connection.execute("select pg_sleep(0.3)")

        await asyncio.gather(*(used() for _ in range(12)))
        ended = await asyncio.to_thread(terminate_all, database_url)
        assert ended >= 4
        await asyncio.sleep(1.1)  # longer than a connection goes unasked
        before = pool.get_stats().get("connections_lost", 0)
        async with pool.connection() as connection:
            await connection.execute("select 1")
        assert pool.get_stats()["connections_lost"] - before == 1


async def test_a_lost_connection_is_not_an_empty_state() -> None:
    async with open_checkpoint_pool(NOWHERE, SCHEMA, 1, seconds=0.2) as pool:
        reader = GraphStateReader(GraphRegistry.demo(), pool)
        with pytest.raises(StoreUnavailable):
            await reader.get("t", "agent")
        with pytest.raises(StoreUnavailable):
            await reader.history("t", "agent", 10)


def test_every_session_has_a_name(settings: Settings) -> None:
    from runs_projections.wiring import open_store

    url = str(settings.database_url)
    wanted = {f"runs-es {name}" for name in ("writer", "reader", "projector", "queue", "checkpoints", "listener")}
    with open_store(settings) as store, psycopg.connect(url, autocommit=True) as connection:
        store.log.writer.probe().result(30)
        deadline, names = time.monotonic() + 30, set[str]()
        while not wanted <= names:
            assert time.monotonic() < deadline, names
            rows = connection.execute(
                "select application_name from pg_stat_activity where datname = current_database()"
                " and pid <> pg_backend_pid() and backend_type = 'client backend'"
            ).fetchall()
            names = {name for (name,) in rows}
            assert all(name.startswith("runs-es ") for name in names), names


def test_an_outage_is_one_line_and_its_end_another(
    server: EmbeddedPostgres, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with psycopg.connect(server.url) as connection:
        connection.execute("create schema runs_es")
    with closing(LogReader(server.url, SCHEMA, timeout=0.3)) as reader:
        with reader.connection() as connection:
            connection.execute("select 1")
        server.detach()
        for _ in range(5):
            with pytest.raises(StoreUnavailable, match="does not answer"), reader.connection():
                raise AssertionError("connected")
        assert said(caplog) == [
            line for line in said(caplog) if line.startswith("the database does not answer, trying")
        ]
        assert len(said(caplog)) == 1
        with EmbeddedPostgres(folder / "data"), reader.connection(30) as connection:
            assert connection.execute("select 1").fetchone() == (1,)
            outage = outage_of(server.url)
            deadline = time.monotonic() + 30
            while outage.reason is not None:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            assert len(said(caplog)) == 2
            assert said(caplog)[1].startswith("the database answers again, after")


def test_a_failure_that_repeats_is_said_once_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("runs_es.test")
    for _ in range(5):
        report(logger, ValueError("broken"), "a round of %s failed", caplog)
        report(logger, psycopg.OperationalError("server closed the connection"), "a round failed")
    (record,) = [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert record.exc_info is not None


def test_what_a_lost_connection_has_caused_counts_as_lost() -> None:
    caused = StoreUnavailable("no state")
    caused.__cause__ = psycopg.errors.AdminShutdown("terminated")
    assert is_lost(caused)
    assert is_lost(psycopg.InterfaceError("the connection is closed"))
    assert not is_lost(StoreUnavailable("the read model is behind"))
    assert not is_lost(psycopg.errors.DiskFull("no space"))
    assert not is_lost(None)


def test_a_decision_is_not_waited_for_while_the_database_is_away() -> None:
    outage, never = Outage(NOWHERE), Future[int]()
    with pytest.raises(StoreUnavailable, match="nothing was written"):
        outage.result(never, 0.1)
    assert never.cancelled()
    sent = Future[int]()
    assert sent.set_running_or_notify_cancel()
    with pytest.raises(StoreUnavailable, match="it is not known whether"):
        outage.result(sent, 0.1)


def test_a_decision_that_is_slow_for_another_reason_is_waited_for(database_url: str) -> None:
    outage, late = Outage(database_url), Future[int]()
    timer = threading.Timer(1.0, lambda: late.set_result(7))
    timer.start()
    assert outage.result(late, 0.05) == 7
    timer.join()


def test_a_worker_waits_longer_than_a_request() -> None:
    seen: list[float] = []

    def worker() -> None:
        be_patient(30.0)
        seen.append(patience(5.0))

    thread = threading.Thread(target=worker)
    thread.start()
    thread.join()
    assert (seen, patience(5.0)) == ([30.0], 5.0)


def test_a_process_that_starts_waits_for_a_database_that_comes_later(
    server: EmbeddedPostgres, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.detach()
    opened: list[Any] = []
    starting = threading.Thread(
        target=lambda: opened.append(open_database(Settings(database_url=server.url, database_start_seconds=60)))
    )
    starting.start()
    deadline = time.monotonic() + 30
    while not any("waiting up to 60 s" in line for line in said(caplog)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with EmbeddedPostgres(folder / "data"):
        starting.join(60)
        assert len(opened) == 1
    assert len([line for line in said(caplog) if "waiting up to" in line]) == 1


def test_a_session_that_is_cut_while_a_process_starts_is_made_again(database_url: str) -> None:
    tries: list[int] = []

    def migrate() -> str:
        tries.append(1)
        with psycopg.connect(database_url, autocommit=True) as connection:
            if len(tries) == 1:
                connection.execute("select pg_terminate_backend(pg_backend_pid())")
            return "done"

    assert patiently(migrate, 30) == "done"
    assert len(tries) == 2


def test_a_wrong_password_is_not_waited_for() -> None:
    def refused() -> None:
        raise psycopg.OperationalError('FATAL: password authentication failed for user "u"')

    with pytest.raises(psycopg.OperationalError):
        patiently(refused, 3600)


async def test_a_pool_is_not_woken_on_a_loop_that_has_ended(database_url: str) -> None:
    pool = open_checkpoint_pool(database_url, SCHEMA, 1)
    pool.wake()  # before it was opened
    async with pool:
        pool.wake()
    pool.wake()
    assert pool.closed


def test_a_session_whose_transaction_stood_still_was_ended() -> None:
    for error in (psycopg.errors.IdleInTransactionSessionTimeout(), psycopg.errors.TransactionTimeout()):
        assert is_lost(error)
        assert STATUSES[next(kind for kind in type(error).__mro__ if kind in STATUSES)] == 503
