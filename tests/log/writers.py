"""Processes that write to one log at once, and one that follows it; for test_concurrency.py."""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from runs_es.domain import EventRecorded, Fact, ThreadCreated, WriteConflict, now
from runs_es.log import session
from runs_es.log.append import Append, PageItem
from runs_es.log.event_log import EventLog
from runs_es.log.pages import frame
from runs_es.log.reader import facts_after

FRAME = frame("custom", b'{"token":"abc"}')


@dataclass
class Report:
    """What one process was told: (thread, first seq, last seq) of every acknowledged request, and what went wrong."""

    acknowledged: list[tuple[str, int, int]] = field(default_factory=list)
    refused: int = 0
    errors: list[str] = field(default_factory=list)


def noted(thread_id: str, number: int) -> Fact:
    return EventRecorded(
        thread_id=thread_id, run_id="r", occurred_at=now(), event_type="noted", content={"number": number}
    )


def write(url: str, seed: int, threads: list[str], writers: int, facts: int, results: Connection) -> None:
    """`writers` threads that append until the process has `facts` facts acknowledged; reports over `results`."""
    report = Report()
    lock = threading.Lock()
    left = [facts]
    with EventLog(url) as log:
        workers = [
            threading.Thread(target=_write, args=(log, random.Random(seed * 100 + n), threads, left, lock, report))
            for n in range(writers)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    results.send(report)


def _write(
    log: EventLog, dice: random.Random, threads: list[str], left: list[int], lock: threading.Lock, report: Report
) -> None:
    while left[0] > 0:
        thread_id = dice.choice(threads)
        try:
            request, size = _request(log, dice, thread_id)
            appended = log.writer.submit(request).result(30)
        except WriteConflict:
            with lock:
                report.refused += 1
        except Exception as error:
            with lock:
                report.errors.append(repr(error))
            return
        else:
            with lock:
                left[0] -= size
                report.acknowledged.append((thread_id, appended.first_seq, appended.last_seq))


def _request(log: EventLog, dice: random.Random, thread_id: str) -> tuple[Append, int]:
    """A birth, a few facts compared and set, or a page; stating what is known of the thread. And its facts."""
    head = log.reader.head(thread_id)
    if head is None:
        created = log.item(ThreadCreated(thread_id=thread_id, occurred_at=now()))
        return Append(thread_id, [created], expected=0), 1
    if dice.random() < 0.25:
        page = PageItem("r", [FRAME] * dice.randint(1, 20))
        return Append(thread_id, [page], fence=head.fence, frames=head.frames), 0
    size = dice.randint(1, 12)
    items: list[Any] = [log.item(noted(thread_id, number)) for number in range(size)]
    if dice.random() < 0.3:
        items.insert(dice.randint(0, size), PageItem("r", [FRAME] * dice.randint(1, 5)))
    return Append(thread_id, items, expected=head.revision, frames=head.frames), size


def follow(url: str, stop: Any, results: Connection) -> None:
    """Read facts by position as they come, until `stop` is set and nothing more comes; sends the positions seen."""
    seen: list[int] = []
    with session.connect(url, "runs_es", "follower") as connection:
        while True:
            last_round = stop.is_set()
            found = facts_after(connection, seen[-1] if seen else 0, 5000)
            seen += [recorded.position for recorded in found]
            if last_round and not found:
                break
    results.send(seen)
