"""Lists over HTTP on loopback: pages of messages from a short and from a long thread, the runs of a thread and of all.

The threads are written through the log and projected as always. Requests for the two threads alternate; ratios are of
medians in the same run.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

import httpx

from runs_es.domain import Fact, MessageRecorded, RunClaimed, RunCompleted, RunCreated, RunStarted, ThreadCreated, now
from runs_es.log.event_log import EventLog
from tests.acceptance.server import Server
from tests.benchmarks.figures import percentile, show

SHORT, LONG = 1_000, 100_000
RUNS = 1_000
HIDDEN = 2  # messages of each thread
ROUNDS = 200
_PIECE = 1_000  # facts an append
_WORDS = "a message of an agent, with a few words in it as they have; "


def written(log: EventLog, facts: list[Fact]) -> str:
    """Append the facts of a new thread, in pieces."""
    futures = [
        log.append(facts[0].thread_id, facts[start : start + _PIECE], expected=start)
        for start in range(0, len(facts), _PIECE)
    ]
    for future in futures:
        future.result(120)
    return facts[0].thread_id


def talk(messages: int) -> list[Fact]:
    """A thread of one run that said so much: a human's message in a hundred, every tenth edited once."""
    ids = {"thread_id": str(uuid.uuid4()), "occurred_at": now()}
    of_run: dict[str, Any] = {**ids, "run_id": str(uuid.uuid4())}
    facts: list[Fact] = [ThreadCreated(**ids), *_begun(of_run)]
    for number in range(messages):
        kind = "human" if number % 100 == 0 else "ai"
        facts += [_said(of_run, number, kind, version) for version in range(2 if number % 10 == 0 else 1)]
    return [*facts, RunCompleted(**of_run)]


def _begun(of_run: dict[str, Any]) -> list[Fact]:
    given = {"input": {"messages": [{"role": "user", "content": _WORDS * 4}]}, "config": {"configurable": {"a": 1}}}
    metadata = {"graph_id": "agent", "assistant_id": "agent"}
    return [
        RunCreated(**of_run, assistant_id="agent", kwargs=given, metadata=metadata),
        RunClaimed(**of_run, claim_id="c"),
        RunStarted(**of_run),
    ]


def _said(of_run: dict[str, Any], number: int, kind: str, version: int) -> Fact:
    name = f"message-{number}"
    marks = {"hide_from_ui": True} if number in (2, 3) else {}
    content = {"id": name, "type": kind, "content": _WORDS * 5, "version": version, "additional_kwargs": marks}
    return MessageRecorded(**of_run, message_id=name, event_type=kind, content=content)


def many_runs(runs: int) -> list[Fact]:
    """A thread in which so many runs succeeded."""
    ids = {"thread_id": str(uuid.uuid4()), "occurred_at": now()}
    facts: list[Fact] = [ThreadCreated(**ids)]
    for _ in range(runs):
        of_run: dict[str, Any] = {**ids, "run_id": str(uuid.uuid4())}
        facts += [*_begun(of_run), RunCompleted(**of_run)]
    return facts


def timed(client: httpx.Client, path: str, entries: int, **params: Any) -> float:
    """Milliseconds of one request, which must answer so many entries and be current."""
    started = time.perf_counter()
    answer = client.get(path, params=params)
    elapsed = (time.perf_counter() - started) * 1000
    assert answer.status_code == 200, answer.text
    assert "x-runs-stale" not in answer.headers
    assert len(answer.json()) == entries, (path, params, len(answer.json()))
    return elapsed


def measure(database_url: str) -> None:
    """Measure against a server of its own over `database_url`."""
    with EventLog(database_url) as log:  # before there are workers, who would take up the unfinished runs
        short, long = written(log, talk(SHORT)), written(log, talk(LONG))
        busy = written(log, many_runs(RUNS))
    with Server(database_url) as server, httpx.Client(base_url=server.url, timeout=300) as client:
        while "x-runs-stale" in client.get("/runs").headers:
            time.sleep(0.2)
        _messages(client, short, long)
        _growing(client, short, long)
        _runs(client, busy)


def _messages(client: httpx.Client, short: str, long: str) -> None:
    asked: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "the latest": ({}, {}),
        "the first": ({"after_seq": 0}, {"after_seq": 0}),
        "before the middle": ({"before_seq": SHORT // 2}, {"before_seq": LONG // 2}),
        "the latest 10 of a rare type": ({"types": "human", "limit": 10}, {"types": "human", "limit": 10}),
        "the latest of two types": ({"types": "human,ai"}, {"types": "human,ai"}),
        "the latest that are shown": ({"visibility": "shown"}, {"visibility": "shown"}),
    }
    rows = []
    for name, (of_short, of_long) in asked.items():
        entries = of_short.get("limit", 50)
        times: tuple[list[float], list[float]] = ([], [])
        for turn in range(ROUNDS + 10):
            for thread, params, found in ((short, of_short, times[0]), (long, of_long, times[1])):
                elapsed = timed(client, f"/threads/{thread}/messages", entries, **params)
                if turn >= 10:
                    found.append(elapsed)
        medians = [percentile(found, 0.5) for found in times]
        rows.append(
            [
                name,
                *(f"{m:.2f}" for m in medians),
                f"{medians[1] / medians[0]:.2f}",
                f"{percentile(times[1], 0.99):.2f}",
            ]
        )
    show(
        f"GET /threads/…/messages, a page of 50, ms; {ROUNDS} requests each, alternating",
        ["", f"p50 of {SHORT:,}", f"p50 of {LONG:,}", "ratio", f"p99 of {LONG:,}"],
        rows,
    )


def _growing(client: httpx.Client, short: str, long: str) -> None:
    """What may look at the whole thread."""
    asked: list[tuple[str, str, int, Callable[[int], dict[str, Any]]]] = [
        ("the latest as of the middle", "/messages", 50, lambda messages: {"as_of": messages // 2}),
        ("versions of one message", "/messages/message-10/versions", 2, lambda _: {}),
        ("all hidden ones, two of them", "/messages", HIDDEN, lambda _: {"visibility": "hidden"}),
    ]
    rows = []
    for name, path, entries, params_of in asked:
        medians = []
        for thread, messages in ((short, SHORT), (long, LONG)):
            params = params_of(messages)
            times = [timed(client, f"/threads/{thread}{path}", entries, **params) for _ in range(7)][2:]
            medians.append(percentile(times, 0.5))
        rows.append([name, *(f"{median:.1f}" for median in medians)])
    show("GET /threads/…, ms, p50 of 5", ["", f"of {SHORT:,}", f"of {LONG:,}"], rows)


def _runs(client: httpx.Client, thread: str) -> None:
    select = "run_id,status,created_at"
    asked: list[tuple[str, str, int, dict[str, Any]]] = [
        (f"{RUNS:,} runs of a thread", f"/threads/{thread}/runs", RUNS, {"limit": RUNS}),
        (f"{RUNS:,} runs, three fields", f"/threads/{thread}/runs", RUNS, {"limit": RUNS, "select": select}),
        ("50 runs of a thread", f"/threads/{thread}/runs", 50, {"limit": 50}),
        ("50 runs of all threads", "/runs", 50, {"limit": 50}),
        ("50 runs by metadata", "/runs", 50, {"limit": 50, "metadata": '{"graph_id":"agent"}'}),
        ("50 runs by status", "/runs", 50, {"limit": 50, "status": "success"}),
    ]
    rows = []
    for name, path, entries, params in asked:
        times = [timed(client, path, entries, **params) for _ in range(60)][10:]
        rows.append([name, f"{percentile(times, 0.5):.1f}", f"{percentile(times, 0.99):.1f}"])
    show("lists of runs, ms", ["", "p50", "p99"], rows)
