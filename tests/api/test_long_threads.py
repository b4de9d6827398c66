"""What is asked of one thread or run costs the same, however many runs and messages the thread has."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from runs_es.domain import (
    Fact,
    MessageRecorded,
    Provenance,
    RunClaimed,
    RunCompleted,
    RunCreated,
    RunDeleted,
    RunStarted,
    ThreadCreated,
    ThreadDeleted,
    now,
)
from runs_es.log import codec
from runs_es.settings import Settings
from runs_projections.wiring import Store, open_store
from tests.api.conftest import client_of

RUNS = 400
MESSAGES = 5  # a run


@pytest.fixture
def store(store_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    folder = tmp_path_factory.mktemp("agents")
    (folder / "plain.py").write_text("async def agent(input):\n    return {}\n")
    (folder / "langgraph.json").write_text(json.dumps({"dependencies": ["."], "graphs": {"f": "./plain.py:agent"}}))
    with open_store(store_settings, config=Path(folder / "langgraph.json"), work=False) as opened:
        yield opened


@pytest.fixture
async def client(store: Store, store_settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(store, store_settings) as client:
        yield client


class Recorded:
    """A thread written straight into the log."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.thread_id = str(uuid4())
        self.run_ids: list[str] = []
        self.revision = 0
        self.frames = 0
        self.add(ThreadCreated(thread_id=self.thread_id, occurred_at=now(), metadata={"graph_id": "f"}))

    def add(self, *facts: Fact, page: tuple[str, list[bytes]] | None = None) -> None:
        appended = self.store.log.append(
            self.thread_id,
            facts,
            expected=self.revision,
            page=page,
            frames=self.frames if page else None,
            page_first=page is not None,
            provenance=Provenance(),
        ).result()
        self.revision, self.frames = appended.revision, appended.frames

    def run(self, values: dict[str, Any] | None = None, messages: int = 0) -> str:
        """A run that has ended, and showed these values."""
        run_id = str(uuid4())
        known = {"thread_id": self.thread_id, "run_id": run_id, "occurred_at": now()}
        self.add(
            RunCreated(**known, assistant_id="f", metadata={"graph_id": "f"}, kwargs={"input": {}}),
            RunClaimed(**known, claim_id=run_id),
            RunStarted(**known, first_frame=self.frames),
            *(
                MessageRecorded(**known, message_id=f"{run_id}-{number}", event_type="ai", content={})
                for number in range(messages)
            ),
        )
        shown = b"event: values\r\ndata: %b\r\n" % json.dumps(values).encode() if values is not None else None
        self.add(RunCompleted(**known), page=(run_id, [shown]) if shown else None)
        self.run_ids.append(run_id)
        return run_id


class Decoded:
    """How many facts the process has decoded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        decode = codec.decode

        def counted(*arguments: Any) -> Fact:
            self.count += 1
            return decode(*arguments)

        monkeypatch.setattr(codec, "decode", counted)


async def test_one_thread_or_run_is_read_without_the_facts_of_all_its_runs(
    client: httpx.AsyncClient, store: Store, monkeypatch: pytest.MonkeyPatch
):
    long = Recorded(store)
    for number in range(RUNS):
        long.run({"n": number}, MESSAGES)
    store.projector.wait_for(store.log.reader.last_position(), 60)
    decoded = Decoded(monkeypatch)
    thread, run = f"/threads/{long.thread_id}", f"/threads/{long.thread_id}/runs/{long.run_ids[0]}"
    seen = {}
    for path in (thread, f"{thread}/state", run, f"{run}/join", f"{thread}/messages?limit=3", f"{thread}/runs?limit=3"):
        decoded.count = 0
        answer = await client.get(path)
        assert answer.status_code == 200, path
        seen[path] = decoded.count
    assert max(seen.values()) <= 20, seen
    assert (await client.get(thread)).json()["values"] == {"n": RUNS - 1}


async def test_values_are_those_of_the_last_run_that_is_still_there_and_showed_any(
    client: httpx.AsyncClient, store: Store
):
    thread = Recorded(store)
    thread.run({"n": 1})
    thread.run({"n": 2})
    gone = thread.run({"n": 3})
    thread.run()

    async def values() -> Any:
        return (await client.get(f"/threads/{thread.thread_id}")).json()["values"]

    assert await values() == {"n": 3}
    thread.add(RunDeleted(thread_id=thread.thread_id, run_id=gone, occurred_at=now(), attempt=0))
    assert await values() == {"n": 2}
    for _ in range(40):  # deleted ones are passed over, however many
        deleted = thread.run({"n": 9})
        thread.add(RunDeleted(thread_id=thread.thread_id, run_id=deleted, occurred_at=now(), attempt=0))
    assert await values() == {"n": 2}
    thread.add(ThreadDeleted(thread_id=thread.thread_id, occurred_at=now()))
    thread.add(ThreadCreated(thread_id=thread.thread_id, occurred_at=now(), metadata={"graph_id": "f"}))
    assert await values() is None
    thread.run({"n": 10})
    assert await values() == {"n": 10}
