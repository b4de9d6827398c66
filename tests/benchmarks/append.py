"""Appending, side by side in one run: this log, the `eventsourcing` library's stock recorder, a bare insert of rows,
and one row a batch. Every contender acknowledges only what is durable; producers are threads that wait for each
acknowledgement. Rounds are interleaved, ratios are of the same round.
"""

from __future__ import annotations

import random
import statistics
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import psycopg
from eventsourcing.persistence import StoredEvent
from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore
from psycopg import conninfo

from runs_es.domain import ThreadCreated, now
from runs_es.log.event_log import EventLog
from runs_es.log.pages import frame
from runs_es.log.run_writer import RunWriter
from tests.benchmarks.figures import show

ROUNDS = 5
SECONDS = 1.0
CASES = [(16, 1), (16, 10), (16, 100), (64, 1), (1, 1), (1, 100)]  # producers, events a write

# One write of a producer: appends and returns once that is durable.
Write = Callable[[], None]


def payloads(count: int, seed: int = 1) -> list[bytes]:
    """Events of about 250 bytes as an agent streams them: an id, a few made-up words, no two alike."""
    dice = random.Random(seed)
    letters = "etaoinshrdlucmfwypvbgk"
    words = ["".join(dice.choices(letters, k=dice.randint(2, 9))) for _ in range(2000)]
    events = []
    for _ in range(count):
        text = " ".join(dice.choices(words, k=24))[:130]
        run_id = uuid.UUID(int=dice.getrandbits(128))
        events.append(
            b'{"content":"%b","type":"AIMessageChunk","id":"run--%b","n":%d}'
            % (text.encode(), str(run_id).encode(), dice.getrandbits(30))
        )
    return events


EVENTS = payloads(1000)


def some(size: int) -> list[bytes]:
    """`size` of the events, from a random place on."""
    start = random.randrange(len(EVENTS) - size + 1)
    return EVENTS[start : start + size]


def our_log(stack: ExitStack, url: str, producers: int, size: int) -> list[Write]:
    """Frames through group commit; each producer a run of its own."""
    log = stack.enter_context(EventLog(url))

    def producer() -> Write:
        thread_id = str(uuid.uuid4())
        born = log.append(thread_id, [ThreadCreated(thread_id=thread_id, occurred_at=now())], expected=0).result()
        writer = RunWriter(log.writer, thread_id=thread_id, run_id="r", fence=born.fence, frames=born.frames)

        def write() -> None:
            writer.publish(*(frame("custom", event) for event in some(size)))
            last = writer.last()
            assert last is not None
            last.result()

        return write

    return [producer() for _ in range(producers)]


def stock_recorder(stack: ExitStack, url: str, producers: int, size: int) -> list[Write]:
    """`PostgresApplicationRecorder` as it comes: table lock, notify, one row an event."""
    parts = conninfo.conninfo_to_dict(url)
    datastore = PostgresDatastore(
        dbname=str(parts["dbname"]),
        host=str(parts["host"]),
        port=str(parts.get("port") or 5432),
        user=str(parts["user"]),
        password=str(parts.get("password") or "unused"),
        pool_size=16,
        max_overflow=producers,
        originator_id_type="text",
    )
    stack.callback(datastore.close)
    recorder = PostgresApplicationRecorder(datastore, events_table_name="stock_events")
    recorder.create_table()

    def producer() -> Write:
        originator_id = str(uuid.uuid4())
        version = 0

        def write() -> None:
            nonlocal version
            events = [
                StoredEvent(originator_id, version + n, "run.streamed", event) for n, event in enumerate(some(size))
            ]
            recorder.insert_events(events)
            version += size

        return write

    return [producer() for _ in range(producers)]


def bare_rows(stack: ExitStack, url: str, producers: int, size: int) -> list[Write]:
    """`insert … unnest`, a row an event, a connection a producer, no order kept: the limit of rows."""
    return _inserts(
        stack, url, producers, "insert into bare_rows (state) select unnest(%b::bytea[])", lambda: some(size)
    )


def row_a_batch(stack: ExitStack, url: str, producers: int, size: int) -> list[Write]:
    """One row for the whole write, a connection a producer: the limit of pages."""
    return _inserts(stack, url, producers, "insert into bare_rows (state) values (%b)", lambda: b"".join(some(size)))


def _inserts(stack: ExitStack, url: str, producers: int, statement: str, value: Callable[[], object]) -> list[Write]:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("create table if not exists bare_rows (id bigserial primary key, state bytea not null)")

    def producer() -> Write:
        connection = stack.enter_context(psycopg.connect(url, autocommit=True))
        return lambda: _ignored(connection.execute(statement, (value(),), prepare=True))

    return [producer() for _ in range(producers)]


def _ignored(_: object) -> None:
    return None


CONTENDERS = {"runs-es": our_log, "stock recorder": stock_recorder, "bare rows": bare_rows, "row a batch": row_a_batch}


@contextmanager
def contender(name: str, url: str, producers: int, size: int) -> Iterator[list[Write]]:
    with ExitStack() as stack:
        writes = CONTENDERS[name](stack, url, producers, size)
        for write in writes:
            write()  # warm: connections, plans
        yield writes


def events_a_second(writes: list[Write], size: int) -> float:
    """All producers at once for SECONDS."""
    done = [0] * len(writes)
    begin = threading.Barrier(len(writes) + 1)
    stop = threading.Event()

    def produce(index: int) -> None:
        begin.wait()
        while not stop.is_set():
            writes[index]()
            done[index] += size

    threads = [threading.Thread(target=produce, args=(index,)) for index in range(len(writes))]
    for each in threads:
        each.start()
    begin.wait()
    started = time.perf_counter()
    stop.wait(SECONDS)
    stop.set()
    for each in threads:
        each.join()
    return sum(done) / (time.perf_counter() - started)


def measure(database_url: str) -> None:
    rows = []
    for producers, size in CASES:
        speeds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
        for _ in range(ROUNDS):
            for name in CONTENDERS:
                with contender(name, database_url, producers, size) as writes:
                    speeds[name].append(events_a_second(writes, size))
        ours = speeds["runs-es"]
        medians = [statistics.median(speeds[name]) for name in CONTENDERS]
        ratios = [
            statistics.median(a / b for a, b in zip(ours, speeds[name], strict=True))
            for name in CONTENDERS
            if name != "runs-es"
        ]
        rows.append([f"{producers} x {size}", *(f"{median:,.0f}" for median in medians), *(f"{r:.2f}" for r in ratios)])
    show(
        f"append, events a second: producers x events a write; medians of {ROUNDS} interleaved rounds of {SECONDS} s",
        ["", *CONTENDERS, "x stock", "x rows", "x row a batch"],
        rows,
    )
