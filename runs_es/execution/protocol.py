"""What an executor is given and what it answers. Everything that runs an agent meets the log only here.

An executor never learns of seq, fence or claim: `ActiveRun` writes on its behalf and refuses once the run belongs to
somebody else.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from runs_es.domain import Run

# What the store says in a stream by itself: a client that reads one of them from an agent would take it for that.
RESERVED = frozenset({"metadata", "error", "end", "gap"})


def refuse_reserved(event: str) -> None:
    """Raises ValueError for an event, or a subgraph's (`end|child:1`), that no agent may send."""
    if event.partition("|")[0] in RESERVED:
        raise ValueError(f"event {event!r} is the store's own; choose another name")


class RetryableError(Exception):
    """Raise it, or a subclass, for what may pass: the run is tried again after a pause, while attempts are left."""


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """How an executor ended when it raised nothing: the run is `success`.

    `interrupts` is what a human has to answer, by task id: `{task_id: [{"id": …, "value": …}]}`. With any, the run is
    a pause: run `success`, thread `interrupted`. `checkpoint_id` names the state the run left behind, where the
    executor keeps such.
    """

    interrupts: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    checkpoint_id: str | None = None


class ActiveRun(Protocol):
    """One attempt of one run, as its executor sees it. Not to be shared between attempts."""

    @property
    def run(self) -> Run:
        """The run as it was when claimed; `run.kwargs` is the request as recorded."""

    @property
    def attempt(self) -> int:
        """1 for the first attempt; more after a worker was lost, or an error that may pass."""

    @property
    def fence(self) -> int:
        """The value of the thread's fence that this attempt may write under."""

    async def publish(self, event: str, data: Any) -> None:
        """Stream one frame. `data` is anything orjson can encode, or bytes that are JSON on one line already.

        Returns once the frame is queued; waits only when `publish_buffer_bytes` are not yet committed.
        Raises `LeaseLost` once the run belongs to somebody else or was cancelled, ValueError for an event of the
        store's own (`metadata`, `error`, `end`, `gap`), LimitExceeded for one over RUNS_ES_MAX_FRAME_BYTES.
        """

    async def record_message(self, message: Mapping[str, Any]) -> None:
        """Record one message (`id`, `type`, `content`, …) as a fact, once an id and content in the thread.

        One over RUNS_ES_MAX_FRAME_BYTES is recorded without its content, and says so.
        """

    async def retain_messages(self, message_ids: Collection[str], reason: str) -> None:
        """Take every message but these off the thread's list, as where a run went on from an earlier state.

        Each is a fact; what was recorded of the messages stays in the log.
        """

    async def record_event(
        self, event_type: str, category: str, content: Any, metadata: Mapping[str, Any] | None = None
    ) -> None:
        """Record anything else worth keeping as a fact: event_type <= 32 characters, category one of the contract's."""

    async def flush(self) -> None:
        """Wait until everything published so far is committed."""


class RunExecutor(Protocol):
    """Runs one attempt to its end.

    Returning means success, an exception means `error`: its class name and text are recorded. A `TimeoutError` is an
    error like any other; a run is `timeout` only when its own deadline passed. On `asyncio.CancelledError` clean up and
    let it pass.

    The run is tried again after a pause when the exception is a `RetryableError`, or when the executor has a method
    `is_retryable(error) -> bool` that says so: another attempt of the same run, in the same stream. Frames and messages
    of the failed attempt stay.

    `execute` and `is_retryable` are called on the agents' event loop. SystemExit and KeyboardInterrupt end the run
    alone, in `execute` and in any task that it starts.
    """

    async def execute(self, run: ActiveRun) -> RunOutcome | None:
        """Execute `run`, publishing frames and recording messages on the way."""
