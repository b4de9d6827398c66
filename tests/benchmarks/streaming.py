"""From publish to the client: how long a frame is on its way over HTTP when 1, 20, 100, 1,000 subscribers watch a run.

The agent stamps each frame with the clock as it publishes it; the subscribers, in a process of their own, compare.
Once with the agent in the server's process, once in another (`runs-es work`), and beside them a Redis stream bridge.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.acceptance.server import Server, free_port
from tests.benchmarks import redis_bridge
from tests.benchmarks.figures import cpu_seconds, percentile, resident_megabytes, show
from tests.benchmarks.limits import redis_server
from tests.benchmarks.plots import bars
from tests.benchmarks.subscribers import subscribe

CONFIG = Path(__file__).parent / "ticking" / "langgraph.json"
SECONDS = 8
# subscribers, frames a second
CASES = [(1, 200), (20, 200), (100, 50), (1000, 20)]
_context: Any = multiprocessing.get_context("forkserver")


class Watched:
    """One contender's figures of one case."""

    def __init__(self, delays: list[float], missing: int, cpu: float, megabytes: float) -> None:
        self.p50, self.p99, self.most = (percentile(delays, share) for share in (0.5, 0.99, 1.0))
        self.delivered = len(delays)
        self.missing = missing
        self.cpu = cpu
        self.megabytes = megabytes


@contextmanager
def watching(port: int, path: str, count: int, frames: int) -> Iterator[Any]:
    """A process of subscribers, all connected."""
    ours, theirs = _context.Pipe()
    process = _context.Process(target=subscribe, args=(theirs, port, path, count, frames))
    process.start()
    assert ours.recv() == "ready"
    yield ours
    process.join()


def ours(server: Server, subscribers: int, rate: int) -> Watched:
    """A run of the ticking agent, watched."""
    frames = rate * SECONDS
    with httpx.Client(base_url=server.url, timeout=60) as client:
        thread_id = client.post("/threads", json={}).json()["thread_id"]
        values = {"frames": frames, "rate": rate, "delay": 1.0 + subscribers / 250}
        body = {"assistant_id": "ticking", "input": values, "stream_mode": ["custom"]}
        run = client.post(f"/threads/{thread_id}/runs", json=body).json()
        path = f"/threads/{thread_id}/runs/{run['run_id']}/stream"
        with watching(server.port, path, subscribers, frames) as pipe:
            before = cpu_seconds(server.pid)
            delays, missing = pipe.recv()
            used, memory = cpu_seconds(server.pid) - before, resident_megabytes(server.pid)
        assert client.get(f"/threads/{thread_id}/runs/{run['run_id']}/join").status_code == 200
    return Watched(delays, missing, used, memory)


def bridged(redis_url: str, port: int, pid: int, subscribers: int, rate: int) -> Watched:
    """The same through a Redis stream."""
    key, frames = f"run-{time.time_ns()}", rate * SECONDS
    ours, theirs = _context.Pipe()
    publisher = _context.Process(target=redis_bridge.publish, args=(theirs, redis_url, key, frames, rate))
    publisher.start()
    assert ours.recv() == "ready"
    with watching(port, f"/streams/{key}", subscribers, frames) as pipe:
        before = cpu_seconds(pid)
        ours.send("go")
        delays, missing = pipe.recv()
        used, memory = cpu_seconds(pid) - before, resident_megabytes(pid)
    publisher.join()
    return Watched(delays, missing, used, memory)


@contextmanager
def worker(database_url: str) -> Iterator[None]:
    """`runs-es work` in a process of its own."""
    command = [str(Path(sys.executable).parent / "runs-es"), "work", "--config", str(CONFIG)]
    process = subprocess.Popen(command, env={**os.environ, "RUNS_ES_DATABASE_URL": database_url})
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def bridge(redis_url: str) -> Iterator[tuple[int, int]]:
    """The Redis bridge's web process: its port and pid."""
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "tests.benchmarks.redis_bridge", str(port), redis_url])
    try:
        with httpx.Client(transport=httpx.HTTPTransport(retries=10)) as client:
            client.get(f"http://127.0.0.1:{port}/ok")
        yield port, process.pid
    finally:
        process.kill()
        process.wait()


def measure(database_url: str) -> None:
    """Print the table and draw the plot."""
    results: list[tuple[str, int, int, Watched]] = []
    with Server(database_url, config=CONFIG) as server:
        results += [("runs-es, agent inside", count, rate, ours(server, count, rate)) for count, rate in CASES]
    with Server(database_url, config=CONFIG, options=["--no-worker"]) as server, worker(database_url):
        results += [("runs-es, agent elsewhere", count, rate, ours(server, count, rate)) for count, rate in CASES]
    with redis_server() as redis_url:
        if redis_url is not None:
            with bridge(redis_url) as (port, pid):
                for count, rate in CASES:
                    results.append(("redis bridge", count, rate, bridged(redis_url, port, pid, count, rate)))
    show(
        f"publish to client over {SECONDS} s: milliseconds on the way; CPU seconds and memory of the web process",
        ["", "subscribers", "frames/s", "delivered", "missing", "p50", "p99", "max", "CPU s", "MiB"],
        [
            [name, count, rate, f"{w.delivered:,}", w.missing, w.p50, w.p99, w.most, w.cpu, w.megabytes]
            for name, count, rate, w in results
        ],
    )
    names = list(dict.fromkeys(name for name, *_ in results))
    bars(
        "streaming",
        "Publish to client, p99 in ms: subscribers at frames a second",
        [f"{count:,} at {rate}" for count, rate in CASES],
        {each: [w.p99 for name, _, _, w in results if name == each] for each in names},
        logarithmic=True,
    )
