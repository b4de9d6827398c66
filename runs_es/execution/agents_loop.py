"""The event loop that agents run on, in a thread of its own.

Whatever an agent does to it, the worker's own loop claims, renews leases and writes ends: a block here delays the
frames of other runs, and nothing else. When an exception leaves the loop all the same, the loop is run on: nothing that
waits in it is lost.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from contextvars import copy_context

from runs_es.execution.agent_threads import AgentThreads
from runs_es.execution.attempt_failure import printed
from runs_es.execution.guard import SHARED, executing_in, guarded_loop
from runs_es.execution.protocol import RunExecutor
from runs_es.execution.watchdog import Watchdog

try:
    import uvloop
except ModuleNotFoundError:  # there is none for Windows
    uvloop = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

OpenExecutor = Callable[[], AbstractAsyncContextManager[RunExecutor]]


def loop_class() -> type[asyncio.AbstractEventLoop]:
    """uvloop's, where there is one: a run is some forty turns of the loop, and each takes a third less."""
    return asyncio.SelectorEventLoop if uvloop is None else uvloop.Loop


class AgentsLoop:
    """The loop, its thread and its watchdog. `open_executor` is entered on the loop and left when it stops."""

    def __init__(
        self,
        open_executor: OpenExecutor,
        threads: AgentThreads,
        executing: Callable[[], Sequence[str]],
        *,
        grace_seconds: float,
        blocked_seconds: float,
        base: type[asyncio.AbstractEventLoop] | None = None,
    ) -> None:
        self._open_executor = open_executor
        self._grace = grace_seconds
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._executor: RunExecutor | None = None
        self._stopping = asyncio.Event()
        self.loop: asyncio.AbstractEventLoop = guarded_loop(base or loop_class())
        self.loop.set_default_executor(threads)
        self._thread = threading.Thread(target=self._main, name="runs-es agents", daemon=True)
        self._executing, self._blocked_seconds = executing, blocked_seconds

    @property
    def executor(self) -> RunExecutor:
        """What executes runs on the loop."""
        assert self._executor is not None, "the loop has not been started"
        return self._executor

    def start(self, timeout: float) -> None:
        """Return once the executor is open. Raises what kept it from opening, and TimeoutError."""
        self._thread.start()
        self._ready.wait(timeout)
        if self._failure is not None:
            raise self._failure
        if not self._ready.is_set():
            raise TimeoutError(f"the executor did not open within {timeout} seconds")

    def stop(self) -> None:
        """Cancel what agents have left behind, close the executor and end the loop; not one that is blocked."""
        if self._thread.is_alive():
            with suppress(RuntimeError):  # it has come to its end just now
                self.loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join(2 * self._grace + 5)
            if self._thread.is_alive():
                logger.warning("an agent blocks the agents' event loop still; it ends with the process")
        elif not self.loop.is_closed():  # it never was started
            self.loop.is_closing = True  # type: ignore[attr-defined]
            self.loop.close()

    def _main(self) -> None:
        loop = self.loop
        asyncio.set_event_loop(loop)
        watchdog = Watchdog(loop, threading.get_ident(), self._executing, self._blocked_seconds)
        watchdog.start()
        context = copy_context()
        context.run(SHARED.set, True)
        living = context.run(loop.create_task, self._live(), name="agents")
        living.add_done_callback(self._end)
        while not loop.is_closing:  # type: ignore[attr-defined]
            try:
                loop.run_forever()
            except BaseException as error:  # noqa: BLE001  (an agent's code, past every guard)
                logger.error(
                    "an agent's code broke out of its event loop, which goes on: %s; in execution: %s",
                    printed(error, repr),
                    ", ".join(self._executing()),
                )
        watchdog.close()
        with suppress(RuntimeError):
            loop.close()

    async def _live(self) -> None:
        try:
            async with self._open_executor() as self._executor:
                self._ready.set()
                await self._stopping.wait()
                await self._cancel_all()
            await self._close_generators()
        except BaseException as error:  # raised where the loop was started
            if self._ready.is_set():
                logger.exception("the executor could not be closed")
            self._failure = error
        self._ready.set()

    async def _cancel_all(self) -> None:
        """Cancel what agents left behind, and wait for it no longer than the grace."""
        left = asyncio.all_tasks() - {asyncio.current_task()}
        left = {task for task in left if executing_in(task) is not None}
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=self._grace)

    async def _close_generators(self) -> None:
        """Close the generators that agents left behind; the executor is one as well, so it has to be left before."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._grace):
                await self.loop.shutdown_asyncgens()

    def _end(self, _: object) -> None:
        self.loop.is_closing = True  # type: ignore[attr-defined]
        self.loop.stop()
