"""What goes out: JSON, and the platform's shapes of threads, runs and events."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from runs_es.service.crons import CronSnapshot
from runs_es.service.views import RunMessageView, StoredRunEvent, ThreadSnapshot
from runs_es.service.views import run_body as run_body
from runs_projections.freshness import Counted, Listed

_OPTIONS = orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY


_SMALL_VALUES = 400
_SMALL_CHARACTERS = 32 * 1024


class Json(Response):
    """A JSON body, encoded once and not checked against any model. Bytes are JSON already."""

    media_type = "application/json"

    def __init__(self, content: Any, status_code: int = 200, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(content, status_code, dict(headers or {}))

    def render(self, content: Any) -> bytes:
        return content if isinstance(content, bytes) else encoded(content)


def encoded(content: Any) -> bytes:
    """`content` as JSON on one line."""
    return orjson.dumps(content, option=_OPTIONS)


def is_small(content: Any) -> bool:
    """Whether encoding takes next to no time: few values and characters. Looks at no more of it than that."""
    values, characters = 0, 0
    waiting = [content]
    while waiting:
        value = waiting.pop()
        values += 1
        if isinstance(value, str | bytes):
            characters += len(value)
        elif isinstance(value, dict):
            values += len(value)
            waiting += value.values() if values <= _SMALL_VALUES else ()
        elif isinstance(value, list | tuple):
            waiting += value if len(value) <= _SMALL_VALUES else ()
            values += len(value)
        if values > _SMALL_VALUES or characters > _SMALL_CHARACTERS:
            return False
    return True


# The models say in openapi.json what the functions beside them build.


class Error(BaseModel):
    detail: str = Field(examples=["Thread with ID 4c84a93e-e3bb-4bee-8a34-654ef0152289 not found"])


class Thread(BaseModel):
    thread_id: str
    created_at: str
    updated_at: str
    state_updated_at: str
    metadata: dict[str, Any]
    status: str = Field(description="idle, busy, interrupted or error")
    config: dict[str, Any]
    values: Any = Field(description="the newest state of the thread's graph; null before there is one")
    error: Any = Field(None, description="how the run that ended last failed; absent before a run has ended")
    interrupts: dict[str, Any] = Field(
        default_factory=dict, description="what a human has to answer, by task; absent before a run has ended"
    )


class Run(BaseModel):
    run_id: str
    thread_id: str
    assistant_id: str
    metadata: dict[str, Any]
    status: str = Field(description="pending, running, success, error, timeout or interrupted")
    request: dict[str, Any] = Field(serialization_alias="kwargs", description="the request as recorded")
    multitask_strategy: str
    created_at: str
    updated_at: str
    langsmith_session_name: str | None = None


class Assistant(BaseModel):
    assistant_id: str
    graph_id: str
    config: dict[str, Any]
    context: dict[str, Any]
    metadata: dict[str, Any]
    name: str
    created_at: str
    updated_at: str
    version: int
    description: str | None = None
    error: str | None = Field(None, description="why the graph cannot be loaded; absent when it can")


class Cron(BaseModel):
    cron_id: str
    assistant_id: str
    thread_id: str | None = Field(description="the thread of its runs; null where each has its own")
    on_run_completed: str | None = Field(description="delete or keep; null where the cron has a thread")
    schedule: str
    timezone: str | None
    end_time: str | None
    enabled: bool
    payload: dict[str, Any] = Field(description="the request of its runs")
    metadata: dict[str, Any] = Field(description="of its runs, which also get `cron_id`")
    user_id: str | None
    created_at: str
    updated_at: str
    next_run_date: str | None = Field(description="null where it is disabled or over")


class ThreadState(BaseModel):
    model_config = ConfigDict(extra="allow")

    values: Any
    next: list[str]
    tasks: list[dict[str, Any]]
    metadata: dict[str, Any] | None
    created_at: str | None
    checkpoint: dict[str, Any] | None
    parent_checkpoint: dict[str, Any] | None
    interrupts: list[dict[str, Any]]
    checkpoint_id: str | None
    parent_checkpoint_id: str | None


class Event(BaseModel):
    thread_id: str
    run_id: str = Field(description="empty for facts of the thread itself")
    seq: int = Field(description="thread-local, contiguous, never reused; the `id:` of streams and the list cursor")
    event_type: str
    category: str
    content: Any
    metadata: dict[str, Any]
    created_at: str


_RUN_HEADERS = {
    "Location": {"description": "where to ask again after a lost connection", "schema": {"type": "string"}},
    "Content-Location": {"description": "the run", "schema": {"type": "string"}},
}
# Refusals of any request, whatever its route.
REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": Error, "description": "Not a request that can be answered; the text says why"},
    403: {"model": Error, "description": "From a page of another origin, or under a name that is not the server's"},
    408: {"model": Error, "description": "The request did not come in time; the text names the setting"},
    413: {"model": Error, "description": "Over a limit; the text names the setting"},
    414: {"model": Error, "description": "The query is over a limit; the text names the setting"},
    422: {"model": Error, "description": "Refused; the text names the field"},
    431: {"model": Error, "description": "A header is over a limit; the text names the setting"},
    500: {"model": Error, "description": "A mistake of the server; its log has the `X-Request-Id`"},
}
ERRORS: dict[int | str, dict[str, Any]] = {
    401: {"model": Error, "description": "No user is named, where RUNS_ES_USER_HEADER asks for one"},
    404: {"model": Error, "description": "Not there, or another user's"},
    409: {"model": Error, "description": "There already, or busy"},
    415: {"model": Error, "description": "The body is not sent as JSON"},
    422: {"model": Error, "description": "Refused; the text names the field"},
    503: {"model": Error, "description": "Try again after `Retry-After` seconds"},
}
STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Server-sent events, each with an `id`; the last is `end`, or `gap` where events are gone",
        "headers": _RUN_HEADERS,
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    },
    429: {"model": Error, "description": "Too many open streams of this user"},
}
RESULT: dict[int | str, dict[str, Any]] = {
    200: {
        "description": 'The run\'s last values, or `{"__error__": {…}}`; newlines before it keep the connection alive',
        "headers": _RUN_HEADERS,
        "content": {"application/json": {"schema": {}}},
    },
    429: {"model": Error, "description": "Too many open streams of this user"},
}


def empty_state() -> dict[str, Any]:
    """The state of a thread that no graph has written to."""
    return {
        "values": {},
        "next": [],
        "tasks": [],
        "metadata": None,
        "created_at": None,
        "checkpoint": None,
        "parent_checkpoint": None,
        "interrupts": [],
        "checkpoint_id": None,
        "parent_checkpoint_id": None,
    }


def thread_body(thread: ThreadSnapshot, values: Any) -> dict[str, Any]:
    """`error` and `interrupts` come with the first run that has ended, `config` with the first run at all."""
    body: dict[str, Any] = {
        "thread_id": thread.thread_id,
        "created_at": thread.created_at,
        "updated_at": thread.updated_at,
        "state_updated_at": thread.state_updated_at or thread.created_at,
        "metadata": thread.metadata,
        "status": thread.status,
        "config": {"configurable": {}} if "graph_id" in thread.metadata else {},
        "values": values,
    }
    if thread.state_updated_at is not None:
        body |= {"error": thread.error, "interrupts": thread.interrupts}
    return body


def cron_body(cron: CronSnapshot) -> dict[str, Any]:
    return {
        "cron_id": cron.cron_id,
        "assistant_id": cron.assistant_id,
        "thread_id": cron.run_thread_id,
        "on_run_completed": cron.on_run_completed,
        "schedule": cron.schedule,
        "timezone": cron.timezone,
        "end_time": cron.end_time,
        "enabled": cron.enabled,
        "payload": {"assistant_id": cron.assistant_id, **cron.payload},
        "metadata": cron.metadata,
        "user_id": cron.user_id,
        "created_at": cron.created_at,
        "updated_at": cron.updated_at,
        "next_run_date": cron.next_run_date,
    }


def event_body(event: RunMessageView) -> dict[str, Any]:
    return {
        "thread_id": event.thread_id,
        "run_id": event.run_id,
        "seq": event.seq,
        "event_type": event.event_type,
        "category": event.category if isinstance(event, StoredRunEvent) else "message",
        "content": event.content,
        "metadata": event.metadata,
        "created_at": event.created_at,
    }


def selected(rows: Iterable[dict[str, Any]], select: Sequence[str] | None) -> list[dict[str, Any]]:
    """The rows with only the fields asked for; all of them when none are."""
    if not select:
        return list(rows)
    return [{field: row[field] for field in select if field in row} for row in rows]


def fields_of(model: type[BaseModel]) -> tuple[str, ...]:
    """The names of a model's fields as they are sent."""
    return tuple(field.serialization_alias or name for name, field in model.model_fields.items())


def freshness(found: Listed[Any] | Counted) -> dict[str, str]:
    """How far the read model was that this comes from, and whether the caller may know of more."""
    headers = {"X-Runs-Position": str(found.position)}
    return headers if found.current else {**headers, "X-Runs-Stale": "true"}


def pagination(page: Sequence[object], limit: int, offset: int) -> dict[str, str]:
    """The platform's two headers for a page that was read with one row too many, if there was one.

    Its total is no count of everything: it says whether there is more.
    """
    if len(page) > limit:
        return {"X-Pagination-Total": str(offset + limit + 1), "X-Pagination-Next": str(offset + limit)}
    return {"X-Pagination-Total": str(offset + len(page))}
