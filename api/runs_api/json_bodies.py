"""JSON of requests: bounded while it arrives, before anything is built of it, and parsed beside the event loop when it
is large.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Coroutine, Iterator
from inspect import signature
from itertools import accumulate
from typing import Any

import orjson
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError

from runs_api.edge import ON_LOOP_BYTES, Edge
from runs_api.errors import ApiError

MAX_DEPTH = 200  # unless a setting says otherwise; orjson reads deeper than it can write
MAX_ELEMENTS = 250_000
SLICE_BYTES = 32 * 1024  # scanned in a fraction of a millisecond
_STRUCTURE = bytes(set(range(256)) - set(b"[]{},"))
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")  # as signed numbers: one level down, one up


class Bounds:
    """Counts depth and elements of JSON that comes in pieces. An element is an item, a member, an array or an object.

    It does not care whether the text is JSON: of what is none, it only bounds the work.
    """

    def __init__(self, max_depth: int = MAX_DEPTH, max_elements: int = MAX_ELEMENTS) -> None:
        self._max_depth = max_depth
        self._max_elements = max_elements
        self._depth = 0
        self._elements = 0
        self._in_string = False
        self._after_backslash = False

    def slices(self, piece: bytes) -> Iterator[None]:
        """Count a piece in steps, so that a caller on an event loop can let others in between. Raises ApiError."""
        for start in range(0, len(piece), SLICE_BYTES):
            self._count(piece[start : start + SLICE_BYTES])
            yield

    def check(self, body: bytes) -> None:
        """Count a whole body. Raises ApiError."""
        for _ in self.slices(body):
            pass

    def _count(self, piece: bytes) -> None:
        structure = self._outside_strings(piece).translate(None, _STRUCTURE)
        brackets = structure.translate(_STEPS, b",")
        opened = brackets.count(1)
        self._elements += opened + len(structure) - len(brackets)
        if self._elements > self._max_elements:
            raise ApiError(
                413,
                f"the request body has more than {self._max_elements} items and members (RUNS_ES_MAX_BODY_ELEMENTS)",
            )
        if self._depth + opened > self._max_depth:
            # Only now is it worth to look how they follow each other.
            self._check_depth(brackets)
        self._depth += 2 * opened - len(brackets)

    def _check_depth(self, brackets: bytes) -> None:
        if max(accumulate(memoryview(brackets).cast("b"), initial=self._depth)) > self._max_depth:
            raise ApiError(
                422, f"The request body is nested more than {self._max_depth} levels deep (RUNS_ES_MAX_BODY_DEPTH)"
            )

    def _outside_strings(self, piece: bytes) -> bytes:
        if self._after_backslash:
            piece = piece[1:]
            self._after_backslash = False
        if b"\\" in piece:
            piece = piece.replace(b"\\\\", b"")
            self._after_backslash = piece.endswith(b"\\")
            piece = piece.replace(b'\\"', b"")
        if not (parts := piece.split(b'"')):
            return b""
        outside = parts[1::2] if self._in_string else parts[::2]
        self._in_string ^= len(parts) % 2 == 0
        return b"".join(outside)


def parsed(body: bytes) -> Any:
    """The JSON of a body. Raises JSONDecodeError, or ApiError for JSON over the bounds."""
    Bounds().check(body)
    return orjson.loads(body)


class JsonRoute(APIRoute):
    """Reads JSON with orjson; a large body is parsed and validated in a thread."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        adapter = _body_of(self.endpoint)

        async def handler(request: Request) -> Response:
            read = _JsonRequest(request.scope, request.receive)
            if adapter is not None and is_json(request.headers.get("content-type", "")):
                body = await read.body()
                if len(body) > ON_LOOP_BYTES:
                    edge: Edge = request.app.state.edge
                    read.value = await edge.read(_validated, adapter, body)
            return await handle(read)

        return handler


class _JsonRequest(Request):
    value: Any = None  # the body as its model, where that was made beforehand; a model is not validated again

    async def json(self) -> Any:
        return orjson.loads(await self.body()) if self.value is None else self.value


def is_json(content_type: str) -> bool:
    """Whether a `Content-Type` says JSON, as FastAPI decides it."""
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


def _body_of(endpoint: Callable[..., Any]) -> TypeAdapter[Any] | None:
    """What validates the parameter `body` of a route's function; None when it has none."""
    if "body" not in signature(endpoint).parameters:
        return None
    return TypeAdapter(typing.get_type_hints(endpoint, include_extras=True)["body"])


def _validated(adapter: TypeAdapter[Any], body: bytes) -> Any:
    try:
        return adapter.validate_python(orjson.loads(body))
    except orjson.JSONDecodeError as error:
        raise RequestValidationError([{"type": "json_invalid", "loc": ("body", error.pos), "msg": error.msg}]) from None
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        raise RequestValidationError([{**each, "loc": ("body", *each["loc"])} for each in found]) from None
