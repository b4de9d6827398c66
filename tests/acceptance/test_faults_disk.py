"""The disk that holds the pages is full: runs wait, their streams stay open, and all goes on by itself once there is
room.

The disk is a small tmpfs, mounted as a tablespace. Where mounting is not allowed, a trigger raises PostgreSQL's error.
"""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psycopg
import pytest

from runs_es.database.embedded import EmbeddedPostgres
from runs_es.database.migrate import migrate
from tests.acceptance.oracle import SEED, Client, Ledger, create, ended_well, said
from tests.acceptance.server import Server
from tests.conftest import SCHEMA

DISK_BYTES = 32 * 1024 * 1024
ENV = {
    "RUNS_ES_STREAM_HEARTBEAT_SECONDS": "0.2",
    "RUNS_ES_PUBLISH_BUFFER_BYTES": "4096",
    "RUNS_ES_DRAIN_SECONDS": "0.5",
    "RUNS_ES_CANCEL_GRACE_SECONDS": "1",
}
_REFUSE = """
create function runs_es.no_room() returns trigger language plpgsql as $$
begin
  raise exception 'could not extend file: No space left on device' using errcode = 'disk_full';
end $$;
create trigger no_room before insert on runs_es.events_p1 for each row execute function runs_es.no_room();
alter table runs_es.events_p1 disable trigger no_room;
"""


class Disk:
    """Where the pages are. `fill` leaves it without room, `free` gives all of it back."""

    def __init__(self, folder: Path | None, url: str) -> None:
        self._folder = folder
        self._url = url

    def fill(self) -> None:
        if self._folder is None:
            self._execute("alter table runs_es.events_p1 enable always trigger no_room")
            return
        with (self._folder / "filler").open("ab", buffering=0) as filler, suppress(OSError):
            while True:
                filler.write(bytes(4096))

    def free(self) -> None:
        if self._folder is None:
            self._execute("alter table runs_es.events_p1 disable trigger no_room")
        else:
            (self._folder / "filler").unlink()

    def _execute(self, statement: str) -> None:
        with psycopg.connect(self._url, autocommit=True) as connection:
            connection.execute(statement)


@contextmanager
def small_disk(data: Path, folder: Path, url: str) -> Iterator[Disk]:
    """The pages of `url` on a disk of their own."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", str(folder)]
    is_mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0
    try:
        with psycopg.connect(url, autocommit=True) as connection:
            if is_mounted:
                owner = (data / "postgres").stat()
                space = folder / "space"
                space.mkdir()
                os.chown(space, owner.st_uid, owner.st_gid)
                connection.execute(f"create tablespace small location '{space}'")
                connection.execute("alter table runs_es.events_p1 set tablespace small")
                connection.execute("alter index runs_es.events_p1_pkey set tablespace small")
            else:
                connection.execute(_REFUSE)
        yield Disk(folder if is_mounted else None, url)
    finally:
        if is_mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


async def fill_again_and_again(server: Server, disk: Disk, ledger: Ledger, seed: int, times: int) -> None:
    """The disk fills up under runs and becomes free again, `times` times; two joiners each see every event once."""
    dice, tally = random.Random(seed), ledger.tally("disk of the pages full", seed)
    for _ in range(times):
        paths = [await create(server.port, said(200, 0.005)) for _ in range(3)]
        clients = [Client(path) for path in paths for _ in range(2)]
        async with asyncio.TaskGroup() as group:
            following = [group.create_task(client.follow(server.port)) for client in clients]
            await clients[0].has(dice.randint(1, 100))
            disk.fill()
            tally.faults["disk full"] += 1
            waiting = await trouble(server)
            assert "No space left on device" in waiting
            assert not all(task.done() for task in following)
            disk.free()
        assert {client.connections for client in clients} == {1}, "a stream was cut"
        await tally.check(server.port, *clients)
        await ended_well(server.port, *paths)
        assert await trouble(server, wanted=False) == ""


async def trouble(server: Server, *, wanted: bool = True) -> str:
    """What `/ok?check_db=true` says is wrong, once it says that something is, or that nothing is any more."""
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
        while True:
            answer = await client.get("/ok?check_db=true")
            if (answer.status_code == 503) is wanted:
                return str(answer.json().get("detail", ""))


@pytest.fixture
def disk(folder: Path) -> Iterator[Disk]:
    with EmbeddedPostgres(folder / "data") as database:
        migrate(database.url, SCHEMA)
        with small_disk(folder / "data", folder / "small", database.url) as disk:
            yield disk


@pytest.fixture
def server(disk: Disk, folder: Path) -> Iterator[Server]:
    with EmbeddedPostgres(folder / "data") as database, Server(database.url, env=ENV) as server:
        yield server


async def test_runs_wait_while_the_disk_is_full_and_go_on_by_themselves(
    server: Server, disk: Disk, ledger: Ledger
) -> None:
    await fill_again_and_again(server, disk, ledger, 1, 1)
    assert "has no room" in server.output
    assert "has room again" in server.output


async def test_a_server_stops_in_time_though_the_disk_is_full(server: Server, disk: Disk, ledger: Ledger) -> None:
    path = await create(server.port, said(3000, 0.005))
    client = Client(path)
    following = asyncio.create_task(client.follow(server.port))
    await client.has(20)
    disk.fill()
    await trouble(server)
    following.cancel()
    async with asyncio.timeout(100):
        assert await asyncio.to_thread(server.stop) == 0
    disk.free()
    await asyncio.to_thread(server.start)
    await cancel(server, path)
    tally = ledger.tally("SIGTERM while the disk is full", 1)
    tally.faults.update({"disk full": 1, "server stopped": 1})
    await client.follow(server.port)
    await tally.check(server.port, client)


async def cancel(server: Server, path: str) -> None:
    async with httpx.AsyncClient(base_url=server.url, timeout=30) as http:
        assert (await http.post(f"{path.removesuffix('/stream')}/cancel?wait=true")).status_code < 300


@pytest.mark.faults
@pytest.mark.timeout(300)
async def test_twenty_full_disks(server: Server, disk: Disk, ledger: Ledger) -> None:
    await fill_again_and_again(server, disk, ledger, SEED, 20)
