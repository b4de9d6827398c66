"""The app over a real store, with an executor that does what its input says."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from runs_api.app import create_app
from runs_es.execution.protocol import ActiveRun, RunOutcome
from runs_es.settings import Settings
from runs_projections.wiring import Store, open_store
from tests.conftest import SCHEMA


class ScriptedExecutor:
    """Publishes `frames`, records `messages`, waits for `released[hold]`, then fails, pauses or succeeds."""

    def __init__(self) -> None:
        self.released: dict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.loop: asyncio.AbstractEventLoop | None = None

    async def execute(self, run: ActiveRun) -> RunOutcome:
        self.loop = asyncio.get_running_loop()
        script: dict[str, Any] = run.run.kwargs["input"] or {}
        for message in script.get("messages", ()):
            await run.record_message(message)
        for event, data in script.get("frames", ()):
            await run.publish(event, data)
        await run.flush()
        if "hold" in script:
            await self.released[script["hold"]].wait()
        for event, data in script.get("later", ()):
            await run.publish(event, data)
        if "fail" in script:
            raise ValueError(script["fail"])
        return RunOutcome(interrupts=script.get("interrupts", {}))

    def release(self, key: str) -> None:
        """Let runs that wait for `key` go on. From any thread."""
        assert self.loop is not None
        self.loop.call_soon_threadsafe(self.released[key].set)


@pytest.fixture(scope="module")
def executor() -> ScriptedExecutor:
    return ScriptedExecutor()


@pytest.fixture(scope="module")
def store_settings(module_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(
        database_url=module_database_url,
        data_dir=tmp_path_factory.mktemp("data"),
        db_schema=SCHEMA,
        stream_heartbeat_seconds=0.05,
        drain_seconds=0,
    )


@pytest.fixture(scope="module")
def store(store_settings: Settings, executor: ScriptedExecutor) -> Iterator[Store]:
    with open_store(store_settings, executor=executor) as opened:
        yield opened


@pytest.fixture
async def client(store: Store, store_settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """Answers come whole: for streams that end."""
    async with client_of(store, store_settings) as client:
        yield client


class client_of:
    """A client of an app over `store`, with its lifespan around it."""

    def __init__(self, store: Any, settings: Settings) -> None:
        self._app = create_app(store, settings)
        self._client = httpx.AsyncClient(transport=httpx.ASGITransport(self._app), base_url="http://store", timeout=30)

    async def __aenter__(self) -> httpx.AsyncClient:
        self._life = self._app.router.lifespan_context(self._app)
        await self._life.__aenter__()
        return await self._client.__aenter__()

    async def __aexit__(self, *exc: Any) -> None:
        await self._client.__aexit__(*exc)
        await self._life.__aexit__(*exc)


def events_of(body: str) -> list[dict[str, str]]:
    """The events of a whole stream, comments left out."""
    assert body.endswith("\r\n\r\n")
    lines = [line for line in body.split("\r\n") if not line.startswith(":")]
    blocks = "\n".join(lines).strip("\n").split("\n\n")
    return [dict(line.split(": ", 1) for line in block.split("\n")) for block in blocks]


async def new_thread(client: httpx.AsyncClient, **fields: Any) -> str:
    answer = await client.post("/threads", json=fields)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["thread_id"])
