"""Appending, side by side in one run: this log, the `eventsourcing` library's stock recorder, a bare insert of rows,
one row a batch, and a Redis stream where redis-server is installed. Every contender acknowledges only what is durable.
Producers are threads that wait for each acknowledgement, in one process or spread over two; rounds are interleaved,
ratios are of the same round. `pgbench` says how many commits the disk gives.
"""

from __future__ import annotations

import multiprocessing
import random
import statistics
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from typing import Any

import psycopg
import redis
from eventsourcing.persistence import StoredEvent
from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore
from psycopg import conninfo

from runs_es.domain import ThreadCreated, now
from runs_es.log.event_log import EventLog
from runs_es.log.pages import frame
from runs_es.log.run_writer import RunWriter
from tests.benchmarks.figures import show
from tests.benchmarks.limits import commits_a_second, redis_server
from tests.benchmarks.plots import bars

ROUNDS = 5
SECONDS = 0.6
# processes, producers, events a write
CASES = [
    (1, 16, 1),
    (1, 16, 10),
    (1, 16, 100),
    (1, 64, 1),
    (2, 16, 1),
    (2, 16, 10),
    (2, 16, 100),
    (2, 64, 1),
    (1, 1, 1),
]
CASES += [(1, 1, 100)]

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
_dice = random.Random(2)


def some(size: int) -> list[bytes]:
    """`size` of the events, from a random place on."""
    start = _dice.randrange(len(EVENTS) - size + 1)
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


def redis_stream(stack: ExitStack, url: str, producers: int, size: int) -> list[Write]:
    """XADD in a pipeline, a stream a producer, `appendfsync always`. `url` is the Redis server's."""
    client = stack.enter_context(redis.Redis.from_url(url))

    def producer() -> Write:
        key = str(uuid.uuid4())

        def write() -> None:
            with client.pipeline(transaction=False) as pipeline:
                for event in some(size):
                    pipeline.xadd(key, {"data": event})
                pipeline.execute()

        return write

    return [producer() for _ in range(producers)]


CONTENDERS = {
    "runs-es": our_log,
    "stock recorder": stock_recorder,
    "bare rows": bare_rows,
    "row a batch": row_a_batch,
    "redis": redis_stream,
}


def produce(pipe: Connection, name: str, url: str, producers: int, size: int) -> None:
    """One process of a contender: says when it is ready, runs for SECONDS when told to, answers events a second."""
    with ExitStack() as stack:
        writes = CONTENDERS[name](stack, url, producers, size)
        for write in writes:
            write()  # warm: connections, plans
        pipe.send("ready")
        pipe.recv()
        pipe.send(events_a_second(writes, size))


def events_a_second(writes: list[Write], size: int) -> float:
    """All producers at once for SECONDS."""
    done = [0] * len(writes)
    begin = threading.Barrier(len(writes) + 1)
    stop = threading.Event()

    def work(index: int) -> None:
        begin.wait()
        while not stop.is_set():
            writes[index]()
            done[index] += size

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(writes))]
    for each in threads:
        each.start()
    begin.wait()
    started = time.perf_counter()
    stop.wait(SECONDS)
    stop.set()
    for each in threads:
        each.join()
    return sum(done) / (time.perf_counter() - started)


def speed(name: str, url: str, case: tuple[int, int, int]) -> float:
    """Events a second of all processes of a contender together."""
    processes, producers, size = case
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.benchmarks.append"])
    pipes, workers = [], []
    for _ in range(processes):
        ours, theirs = context.Pipe()
        worker = context.Process(target=produce, args=(theirs, name, url, producers // processes, size))
        worker.start()
        theirs.close()
        ours.recv()  # one after the other: they make their tables
        pipes.append(ours)
        workers.append(worker)
    for pipe in pipes:
        pipe.send("go")
    total = sum(pipe.recv() for pipe in pipes)
    for worker in workers:
        worker.join()
    return float(total)


def measure(database_url: str) -> None:
    """Print the table and draw the plots."""
    with redis_server() as redis_url:
        urls = dict.fromkeys(CONTENDERS, database_url)
        if redis_url is None:
            del urls["redis"]
        else:
            urls["redis"] = redis_url
        rows: list[list[str]] = []
        medians: list[dict[str, float]] = []
        commits: list[float] = []
        for case in CASES:
            speeds: dict[str, list[float]] = {name: [] for name in urls}
            commits.append(commits_a_second(database_url))
            for _ in range(ROUNDS):
                for name, url in urls.items():
                    speeds[name].append(speed(name, url, case))
            medians.append({name: statistics.median(values) for name, values in speeds.items()})
            rows.append(_row(case, speeds))
    others = [name for name in urls if name != "runs-es"]
    show(
        "append, events a second: processes / producers x events a write;"
        f" medians of {ROUNDS} interleaved rounds of {SECONDS:g} s",
        ["", *urls, *(f"x {name}" for name in others)],
        rows,
    )
    commit = statistics.median(commits)
    show(
        "the limit of the disk: pgbench, 16 clients, one small insert a transaction",
        ["", "median", "min", "max"],
        [["commits a second", commit, min(commits), max(commits)]],
    )
    _draw(medians)


def _row(case: tuple[int, int, int], speeds: dict[str, list[float]]) -> list[str]:
    ours = speeds["runs-es"]
    ratios = [
        statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
        for name, theirs in speeds.items()
        if name != "runs-es"
    ]
    values = [f"{statistics.median(values):,.0f}" for values in speeds.values()]
    return ["{} / {} x {}".format(*case), *values, *(f"{ratio:.2f}" for ratio in ratios)]


def _draw(medians: Sequence[dict[str, float]]) -> None:
    labels = ["{} x {}\n{} process{}".format(p, size, n, "es" if n > 1 else "") for n, p, size in CASES]
    bars(
        "append",
        "Appending durably: events a second (logarithmic), producers x events a write",
        labels,
        {name: [each[name] for each in medians] for name in medians[0]},
        logarithmic=True,
    )
