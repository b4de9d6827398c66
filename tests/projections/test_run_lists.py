"""Runs across threads: filters, pages that hold still, and the two functions that indexes rest on."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runs_es.domain import RunCreated
from runs_es.log.event_log import EventLog
from runs_es.service.commands import FindRunsQuery
from runs_es.service.views import RunSnapshot
from runs_projections import LiveProjector, ProjectedRuns
from runs_projections.run_lists import cursor_of
from runs_projections.stored_text import encoded, searchable
from tests.projections.histories import METADATA, VALUES, random_stories
from tests.projections.test_readers import Author


@pytest.fixture
def runs(log: EventLog, projector: LiveProjector) -> ProjectedRuns:
    return ProjectedRuns(log, projector)


def pages(runs: ProjectedRuns, limit: int, **asked: Any) -> list[RunSnapshot]:
    """All pages, one after the other."""
    found: list[RunSnapshot] = []
    after = None
    while True:
        page = runs.find(FindRunsQuery(limit=limit, after=after, **asked))
        assert page.current
        found += page
        if len(page) < limit:
            return found
        after = cursor_of(page[-1])


def names(found: list[RunSnapshot]) -> list[str]:
    return [run.run_id for run in found]


def test_any_page_size_and_filter_gives_what_a_filter_of_everything_gives(log: EventLog, runs: ProjectedRuns) -> None:
    random_stories(log, 5, threads=8, steps=800)
    every = pages(runs, 1000)
    assert len(every) > 30
    middle = every[len(every) // 2]
    asked: list[tuple[dict[str, Any], Any]] = [
        ({}, lambda run: True),
        ({"status": "error"}, lambda run: run.status == "error"),
        ({"thread_id": middle.thread_id}, lambda run: run.thread_id == middle.thread_id),
        ({"user_id": "ann"}, lambda run: run.user_id in (None, "ann")),
        ({"owner": "bob\x00"}, lambda run: run.user_id == "bob\x00"),
        ({"owner": "bob\x00", "user_id": "ann"}, lambda run: False),
        ({"metadata": {"nul": "\x00"}}, lambda run: run.metadata.get("nul") == "\x00"),
        ({"assistant_id": "nobody"}, lambda run: False),
    ]
    for filters, holds in asked:
        expected = [run for run in every if holds(run)]
        for limit in (1, 7, 1000):
            assert pages(runs, limit, **filters) == expected


def test_times_bound_the_creation_whatever_their_offset(log: EventLog, runs: ProjectedRuns) -> None:
    author = Author(log)
    for hour in range(5):
        author.write(_created(author, f"r{hour}", f"2026-01-02T0{hour}:00:00+00:00"))
    author.write(_created(author, "elsewhere", "2026-01-02T03:30:00+01:00"))

    assert names(runs.find(FindRunsQuery())) == ["r4", "r3", "elsewhere", "r2", "r1", "r0"]
    bounds = {"created_after": "2026-01-02T02:00:00+01:00", "created_before": "2026-01-02T03:00:00Z"}
    assert names(runs.find(FindRunsQuery(**bounds))) == ["elsewhere", "r2"]


def _created(author: Author, run_id: str, at: str) -> Any:
    return RunCreated(thread_id=author.thread_id, run_id=run_id, occurred_at=at, assistant_id="agent")


def test_pages_hold_still_while_runs_are_created_and_change(log: EventLog, runs: ProjectedRuns) -> None:
    author = Author(log)
    for number in range(20):
        author.run(f"r{number}")
    expected = names(pages(runs, 100))
    met: list[str] = []
    after = None
    for turn in range(7):
        page = runs.find(FindRunsQuery(limit=3, after=after))
        met += names(page)
        after = cursor_of(page[-1])
        author.run(f"new{turn}")
        author.start(f"r{turn}")
    assert met == expected


def test_runs_of_the_same_moment_are_told_apart(log: EventLog, runs: ProjectedRuns) -> None:
    author = Author(log)
    for number in range(9):
        author.write(_created(author, f"r{number}", "2026-01-02T03:00:00+00:00"))
    assert names(pages(runs, 2)) == [f"r{number}" for number in reversed(range(9))]


@pytest.mark.parametrize("cursor", ["x", "!!", "", "W10", "bnVsbA", "WzEsMiwzXQ", "é"])
def test_a_cursor_that_is_none_is_refused_in_words(runs: ProjectedRuns, cursor: str) -> None:
    with pytest.raises(ValueError, match="after is no cursor"):
        runs.find(FindRunsQuery(after=cursor))


def test_a_run_is_found_as_soon_as_it_is_written(log: EventLog, runs: ProjectedRuns) -> None:
    author = Author(log)
    for number in range(30):
        author.run(f"r{number}")
        assert runs.find(FindRunsQuery(limit=1))[0].run_id == f"r{number}"


TEXT = st.text(st.sampled_from('a"\\u0\x00\ufdd01/\n'), max_size=12)
JSON_VALUES = st.recursive(
    st.none() | TEXT | st.integers(-5, 5) | st.sampled_from(VALUES),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


def test_the_database_makes_the_same_of_json_as_stored_text_does(log: EventLog) -> None:
    with log.reader.connection() as connection:

        @given(value=JSON_VALUES)
        @settings(max_examples=300, deadline=None, derandomize=True, database=None)
        def check(value: Any) -> None:
            text = encoded(value)
            row = connection.execute("select searchable(%s::json) = %s::jsonb", (text, searchable(text))).fetchone()
            assert row == (True,)

        check()
        for metadata in METADATA:
            text = encoded(metadata)
            found = connection.execute("select searchable(%s::json)::text", (text,)).fetchone()
            assert found is not None
            assert orjson.loads(found[0]) == orjson.loads(searchable(text))
