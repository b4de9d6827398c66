"""Whatever an agent's code raises or does to its event loop ends its own run, once, and no other run notices."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from runs_es.log.event_log import EventLog
from tests.acceptance.bad_agents.graphs import FRAMES
from tests.acceptance.server import Received, Server, read_stream, streaming

GRAPH = Path(__file__).parent / "bad_agents" / "graphs.py"
LEASE = 2.0  # seconds
ENV = {
    "RUNS_ES_HEARTBEAT_SECONDS": "0.5",
    "RUNS_ES_LEASE_SECONDS": str(LEASE),
    "RUNS_ES_SWEEP_SECONDS": "0.3",
    "RUNS_ES_CANCEL_GRACE_SECONDS": "1",
}
EXITED = "the agent called for the end of its process: "

Beside = dict[str, Any]


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that lets a run that streams go on behind its middle."""
    return tmp_path_factory.mktemp("gate") / "open"


@pytest.fixture(scope="module")
def server(module_database_url: str, gate: Path) -> Iterator[Server]:
    config = gate.parent / "langgraph.json"
    config.write_text(json.dumps({"graphs": {"agent": f"{GRAPH}:graph"}}))
    with Server(module_database_url, config=config, env={**ENV, "GATE": str(gate)}) as server:
        yield server


def asked(what: str, **values: Any) -> dict[str, Any]:
    return {"assistant_id": "agent", "input": {"what": what, **values}, "stream_mode": ["custom", "values"]}


def beside(server: Server, gate: Path, bad: dict[str, Any]) -> tuple[Beside, Received]:
    """Execute a bad run in the middle of one that streams; how the bad one ended, and what came of the other."""
    gate.unlink(missing_ok=True)
    with httpx.Client(base_url=server.url, timeout=120) as client:
        steady, other = (client.post("/threads", json={}).json()["thread_id"] for _ in range(2))
        with streaming(client, "POST", f"/threads/{steady}/runs/stream", json=asked("streams")) as (got, reading):
            while next(reading) < FRAMES // 2:
                pass
            run = client.post(f"/threads/{other}/runs", json=bad).json()
            where = f"/threads/{other}/runs/{run['run_id']}"
            client.get(f"{where}/join")
            ended = client.get(where).json()
            gate.touch()
            for _ in reading:
                pass
        replayed = read_stream(client, "GET", got.location.removeprefix(server.url), headers={"Last-Event-ID": "0"})
        frames = read_stream(client, "GET", f"{where}/stream", headers={"Last-Event-ID": "0"})
    assert got.raw == replayed.raw, "live and replay are the same bytes"
    return {**ended, "frames": frames}, got


def data_of(body: bytes) -> Any:
    return json.loads(next(line[6:] for line in body.split(b"\r\n") if line.startswith(b"data: ")))


def assert_unbroken(got: Received) -> None:
    """All frames of the run that streams, in order, of one attempt."""
    of_event = [(body.split(b"\r\n")[0], data_of(body)) for _, body in got.events if b"data: " in body]
    assert [data["attempt"] for event, data in of_event if event == b"event: metadata"] == [1]
    numbers = [data["number"] for event, data in of_event if event == b"event: custom"]
    assert numbers == list(range(FRAMES))
    assert of_event[-1][0] in (b"event: end", b"event: values")
    assert not any(event == b"event: error" for event, _ in of_event)


def topics(url: str, run: Beside) -> list[str]:
    with EventLog(url) as log:
        facts = log.reader.facts(run["thread_id"])
    return [each.fact.topic for each in facts if each.fact.topic in ("run.claimed", "run.failed", "run.completed")]


@pytest.mark.parametrize(
    ("what", "kind", "text"),
    [
        ("exits", "AgentExited", f"{EXITED}SystemExit(2)"),
        ("exits_in_a_task", "AgentExited", f"{EXITED}SystemExit(4)"),
        ("exits_in_a_callback", "AgentExited", f"{EXITED}SystemExit(5)"),
        ("interrupts", "AgentExited", f"{EXITED}KeyboardInterrupt()"),
        ("stops_the_loop", "LoopStopped", "the agent stopped the event loop that it shares with other runs"),
        ("cancels_itself", "NodeCancelledError", None),
        ("closes", "GeneratorExit", ""),
        ("stops", "Stop", "enough"),
        ("unprintable", "Unprintable", "Unprintable"),
        ("times_out", "TimeoutError", ""),
    ],
)
def test_a_bad_run_ends_once_with_its_cause_and_the_other_is_unbroken(
    server: Server, gate: Path, module_database_url: str, what: str, kind: str, text: str | None
) -> None:
    pid = server.pid
    bad, got = beside(server, gate, asked(what))
    assert bad["status"] == "error"
    assert topics(module_database_url, bad) == ["run.claimed", "run.failed"]
    (error,) = [data_of(body) for _, body in bad["frames"].events if body.startswith(b"event: error")]
    assert error["error"] == kind
    assert text is None or error["message"] == text
    assert_unbroken(got)
    os.kill(pid, 0)
    assert "Task exception was never retrieved" not in server.output


def test_a_task_that_dies_after_its_run_leaves_the_run_as_it_ended(
    server: Server, gate: Path, module_database_url: str
) -> None:
    bad, got = beside(server, gate, asked("leaves_a_task"))
    assert bad["status"] == "success"
    line = f"run {bad['run_id']} (thread {bad['thread_id']}, attempt 1): a task that nobody awaits raised AgentExited"
    deadline = time.monotonic() + 30
    while line not in server.output:
        assert time.monotonic() < deadline, server.output[-3000:]
        time.sleep(0.05)
    assert topics(module_database_url, bad) == ["run.claimed", "run.completed"]
    assert_unbroken(got)
    assert server.output.count(line) == 1


@pytest.mark.parametrize(
    "seconds", [pytest.param(3.25 * LEASE, id="3.25 leases"), pytest.param(20.0, marks=pytest.mark.faults, id="20 s")]
)
def test_an_agent_that_blocks_the_loop_delays_others_and_costs_them_no_attempt(
    server: Server, gate: Path, module_database_url: str, seconds: float
) -> None:
    with psycopg.connect(module_database_url, autocommit=True) as connection:
        bad, got = beside(server, gate, asked("blocks", seconds=seconds))
        silent = connection.execute(
            "select extract(epoch from now() - max(last_heartbeat)) from runs_es_queue.procrastinate_workers"
        ).fetchone()
    assert bad["status"] == "success"
    assert topics(module_database_url, bad) == ["run.claimed", "run.completed"]
    assert_unbroken(got)
    assert silent is not None
    assert silent[0] < LEASE
    line = next(line for line in server.output.splitlines() if f"run {bad['run_id']}" in line and "blocks" in line)
    assert "blocks the event loop of the agents" in line
    assert "1 other runs wait" in line
    assert "in blocks" in server.output, "the stack"
