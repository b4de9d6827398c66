"""What all routes share: the store, the settings, threads to read with, and the open joins."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Annotated, Any, ParamSpec, TypeVar

from fastapi import Depends, Request

from runs_api.joins import Joins
from runs_api.reader_memory import ReaderMemory
from runs_api.responses import Json, encoded, is_small
from runs_api.store import Store
from runs_es.domain import now
from runs_es.log.readiness import what_is_missing
from runs_es.settings import Settings

WAITING = 24
PROBES = 4
PROBE_SECONDS = 1.8  # probes of orchestrators often wait no longer than 2 s
# A body of this size is parsed and validated in some hundred microseconds; a larger one in a thread.
ON_LOOP_BYTES = 32 * 1024

P = ParamSpec("P")
T = TypeVar("T")


class Edge:
    """One per app. `read` is for whatever blocks."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self.store = store
        self.settings = settings
        self.joins = Joins(settings.max_joins, settings.max_joins_per_user)
        self.memory = ReaderMemory(settings.reader_bytes, self._share)
        self.started_at = now()
        # More than there are connections: a list that waits for its read model holds a thread, but no connection.
        self._threads = ThreadPoolExecutor(settings.read_pool_size + WAITING, "runs-api")
        # Probes have threads of their own: they answer while all others wait for the database.
        self._probing = ThreadPoolExecutor(PROBES, "runs-api probe")

    def _share(self, size: int) -> None:
        self.store.streams.read_bytes = size

    async def read(self, function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """Call `function` in a thread."""
        loop = asyncio.get_running_loop()
        call = partial(function, *arguments, **named)
        return await loop.run_in_executor(self._threads, copy_context().run, call)

    async def json(self, content: Any, *, headers: Mapping[str, str] | None = None) -> Json:
        """The answer with this content, encoded in a thread when it is not small."""
        if is_small(content):
            return Json(content, headers=headers)
        return Json(await self.read(encoded, content), headers=headers)

    async def ask(self, function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """Call `function` for a probe. Raises TimeoutError after PROBE_SECONDS."""
        loop = asyncio.get_running_loop()
        asked = loop.run_in_executor(self._probing, partial(function, *arguments, **named))
        return await asyncio.wait_for(asked, PROBE_SECONDS)

    async def missing(self) -> list[str]:
        """Say in words what keeps this server from appending and reading now; within PROBE_SECONDS."""
        try:
            return await self.ask(what_is_missing, self.store.log)
        except TimeoutError:
            self.store.log.outage.noticed()
            return [f"the database has not answered within {PROBE_SECONDS:g} s"]

    def close(self) -> None:
        """Let go of the threads; does not wait for a read that hangs."""
        for threads in (self._threads, self._probing):
            threads.shutdown(wait=False, cancel_futures=True)


async def edge_of(request: Request) -> Edge:
    edge: Edge = request.app.state.edge
    return edge


EdgeOf = Annotated[Edge, Depends(edge_of)]
