"""What every request passes before a route sees it: a request id, the limits on its size, and a net for our mistakes.

Pure ASGI. A middleware that wraps the response in a task of its own would buffer streams and hide that a client left.
"""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runs_api.errors import RETRY, ApiError
from runs_api.json_bodies import SLICE_BYTES, Bounds, is_json
from runs_api.late import LateRequest
from runs_es.database.outage import Outage
from runs_es.process_log import bound
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
        self._max_depth = settings.max_body_depth
        self._max_elements = settings.max_body_elements
        self._max_held = max(settings.max_bodies_bytes, settings.max_body_bytes)
        self._held = 0  # bytes of bodies whose requests are not answered yet

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
        body = _Body()
        answer.on_start = partial(self._let_go, body)
        late = None if self._outage is None else LateRequest(self._outage(), self._wait, lambda: answer.started)
        try:
            counted = self._counted(receive, body, _bounds_of(scope, self._max_depth, self._max_elements))
            with bound(request_id=answer.request_id.decode()):
                await self._app(scope, counted, answer.send)
        except asyncio.CancelledError:
            if late is None or answer.started or not late.was_mine():
                raise
            refusal = ApiError(503, f"the database does not answer: {late.reason}", RETRY)
            await refusal.response()(scope, receive, answer.send)
        except ClientDisconnect:
            logger.info("%s %s: the client left before its request was whole", scope["method"], scope["path"])
        except Exception:
            if answer.started:
                raise  # the server cuts the connection, which is all that can be said now
            told = {"request_id": answer.request_id.decode()}
            logger.exception("%s %s failed", scope["method"], scope["path"], extra=told)
            await ApiError(500, "Internal Server Error").response()(scope, receive, answer.send)
        finally:
            if late is not None:
                late.stop()
            self._let_go(body)

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

    def _counted(self, receive: Receive, body: _Body, bounds: Bounds | None) -> Receive:
        """`receive` that stops a body which is over a bound, as soon as so much of it has come."""

        async def counted() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                piece = message.get("body", b"")
                body.taken += len(piece)
                if body.taken > self._max_body:
                    raise self._too_large()
                self._hold(body, len(piece))
                if bounds is not None:
                    for _ in bounds.slices(piece):
                        if len(piece) > SLICE_BYTES:
                            await asyncio.sleep(0)  # others may go on between the slices of a large piece
            return message

        return counted

    def _hold(self, body: _Body, size: int) -> None:
        if body.answered:
            return
        if self._held + size > self._max_held:
            raise ApiError(
                503, f"requests under way have {self._max_held} bytes, the limit (RUNS_ES_MAX_BODIES_BYTES)", RETRY
            )
        body.held += size
        self._held += size

    def _let_go(self, body: _Body) -> None:
        body.answered = True
        self._held -= body.held
        body.held = 0


@dataclass(slots=True)
class _Body:
    """How much of a request's body came, and what of it still counts as held."""

    taken: int = 0
    held: int = 0
    answered: bool = False


def _bounds_of(scope: Scope, max_depth: int, max_elements: int) -> Bounds | None:
    """Bounds for a JSON body. What is none is not parsed, so it needs none."""
    kinds = [value.decode("latin-1") for name, value in scope["headers"] if name == b"content-type"]
    return Bounds(max_depth, max_elements) if any(map(is_json, kinds)) else None


class _Answer:
    """The way out of one request; remembers whether anything went out."""

    def __init__(self, send: Send, request_id: bytes) -> None:
        self._send = send
        self.request_id = request_id
        self.started = False
        self.on_start: Callable[[], None] = lambda: None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            self.on_start()
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
