"""What external workers send. Unknown fields are ignored, and null means the default, as everywhere."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from runs_api.requests import Body, plain
from runs_api.responses import encoded
from runs_es.domain import EventCategory, RunStatus
from runs_es.domain.values import checked_id
from runs_es.execution.external import Content, Ending, Stated
from runs_es.log.event_log import MAX_KEY

MAX_ERROR_TEXT = 16_384  # characters
MAX_CLAIM_ID = 64


def _written(value: str) -> str:
    return checked_id("worker_id", value)


def _interrupts(value: dict[str, Any]) -> dict[str, Any]:
    if not all(isinstance(asked, list) and all(isinstance(each, dict) for each in asked) for asked in value.values()):
        raise ValueError('must be {task: [{"id": …, "value": …}]}')
    return value


WorkerId = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_written)]
ClaimId = Annotated[str, Field(min_length=16, max_length=MAX_CLAIM_ID, pattern=r"^[0-9A-Za-z_-]+$")]
Count = Annotated[int, Field(ge=0, le=2**63 - 1)]


class ClaimBody(Body):
    """Who asks for work, and for what."""

    worker_id: WorkerId = Field(description="who works on it, as the log will tell: a name, host and process")
    assistants: list[str] = Field(default_factory=list, description="names or ids; none means all external ones")
    lease_seconds: float | None = Field(
        None, ge=1, allow_inf_nan=False, description="silence after which the run is given to another worker"
    )
    wait_seconds: float = Field(0, ge=0, allow_inf_nan=False, description="how long to wait for a run")
    claim_id: ClaimId | None = Field(
        None, description="random, of the worker's making: the same request again then gives the same claim"
    )


class StatedBody(Body):
    """What a worker knows when it asks for something."""

    claim_id: ClaimId
    fence: Count

    def stated(self, run_id: str, frames: int = 0) -> Stated:
        return Stated(run_id, self.claim_id, self.fence, frames)


class EventBody(Body):
    """A frame: `data` is written as JSON without spaces, `json` as it is."""

    event: str = Field(min_length=1, max_length=255)
    data: Any = None
    text: str | None = Field(None, alias="json", description="instead of `data`: JSON on one line, to be sent as it is")

    @model_validator(mode="after")
    def _text_is_json(self) -> EventBody:
        if self.text is not None:
            try:
                orjson.loads(self.text)
            except ValueError:
                raise plain("events.json: must be JSON") from None
            if "\n" in self.text or "\r" in self.text:
                raise plain("events.json: must be on one line")
        return self

    def frame(self) -> tuple[str, bytes]:
        return self.event, encoded(self.data) if self.text is None else self.text.encode()


class FactBody(Body):
    """Anything else worth keeping, once a run and key."""

    type: str = Field(min_length=1, max_length=32)
    category: EventCategory = EventCategory.TRACE
    content: Any = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    idempotency_key: str = Field(min_length=1, max_length=MAX_KEY // 2, pattern=r"^[^\x00]+$")


class MessageBody(BaseModel):
    """A whole message, as lists show it; with any further fields."""

    model_config = ConfigDict(extra="allow")

    id: str = Field(min_length=1, max_length=255)
    type: str = Field("message", min_length=1, max_length=32, description="human, ai, tool, …")


class ContentBody(StatedBody):
    """What a worker writes, in this order: messages, facts, events."""

    frames: Count = Field(description="how many frames the thread has, as told by the answer before")
    messages: Annotated[list[MessageBody], Field(fail_fast=True)] = Field(default_factory=list)
    facts: Annotated[list[FactBody], Field(fail_fast=True)] = Field(default_factory=list)
    events: Annotated[list[EventBody], Field(fail_fast=True)] = Field(default_factory=list)

    @model_validator(mode="after")
    def _each_once(self) -> ContentBody:
        for name, keys in (
            ("messages: each id", [each.id for each in self.messages]),
            ("facts: each idempotency_key", [each.idempotency_key for each in self.facts]),
        ):
            if len(set(keys)) < len(keys):
                raise plain(f"{name} may stand in a request once, or sending it again would not be the same")
        return self

    def content(self) -> Content:
        return Content(
            [each.model_dump() for each in self.messages],
            [(each.type, each.category, each.content, each.metadata, each.idempotency_key) for each in self.facts],
            [each.frame() for each in self.events],
        )


class FailureBody(Body):
    type: str = Field("Error", min_length=1, max_length=255)
    message: str = Field("", max_length=MAX_ERROR_TEXT)
    traceback: str = Field("", description="for the operator alone; its beginning and its end are kept, in 16 KiB")


class FinishBody(ContentBody):
    """What is left to write, and how the run came out."""

    outcome: Literal["success", "error", "timeout", "interrupted"] = Field(
        description="`interrupted` is a pause for a human, who is asked `interrupts`. A run that is to be cancelled"
        " becomes cancelled, whatever is said here"
    )
    values: Any = Field(None, description="the run's result: its last `values` event")
    interrupts: Annotated[dict[str, Any], AfterValidator(_interrupts)] = Field(
        default_factory=dict, description='what a human has to answer, by task: `{"task": [{"id": …, "value": …}]}`'
    )
    error: FailureBody | None = None

    def content(self) -> Content:
        content = super().content()
        last = [] if self.values is None else [("values", encoded(self.values))]
        return Content(content.messages, content.facts, [*content.frames, *last])

    def ending(self) -> Ending:
        failure = self.error or FailureBody(type="TimeoutError" if self.outcome == "timeout" else "Error")
        match self.outcome:
            case "success":
                return Ending(RunStatus.SUCCESS)
            case "interrupted":
                return Ending(RunStatus.SUCCESS, interrupts=self.interrupts or {"external": []})
            case "timeout":
                text = failure.message or "run timed out"
                return Ending(RunStatus.TIMEOUT, error=text, error_type=failure.type, traceback=failure.traceback)
            case _:
                text = failure.message
                return Ending(RunStatus.ERROR, error=text, error_type=failure.type, traceback=failure.traceback)
