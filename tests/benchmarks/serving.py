"""What a client feels: time to the first event of a run, and frames a second delivered live, over HTTP on loopback."""

from __future__ import annotations

import time
from typing import Any

import httpx

from tests.acceptance.server import Server
from tests.benchmarks.figures import percentile, show

RUNS = 100
FRAMES = 10_000
HELLO = {"messages": [{"role": "user", "content": "hello"}], "delay": 0}


def timed_run(client: httpx.Client, tokens: int, modes: list[str]) -> tuple[float, float, int]:
    """Seconds to the first event and to the end, and how many events came."""
    thread_id = client.post("/threads", json={}).json()["thread_id"]
    body: dict[str, Any] = {"assistant_id": "agent", "input": {**HELLO, "tokens": tokens}, "stream_mode": modes}
    started = time.perf_counter()
    first = 0.0
    events = 0
    with client.stream("POST", f"/threads/{thread_id}/runs/stream", json=body) as response:
        for chunk in response.iter_raw():
            first = first or time.perf_counter() - started
            events += chunk.count(b"\nid: ")
    return first, time.perf_counter() - started, events


def replayed(client: httpx.Client, path: str) -> tuple[float, int]:
    started = time.perf_counter()
    events = 0
    with client.stream("GET", path, headers={"Last-Event-ID": "-1"}) as response:
        for chunk in response.iter_raw():
            events += chunk.count(b"\nid: ")
    return time.perf_counter() - started, events


def measure(database_url: str) -> None:
    """Measure against a server of its own over `database_url`."""
    with Server(database_url) as server, httpx.Client(base_url=server.url, timeout=120) as client:
        for _ in range(5):
            timed_run(client, 1, ["messages-tuple"])
        firsts = [timed_run(client, 1, ["messages-tuple"])[0] * 1000 for _ in range(RUNS)]
        show(
            f"POST …/runs/stream to the first event, {RUNS} runs one after the other, ms",
            ["", "p50", "p90", "p99", "max"],
            [["demo agent", *(percentile(firsts, share) for share in (0.5, 0.9, 0.99)), max(firsts)]],
        )
        rows = []
        for modes in (["messages-tuple"], ["messages"]):
            speeds = []
            for _ in range(3):
                first, whole, events = timed_run(client, FRAMES, modes)
                speeds.append(events / (whole - first))
            rows.append([", ".join(modes), events, percentile(speeds, 0.5), min(speeds), max(speeds)])
        thread_id = client.post("/threads/search", json={"limit": 1}).json()[0]["thread_id"]
        run_id = client.get(f"/threads/{thread_id}/runs").json()[0]["run_id"]
        path = f"/threads/{thread_id}/runs/{run_id}/stream"
        replays = [events / seconds for seconds, events in (replayed(client, path) for _ in range(5))]
        rows.append(["the last one replayed", events, percentile(replays, 0.5), min(replays), max(replays)])
        show(
            f"a run of {FRAMES:,} frames to one client, frames a second",
            ["stream mode", "events", "median", "min", "max"],
            rows,
        )
