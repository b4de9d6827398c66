"""`runs-es retain` and `runs-es erase`: what they print, what they refuse."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from runs_api.terminal import size_of
from runs_es.log import retention, segments
from runs_es.log.event_log import EventLog
from tests.api.test_cli_tail import Run
from tests.api.test_cli_tail import run as run  # a fixture
from tests.log.recording import Recording, ended, made_older


@pytest.fixture
def log(database_url: str) -> Iterator[EventLog]:
    with EventLog(database_url) as log:
        yield log


def test_a_dry_run_says_what_would_go_and_the_real_one_what_went(
    run: Run, log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended(log)
    with retention.connect(log.url, log.schema) as connection:
        segments.rotate(connection)
        made_older(connection, 30)
        monkeypatch.setenv("RUNS_ES_KEEP_STREAMS_DAYS", "7")
        code, lines, _ = run("retain", "--dry-run")
        assert code == 0
        assert lines[0].split("\t") == ["segment", "created", "size", "rows", "what", "why"]
        first, second = (line.split("\t") for line in lines[1:3])
        assert (first[0], *first[3:]) == ("1", "1", "drop", "all of it older than 7 days")
        assert second[4:] == ["keep", "current, empty"]
        assert lines[3].endswith("would come back; 1 runs would lose frames")
        code, lines, _ = run("retain")
        assert lines[1].split("\t")[4] == "dropped"
        assert "came back" in lines[3]
        assert [segment.number for segment in segments.listing(connection)] == [2]


def test_without_a_setting_it_says_which_there_are(run: Run) -> None:
    code, lines, _ = run("retain")
    assert code == 0
    assert "RUNS_ES_KEEP_STREAMS_DAYS" in lines[-1]


def test_frames_of_runs_by_how_they_ended_and_by_thread(run: Run, log: EventLog) -> None:
    thread_id = ended(log).thread_id
    assert run("retain", "--status", "error")[1] == ["0 pages of 0 runs deleted"]
    assert run("retain", "--status", "success", "--dry-run")[1] == ["1 pages of 1 runs would be deleted"]
    assert run("retain", "--thread", thread_id)[1] == ["1 pages of 1 runs deleted"]
    code, _, complaint = run("retain", "--older-than-days", "3")
    assert (code, "--status" in complaint) == (2, True)


def test_two_at_once_are_refused(run: Run, log: EventLog) -> None:
    with retention.connect(log.url, log.schema) as other, retention._alone(other):
        code, _, complaint = run("retain")
    assert (code, "another process" in complaint) == (1, True)


def test_erase_tells_what_went_and_who_did_it_stays(run: Run, log: EventLog) -> None:
    thread_id = ended(log).thread_id
    code, lines, _ = run("erase", thread_id, "--reason", "asked to be forgotten", "--yes")
    assert code == 0
    assert lines[0].startswith(f"erased thread {thread_id}: 6 rows")
    (fact,) = log.reader.facts(thread_id)
    assert fact.provenance.reason == "asked to be forgotten"
    assert (fact.provenance.actor or "").startswith("shell:")


def test_erase_refuses_what_is_not_there_what_runs_and_what_has_no_reason(run: Run, log: EventLog) -> None:
    busy = Recording(log).thread_id
    for arguments, code, word in (
        (("nobody", "--reason", "x"), 1, "no thread nobody"),
        ((busy, "--reason", "x"), 1, "--force"),
        ((busy, "--reason", " "), 2, "--reason"),
    ):
        found, _, complaint = run("erase", *arguments, "--yes")
        assert (found, word in complaint) == (code, True)
    assert run("erase", busy, "--reason", "x", "--yes", "--force")[0] == 0


def test_erase_looks_and_counts_before_it_asks_and_no_is_no(
    run: Run, log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    thread_id = ended(log).thread_id
    asked: list[str] = []

    def no(question: str, **_: object) -> None:
        asked.append(question)
        raise KeyboardInterrupt

    monkeypatch.setattr("typer.confirm", no)
    code, _, complaint = run("erase", "nobody", "--reason", "x")
    assert (code, "there is no thread nobody in" in complaint, asked) == (1, True, [])
    busy = Recording(log).thread_id
    assert "cancel them first" in run("erase", busy, "--reason", "x")[2]
    assert asked == []
    assert run("erase", thread_id, "--reason", "x")[0] == 130
    assert asked == [f"Erase thread {thread_id} for good: 1 runs, 5 facts and 1 pages of frames?"]
    assert len(log.reader.facts(thread_id)) == 5


def test_a_thread_that_was_erased_before_is_not_asked_about_again(
    run: Run, log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    thread_id = ended(log).thread_id
    assert run("erase", thread_id, "--reason", "x", "--yes")[0] == 0
    code, _, complaint = run("erase", thread_id, "--reason", "x")
    assert (code, "was erased before" in complaint) == (1, True)


def test_what_retention_does_is_there_as_json(run: Run, log: EventLog) -> None:
    ended(log)
    (told,) = map(json.loads, run("retain", "--dry-run", "--json")[1])
    assert [(each["segment"], each["action"]) for each in told["segments"]] == [(1, "keep")]
    assert list(map(json.loads, run("retain", "--status", "success", "--json")[1])) == [
        {"dry_run": False, "pages": 1, "runs": 1}
    ]


@pytest.mark.parametrize(("size", "text"), [(0, "0 B"), (1536, "1.5 KiB"), (3 << 30, "3.0 GiB"), (5 << 40, "5.0 TiB")])
def test_sizes_are_for_people(size: int, text: str) -> None:
    assert size_of(size) == text
