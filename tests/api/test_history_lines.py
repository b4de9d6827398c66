"""What a history says of a fact on one line."""

from __future__ import annotations

from typing import Any

import pytest

from runs_api.history import what
from runs_es.domain import RequeueCause, RunRequeued


@pytest.mark.parametrize(
    ("why", "line"),
    [
        ({}, "attempt 2"),
        (
            {"cause": RequeueCause.WORKER_LOST, "silent_since": "2026-01-01T00:00:00+00:00"},
            "attempt 2: lost its worker host:1:a, silent since 2026-01-01T00:00:00+00:00",
        ),
        ({"cause": RequeueCause.WORKER_LOST}, "attempt 2: lost its worker host:1:a"),
        ({"cause": RequeueCause.WORKER_STOPPED}, "attempt 2: its worker host:1:a stopped"),
        (
            {"cause": RequeueCause.RETRY, "due_at": "2026-01-01T00:00:09+00:00", "error_type": "E", "error": "busy"},
            "attempt 2: again at 2026-01-01T00:00:09+00:00, after E: busy",
        ),
    ],
)
def test_a_requeue_says_why(why: dict[str, Any], line: str) -> None:
    fact = RunRequeued(
        thread_id="t", run_id="r", occurred_at="2026-01-01T00:00:05+00:00", attempt=2, worker_id="host:1:a", **why
    )
    assert what(fact) == f"run.requeued  {line}"
