"""`runs-es projections drop`: versions of read models that no release in use has any more."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import Connection

from runs_es.settings import Settings
from runs_projections import tracking
from tests.api.test_cli import run as run  # the fixture
from tests.api.test_cli import two_runs
from tests.conftest import SCHEMA


@pytest.fixture
def upgraded(settings: Settings, database_url: str) -> Iterator[Connection[Any]]:
    """A database that a release with version 1 of `threads` and of a user's `durations` has left tracks in."""
    asyncio.run(two_runs(settings))
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(f"set search_path to {SCHEMA}")
        connection.execute(
            "insert into tracking (name, version, position) values ('threads', 1, 1), ('durations', 1, 1)"
        )
        connection.execute(
            "insert into threads (thread_id, status, metadata, created_at, updated_at, interrupts, active,"
            " ended_status, created_seq, revision, position, created_order, updated_order, searchable)"
            " values ('t', 'idle', '{}', '', '', '{}', '{}', '', 1, 1, 1, now(), now(), '{}')"
        )
        connection.execute("create table durations_v1 (thread_id text)")
        yield connection


def versions(connection: Connection[Any]) -> set[tuple[str, int]]:
    rows = connection.execute("select name, version from tracking where name in ('threads', 'durations')").fetchall()
    return {(name, version) for name, version in rows}


def test_a_version_that_is_left_behind_is_told_with_what_to_do_and_goes(
    run, upgraded: Connection[Any], database_url: str
):  # type: ignore[no-untyped-def]
    told = run("projections", "status", "--max-lag", "1e9", RUNS_ES_DATABASE_URL=database_url)
    assert "`runs-es projections drop threads 1`" in told.err
    dropped = run("projections", "drop", "threads", "1", "--yes")
    assert (dropped.code, dropped.err) == (0, "")
    assert "in the table threads" in dropped.out
    assert run("projections", "drop", "durations", "1", "--yes").code == 0
    assert versions(upgraded) == {("threads", 2)}
    # A later migration may change the table of a built-in one; a user's is theirs alone.
    assert upgraded.execute("select count(*) from threads").fetchone() == (0,)
    assert upgraded.execute("select to_regclass('durations_v1')").fetchone() == (None,)
    assert "left behind" not in run("projections", "status", "--max-lag", "1e9").err
    assert run("rebuild", "--verify").code == 0


def test_what_is_in_use_or_not_there_or_still_followed_stays(  # type: ignore[no-untyped-def]
    run, upgraded: Connection[Any], database_url: str
):
    for name, version, words in (
        ("threads", "2", "is in use by this release"),
        ("webhooks", "1", "is in use by this release"),
        ("threads", "7", "there is no version 7 of a read model threads"),
    ):
        refused = run("projections", "drop", name, version, RUNS_ES_DATABASE_URL=database_url)
        assert (refused.code, words in refused.err) == (1, True)
    with psycopg.connect(database_url, autocommit=True) as older, tracking.unled(older, SCHEMA, "threads", 1):
        refused = run("projections", "drop", "threads", "1", "--yes")
    assert (refused.code, "a process still follows the log" in refused.err) == (1, True)
    assert versions(upgraded) == {("threads", 1), ("threads", 2), ("durations", 1)}


def test_drop_looks_before_it_asks_and_no_is_no(  # type: ignore[no-untyped-def]
    run, upgraded: Connection[Any], database_url: str, monkeypatch: pytest.MonkeyPatch
):
    asked: list[str] = []

    def no(question: str, **_: object) -> None:
        asked.append(question)
        raise KeyboardInterrupt

    monkeypatch.setattr("typer.confirm", no)
    assert run("projections", "drop", "durations", "1", RUNS_ES_DATABASE_URL=database_url).code == 130
    assert len(asked) == 1
    assert re.fullmatch(r"Drop version 1 of durations, and [0-9.]+ \w+ in the table durations_v1\?", asked[0])
    assert ("durations", 1) in versions(upgraded)
