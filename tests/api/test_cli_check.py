"""`runs-es check`."""

from __future__ import annotations

import json

import psycopg

from runs_es.settings import Settings
from tests.api.test_cli import run as run  # the fixture
from tests.api.test_cli import two_runs


async def test_where_all_is_well_it_says_so_and_how_fast_it_was(run, settings: Settings, database_url: str):  # type: ignore[no-untyped-def]
    await two_runs(settings)
    result = run("check", "--json", RUNS_ES_DATABASE_URL=database_url)
    assert result.code == 0, result.out
    told = json.loads(result.out)
    assert (told["ok"], told["findings"], told["threads"]) == (True, [], 1)
    assert "all is well" in run("check", RUNS_ES_DATABASE_URL=database_url).out


async def test_what_is_wrong_is_a_table_and_an_exit_code(run, settings: Settings, database_url: str):  # type: ignore[no-untyped-def]
    await two_runs(settings)
    with psycopg.connect(database_url) as connection:
        connection.execute("set search_path to runs_es")
        connection.execute("update heads set head = head + 5")
        connection.execute("update tracking set position = 10000 where name = 'messages'")
    result = run("check", RUNS_ES_DATABASE_URL=database_url)
    assert result.code == 1
    assert "heads equal rows" in result.out
    assert "`runs-es rebuild messages`" in result.out
    assert "findings" in result.err
    told = json.loads(run("check", "--json", RUNS_ES_DATABASE_URL=database_url).out)
    assert not told["ok"]
    assert {each["check"] for each in told["findings"]} == {"heads equal rows", "read models follow the log"}


def test_a_database_that_was_never_migrated_is_a_finding(run, empty_database_url: str):  # type: ignore[no-untyped-def]
    result = run("check", RUNS_ES_DATABASE_URL=empty_database_url)
    assert result.code == 1
    assert "is not applied: run `runs-es migrate`" in result.out
    assert "the log was not looked at" in result.out


async def test_a_read_model_that_no_server_has_begun_is_told_and_is_no_finding(  # type: ignore[no-untyped-def]
    run, settings: Settings, database_url: str
):
    """Between the migration of a new release and its first server."""
    await two_runs(settings)
    with psycopg.connect(database_url) as connection:
        connection.execute("update runs_es.tracking set version = 1 where name = 'threads'")
    result = run("check", RUNS_ES_DATABASE_URL=database_url)
    assert (result.code, result.err) == (0, ""), result.out
    assert "threads version 2" in result.out
    assert json.loads(run("check", "--json").out)["read_models_not_begun"] == ["threads version 2"]
