"""Streams that wait while the database beneath them is restored: the rest, or a gap, and nothing from memory."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from runs_es.domain import CursorLost
from runs_es.log import restored
from runs_es.log.event_log import EventLog
from runs_es.log.numbers import WIDE
from runs_es.log.pages import frame
from runs_es.log.run_writer import RunWriter
from runs_es.streams.cursor import Frames, Gap, Heartbeat, RunStreams
from runs_es.streams.hub import Hub
from runs_es.streams.thread_cursor import open_feed
from runs_projections.readers import ProjectedEvents
from tests.conftest import SCHEMA
from tests.log.test_history import until
from tests.streams.test_streams import House, Recording

LOST = 6  # frames that the backup does not have


@pytest.fixture
def house(database_url: str) -> Iterator[House]:
    with EventLog(database_url) as log, ThreadPoolExecutor(8) as threads:
        yield House(log, RunStreams(Hub(log, ring_bytes=1 << 20), log.reader, threads))


def go_back(recording: Recording, head: int) -> None:
    """Leave of the thread what a backup had that was taken at `head`, as a restore does it: sessions are gone too."""
    with psycopg.connect(recording.log.url) as connection:
        connection.execute("set search_path to runs_es")
        connection.execute("set local runs_es.maintenance = 'test'")
        connection.execute("delete from events where thread_id = %s and seq > %s", (recording.thread_id, head))
        connection.execute(
            "update heads set head = %s, frames = frames - %s where thread_id = %s", (head, LOST, recording.thread_id)
        )
        # The database is another one from now on.
        connection.execute("update history set database_oid = 1")
        connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid()"
        )


def say_restored(url: str) -> None:
    with restored.connect(url, SCHEMA) as connection:
        restored.restore_numbers(connection)


async def test_streams_that_wait_across_a_restore_go_on_or_end_with_a_gap(house: House) -> None:
    recording = Recording(house.log)
    recording.publish(4)
    recording.settle()
    first = house.log.reader.head(recording.thread_id)
    assert first is not None
    kept = first.seq
    thread_id, run_id = recording.thread_id, recording.run.run_id
    waiting = await house.streams.open(thread_id, run_id, kept, heartbeat=0.1)
    steps = waiting.steps()
    recording.publish(LOST)
    recording.settle()
    ahead = await house.streams.open(thread_id, run_id, kept + LOST, heartbeat=0.1)
    feed = await open_feed(house.streams, thread_id, None, kept + 2, heartbeat=0.1)
    got = await anext(steps)
    assert isinstance(got, Frames)  # it has read what is lost
    assert len(got.items()) == LOST
    behind = await house.streams.open(thread_id, run_id, kept, heartbeat=0.1)

    await asyncio.to_thread(go_back, recording, kept)
    for each in (steps, ahead.steps(), feed.steps()):
        found = [step async for step in each if not isinstance(step, Heartbeat)]
        assert isinstance(found[-1], Gap), found
    await asyncio.to_thread(say_restored, house.log.url)
    live = behind.steps()
    reading = asyncio.create_task(_frames(live))
    await asyncio.to_thread(write_again, recording)
    frames = await asyncio.wait_for(reading, 30)
    assert frames[0][0] > kept + WIDE


def write_again(recording: Recording) -> None:
    """A frame of the run, by whoever has it in this history."""
    log = recording.log
    until(lambda: log.history.epoch == 1 and log.history.refusal is None)
    head = log.reader.head(recording.thread_id)
    assert head is not None
    ids = {"thread_id": recording.thread_id, "run_id": recording.run.run_id}
    RunWriter(log.writer, **ids, fence=head.fence, frames=head.frames).publish(frame("custom", b"1"))


async def _frames(steps: object) -> list[tuple[int, bytes]]:
    async for step in steps:  # type: ignore[attr-defined]
        if isinstance(step, Frames):
            return step.items()
    raise AssertionError("the stream ended without a frame")


async def test_a_process_that_has_not_looked_since_the_restore_gives_no_lost_cursor_the_rest(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = Recording(house.log)
    recording.publish(4)
    recording.finish()
    head = house.log.reader.head(recording.thread_id)
    assert head is not None
    until(lambda: house.log.history.epoch == 0)
    monkeypatch.setattr(house.log.history, "look", lambda _: None)
    await asyncio.to_thread(say_restored, house.log.url)
    for lost in (head.seq + 1, head.seq + WIDE - 1):
        stream = await house.streams.open(recording.thread_id, recording.run.run_id, lost, heartbeat=0.1)
        feed = await open_feed(house.streams, recording.thread_id, None, lost, frames=False, heartbeat=0.1)
        for steps in (stream.steps(), feed.steps()):
            assert isinstance(await anext(steps), Gap)
            await steps.aclose()  # type: ignore[attr-defined]
        with pytest.raises(CursorLost):
            ProjectedEvents(house.log).list_events_by_run(recording.thread_id, None, after_seq=lost)
