"""What every request passes before a route sees it: a request id, the limits on its size, and a net for our mistakes.

Pure ASGI. A middleware that wraps the response in a task of its own would buffer streams and hide that a client left.
"""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from collections.abc import Callable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runs_api.errors import RETRY, ApiError
from runs_api.late import LateRequest
from runs_es.database.outage import Outage
from runs_es.settings import Settings

logger = logging.getLogger(__name__)

MAX_LAST_EVENT_ID = 32
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,200}")


class RequestGate:
    """Refuses what is too large, before or while it is read, and gives every answer its `x-request-id`."""

    def __init__(self, app: ASGIApp, settings: Settings, outage: Callable[[], Outage] | None = None) -> None:
        self._app = app
        self._outage = outage
        self._wait = settings.database_wait_seconds
        self._max_body = settings.max_body_bytes
        self._max_header = settings.max_header_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(send, request_id(scope["headers"]))
        scope.setdefault("state", {})["request_id"] = answer.request_id.decode()
        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal.response()(scope, receive, answer.send)
            return
        late = None if self._outage is None else LateRequest(self._outage(), self._wait, lambda: answer.started)
        try:
            await self._app(scope, self._counted(receive), answer.send)
        except asyncio.CancelledError:
            if late is None or answer.started or not late.was_mine():
                raise
            refusal = ApiError(503, f"the database does not answer: {late.reason}", RETRY)
            await refusal.response()(scope, receive, answer.send)
        except Exception:
            if answer.started:
                raise  # the server cuts the connection, which is all that can be said now
            logger.exception("%s %s failed (request %s)", scope["method"], scope["path"], answer.request_id.decode())
            await ApiError(500, "Internal Server Error").response()(scope, receive, answer.send)
        finally:
            if late is not None:
                late.stop()

    def _refusal(self, scope: Scope) -> ApiError | None:
        for name, value in scope["headers"]:
            if len(value) > self._max_header:
                return ApiError(
                    431,
                    f"header {name.decode('latin-1')} has {len(value)} bytes; at most {self._max_header} are taken"
                    " (RUNS_ES_MAX_HEADER_BYTES)",
                )
            if name == b"last-event-id" and len(value) > MAX_LAST_EVENT_ID:
                return ApiError(422, f"Last-Event-ID must have at most {MAX_LAST_EVENT_ID} characters")
            if name == b"content-length" and _number(value) > self._max_body:
                return self._too_large()
        query: bytes = scope["query_string"]
        if len(query) > self._max_header:
            return ApiError(414, f"the query has more than {self._max_header} bytes (RUNS_ES_MAX_HEADER_BYTES)")
        if b"%00" in query or b"\x00" in query:
            return ApiError(422, "the query must not contain NUL characters")
        return None

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the request body is over the limit of {self._max_body} bytes (RUNS_ES_MAX_BODY_BYTES)")

    def _counted(self, receive: Receive) -> Receive:
        """`receive` that stops a body which is longer than it said, or did not say."""
        taken = 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            if message["type"] == "http.request":
                taken += len(message.get("body", b""))
                if taken > self._max_body:
                    raise self._too_large()
            return message

        return counted


class _Answer:
    """The way out of one request; remembers whether anything went out."""

    def __init__(self, send: Send, request_id: bytes) -> None:
        self._send = send
        self.request_id = request_id
        self.started = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            message = {**message, "headers": [*message.get("headers", ()), (b"x-request-id", self.request_id)]}
        await self._send(message)


def request_id(headers: list[tuple[bytes, bytes]]) -> bytes:
    """The caller's `x-request-id`, if it is one short printable word; else a new one."""
    for name, value in headers:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return value
    return str(uuid.uuid4()).encode()


def _number(value: Any) -> int:
    return int(value) if value.isdigit() else 0
