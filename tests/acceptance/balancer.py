"""A TCP load balancer: new connections go round robin to those servers that accept them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Self

from tests.acceptance.network_proxy import copy


class Balancer:
    """Listens on a port of its own. It knows nothing of HTTP: what a server has been sent, it sends nowhere again."""

    def __init__(self, targets: Sequence[int]) -> None:
        self._targets = list(targets)
        self._connections: set[asyncio.Task[None]] = set()
        self.turned_away: Counter[int] = Counter()  # by port: connections that went to another server
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, down_reader: asyncio.StreamReader, down: asyncio.StreamWriter) -> None:
        try:
            reader, up = await self._connect()
        except ConnectionError:
            down.transport.abort()
            return
        asking = asyncio.create_task(copy(down_reader, up))
        try:
            with suppress(OSError):
                await copy(reader, down)
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            up.transport.abort()
            down.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self._targets = [*self._targets[1:], self._targets[0]]
        for target in self._targets:
            try:
                return await asyncio.open_connection("127.0.0.1", target)
            except ConnectionError:
                self.turned_away[target] += 1
        raise ConnectionRefusedError("no server accepts connections")
