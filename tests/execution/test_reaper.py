"""Checkpoints of threads that are gone go too."""

from __future__ import annotations

import asyncio

import psycopg

from runs_es.domain import RunScope
from runs_es.service.commands import CreateRunCommand
from runs_es.settings import Settings
from runs_projections.wiring import open_store


def checkpoints(url: str, thread_id: str) -> int:
    with psycopg.connect(url) as connection:
        row = connection.execute(
            "select count(*) from runs_es_checkpoints.checkpoints where thread_id = %s", (thread_id,)
        ).fetchone()
    assert row is not None
    return int(row[0])


async def test_checkpoints_of_a_temporary_thread_leave_after_its_run_and_others_stay(settings: Settings) -> None:
    url = str(settings.database_url)
    store = await asyncio.to_thread(lambda: open_store(settings.model_copy(update={"sweep_seconds": 0.1})))
    try:
        given = {"input": {"messages": [{"role": "user", "content": "hi"}], "tokens": 1, "delay": 0}}
        kept = await store.service.create_background(
            CreateRunCommand(assistant_id="agent", scope=RunScope.STATELESS, **given)
        )
        gone = await store.service.create_background(
            CreateRunCommand(assistant_id="agent", scope=RunScope.TEMPORARY_THREAD, **given)
        )
        for run in (kept, gone):
            await store.service.ended(run.thread_id, run.run_id)
        while await asyncio.to_thread(checkpoints, url, gone.thread_id):
            pass
        assert await asyncio.to_thread(checkpoints, url, kept.thread_id) > 0
    finally:
        await asyncio.to_thread(store.close)
