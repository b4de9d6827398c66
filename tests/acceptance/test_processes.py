"""A server without a worker, and workers of their own: order across processes, cancel across processes, takeover."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from runs_es.domain import TERMINAL_TOPICS
from tests.acceptance.server import Server, read_stream, streaming

QUICK = {"RUNS_ES_HEARTBEAT_SECONDS": "0.3", "RUNS_ES_LEASE_SECONDS": "1.5", "RUNS_ES_SWEEP_SECONDS": "0.3"}
RUNS_ES = str(Path(sys.executable).parent / "runs-es")


@contextmanager
def worker(
    database_url: str, options: Sequence[str] = (), env: Mapping[str, str] = QUICK
) -> Iterator[subprocess.Popen[bytes]]:
    """`runs-es work` in a process of its own; killed at the end if it still lives."""
    env = {**QUICK, **os.environ, **env, "RUNS_ES_DATABASE_URL": database_url}
    command = [RUNS_ES, "work", *options]
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(30)


@pytest.fixture
def server(database_url: str) -> Iterator[Server]:
    with Server(database_url, env=QUICK, options=["--no-worker"]) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def body(tokens: int, delay: float = 0) -> dict[str, Any]:
    given = {"messages": [{"role": "user", "content": "hello"}], "tokens": tokens, "delay": delay}
    return {"assistant_id": "agent", "input": given, "stream_mode": ["messages-tuple"]}


def thread(client: httpx.Client) -> str:
    return str(client.post("/threads", json={}).json()["thread_id"])


def facts(database_url: str, thread_id: str) -> list[tuple[str, str, str | None]]:
    """(topic, run, actor) of the thread's run facts, in order."""
    with psycopg.connect(database_url) as connection:
        return connection.execute(
            "select topic, run_id, actor from runs_es.events_facts where thread_id = %s and topic like 'run.%%'"
            " order by seq",
            (thread_id,),
        ).fetchall()


def rows_after_the_end(database_url: str, thread_id: str, run_id: str) -> list[str]:
    """Topics of what the log has of the run behind its terminal fact."""
    with psycopg.connect(database_url) as connection:
        rows = connection.execute(
            "select topic from runs_es.events e where thread_id = %(t)s and run_id = %(r)s and seq > (select min(seq)"
            "  from runs_es.events_facts where thread_id = %(t)s and run_id = %(r)s and topic = any(%(ends)s))",
            {"t": thread_id, "r": run_id, "ends": list(TERMINAL_TOPICS)},
        ).fetchall()
    return [topic for (topic,) in rows]


def test_runs_of_one_thread_go_in_order_one_at_a_time_over_two_workers(database_url: str, client: httpx.Client) -> None:
    thread_id = thread(client)
    created = [client.post(f"/threads/{thread_id}/runs", json=body(3)).json()["run_id"] for _ in range(30)]
    with worker(database_url), worker(database_url):
        client.get(f"/threads/{thread_id}/runs/{created[-1]}/join")
    started = [run for topic, run, _ in facts(database_url, thread_id) if topic == "run.started"]
    assert started == created
    running = 0
    for topic, _, _ in facts(database_url, thread_id):
        running += {"run.started": 1, "run.completed": -1}.get(topic, 0)
        assert running in (0, 1)


def test_a_cancel_reaches_a_worker_in_another_process_and_a_live_stream_ends(
    database_url: str, client: httpx.Client
) -> None:
    thread_id = thread(client)
    with worker(database_url):
        path = f"/threads/{thread_id}/runs/stream"
        with streaming(client, "POST", path, json=body(5000, 0.005)) as (received, reading):
            while next(reading) < 20:
                pass
            run = received.location.split("/")[4]
            asked = time.monotonic()
            cancelled = httpx.post(f"{client.base_url}/threads/{thread_id}/runs/{run}/cancel?wait=1", timeout=30)
            took = time.monotonic() - asked
            for _ in reading:
                pass
        topics = [topic for topic, _, _ in facts(database_url, thread_id)]
        assert topics[-2:] == ["run.cancel_requested", "run.cancelled"]
        client.post(f"/threads/{thread_id}/runs/wait", json=body(3))  # time enough for what might still come
    assert cancelled.status_code == 200
    assert received.events[-1][1].startswith(b"event: end")
    assert took < 5
    assert not rows_after_the_end(database_url, thread_id, run)


def test_a_run_whose_worker_was_killed_is_ended_by_another_in_the_same_stream(
    database_url: str, client: httpx.Client
) -> None:
    thread_id = thread(client)
    with worker(database_url) as first:
        path = f"/threads/{thread_id}/runs/stream"
        with streaming(client, "POST", path, json=body(150, 0.01)) as (received, reading):
            while next(reading) < 20:
                pass
            first.send_signal(signal.SIGKILL)
            with worker(database_url):
                for _ in reading:
                    pass
    assert sum(b'"attempt":2' in event for _, event in received.events) == 1
    assert received.events[-1][1].startswith(b"event: end")
    again = read_stream(client, "GET", received.location)
    assert again.events == received.events
    lost, taker = [actor or "" for topic, _, actor in facts(database_url, thread_id) if topic == "run.claimed"]
    assert lost != taker
    (swept,) = client.get(f"{received.location.removesuffix('/stream')}/events?types=run.requeued").json()
    assert swept["content"]["cause"] == "worker_lost"
    assert f"worker:{swept['content']['worker_id']}" == lost
    since = swept["content"]["silent_since"]
    assert swept["metadata"]["reason"] == f"worker {swept['content']['worker_id']} lost, silent since {since}"
    assert swept["metadata"]["actor"] == f"sweep:{taker.removeprefix('worker:')}"
    assert datetime.fromisoformat(since) < datetime.fromisoformat(swept["created_at"]) - timedelta(seconds=1.4)


def test_a_worker_told_to_stop_hands_its_run_to_another(database_url: str, client: httpx.Client) -> None:
    thread_id = thread(client)
    with worker(database_url) as first:
        path = f"/threads/{thread_id}/runs/stream"
        with streaming(client, "POST", path, json=body(400, 0.05)) as (received, reading):
            while next(reading) < 5:
                pass
            first.send_signal(signal.SIGTERM)
            assert first.wait(30) == 0
            run = received.location.split("/")[4]
            with worker(database_url):
                while not any(b'"attempt":2' in event for _, event in received.events):
                    next(reading)
                httpx.post(f"{client.base_url}/threads/{thread_id}/runs/{run}/cancel", timeout=30)
                for _ in reading:
                    pass
    assert "run.requeued" in [topic for topic, _, _ in facts(database_url, thread_id)]


def test_a_worker_told_to_stop_gives_its_run_the_grace_to_finish(database_url: str, client: httpx.Client) -> None:
    thread_id = thread(client)
    with worker(database_url) as first:
        path = f"/threads/{thread_id}/runs/stream"
        with streaming(client, "POST", path, json=body(100, 0.01)) as (received, reading):
            while next(reading) < 5:
                pass
            first.send_signal(signal.SIGTERM)
            for _ in reading:
                pass
            assert first.wait(30) == 0
    assert received.events[-1][1].startswith(b"event: end")
    topics = [topic for topic, _, _ in facts(database_url, thread_id)]
    assert topics == ["run.created", "run.claimed", "run.started", "run.completed"]


def test_a_run_handed_over_goes_on_elsewhere_within_seconds_of_the_grace(
    database_url: str, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    thread_id = thread(client)
    monkeypatch.setenv("RUNS_ES_DRAIN_SECONDS", "0.2")
    workers = "select count(*) from runs_es_queue.procrastinate_workers"
    with worker(database_url) as first, worker(database_url) as second, psycopg.connect(database_url) as connection:
        connection.autocommit = True
        while connection.execute(workers).fetchone() != (2,):
            assert first.poll() is None
        path = f"/threads/{thread_id}/runs/stream"
        with streaming(client, "POST", path, json=body(150, 0.01)) as (received, reading):
            while next(reading) < 5:
                pass
            (actor,) = [actor or "" for topic, _, actor in facts(database_url, thread_id) if topic == "run.claimed"]
            (at_work,) = [process for process in (first, second) if f":{process.pid}:" in actor]
            at_work.send_signal(signal.SIGTERM)
            told = time.monotonic()
            while not any(b'"attempt":2' in event for _, event in received.events):
                next(reading)
            assert time.monotonic() - told < 0.2 + 5
            for _ in reading:
                pass
    assert received.events[-1][1].startswith(b"event: end")
    assert [topic for topic, _, _ in facts(database_url, thread_id)].count("run.completed") == 1
