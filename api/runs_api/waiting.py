"""A run's result once it has ended, as JSON behind newlines that keep the connection alive until then."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from runs_api.responses import encoded, is_small
from runs_api.sse import Ending, client_left
from runs_es.database.reporting import report
from runs_es.settings import Settings

logger = logging.getLogger(__name__)


class ResultWhenEnded(Response):
    """Sends what `result` comes to. Its failure cuts the connection: the client asks again where `Location` says."""

    media_type = "application/json"

    def __init__(
        self,
        result: Callable[[], Coroutine[Any, Any, Any]],
        settings: Settings,
        *,
        headers: Mapping[str, str],
        on_client_left: Callable[[], Awaitable[None]] | None = None,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers(dict(headers))
        self._result = result
        self._settings = settings
        self._on_client_left = on_client_left
        self._on_close = on_close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            ending = await self._run(receive, send)
        finally:
            if self._on_close is not None:
                self._on_close()
        if ending is Ending.CLIENT_LEFT and self._on_client_left is not None:
            await self._on_client_left()

    async def _run(self, receive: Receive, send: Send) -> Ending:
        result = asyncio.create_task(self._result())
        listening = asyncio.create_task(client_left(receive))
        try:
            # The headers at once: with `Location` a client that is cut off can ask again.
            await self._send(send, {"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            while not result.done():
                await asyncio.wait(
                    (result, listening),
                    timeout=self._settings.stream_heartbeat_seconds,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if listening.done():
                    return Ending.CLIENT_LEFT
                if not result.done():
                    await self._send(send, {"type": "http.response.body", "body": b"\n", "more_body": True})
            body = await _encoded(result.result())
            await self._send(send, {"type": "http.response.body", "body": body, "more_body": False})
            return Ending.COMPLETE
        except Undelivered as undelivered:
            return undelivered.ending
        except Exception as error:  # noqa: BLE001  (reported)
            report(logger, error, "a wait is cut")
        finally:
            for task in (result, listening):
                task.cancel()
            await asyncio.gather(result, listening, return_exceptions=True)
        return Ending.CUT

    async def _send(self, send: Send, message: Message) -> None:
        await deliver(send, message, self._settings.send_timeout_seconds)


async def _encoded(content: Any) -> bytes:
    return encoded(content) if is_small(content) else await asyncio.to_thread(encoded, content)


class Undelivered(Exception):
    """Something could not be sent, which ends the stream."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending)
        self.ending = ending


async def deliver(send: Send, message: Message, seconds: float) -> None:
    """Send within a deadline: a client that takes nothing is cut off. Raises Undelivered."""
    try:
        async with asyncio.timeout(seconds):
            await send(message)
    except TimeoutError:
        logger.info("a reader took nothing for %s s and is cut off", seconds)
        raise Undelivered(Ending.CUT) from None
    except OSError:
        raise Undelivered(Ending.CLIENT_LEFT) from None  # how some servers say so
