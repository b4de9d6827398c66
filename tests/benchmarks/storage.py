"""What streams take on disk, and what it costs to read a long run from its middle.

Bytes of pages are those of their column `state`; with compression off, a page is its frames and their lengths.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator

import httpx
import psycopg

from runs_es.log.event_log import EventLog
from runs_es.log.pages import frame, rendered
from tests.acceptance.server import Server
from tests.benchmarks.append import EVENTS
from tests.benchmarks.drain import drain
from tests.benchmarks.figures import console, percentile, show
from tests.log.recording import Recording
from tests.log.states import values_frames

STEPS = 2_000
STATE = 1_000_000
TOKENS = 10_000
JOINS = 30
_BEFORE = 4  # facts before the first frame of a recording


def tokens(count: int) -> Iterator[bytes]:
    """Frames as `messages-tuple` streams them: a word or two, and the same metadata again and again."""
    metadata = (
        b'{"langgraph_step":1,"langgraph_node":"model","langgraph_triggers":["branch:to:model"],"langgraph_path":'
        b'["__pregel_pull","model"],"run_id":"01a20387-7635-73eb-88a9-62c771778b7e","ls_provider":"openai",'
        b'"ls_model_name":"gpt-4o","ls_model_type":"chat","ls_temperature":0.7}'
    )
    message = b'{"content":%b,"additional_kwargs":{},"response_metadata":{},"type":"AIMessageChunk","id":"run--%d"}'
    for number, event in zip(range(count), itertools.cycle(EVENTS), strict=False):
        word = event.partition(b":")[2].partition(b" ")[0] + b'"'
        yield frame("messages", b"[%b,%b]" % (message % (word, number // 500), metadata))


def made_up(count: int) -> Iterator[bytes]:
    for event, _ in zip(itertools.cycle(EVENTS), range(count), strict=False):
        yield frame("custom", event)


def recorded(log: EventLog, bodies: Iterable[bytes], a_page: int) -> tuple[Recording, int, float]:
    """A finished run in pages of so many frames, the bytes that its client gets, and the seconds of writing it."""
    recording = Recording(log)
    streamed = 0
    seconds = 0.0
    waiting = iter(bodies)
    while page := list(itertools.islice(waiting, a_page)):
        streamed += sum(map(len, page))
        started = time.perf_counter()
        recording.writer.publish(*page)
        last = recording.writer.last()
        assert last is not None
        last.result(60)
        seconds += time.perf_counter() - started
    recording.finish()
    return recording, streamed, seconds


def stored(url: str, recording: Recording) -> tuple[int, int, int]:
    """Bytes and number of the run's pages, and how many of them are deltas."""
    with psycopg.connect(url) as connection:
        row = connection.execute(
            "select sum(octet_length(state)), count(*), count(*) filter (where get_byte(state, 0) = 2)"
            " from runs_es.events where thread_id = %s and segment > 0",
            (recording.thread_id,),
        ).fetchone()
    assert row is not None
    return row


def path_of(recording: Recording) -> str:
    return f"/threads/{recording.thread_id}/runs/{recording.run.run_id}/stream"


def token_rows(log: EventLog, url: str) -> list[list[object]]:
    kinds: dict[str, Callable[[int], Iterator[bytes]]] = {"tokens": tokens, "made-up events": made_up}
    rows: list[list[object]] = []
    for name, bodies in kinds.items():
        for a_page in (1, 10, 100):
            recording, streamed, _ = recorded(log, bodies(TOKENS // (10 if a_page == 1 else 1)), a_page)
            octets, pages, _ = stored(url, recording)
            frames = pages * a_page
            whole = streamed / frames + 4 + 5 / a_page
            share = f"{octets / frames / whole:.0%}"
            rows.append([f"{name}, {a_page} a page", f"{whole:,.0f}", f"{octets / frames:,.0f}", share])
    return rows


def measure(database_url: str) -> None:
    with EventLog(database_url) as log:
        show(
            "bytes stored a frame of a token stream",
            ["", "as they are", "compressed", "share"],
            token_rows(log, database_url),
        )
        rows: list[list[object]] = []
        runs: list[Recording] = []
        with EventLog(database_url, key_bytes=0) as whole:
            for name, each in (("every page whole", whole), ("with deltas", log)):
                recording, streamed, seconds = recorded(each, values_frames(STEPS, STATE), 1)
                octets, pages, deltas = stored(database_url, recording)
                share = f"{octets / streamed:.2%}"
                sizes = (f"{streamed:,}", f"{octets:,}")
                rows.append([name, *sizes, share, f"{deltas} of {pages}", seconds / STEPS * 1000])
                runs.append(recording)
        show(
            f"a run of {STEPS:,} steps with `values`, the state grows to {STATE:,} bytes",
            ["", "bytes streamed", "bytes stored", "share", "deltas", "ms a step to write"],
            rows,
        )
        joins(database_url, dict(zip(("every page whole", "with deltas"), runs, strict=True)))


def joins(database_url: str, runs: dict[str, Recording]) -> None:
    """First bytes of joins from all over each run; and its replay compared with what was written."""
    rows: list[list[object]] = []
    for name, recording in runs.items():
        with Server(database_url, options=["--no-worker"]) as server:
            drain(server.url, path_of(recording), str(STEPS * 2))  # past its end: only so that the code is warm
            seqs = [_BEFORE + STEPS * place // (JOINS + 1) for place in range(JOINS, 0, -1)]  # no page read twice
            firsts = [drain(server.url, path_of(recording), str(seq)).first * 1000 for seq in seqs[:: JOINS // 10]]
            warm = [drain(server.url, path_of(recording), str(_BEFORE + STEPS - 20)).first * 1000 for _ in range(JOINS)]
            started = time.perf_counter()
            octets = drain(server.url, path_of(recording)).octets
            seconds = time.perf_counter() - started
            compare(server, recording)
        rows.append(
            [name, percentile(firsts, 0.5), max(firsts), percentile(warm, 0.5), max(warm), octets / seconds / 1e6]
        )
    show(
        "joins over HTTP, ms to the first byte",
        ["", "from the middle", "max", "near the end, again", "max", "whole run, MB/s"],
        rows,
    )
    console.print("Each join reads up to the run's end. Both replays were what was written, byte for byte.")


def compare(server: Server, recording: Recording) -> None:
    """The replay of the run from its start against what was written."""
    written, replayed = hashlib.blake2b(), hashlib.blake2b()
    for seq, body in enumerate(values_frames(STEPS, STATE), _BEFORE + 1):
        written.update(rendered(body, seq))
    written.update(b"event: end\r\ndata: null\r\nid: %d\r\n\r\n" % (_BEFORE + STEPS + 1))
    with httpx.stream("GET", server.url + path_of(recording), timeout=60) as response:
        for chunk in response.iter_raw():
            replayed.update(chunk)
    assert replayed.digest() == written.digest()
