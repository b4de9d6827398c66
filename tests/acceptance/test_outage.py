"""PostgreSQL goes away and comes back under load: how requests are answered meanwhile, and when they are good again."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from runs_es.database.embedded import EmbeddedPostgres
from runs_es.database.processes import postmaster_of, processes_of
from tests.acceptance.oracle import Ledger
from tests.acceptance.server import Server
from tests.database.test_outage import terminate_all

BOUND = 10.0  # seconds that a request may take while the database is away: Prometheus waits no longer
PROBE_BOUND = 2.0
RUN = {"assistant_id": "agent", "input": {"messages": [{"role": "user", "content": "hello"}], "tokens": 5, "delay": 0}}


class Load:
    """Clients that ask again and again. Keeps every answer: what was asked, when, how long it took, the status."""

    def __init__(self, url: str, thread_id: str) -> None:
        self.answers: list[tuple[str, float, float, int]] = []
        self._url = url
        self._stopping = threading.Event()
        asked: dict[str, tuple[str, str, Any]] = {
            "read": ("GET", f"/threads/{thread_id}/state", None),
            "history": ("GET", f"/threads/{thread_id}/history", None),
            "search": ("POST", "/threads/search", {}),
            "runs": ("GET", f"/threads/{thread_id}/runs", None),
            "append": ("POST", "/threads", {}),
            "run": ("POST", "/runs", RUN),
            "metrics": ("GET", "/metrics", None),
            "ok": ("GET", "/ok", None),
            "ready": ("GET", "/ready", None),
            "check_db": ("GET", "/ok?check_db=true", None),
        }
        self._threads = [threading.Thread(target=self._ask, args=(name, *each)) for name, each in asked.items()]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, name: str, method: str, path: str, body: Any) -> None:
        with httpx.Client(base_url=self._url, timeout=60) as client:
            while not self._stopping.wait(0.05):
                begun = time.monotonic()
                status = client.request(method, path, json=body).status_code
                self.answers.append((name, begun, time.monotonic(), status))

    def good_after(self, name: str, moment: float, seconds: float = 60.0) -> float:
        """Seconds from `moment` to the end of the first good answer that came after it."""
        deadline = time.monotonic() + seconds
        while True:
            for each, _, ended, status in list(self.answers):
                if each == name and ended > moment and status < 300:
                    return ended - moment
            assert time.monotonic() < deadline, f"{name} does not recover"
            time.sleep(0.01)


def stop(data: Path) -> None:
    """Stop the database at once, as an operator would."""
    postmaster = postmaster_of(data / "postgres")
    assert postmaster is not None
    os.kill(postmaster, signal.SIGINT)
    while postmaster_of(data / "postgres") == postmaster:
        time.sleep(0.02)


@contextmanager
def served(folder: Path) -> Iterator[tuple[Server, str, str]]:
    """A server on a database in `folder/data`, a thread with a state, and the database's URL."""
    data = folder / "data"
    with EmbeddedPostgres(data) as database, Server(database.url) as server:
        thread_id = str(httpx.post(f"{server.url}/threads", json={}, timeout=30).json()["thread_id"])
        assert httpx.post(f"{server.url}/threads/{thread_id}/runs/wait", json=RUN, timeout=60).status_code == 200
        yield server, thread_id, database.url


def outage(data: Path, load: Load, seconds: float, stack: ExitStack) -> tuple[float, float]:
    """Stop the database for so long, under load; seconds from its return to the first good read and append."""
    load.good_after("append", time.monotonic())
    stop(data)
    time.sleep(seconds)
    stack.enter_context(EmbeddedPostgres(data))  # returns when it takes connections
    back = time.monotonic()
    return load.good_after("read", back), load.good_after("append", back)


def checked(load: Load) -> Counter[int]:
    """The statuses; fails on an answer that is neither good nor 503, or that took too long."""
    statuses = Counter(status for _, _, _, status in load.answers)
    assert set(statuses) <= {200, 503}, statuses
    probes = ("metrics", "ok", "ready", "check_db")
    slowest = {
        name: max(ended - begun for each, begun, ended, _ in load.answers if each == name)
        for name in {each[0] for each in load.answers}
    }
    assert all(took < BOUND for took in slowest.values()), slowest
    assert all(status == 200 for name, _, _, status in load.answers if name in ("ok", "metrics"))
    assert all(slowest[name] < 2 * PROBE_BOUND for name in probes), slowest  # a slow machine's share
    return statuses


def terminated(server: Server, url: str, thread_id: str) -> tuple[float, float]:
    """End all sessions while nothing is asked; seconds that the first state took, and the first run."""
    with httpx.Client(base_url=server.url, timeout=60) as client:
        assert terminate_all(url) > 5
        begun = time.monotonic()
        state = client.get(f"/threads/{thread_id}/state")
        read = time.monotonic()
        run = client.post(f"/threads/{thread_id}/runs/wait", json=RUN)
        assert (state.status_code, run.status_code) == (200, 200), (state.text, run.text)
        assert state.json()["values"]["messages"]
        return read - begun, time.monotonic() - read


@pytest.mark.timeout(180)
def test_a_database_that_goes_and_comes_costs_no_500_and_two_lines(folder: Path, ledger: Ledger) -> None:
    with served(folder) as (server, thread_id, _), ExitStack() as stack:
        before = server.output
        with Load(server.url, thread_id) as load:
            read, append = outage(folder / "data", load, 1.0, stack)
        statuses = checked(load)
        assert statuses[503]
        lines = [line for line in server.output[len(before) :].splitlines() if line.strip()]
        assert len(lines) == 2, lines
        assert "the database does not answer, trying again until it does" in lines[0]
        assert "the database answers again" in lines[1]
    tally = ledger.tally("the database stopped for 1 s", 0)
    tally.measured = f"read after {read:.2f} s, append after {append:.2f} s; {dict(statuses)}"


@pytest.mark.timeout(180)
def test_ended_sessions_cost_the_next_request_a_reconnect(folder: Path, ledger: Ledger) -> None:
    with served(folder) as (server, thread_id, url):
        took = [terminated(server, url, thread_id) for _ in range(4)]
    tally = ledger.tally("all sessions ended", 0)
    tally.measured = "; ".join(f"state {state:.2f} s, run {run:.2f} s" for state, run in took)


@pytest.mark.faults
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seconds", [3, 20, 70])
def test_outages_under_load_three_times(folder: Path, ledger: Ledger, seconds: int) -> None:
    with served(folder) as (server, thread_id, _), ExitStack() as stack:
        recovered = []
        for _ in range(3):
            with Load(server.url, thread_id) as load:
                recovered.append(outage(folder / "data", load, seconds, stack))
            checked(load)
    tally = ledger.tally(f"the database stopped for {seconds} s", seconds)
    tally.measured = "; ".join(f"read {read:.2f} s, append {append:.2f} s" for read, append in recovered)
    assert all(max(each) < 5 for each in recovered), recovered


@pytest.mark.faults
@pytest.mark.timeout(300)
def test_a_frozen_database_is_one_that_is_away(folder: Path, ledger: Ledger) -> None:
    """Its processes exist, its sockets accept, and nothing answers: not even a query that is to be cancelled."""
    with served(folder) as (server, thread_id, _):
        before = server.output
        with Load(server.url, thread_id) as load:
            load.good_after("append", time.monotonic())
            frozen = processes_of(folder / "data" / "postgres")
            for pid in frozen:
                os.kill(pid, signal.SIGSTOP)
            try:
                time.sleep(20)
            finally:
                for pid in frozen:
                    os.kill(pid, signal.SIGCONT)
            back = time.monotonic()
            read, append, run = (load.good_after(name, back) for name in ("read", "append", "run"))
        statuses = checked(load)
        assert statuses[503]
        lines = [line for line in server.output[len(before) :].splitlines() if line.strip()]
        assert len(lines) == 2, lines
    tally = ledger.tally("the database frozen for 20 s", 0)
    tally.measured = f"read after {read:.2f} s, append after {append:.2f} s, run after {run:.2f} s"
