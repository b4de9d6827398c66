"""The database and the workers fail while runs stream: connections terminated, hints lost, processes killed, a clock
ahead. The clients and the oracle are those of oracle.py.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
import pytest

from runs_es.database.embedded import EmbeddedPostgres
from runs_es.database.processes import postmaster_of
from tests.acceptance.oracle import SEED, Client, Ledger, create, ended_well, said
from tests.acceptance.server import Server
from tests.acceptance.test_processes import worker

QUICK = {
    "RUNS_ES_HEARTBEAT_SECONDS": "0.3",
    "RUNS_ES_LEASE_SECONDS": "1.5",
    "RUNS_ES_SWEEP_SECONDS": "0.3",
    "RUNS_ES_MAX_ATTEMPTS": "20",
}
# A stream that no hint reaches lives by the poll: a second, and the listener's own quarter. The rest is a slow machine.
POLL_BOUND = 1.25 + 1.5

DROP_HINTS = """
create sequence public.dropped;
alter function pg_catalog.pg_notify(text, text) rename to pg_notify_kept;
create function pg_catalog.pg_notify(channel text, payload text) returns void language plpgsql as $$
begin
  if channel like '%_hints' then
    perform nextval('public.dropped');
  else
    perform pg_catalog.pg_notify_kept(channel, payload);
  end if;
end $$;
"""
PASS_HINTS = """
drop function pg_catalog.pg_notify(text, text);
alter function pg_catalog.pg_notify_kept(text, text) rename to pg_notify;
drop sequence public.dropped;
"""


class Workers:
    """One `runs-es work` at a time; the next one starts as soon as the last was killed."""

    def __init__(self, database_url: str, stack: ExitStack) -> None:
        self._database_url = database_url
        self._stack = stack
        self._process = stack.enter_context(worker(database_url))

    def kill(self) -> None:
        """kill -9, and another one."""
        self._process.send_signal(signal.SIGKILL)
        self._process = self._stack.enter_context(worker(self._database_url))


@pytest.fixture(scope="module")
def server(module_database_url: str) -> Iterator[Server]:
    """A server that executes nothing: what it streams another process writes."""
    with Server(module_database_url, env=QUICK, options=["--no-worker"]) as server:
        yield server


@pytest.fixture(scope="module")
def workers(module_database_url: str, server: Server) -> Iterator[Workers]:
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        for name, value in QUICK.items():
            patch.setenv(name, value)
        yield Workers(module_database_url, stack)


def terminate(database_url: str, names: Sequence[str] = ()) -> Counter[str]:
    """End the backends of this database with these application names, or all there are."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        rows = connection.execute(
            "with chosen as materialized (select pid, application_name from pg_stat_activity"
            "  where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'"
            "  and (cardinality(%(names)s::text[]) = 0 or application_name = any(%(names)s)))"
            " select application_name from chosen where pg_terminate_backend(pid)",
            {"names": list(names)},
        ).fetchall()
    return Counter(f"{name or 'unnamed'} terminated" for (name,) in rows)


@contextmanager
def hints_dropped(database_url: str) -> Iterator[psycopg.Connection[tuple[int]]]:
    """While this lasts, the database drops every NOTIFY of a hint; the connection can count them."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        for change in (DROP_HINTS, PASS_HINTS):
            connection.execute(change)
            terminate(database_url, ["runs-es notifier"])  # it looks the function up anew
            if change is DROP_HINTS:
                yield connection


def moments(dice: random.Random, count: int, most: int) -> list[int]:
    """At how many events seen something is to happen."""
    return sorted(dice.sample(range(1, most), count))


# --- scenarios ---


async def lose_connections(
    url: str, server: Server, ledger: Ledger, seed: int, rounds: int, names: Sequence[str]
) -> None:
    """Terminate connections of server and worker while joiners follow what the worker writes."""
    what = " and ".join(name.removeprefix("runs-es ") for name in names) or "every connection"
    dice, tally = random.Random(seed), ledger.tally(f"{what} terminated", seed)
    paths = [await create(server.port, said(120, 0.02)) for _ in range(3)]
    clients = [Client(path) for path in paths for _ in range(2)]
    async with asyncio.TaskGroup() as group:
        for client in clients:
            group.create_task(client.follow(server.port))
        for moment in moments(dice, rounds, 110):
            await clients[1].has(moment)
            tally.faults += await asyncio.to_thread(terminate, url, names)
    await tally.check(server.port, *clients)
    await ended_well(server.port, *paths)


async def drop_hints(url: str, server: Server, ledger: Ledger, seed: int, runs: int) -> None:
    """The database drops every hint: the streams of what the worker writes live by the poll alone."""
    tally = ledger.tally("every NOTIFY of a hint dropped", seed)
    with hints_dropped(url) as connection:
        paths = [await create(server.port, said(80, 0.02)) for _ in range(runs)]
        clients = [Client(path) for path in paths]

        async def follow(client: Client) -> float:
            await client.follow(server.port)
            ago = "select extract(epoch from clock_timestamp() - max(recorded_at)) from runs_es.events_facts"
            (late,) = connection.execute(f"{ago} where run_id = %s", (client.path.split("/")[4],)).fetchone() or (0,)
            return float(late)

        late = await asyncio.gather(*(follow(client) for client in clients))
        (dropped,) = connection.execute("select last_value from public.dropped").fetchone() or (0,)
    assert max(late) < POLL_BOUND
    assert all(client.connections == 1 for client in clients)
    tally.faults["dropped"] = dropped
    await tally.check(server.port, *clients)
    await ended_well(server.port, *paths)


async def kill_workers(server: Server, workers: Workers, ledger: Ledger, seed: int, kills: int) -> None:
    """kill -9 of `runs-es work` in the middle of its runs; the next one takes over, in the same streams."""
    dice, tally = random.Random(seed), ledger.tally("kill -9 of a worker", seed)
    paths = [await create(server.port, said(60, 0.02)) for _ in range(3)]
    clients = [Client(path) for path in paths for _ in range(2)]
    async with asyncio.TaskGroup() as group:
        for client in clients:
            group.create_task(client.follow(server.port))
        for _ in range(kills):
            client = dice.choice(clients)
            await client.has(len(client.events) + dice.randint(5, 25))
            workers.kill()
            tally.faults["worker killed"] += 1
    await tally.check(server.port, *clients)
    await ended_well(server.port, *paths)


async def kill_postmaster(server: Server, data: Path, ledger: Ledger, seed: int, kills: int, restart: bool) -> None:
    """kill -9 of the embedded database's first process. It comes back with a restart of the server, or beside it."""
    dice, tally = random.Random(seed), ledger.tally("kill -9 of the postmaster", seed)
    up = asyncio.Event()
    up.set()

    async def follow(client: Client) -> None:
        while not client.ended:
            await up.wait()
            await client.connect(server.port)

    paths = [await create(server.port, said(110, 0.015)) for _ in range(2)]
    clients = [Client(path) for path in paths for _ in range(2)]
    with ExitStack() as stack:
        async with asyncio.TaskGroup() as group:
            for client in clients:
                group.create_task(follow(client))
            for moment in moments(dice, kills, 100):
                await clients[0].has(moment)
                postmaster = postmaster_of(data / "postgres")
                assert postmaster is not None
                up.clear()
                os.kill(postmaster, signal.SIGKILL)
                tally.faults["postmaster killed"] += 1
                if restart:
                    await asyncio.to_thread(server.kill)
                    await asyncio.to_thread(server.start)
                    tally.faults["server killed"] += 1
                else:
                    await asyncio.to_thread(stack.enter_context, EmbeddedPostgres(data))
                up.set()
        await tally.check(server.port, *clients)
        await ended_well(server.port, *paths)


async def set_clock_ahead(database_url: str, server: Server, ledger: Ledger, seed: int, jumps: int) -> None:
    """The database's clock was ahead when the heads were written, and is right again: seq is the order, not time."""
    dice, tally = random.Random(seed), ledger.tally("heads' clock an hour ahead", seed)
    path = await create(server.port, said(100, 0.01))
    clients = [Client(path), Client(path)]
    async with asyncio.TaskGroup() as group:
        group.create_task(clients[0].follow(server.port))
        group.create_task(clients[1].follow(server.port, dice=dice))
        for moment in moments(dice, jumps, 90):
            await clients[0].has(moment)
            with psycopg.connect(database_url, autocommit=True) as connection:
                connection.execute("update runs_es.heads set at = at + interval '1 hour'")
            tally.faults["jump"] += 1
    await tally.check(server.port, *clients)
    with psycopg.connect(database_url) as connection:
        times = connection.execute(
            "select recorded_at from runs_es.events where thread_id = %s order by seq", (path.split("/")[2],)
        ).fetchall()
    assert times == sorted(times)
    await ended_well(server.port, path)


async def with_embedded(folder: Path, ledger: Ledger, seeds: Iterable[int], kills: int, *, restart: bool) -> None:
    server = Server("", env={**QUICK, "RUNS_ES_DATA_DIR": str(folder / "data")})
    server.unset("RUNS_ES_DATABASE_URL")
    with server:
        for seed in seeds:
            await kill_postmaster(server, folder / "data", ledger, seed, kills, restart)
        assert await asyncio.to_thread(server.stop) == 0


async def test_streams_of_another_process_survive_the_loss_of_listener_and_notifier(
    module_database_url: str, server: Server, workers: Workers, ledger: Ledger
) -> None:
    await lose_connections(module_database_url, server, ledger, 1, 4, ["runs-es listener", "runs-es notifier"])


async def test_streams_without_any_hint_are_whole_within_the_bound_of_the_poll(
    module_database_url: str, server: Server, workers: Workers, ledger: Ledger
) -> None:
    await drop_hints(module_database_url, server, ledger, 2, 3)


async def test_heads_with_a_clock_ahead_change_no_order(
    module_database_url: str, server: Server, workers: Workers, ledger: Ledger
) -> None:
    await set_clock_ahead(module_database_url, server, ledger, 4, 3)


async def test_runs_of_killed_workers_end_whole_in_the_same_streams(
    server: Server, workers: Workers, ledger: Ledger
) -> None:
    await kill_workers(server, workers, ledger, 5, 2)


async def test_a_killed_postmaster_loses_nothing_that_a_client_had_seen(folder: Path, ledger: Ledger) -> None:
    await with_embedded(folder, ledger, [6], 1, restart=True)


@pytest.mark.faults
@pytest.mark.timeout(1200)
async def test_all_of_it_at_length(
    module_database_url: str, server: Server, workers: Workers, folder: Path, ledger: Ledger
) -> None:
    url = module_database_url
    for seed in range(SEED, SEED + 3):
        await lose_connections(url, server, ledger, seed, 8, ["runs-es listener", "runs-es notifier"])
        await set_clock_ahead(url, server, ledger, seed, 10)
        await kill_workers(server, workers, ledger, seed, 3)
    await drop_hints(url, server, ledger, SEED + 10, 10)
    await with_embedded(folder, ledger, range(SEED + 20, SEED + 23), 2, restart=True)


async def test_runs_and_streams_survive_the_loss_of_every_connection_at_once(
    module_database_url: str, server: Server, workers: Workers, ledger: Ledger
) -> None:
    await lose_connections(module_database_url, server, ledger, 3, 2, [])


async def test_a_server_recovers_by_itself_when_its_postmaster_comes_back(folder: Path, ledger: Ledger) -> None:
    await with_embedded(folder, ledger, [7], 2, restart=False)
