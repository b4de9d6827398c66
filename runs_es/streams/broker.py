"""Streams as events rather than bytes, and the broker of one run: publish, subscribe, clean up; backed by the log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from runs_es.log.pages import data_of, event_of
from runs_es.streams.cursor import End, Frames, Gap, Heartbeat, RunStream, RunStreams, parse_cursor


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
    """Where a broker's frames go: the active attempt of the run."""

    async def publish(self, event: str, data: Any) -> None: ...

    async def flush(self) -> None: ...


class LogRunStreamBroker:
    """The stream of one run. Subscribing needs no publisher; publishing is for whoever executes the run."""

    def __init__(
        self, streams: RunStreams, thread_id: str, run_id: str, publisher: FramePublisher | None = None
    ) -> None:
        self._streams = streams
        self._thread_id = thread_id
        self._run_id = run_id
        self._publisher = publisher

    async def publish(self, event: str, data: Any) -> None:
        """Append one frame. Raises LeaseLost when the run is not this process's to write."""
        await self._must_publish().publish(event, data)

    async def publish_terminal(self, event: str = "end") -> None:
        """Make everything published durable. The end itself is the run's terminal fact, rendered as `end`."""
        if event != "end":
            raise ValueError(f"the terminal event of a stream is end, not {event}")
        await self._must_publish().flush()

    async def subscribe(
        self, last_event_id: str | None = None, heartbeat_interval: float = 15.0
    ) -> AsyncIterator[RunStreamEvent]:
        """The run's events after an id, from the start for None, then live, until `end`. Raises RunNotFound."""
        after = parse_cursor(last_event_id)
        stream = await self._streams.open(self._thread_id, self._run_id, after, heartbeat=heartbeat_interval)
        async for event in stream_events(stream):
            yield event

    async def cleanup(self, delay: float = 0.0) -> None:
        """Nothing is lost: the log keeps the stream, and memory goes with the last subscriber."""
        await asyncio.sleep(delay)

    def _must_publish(self) -> FramePublisher:
        if self._publisher is None:
            raise ValueError(f"run {self._run_id} is not executed here: this broker can only be subscribed to")
        return self._publisher
