"""A client that resumes as any does, and the oracle that compares what it got over all its connections with the log.

A tally counts what a scenario did to clients, servers and databases; the ledger of the session is shown at its end.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import h11
import httpx

from tests.acceptance.server import split_events

MODES = ("values", "messages-tuple", "custom")
FIGURES = ("runs", "events", "lost", "repeated", "reordered")
# The long part's dice begin here; `make faults SEED=…` repeats a run, or makes another one.
SEED = int(os.environ.get("FAULTS_SEED") or 100)


@dataclass
class Client:
    """Follows one run over as many connections as it takes."""

    path: str
    events: list[tuple[int | None, bytes]] = field(default_factory=list)
    connections: int = 0
    refused: int = 0
    grew: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def last(self) -> int:
        return next((seq for seq, _ in reversed(self.events) if seq is not None), -1)

    @property
    def ended(self) -> bool:
        return bool(self.events) and self.events[-1][1].startswith(b"event: end")

    async def connect(self, port: int, *, stop_after: int | None = None) -> bytes:
        """One connection, until it ends, dies, or has brought `stop_after` events; returns what it cut in two."""
        self.connections += 1
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            return await self._read(reader, writer, stop_after)
        except ConnectionError:
            return b""
        finally:
            writer.transport.abort()

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, stop_after: int | None) -> bytes:
        http, rest = h11.Connection(h11.CLIENT), b""
        headers = {"Host": "localhost", "Last-Event-ID": str(self.last)}
        writer.write(http.send(h11.Request(method="GET", target=self.path, headers=list(headers.items()))) or b"")
        writer.write(http.send(h11.EndOfMessage()) or b"")
        start = len(self.events)
        while stop_after is None or len(self.events) - start < stop_after:
            match http.next_event():
                case h11.NEED_DATA:
                    with suppress(ConnectionError):
                        data = await reader.read(65536)
                        if data:
                            http.receive_data(data)
                            continue
                    return rest
                case h11.Response(status_code=503):
                    self.refused += 1
                    return b""
                case h11.Response(status_code=status):
                    assert status == 200, status
                case h11.Data(data=data):
                    whole, rest = split_events(rest + bytes(data))
                    room = None if stop_after is None else stop_after + start - len(self.events)
                    self.events += whole[:room]
                    self.grew.set()
                case h11.EndOfMessage():
                    assert rest == b"", "a clean end in the middle of an event"
                    return b""
        return rest

    async def follow(self, port: int, *, dice: random.Random | None = None, most: int = 12) -> Client:
        """Connect until the run has ended. With `dice`, leave each connection after a few events."""
        while not self.ended:
            await self.connect(port, stop_after=None if dice is None else dice.randint(1, most))
        return self

    async def has(self, count: int) -> None:
        """Wait for that many events."""
        while len(self.events) < count and not self.ended:
            self.grew.clear()
            await self.grew.wait()


@dataclass
class Tally:
    """What a scenario did and what the oracle found."""

    name: str
    seed: int
    faults: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    events: int = 0
    lost: int = 0
    repeated: int = 0
    reordered: int = 0
    requests: int = 0  # of clients that count them; one that failed has failed the test
    measured: str = ""  # what else is worth reading at the end

    async def check(self, port: int, *clients: Client) -> None:
        """Each client against the log, as a join from the start shows it. Fails on the first byte that differs."""
        for path in dict.fromkeys(client.path for client in clients):
            log = await Client(path).follow(port)
            self.runs += 1
            for client in clients:
                if client.path == path:
                    self.compare(client.events, log.events)

    def compare(self, got: list[tuple[int | None, bytes]], log: list[tuple[int | None, bytes]]) -> None:
        ids = [seq for seq, _ in got if seq is not None]
        assert len(ids) == len(got), "an event without an id"
        self.note(ids, {seq for seq, _ in log if seq is not None})
        assert b"".join(body for _, body in got) == b"".join(body for _, body in log)
        assert sum(body.startswith(b"event: end") for _, body in got) == 1

    def note(self, got: Sequence[int], log: Set[int]) -> None:
        """Count what a client got, by seq. Fails when anything is missing, twice there, or out of order."""
        self.events += len(got)
        self.lost += len(log - set(got))
        self.repeated += len(got) - len(set(got))
        self.reordered += sum(a > b for a, b in pairwise(got))
        assert (self.lost, self.repeated, self.reordered) == (0, 0, 0), self

    def __str__(self) -> str:
        faults = ", ".join(f"{count} {kind}" for kind, count in sorted(self.faults.items()))
        made = f"{faults} | " if faults else ""
        asked = f"{self.requests} requests, 0 failed, " if self.requests else ""
        return (
            f"{self.name} | seed {self.seed} | {made}{asked}{self.runs} runs, {self.events} events checked"
            f" | {self.lost} lost, {self.repeated} repeated, {self.reordered} reordered"
            f"{self.measured and f' | {self.measured}'}"
        )


class Ledger:
    """The tallies of a whole test session; shown at its end by conftest.py."""

    def __init__(self) -> None:
        self.tallies: list[Tally] = []

    def tally(self, name: str, seed: int) -> Tally:
        self.tallies.append(Tally(name, seed))
        return self.tallies[-1]

    @property
    def total(self) -> str:
        """Faults by kind, and what the oracle found, in a line."""
        kinds: Counter[str] = Counter()
        for each in self.tallies:
            kinds.update(each.faults)
        sums = {name: sum(getattr(each, name) for each in self.tallies) for name in FIGURES}
        found = ", ".join(f"{sums[name]:,} {name}" for name in ("lost", "repeated", "reordered"))
        faults = ", ".join(f"{count:,} {kind}" for kind, count in sorted(kinds.items()))
        return f"{kinds.total():,} faults ({faults}); {sums['runs']:,} runs, {sums['events']:,} events checked: {found}"


async def create(port: int, given: Mapping[str, Any], *, assistant: str = "agent", modes: Sequence[str] = MODES) -> str:
    """Start a run on a new thread; the path of its stream."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        thread_id = (await client.post("/threads", json={})).json()["thread_id"]
        body = {"assistant_id": assistant, "input": given, "stream_mode": list(modes)}
        answer = await client.post(f"/threads/{thread_id}/runs", json=body)
        assert answer.status_code == 200, answer.text
    return f"/threads/{thread_id}/runs/{answer.json()['run_id']}/stream"


async def status(port: int, path: str) -> str:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        return str((await client.get(path.removesuffix("/stream"))).json()["status"])


async def ended_well(port: int, *paths: str) -> None:
    assert {await status(port, path) for path in paths} == {"success"}


def said(tokens: int, delay: float = 0) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "hello"}], "tokens": tokens, "delay": delay}
