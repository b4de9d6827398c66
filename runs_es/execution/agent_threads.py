"""The event loop's default threads, which are for agents alone (see blocking.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import Context
from functools import partial
from typing import Any

IsQuick = Callable[[Callable[..., Any], Sequence[Any]], bool]


class AgentThreads(ThreadPoolExecutor):
    """Calls in the caller's own thread, at once, what `is_quick(function, arguments)` says is over before a thread
    would have begun: each way there and back is two switches of the interpreter between threads, and a run of a few
    steps had a dozen of them.
    """

    def __init__(self, size: int, is_quick: IsQuick | None = None) -> None:
        super().__init__(size, "runs-es agent")
        self._is_quick = is_quick

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        """As ThreadPoolExecutor's."""
        if self._is_quick is None or not _asked_by_to_thread(function) or not self._is_quick(*_call(function)):
            return super().submit(_called, function, *arguments, **named)
        done: Future[Any] = Future()
        try:
            done.set_result(_called(function, *arguments, **named))
        except BaseException as error:  # noqa: BLE001  (the caller's, wherever it is called)
            done.set_exception(error)
        return done


def _called(function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Any:
    """Call the function. No future may raise StopIteration: on Python 3.11 its caller would wait for ever."""
    try:
        return function(*arguments, **named)
    except StopIteration as error:
        raise RuntimeError("an agent's function raised StopIteration") from error


def _asked_by_to_thread(function: Callable[..., Any]) -> bool:
    """`asyncio.to_thread(f, …)` hands on `partial(context.run, f, …)`."""
    return (
        isinstance(function, partial)
        and bool(function.args)
        and isinstance(getattr(function.func, "__self__", None), Context)
    )


def _call(function: Any) -> tuple[Callable[..., Any], Sequence[Any]]:
    return function.args[0], function.args[1:]
