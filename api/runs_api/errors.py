"""Errors as the platform shows them: a status and `{"detail": "…"}`, one text that says what to change.

The table below is the only place where an error of the store becomes a status.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import psycopg
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from runs_api.responses import Json
from runs_es.database.outage import ENDED, is_lost
from runs_es.domain import (
    AssistantNotFound,
    BadSequence,
    ConflictError,
    CronNotFound,
    CursorLost,
    InvalidRunTransition,
    LeaseLost,
    LimitExceeded,
    RunEnded,
    RunNotFound,
    StoreUnavailable,
    ThreadExists,
    ThreadNotFound,
    UnsupportedStrategyError,
    WriteConflict,
)
from runs_es.domain.facts import hidden_error
from runs_es.execution.langgraph.graphs import GraphLoadError

logger = logging.getLogger(__name__)

RETRY = {"Retry-After": "1"}
STATUSES: dict[type[Exception], int] = {
    RunNotFound: 404,
    RunEnded: 404,
    ThreadNotFound: 404,
    AssistantNotFound: 404,
    CronNotFound: 404,
    ConflictError: 409,
    ThreadExists: 409,
    InvalidRunTransition: 409,
    UnsupportedStrategyError: 422,
    BadSequence: 422,
    CursorLost: 410,
    ValueError: 422,
    LimitExceeded: 413,
    StoreUnavailable: 503,
    WriteConflict: 503,
    LeaseLost: 503,
    GraphLoadError: 500,
    # What the store does not make a StoreUnavailable: the database ended a session, or has no room, or is read-only.
    psycopg.OperationalError: 503,
    psycopg.InterfaceError: 503,
    **dict.fromkeys(ENDED, 503),
    psycopg.errors.ReadOnlySqlTransaction: 503,
    psycopg.errors.InsufficientPrivilege: 503,
}
PLAIN = "plain"  # a validation error of this type is shown as it is, without the name of its field
_MOST_ERRORS = 3
# What is wrong with a whole body, if not that it must be an object; None: what the error says.
_BODIES: dict[str, str | None] = {"list_type": "a JSON list", "too_long": None, "too_short": None}


class ApiError(HTTPException):
    """A refusal that this room decides on by itself."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, detail, dict(headers) if headers else None)

    def response(self) -> Json:
        return Json({"detail": self.detail}, self.status_code, self.headers)


def add_handlers(app: FastAPI) -> None:
    """Make `app` answer every error in the one shape."""
    for kind in STATUSES:
        app.add_exception_handler(kind, _of_store)
    app.add_exception_handler(HTTPException, _of_http)
    app.add_exception_handler(RequestValidationError, _of_validation)


async def _of_store(request: Request, error: Exception) -> Json:
    status = next(STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES)
    if is_lost(error):
        logger.info("%s %s: %s", request.method, request.url.path, error)
    elif status >= 500:
        logger.warning("%s %s: %s", request.method, request.url.path, error)
    elif isinstance(error, ValueError):
        # Meant are values that the domain refuses; the trace tells such a one from a mistake of ours.
        logger.info("%s %s refused", request.method, request.url.path, exc_info=error)
    detail = str(error).strip()
    if isinstance(error, GraphLoadError) and request.app.state.edge.settings.show_errors == "never":
        detail = hidden_error(request.state.request_id)  # it may repeat what a graph raised; the line above has the id
    return Json({"detail": detail}, status, RETRY if status == 503 else None)


async def _of_http(request: Request, error: Exception) -> Json:
    assert isinstance(error, HTTPException)
    return Json({"detail": error.detail}, error.status_code, error.headers)


async def _of_validation(request: Request, error: Exception) -> Json:
    assert isinstance(error, RequestValidationError)
    errors: Sequence[Any] = error.errors()
    if any(each["type"] == "json_invalid" for each in errors):
        return Json({"detail": "Invalid JSON in request body"}, 422)
    if any(isinstance(each.get("input"), bytes) for each in errors):
        return Json({"detail": "The request body must be JSON: send it with Content-Type: application/json"}, 415)
    return Json({"detail": "; ".join(described(each) for each in errors[:_MOST_ERRORS])}, 422)


def described(error: Mapping[str, Any]) -> str:
    """One validation error in words: the field, and what is wrong with it."""
    message = str(error.get("ctx", {}).get("error") or error["msg"])
    inside = error["loc"][1:]
    field = ".".join(part for part in inside if isinstance(part, str))
    if error["loc"][0] == "body" and inside and isinstance(inside[0], int):
        field = f"[{inside[0]}].{field}".rstrip(".")  # which of a batch
    if error["type"] == PLAIN:
        return message
    if field or error["loc"][0] != "body":
        return f"{field}: {message}"
    kind = _BODIES.get(error["type"], "a JSON object")
    return f"The request body must be {kind}" if kind else f"The request body: {message}"
