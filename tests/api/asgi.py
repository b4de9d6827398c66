"""An ASGI connection of which a test holds both ends: what was sent, when the client leaves, how fast it reads."""

from __future__ import annotations

import asyncio
from typing import Any


class Connection:
    """Call `response(scope, connection.receive, connection.send)`, or start it with `start`."""

    def __init__(self, body: bytes = b"") -> None:
        self.messages: list[dict[str, Any]] = []
        self.gone = asyncio.Event()
        self.reads = asyncio.Event()
        self.reads.set()
        self.broken = False
        self._body: list[bytes] = [body]
        self._sent = asyncio.Condition()

    async def receive(self) -> dict[str, Any]:
        if self._body:
            return {"type": "http.request", "body": self._body.pop(), "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        await self.reads.wait()
        if self.broken:
            raise OSError("the connection is gone")
        async with self._sent:
            self.messages.append(message)
            self._sent.notify_all()

    def start(self, app: Any) -> asyncio.Task[None]:
        """Serve this connection in a task."""
        return asyncio.create_task(app({"type": "http"}, self.receive, self.send))

    async def until(self, text: bytes) -> None:
        """Wait until `text` has been sent."""
        async with self._sent:
            await asyncio.wait_for(self._sent.wait_for(lambda: text in self.body), 10)

    @property
    def pieces(self) -> list[bytes]:
        return [message["body"] for message in self.messages if message["type"] == "http.response.body"]

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.messages[0]["headers"]}

    @property
    def complete(self) -> bool:
        """Whether the final chunk was sent."""
        return any(
            message["type"] == "http.response.body" and not message.get("more_body") for message in self.messages
        )
