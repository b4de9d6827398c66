"""What is used of libraries beyond their documented interface, and the versions that this was tried with.

A release that renames one of these fails here, by name, and nobody's workers in production: pyproject.toml ends each of
these libraries before its next minor version.
"""

from __future__ import annotations

import asyncio
import inspect
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import procrastinate
import pytest
from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore, PostgresFactory
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.graph.state import CompiledStateGraph
from packaging.requirements import Requirement
from packaging.version import Version
from procrastinate.connector import BaseAsyncConnector
from procrastinate.manager import JobManager
from procrastinate.testing import InMemoryConnector
from procrastinate.worker import Worker
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import Server, ServerState

PROJECT = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text())["project"]
EXTRAS = [each for extra in PROJECT["optional-dependencies"].values() for each in extra]
REQUIREMENTS = {each.name: each for each in map(Requirement, PROJECT["dependencies"] + EXTRAS)}


@pytest.mark.parametrize(
    "name",
    ["eventsourcing", "langgraph", "langgraph-checkpoint", "langgraph-checkpoint-postgres", "procrastinate", "uvicorn"],
)
def test_the_next_minor_version_is_not_taken_before_it_was_tried(name: str) -> None:
    installed, allowed = Version(version(name)), REQUIREMENTS[name].specifier
    following = Version(f"{installed.major}.{installed.minor + 1}.0")
    assert installed in allowed
    assert following not in allowed


def parameters(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters)


async def test_procrastinates_worker_has_what_ours_changes_and_reads() -> None:
    worker = Worker(app=procrastinate.App(connector=InMemoryConnector()), concurrency=3)
    assert isinstance(worker._new_job_event, asyncio.Event)
    assert worker._job_semaphore._value == 3
    assert worker._running_jobs == {}
    assert "context" in parameters(Worker._process_job)
    # It is cleared after each fetch, which is why ours remembers.
    assert "self._new_job_event.clear()" in inspect.getsource(Worker._fetch_and_process_jobs)
    assert parameters(JobManager.fetch_job) == {"self", "queues", "worker_id"}
    assert parameters(JobManager.finish_job) == {"self", "job", "status", "delete_job"}
    assert "job" in parameters(JobManager.finish_job)
    assert inspect.iscoroutinefunction(BaseAsyncConnector.execute_query_all_async)


def test_uvicorns_protocol_and_server_have_what_ours_change_and_read() -> None:
    assigned = inspect.getsource(HttpToolsProtocol.__init__)
    for name in ("cycle", "scope", "transport"):
        assert f"self.{name}" in assigned, name
    assert {"on_headers_complete", "on_message_begin"} <= set(dir(HttpToolsProtocol))
    for name in ("response_complete", "response_started", "keep_alive"):
        assert f"self.{name}" in inspect.getsource(RequestResponseCycle.__init__), name
    assert hasattr(ServerState(), "connections")
    assert {"startup", "shutdown", "handle_exit"} <= set(dir(Server))
    for name in ("server_state", "should_exit", "force_exit"):
        assert f"self.{name}" in inspect.getsource(Server.__init__), name
    assert "self.servers" in inspect.getsource(Server.startup)


def test_langgraphs_saver_has_what_ours_changes_and_what_is_small_enough_for_the_loop() -> None:
    for name in ("_cursor", "_dump_blobs", "_dump_writes", "_load_writes"):
        assert callable(getattr(AsyncPostgresSaver, name)), name
    assert parameters(AsyncPostgresSaver._cursor) == {"self", "pipeline"}
    for name in ("UPSERT_CHECKPOINT_BLOBS_SQL", "UPSERT_CHECKPOINTS_SQL", "UPSERT_CHECKPOINT_WRITES_SQL"):
        assert isinstance(getattr(AsyncPostgresSaver, name), str), name
    assert {"checkpointer", "interrupt_before_nodes", "interrupt_after_nodes"} <= set(
        inspect.signature(CompiledStateGraph.__init__).parameters
    ) | set(inspect.get_annotations(CompiledStateGraph.__mro__[1]))


def test_the_eventsourcing_librarys_recorder_has_what_ours_changes() -> None:
    assert {"insert_events", "select_events", "select_notifications", "max_notification_id"} <= set(
        dir(PostgresApplicationRecorder)
    )
    assert "originator_id_type" in parameters(PostgresDatastore.__init__)
    assert hasattr(PostgresFactory, "application_recorder_class")
    assert "self.channel_name" in inspect.getsource(PostgresApplicationRecorder)
