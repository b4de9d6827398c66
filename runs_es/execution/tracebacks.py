"""The traceback of an agent's exception, and whether its words are the store's own."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType

from runs_es.process_log import traceback_text

# Code that calls agents. Its frames say nothing about an agent's mistake when they come before the agent's own.
_CALLERS = ("runs_es", "langgraph", "langchain_core", "asyncio", "concurrent", "threading", "contextvars")
_OURS = "runs_es"


def recorded_traceback(error: BaseException) -> str:
    """The traceback for the fact, from the agent's first frame on; empty for an exception that was never raised."""
    return traceback_text(error, agents_frames(error)) if error.__traceback__ is not None else ""


def agents_frames(error: BaseException) -> TracebackType | None:
    """The exception's traceback from the agent's first frame on; all of it where no frame is an agent's."""
    frames = (each for each in _frames(error) if _package(each) not in _CALLERS)
    return next(frames, error.__traceback__)


def is_stores_own(error: BaseException) -> bool:
    """Whether the store itself raised `error`, in words of its own: those may be shown to any client.

    An error that the store raised from another one may carry the other one's text, so it is not.
    """
    if error.__cause__ is not None:
        return False
    last = None
    for last in _frames(error):  # noqa: B007
        pass
    return last is None or _package(last) == _OURS  # without frames: made by the store, never raised


def _frames(error: BaseException) -> Iterator[TracebackType]:
    trace = error.__traceback__
    while trace is not None:
        yield trace
        trace = trace.tb_next


def _package(trace: TracebackType) -> str:
    return str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
