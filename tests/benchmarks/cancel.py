"""How long a cancel takes that comes through another process than the one at work, while frames flow: from the request
to the terminal fact in the log, and to the answer of the request that waits for it.
"""

from __future__ import annotations

import time
from typing import Any

import httpx
import psycopg

from tests.acceptance.lost_workers import steps_config
from tests.acceptance.server import Server, streaming
from tests.acceptance.test_processes import rows_after_the_end, worker
from tests.benchmarks.figures import percentile, show
from tests.conftest import new_folder

CANCELS = 120
FRAMES_A_SECOND = 200
BEFORE = 60  # frames of a run before it is cancelled
_RUN: dict[str, Any] = {
    "assistant_id": "agent",
    "input": {"steps": 1, "frames": 100_000, "delay": 0.9 / FRAMES_A_SECOND},
    "stream_mode": ["custom"],
}


def cancelled_run(client: httpx.Client, database_url: str) -> tuple[float, float, float, int]:
    """Milliseconds to the terminal fact and to the answer, frames a second before, and rows behind the end."""
    thread_id = client.post("/threads", json={}).json()["thread_id"]
    with streaming(client, "POST", f"/threads/{thread_id}/runs/stream", json=_RUN) as (received, reading):
        next(reading)
        begun, seen = time.perf_counter(), len(received.events)
        while next(reading) < seen + BEFORE:
            pass
        speed = (len(received.events) - seen) / (time.perf_counter() - begun)
        run_id = received.location.split("/")[4]
        at, asked = time.time(), time.perf_counter()
        answer = httpx.post(f"{client.base_url}/threads/{thread_id}/runs/{run_id}/cancel?wait=true", timeout=30)
        answered = time.perf_counter() - asked
        assert answer.status_code == 200, answer.text
        for _ in reading:
            pass
    with psycopg.connect(database_url) as connection:
        row = connection.execute(
            "select extract(epoch from recorded_at)::float8 from runs_es.events_facts"
            " where thread_id = %s and topic = 'run.cancelled'",
            (thread_id,),
        ).fetchone()
    assert row is not None
    return (row[0] - at) * 1000, answered * 1000, speed, len(rows_after_the_end(database_url, thread_id, run_id))


def measure(database_url: str) -> None:
    """A server without a worker, and a worker, over `database_url`."""
    with new_folder() as folder:
        config = steps_config(folder)
        options = ["--config", str(config)]
        with (
            Server(database_url, config=config, options=["--no-worker"]) as server,
            worker(database_url, options, {}),
            httpx.Client(base_url=server.url, timeout=60) as client,
        ):
            cancelled_run(client, database_url)
            facts, answers, speeds, late = zip(
                *(cancelled_run(client, database_url) for _ in range(CANCELS)), strict=True
            )
    shares = (0.5, 0.9, 0.99)
    show(
        f"cancel through another process, {CANCELS} runs one after the other at {percentile(speeds, 0.5):.0f} frames"
        f" a second, ms; {sum(late)} rows behind the end",
        ["", "p50", "p90", "p99", "max"],
        [
            ["to the terminal fact in the log", *(percentile(facts, share) for share in shares), max(facts)],
            ["to the answer, with wait", *(percentile(answers, share) for share in shares), max(answers)],
        ],
    )
