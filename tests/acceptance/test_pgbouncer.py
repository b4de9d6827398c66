"""Streams and kills through Debian's PgBouncer in session mode; its transaction mode is refused. `make pooler`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import psycopg
import pytest

from runs_es.database import DatabaseUnavailable, open_database
from runs_es.settings import Settings
from tests.acceptance import test_faults_database as faults
from tests.acceptance import test_kill, test_rejoin
from tests.acceptance.oracle import Ledger
from tests.acceptance.pooler import pgbouncer
from tests.acceptance.server import Server, read_stream

pytestmark = [pytest.mark.pooler, pytest.mark.timeout(300)]


@pytest.fixture
def pooled_url(database_url: str, folder: Path) -> Iterator[str]:
    """The test's database through a PgBouncer in session mode."""
    with pgbouncer(database_url, folder, "session") as url:
        yield url


def test_transaction_mode_is_refused_in_one_line(database_url: str, folder: Path) -> None:
    with (
        pgbouncer(database_url, folder, "transaction") as url,
        pytest.raises(DatabaseUnavailable, match="pool_mode = session"),
    ):
        open_database(Settings(database_url=url))


def test_transaction_mode_that_takes_sessions_in_turn_is_refused_too(database_url: str, folder: Path) -> None:
    with pgbouncer(database_url, folder, "transaction", "server_round_robin = 1\n") as url:
        with ExitStack() as stack:  # two sessions of the server, then idle
            for _ in range(2):
                connection = stack.enter_context(psycopg.connect(url))
                connection.execute("select 1")
        for _ in range(4):
            with pytest.raises(DatabaseUnavailable, match="pool_mode = session"):
                open_database(Settings(database_url=url))


def test_every_id_of_a_run_rejoins_exactly(pooled_url: str) -> None:
    with Server(pooled_url) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        path = f"/threads/{test_rejoin.thread(client)}/runs/stream"
        live = read_stream(client, "POST", path, json=test_rejoin.run_body(tokens=200))
        assert live.events[-1][1].startswith(b"event: end\r\n")
        assert test_rejoin.check_every_id(client, live) == len(live.events)


async def test_a_killed_server_loses_nothing_that_a_client_had_seen(pooled_url: str, ledger: Ledger) -> None:
    with Server(pooled_url, env=test_kill.QUICK) as server:
        for seed in range(3):
            await test_kill.one_kill(server, ledger.tally("kill -9 of the server behind PgBouncer", seed))


async def test_ended_sessions_and_killed_workers_cost_no_event(
    database_url: str, pooled_url: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in faults.QUICK.items():
        monkeypatch.setenv(name, value)
    with ExitStack() as stack:
        server = stack.enter_context(Server(pooled_url, env=faults.QUICK, options=["--no-worker"]))
        workers = faults.Workers(pooled_url, stack)
        await faults.lose_connections(database_url, server, ledger, 1, 2, [])
        await faults.kill_workers(server, workers, ledger, 2, 2)
