"""Producers that are faster than the disk: they are slowed to what it takes, memory stays bounded, nothing is lost.

The disk is slow because a trigger sleeps for every page, in proportion to its bytes. Real runs of a real worker publish
frames that do not compress as fast as they may; each remembers a digest of what it published.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from runs_es.execution.protocol import ActiveRun
from runs_es.log.pages import KEY_BYTES, data_of, event_of
from runs_es.service.commands import CreateRunCommand
from runs_es.settings import MIB, Settings
from runs_projections.wiring import Store, open_store
from tests.benchmarks.figures import show

SECONDS = 60.0
PRODUCERS = 32
DISK_BYTES_A_SECOND = 4 * MIB
FRAME_BYTES = 4096
# What a run may hold in memory has two settings, its buffer of what is not committed and its ring of what is; pages on
# their way to the database are copies of a part of the first. The pages that deltas refer to are bounded for all.
OVERHEAD = 1.5
FIXED_BYTES = 64 * MIB + 2 * KEY_BYTES

_SLOW = """
create function runs_es.slow_disk() returns trigger language plpgsql as $$
begin
  perform pg_sleep(length(new.state)::float8 / {rate});
  return new;
end $$;
create trigger slow_disk before insert on runs_es.events_p1 for each row execute function runs_es.slow_disk();
alter table runs_es.events_p1 enable always trigger slow_disk
"""


@dataclass
class Published:
    """What a run published, and how long it was made to wait for that."""

    frames: int = 0
    waited: float = 0.0
    slowest: float = 0.0
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)


class Firehose:
    """An executor that publishes as fast as it may for some seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.published: dict[str, Published] = {}

    async def execute(self, run: ActiveRun) -> None:
        published = self.published[run.run.run_id] = Published()
        dice = random.Random(run.run.run_id)
        noise = dice.randbytes(MIB).hex().encode()
        stop = time.monotonic() + self._seconds
        while (now := time.monotonic()) < stop:
            start = dice.randrange(len(noise) - FRAME_BYTES)
            data = b'"%b"' % noise[start : start + FRAME_BYTES]
            await run.publish("custom", data)
            waited = time.monotonic() - now
            published.frames += 1
            published.waited += waited
            published.slowest = max(published.slowest, waited)
            published.digest.update(data)
            await asyncio.sleep(0)  # an agent is never so busy that others cannot go on


@dataclass
class Pressed:
    """What came of it; bytes are of this process' resident memory."""

    frames: int
    stored: int
    lost_runs: int
    seconds: float
    waited_share: float  # of the producers' time
    slowest: float
    before: int
    peaks: tuple[int, int, int]  # in each third of the time
    bound: int

    @property
    def peak(self) -> int:
        return max(self.peaks)

    @property
    def grown(self) -> int:
        return self.peak - self.before


def press(url: str, folder: Path, *, seconds: float, producers: int, disk: int, buffer: int, ring: int) -> Pressed:
    """`producers` runs at once against a disk of so many bytes a second; compares the log with what was published."""
    settings = Settings(
        database_url=url,
        data_dir=folder,
        concurrency=producers,
        publish_buffer_bytes=buffer,
        ring_bytes=ring,
        max_attempts=1,
    )
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(_SLOW.format(rate=disk))
    firehose = Firehose(seconds)
    with open_store(settings, executor=firehose) as store, sampled_memory() as samples:
        started = time.monotonic()
        asyncio.run(_runs(store, producers))
        took = time.monotonic() - started
        stored, lost = _compared(store, firehose)
    everyone = firehose.published.values()
    return Pressed(
        frames=sum(each.frames for each in everyone),
        stored=stored,
        lost_runs=lost,
        seconds=took,
        waited_share=sum(each.waited for each in everyone) / (producers * seconds),
        slowest=max(each.slowest for each in everyone),
        before=samples[0],
        peaks=_thirds(samples),
        bound=int(OVERHEAD * producers * (buffer + ring)) + FIXED_BYTES,
    )


async def _runs(store: Store, producers: int) -> None:
    commands = [CreateRunCommand(assistant_id="firehose") for _ in range(producers)]
    runs = await asyncio.gather(*(store.service.create_background(command) for command in commands))
    await asyncio.gather(*(store.service.ended(run.thread_id, run.run_id) for run in runs))


def _compared(store: Store, firehose: Firehose) -> tuple[int, int]:
    """Frames in the log, and of how many runs the log is not what they published."""
    frames = lost = 0
    with psycopg.connect(store.log.url) as connection:
        threads = dict(
            connection.execute("select run_id, min(thread_id) from runs_es.events_facts group by 1").fetchall()
        )
    for run_id, published in firehose.published.items():
        digest, seq, seen = hashlib.sha256(), 0, 0
        while rows := store.log.reader.rows_after(threads[run_id], seq, 256):
            for row in rows:
                for body in row.bodies if row.is_page else ():
                    if event_of(body) == "custom":
                        digest.update(data_of(body))
                        seen += 1
            seq = rows[-1].last
        frames += seen
        lost += digest.digest() != published.digest.digest()
    return frames, lost


@contextmanager
def sampled_memory(every: float = 0.25) -> Iterator[list[int]]:
    """Resident bytes of this process, from now on."""
    samples, done = [_resident()], threading.Event()

    def sample() -> None:
        while not done.wait(every):
            samples.append(_resident())

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        done.set()
        thread.join()


def _resident() -> int:
    return 1024 * int(subprocess.run(["ps", "-o", "rss=", "-p", str(os.getpid())], capture_output=True).stdout)


def _thirds(samples: list[int]) -> tuple[int, int, int]:
    third = max(len(samples) // 3, 1)
    return max(samples[:third]), max(samples[third : 2 * third] or samples), max(samples[2 * third :] or samples)


def measure(database_url: str) -> None:
    buffer, ring = Settings().publish_buffer_bytes, Settings().ring_bytes
    done = press(
        database_url, Path(), seconds=SECONDS, producers=PRODUCERS, disk=DISK_BYTES_A_SECOND, buffer=buffer, ring=ring
    )
    show(
        f"{PRODUCERS} runs that publish as fast as they may for {SECONDS:g} s, a disk of {DISK_BYTES_A_SECOND / MIB:g}"
        f" MiB/s, buffers (RUNS_ES_PUBLISH_BUFFER_BYTES) of {buffer / MIB:g} and rings (RUNS_ES_RING_BYTES) of"
        f" {ring / MIB:g} MiB",
        ["", "value"],
        [
            ["frames published", f"{done.frames:,}"],
            ["frames in the log", f"{done.stored:,}"],
            ["runs whose log differs from what they published", done.lost_runs],
            ["producers' time spent waiting for room", f"{done.waited_share:.1%}"],
            ["longest wait of one frame, s", done.slowest],
            ["seconds until the last was durable", done.seconds],
            ["resident memory before, MiB", done.before / MIB],
            ["its peak in each third, MiB", ", ".join(f"{peak / MIB:,.0f}" for peak in done.peaks)],
            [
                f"bound of the growth: {OVERHEAD} x {PRODUCERS} x (buffer + ring) + {FIXED_BYTES // MIB} MiB",
                done.bound / MIB,
            ],
        ],
    )
