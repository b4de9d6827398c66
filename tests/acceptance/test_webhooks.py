"""`kill -9` of real servers around the deliveries of webhooks: every run's arrives, and none again once it was
acknowledged and that was recorded. A kill between the two may repeat it, under the same id; those are counted.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import psycopg
import pytest

from tests.acceptance.oracle import SEED, Ledger, Tally
from tests.acceptance.server import Server
from tests.webhooks.receiver import LOOPBACK, Delivered, Receiver

ENV = {
    "RUNS_ES_HEARTBEAT_SECONDS": "0.3",
    "RUNS_ES_LEASE_SECONDS": "1.5",
    "RUNS_ES_SWEEP_SECONDS": "0.3",
    "RUNS_ES_WEBHOOK_ALLOWED_NETWORKS": LOOPBACK,
    "RUNS_ES_WEBHOOK_BACKOFF_SECONDS": "0.05",
    "RUNS_ES_WEBHOOK_TIMEOUT_SECONDS": "2",
    "RUNS_ES_WEBHOOK_CONCURRENCY": "8",
    "RUNS_ES_MAX_ATTEMPTS": "10",
}
CONCURRENCY = 8
POINTS = ("once created", "at a terminal fact", "while it is sent", "at its acknowledgement")
TERMINAL = "('run.completed', 'run.failed', 'run.cancelled')"


@contextmanager
def servers(database_url: str, count: int) -> Iterator[list[Server]]:
    with ExitStack() as stack:
        yield [stack.enter_context(Server(database_url, env=ENV)) for _ in range(count)]


def create(url: str, hook: str, runs: int) -> list[str]:
    """Runs of every kind: on threads of their own that go or stay, failing, and cancelled before they begin."""
    with httpx.Client(base_url=url, timeout=30) as client:
        made = []
        for n in range(runs):
            thread_id = client.post("/threads", json={}).json()["thread_id"]
            body: dict[str, Any] = {
                "assistant_id": "agent",
                "input": {"messages": "hello", "tokens": 2},
                "webhook": hook,
            }
            body["input"]["delay"] = 0.001
            body["input"]["fail"] = n % 5 == 1
            body["after_seconds"] = 3600 if n % 5 == 2 else 0
            place = "/runs" if n % 5 == 0 else f"/threads/{thread_id}/runs"
            run = client.post(place, json=body).json()
            made.append(run["run_id"])
            if n % 5 == 2:
                client.post(f"{place}/{run['run_id']}/cancel").raise_for_status()
        return made


class Record:
    """What the database has."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection

    @property
    def delivered(self) -> set[str]:
        """Runs whose webhook the store knows to be acknowledged."""
        rows = self._connection.execute("select run_id from runs_es.webhooks where state = 'delivered'").fetchall()
        return {run_id for (run_id,) in rows}

    @property
    def ended(self) -> int:
        """How many runs have a terminal fact."""
        rows = self._connection.execute(f"select 1 from runs_es.events_facts where topic in {TERMINAL}").fetchall()
        return len(rows)

    def settle(self, receiver: Receiver, runs: Sequence[str]) -> None:
        """Until each is delivered, and known to be."""
        receiver.wait_for(lambda it: {f"msg_{run_id}" for run_id in runs} <= it.acknowledged.keys(), 60)
        self._wait_for(lambda: self.delivered >= set(runs))

    def wait_for_end_of(self, count: int) -> None:
        self._wait_for(lambda: self.ended >= count)

    @staticmethod
    def _wait_for(holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not holds():
            assert time.monotonic() < deadline, "it did not come to that"


@pytest.fixture
def record(database_url: str) -> Iterator[Record]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield Record(connection)


class Moment:
    """Says when to kill: `script` is the receiver's, `wait` returns at the point, `passed` lets held answers go."""

    def __init__(self, point: str, number: int, record: Record, receiver: Receiver) -> None:
        self._point, self._number, self._record, self._receiver = point, number, record, receiver
        self._passed = threading.Event()
        self._already = len(receiver.requests), len(receiver.acknowledged), record.ended
        receiver.script = self.script

    def script(self, made: int, _: Delivered) -> int:
        if self._point == "while it is sent" and len(self._receiver.requests) - self._already[0] >= self._number:
            self._passed.wait(20)
        return 200

    def wait(self) -> None:
        requests, acknowledged, ended = self._already
        match self._point:
            case "at a terminal fact":
                self._record.wait_for_end_of(ended + self._number)
            case "while it is sent":
                self._receiver.wait_for(lambda it: len(it.requests) - requests >= self._number)
            case "at its acknowledgement":
                self._receiver.wait_for(lambda it: len(it.acknowledged) - acknowledged >= self._number)

    def passed(self) -> None:
        self._passed.set()


def one_kill(running: list[Server], record: Record, receiver: Receiver, tally: Tally, point: str, runs: int) -> None:
    dice = random.Random(tally.seed)
    victim = dice.choice(running)
    moment = Moment(point, dice.randint(1, runs), record, receiver)
    made = create(dice.choice(running).url, receiver.url(), runs)
    moment.wait()
    victim.kill()
    known = record.delivered.intersection(made)
    at_kill, sent = dict(receiver.acknowledged), {request.id for request in receiver.requests}
    moment.passed()
    tally.faults[f"server killed {point}"] += 1
    victim.start()
    record.settle(receiver, made)

    repeated = [run_id for run_id in made if receiver.acknowledged[f"msg_{run_id}"] > 1]
    for run_id in known:
        assert receiver.acknowledged[f"msg_{run_id}"] == at_kill[f"msg_{run_id}"], "sent again after it was recorded"
    assert known.isdisjoint(repeated)
    assert sent.issuperset(f"msg_{run_id}" for run_id in repeated), "sent twice by who was not killed"
    assert len(repeated) <= CONCURRENCY, "sent again without having been under way"
    assert not any(request.under_way for request in receiver.requests), "sent by two at the same time"
    assert {request.json["status"] for request in receiver.requests} <= {"success", "error", "interrupted"}
    tally.faults["repeated, acknowledged but not recorded"] += len(repeated)
    tally.runs += runs
    tally.events += len(receiver.requests)


def test_a_server_killed_while_it_sends_webhooks_loses_none_and_repeats_none_that_was_recorded(
    database_url: str, record: Record, ledger: Ledger
) -> None:
    tally = ledger.tally("kill -9 around webhooks", 1)
    with Receiver() as receiver, servers(database_url, 1) as running:
        one_kill(running, record, receiver, tally, "while it is sent", 5)


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_forty_kills_of_two_servers_lose_no_webhook_and_repeat_none_that_was_recorded(
    database_url: str, record: Record, ledger: Ledger
) -> None:
    with Receiver() as receiver, servers(database_url, 2) as running:
        for seed in range(SEED, SEED + 40):
            receiver.requests.clear()
            receiver.acknowledged.clear()
            tally = ledger.tally("kill -9 around webhooks", seed)
            one_kill(running, record, receiver, tally, POINTS[seed % len(POINTS)], 15)


@pytest.mark.faults
def test_a_process_stopped_in_the_middle_of_a_delivery_does_not_hold_it_up_nor_undo_what_another_recorded(
    database_url: str, record: Record, ledger: Ledger
) -> None:
    tally = ledger.tally("SIGSTOP while a webhook is sent", SEED)
    awake = threading.Event()
    with Receiver(lambda made, _: 200 if made else (awake.wait(60), 500)[1]) as receiver:
        with servers(database_url, 1) as (first,):
            (run_id,) = create(first.url, receiver.url(), 1)
            receiver.wait_for(lambda it: len(it.requests) == 1)
            os.kill(first.pid, signal.SIGSTOP)
            try:
                with servers(database_url, 1):
                    record.settle(receiver, [run_id])
            finally:
                os.kill(first.pid, signal.SIGCONT)
            awake.set()
            receiver.script = lambda *_: 200
            record.settle(receiver, create(first.url, receiver.url(), 1))  # it is awake, and sends the next
            assert run_id in record.delivered
        assert [request.id for request in receiver.requests].count(f"msg_{run_id}") == 2
    tally.faults["process stopped"] += 1
    tally.runs += 2
