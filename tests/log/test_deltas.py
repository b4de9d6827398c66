"""States that repeat themselves are stored as deltas: they take little, come back byte for byte, and outlive no key."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from psycopg import Connection

from runs_es.domain import WriteConflict
from runs_es.log import retention, segments, session
from runs_es.log.append import Append, Appended, FactItem, PageItem
from runs_es.log.deltas import KEYS_AN_ATTEMPT, STATE_FROM, Deltas
from runs_es.log.event_log import EventLog
from runs_es.log.pages import DELTA, ZSTD, KeyPage, decode_page, encode_page, frame, key_of
from runs_es.log.reader import KeyPageGone, LogReader, Row
from runs_es.log.run_writer import RunWriter
from runs_es.service.application import last_values
from runs_es.streams.cursor import End, Frames, Gap, RunStreams
from runs_es.streams.hub import Hub
from runs_projections.events import list_events
from tests.conftest import new_folder
from tests.log.cutting_proxy import CuttingProxy
from tests.log.recording import Recording
from tests.log.states import values_frames

SAMPLES = Path(__file__).parent / "samples" / "pages"
MIB = 1024 * 1024
NOW = datetime.now(UTC)


@pytest.fixture
def log(database_url: str) -> Iterator[EventLog]:
    with EventLog(database_url) as log:
        yield log


@pytest.fixture(scope="module")
def shared_log(module_database_url: str) -> Iterator[EventLog]:
    with EventLog(module_database_url) as log:
        yield log


@pytest.fixture(scope="module")
def forgetful_log(module_database_url: str) -> Iterator[EventLog]:
    """Another process, which keeps no key page in memory."""
    with EventLog(module_database_url, key_bytes=0) as log:
        yield log


@pytest.fixture
def connection(database_url: str) -> Iterator[Connection[Any]]:
    with retention.connect(database_url, "runs_es") as connection:
        yield connection


def settled(writer: RunWriter) -> Appended:
    last = writer.last()
    assert last is not None
    return last.result(20)


def write(recording: Recording, bodies: list[bytes]) -> None:
    """A page each."""
    for body in bodies:
        recording.writer.publish(body)
        settled(recording.writer)


def pages(reader: LogReader, thread_id: str, after: int = 0) -> list[Row]:
    found: list[Row] = []
    while rows := reader.rows_after(thread_id, after, 1000):
        found += [row for row in rows if row.is_page]
        after = rows[-1].last
    return found


def forms(found: list[Row]) -> list[int]:
    return [row.state[0] for row in found]


async def joined(log: EventLog, recording: Recording, after: int = 0) -> list[bytes | Gap]:
    """The bodies that a join gets, or a gap."""
    with ThreadPoolExecutor(2) as threads:
        streams = RunStreams(Hub(log, ring_bytes=0), log.reader, threads)
        stream = await streams.open(recording.thread_id, recording.run.run_id, after)
        found: list[bytes | Gap] = []
        async for step in stream.steps():
            if isinstance(step, Frames):
                found += [body for _, body in step.items()]
            elif isinstance(step, Gap):
                found.append(step)
            else:
                assert isinstance(step, End)
    return found


# --- what is stored ---


async def test_a_state_that_grows_takes_less_than_a_tenth_of_what_is_streamed_and_comes_back_whole(
    log: EventLog,
) -> None:
    recording = Recording(log)
    bodies = list(values_frames(200, 100_000))
    write(recording, bodies)
    recording.finish()
    found = pages(log.reader, recording.thread_id)
    assert sum(len(row.state) for row in found) < sum(map(len, bodies)) / 10
    assert forms(found).count(DELTA) > 150
    assert await joined(log, recording) == bodies
    assert await joined(log, recording, found[100].last) == bodies[101:]


bursts = st.lists(
    st.tuples(
        st.sampled_from(["values", "values|sub", "messages/partial", "custom"]),
        st.sampled_from(["append", "front", "cut", "anew", "small"]),
        st.integers(0, 4000),
        st.booleans(),
    ),
    min_size=1,
    max_size=25,
)


@hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bursts=bursts, seed=st.integers(0, 1 << 30), start=st.floats(0, 1))
def test_whatever_is_published_in_whatever_pages_a_join_from_anywhere_gets_the_rest(
    shared_log: EventLog,
    forgetful_log: EventLog,
    bursts: list[tuple[str, str, int, bool]],
    seed: int,
    start: float,
) -> None:
    recording = Recording(shared_log)
    bodies: list[bytes] = []
    for body, ends_a_page in changing_states(bursts, seed):
        bodies.append(body)
        recording.writer.publish(body)
        if ends_a_page:
            settled(recording.writer)
    recording.finish()
    first = pages(shared_log.reader, recording.thread_id)[0].first
    skipped = int(start * len(bodies))
    for reader in (shared_log, forgetful_log):
        assert asyncio.run(joined(reader, recording, first + skipped - 1)) == bodies[skipped:]


def changing_states(bursts: list[tuple[str, str, int, bool]], seed: int) -> Iterator[tuple[bytes, bool]]:
    """Frames of states, each event's its own, and whether a page ends with it."""
    dice = random.Random(seed)
    states: dict[str, str] = {}
    for event, change, size, ends in bursts:
        state = states.get(event, "")
        fresh = dice.randbytes(size).hex()
        match change:
            case "append":
                state += fresh
            case "front":
                state = fresh[:9] + state[9:]
            case "cut":
                state = state[size:]
            case "anew":
                state = fresh
            case _:
                state = state[:99]
        states[event] = state
        yield frame(event, json.dumps({"n": size, "state": state, "end": change}).encode()), ends


def test_tokens_are_not_stored_as_deltas(log: EventLog) -> None:
    recording = Recording(log)
    for _ in range(3):
        recording.publish(100, "a token like any other, and so the page of a hundred is large")
    assert forms(pages(log.reader, recording.thread_id)) == [ZSTD] * 3


def test_other_readings_of_the_log_understand_deltas(log: EventLog, database_url: str) -> None:
    recording = Recording(log)
    bodies = list(values_frames(20, 20_000))
    write(recording, bodies)
    end = recording.finish()
    with EventLog(database_url, key_bytes=0) as other:
        found = list_events(
            other.reader, recording.thread_id, None, after_seq=0, before_seq=None, limit=500, types=["values"]
        )
        assert [event.content["step"] for event in found] == list(range(20))
        values = last_values(other.reader, recording.thread_id, recording.run.run_id, 1, end)
        assert values["step"] == 19


# --- keys are there whenever a delta is ---


async def test_after_its_first_segment_is_dropped_a_run_can_be_read_from_the_next_page_on(
    log: EventLog, connection: Connection[Any], database_url: str
) -> None:
    recording = Recording(log)
    bodies = list(values_frames(60, 60_000))
    write(recording, bodies[:30])
    segments.rotate(connection)
    write(recording, bodies[30:])  # the writer still believes in segment 1, and has a key page there
    recording.finish()
    before = pages(log.reader, recording.thread_id)
    segments.drop(connection, 1)
    with EventLog(database_url) as fresh:
        after = pages(fresh.reader, recording.thread_id, before[29].last)
        assert forms(after)[:2] == [ZSTD, DELTA]
        assert await joined(fresh, recording, before[29].last) == bodies[30:]
        (gap,) = await joined(fresh, recording, before[20].last)
        assert isinstance(gap, Gap)
        assert (gap.earliest, gap.latest) == (after[0].first, after[-1].last + 1)


def test_a_delta_whose_acknowledgement_was_lost_while_its_segment_ended_is_found(
    database_url: str, connection: Connection[Any]
) -> None:
    with new_folder() as folder, CuttingProxy(database_url, folder) as proxy, EventLog(proxy.url) as log:
        recording = Recording(log)
        bodies = list(values_frames(12, 12_000))
        write(recording, bodies[:10])
        proxy.before_cut = lambda: segments.rotate(connection)
        proxy.arm(recording.run.run_id.encode())
        write(recording, bodies[10:])
        assert proxy.cuts == 1
        found = pages(log.reader, recording.thread_id)
        assert [body for row in found for body in row.bodies] == bodies
        assert forms(found)[-2:] == [DELTA, ZSTD]  # in the old segment still; the next one in the new


def test_deltas_and_their_key_vanish_together_for_whoever_reads_meanwhile(
    log: EventLog, connection: Connection[Any], database_url: str
) -> None:
    recording = Recording(log)
    write(recording, list(values_frames(20, 20_000)))
    recording.finish()
    after = pages(log.reader, recording.thread_id)[-2].last

    class DeletedMeanwhile(LogReader):
        def _key_pages(self, *arguments: Any) -> dict[int, KeyPage]:
            retention.delete_pages(connection, thread_id=recording.thread_id)
            return super()._key_pages(*arguments)

    reader = DeletedMeanwhile(database_url, "runs_es")
    try:
        assert [row.topic for row in reader.rows_after(recording.thread_id, after, 100)] == ["run.completed"]
    finally:
        reader.close()


def test_a_key_page_that_is_missing_without_its_deltas_is_told(log: EventLog, database_url: str) -> None:
    recording = Recording(log)
    write(recording, list(values_frames(20, 20_000)))
    found = pages(log.reader, recording.thread_id)
    key = key_of(found[-1].state)
    with session.connect(database_url, "runs_es", "test") as damaging, damaging.transaction():
        damaging.execute("set local runs_es.maintenance = 'test'")
        damaging.execute("delete from events where thread_id = %s and seq = %s", (recording.thread_id, key))
    with EventLog(database_url) as fresh, pytest.raises(KeyPageGone, match="key page is missing"):
        fresh.reader.rows_after(recording.thread_id, found[-2].last, 100)


def test_a_page_that_was_refused_is_no_key(log: EventLog) -> None:
    recording = Recording(log)
    stale = RunWriter(
        log.writer,
        thread_id=recording.thread_id,
        run_id=recording.run.run_id,
        fence=recording.writer.fence,
        frames=7,
    )
    bodies = list(values_frames(6, 12_000))
    stale.publish(bodies[3])
    with pytest.raises(WriteConflict):
        settled(stale)
    write(recording, bodies[3:])
    found = pages(log.reader, recording.thread_id)
    assert [key_of(row.state) for row in found] == [None, found[0].last, found[0].last]


# --- which page is a key, without a database ---


class Told:
    """`Deltas`, and a log that takes every request."""

    def __init__(self, limit: int = 64 * MIB) -> None:
        self.deltas = Deltas(limit)
        self._seqs: dict[str, int] = {}

    def request(self, *bodies: bytes, thread: str = "t", fence: int = 1) -> Append:
        return Append(thread, [PageItem("r", list(bodies))], fence=fence)

    def append(self, *bodies: bytes, thread: str = "t", segment: int = 1) -> int | None:
        """Appends a page; the seq of its key."""
        request = self.request(*bodies, thread=thread)
        self.deltas.encode([request], segment)
        self.acknowledge(request, segment)
        state = request.items[0].state
        return key_of(state)

    def acknowledge(self, request: Append, segment: int = 1) -> None:
        first = self._seqs.get(request.thread_id, 0) + 1
        last = self._seqs[request.thread_id] = (
            first + sum(len(item.bodies) if isinstance(item, PageItem) else 1 for item in request.items) - 1
        )
        self.deltas.acknowledged(request, Appended(request.thread_id, first, last, 1, 1, 1, None, NOW), segment)


def noise(size: int, seed: int = 0, event: str = "values") -> bytes:
    return frame(event, random.Random(seed).randbytes(size // 2).hex().encode())


def test_only_an_acknowledged_page_is_a_key() -> None:
    told = Told()
    first, second, third = (told.request(noise(5000)) for _ in range(3))
    told.deltas.encode([first], 1)
    told.deltas.encode([second], 1)
    told.acknowledge(first)
    told.deltas.encode([third], 1)
    assert [key_of(each.items[0].state) for each in (first, second, third)] == [None, None, 1]


def test_a_delta_that_has_to_go_to_another_segment_is_made_anew_without_a_key() -> None:
    told = Told()
    told.append(noise(5000))
    request = told.request(noise(5000))
    told.deltas.encode([request], 1)
    told.deltas.encode([request], 1)
    told.deltas.encode([request], 2)
    (item,) = request.items
    assert isinstance(item, PageItem)
    assert [key_of(form) for form in item.forms] == [1, None]
    assert decode_page(item.state) == item.bodies


def test_a_new_key_comes_when_deltas_have_taken_what_the_key_took() -> None:
    told = Told()
    keys = [told.append(body) for body in values_frames(400, 80_000)]
    counts = [keys.count(key) for key in dict.fromkeys(keys) if key is not None]
    assert len(counts) > 5
    assert max(counts) < 100


def test_frames_that_resemble_nothing_are_soon_left_alone() -> None:
    told = Told()
    tried = 0
    for seed in range(100):
        request = told.request(noise(5000, seed))
        had = told.deltas.size
        told.deltas.encode([request], 1)
        tried += told.deltas.size < had  # a key was given up
        told.acknowledge(request)
        assert key_of(request.items[0].state) is None
    assert 3 < tried < 10
    keys = [told.append(noise(5000, 1)) for _ in range(200)]
    assert keys[-1] is not None  # and found again once they do


def test_states_of_a_graph_and_its_subgraphs_have_keys_of_their_own() -> None:
    told = Told()
    events = [f"values|{number}" for number in range(KEYS_AN_ATTEMPT)]
    keys = [told.append(noise(5000, seed, event)) for _ in range(3) for seed, event in enumerate(events)]
    assert keys == [None] * KEYS_AN_ATTEMPT + [1, 2, 3, 4] * 2


def test_small_and_huge_pages_are_stored_whole() -> None:
    told = Told(8 * MIB)
    assert [told.append(noise(STATE_FROM - 50)) for _ in range(2)] == [None, None]
    assert [told.append(noise(MIB + 100)) for _ in range(2)] == [None, None]
    assert told.deltas.size == 0


def test_keys_stay_within_their_memory_and_end_with_their_attempt() -> None:
    told = Told(MIB)
    for _ in range(2):
        for number in range(100):
            told.append(noise(20_000, number), thread=f"t{number}")
            assert told.deltas.size <= MIB
    assert told.append(noise(20_000, 99), thread="t99") is not None  # one of the newest is still there
    for number in range(100):
        end = Append(f"t{number}", [FactItem("run.completed", "r", b"", raises_fence=True)], fence=1)
        told.acknowledge(end)
    assert told.deltas.size == 0


def test_memory_is_counted_right_when_an_attempt_that_has_just_got_a_key_is_let_go_of() -> None:
    def filled(limit: int) -> Told:
        told = Told(limit)
        for _ in range(2):
            for number in range(KEYS_AN_ATTEMPT):
                told.append(noise(30_000, number, f"values|{number}"))
        return told

    told = filled(filled(64 * MIB).deltas.size + 10_000)
    told.append(noise(30_000, 9, "values|9"))  # one kind too many, and no memory left for it

    told.acknowledge(Append("t", [FactItem("run.completed", "r", b"", raises_fence=True)], fence=1))
    assert told.deltas.size == 0


# --- stored by earlier versions ---


@pytest.mark.parametrize("name", ["0-raw", "1-zstd", "2-delta"])
def test_pages_stored_by_earlier_versions_can_be_read(name: str) -> None:
    expected = [frame(event, data.encode()) for event, data in json.loads((SAMPLES / f"{name}.json").read_text())]
    state = (SAMPLES / f"{name}.page").read_bytes()
    assert state[0] == int(name[0])
    seq = key_of(state)
    key = None if seq is None else KeyPage(seq, (SAMPLES / "2-delta.key.page").read_bytes())
    assert decode_page(state, key) == expected


def test_a_delta_without_its_key_or_with_another_is_refused() -> None:
    told = Told()
    first, second, third = (told.request(body) for body in list(values_frames(12, 24_000))[-3:])
    for each in (first, second, third):
        told.deltas.encode([each], 1)
        told.acknowledge(each)
    state = second.items[0].state
    assert state[0] == DELTA
    with pytest.raises(ValueError, match="needs the page at 1"):
        decode_page(state)
    with pytest.raises(ValueError, match="page is damaged"):
        decode_page(state, KeyPage(1, encode_page([noise(20_000)])))
    with pytest.raises(ValueError, match="needs the page at 1"):
        decode_page(state, KeyPage(9, first.items[0].state))
    for damaged in (state[:9], state[:20], state[:-1], state[:-2] + b"\x00\x00"):
        with pytest.raises(ValueError, match="page"):
            decode_page(damaged, KeyPage(1, first.items[0].state))
    with pytest.raises(ValueError, match="needs the page"):
        KeyPage(2, state)
