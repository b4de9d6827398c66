"""A TCP proxy before the server that breaks connections as networks do: after so many bytes, or after a text."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Self

_CHUNK = 65536
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER 0: closing sends an RST


class Fault(Enum):
    """What happens to a connection."""

    CLOSE = "close"
    RESET = "reset"
    HALF_DOWN = "half-close to the client"  # no more bytes come, though the connection lives
    HALF_UP = "half-close to the server"  # the client seems to have nothing more to say
    STALL = "stall"  # nothing passes until `released` is set


@dataclass(frozen=True, slots=True)
class Plan:
    """`fault` strikes after `after` bytes from the server, or right after the first `marker` in what it sends."""

    fault: Fault
    after: int = 0
    marker: bytes = b""

    def strikes_at(self, seen: bytes) -> int | None:
        if not self.marker:
            return self.after if self.after <= len(seen) else None
        found = seen.find(self.marker)
        return None if found < 0 else found + len(self.marker)


class NetworkProxy:
    """Listens on a port of its own and passes on to `target`. Every new connection takes the next plan, if any."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._plans: deque[Plan] = deque()
        self._connections: set[asyncio.Task[None]] = set()
        self.released = asyncio.Event()
        self.stalled = asyncio.Event()
        self.faults: Counter[str] = Counter()
        self.port = 0

    def plan(self, *plans: Plan) -> None:
        """What is to happen to the next connections, in order."""
        self._plans.extend(plans)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        plan = self._plans.popleft() if self._plans else None
        task = asyncio.create_task(self._serve(reader, writer, plan))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, down: asyncio.StreamWriter, plan: Plan | None) -> None:
        upper, up = await asyncio.open_connection("127.0.0.1", self._target)
        asking = asyncio.create_task(copy(reader, up))
        down.transport.set_write_buffer_limits(0)  # `drain` means that the kernel has it
        try:
            with suppress(OSError):  # one of the two has gone, and so does the other
                await self._answer(upper, up, down, plan)
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            up.transport.abort()
            down.transport.abort()

    async def _answer(
        self, upper: asyncio.StreamReader, up: asyncio.StreamWriter, down: asyncio.StreamWriter, plan: Plan | None
    ) -> None:
        seen = b""
        while data := await upper.read(_CHUNK):
            if plan is not None:
                passed, seen = len(seen), seen + data
                end = plan.strikes_at(seen)
                if end is not None:
                    await _pass(down, seen[passed:end])
                    await self._strike(plan.fault, upper, up, down)
                    if plan.fault not in (Fault.STALL, Fault.HALF_UP):
                        return
                    plan, data = None, seen[end:]
            await _pass(down, data)

    async def _strike(
        self, fault: Fault, upper: asyncio.StreamReader, up: asyncio.StreamWriter, down: asyncio.StreamWriter
    ) -> None:
        self.faults[fault.value] += 1
        match fault:
            case Fault.RESET:
                for each in (down, up):
                    each.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            case Fault.HALF_DOWN:
                down.write_eof()
                while await upper.read(_CHUNK):
                    pass  # the server learns of it once the client goes
            case Fault.HALF_UP:
                up.write_eof()
            case Fault.STALL:
                self.stalled.set()
                await self.released.wait()


async def _pass(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass on what is read until there is no more, or one of the two has gone."""
    with suppress(OSError):
        while data := await reader.read(_CHUNK):
            await _pass(writer, data)
        writer.write_eof()
