"""The command line: what it prints, what it refuses, and with which exit code."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from runs_api import cli
from runs_es.domain import Provenance
from runs_es.execution import ActiveRun
from runs_es.service.commands import CancelRunCommand, CreateRunCommand
from runs_es.settings import Settings
from runs_projections.wiring import open_store
from tests.conftest import SCHEMA

COMMAND = str(Path(sys.executable).parent / "runs-es")


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[object]:
    """Call `main` as the shell would."""

    def call(*arguments: str, **environment: str) -> Result:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["runs-es", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return Result(ended.value.code or 0, captured.out, captured.err)

    return call


async def two_runs(settings: Settings) -> tuple[str, str]:
    """A run that was cancelled while pending, and one that waits."""
    with open_store(settings, executor=None, work=False) as store:
        command = CreateRunCommand(thread_id="t1", create_thread=True, assistant_id="agent", input={"a": 1})
        first = await store.service.create_background(command)
        provenance = Provenance(actor="user:ada", reason="not needed\nany more")
        await store.service.cancel(CancelRunCommand(run_id=first.run_id, provenance=provenance))
        second = await store.service.create_background(command)
        store.projector.wait_for(store.log.reader.last_position(), 10)
    return first.run_id, second.run_id


def test_migrate_says_what_it_did_and_then_that_there_is_nothing_to_do(run, empty_database_url: str):
    first = run("migrate", RUNS_ES_DATABASE_URL=empty_database_url)
    assert first.code == 0
    assert "applied 0001_log.sql" in first.out
    assert "nothing to do" in run("migrate").out


def test_commands_on_a_database_that_is_not_migrated_say_what_to_run(run, empty_database_url: str):
    for command in (["rebuild"], ["history", "r"]):
        result = run(*command, RUNS_ES_DATABASE_URL=empty_database_url)
        assert result.code == 1
        assert "run `runs-es migrate` first" in result.err


def test_rebuild_tells_what_it_made_and_verify_that_nothing_differs(run, settings: Settings, database_url: str):
    asyncio.run(two_runs(settings))
    result = run("rebuild", "runs", "threads", RUNS_ES_DATABASE_URL=database_url)
    assert result.code == 0
    assert "2 rows" in result.out
    assert "messages" not in result.out
    verified = run("rebuild", "--verify")
    assert verified.code == 0
    assert "identical to what the log says" in verified.out
    told = json.loads(run("rebuild", "--verify", "--json").out)
    assert (told["rows"]["runs"], told["differences"]) == (2, [])


def test_verify_shows_what_differs_and_how_to_put_it_right(run, settings: Settings, database_url: str):
    asyncio.run(two_runs(settings))
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(f"update {SCHEMA}.runs set status = 'success' where status = 'pending'")
    result = run("rebuild", "--verify", RUNS_ES_DATABASE_URL=database_url)
    assert result.code == 1
    assert "status: expected pending, found success" in result.out
    assert "runs-es rebuild runs" in result.err
    assert run("rebuild", "runs").code == 0
    assert run("rebuild", "--verify").code == 0


def test_rebuild_refuses_a_name_that_is_none(run, database_url: str):
    result = run("rebuild", "nope", RUNS_ES_DATABASE_URL=database_url)
    assert result.code == 2
    assert "there are runs, messages, threads" in result.err


def test_history_shows_who_did_what_and_why(run, settings: Settings, database_url: str):
    cancelled, _ = asyncio.run(two_runs(settings))
    result = run("history", cancelled, RUNS_ES_DATABASE_URL=database_url)
    head, *rows = [line.split("\t") for line in result.out.splitlines()]
    assert head == ["seq", "when", "what", "who", "why"]
    assert [row[2].split()[0] for row in rows] == ["run.created", "run.cancel_requested", "run.cancelled"]
    assert rows[1][3:] == ["user:ada", "not needed any more"]


class Failing:
    async def execute(self, run: ActiveRun) -> None:
        raise ValueError("password=hunter2\n\x1b[31mred")


async def failed_run(settings: Settings) -> str:
    with open_store(settings.model_copy(update={"show_errors": "never"}), executor=Failing()) as store:
        command = CreateRunCommand(thread_id="t1", create_thread=True, assistant_id="agent")
        run = await store.service.create_background(command)
        await store.service.ended("t1", run.run_id)
    return run.run_id


def test_history_shows_the_operator_an_error_that_clients_do_not_see(run, settings: Settings, database_url: str):
    failed = asyncio.run(failed_run(settings))
    result = run("history", failed, RUNS_ES_DATABASE_URL=database_url)
    assert "run.failed error: ValueError: password=hunter2" in result.out
    traceback = result.out.splitlines()[result.out.splitlines().index("") :]
    assert traceback[1].endswith("run.failed:")
    assert traceback[2] == "Traceback (most recent call last):"
    assert traceback[-2:] == ["ValueError: password=hunter2", "\\x1b[31mred"]
    facts = [json.loads(line) for line in run("history", failed, "--json").out.splitlines()]
    assert facts[-1]["fact"]["error_hidden"] is True
    assert facts[-1]["fact"]["traceback"].startswith("Traceback")


def test_history_as_json_has_every_fact_whole(run, settings: Settings, database_url: str):
    _, waiting = asyncio.run(two_runs(settings))
    result = run("history", waiting, "--json", RUNS_ES_DATABASE_URL=database_url)
    (fact,) = [json.loads(line) for line in result.out.splitlines()]
    assert fact["topic"] == "run.created"
    assert fact["fact"]["kwargs"]["input"] == {"a": 1}
    assert fact["thread_id"] == "t1"


def test_a_run_that_is_not_there_has_no_history(run, database_url: str):
    result = run("history", "nope", RUNS_ES_DATABASE_URL=database_url)
    assert (result.code, result.out) == (1, "")
    assert "there is no run nope" in result.err


@pytest.mark.parametrize("command", [["migrate"], ["rebuild"], ["serve", "--port", "0"], ["work"]])
def test_a_database_that_cannot_be_reached_is_one_sentence_without_the_password(run, command: list[str]):
    url = "postgresql://u:secret@127.0.0.1:1/x"
    result = run(*command, RUNS_ES_DATABASE_URL=url, RUNS_ES_DATABASE_START_SECONDS="0")
    assert result.code == 1
    assert "RUNS_ES_DATABASE_URL cannot be reached" in result.err
    assert "secret" not in result.err
    assert "Traceback" not in result.err


def test_a_setting_that_is_wrong_is_named(run):
    result = run("migrate", RUNS_ES_MAX_JOINS="many")
    assert result.code == 2
    assert result.err.startswith("error: RUNS_ES_MAX_JOINS: ")


def test_a_configuration_that_is_not_there_is_named(run, database_url: str, tmp_path: Path):
    missing = tmp_path / "langgraph.json"
    result = run("serve", "--port", "0", "--config", str(missing), RUNS_ES_DATABASE_URL=database_url)
    assert result.code == 1
    assert str(missing) in result.err


def test_a_port_that_is_taken_is_said_before_anything_else(run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run("serve", "--port", str(port), RUNS_ES_DATABASE_URL="postgresql://127.0.0.1:1/x")
    assert result.code == 1
    assert f"cannot listen on 127.0.0.1:{port}" in result.err


def test_langgraph_that_is_not_installed_is_said_with_what_to_install(run, database_url: str, monkeypatch):
    monkeypatch.setitem(sys.modules, "langgraph.checkpoint.postgres.aio", None)
    monkeypatch.delitem(sys.modules, "runs_es.execution.langgraph.saver", raising=False)
    result = run("serve", "--port", "0", RUNS_ES_DATABASE_URL=database_url)
    assert result.code == 1
    assert 'pip install "runs-es[langgraph]"' in result.err


@pytest.mark.parametrize("command", [[], ["serve"], ["work"], ["migrate"], ["rebuild"], ["history"]])
def test_every_command_explains_itself(run, command: list[str]):
    result = run(*command, "--help", COLUMNS="200")
    assert result.code == 0
    assert "Usage" in result.out


@pytest.mark.parametrize(("command", "ready"), [(["serve", "--port", "0"], "Try it:"), (["work"], "up to")])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_that_is_asked_to_stop_says_so_and_succeeds(
    command: list[str], ready: str, number: signal.Signals, database_url: str
):
    environment = {**os.environ, "RUNS_ES_DATABASE_URL": database_url}
    with subprocess.Popen(
        [COMMAND, *command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        printed = []
        for line in process.stdout:
            printed.append(line)
            if ready in line:
                break
        process.stdout.readline()
        process.send_signal(number)
        rest = process.stdout.read()
        assert process.wait(30) == 0, "".join(printed) + rest
    assert rest.rstrip().endswith("stopped")


def test_a_misspelt_setting_keeps_every_command_from_starting(run: Any):
    result = run("serve", RUNS_ES_USER_HEDER="X-User")
    assert result.code == 2
    assert "RUNS_ES_USER_HEDER is no setting; did you mean RUNS_ES_USER_HEADER?" in " ".join(result.err.split())
