"""How an attempt failed, as plain text. It is made where the agent's code runs: printing an exception calls that code.

An exception may be endless, may raise when it is printed, and may hold what no JSON can. None of this reaches the loop
that renews leases, which is given a `Failure` only.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from runs_es.domain import LeaseLost, StoreUnavailable
from runs_es.execution.protocol import RetryableError
from runs_es.execution.tracebacks import is_stores_own, recorded_traceback
from runs_es.process_log import log_traceback

logger = logging.getLogger(__name__)

MAX_ERROR_TEXT = 16_384  # characters of a failure's text that are kept
MAX_ERROR_TYPE = 200  # characters of the name of an exception's class that are kept

MayPass = Callable[[Exception], bool]


class AgentExited(Exception):
    """Stands for an exception that is no `Exception`, such as SystemExit: only the run that raised it ends."""

    def __init__(self, original: BaseException) -> None:
        self.original = original
        super().__init__(f"the agent called for the end of its process: {printed(original, repr)}")


@dataclass(frozen=True, slots=True)
class Failure:
    """How an attempt failed. `text` is what the exception says, at most MAX_ERROR_TEXT characters, and `kind` the name
    of its class. `traceback` is for the operator. Clients may always read a text that `is_own`.
    """

    kind: str
    text: str
    may_pass: bool = False  # another attempt may succeed
    is_late: bool = False  # our own deadline passed
    lost_lease: bool = False
    is_own: bool = False  # the store's own words
    traceback: str = ""

    @classmethod
    def of(cls, error: BaseException, may_pass: MayPass = lambda _: False) -> Failure:
        """The failure that an exception of an agent is. Calls the agent's code, and raises nothing."""
        if isinstance(error, AgentExited) and not isinstance(error.original, SystemExit | KeyboardInterrupt):
            error = error.original
        return cls(
            kind_of(error),
            printed(error),
            may_pass=_may_pass(error, may_pass),
            lost_lease=isinstance(error, LeaseLost),
            is_own=not isinstance(error, AgentExited) and is_stores_own(error),
            traceback=recorded_traceback(error.original if isinstance(error, AgentExited) else error),
        )

    @classmethod
    def late(cls, why: str) -> Failure:
        """The failure of a run whose own time is up."""
        return cls("TimeoutError", why, is_late=True, is_own=True)


def log_failure(failure: Failure, *, is_retried: bool, fields: Mapping[str, object]) -> None:
    """Log what an attempt failed with, and its traceback: an error, or at DEBUG when the run is tried again."""
    level, then = (logging.DEBUG, "; it is tried again") if is_retried else (logging.ERROR, "")
    what = f"raised {failure.kind}" if failure.traceback else f"failed: {failure.kind}: {failure.text}"
    log_traceback(logger, level, f"run {fields['run_id']} {what}{then}", failure.traceback, fields)


def kind_of(error: BaseException) -> str:
    """The name of an exception's class, cut. A metaclass may say otherwise, so it is not asked."""
    name: str = type.__dict__["__name__"].__get__(type(error))
    return name[:MAX_ERROR_TYPE]


def printed(error: BaseException, how: Callable[[Any], str] = str) -> str:
    """What an exception says of itself, cut and cleaned; the name of its class when it cannot be printed."""
    try:
        text = "".join((how(error),))  # of a subclass of str, the text alone
    except asyncio.CancelledError:
        raise
    except BaseException:  # noqa: BLE001  (the agent's code, in an exception of its own)
        return kind_of(error)
    return text[:MAX_ERROR_TEXT].encode("utf-8", "replace").decode().replace("\x00", "\ufffd")


def _may_pass(error: BaseException, ask: MayPass) -> bool:
    if isinstance(error, RetryableError | StoreUnavailable):
        return True
    return isinstance(error, Exception) and not isinstance(error, AgentExited | LeaseLost) and ask(error)
