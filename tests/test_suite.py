"""The suite's own rules: no result depends on what threads beside a test do."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


@pytest.fixture
def busy_generator() -> Iterator[None]:
    """A thread that draws from the global generator, as threads of libraries do."""
    stop = threading.Event()

    def draw() -> None:
        while not stop.is_set():
            random.random()  # noqa: TID251

    thread = threading.Thread(target=draw)
    thread.start()
    yield
    stop.set()
    thread.join()


@pytest.mark.usefixtures("busy_generator")
@given(data=st.data())
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_strategies_draw_while_another_thread_uses_the_global_generator(data: st.DataObject) -> None:
    for _ in range(50):
        assert data.draw(st.integers(0, 9)) in range(10)
