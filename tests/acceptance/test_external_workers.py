"""External workers against real servers: servers that are killed, workers that are killed, frozen and woken."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from langgraph_sdk import get_client

from tests.acceptance.oracle import SEED, Ledger, Tally
from tests.acceptance.server import Received, Server, read_stream, streaming

PAGE = Path(__file__).resolve().parents[2] / "runs_es" / "execution" / "README.md"
QUICK = {
    "RUNS_ES_HEARTBEAT_SECONDS": "0.3",
    "RUNS_ES_LEASE_SECONDS": "1",
    "RUNS_ES_SWEEP_SECONDS": "0.2",
    "RUNS_ES_EXTERNAL_ASSISTANTS": "parrot",
}
OPTIONS = ["--no-worker"]
TEXTS = ['{"n": %d}', '{"n":%d,"é":  "\\u00e9 😀"}', "[%d, 1.0, 1e3]", '"%d"']


@contextmanager
def several(database_url: str, count: int) -> Iterator[list[Server]]:
    """Servers on one database."""
    with ExitStack() as stack:
        yield [stack.enter_context(Server(database_url, env=QUICK, options=OPTIONS)) for _ in range(count)]


class RestlessWorker:
    """Sends each request to any of the servers, now and then to two, until it is answered."""

    def __init__(self, servers: list[Server], dice: random.Random) -> None:
        self._servers = servers
        self._dice = dice
        self.sent: list[str] = []
        self.wrote = asyncio.Event()
        self.repeated = 0

    async def work(self, frames: int) -> None:
        async with httpx.AsyncClient(timeout=30) as client:
            ask = {
                "worker_id": "restless",
                "wait_seconds": 20,
                "lease_seconds": 60,
                "claim_id": self._dice.randbytes(16).hex(),
            }
            claim = await self._told(client, "/workers/claim", ask)
            path = f"/workers/runs/{claim['run_id']}"
            known = {name: claim[name] for name in ("claim_id", "fence", "frames")}
            for number in range(0, frames, 2):
                texts = [self._dice.choice(TEXTS) % each for each in (number, number + 1)]
                events = [{"event": "custom", "json": text} for text in texts]
                message = {"id": f"m{number}", "type": "ai", "content": texts[0]}
                told = await self._told(client, f"{path}/append", {**known, "events": events, "messages": [message]})
                known |= {"fence": told["fence"], "frames": told["frames"]}
                self.sent += texts
                self.wrote.set()
            ended = await self._told(client, f"{path}/finish", {**known, "outcome": "success", "values": {"n": frames}})
            assert ended["status"] == "success"

    async def _told(self, client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> Any:
        times = 2 if self._dice.random() < 0.2 else 1
        self.repeated += times - 1
        answers = [await self._answered(client, path, body) for _ in range(times)]
        assert all(answer.get("frames") == answers[0].get("frames") for answer in answers)
        return answers[0]

    async def _answered(self, client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> Any:
        while True:
            try:
                answer = await client.post(f"{self._dice.choice(self._servers).url}{path}", json=body)
            except httpx.TransportError:
                self.repeated += 1
                await asyncio.sleep(0.02)  # there may be no server at all for a moment
                continue
            if answer.status_code < 500:
                assert answer.status_code == 200, answer.text
                return answer.json()


async def killed_servers(servers: list[Server], tally: Tally, *, kills: int, frames: int) -> None:
    """A worker that talks to both, a client of the SDK at the first, and kills of either while it streams."""
    dice = random.Random(tally.seed)
    worker = RestlessWorker(servers, dice)
    working = asyncio.create_task(worker.work(frames))
    seen: list[tuple[str | None, str, Any]] = []
    async with get_client(url=servers[0].url) as client:
        thread = (await client.threads.create())["thread_id"]

        async def watch() -> None:
            async for part in client.runs.stream(thread, "parrot", input={}, stream_mode=["custom", "values"]):
                seen.append((part.id, part.event, part.data))

        watching = asyncio.create_task(watch())
        for kill in range(1, kills + 1):
            while len(worker.sent) < kill * frames // (kills + 1):
                worker.wrote.clear()
                await asyncio.wait_for(worker.wrote.wait(), 60)
            victim = dice.choice(servers)
            await asyncio.to_thread(victim.kill)
            tally.faults["server killed"] += 1
            await asyncio.to_thread(victim.start)
        await asyncio.wait_for(asyncio.gather(working, watching), 90)
        (run,) = await client.runs.list(thread)
    async with httpx.AsyncClient(base_url=servers[-1].url, timeout=30) as http:
        messages = (await http.get(f"/threads/{thread}/messages?limit=1000")).json()
    whole = await asyncio.to_thread(replay, servers[-1].url, f"/threads/{thread}/runs/{run['run_id']}/stream")
    assert data_of(whole, "custom") == worker.sent
    assert [data for _, event, data in seen if event == "custom"] == [json.loads(text) for text in worker.sent]
    assert [int(seq) for seq, _, _ in seen if seq] == whole.ids
    assert [message["content"]["content"] for message in messages] == worker.sent[::2]
    tally.faults["request sent again"] += worker.repeated
    tally.runs += 1
    tally.events += len(seen)


def replay(url: str, path: str) -> Received:
    with httpx.Client(base_url=url, timeout=60) as client:
        return read_stream(client, "GET", path)


def data_of(received: Received, event: str) -> list[str]:
    found = (re.match(rb"event: (.*)\r\ndata: (.*)\r\n", body) for _, body in received.events)
    return [each[2].decode() for each in found if each and each[1].decode() == event]


async def test_a_worker_whose_server_is_killed_is_recorded_once_byte_for_byte(
    database_url: str, ledger: Ledger
) -> None:
    with several(database_url, 1) as servers:
        await killed_servers(servers, ledger.tally("kill -9 under external workers", 1), kills=1, frames=200)


@pytest.mark.faults
@pytest.mark.timeout(900)
async def test_many_kills_of_two_servers_under_external_workers(database_url: str, ledger: Ledger) -> None:
    for seed in range(SEED, SEED + 8):
        with several(database_url, 2) as servers:
            await killed_servers(servers, ledger.tally("kill -9 under external workers", seed), kills=4, frames=1200)


@contextmanager
def page_worker(folder: Path, url: str) -> Iterator[subprocess.Popen[bytes]]:
    """The worker of the page."""
    text = re.search(r"<!-- example: worker.py -->\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert text is not None
    (folder / "worker.py").write_text(text[1])
    env = {"RUNS_ES_URL": url, "PATH": os.environ["PATH"]}
    process = subprocess.Popen([sys.executable, "-S", str(folder / "worker.py")], env=env)
    try:
        yield process
    finally:
        process.kill()
        process.wait(30)


@pytest.mark.parametrize("how", [pytest.param(signal.SIGKILL, marks=pytest.mark.faults), signal.SIGSTOP])
def test_a_lost_workers_run_is_taken_over_and_the_one_that_wakes_up_writes_nothing(
    database_url: str, tmp_path: Path, how: signal.Signals
) -> None:
    words = [f"w{number}" for number in range(400)]
    with (
        Server(database_url, env=QUICK, options=OPTIONS) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
        page_worker(tmp_path, server.url) as first,
    ):
        thread = client.post("/threads", json={}).json()["thread_id"]
        run = {"assistant_id": "parrot", "input": " ".join(words), "stream_mode": ["custom", "values"]}
        with streaming(client, "POST", f"/threads/{thread}/runs/stream", json=run) as (received, reading):
            while next(reading) < 20:
                pass
            first.send_signal(how)
            with page_worker(tmp_path, server.url):
                while sum(b'"attempt":2' in body for _, body in received.events) == 0:
                    next(reading)
                first.send_signal(signal.SIGCONT)
                for _ in reading:
                    pass
    attempts = [number for number, (_, body) in enumerate(received.events) if body.startswith(b"event: metadata")]
    shown = [json.loads(data)["word"] for data in data_of(received, "custom")]
    cut = attempts[1] - 1
    assert 19 <= cut < len(words)
    assert shown == [*words[:cut], *words]
    assert [int(seq) for seq in received.ids] == sorted(set(received.ids))
    assert received.events[-1][1].startswith(b"event: end")
