"""`runs-es tail`: what it shows of a stream, how it ends, and that it comes back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runs_api import cli, cli_tail
from runs_api.cli_tail import Printer, parsed
from runs_es.log import retention, segments
from runs_es.log.event_log import EventLog
from tests.acceptance.server import Server
from tests.log.recording import Recording, ended

COMMAND = str(Path(sys.executable).parent / "runs-es")
Run = Callable[..., tuple[int, list[str], str]]


@pytest.fixture
def log(database_url: str) -> Iterator[EventLog]:
    with EventLog(database_url) as log:
        yield log


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], database_url: str) -> Run:
    """Call `main` as the shell would: exit code, lines, complaints."""

    def call(*arguments: str) -> tuple[int, list[str], str]:
        monkeypatch.setenv("RUNS_ES_DATABASE_URL", database_url)
        monkeypatch.setattr(sys, "argv", ["runs-es", *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        captured = capsys.readouterr()
        return int(left.value.code or 0), captured.out.splitlines(), captured.err

    return call


def following(*arguments: str, database_url: str) -> subprocess.Popen[str]:
    """`runs-es tail` in a process of its own, with a pipe at its end."""
    env = {**os.environ, "RUNS_ES_DATABASE_URL": database_url}
    return subprocess.Popen([COMMAND, "tail", *arguments], env=env, stdout=subprocess.PIPE, text=True)


def seq_of(line: str) -> int:
    return int(line.split("\t")[0])


def cut(log: EventLog) -> tuple[Recording, int, int]:
    """A run that lost its first frames; the last seq of those, and of the run."""
    recording = Recording(log)
    last = recording.publish(3)
    with retention.connect(log.url, log.schema) as connection:
        segments.rotate(connection)
        recording.publish(2)
        end = recording.finish()
        segments.drop(connection, 1)
    return recording, last, end


def test_a_finished_run_is_shown_whole_and_ends_well(run: Run, log: EventLog) -> None:
    recording = ended(log, 3)
    code, lines, _ = run("tail", recording.run.run_id)
    assert code == 0
    assert lines == ['5\tcustom\t"x"', '6\tcustom\t"x"', '7\tcustom\t"x"', "8\tend\tnull"]


def test_after_an_event_only_the_rest_is_shown_and_json_has_an_object_a_line(run: Run, log: EventLog) -> None:
    recording = ended(log, 3)
    code, lines, _ = run("tail", recording.run.run_id, "--after", "6", "--json")
    assert code == 0
    assert [json.loads(line) for line in lines] == [
        {"seq": 7, "event": "custom", "data": "x"},
        {"seq": 8, "event": "end", "data": None},
    ]


def test_a_running_run_is_followed_until_its_end(log: EventLog, database_url: str) -> None:
    recording = Recording(log)
    first = recording.publish()
    with following(recording.run.run_id, database_url=database_url) as tail:
        assert tail.stdout is not None
        assert seq_of(tail.stdout.readline()) == first
        for _ in range(3):
            seq = recording.publish()
            assert seq_of(tail.stdout.readline()) == seq
        end = recording.finish()
        assert tail.stdout.read() == f"{end}\tend\tnull\n"
        assert tail.wait(20) == 0


def test_a_gap_is_exit_code_3_and_says_what_is_there(run: Run, log: EventLog) -> None:
    recording, last, end = cut(log)
    code, lines, complaint = run("tail", recording.run.run_id)
    assert (code, lines) == (3, [])
    assert f"{last + 1} to {end} are there" in complaint
    code, lines, _ = run("tail", recording.run.run_id, "--after", str(last))
    assert code == 0
    assert [seq_of(line) for line in lines] == list(range(last + 1, end + 1))


def test_a_run_that_is_none_is_refused(run: Run) -> None:
    code, _, complaint = run("tail", "nobody")
    assert code == 1
    assert "there is no run nobody" in complaint


def test_a_server_is_followed_over_its_restart_and_nothing_is_shown_twice(log: EventLog, database_url: str) -> None:
    recording = Recording(log)
    seqs = [recording.publish()]
    with Server(database_url, options=["--no-worker"]) as server:
        with following(recording.run.run_id, "--url", server.url, database_url="unused") as tail:
            assert tail.stdout is not None
            lines = [tail.stdout.readline()]
            server.kill()
            seqs.append(recording.publish())
            server.start()
            lines.append(tail.stdout.readline())
            seqs.append(recording.finish())
            lines += tail.stdout.readlines()
            assert tail.wait(20) == 0
        assert [seq_of(line) for line in lines] == seqs


def test_a_servers_gap_and_its_refusals_are_said(run: Run, log: EventLog, database_url: str) -> None:
    recording, last, end = cut(log)
    with Server(database_url, options=["--no-worker"]) as server:
        code, lines, complaint = run("tail", recording.run.run_id, "--url", server.url)
        assert (code, lines) == (3, [])
        assert f"{last + 1} to {end} are there" in complaint
        unknown = str(uuid.uuid4())
        code, _, complaint = run("tail", unknown, "--url", server.url)
        assert (code, f"there is no run {unknown} at {server.url}" in complaint) == (1, True)
        code, _, complaint = run("tail", "nobody", "--url", server.url)
        assert (code, "answered 422" in complaint) == (1, True)
    code, _, complaint = run("tail", "nobody", "--url", server.url)
    assert (code, "does not answer" in complaint) == (1, True)
    code, _, complaint = run("tail", "nobody", "--url", "file:///etc/passwd")
    assert (code, "http://" in complaint) == (2, True)


def test_on_a_terminal_a_line_is_cut_to_its_width(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal:
        is_terminal = True
        width = 60

    monkeypatch.setattr(cli_tail, "out", Terminal)
    event: Any = (7, "values", b'"' + b"x" * 500 + b'"')
    line = Printer().line(event)
    assert len(line) == 60
    assert line.endswith("…")
    assert len(Printer(json=True).line(event)) > 500
    assert "\x9b" not in Printer().line((8, "\x1b[2J", '"\x9b2J"'.encode()))


def test_an_event_that_is_cut_short_is_none_and_comments_are_nothing() -> None:
    stream = (
        b': heartbeat\r\nevent: a\r\ndata: {"x": 1}\r\nid: 3\r\n\r\n: heartbeat\r\nevent: b\r\ndata: 1\r\nid: 4\r\n'
    )
    assert list(parsed(stream.splitlines(keepends=True))) == [(3, "a", b'{"x": 1}')]
