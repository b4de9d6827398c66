"""A standby takes over, with and without a loss: the new timeline is noticed, and lost cursors are told so."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import httpx
import psycopg
import pytest
from psycopg import conninfo

from runs_es.database.embedded import EmbeddedPostgres
from tests.acceptance.server import Server, read_stream
from tests.acceptance.test_restore import WIDE, cli, eventually, is_gap

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

RUN = {
    "assistant_id": "agent",
    "input": {"messages": [{"role": "user", "content": "hello"}], "tokens": 5, "delay": 0},
    "stream_mode": ["messages"],
}


def make_standby(primary: Path, primary_url: str, standby: Path) -> None:
    """A copy of a stopped primary's files that follows it from where it stood."""
    standby.mkdir(mode=0o711)
    shutil.copytree(primary / "postgres", standby / "postgres", symlinks=True)
    (standby / "postgres" / "standby.signal").touch()
    parts = conninfo.conninfo_to_dict(primary_url)
    followed = " ".join(f"{name}={parts[name]}" for name in ("host", "port", "user"))
    with open(standby / "postgres" / "postgresql.auto.conf", "a") as conf:
        conf.write(f"primary_conninfo = '{followed}'\n")
    found = (primary / "postgres").stat()
    for folder, _, files in os.walk(standby / "postgres"):
        for path in (folder, *(os.path.join(folder, name) for name in files)):
            os.chown(path, found.st_uid, found.st_gid)


def one(url: str, statement: str) -> object:
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(statement.encode()).fetchone()
    assert row is not None
    return row[0]


def has_followed(primary: str, standby: str) -> None:
    written = one(primary, "select pg_current_wal_lsn()::text")
    eventually(lambda: one(standby, f"select pg_last_wal_replay_lsn() >= '{written}'"))


def run(client: httpx.Client, thread_id: str) -> list[int]:
    return read_stream(client, "POST", f"/threads/{thread_id}/runs/stream", json=RUN).ids


@pytest.mark.parametrize("loses", [False, True])
def test_a_promoted_standby_is_not_written_to_until_an_operator_has_spoken(folder: Path, loses: bool) -> None:
    primary, standby = folder / "primary", folder / "standby"
    with EmbeddedPostgres(primary) as first, Server(first.url) as server, httpx.Client(timeout=60) as client:
        client.base_url = httpx.URL(server.url)
        thread_id = client.post("/threads", json={}).json()["thread_id"]
        run(client, thread_id)
        server.stop()
    with EmbeddedPostgres(primary) as first:
        make_standby(primary, first.url, standby)
    with EmbeddedPostgres(primary) as first, Server(first.url) as server, httpx.Client(timeout=60) as client:
        client.base_url = httpx.URL(server.url)
        with EmbeddedPostgres(standby) as second:
            ids = run(client, thread_id)
            has_followed(first.url, second.url)
            a_standby_says_that_it_is_one(second.url)
        lost = run(client, thread_id) if loses else []
        server.stop()
    with EmbeddedPostgres(standby) as second:
        assert one(second.url, "select pg_promote()") is True
        with Server(second.url) as server, httpx.Client(base_url=server.url, timeout=60) as client:
            refused = client.post("/threads", json={})
            assert refused.status_code == 503
            assert "timeline 2, was 1" in refused.json()["detail"]
            cli(second.url, *(("restored", "--yes") if loses else ("not-lost",)))
            eventually(lambda: client.get("/ready").status_code == 200)
            again = run(client, thread_id)
            assert again[0] > (ids[-1] + WIDE if loses else ids[-1])
            feed = {"Accept": "text/event-stream"}
            for cursor in lost[:1] + lost[-1:]:
                headers = {**feed, "Last-Event-ID": str(cursor)}
                assert is_gap(read_stream(client, "GET", f"/threads/{thread_id}/events", headers=headers))
                assert client.get(f"/threads/{thread_id}/events?after_seq={cursor}").status_code == 410
            assert client.get(f"/threads/{thread_id}/events?after_seq={ids[-1]}").status_code == 200


def a_standby_says_that_it_is_one(url: str) -> None:
    with Server(url, options=["--no-worker"]) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        ready = client.get("/ready")
        assert ready.status_code == 503
        assert any("read-only" in each for each in ready.json()["missing"]), ready.text
        assert client.post("/threads/search", json={}).status_code == 200
        assert client.post("/threads", json={}).status_code == 503
        assert "Traceback" not in server.output
