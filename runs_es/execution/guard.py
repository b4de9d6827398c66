"""Guards around agents' code: what it raises, cancels or stops ends the attempt that a context variable names.

asyncio lets SystemExit and KeyboardInterrupt out of a task into its event loop, which ends with them and takes every
other run along. `task_factory` converts them inside the coroutine, before a task sees them. `GuardedLoop` does so for
callbacks, and for tasks that are started past the factory: LangGraph calls `asyncio.eager_task_factory` by itself on
Python 3.12 and later.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextvars import Context, ContextVar
from inspect import CORO_CREATED, getcoroutinestate, isawaitable, iscoroutine
from typing import Any, Protocol

from runs_es.domain import LeaseLost, WriteConflict
from runs_es.execution.attempt_failure import AgentExited, printed
from runs_es.process_log import class_name

logger = logging.getLogger(__name__)


class Executing(Protocol):
    """The attempt whose code runs."""

    @property
    def run_id(self) -> str:
        """The id of its run."""

    @property
    def is_over(self) -> bool:
        """Whether the attempt has ended."""

    def fail(self, error: Exception) -> None:
        """End the attempt as failed; one that has ended is left as it is, with an ERROR line."""

    def interrupt(self) -> None:
        """Another attempt's code cancels this one."""


EXECUTING: ContextVar[Executing | None] = ContextVar("runs_es_executing", default=None)
# Whether a task made here serves all runs, such as those of a connection pool.
SHARED: ContextVar[bool] = ContextVar("runs_es_shared", default=False)


class AgentTask(asyncio.Task[Any]):
    """A task on the agents' loop. Code of one attempt cannot end another attempt, or tasks that serve all of them, by
    cancelling them.
    """

    def __init__(self, coroutine: Any, *, executing: Executing | None, is_root: bool = False, **options: Any) -> None:
        self.executing = executing
        self._is_root = is_root  # the one that executes the attempt
        self._is_shared = executing is None and SHARED.get()
        self._inner: Any = None  # the agent's coroutine, when `coroutine` is the guard around it
        super().__init__(coroutine, **options)

    def guards(self, inner: Any) -> None:
        """Say which coroutine the task's own one awaits."""
        self._inner = inner if iscoroutine(inner) else None

    def cancel(self, msg: Any | None = None) -> bool:
        canceller = EXECUTING.get()
        if canceller is not None and canceller is not self.executing:
            if self._is_shared:
                return False
            if self._is_root and self.executing is not None:
                self.executing.interrupt()
                canceller.fail(OtherRunsCancelled("the agent cancelled tasks of other runs"))
        if self._inner is not None and getcoroutinestate(self._inner) == CORO_CREATED:
            # Cancelled before its first step, the guard never awaits it, and Python would warn of that.
            self.add_done_callback(self._close_inner)
        return super().cancel(msg)

    def _close_inner(self, _: asyncio.Task[Any]) -> None:
        if getcoroutinestate(self._inner) == CORO_CREATED:
            self._inner.close()


class OtherRunsCancelled(Exception):
    """An agent cancelled tasks that were not its own."""


async def guarded(coroutine: Awaitable[Any]) -> Any:
    """Await the coroutine. Raises AgentExited for what is no `Exception`, but for cancels and for the GeneratorExit of
    `close()`.
    """
    try:
        return await coroutine
    except asyncio.CancelledError:
        raise
    except Exception as error:
        _report_late(error)
        raise
    except GeneratorExit as error:
        # `close()` closes the inner coroutine first, and then raises in this frame. One that the agent raised comes
        # from a frame further in, and would look to the async generators around it like a `close()` of their own.
        if error.__traceback__ is None or error.__traceback__.tb_next is None:
            raise
        raise AgentExited(error) from error
    except BaseException as error:
        exited = AgentExited(error)
        _report_late(exited)
        raise exited from error


def _report_late(error: Exception) -> None:
    """Log what a task raises after its run has ended. asyncio would say so when the task is collected, maybe never."""
    executing, task = EXECUTING.get(), asyncio.current_task()
    if executing is None or task is None or not executing.is_over:
        return
    task.add_done_callback(_retrieve)
    if not isinstance(error, LeaseLost | WriteConflict):
        _report(executing, "a task that nobody awaits", error)


def _retrieve(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()


def _report(executing: Executing, what: str, error: BaseException) -> None:
    logger.error("%s: %s raised %s: %s", executing, what, class_name(error), printed(error), exc_info=error)


def task_factory(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> AgentTask:
    """Make a task of the agents' loop, with `name`, `context` and `eager_start` as given. It is guarded when the
    context names an attempt.
    """
    context: Context | None = options.get("context")
    executing = EXECUTING.get() if context is None else context.get(EXECUTING)
    if executing is None or not isawaitable(coroutine):
        return AgentTask(coroutine, executing=executing, loop=loop, **options)
    guard: Any = guarded(coroutine)
    guard.__name__ = getattr(coroutine, "__name__", guard.__name__)
    guard.__qualname__ = getattr(coroutine, "__qualname__", guard.__qualname__)
    task = AgentTask(guard, executing=executing, loop=loop, **options)
    task.guards(coroutine)
    return task


def executing_in(task: asyncio.Task[Any] | None) -> Executing | None:
    """The attempt whose code a task runs. From any thread."""
    if task is None or isinstance(task, AgentTask):
        return None if task is None else task.executing
    context: Context | None = getattr(task, "get_context", lambda: None)()  # Python 3.11 has none, and starts no such
    return None if context is None else context.get(EXECUTING)


class _Guards:
    """The methods of an event loop that agents' code could end it by. A mixin: the loop itself comes behind it."""

    is_closing = False  # its thread ends it

    def call_soon(self, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> Any:
        if callback is not _call:
            args, callback = (callback, *args), _call
        return self._loop.call_soon(callback, *args, context=context)

    def call_soon_threadsafe(self, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> Any:
        if callback is not _call:
            args, callback = (callback, *args), _call
        return self._loop.call_soon_threadsafe(callback, *args, context=context)

    def call_later(self, delay: float, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> Any:
        if callback is not _call:
            args, callback = (callback, *args), _call
        return self._loop.call_later(delay, callback, *args, context=context)

    def call_at(self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> Any:
        if callback is not _call:
            args, callback = (callback, *args), _call
        return self._loop.call_at(when, callback, *args, context=context)

    def add_reader(self, fd: Any, callback: Callable[..., Any], *args: Any) -> Any:
        return self._loop.add_reader(fd, _call, callback, *args)

    def add_writer(self, fd: Any, callback: Callable[..., Any], *args: Any) -> Any:
        return self._loop.add_writer(fd, _call, callback, *args)

    def stop(self) -> None:
        if self.is_closing:
            self._loop.stop()
            return
        _blame(LoopStopped("the agent stopped the event loop that it shares with other runs"))

    def close(self) -> None:
        if self.is_closing:
            self._loop.close()
            return
        _blame(LoopStopped("the agent closed the event loop that it shares with other runs"))

    async def shutdown_default_executor(self, *arguments: Any) -> None:
        if self.is_closing:
            await self._loop.shutdown_default_executor(*arguments)
            return
        raise LoopStopped("the agent ended the threads that it shares with other runs")

    async def shutdown_asyncgens(self) -> None:
        if EXECUTING.get() is None:
            await self._loop.shutdown_asyncgens()
            return
        # They hold what every run needs, such as the pool of connections, which would be closed with them.
        raise LoopStopped("the agent closed the generators that it shares with other runs")

    @property
    def _loop(self) -> Any:
        return super()


class LoopStopped(Exception):
    """An agent called for the end of the event loop, the threads or the generators that all runs share."""


def guarded_loop(base: type[asyncio.AbstractEventLoop]) -> Any:
    """A new event loop of the class `base` that agents' code cannot end."""
    loop = type(f"Guarded{base.__name__}", (_Guards, base), {})()
    loop.set_task_factory(task_factory)
    loop.set_exception_handler(_unheard)
    return loop


def _call(callback: Callable[..., Any], *args: Any) -> None:
    """Call what the loop was asked to call, in its context."""
    try:
        callback(*args)
    except (SystemExit, KeyboardInterrupt) as error:
        _blame(AgentExited(error))


def _blame(error: Exception) -> None:
    executing = EXECUTING.get()
    if executing is not None:
        executing.fail(error)
    else:
        logger.error("code of no run called for the end of the agents' event loop, which goes on: %s", printed(error))


def _unheard(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """The loop's handler of exceptions that nobody awaits: tasks that an agent left behind, and callbacks."""
    error = context.get("exception")
    if isinstance(error, LeaseLost | WriteConflict):
        return  # it wrote for a run that had ended, and was refused
    task = context.get("task") or context.get("future")
    executing = executing_in(task) if isinstance(task, asyncio.Task) else EXECUTING.get()
    if executing is None or error is None:
        loop.default_exception_handler(context)
        return
    what = "a callback" if task is None else "a task that nobody awaits"
    _report(executing, what, error)
