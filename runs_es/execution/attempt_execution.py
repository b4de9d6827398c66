"""The execution of one attempt: its code runs on the agents' loop, and the worker's loop watches how it goes.

The two may be one loop, as in a test or in a store that has no loop for agents.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any

from runs_es.execution.attempt import Attempt
from runs_es.execution.failures import Failure
from runs_es.execution.guard import EXECUTING, AgentTask, logger
from runs_es.execution.protocol import RunOutcome


@dataclass(frozen=True, slots=True)
class Ended:
    """How an attempt's code ended: with an outcome, with a failure, or `interrupted` by another attempt's code."""

    outcome: RunOutcome | None = None
    failure: Failure | None = None
    interrupted: bool = False


class AttemptExecution:
    """Executes `body` on the attempt's agents' loop. Belongs to the worker's loop, on which it is made; what the
    agents' loop calls says so.
    """

    def __init__(self, attempt: Attempt, body: Callable[[], Coroutine[Any, Any, Ended]]) -> None:
        self.ended: Ended | None = None
        self._attempt = attempt
        self._body = body
        self._loop = asyncio.get_running_loop()
        self._task: AgentTask | None = None  # set on the agents' loop
        self._is_over = False  # set on the agents' loop
        self._is_interrupted = False
        self._stop_asked = False

    def __str__(self) -> str:
        run = self._attempt.run
        return f"run {run.run_id} (thread {run.thread_id}, attempt {run.attempt})"

    @property
    def run_id(self) -> str:
        """The id of its run."""
        return self._attempt.run.run_id

    def has_ended(self) -> bool:
        """Whether `ended` is set."""
        return self.ended is not None

    def start(self) -> None:
        """Return at once. When the code has ended, `ended` is set and the attempt is disturbed."""
        context = copy_context()
        context.run(EXECUTING.set, self)
        self._attempt.agents.call_soon_threadsafe(self._begin, context=context)

    async def stop(self, grace: float) -> None:
        """Cancel the code and give it `grace` seconds, once; what it does after that, the log refuses."""
        if self.has_ended() or self._stop_asked:
            return
        self._stop_asked = True
        with suppress(RuntimeError):  # the loop has ended, and the code with it
            self._attempt.agents.call_soon_threadsafe(self._cancel)
        with suppress(TimeoutError):
            async with asyncio.timeout(grace):
                while not self.has_ended():
                    self._attempt.disturbed.clear()
                    await self._attempt.disturbed.wait()
        if not self.has_ended():
            logger.warning("%s ignores cancellation; it can write nothing more", self)

    # --- from any thread ---

    def fail(self, failure: Failure) -> None:
        """End the attempt as failed; one that has ended is left as it is, with an ERROR line."""
        self._attempt.agents.call_soon_threadsafe(self._fail, failure)

    def interrupt(self) -> None:
        """Another attempt's code cancels this one: whatever it ends with now, is not its own doing."""
        self._is_interrupted = True

    # --- on the agents' loop ---

    def _fail(self, failure: Failure) -> None:
        if self._is_over:
            logger.error("%s had ended when its code failed: %s: %s", self, failure.kind, failure.text)
            return
        self._end(Ended(failure=failure))
        self._cancel()

    def _begin(self) -> None:
        body, name = self._body(), f"run {self.run_id}"
        loop = self._attempt.agents
        self._task = AgentTask(body, executing=self, is_root=True, loop=loop, name=name)
        self._task.add_done_callback(self._done)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _done(self, task: asyncio.Task[Ended]) -> None:
        if task.cancelled():
            error: BaseException | None = asyncio.CancelledError("the executor cancelled itself")
        else:
            error = task.exception()
        ended = Ended(failure=Failure.of(error)) if error is not None else task.result()
        if self._is_interrupted and ended.failure is not None:
            ended = Ended(interrupted=True)
        self._end(ended)

    def _end(self, ended: Ended) -> None:
        """The first end counts."""
        if self._is_over:
            return
        self._is_over = True
        with suppress(RuntimeError):  # the worker's loop has ended
            self._loop.call_soon_threadsafe(self._set_ended, ended)

    # --- on the worker's loop ---

    def _set_ended(self, ended: Ended) -> None:
        self.ended = ended
        self._attempt.disturbed.set()
