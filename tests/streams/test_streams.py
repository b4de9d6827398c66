"""Streams over a real log: from any id the rest, byte for byte; live and replayed the same; gaps said aloud."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runs_es.domain import BadSequence, Fact, LeaseLost, Run, RunNotFound, RunStatus, ThreadCreated, now
from runs_es.log import retention, segments, session
from runs_es.log.append import PAGE_TOPIC, Appended
from runs_es.log.event_log import EventLog
from runs_es.log.pages import encode_page, frame, rendered
from runs_es.log.reader import Row
from runs_es.log.run_writer import RunWriter
from runs_es.streams.broker import LogRunStreamBroker
from runs_es.streams.cursor import End, Frames, Gap, Heartbeat, RunStreams, is_shown, parse_cursor
from runs_es.streams.hub import Hub
from runs_es.streams.thread_cursor import open_feed

END = b"event: end\r\ndata: null\r\nid: %d\r\n\r\n"


@dataclass
class House:
    """A log, its hub and streams, as one process has them."""

    log: EventLog
    streams: RunStreams


@pytest.fixture
def house(database_url: str) -> Iterator[House]:
    with EventLog(database_url) as log, ThreadPoolExecutor(8) as threads:
        yield House(log, RunStreams(Hub(log, ring_bytes=1 << 20), log.reader, threads))


@pytest.fixture
def other_house(database_url: str) -> Iterator[House]:
    """Another process, as far as the log can tell; it keeps nothing in memory."""
    with EventLog(database_url) as log, ThreadPoolExecutor(8) as threads:
        yield House(log, RunStreams(Hub(log, ring_bytes=0), log.reader, threads))


class Recording:
    """A run being written: what the log was given, and so what every reader must get."""

    def __init__(self, log: EventLog) -> None:
        self.log = log
        self.thread_id = str(uuid.uuid4())
        created = ThreadCreated(thread_id=self.thread_id, occurred_at=now())
        born = log.append(self.thread_id, [created], expected=0).result(10)
        self.run, claimed = self._started(born)
        self.claimed = claimed
        self.writer = RunWriter(
            log.writer, thread_id=self.thread_id, run_id=self.run.run_id, fence=claimed.fence, frames=claimed.frames
        )
        self.bodies = [frame("metadata", b"{}")]

    def _started(self, born: Appended) -> tuple[Run, Appended]:
        run = Run.create(run_id=str(uuid.uuid4()), thread_id=self.thread_id, assistant_id="a")
        run.mark_claimed(claim_id="c")
        run.mark_started()
        page = (run.run_id, [frame("metadata", b"{}")])
        facts = run.pull_events()
        return run, self.log.append(self.thread_id, facts, expected=born.revision, page=page).result(10)

    def publish(self, count: int, event: str = "custom") -> None:
        for _ in range(count):
            body = frame(event, b'"%d"' % len(self.bodies))
            self.bodies.append(body)
            self.writer.publish(body)

    def settle(self) -> None:
        last = self.writer.last()
        assert last is not None
        last.result(10)

    def finish(self) -> int:
        self.run.mark_completed()
        items = [self.log.item(fact) for fact in self.run.pull_events()]
        return self.writer.record(*items).result(10).last_seq


async def bytes_after(house: House, recording: Recording, after: int = 0) -> bytes:
    """The whole stream after an id, until its end, as it would go out."""
    stream = await house.streams.open(recording.thread_id, recording.run.run_id, after, heartbeat=5)
    out = b""
    async for step in stream.steps():
        if isinstance(step, Frames):
            out += step.encoded()
        elif isinstance(step, End):
            out += END % step.seq
        elif isinstance(step, Gap):
            raise AssertionError(f"unexpected gap {step}")
    return out


def events(raw: bytes) -> list[tuple[int, bytes]]:
    """(id, bytes) of each event of a stream."""
    found = []
    for part in raw.split(b"\r\n\r\n")[:-1]:
        found.append((int(part.rpartition(b"id: ")[2]), part + b"\r\n\r\n"))
    return found


async def test_from_every_id_a_join_gives_exactly_the_rest(house: House, other_house: House) -> None:
    recording = Recording(house.log)
    dice = random.Random(7)
    while len(recording.bodies) < 120:
        recording.publish(dice.randint(1, 9))
        if dice.random() < 0.5:
            recording.settle()
    end = recording.finish()
    whole = await bytes_after(house, recording)
    all_events = events(whole)
    assert [body for _, body in all_events[:-1]] == [
        body + b"id: %d\r\n\r\n" % seq for body, (seq, _) in zip(recording.bodies, all_events, strict=False)
    ]
    assert all_events[-1] == (end, END % end)
    for reader in (house, other_house):
        for index, (seq, _) in enumerate(all_events):
            rest = b"".join(body for _, body in all_events[index + 1 :]) or END % end
            assert await bytes_after(reader, recording, seq) == rest


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pages=st.lists(st.integers(1, 12), min_size=1, max_size=12),
    joiners=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 160), st.booleans()), min_size=1, max_size=8),
)
async def test_however_joins_and_appends_interleave_each_stream_is_a_suffix_of_the_whole(
    house: House, other_house: House, pages: list[int], joiners: list[tuple[int, int, bool]]
) -> None:
    recording = Recording(house.log)
    tasks: list[tuple[int, asyncio.Task[bytes]]] = []

    def join_those_due(step: int) -> None:
        for when, after, elsewhere in joiners:
            if when == step:
                head = recording.log.reader.head(recording.thread_id)
                assert head is not None
                cursor = min(after, head.seq)
                reader = other_house if elsewhere else house
                tasks.append((cursor, asyncio.create_task(bytes_after(reader, recording, cursor))))

    for step, size in enumerate(pages):
        join_those_due(step)
        recording.publish(size)
        await asyncio.sleep(0)
    recording.settle()
    for step in range(len(pages), 13):
        join_those_due(step)
    end = recording.finish()
    whole = events(await bytes_after(house, recording))
    for cursor, task in tasks:
        rest = b"".join(body for seq, body in whole if seq > cursor) or END % end
        assert await asyncio.wait_for(task, 20) == rest


async def test_fifty_joiners_of_a_live_run_at_random_cursors_get_the_same_rest(
    house: House, other_house: House
) -> None:
    recording = Recording(house.log)
    recording.publish(100)
    recording.settle()
    dice = random.Random(1)
    cursors = [dice.randint(0, 100) for _ in range(50)]
    readers = [house if index % 2 else other_house for index in range(50)]
    joined = [
        asyncio.create_task(bytes_after(reader, recording, cursor))
        for reader, cursor in zip(readers, cursors, strict=True)
    ]
    for _ in range(20):
        recording.publish(5)
        await asyncio.sleep(0)
    end = recording.finish()
    whole = events(await bytes_after(house, recording))
    for cursor, task in zip(cursors, joined, strict=True):
        rest = b"".join(body for seq, body in whole if seq > cursor) or END % end
        assert await asyncio.wait_for(task, 20) == rest


async def test_a_run_that_has_not_started_keeps_its_joiner_waiting_until_it_does(house: House) -> None:
    first = Recording(house.log)
    second = Run.create(run_id="second", thread_id=first.thread_id, assistant_id="a")
    house.log.append(first.thread_id, second.pull_events(), expected=first.claimed.revision).result(10)
    stream = await house.streams.open(first.thread_id, "second", heartbeat=0.05)
    steps = stream.steps()
    assert isinstance(await anext(steps), Heartbeat)
    first.publish(3)
    ended = first.finish()
    head = house.log.reader.head(first.thread_id)
    assert head is not None
    assert head.seq == ended
    second.mark_cancelled()
    house.log.append(first.thread_id, second.pull_events(), expected=head.revision).result(10)
    found = [step async for step in steps if not isinstance(step, Heartbeat)]
    assert [type(step) for step in found] == [End]


async def test_an_id_beyond_the_thread_is_a_gap_with_the_bounds_of_what_there_is(house: House) -> None:
    recording = Recording(house.log)
    recording.publish(3)
    end = recording.finish()
    stream = await house.streams.open(recording.thread_id, recording.run.run_id, end + 1)
    (step,) = [step async for step in stream.steps()]
    assert isinstance(step, Gap)
    assert step.payload() == {
        "code": "stream_replay_gap",
        "run_id": recording.run.run_id,
        "requested_event_id": str(end + 1),
        "earliest_available_event_id": str(end - 4),
        "latest_available_event_id": str(end),
    }


async def test_what_retention_cut_is_a_gap_and_what_is_left_is_exact(house: House, database_url: str) -> None:
    recording = Recording(house.log)
    recording.publish(5)
    recording.settle()
    with session.connect(database_url, "runs_es", "test") as connection:
        segments.rotate(connection)
        segments.drop(connection, 1)
    recording.publish(4)
    end = recording.finish()
    first_kept = end - 4
    stream = await house.streams.open(recording.thread_id, recording.run.run_id, 0)
    (gap,) = [step async for step in stream.steps()]
    assert isinstance(gap, Gap)
    assert (gap.earliest, gap.latest) == (first_kept, end)
    rest = events(await bytes_after(house, recording, first_kept - 1))
    assert [seq for seq, _ in rest] == list(range(first_kept, end + 1))


async def test_what_retention_took_of_another_run_is_no_gap(
    house: House, other_house: House, database_url: str
) -> None:
    """A run that was handed over while an older, delayed one came due: that one's frames lie between its own."""
    log, thread_id = house.log, str(uuid.uuid4())
    delayed, run = (Run.create(run_id=str(uuid.uuid4()), thread_id=thread_id, assistant_id="a") for _ in range(2))

    def attempt(of: Run, claim: str, frames: int, revision: int, *before: Fact) -> Appended:
        of.mark_claimed(claim_id=claim)
        of.mark_started()
        claimed = log.append(thread_id, [*before, *of.pull_events()], expected=revision).result(10)
        writer = RunWriter(
            log.writer, thread_id=thread_id, run_id=of.run_id, fence=claimed.fence, frames=claimed.frames
        )
        writer.publish(*(frame("custom", b"%d" % number) for number in range(frames)))
        if claim == "handed over":
            of.requeue()
        else:
            of.mark_completed() if of is run else of.mark_failed("boom")
        return writer.record(*(log.item(fact) for fact in of.pull_events())).result(10)

    created = ThreadCreated(thread_id=thread_id, occurred_at=now())
    after = attempt(run, "handed over", 3, 0, created, *delayed.pull_events())
    after = attempt(delayed, "first", 3, after.revision)
    attempt(run, "second", 3, after.revision)

    async def steps(of: House, cursor: int) -> list[object]:
        stream = await of.streams.open(thread_id, run.run_id, cursor)
        return [
            [seq for seq, _ in step.items()] if isinstance(step, Frames) else type(step)
            async for step in stream.steps()
        ]

    async def feed(cursor: int) -> list[type]:
        opened = await open_feed(house.streams, thread_id, run.run_id, cursor)
        return [type(step) async for step in opened.steps()]

    whole = await steps(house, 0)
    assert whole[-1] is End
    assert len(whole) == 3
    with session.connect(database_url, "runs_es", "test") as connection:
        deleted = retention.delete_pages(connection, statuses=[RunStatus.ERROR])
    assert deleted == retention.Deleted(1, 1)

    assert await steps(house, 0) == await steps(other_house, 0) == whole
    assert await steps(house, whole[0][-1]) == whole[1:]
    assert (await feed(0))[-1] is End
    with session.connect(database_url, "runs_es", "test") as connection:
        retention.delete_pages(connection, statuses=[RunStatus.SUCCESS])
    assert await steps(house, 0) == [Gap]
    assert (await feed(0))[-1] is Gap


async def test_an_unknown_run_is_refused_before_the_stream(house: House) -> None:
    recording = Recording(house.log)
    with pytest.raises(RunNotFound):
        await house.streams.open(recording.thread_id, "nobody")
    with pytest.raises(RunNotFound):
        await house.streams.open("nowhere", recording.run.run_id)


async def test_closing_ends_streams_without_an_end(house: House) -> None:
    recording = Recording(house.log)
    stream = await house.streams.open(recording.thread_id, recording.run.run_id, heartbeat=30)
    steps = stream.steps()
    assert isinstance(await anext(steps), Frames)
    waiting = asyncio.ensure_future(anext(steps, None))
    await asyncio.sleep(0)
    house.streams.close()
    assert await asyncio.wait_for(waiting, 10) is None


@asynccontextmanager
async def subscribed(
    broker: LogRunStreamBroker, run_id: str, after: str | None
) -> AsyncIterator[list[tuple[str, str]]]:
    yield [(event.id, event.event) async for event in broker.subscribe(run_id, last_event_id=after)]


async def test_the_broker_replays_and_ends(house: House) -> None:
    recording = Recording(house.log)
    recording.publish(2, "values")
    end = recording.finish()
    run_id = recording.run.run_id
    broker = LogRunStreamBroker(house.streams, lambda _: None)
    async with subscribed(broker, run_id, None) as all_of_it:
        assert [name for _, name in all_of_it] == ["metadata", "values", "values", "end"]
    async with subscribed(broker, run_id, str(end - 1)) as last:
        assert last == [(str(end), "end")]
    await broker.cleanup(run_id)
    async with subscribed(broker, run_id, "-1") as again:
        assert again == all_of_it
    with pytest.raises(LeaseLost, match="not executed by this store"):
        await broker.publish(run_id, "custom", 1)
    with pytest.raises(RunNotFound):
        await anext(broker.subscribe("no such run"))


@pytest.mark.parametrize(
    ("text", "seq"), [(None, 0), ("-1", 0), ("0", 0), ("17", 17), ("17-0", 17), ("17-*", 17), ("-1-0", 0)]
)
def test_a_cursor_is_a_number_or_minus_one(text: str | None, seq: int) -> None:
    assert parse_cursor(text) == seq


@pytest.mark.parametrize("text", ["", " 1", "1 ", "abc", "-2", "+1", "1-1", "1.0", "٣", "9" * 20, "-", "1-0-0", "\n1"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(BadSequence):
        parse_cursor(text)


def test_a_filter_by_mode_never_hides_metadata_and_error() -> None:
    only = frozenset({"messages-tuple"})
    events = ["metadata", "error", "values", "messages", "messages|n:1", "messages/partial"]
    assert [event for event in events if not is_shown(event, only)] == ["values"]


@pytest.mark.parametrize("skip", [0, 1, 4])
def test_pages_that_go_out_together_are_those_pages_end_to_end(skip: int) -> None:
    names = ["values", "custom", "custom", "metadata", "values", "custom"]
    bodies = [frame(name, b'"%d"' % number) for number, name in enumerate(names)]
    rows = [Row(7, 8, "r", PAGE_TOPIC, encode_page(bodies[:2]))]
    rows += [Row(9 + n, 9 + n, "r", PAGE_TOPIC, encode_page([body])) for n, body in enumerate(bodies[2:])]
    frames = Frames(rows, skip)
    written = [rendered(body, 7 + n) for n, body in enumerate(bodies)]
    assert frames.encoded() == b"".join(written[skip:])
    wanted = [each for each, name in zip(written, names, strict=True) if name in ("values", "metadata")]
    assert frames.encoded(frozenset({"values"})) == b"".join(each for each in wanted if each in written[skip:])
    assert frames.items() == list(enumerate(bodies, 7))[skip:]
