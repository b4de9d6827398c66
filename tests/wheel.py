"""`make wheel`: build the sdist, from it the wheel, install that into an empty environment, and start the server there.

The server runs a graph whose folder has packages called `api`, `projections` and `tests` of its own: names that a
server which installed packages of those names would break. Beside it lies a package with the read model of
projections/README.md, offered by entry point, which the server has to follow.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from contextlib import suppress
from pathlib import Path

import httpx

from tests.acceptance.server import free_port
from tests.projections.test_page import paste

ROOT = Path(__file__).resolve().parent.parent
GRAPH = """
from typing import TypedDict
from langgraph.graph import END, START, StateGraph
from api.tools import shout
from projections.view import NAME
from tests.numbers import NUMBER

class State(TypedDict, total=False):
    text: str

def node(state: State) -> State:
    return {"text": f"{shout(state.get('text', ''))} {NAME} {NUMBER}"}

builder = StateGraph(State)
builder.add_node("node", node)
builder.add_edge(START, "node")
builder.add_edge("node", END)
graph = builder.compile()
"""


def run(*command: str | Path, **options: object) -> None:
    print("$", " ".join(str(part) for part in command), flush=True)
    subprocess.run([str(part) for part in command], check=True, **options)  # type: ignore[call-overload]


def build(folder: Path) -> Path:
    """The wheel, built from the sdist alone; checks that packages and migrations are inside."""
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT)
    (sdist,) = folder.glob("*.tar.gz")
    (wheel,) = folder.glob("*.whl")
    with tarfile.open(sdist) as archive:
        inside_sdist = {name.partition("/")[2] for name in archive.getnames()}
    with zipfile.ZipFile(wheel) as archive:
        inside_wheel = set(archive.namelist())
    migrations = {path.name for path in (ROOT / "migrations").glob("*.sql")}
    for name in migrations:
        assert f"migrations/{name}" in inside_sdist, f"{name} is not in the sdist"
        assert f"runs_es/migrations/{name}" in inside_wheel, f"{name} is not in the wheel"
    for package in ("runs_es", "runs_projections", "runs_api"):
        assert f"{package}/__init__.py" in inside_wheel, f"{package} is not in the wheel"
    tops = {name.partition("/")[0] for name in inside_wheel if not name.partition("/")[0].endswith(".dist-info")}
    assert tops == {"runs_es", "runs_projections", "runs_api"}, tops
    return wheel


def project(folder: Path) -> Path:
    """A user's project with packages called api, projections and tests."""
    for package, module, text in (
        ("api", "tools.py", "def shout(text):\n    return text.upper()\n"),
        ("projections", "view.py", "NAME = 'ours'\n"),
        ("tests", "numbers.py", "NUMBER = 42\n"),
    ):
        (folder / package).mkdir(parents=True)
        (folder / package / "__init__.py").touch()
        (folder / package / module).write_text(text)
    (folder / "graph.py").write_text(GRAPH)
    config = folder / "langgraph.json"
    config.write_text(json.dumps({"dependencies": ["."], "graphs": {"mine": "./graph.py:graph"}}))
    return config


def read_models(folder: Path) -> Path:
    """The package of the page on projections, with an entry point, as an installer would lay it down."""
    folder.mkdir()
    paste(folder)
    metadata = folder / "my_read_models-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-read-models\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[runs_es.projections]\ndurations = my_read_models.durations:DURATIONS\n"
    )
    return folder


def try_read_model(environment: Path, url: str, env: dict[str, str], folder: Path) -> None:
    """The read model of the page: followed by the server, asked as the page shows, rebuilt, compared."""
    thread_id = httpx.post(f"{url}/threads", json={}).json()["thread_id"]
    body = {"assistant_id": "mine", "input": {"text": "again"}}
    httpx.post(f"{url}/threads/{thread_id}/runs/wait", json=body, timeout=30).raise_for_status()
    deadline = time.monotonic() + 30
    while True:
        states = {each["name"]: each for each in httpx.get(f"{url}/projections").json()}
        if states["durations"]["behind"] == 0 and states["durations"]["state"] == "live":
            break
        assert time.monotonic() < deadline, states
    asked = subprocess.run(
        [environment / "bin" / "python", "ask.py"], cwd=folder, env=env, capture_output=True, text=True, check=True
    )
    assert len(asked.stdout.splitlines()) == 2, asked.stdout
    for options in ((), ("--verify",)):
        run(environment / "bin" / "runs-es", "rebuild", "durations", *options, env=env)
    print("the read model of the page answered:", asked.stdout)


def try_it(environment: Path, config: Path, data: Path, models: Path) -> None:
    """Start the installed server from the project's folder and run the graph over HTTP."""
    port = free_port()
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RUNS_ES_DATABASE_URL")}
    command = [str(environment / "bin" / "runs-es"), "serve", "--port", str(port), "--config", str(config)]
    env |= {"RUNS_ES_DATA_DIR": str(data), "PYTHONPATH": str(models)}
    server = subprocess.Popen(command, cwd=config.parent, env=env)
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 60
        while True:
            try:
                httpx.get(f"{url}/ok").raise_for_status()
                break
            except httpx.HTTPError:
                assert server.poll() is None, "the server ended"
                assert time.monotonic() < deadline, "the server does not answer"
                with suppress(subprocess.TimeoutExpired):
                    server.wait(0.1)
        body = {"assistant_id": "mine", "input": {"text": "it works:"}}
        answer = httpx.post(f"{url}/runs/wait", json=body, timeout=30)
        assert answer.json() == {"text": "IT WORKS: ours 42"}, answer.text
        print("the graph with its own api, projections and tests answered:", answer.text)
        try_read_model(environment, url, env, models)
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="runs-es-wheel-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # the embedded server's account has to reach its data
        wheel = build(folder / "dist")
        environment = folder / "environment"
        run(sys.executable, "-m", "venv", environment)
        run(environment / "bin" / "python", "-m", "pip", "install", "--quiet", f"{wheel}[embedded,langgraph]")
        try_it(environment, project(folder / "project"), folder / "data", read_models(folder / "models"))
    print("the wheel is good")


if __name__ == "__main__":
    main()
