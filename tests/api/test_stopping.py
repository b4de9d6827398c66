"""Ctrl+C once and twice, on real processes with a run that does not end by itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from runs_es.service.commands import CreateRunCommand
from runs_es.settings import Settings
from runs_projections.wiring import open_store

COMMAND = str(Path(sys.executable).parent / "runs-es")
AGENT = """
import asyncio

async def agent(input):
    print("the run has begun", flush=True)
    await asyncio.Event().wait()
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "agent.py").write_text(AGENT)
    path = tmp_path / "langgraph.json"
    path.write_text(json.dumps({"dependencies": ["."], "graphs": {"patient": "./agent.py:agent"}}))
    return path


@contextmanager
def process_of(command: str, config: Path, database_url: str) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "RUNS_ES_DATABASE_URL": database_url, "RUNS_ES_DRAIN_SECONDS": "600"}
    options = ["--port", "0"] if command == "serve" else []
    with subprocess.Popen(
        [COMMAND, command, *options, "--config", str(config)],
        env={**environment, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def read_until(process: subprocess.Popen[str], *wanted: str) -> str:
    """The line that completes these texts, in whatever order they come. Raises AssertionError when one does not."""
    assert process.stdout is not None
    printed, left = [], set(wanted)
    for line in process.stdout:
        printed.append(line)
        left -= {each for each in left if each in line}
        if not left:
            return line
    raise AssertionError("".join(printed))


@pytest.mark.parametrize("command", ["serve", "work"])
async def test_the_second_ctrl_c_ends_a_process_at_once_and_the_first_says_so(
    command: str, config: Path, settings: Settings, database_url: str
) -> None:
    with open_store(settings, config=config, work=False) as store:
        await store.service.create_background(CreateRunCommand(assistant_id=_id_of("patient"), input=None))
    with process_of(command, config, database_url) as process:
        read_until(process, "the run has begun", "Ctrl+C stops it.")
        process.send_signal(signal.SIGINT)
        assert "Ctrl+C again to end at once" in read_until(process, "stopping: ")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130  # and not after the ten minutes that the run has to finish
        assert process.stdout is not None
        assert "ended at once" in process.stdout.read()


@pytest.mark.parametrize("command", ["serve", "work"])
def test_a_process_that_is_stopped_while_nothing_runs_ends_without_an_error(
    command: str, config: Path, database_url: str
) -> None:
    with process_of(command, config, database_url) as process:
        read_until(process, "Ctrl+C stops it.")
        process.send_signal(signal.SIGTERM)
        assert process.stdout is not None
        printed = process.stdout.read()
        assert (process.wait(60), printed.rstrip().endswith("stopped")) == (0, True)
        assert "ERROR" not in printed
        assert "Traceback" not in printed


def _id_of(name: str) -> str:
    from runs_es.execution.langgraph.graphs import assistant_id

    return assistant_id(name)
