"""An agent that raises, in a real server: who reads its text, and what the log of the process has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.acceptance.server import Server

SECRET = "password=hunter2"
GRAPH = f'''
import logging
from typing import TypedDict

from langgraph.graph import START, StateGraph


class State(TypedDict):
    said: str


def node(state: State) -> State:
    logging.getLogger("my_agent").warning("about to\\nfail")
    raise ValueError("{SECRET}")


built = StateGraph(State)
built.add_node(node)
built.add_edge(START, "node")
graph = built.compile()
'''


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "failing_graph.py").write_text(GRAPH)
    path = tmp_path / "langgraph.json"
    path.write_text(json.dumps({"dependencies": ["."], "graphs": {"failing": "./failing_graph.py:graph"}}))
    return path


def started(client: httpx.Client) -> tuple[str, str, bytes]:
    """The thread and run of the agent, and its stream."""
    thread = str(client.post("/threads", json={}).json()["thread_id"])
    body = {"assistant_id": "failing", "input": {"said": "x"}, "stream_mode": ["values"]}
    answer = client.post(f"/threads/{thread}/runs/stream", json=body)
    assert answer.status_code == 200, answer.text
    return thread, answer.headers["location"].split("/")[4], answer.content


def shown(client: httpx.Client, thread: str, run: str) -> dict[str, str]:
    """Every place where a client finds the error."""
    path = f"/threads/{thread}"
    state = client.get(f"{path}/state").json()
    return {
        "thread": client.get(path).json()["error"]["message"],
        "join": client.get(f"{path}/runs/{run}/join").json()["__error__"]["message"],
        "task": state["tasks"][0]["error"],
        "history": client.post(f"{path}/history", json={"limit": 1}).json()[0]["tasks"][0]["error"],
        "events": client.get(f"{path}/events", params={"types": "run.failed"}).text,
        "page": client.get(f"{path}/runs/{run}/history").text,
    }


def lines(server: Server) -> list[dict[str, Any]]:
    return [json.loads(line) for line in server.output.splitlines() if line.startswith("{")]


def test_a_server_for_others_tells_clients_an_id_that_its_log_has(database_url: str, config: Path) -> None:
    env = {"RUNS_ES_LOG_FORMAT": "json"}
    with (
        Server(database_url, config=config, env=env, options=("--host", "0.0.0.0")) as server,
        httpx.Client(base_url=server.url, timeout=30) as client,
    ):
        thread, run, stream = started(client)
        found = shown(client, thread, run)
        joined = client.get(f"/threads/{thread}/runs/{run}/stream").content
        assert SECRET not in client.get(f"/threads/{thread}/runs/{run}").text
        failures = [each for each in lines(server) if each["level"] == "ERROR"]
        (of_agent,) = [each for each in lines(server) if each["logger"] == "my_agent"]
    assert joined == stream
    assert f"An internal error occurred (id {run})".encode() in stream
    for place, text in {"stream": stream.decode(), **found}.items():
        assert SECRET not in text, place
        assert "An internal error occurred" in text, place
    assert found["task"] == found["history"] == f"An internal error occurred (id {thread})"
    (failure,) = failures
    assert (failure["run_id"], failure["thread_id"], failure["attempt"]) == (run, thread, 1)
    assert f"ValueError: {SECRET}" in failure["exception"]
    assert "failing_graph.py" in failure["exception"].splitlines()[1]
    assert (of_agent["run_id"], of_agent["message"]) == (run, "about to\nfail")


def test_a_server_on_loopback_shows_the_text(database_url: str, config: Path) -> None:
    with (
        Server(database_url, config=config) as server,
        httpx.Client(base_url=server.url, timeout=30) as client,
    ):
        thread, run, stream = started(client)
        found = shown(client, thread, run)
        output = server.output
    for place, text in {"stream": stream.decode(), **found}.items():
        assert SECRET in text, place
        assert "Traceback" not in text, place
    assert f"run_id={run}" in output
    assert f"my_agent: about to\\nfail run_id={run} thread_id={thread} attempt=1" in output
    assert output.count("ERROR") == 1
