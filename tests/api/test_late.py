"""A request that waits for a database which is away is ended in time, whatever it waits for."""

from __future__ import annotations

import asyncio

import pytest

from runs_api.late import LateRequest
from runs_es.database.outage import Outage
from tests.database.test_outage import NOWHERE


async def test_what_asks_the_database_to_cancel_its_query_is_not_waited_for() -> None:
    outage = Outage(NOWHERE)
    assert await asyncio.to_thread(outage.is_away, 30.0)
    asked: list[str] = []

    async def request() -> None:
        late = LateRequest(outage, 0.01, lambda: False)
        try:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                asked.append("cancel the query")  # as psycopg does, and a frozen database does not answer
                await asyncio.sleep(60)
        except asyncio.CancelledError:
            assert late.was_mine()
            await asyncio.sleep(0.6)  # it is not cancelled any more: the answer goes out
            asked.append("answered")
        finally:
            late.stop()
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    await asyncio.wait_for(request(), 30)
    assert asked == ["cancel the query", "answered"]


@pytest.mark.parametrize("is_answered", [True, False])
async def test_a_request_that_is_answered_or_slow_goes_on(is_answered: bool, database_url: str) -> None:
    late = LateRequest(Outage(database_url), 0.01, lambda: is_answered)
    await asyncio.sleep(0.5)
    late.stop()
    assert not late.was_mine()
