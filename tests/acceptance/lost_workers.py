"""Workers that are killed while they work, and what the log must say afterwards: who held which run when, and that
nobody wrote after his turn.

The agent here says in every frame which process it runs in, and its state keeps which process did which step: pages and
checkpoints themselves do not name their writer.
"""

from __future__ import annotations

import json
import random
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import orjson
import psycopg

from runs_es.domain import TERMINAL_FACTS, TERMINAL_TOPICS, Recorded, RunClaimed, RunCompleted, RunCreated, RunRequeued
from runs_es.log import codec
from runs_es.log.event_log import EventLog
from runs_es.log.pages import data_of, event_of
from tests.acceptance.test_processes import worker

STEPS = """
import asyncio, operator, os
from typing import Annotated, TypedDict

from langgraph.config import get_stream_writer
from langgraph.graph import END, START, StateGraph


class State(TypedDict, total=False):
    steps: int
    frames: int
    delay: float
    done: Annotated[list, operator.add]


async def step(state: State) -> dict:
    write, number = get_stream_writer(), len(state.get("done", []))
    for frame in range(state["frames"]):
        write({"pid": os.getpid(), "step": number, "frame": frame})
        await asyncio.sleep(state["delay"])
    return {"done": [[number, os.getpid()]]}


def more(state: State) -> str:
    return "step" if len(state["done"]) < state["steps"] else END


builder = StateGraph(State)
builder.add_node("step", step)
builder.add_edge(START, "step")
builder.add_conditional_edges("step", more, ["step", END])
graph = builder.compile()
"""


def steps_config(folder: Path) -> Path:
    """A langgraph.json whose `agent` goes through steps, so that a run goes on from its last one."""
    folder.joinpath("steps.py").write_text(STEPS)
    folder.joinpath("langgraph.json").write_text(
        json.dumps({"dependencies": ["."], "graphs": {"agent": "./steps.py:graph"}})
    )
    return folder / "langgraph.json"


def pid_of(actor: str | None) -> int | None:
    """Of a worker's actor, `worker:host:pid:random`."""
    parts = (actor or "").split(":")
    return int(parts[-2]) if parts[0] == "worker" else None


class Fleet:
    """`runs-es work`, so many at a time: whenever one is killed, another starts."""

    def __init__(self, database_url: str, config: Path, env: Mapping[str, str], size: int, stack: ExitStack) -> None:
        self._database_url = database_url
        self._options = ["--config", str(config)]
        self._env = env
        self._stack = stack
        self._started = 0
        self.kills: list[tuple[float, int]] = []  # when, by the clock; whom
        self.processes = [self._start() for _ in range(size)]

    def _start(self) -> subprocess.Popen[bytes]:
        self._started += 1
        return self._stack.enter_context(worker(self._database_url, self._options, self._env))

    def kill(self, victim: subprocess.Popen[bytes]) -> None:
        """kill -9, and another one."""
        victim.kill()
        self.kills.append((time.time(), victim.pid))
        victim.wait(30)
        self.processes[self.processes.index(victim)] = self._start()

    def wait_until_full(self) -> None:
        """Until none of them still starts."""
        while workers_registered(self._database_url) < self._started:
            assert all(each.poll() is None for each in self.processes)
            threading.Event().wait(0.05)

    def choose(self, dice: random.Random) -> subprocess.Popen[bytes]:
        """One that has a run in hand, where there is one; else any."""
        held = {pid_of(actor) for actor in holders(self._database_url)}
        return dice.choice([each for each in self.processes if each.pid in held] or self.processes)


def workers_registered(database_url: str) -> int:
    """How many have ever said that they work."""
    with psycopg.connect(database_url) as connection:
        row = connection.execute("select max(id) from runs_es_queue.procrastinate_workers").fetchone()
    assert row is not None
    return int(row[0] or 0)


def forked_checkpoints(database_url: str, thread_id: str) -> int:
    """How many checkpoints were put beside one that followed the same: a lost worker's, saved after its turn."""
    with psycopg.connect(database_url) as connection:
        row = connection.execute(
            "select count(*) - count(distinct parent_checkpoint_id) from runs_es_checkpoints.checkpoints"
            " where thread_id = %s and parent_checkpoint_id is not null",
            (thread_id,),
        ).fetchone()
    assert row is not None
    return int(row[0])


def holders(database_url: str) -> list[str]:
    """The actors who claimed the runs that run now, by the log."""
    with psycopg.connect(database_url) as connection:
        rows = connection.execute(
            "select distinct actor from runs_es.events_facts c where topic = 'run.claimed'"
            " and not exists (select from runs_es.events_facts f where f.thread_id = c.thread_id"
            "   and f.run_id = c.run_id and f.seq > c.seq and f.topic = any(%s))",
            ([RunRequeued.topic, *TERMINAL_TOPICS],),
        ).fetchall()
    return [actor for (actor,) in rows]


@dataclass
class Story:
    """What the log says of all runs."""

    runs: int = 0
    claims: int = 0
    given_up: int = 0
    frames: int = 0
    requeued: list[Recorded] = field(default_factory=list)
    # (pid, claimed at, let go at, next claim or end at), of every claim
    tenures: list[tuple[int, float, float, float]] = field(default_factory=list)

    def takeovers(self, kills: list[tuple[float, int]]) -> list[float]:
        """Seconds from each kill to when each run that the killed worker had was claimed again, or ended."""
        return sorted(
            after - when
            for when, pid in kills
            for holder, since, until, after in self.tenures
            if holder == pid and since <= when < until
        )


def story_of(log: EventLog, threads: list[str]) -> Story:
    """Walk every thread's log; fails where anybody wrote whose turn it was not, or a run has not one end."""
    story = Story()
    for thread_id in threads:
        _walk(log, thread_id, story)
    return story


def _rows(log: EventLog, thread_id: str) -> Iterator[Any]:
    seq = 0
    while rows := log.reader.stored_after(thread_id, seq, 500)[0]:
        yield from rows
        seq = rows[-1].last


def _walk(log: EventLog, thread_id: str, story: Story) -> None:
    """A thread of one run."""
    holder: tuple[int, float] | None = None  # who has claimed, since when
    left: list[tuple[int, float, float]] = []  # claims that were let go and wait for the next
    ends = 0
    done: list[list[int]] = []  # [step, pid], as the state has it
    steps = 0  # that it is to make
    claims: list[int] = []
    for row in _rows(log, thread_id):
        assert not (ends and row.topic.startswith("run.")), (thread_id, row.topic, "after the end")
        at = datetime.fromisoformat(row.recorded_at).timestamp()
        if row.is_page:
            # Who gives a run up says so in its stream, without having claimed it.
            assert holder is not None or list(map(event_of, row.bodies)) == ["error"], (thread_id, row.last)
            for body in row.bodies:
                story.frames += 1
                if event_of(body) == "custom":
                    assert holder is not None
                    assert orjson.loads(data_of(body))["pid"] == holder[0], (thread_id, row.last)
                elif event_of(body) == "values":
                    done = orjson.loads(data_of(body)).get("done", [])
            continue
        fact = codec.decode(row.topic, row.state, thread_id)
        pid = pid_of(row.provenance.actor)
        if isinstance(fact, RunCreated):
            steps = fact.kwargs["input"]["steps"]
        elif isinstance(fact, RunClaimed):
            assert holder is None
            assert pid is not None
            story.claims += 1
            story.tenures += [(*each, at) for each in left]
            holder, left = (pid, at), []
            claims.append(pid)
        elif isinstance(fact, (RunRequeued, *TERMINAL_FACTS)):
            ends += isinstance(fact, TERMINAL_FACTS)
            assert not isinstance(fact, RunCompleted) or len(done) == steps, (thread_id, done)
            story.given_up += getattr(fact, "error_type", "") == "WorkerLost"
            if holder is not None:
                left.append((*holder, at))
            if isinstance(fact, TERMINAL_FACTS):
                story.tenures += [(*each, at) for each in left]
            holder = None
        elif pid is not None:
            assert holder is not None
            assert pid == holder[0], (thread_id, row.last, row.topic)
    story.runs += 1
    assert ends == 1, (thread_id, ends)
    assert [number for number, _ in done] == list(range(len(done))), (thread_id, done)
    in_turn = iter(claims)
    by = [pid for pid, _ in groupby(pid for _, pid in done)]
    assert all(pid in in_turn for pid in by), (thread_id, "a checkpoint came after its writer's turn", done, claims)
