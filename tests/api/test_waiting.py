"""A result that is waited for: newlines first, JSON last, and a cut connection where there is no result to send."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from runs_api.waiting import ResultWhenEnded
from runs_es.domain import RunNotFound
from runs_es.settings import Settings
from tests.api.asgi import Connection

QUICK = Settings(stream_heartbeat_seconds=0.01)


def response(result: Any, **named: Any) -> ResultWhenEnded:
    return ResultWhenEnded(result, QUICK, headers={"Location": "/runs/r/join"}, **named)


async def test_newlines_come_while_the_run_goes_on_and_the_result_is_json():
    ended = asyncio.Event()

    async def result() -> dict[str, Any]:
        await ended.wait()
        return {"answer": 42}

    connection = Connection()
    task = connection.start(response(result))
    await connection.until(b"\n\n")
    ended.set()
    await asyncio.wait_for(task, 10)
    assert json.loads(connection.body) == {"answer": 42}
    assert connection.complete
    assert connection.headers["location"] == "/runs/r/join"


async def test_a_result_that_is_there_comes_without_newlines():
    async def result() -> str:
        return "done"

    connection = Connection()
    await asyncio.wait_for(connection.start(response(result)), 10)
    assert connection.body == b'"done"'


async def test_a_wait_that_cannot_be_answered_is_cut_so_that_the_client_asks_again():
    async def result() -> None:
        raise RunNotFound("r")  # what a wait ends in when the process shuts down

    connection = Connection()
    await asyncio.wait_for(connection.start(response(result)), 10)
    assert connection.messages[0]["status"] == 200
    assert not connection.complete


async def test_a_client_that_leaves_ends_the_wait_and_is_told_of():
    left, stopped = asyncio.Event(), asyncio.Event()

    async def result() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    async def on_left() -> None:
        left.set()

    connection = Connection()
    task = connection.start(response(result, on_client_left=on_left))
    await connection.until(b"\n")
    connection.gone.set()
    await asyncio.wait_for(task, 10)
    assert left.is_set()
    assert stopped.is_set()
