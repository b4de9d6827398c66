"""A dump during a run, clients that read on, a restore: whoever has a cursor of what is lost is told, and nobody is
silently led into another history.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from runs_es.log import session
from runs_es.log.inspection import inspect_log
from tests.acceptance.backups import Backup, backup_of
from tests.acceptance.server import Received, Server, read_stream, streaming

COMMAND = str(Path(sys.executable).parent / "runs-es")
ENV = {"RUNS_ES_HEARTBEAT_SECONDS": "0.3", "RUNS_ES_LEASE_SECONDS": "1.5", "RUNS_ES_SWEEP_SECONDS": "0.3"}
WIDE = 2**32


@pytest.fixture
def backed_up(postgres_url: str, folder: Path) -> Iterator[tuple[str, Backup]]:
    with backup_of(postgres_url, folder) as both:
        yield both


def slow(tokens: int) -> dict[str, Any]:
    message = {"role": "user", "content": "hello"}
    values = {"messages": [message], "tokens": tokens, "delay": 0.01}
    return {"assistant_id": "agent", "input": values, "stream_mode": ["messages"]}


def cli(url: str, *arguments: str) -> str:
    env = {**os.environ, "RUNS_ES_DATABASE_URL": url}
    done = subprocess.run([COMMAND, *arguments], env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


class Client:
    """Joins a run's stream after a cursor, in a thread of its own, to its end."""

    def __init__(self, url: str, path: str, after: int) -> None:
        self.received: Received | None = None
        self._thread = threading.Thread(target=self._read, args=(url, path, after), daemon=True)
        self._thread.start()

    def _read(self, url: str, path: str, after: int) -> None:
        with httpx.Client(base_url=url, timeout=90) as client:
            self.received = read_stream(client, "GET", path, headers={"Last-Event-ID": str(after)})

    def all(self) -> Received:
        self._thread.join(120)
        assert self.received is not None, "the stream has not come to an end"
        return self.received


def is_gap(received: Received) -> bool:
    return [body.startswith(b"event: gap\r\n") for _, body in received.events] == [True]


def eventually(condition: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline, "it did not become so"
        time.sleep(0.05)
    return answer


def test_after_a_restore_every_cursor_gets_the_rest_or_a_gap(backed_up: tuple[str, Backup]) -> None:
    url, backup = backed_up
    with Server(url, env=ENV) as server:
        with httpx.Client(base_url=server.url, timeout=60) as client:
            thread_id = client.post("/threads", json={}).json()["thread_id"]
            path = f"/threads/{thread_id}/runs"
            with streaming(client, "POST", f"{path}/stream", json=slow(400)) as (seen, reading):
                assert any(number >= 20 for number in reading)
                backup.take()
                dumped_by = len(seen.events)
                assert any(number >= dumped_by + 60 for number in reading)  # clients read on
                run_path = seen.location
            lost_thread = client.post("/threads", json={}).json()["thread_id"]
            lost_run = client.post(f"/threads/{lost_thread}/runs", json=slow(5)).json()["run_id"]
        server.kill()
        backup.restore()
        with psycopg.connect(url) as connection:
            row = connection.execute("select head from runs_es.heads where thread_id = %s", (thread_id,)).fetchone()
        assert row is not None
        head = int(row[0])
        before, beyond = seen.ids[10], seen.ids[-1]
        assert before < head < beyond

        server.start()
        with httpx.Client(base_url=server.url, timeout=60) as client:
            nothing_is_written(client, path)
            waiting = {cursor: Client(server.url, run_path, cursor) for cursor in (before, head)}  # across the raise
            assert is_gap(Client(server.url, run_path, beyond).all())
            assert "raised to epoch " in cli(url, "restored", "--yes")
            eventually(lambda: client.get("/ok?check_db=true").status_code == 200)

            rest = waiting[before].all()
            kept = [(seq, body) for seq, body in seen.events if seq is not None and before < seq <= head]
            assert rest.events[: len(kept)] == kept  # of what both histories have, the same bytes
            assert rest.ids[len(kept)] > head + WIDE  # then the next attempt, above all numbers that are lost
            assert b'"attempt":2' in rest.events[len(kept)][1]
            assert rest.events[-1][1].startswith(b"event: end")
            assert waiting[head].all().events == rest.events[len(kept) :]
            assert is_gap(Client(server.url, run_path, beyond).all())  # for ever
            assert is_gap(Client(server.url, run_path, head + WIDE - 1).all())
            other_lists_say_so(client, path, thread_id, head, beyond)

            assert client.get(f"/threads/{lost_thread}/runs/{lost_run}/stream").status_code == 404
            client.post("/threads", json={"thread_id": lost_thread}).raise_for_status()  # its id, made again
            again = client.post(f"/threads/{lost_thread}/runs", json=slow(5)).json()["run_id"]
            stream = f"/threads/{lost_thread}/runs/{again}/stream"
            assert is_gap(Client(server.url, stream, 3).all())
            assert min(Client(server.url, stream, 0).all().ids) > WIDE
        with session.connect(url, "runs_es", "check") as connection:
            assert inspect_log(connection).findings.kept == []


def nothing_is_written(client: httpx.Client, path: str) -> None:
    for answer in (client.post(path, json=slow(5)), client.get("/ok?check_db=true")):
        assert answer.status_code == 503
        assert "run `runs-es restored`" in answer.json()["detail"]
    assert client.get("/ok").status_code == 200
    assert client.get(path).status_code == 200  # and what is there can be read


def other_lists_say_so(client: httpx.Client, path: str, thread_id: str, head: int, beyond: int) -> None:
    for name in ("events", "messages"):
        lost = client.get(f"/threads/{thread_id}/{name}?after_seq={beyond}")
        assert lost.status_code == 410
        assert "history that was lost" in lost.json()["detail"]
        assert client.get(f"/threads/{thread_id}/{name}?after_seq={head}").status_code == 200
        assert client.get(f"/threads/{thread_id}/{name}?after_seq=0").status_code == 200
    assert client.get(f"/threads/{thread_id}?as_of={beyond}").status_code == 410
    feed = {"Accept": "text/event-stream", "Last-Event-ID": str(beyond)}
    assert is_gap(read_stream(client, "GET", f"/threads/{thread_id}/events", headers=feed))
    (run,) = client.get(path).json()
    assert run["status"] == "success"
    assert uuid.UUID(run["run_id"])
