"""What is recorded of an agent's exception: its class, its text, its traceback, and whether clients see the text.

The text and the traceback go into the fact, for the operator. Clients see the text unless the fact hides it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from types import TracebackType

from runs_es.process_log import MAX_TRACEBACK_BYTES, class_name, traceback_text

logger = logging.getLogger(__name__)

# Code that calls agents. Its frames say nothing about an agent's mistake when they come before the agent's own.
_CALLERS = ("runs_es", "langgraph", "langchain_core", "asyncio", "concurrent", "threading", "contextvars")
_OURS = "runs_es"


def recorded_traceback(error: BaseException, max_event_bytes: int) -> str:
    """The traceback for the fact, from the agent's first frame on; empty for an exception that was never raised.

    It takes at most an eighth of what a fact may have, so that the fact is not refused for it.
    """
    if error.__traceback__ is None:
        return ""
    return traceback_text(error, agents_frames(error), room_for_traceback(max_event_bytes))


def room_for_traceback(max_event_bytes: int) -> int:
    """How many bytes of a traceback a fact keeps."""
    return min(MAX_TRACEBACK_BYTES, max_event_bytes // 8)


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
    if last is None:
        return isinstance(error, TimeoutError)  # of a deadline: made by the worker, never raised
    return _package(last) == _OURS


def log_failure(error: BaseException, *, is_retried: bool, fields: Mapping[str, object]) -> None:
    """Log what an attempt raised, with the agent's traceback: an error, or at DEBUG when the run is tried again."""
    trace = agents_frames(error)
    level, then = (logging.DEBUG, "; it is tried again") if is_retried else (logging.ERROR, "")
    told = (type(error), error, trace) if trace is not None else None
    what = class_name(error) if told is not None else _last_line(error)
    logger.log(level, "run %s raised %s%s", fields["run_id"], what, then, exc_info=told, extra=dict(fields))


def _last_line(error: BaseException) -> str:
    return traceback_text(error, None)


def _frames(error: BaseException) -> Iterator[TracebackType]:
    trace = error.__traceback__
    while trace is not None:
        yield trace
        trace = trace.tb_next


def _package(trace: TracebackType) -> str:
    return str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
