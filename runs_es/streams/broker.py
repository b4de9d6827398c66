"""Streams as events rather than bytes, and their broker: publish, subscribe, clean up; backed by the log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from runs_es.domain import LeaseLost, RunNotFound, checked_id
from runs_es.log.pages import data_of, event_of
from runs_es.streams.cursor import End, Frames, Gap, Heartbeat, RunStream, RunStreams, check_heartbeat, parse_cursor


@dataclass(frozen=True, slots=True)
class RunStreamEvent:
    """One event of a stream. Control events (heartbeat, gap) have an empty `id`."""

    id: str
    event: str
    data: Any


HEARTBEAT = RunStreamEvent("", "heartbeat", None)


async def stream_events(stream: RunStream) -> AsyncIterator[RunStreamEvent]:
    """The events of an open stream: frames, heartbeats, and `end` or `gap` as the last."""
    async for step in stream.steps():
        match step:
            case Frames():
                for seq, body in step.items():
                    yield RunStreamEvent(str(seq), event_of(body), orjson.loads(data_of(body)))
            case Heartbeat():
                yield HEARTBEAT
            case End():
                yield RunStreamEvent(str(step.seq), "end", None)
            case Gap():
                yield RunStreamEvent("", "gap", step.payload())


class FramePublisher(Protocol):
    """Where the frames of a run go while it is executed in this process. Called from any event loop."""

    async def publish(self, event: str, data: Any) -> None:
        """Append one frame."""

    async def flush(self) -> None:
        """Return once all frames are committed."""


class LogRunStreamBroker:
    """Streams of runs by their id. Anybody may subscribe; only while a run is executed here can be published to it.

    `publisher_of` answers None for a run that is not executed in this process.
    """

    def __init__(self, streams: RunStreams, publisher_of: Callable[[str], FramePublisher | None]) -> None:
        self._streams = streams
        self._publisher_of = publisher_of

    async def publish(self, run_id: str, event: str, data: Any) -> None:
        """Append one frame. Raises LeaseLost when the run is not this process's to write."""
        await self._publisher(run_id).publish(event, data)

    async def publish_terminal(self, run_id: str, *, event: str = "end", data: Any = None) -> None:
        """Make everything published durable. The end itself is the run's terminal fact, rendered as `end` without data.

        Raises ValueError for another event or data, LeaseLost as `publish`.
        """
        if event != "end" or data is not None:
            raise ValueError("the terminal event of a stream is `end`, without data: publish others before it")
        await self._publisher(run_id).flush()

    async def subscribe(
        self, run_id: str, *, last_event_id: str | None = None, heartbeat_interval: float = 15.0
    ) -> AsyncIterator[RunStreamEvent]:
        """The run's events after an id, from the start for None, then live, until `end` or `gap`.

        Raises RunNotFound, BadSequence; TypeError for an id that is no text.
        """
        after = parse_cursor(last_event_id)
        check_heartbeat(heartbeat_interval)
        thread_id = await self._streams.call(self._thread_of, checked_id("run_id", run_id))
        stream = await self._streams.open(thread_id, run_id.strip(), after, heartbeat=heartbeat_interval)
        async for event in stream_events(stream):
            yield event

    async def cleanup(self, run_id: str, *, delay: float = 0) -> None:
        """Wait `delay` seconds. The log keeps the stream, and its memory goes with the last subscriber."""
        checked_id("run_id", run_id)
        await asyncio.sleep(delay)

    def _thread_of(self, run_id: str) -> str:
        facts = self._streams.reader.run_facts(run_id)
        if not facts:
            raise RunNotFound(run_id)
        return facts[-1].fact.thread_id

    def _publisher(self, run_id: str) -> FramePublisher:
        found = self._publisher_of(checked_id("run_id", run_id))
        if found is None:
            raise LeaseLost(f"run {run_id} is not executed by this store: only what executes it may publish")
        return found
