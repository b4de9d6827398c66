"""Every error of the store.

```
RunDomainError
├ InvalidRunTransition        carries current, target
│ └ RunEnded                  a run that was to be stopped has ended; carries run_id
├ ConflictError               the thread is busy
├ UnsupportedStrategyError    a multitask strategy or cancel action that is not offered
├ RunNotFound, ThreadNotFound, AssistantNotFound, CronNotFound
├ ThreadExists
├ WriteConflict               somebody else wrote first, and retrying did not help
├ LeaseLost                   a worker's write was refused: the run is somebody else's, or cancelled
├ LimitExceeded               a limit that has a number and a setting
├ BadSequence                 a Last-Event-ID that is no sequence number
├ CursorLost                  a sequence number of a history that a restore of the database has lost
├ UnknownTopic                a stored event that this version does not know
└ StoreUnavailable            the database does not answer
```
A graph's own exception is none of these: it becomes a `RunFailed` fact.
"""

from __future__ import annotations


class RunDomainError(Exception):
    """Base of all errors that the store raises on purpose."""


class InvalidRunTransition(RunDomainError):
    """A run cannot go from its current status to the one asked for."""

    def __init__(self, current: str, target: str) -> None:
        super().__init__(f"a run that is {current} cannot become {target}")
        self.current = current
        self.target = target


class RunEnded(InvalidRunTransition):
    """A run that was to be stopped has ended already; `current` is how."""

    def __init__(self, run_id: str, current: str) -> None:
        super().__init__(current, "interrupted")
        self.args = (f"Run with ID {run_id} has ended ({current}); there is nothing to cancel",)
        self.run_id = run_id


class ConflictError(RunDomainError):
    """The thread is busy and the caller asked not to wait."""


class UnsupportedStrategyError(RunDomainError):
    """A strategy or action that this store does not offer."""


class RunNotFound(RunDomainError):
    """No such run, or not one the caller may see."""

    def __init__(self, run_id: str) -> None:
        super().__init__(f"Run with ID {run_id} not found")
        self.run_id = run_id


class ThreadNotFound(RunDomainError):
    """No such thread, or not one the caller may see."""

    def __init__(self, thread_id: str) -> None:
        super().__init__(f"Thread with ID {thread_id} not found")
        self.thread_id = thread_id


class CronNotFound(RunDomainError):
    """No such cron, or not one the caller may see."""

    def __init__(self, cron_id: str) -> None:
        super().__init__(f"Cron with ID {cron_id} not found")
        self.cron_id = cron_id


class AssistantNotFound(RunDomainError):
    """No such assistant."""


class ThreadExists(RunDomainError):
    """A thread of this id exists already."""

    def __init__(self, thread_id: str) -> None:
        super().__init__(f"Thread with ID {thread_id} already exists")
        self.thread_id = thread_id


class WriteConflict(RunDomainError):
    """The thread changed since the writer last read it."""


class LeaseLost(RunDomainError):
    """This worker's write was refused: the run was taken over, cancelled, or its thread deleted."""


class LimitExceeded(RunDomainError):
    """A limit was passed; the message names the setting. `size` and `limit` are bytes, 0 when they are not known."""

    def __init__(self, message: str, size: int = 0, limit: int = 0) -> None:
        super().__init__(message)
        self.size = size
        self.limit = limit


class FramesGone(RunDomainError):
    """Frames that are needed were deleted by retention."""


class BadSequence(RunDomainError):
    """A Last-Event-ID that is no sequence number."""


class CursorLost(RunDomainError, ValueError):
    """A sequence number that only a history lost by a restore of the database can have given out."""

    def __init__(self, seq: int) -> None:
        super().__init__(
            f"seq {seq} is of a history that was lost when the database was restored: read again from the start"
        )
        self.seq = seq


class UnknownTopic(RunDomainError):
    """A stored event whose topic or version this code does not know."""


class StoreUnavailable(RunDomainError):
    """The database does not answer, or the store is closing."""
