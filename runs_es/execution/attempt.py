"""One attempt of one run: what its executor writes through, and how it learns that the run is no longer its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from typing import Any

import orjson

from runs_es.domain import (
    EventCategory,
    EventRecorded,
    LeaseLost,
    LimitExceeded,
    MessageRecorded,
    MessageRemoved,
    Provenance,
    Run,
    WriteConflict,
    now,
)
from runs_es.execution.blocking import blocking
from runs_es.execution.omissions import short_message
from runs_es.execution.protocol import refuse_reserved
from runs_es.execution.recording import Keyed, KnownMessages
from runs_es.log.append import Appended, FactItem
from runs_es.log.event_log import EventLog
from runs_es.log.pages import frame
from runs_es.log.run_writer import RunWriter

_OPTIONS = orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY


class Attempt:
    """The `ActiveRun` of an executor, on the event loop `agents`. `disturbed` belongs to the worker's loop, on which
    the attempt is made; both may be the same loop.
    """

    def __init__(
        self,
        log: EventLog,
        run: Run,
        claim_id: str,
        appended: Appended,
        *,
        provenance: Provenance,
        buffer_bytes: int,
        thread_is_new: bool = False,
        agents: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.thread_is_new = thread_is_new  # nobody has ever claimed a run of it
        self._log = log
        self._run = run
        self._claim_id = claim_id
        self._provenance = provenance
        self._buffer_bytes = buffer_bytes
        self._loop = asyncio.get_running_loop()
        self.agents = agents or self._loop  # where the executor runs
        self._drained = asyncio.Event()
        self._is_full = False  # somebody waits for room
        self.active_at = time.monotonic()  # when it last had something to write
        self._recording = asyncio.Lock()
        self._messages: KnownMessages | None = None
        self.disturbed = asyncio.Event()  # the fence was raised: fold again; or the executor has ended
        self.writer = RunWriter(
            log.writer,
            thread_id=run.thread_id,
            run_id=run.run_id,
            fence=appended.fence,
            frames=appended.frames,
            on_settled=self._on_settled,
        )

    @property
    def run(self) -> Run:
        return self._run

    @property
    def attempt(self) -> int:
        return self._run.attempt

    @property
    def fence(self) -> int:
        return self.writer.fence

    @property
    def claim_id(self) -> str:
        return self._claim_id

    @property
    def waits_for_room(self) -> bool:
        """Whether the executor is held up because too much is not yet durable."""
        return self._is_full

    async def publish(self, event: str, data: Any) -> None:
        """Stream one frame; waits only when too much is not yet committed. Raises as in the protocol, LimitExceeded."""
        refuse_reserved(event)
        encoded = data if isinstance(data, bytes) else orjson.dumps(data, option=_OPTIONS)
        body = frame(event, encoded)
        if len(body) > self._log.max_event_bytes:
            raise LimitExceeded(
                f"a frame of {len(body)} bytes is over the limit of {self._log.max_event_bytes}"
                " (RUNS_ES_MAX_FRAME_BYTES)",
                len(body),
                self._log.max_event_bytes,
            )
        await self._room()
        self.writer.publish(body)

    async def record_message(self, message: Mapping[str, Any]) -> None:
        """Record a message unless the thread's newest of that id is the same. Raises ValueError when it has no id."""
        async with self._recording:  # two at once must not both find that the message is new
            await self._record_message(message)

    async def _record_message(self, message: Mapping[str, Any]) -> None:
        messages = await self._known_messages()
        keyed = messages.recorded(self._run, message)
        if keyed is not None:
            await self._record_keyed(messages, keyed)

    async def retain_messages(self, message_ids: Collection[str], reason: str) -> None:
        """Record of every other message that the thread lists that it is removed."""
        async with self._recording:
            messages = await self._known_messages()
            for message_id in messages.others(message_ids):
                await self._record_keyed(messages, messages.removed(self._run, message_id, reason))

    async def _record_keyed(self, messages: KnownMessages, keyed: Keyed) -> None:
        fact, key = keyed
        await self._room()
        self.record(self._item(fact, key))
        messages.note(key)

    def _item(self, fact: MessageRecorded | MessageRemoved, key: str) -> FactItem:
        """The fact to append. A message that is too large is recorded short, or every later run would fail on it."""
        try:
            return self._log.item(fact, self._provenance, key)
        except LimitExceeded as error:
            if isinstance(fact, MessageRemoved):
                raise
            short = replace(fact, content=short_message(fact.content, error.size))
            return self._log.item(short, self._provenance, key)

    async def _known_messages(self) -> KnownMessages:
        if self._messages is None:
            self._messages = KnownMessages(await blocking(self._log.reader.message_keys, self._run.thread_id))
        return self._messages

    async def record_event(
        self, event_type: str, category: str, content: Any, metadata: Mapping[str, Any] | None = None
    ) -> None:
        """Record anything else as a fact. Raises ValueError for an unknown category or a long type."""
        fact = EventRecorded(
            thread_id=self._run.thread_id,
            run_id=self._run.run_id,
            occurred_at=now(),
            event_type=event_type,
            kind=EventCategory(category),
            content=content,
            metadata=dict(metadata or {}),
        )
        await self._room()
        # A key of its own, so that a retry after a lost acknowledgement cannot land it twice.
        key = f"event:{self._claim_id}:{fact.occurred_at}:{id(fact)}"
        self.record(self._log.item(fact, self._provenance, key))

    def record(self, *facts: FactItem, frames: Sequence[bytes] = (), last: bool = False) -> Future[Appended]:
        """Queue facts, and `frames` before them, behind everything published. The future fails with WriteConflict when
        refused. From any thread.
        """
        return self.writer.record(*facts, frames=frames, last=last)

    async def _room(self) -> None:
        """Wait while too much of this attempt is not yet durable."""
        self.active_at = time.monotonic()
        while self.writer.uncommitted > self._buffer_bytes:
            self._drained.clear()
            self._is_full = True
            # Looked at again after the word that somebody waits: the log's thread counts first, then asks for it.
            if self.writer.uncommitted > self._buffer_bytes:
                await self._drained.wait()
            self.active_at = time.monotonic()
        self._is_full = False

    async def flush(self) -> None:
        """Wait until everything so far is durable. Raises LeaseLost when the log refused it."""
        last = self.writer.last()
        if last is None:
            return
        try:
            await asyncio.shield(asyncio.wrap_future(last))
        except WriteConflict as error:
            raise LeaseLost(str(error)) from error

    def disturb(self) -> None:
        """The thread's fence may have been raised. From any thread."""
        with suppress(RuntimeError):  # the loop has ended, and the attempt with it
            self._loop.call_soon_threadsafe(self.disturbed.set)

    def _on_settled(self, refused: bool) -> None:
        if not refused and not self._is_full:
            return  # waking a loop costs a system call
        if refused:
            self.disturb()
        with suppress(RuntimeError):
            self.agents.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._is_full = False
        self._drained.set()
