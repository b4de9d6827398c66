"""The execution of one attempt: its code runs on the agents' loop, and the worker's loop watches how it goes.

The two may be one loop, as in a test or in a store that has no loop for agents.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any

from runs_es.execution.attempt import Attempt
from runs_es.execution.attempt_failure import Failure, printed
from runs_es.execution.guard import EXECUTING, AgentTask
from runs_es.execution.protocol import RunOutcome
from runs_es.process_log import class_name

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ended:
    """How an attempt's code ended: with an outcome, with a failure, or `interrupted` by another attempt's code."""

    outcome: RunOutcome | None = None
    failure: Failure | None = None
    interrupted: bool = False


class AttemptExecution:
    """Executes `body` on the attempt's agents' loop. Belongs to the worker's loop, on which it is made; what the
    agents' loop calls says so.

    `body` gives the outcome, or the exception that the agent raised. `failure_of` makes plain text of one, and logs it.
    """

    def __init__(
        self,
        attempt: Attempt,
        body: Callable[[], Coroutine[Any, Any, RunOutcome | BaseException]],
        failure_of: Callable[[BaseException], Failure],
    ) -> None:
        self.ended: Ended | None = None
        self._attempt = attempt
        self._body = body
        self._failure_of = failure_of
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

    @property
    def is_over(self) -> bool:
        """Whether the attempt's code has ended. On the agents' loop, which knows first."""
        return self._is_over

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

    def fail(self, error: Exception) -> None:
        """End the attempt as failed; one that has ended is left as it is, with an ERROR line."""
        self._attempt.agents.call_soon_threadsafe(self._fail, error)

    def interrupt(self) -> None:
        """Another attempt's code cancels this one: whatever it ends with now, is not its own doing."""
        self._is_interrupted = True

    # --- on the agents' loop ---

    def _fail(self, error: Exception) -> None:
        if self._is_over:
            logger.error("%s had ended when its code failed: %s: %s", self, class_name(error), printed(error))
            return
        self._end(Ended(failure=self._failure(error)))
        self._cancel()

    def _failure(self, error: BaseException) -> Failure:
        """The failure that an exception is, also when its class does not let itself be looked at."""
        try:
            return self._failure_of(error)
        except BaseException as another:
            logger.exception("%s: its failure cannot be described (%s)", self, class_name(another))
            return Failure(class_name(error), class_name(error))

    def _begin(self) -> None:
        body, name = self._body(), f"run {self.run_id}"
        loop = self._attempt.agents
        self._task = AgentTask(body, executing=self, is_root=True, loop=loop, name=name)
        self._task.add_done_callback(self._done)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _done(self, task: asyncio.Task[RunOutcome | BaseException]) -> None:
        error = None if task.cancelled() else task.exception()  # asked for, or asyncio would log it
        if self._is_over:
            return
        try:
            if task.cancelled():
                error = asyncio.CancelledError("the executor cancelled itself")
            self._end(self._ended(task.result() if error is None else error))
        except BaseException as another:
            logger.exception("%s: how it ended cannot be told (%s)", self, class_name(another))
            self._end(Ended(failure=Failure(class_name(another), "how the agent ended cannot be told")))

    def _ended(self, ended: RunOutcome | BaseException) -> Ended:
        if isinstance(ended, RunOutcome):
            return Ended(outcome=ended)
        if self._is_interrupted:
            return Ended(interrupted=True)
        if self._stop_asked:  # how it ends is what it was stopped for
            return Ended(failure=Failure.of(ended))
        return Ended(failure=self._failure(ended))

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
