"""What comes in: bodies, and the ids and options of paths and queries, checked before anything else happens.

Unknown fields are ignored, and null means the default, as on the platform. What is refused is refused by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import Depends, Header, Path, Query
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from runs_api.errors import PLAIN
from runs_api.json_bodies import JsonRoute as JsonRoute
from runs_api.responses import Assistant, Cron, Run, Thread, fields_of
from runs_es.domain import MAX_PRIORITY
from runs_es.service.application import MAX_AFTER_SECONDS
from runs_es.streams.cursor import MAX_SEQ
from runs_es.webhooks.addresses import MAX_URL_LENGTH

STREAM_MODES = ("values", "updates", "messages", "messages-tuple", "custom")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE | re.ASCII)


# --- ids and options ---


def plain(message: str) -> PydanticCustomError:
    """A validation error that is shown as it is."""
    return PydanticCustomError(PLAIN, "{error}", {"error": message})


def is_uuid(text: str) -> bool:
    """Whether `text` is a UUID as it is usually written."""
    return _UUID.fullmatch(text) is not None


def _uuid(message: str) -> Callable[[str], str]:
    def checked(value: str) -> str:
        if not is_uuid(value):
            raise plain(message)
        return value.lower()

    return checked


def _listed(value: Any) -> Any:
    """One value, or several: repeated, in a JSON list, or with commas between."""
    items = value if isinstance(value, list) else [value]
    return [part for item in items for part in (_parts(item) if isinstance(item, str) else [item])]


def _parts(text: str) -> list[Any]:
    if text.lstrip().startswith("["):
        try:
            found = json.loads(text)
        except ValueError:
            raise ValueError(f"{text!r} is not a JSON list") from None
        return list(found)
    return [part.strip() for part in text.split(",") if part.strip()]


def _fields(model: type[BaseModel], *further: str) -> AfterValidator:
    """Checks the names in `select`. `further` are fields of the platform that ours never has."""
    known = (*fields_of(model), *further)

    def checked(names: list[str]) -> list[str]:
        for name in names:
            if name not in known:
                raise ValueError(f"{name!r} is no field; there are {', '.join(known)}")
        return names

    return AfterValidator(checked)


_UUID_SCHEMA = WithJsonSchema({"type": "string", "format": "uuid"})
ThreadIdText = Annotated[str, AfterValidator(_uuid("Invalid thread ID: must be a UUID")), _UUID_SCHEMA]
CheckpointIdText = Annotated[str, AfterValidator(_uuid("Invalid checkpoint ID")), _UUID_SCHEMA]
ThreadIdPath = Annotated[ThreadIdText, Path()]
RunIdText = Annotated[str, AfterValidator(_uuid("Invalid run ID: must be a UUID")), _UUID_SCHEMA]
RunIdPath = Annotated[RunIdText, Path()]
CronIdPath = Annotated[str, Path(), AfterValidator(_uuid("Invalid cron ID: must be a UUID")), _UUID_SCHEMA]
AssistantIdPath = Annotated[str, Path(), AfterValidator(_uuid("Invalid assistant ID: must be a UUID")), _UUID_SCHEMA]
CheckpointIdPath = Annotated[CheckpointIdText, Path()]

# Not the enums themselves: they spell each member twice, and an error message would too.
RunStatusText = Literal["pending", "running", "success", "error", "timeout", "interrupted"]
CancelActionText = Literal["interrupt", "rollback"]
CancelActionQuery = Annotated[
    CancelActionText, Query(description="whether what the runs did to the thread's state stays, or is taken back")
]
CancelReason = Annotated[str | None, Query(max_length=1000, description="recorded in the log")]
NOTHING_TO_CANCEL = (
    "No matching runs to cancel. Please verify the thread ID and run IDs are correct,"
    " and the runs haven't been deleted or completed."
)
Names = Annotated[list[str], BeforeValidator(_listed)]
SelectRunFields = Annotated[
    Annotated[Names, Field(max_length=100), _fields(Run, "cancel_reason")] | None,
    Query(description="only these fields"),
]
Limit = Annotated[int, Field(ge=1, le=1000)]
Offset = Annotated[int, Field(ge=0, le=MAX_SEQ)]
Seq = Annotated[int, Query(ge=0, le=MAX_SEQ)]
ModesQuery = Annotated[
    Names | None,
    Query(
        alias="stream_mode",
        description="Show only events of these modes: one value, repeated, a JSON list, or commas. "
        "`metadata`, `error` and `end` always come.",
    ),
]


async def last_event_id(
    header: Annotated[
        str | None, Header(alias="Last-Event-ID", description="Go on after this id; absent, -1 or 0: from the start")
    ] = None,
    query: Annotated[
        str | None, Query(alias="last_event_id", description="The same for clients that cannot set headers")
    ] = None,
) -> str | None:
    """Where a join goes on. The header wins."""
    return header if header is not None else query


LastEventId = Annotated[str | None, Depends(last_event_id)]


# --- bodies ---


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _null_is_default(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            return {name: value for name, value in data.items() if value is not None}
        return data


Body = _Body  # also of those that stand in other modules


def _offered_mode(mode: Any) -> str:
    if mode not in STREAM_MODES:
        raise ValueError(f"{mode!r} is not offered; there are {', '.join(STREAM_MODES)}")
    return str(mode)


def _not_offered(value: Any) -> Any:
    if value:
        raise ValueError("is not offered yet; leave it out")
    return value


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _goto(value: Any) -> Any:
    for place in value if isinstance(value, list) else [value]:
        if not isinstance(place, str) and not (isinstance(place, Mapping) and isinstance(place.get("node"), str)):
            raise ValueError('must be a node, or {"node": …, "input": …}, or a list of those')
    return value


def _breakpoints(value: Any) -> Any:
    if value != "*" and not (isinstance(value, list) and all(isinstance(node, str) for node in value)):
        raise ValueError('must be "*" or a list of nodes')
    return value


def _update(value: Any) -> Any:
    pairs = isinstance(value, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in value)
    if not pairs and not isinstance(value, dict):
        raise ValueError("must be an object or a list of [key, value] pairs")
    return value


def _named_checkpoint(value: Any) -> Any:
    """A checkpoint's id, also out of an object or a config that holds one."""
    if isinstance(value, Mapping):
        value = value.get("checkpoint_id") or (value.get("configurable") or {}).get("checkpoint_id")
    if not isinstance(value, str):
        raise plain("Invalid checkpoint ID")
    return value


StreamMode = Annotated[
    str, AfterValidator(_offered_mode), WithJsonSchema({"type": "string", "enum": list(STREAM_MODES)})
]
NotOffered = Annotated[Any, AfterValidator(_not_offered)]
Breakpoints = Annotated[
    Any,
    AfterValidator(_breakpoints),
    WithJsonSchema({"anyOf": [{"const": "*"}, {"type": "array", "items": {"type": "string"}}, {"type": "null"}]}),
]


Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class CommandBody(_Body):
    """How a paused run goes on."""

    update: Annotated[Any, AfterValidator(_update)] = None
    resume: Any = None
    goto: Annotated[Any, AfterValidator(_goto)] = None

    def as_recorded(self) -> dict[str, Any]:
        # No destinations are none: clients that fill in all fields send an empty list.
        given = {"update": self.update, "resume": self.resume, "goto": self.goto or None}
        return {name: value for name, value in given.items() if value is not None}


class CheckpointBody(_Body):
    """Names a checkpoint of the thread, or of a subgraph in it."""

    model_config = ConfigDict(extra="ignore")

    checkpoint_id: CheckpointIdText | None = None
    checkpoint_ns: str | None = None
    checkpoint_map: dict[str, Any] | None = None

    def as_recorded(self) -> dict[str, Any]:
        return self.model_dump(exclude_none=True)


class ConfigBody(_Body):
    model_config = ConfigDict(extra="allow")

    tags: Annotated[list[str], Field(max_length=1000, fail_fast=True)] | None = None
    recursion_limit: Annotated[int, Field(ge=1)] | None = None
    timeout_seconds: Seconds | None = Field(None, description="time the run may take, from its first start")
    idle_timeout_seconds: Seconds | None = Field(None, description="time it may go without a frame or message")
    priority: Annotated[int, Field(strict=True, ge=-MAX_PRIORITY, le=MAX_PRIORITY)] | None = Field(
        None, description="runs of other threads with a lower one wait longer; 0 if not said"
    )
    configurable: dict[str, Any] = Field(default_factory=dict)
    metadata: dict[str, Any] = Field(default_factory=dict)


class RunBody(_Body):
    """A run to start. `langsmith_tracer` and unknown fields are accepted and ignored."""

    assistant_id: str = Field(min_length=1, max_length=255, description="id of an assistant, or name of a graph")
    input: Any = None
    command: CommandBody | None = None
    strict_resume: bool = Field(
        False, description="fail, and leave the thread as it was, when `command.resume` answers what does not wait"
    )
    checkpoint: CheckpointBody | None = None
    checkpoint_id: CheckpointIdText | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    config: ConfigBody = Field(default_factory=ConfigBody)
    context: dict[str, Any] = Field(default_factory=dict)
    webhook: str | None = Field(
        None, max_length=MAX_URL_LENGTH, description="http(s) URL that gets one POST with the run once it has ended"
    )
    interrupt_before: Breakpoints = None
    interrupt_after: Breakpoints = None
    stream_mode: Annotated[
        list[StreamMode],
        Field(max_length=100, fail_fast=True),
        BeforeValidator(_as_list, json_schema_input_type=StreamMode | list[StreamMode]),
    ] = Field(default_factory=lambda: ["values"])
    stream_subgraphs: bool = False
    stream_resumable: bool = Field(False, description="every stream can be resumed, with or without")
    feedback_keys: NotOffered = None
    multitask_strategy: Literal["enqueue", "reject", "interrupt", "rollback"] = Field(
        "enqueue",
        description="what happens when the thread is busy: wait in line; refuse (409); cancel all runs of the thread "
        "that have not ended, and begin then; the same, and take back what they did",
    )
    if_not_exists: Literal["create", "reject"] = "reject"
    after_seconds: float = Field(0, ge=0, le=MAX_AFTER_SECONDS, allow_inf_nan=False)
    durability: Literal["sync", "async", "exit"] | None = None
    checkpoint_during: bool | None = None
    on_disconnect: Literal["cancel", "continue"] = Field(
        "continue", description="what becomes of the run when the connection that created it goes away"
    )


class CancelRunsBody(_Body):
    """Runs of a thread, or all that have a status: one or the other."""

    thread_id: ThreadIdText | None = None
    run_ids: Annotated[list[RunIdText], Field(min_length=1, max_length=1000)] | None = None
    status: Literal["pending", "running", "all"] | None = None

    @model_validator(mode="after")
    def _one_or_the_other(self) -> CancelRunsBody:
        named = (self.thread_id is not None, self.run_ids is not None)
        if named != ((False, False) if self.status is not None else (True, True)):
            raise plain("Name either thread_id and run_ids, or status")
        return self


class StatelessRunBody(RunBody):
    """A run on a thread of its own."""

    on_completion: Literal["delete", "keep"] = Field("delete", description="whether its thread stays when it has ended")


class ThreadBody(_Body):
    thread_id: ThreadIdText | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    if_exists: Literal["raise", "do_nothing"] = "raise"
    ttl: NotOffered = None
    supersteps: NotOffered = None


class ThreadPatchBody(_Body):
    metadata: dict[str, Any] = Field(default_factory=dict)
    ttl: NotOffered = None


class ThreadFilterBody(_Body):
    ids: list[ThreadIdText] | None = Field(None, max_length=1000)
    metadata: dict[str, Any] = Field(default_factory=dict)
    values: NotOffered = None
    status: Literal["idle", "busy", "interrupted", "error"] | None = None


class ThreadSearchBody(ThreadFilterBody):
    limit: Limit = 10
    offset: Offset = 0
    sort_by: Literal["thread_id", "status", "created_at", "updated_at", "state_updated_at"] = "created_at"
    sort_order: Literal["asc", "desc"] = "desc"
    select: Annotated[list[str], Field(max_length=100), _fields(Thread, "context")] | None = None
    extract: NotOffered = None


class HistoryBody(_Body):
    limit: Limit = 1
    before: Annotated[CheckpointIdText, BeforeValidator(_named_checkpoint)] | None = None
    metadata: dict[str, Any] | None = None
    checkpoint: CheckpointBody | None = None


class StateAtBody(_Body):
    checkpoint: CheckpointBody
    subgraphs: bool = False


class AssistantFilterBody(_Body):
    metadata: dict[str, Any] = Field(default_factory=dict)
    graph_id: str | None = None
    name: str | None = Field(None, description="part of a name, in any case")


class AssistantSearchBody(AssistantFilterBody):
    limit: Limit = 10
    offset: Offset = 0
    sort_by: Literal["assistant_id", "created_at", "updated_at", "name", "graph_id"] | None = None
    sort_order: Literal["asc", "desc"] = "asc"
    select: Annotated[list[str], Field(max_length=100), _fields(Assistant)] | None = None


# --- crons ---


def _in_utc(moment: datetime) -> datetime:
    try:
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("lies outside of the calendar") from None


def _without_fields_of_single_runs(schema: dict[str, Any]) -> None:
    for name in ("command", "checkpoint", "checkpoint_id", "after_seconds", "if_not_exists", "on_disconnect"):
        schema["properties"].pop(name, None)


class CronPatchBody(RunBody):
    """What of a cron is to change; `metadata` is merged, everything else takes the place of what it was. Fields of
    single runs (`command`, `checkpoint`, `after_seconds`, …) are ignored.
    """

    model_config = ConfigDict(extra="ignore", json_schema_extra=_without_fields_of_single_runs)

    assistant_id: str = Field("", description="cannot be changed; ignored")
    schedule: str = Field(
        "",
        description="minute, hour, day of month, month, day of week; with six fields the first is seconds;"
        " or @hourly, @daily, @weekly, @monthly, @yearly",
    )
    timezone: str | None = Field(None, description="IANA name, as in `Europe/Berlin`; UTC where there is none")
    end_time: Annotated[datetime, AfterValidator(_in_utc)] | None = Field(
        None, description="no run after this; without an offset it is UTC; null takes it away"
    )
    enabled: bool = True
    on_run_completed: Literal["delete", "keep"] | None = Field(
        None, description="whether the thread of a run stays when it has ended; for crons without a thread (delete)"
    )

    @model_validator(mode="before")
    @classmethod
    def _null_is_default(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            return {name: value for name, value in data.items() if value is not None or name == "end_time"}
        return data

    def payload(self) -> dict[str, Any]:
        """What was said of the runs' request, but for their metadata."""
        return self.model_dump(mode="json", include=set(_OF_CRON_RUNS), exclude_unset=True)


_OF_CRON_RUNS = (
    "input",
    "config",
    "context",
    "webhook",
    "interrupt_before",
    "interrupt_after",
    "stream_mode",
    "stream_subgraphs",
    "stream_resumable",
    "durability",
    "checkpoint_during",
    "multitask_strategy",
)


class CronBody(CronPatchBody):
    """A run to start again and again; what is only for single runs (`command`, `checkpoint`, …) is ignored."""

    assistant_id: str = Field(min_length=1, max_length=255, description="id of an assistant, or name of a graph")
    schedule: str = Field(
        min_length=1,
        description="minute, hour, day of month, month, day of week; with six fields the first is seconds;"
        " or @hourly, @daily, @weekly, @monthly, @yearly",
    )


class CronFilterBody(_Body):
    assistant_id: str | None = Field(None, description="id of an assistant, or name of a graph")
    thread_id: ThreadIdText | None = None
    enabled: bool | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)


class CronSearchBody(CronFilterBody):
    limit: Limit = 10
    offset: Offset = 0
    sort_by: Literal[
        "cron_id", "assistant_id", "thread_id", "created_at", "updated_at", "next_run_date", "end_time"
    ] = "created_at"
    sort_order: Literal["asc", "desc"] = "desc"
    select: Annotated[list[str], Field(max_length=100), _fields(Cron, "now")] | None = None
