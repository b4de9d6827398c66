"""How an attempt failed, as plain text. It is made where the agent's code runs: printing an exception calls that code.

An exception may be endless, may raise when it is printed, and may hold what no JSON can. None of this reaches the loop
that renews leases, which is given a `Failure` only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from runs_es.domain import LeaseLost, StoreUnavailable
from runs_es.execution.failures import is_stores_own, recorded_traceback
from runs_es.execution.protocol import RetryableError
from runs_es.process_log import MAX_TRACEBACK_BYTES, class_name

MAX_ERROR_TEXT = 16_384  # characters of a failure's text that are kept

MayPass = Callable[[Exception], bool]


class AgentExited(Exception):
    """Stands for an exception that is no `Exception`, such as SystemExit: only the run that raised it ends."""

    def __init__(self, original: BaseException) -> None:
        self.original = original
        super().__init__(f"the agent called for the end of its process: {printed(original, repr)}")


@dataclass(frozen=True, slots=True)
class Failure:
    """How an attempt failed: the name of the exception's class, its text of at most MAX_ERROR_TEXT characters, its
    traceback for the fact, and whether clients may not see the text.
    """

    kind: str
    text: str
    may_pass: bool = False  # another attempt may succeed
    is_late: bool = False  # our own deadline passed
    lost_lease: bool = False
    traceback: str = ""
    is_hidden: bool = False

    @classmethod
    def of(
        cls,
        error: BaseException,
        may_pass: MayPass = lambda _: False,
        *,
        show_errors: bool = True,
        max_event_bytes: int = MAX_TRACEBACK_BYTES,
    ) -> Failure:
        """The failure that an exception of an agent is. Calls the agent's code, and raises nothing."""
        if isinstance(error, AgentExited) and not isinstance(error.original, SystemExit | KeyboardInterrupt):
            error = error.original
        return cls(
            class_name(error),
            printed(error),
            may_pass=_may_pass(error, may_pass),
            lost_lease=isinstance(error, LeaseLost),
            traceback=recorded_traceback(original_of(error), max_event_bytes),
            is_hidden=not show_errors and not is_stores_own(error),
        )

    @classmethod
    def late(cls, why: str) -> Failure:
        """The failure of a run whose own time is up."""
        return cls("TimeoutError", why, is_late=True)

    @property
    def recorded(self) -> dict[str, Any]:
        """What the fact has of it."""
        return {
            "error": self.text,
            "error_type": self.kind,
            "traceback": self.traceback,
            "error_hidden": self.is_hidden,
        }


def original_of(error: BaseException) -> BaseException:
    """The exception that the agent raised."""
    return error.original if isinstance(error, AgentExited) else error


def printed(error: BaseException, how: Callable[[Any], str] = str) -> str:
    """What an exception says of itself, cut and cleaned; the name of its class when it cannot be printed."""
    try:
        text = "".join((how(error),))  # of a subclass of str, the text alone
    except BaseException:  # noqa: BLE001  (the agent's code, in an exception of its own)
        return class_name(error)
    return text[:MAX_ERROR_TEXT].encode("utf-8", "replace").decode().replace("\x00", "\ufffd")


def _may_pass(error: BaseException, ask: MayPass) -> bool:
    if isinstance(error, RetryableError | StoreUnavailable):
        return True
    return isinstance(error, Exception) and not isinstance(error, AgentExited | LeaseLost) and ask(error)
