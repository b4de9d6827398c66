"""`runs-es diff` and `runs-es history --as-of`."""

from __future__ import annotations

import json

from runs_es.domain import RunScope
from runs_es.execution.protocol import ActiveRun
from runs_es.service.commands import CreateRunCommand
from runs_es.settings import Settings
from runs_projections.wiring import open_store
from tests.api.test_cli import run as run  # the fixture
from tests.api.test_cli import two_runs


class Telling:
    async def execute(self, run: ActiveRun) -> None:
        await run.publish("values", {"n": 1})


async def test_a_run_is_compared_with_what_it_was(run, settings: Settings, database_url: str):  # type: ignore[no-untyped-def]
    cancelled, waiting = await two_runs(settings)
    result = run("diff", cancelled, RUNS_ES_DATABASE_URL=database_url)
    assert (result.code, result.err) == (0, "")
    assert f"--- run {cancelled} at seq 2: pending" in result.out
    assert ": interrupted" in result.out
    assert "  ~ /status\n      - pending\n      + interrupted\n" in result.out
    assert "no differences" in run("diff", waiting, RUNS_ES_DATABASE_URL=database_url).out


async def test_two_runs_are_compared_as_they_are_and_json_is_that_of_the_api(
    run, settings: Settings, database_url: str
):  # type: ignore[no-untyped-def]
    cancelled, waiting = await two_runs(settings)
    result = run("diff", cancelled, waiting, "--json", RUNS_ES_DATABASE_URL=database_url)
    assert result.code == 0
    found = json.loads(result.out)
    assert (found["from"]["run_id"], found["to"]["run_id"]) == (cancelled, waiting)
    assert found["run"] == [{"path": "/status", "change": "changed", "from": "interrupted", "to": "pending"}]


async def test_a_diff_of_what_was_not_there_says_what_there_is(run, settings: Settings, database_url: str):  # type: ignore[no-untyped-def]
    cancelled, waiting = await two_runs(settings)
    for arguments, code, words in (
        (("nope",), 1, "there is no run nope"),
        ((cancelled, "--from", "1"), 1, "was not there at seq 1; it is told of from 2 to 4"),
        ((cancelled, "--to", "99"), 2, "the seq asked for is 99, but the thread has only come to seq"),
        ((cancelled, "--from", "4", "--to", "3"), 2, "--from 4 is after --to 3"),
        ((cancelled, waiting, "--from", "4"), 2, "leave out --from and --to"),
    ):
        result = run("diff", *arguments, RUNS_ES_DATABASE_URL=database_url)
        assert result.code == code
        assert words in result.err


async def test_history_goes_up_to_a_seq(run, settings: Settings, database_url: str):  # type: ignore[no-untyped-def]
    cancelled, _ = await two_runs(settings)
    result = run("history", cancelled, "--as-of", "3", RUNS_ES_DATABASE_URL=database_url)
    assert result.code == 0
    assert [line.split("\t")[0] for line in result.out.splitlines()] == ["seq", "2", "3"]
    early = run("history", cancelled, "--as-of", "1", RUNS_ES_DATABASE_URL=database_url)
    assert (early.code, "it was created at 2" in early.err) == (1, True)
    late = run("history", cancelled, "--as-of", "77", RUNS_ES_DATABASE_URL=database_url)
    assert (late.code, "--as-of is 77" in late.err) == (2, True)


async def test_a_stateless_run_is_compared_after_its_thread_has_gone(run, settings: Settings, database_url: str):  # type: ignore[no-untyped-def]
    with open_store(settings, executor=Telling()) as store:
        made = await store.service.create_background(
            CreateRunCommand(assistant_id="agent", scope=RunScope.TEMPORARY_THREAD, create_thread=True)
        )
        ended = await store.service.ended(made.thread_id, made.run_id)
    result = run("diff", made.run_id, "--from", "3", RUNS_ES_DATABASE_URL=database_url)
    assert (result.code, result.err) == (0, "")
    assert f"+++ run {made.run_id} at seq {ended}: success" in result.out
    assert "state\n  ~ (all of it)" in result.out
    assert run("history", made.run_id, "--as-of", "3").code == 0
