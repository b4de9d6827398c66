"""A log, and a projector that follows it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from runs_es.log.event_log import EventLog
from runs_projections import LiveProjector


@pytest.fixture
def log(database_url: str) -> Iterator[EventLog]:
    with EventLog(database_url) as opened:
        yield opened


@pytest.fixture
def projector(log: EventLog) -> Iterator[LiveProjector]:
    with LiveProjector(log) as started:
        yield started
