"""The page on agents: what it shows works, pasted as it is into an empty folder."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.acceptance.server import Server

PAGE = Path(__file__).resolve().parents[2] / "runs_es" / "execution" / "README.md"
_EXAMPLE = re.compile(r"<!-- example: (\S+) -->\n```\w+\n(.*?)```", re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The page's examples, where it says that they go."""
    for name, text in _EXAMPLE.findall(PAGE.read_text()):
        (tmp_path / name).write_text(text)
    return tmp_path


def python(folder: Path, name: str, database_url: str) -> str:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path]), "RUNS_ES_DATABASE_URL": database_url}
    ran = subprocess.run(
        [sys.executable, name], cwd=folder, env=env, capture_output=True, text=True, timeout=200, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@contextmanager
def worker(folder: Path, url: str) -> Iterator[None]:
    """The page's worker, without any of our packages."""
    env = {"RUNS_ES_URL": url, "PATH": os.environ["PATH"]}
    with subprocess.Popen([sys.executable, "-S", "worker.py"], cwd=folder, env=env) as process:
        try:
            yield
        finally:
            process.kill()


def shown(answer: httpx.Response) -> list[tuple[str, str]]:
    """(event, data) of a whole stream."""
    return re.findall(r"event: (.*)\r\ndata: (.*)\r\n", answer.text)


def test_the_pages_functions_and_executor_run_as_a_library(folder: Path, database_url: str) -> None:
    functions = python(folder, "library.py", database_url).splitlines()
    assert functions[0] == "{'said': 'HELLO'}"
    assert [line.split()[0] for line in functions[1:]] == ["metadata", "custom", "custom", "custom", "values", "end"]
    assert functions[5] == "values {'said': 'a-b-c'}"
    asked, opened = python(folder, "executor.py", database_url).splitlines()
    assert asked == "{'door': [{'id': 'word', 'value': 'Say the word.'}]}"
    assert opened == "{'open': True}"


def test_the_pages_functions_and_worker_are_served(folder: Path, database_url: str) -> None:
    config = folder / "langgraph.json"
    with (
        Server(database_url, config=config) as server,
        worker(folder, server.url),
        httpx.Client(base_url=server.url, timeout=30) as client,
    ):
        names = [each["name"] for each in client.post("/assistants/search", json={}).json()]
        assert names == [*json.loads(config.read_text())["graphs"], "parrot"]
        for name, expected in {
            "shout": [("values", '{"said":"A B"}')],
            "spell": [*[("custom", f'{{"letter":"{each}"}}') for each in "a b"], ("values", '{"said":"a- -b"}')],
            "parrot": [("custom", '{"word":"a"}'), ("custom", '{"word":"b"}'), ("values", '{"said":"a b"}')],
        }.items():
            thread = client.post("/threads", json={}).json()["thread_id"]
            run = {"assistant_id": name, "input": "a b", "stream_mode": ["values", "custom"]}
            events = shown(client.post(f"/threads/{thread}/runs/stream", json=run))
            assert [event for event, _ in (events[0], events[-1])] == ["metadata", "end"]
            assert events[1:-1] == expected
            values = json.loads(expected[-1][1])
            assert client.get(f"/threads/{thread}").json()["values"] == values
            assert client.get(f"/threads/{thread}/state").json()["values"] == values
            assert client.post(f"/threads/{thread}/history", json={}).json() == []
        found = client.get(f"/threads/{thread}/messages").json()
        assert [message["content"]["content"] for message in found] == ["a b"]
        (parrot,) = [each for each in client.post("/assistants/search", json={}).json() if each["name"] == "parrot"]
        assert client.get(f"/assistants/{parrot['assistant_id']}/graph").status_code == 404
        assert client.get(f"/assistants/{parrot['assistant_id']}/schemas").json()["graph_id"] == "parrot"


def test_the_pages_worker_asks_for_the_next_run_whatever_became_of_the_last(folder: Path) -> None:
    page = runpy.run_path(str(folder / "worker.py"))
    main, gone = page["main"], page["Gone"]
    claim = {"run": {"kwargs": {"input": "a"}}, "run_id": "r", "claim_id": "c", "fence": 1, "frames": 1}
    answers = iter([gone("lost"), None, claim, claim, claim])
    agents = iter([gone("cancelled"), gone("lost"), ValueError("no")])
    asked: list[str] = []

    def post(path: str, body: dict[str, Any]) -> Any:
        asked.append(path)
        if path != "/workers/claim":
            raise gone("ended")
        if isinstance(answer := next(answers), Exception):
            raise answer
        return answer

    def agent(run: Any) -> None:
        raise next(agents)

    main.__globals__.update(post=post, parrot=agent)
    with pytest.raises(StopIteration):
        main()
    claims, finishes = "/workers/claim", "/workers/runs/r/finish"
    assert asked == [claims, claims, claims, finishes, claims, claims, finishes, claims]
