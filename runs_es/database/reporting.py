"""What loops that try again say of their failures: each kind once, until it has been quiet for a while.

A lost connection is not said here but for INFO: the outage says once that the database is away, and that it is back.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict

from psycopg.errors import ReadOnlySqlTransaction

from runs_es.database.outage import is_lost
from runs_es.domain.errors import RunDomainError

REPEAT_SECONDS = 60.0
_KEPT = 1000

_said: OrderedDict[tuple[str, str], float] = OrderedDict()
_lock = threading.Lock()


def report(logger: logging.Logger, error: BaseException, what: str, *arguments: object) -> None:
    """Log that `what` failed and is tried again.

    With the traceback, unless the error is one of the store's own or of a read-only database; the same again only at
    DEBUG for a minute.
    """
    text = what % arguments if arguments else what
    if is_lost(error):
        logger.info("%s: %s", text, _line(error))
    elif not _is_new(text, error):
        logger.debug("%s: %s", text, error)
    elif isinstance(error, RunDomainError | ReadOnlySqlTransaction):  # a standby's: where it came up says nothing
        logger.warning("%s: %s", text, error)
    else:
        logger.error("%s: %s", text, _line(error), exc_info=error)


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _is_new(text: str, error: BaseException) -> bool:
    """Whether this was not said within the last minute, of the same thing for the same reason."""
    key, now = (text, _line(error)), time.monotonic()
    with _lock:
        last = _said.get(key)
        if last is not None and now - last < REPEAT_SECONDS:
            return False
        _said[key] = now
        _said.move_to_end(key)
        while len(_said) > _KEPT:
            _said.popitem(last=False)
        return True
