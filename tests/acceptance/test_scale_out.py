"""Many workers on one database: queues, priorities, draining, and runs handed over when there are fewer of them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from pydantic import ValidationError

from runs_api.cli_serve import _work_until_empty
from runs_es.execution.protocol import ActiveRun
from runs_es.execution.queue import QueueWorker
from runs_es.service.commands import CreateRunCommand
from runs_es.settings import Settings
from runs_projections.wiring import Store, open_store
from tests.acceptance.server import Server
from tests.conftest import SCHEMA

COMMAND = str(Path(sys.executable).parent / "runs-es")
CONFIG = Path(__file__).parents[1] / "benchmarks" / "noop" / "langgraph.json"
GPU = '{"gpu": ["other"]}'


def work(settings: Settings, *options: str, **environment: str) -> subprocess.Popen[str]:
    """`runs-es work` on the database of this test."""
    env = {**os.environ, "RUNS_ES_DATABASE_URL": str(settings.database_url), "RUNS_ES_QUEUES": GPU, **environment}
    return subprocess.Popen([COMMAND, "work", *options], env=env, stdout=subprocess.PIPE, text=True)


def drained(settings: Settings, *options: str) -> str:
    """What `work --drain` printed, ended with 0."""
    worker = work(settings, "--drain", "--config", str(CONFIG), *options)
    printed, _ = worker.communicate(timeout=200)
    assert worker.returncode == 0
    return printed


def ask(assistant: str = "noop", thread_id: str | None = None, after: float = 0, **config: Any) -> CreateRunCommand:
    return CreateRunCommand(
        thread_id=thread_id or str(uuid.uuid4()),
        create_thread=True,
        assistant_id=assistant,
        metadata={"graph_id": assistant},
        input={"number": 1},
        config=config,
        after_seconds=after,
    )


def create(store: Store, commands: Sequence[CreateRunCommand]) -> list[str]:
    """Ids of runs created one after the other."""

    async def all_of_them() -> list[str]:
        return [(await store.service.create_background(command)).run_id for command in commands]

    return asyncio.run(all_of_them())


def facts(settings: Settings, topic: str) -> list[tuple[str, str, datetime]]:
    """(run, actor, time) of such facts, in order of the log."""
    with psycopg.connect(str(settings.database_url)) as connection:
        return connection.execute(
            f"select run_id, actor, recorded_at from {SCHEMA}.events_facts where topic = %s order by position",
            (topic,),
        ).fetchall()


def run_ids(settings: Settings, topic: str) -> list[str]:
    return [run_id for run_id, *_ in facts(settings, topic)]


def test_draining_ends_when_its_queues_hold_no_due_run_and_leaves_those_of_others_and_of_later(
    settings: Settings,
) -> None:
    queues = settings.model_copy(update={"queues": {"gpu": ["other"]}})
    with open_store(queues, config=CONFIG, work=False) as store:
        mine = create(store, [ask() for _ in range(6)])
        others = create(store, [ask("other") for _ in range(2)])
        create(store, [ask(after=3600)])
    assert "drained: 6 runs have ended" in drained(settings, "--queue", "default", "--concurrency", "3")
    assert sorted(run_ids(settings, "run.completed")) == sorted(mine)
    assert "drained: 2 runs have ended" in drained(settings)
    assert sorted(run_ids(settings, "run.completed")) == sorted(mine + others)


def test_threads_are_taken_by_priority_and_among_equals_in_order_of_creation(settings: Settings) -> None:
    priorities = [0, -100, 5, 100, 5, 0]
    with open_store(settings, config=CONFIG, work=False) as store:
        made = create(store, [ask(priority=each) for each in priorities])
    drained(settings, "--concurrency", "1")
    expected = [made[index] for index in sorted(range(len(made)), key=lambda index: -priorities[index])]
    assert run_ids(settings, "run.started") == expected


class Named:
    """An executor that does nothing, at once or when `go` is set."""

    def __init__(self) -> None:
        self.begun: list[str] = []

    async def execute(self, run: ActiveRun) -> None:
        self.begun.append(run.run.assistant_id)


def test_a_thread_with_runs_of_several_queues_goes_from_worker_to_worker_in_the_order_of_the_log(
    settings: Settings,
) -> None:
    queues = settings.model_copy(update={"queues": {"gpu": ["other"]}, "sweep_seconds": 30.0})
    thread_id = str(uuid.uuid4())
    assistants = ["noop", "noop", "other", "noop", "other", "other"]
    plain, gpu = Named(), Named()
    with open_store(queues, executor=plain, work=False) as store:
        made = create(store, [ask(each, thread_id) for each in assistants])
    with (
        open_store(queues, executor=plain, queues=["default"]) as store,
        open_store(queues, executor=gpu, queues=["gpu"]),
    ):
        asyncio.run(store.service.ended(thread_id, made[-1]))
    assert run_ids(settings, "run.started") == made
    assert (plain.begun, gpu.begun) == (["noop"] * 3, ["other"] * 3)


def test_a_worker_that_is_taken_away_hands_its_run_to_another_within_two_seconds(settings: Settings) -> None:
    ticking = Path(__file__).parents[1] / "benchmarks" / "ticking" / "langgraph.json"
    command = CreateRunCommand(
        thread_id=str(uuid.uuid4()),
        create_thread=True,
        assistant_id="ticking",
        metadata={"graph_id": "ticking"},
        input={"frames": 200, "rate": 100, "delay": 0},
        stream_mode=("custom",),
    )
    workers: list[subprocess.Popen[str]] = []
    with open_store(settings, config=ticking, work=False) as store:
        try:
            for _ in range(2):
                workers.append(work(settings, "--config", str(ticking), RUNS_ES_DRAIN_SECONDS="0.2"))
                assert workers[-1].stdout is not None
                assert "runs-es worker" in workers[-1].stdout.readline()
            asyncio.run(_stop_its_worker(store, command, workers))
        finally:
            for worker in workers:
                worker.terminate()
                worker.communicate(timeout=200)
    (first, second), (requeued,) = facts(settings, "run.started"), facts(settings, "run.requeued")
    assert first[1] != second[1]
    assert (second[2] - requeued[2]).total_seconds() < 2
    assert len(run_ids(settings, "run.completed")) == 1


async def _stop_its_worker(store: Store, command: CreateRunCommand, workers: Sequence[subprocess.Popen[str]]) -> None:
    """Create a run, end the worker that executes it by SIGTERM once it streams, and wait for the run's end."""
    handle = await store.service.create_and_stream(command)
    frames = 0
    async for event in handle.events:
        frames += event.event == "custom"
        if frames == 1:
            frames += 1
            actor = facts(store.settings, "run.started")[0][1]
            at_work = next(worker for worker in workers if f":{worker.pid}:" in actor)
            at_work.send_signal(signal.SIGTERM)


def test_a_priority_out_of_bounds_is_refused_naming_the_field(database_url: str) -> None:
    with Server(database_url, options=["--no-worker"]) as server:
        for priority in (101, -101, 1.5, "high", True):
            body = {"assistant_id": "agent", "if_not_exists": "create", "config": {"priority": priority}}
            answer = httpx.post(f"{server.url}/threads/{uuid.uuid4()}/runs", json=body, timeout=60)
            assert answer.status_code == 422
            assert "priority" in answer.text


def test_an_assistant_waits_in_one_queue_only_and_default_cannot_be_named() -> None:
    for queues in ({"a": ["x"], "b": ["x"]}, {"default": ["x"]}, {"with space": ["x"]}):
        with pytest.raises(ValidationError):
            Settings(queues=queues)


def test_work_refuses_a_queue_that_no_run_can_be_in(settings: Settings) -> None:
    with work(settings, "--queue", "gqu") as worker:
        assert worker.wait(20) == 2


def test_a_drain_can_be_stopped_also_where_the_read_model_stands_still(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    stopping = threading.Event()
    with open_store(settings.model_copy(update={"list_wait_seconds": 0.1}), executor=Named()) as store:
        assert store.worker is not None
        store.projector.close()
        made = create(store, [ask()])
        while run_ids(settings, "run.completed") != made:
            pass
        draining = threading.Thread(target=_work_until_empty, args=(store, store.worker, (), stopping), daemon=True)
        draining.start()
        stopping.set()
        draining.join(10)
        assert not draining.is_alive()
    assert "drained" not in capsys.readouterr().out


def test_a_worker_that_is_taken_away_leaves_the_later_runs_of_its_thread_a_job(settings: Settings) -> None:
    thread_id = str(uuid.uuid4())
    with open_store(settings, executor=Named(), work=False) as store:
        create(store, [ask(thread_id=thread_id) for _ in range(2)])

    class UntilStopped(Named):
        async def execute(self, run: ActiveRun) -> None:
            await super().execute(run)
            await asyncio.to_thread(stopping.wait)

    stopping = threading.Event()
    executor = UntilStopped()
    with open_store(settings, executor=executor) as store:
        assert store.worker is not None
        while not executor.begun:
            pass
        store.worker.drain()
        assert store.worker._jobs is not None
        while not store.worker._jobs._stopping.is_set():
            pass
        stopping.set()
    assert len(run_ids(settings, "run.started")) == 1
    with psycopg.connect(str(settings.database_url)) as connection:
        jobs = connection.execute(f"select status::text, lock from {SCHEMA}_queue.procrastinate_jobs").fetchall()
    assert jobs == [("todo", thread_id)]


def test_a_job_that_workers_of_different_settings_send_to_each_other_is_not_sent_all_the_time(
    settings: Settings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[float] = []
    enough = threading.Event()
    pass_over = QueueWorker.pass_over

    def noted(worker: QueueWorker, thread_id: str, run_id: str) -> None:
        if thread_id not in worker._passed:
            looked.append(time.monotonic())
            if len(looked) > 3:
                enough.set()
        pass_over(worker, thread_id, run_id)

    monkeypatch.setattr(QueueWorker, "pass_over", noted)
    gpu = settings.model_copy(update={"queues": {"gpu": ["other"]}, "sweep_seconds": 30.0})
    plain = settings.model_copy(update={"queues": {"gpu": ["none"]}, "sweep_seconds": 30.0})
    with (
        open_store(gpu, executor=Named(), queues=["default"]) as store,
        open_store(plain, executor=Named(), queues=["gpu"]),
    ):
        create(store, [ask("other")])
        assert enough.wait(30)
    assert looked[3] - looked[0] > 0.5
    assert "is RUNS_ES_QUEUES the same everywhere?" in caplog.text
