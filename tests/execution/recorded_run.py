"""An `ActiveRun` that keeps what an executor writes, for tests of executors."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any
from uuid import uuid4

import orjson

from runs_es.domain import Run


class RecordedRun:
    def __init__(
        self,
        kwargs: Mapping[str, Any],
        *,
        assistant_id: str = "agent",
        thread_id: str | None = None,
        run_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        user_id: str | None = None,
        attempt: int = 1,
        fence: int = 0,
        before_publish: Callable[[str], None] | None = None,
    ) -> None:
        self.run = Run.create(
            run_id=run_id or str(uuid4()),
            thread_id=thread_id or str(uuid4()),
            assistant_id=assistant_id,
            metadata=metadata,
            kwargs=kwargs,
            user_id=user_id,
        )
        self.attempt = attempt
        self.fence = fence
        self.frames: list[tuple[str, Any]] = []
        self.messages: list[dict[str, Any]] = []
        self.retained: list[str] | None = None
        self.log: list[str] = []
        self.before_publish = before_publish

    @property
    def events(self) -> list[str]:
        return [event for event, _ in self.frames]

    def data_of(self, event: str) -> list[Any]:
        return [data for name, data in self.frames if name == event]

    async def publish(self, event: str, data: Any) -> None:
        if self.before_publish is not None:
            self.before_publish(event)
        encoded = data if isinstance(data, bytes) else orjson.dumps(data)
        assert b"\n" not in encoded
        self.frames.append((event, orjson.loads(encoded)))
        self.log.append(event)

    async def record_message(self, message: Mapping[str, Any]) -> None:
        self.messages.append(orjson.loads(orjson.dumps(message)))
        self.log.append("message")

    async def retain_messages(self, message_ids: Collection[str], reason: str) -> None:
        assert reason
        self.retained = list(message_ids)

    async def record_event(
        self, event_type: str, category: str, content: Any, metadata: Mapping[str, Any] | None = None
    ) -> None:
        self.log.append(event_type)

    async def flush(self) -> None:
        self.log.append("flush")
