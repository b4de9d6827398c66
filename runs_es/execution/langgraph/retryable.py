"""Which errors of a graph may pass. Few: what is tried again repeats the steps since the last checkpoint.

Networks that fail and providers that are overloaded, as their client libraries say it (which have tried again
themselves by then), and a database that is away. Everything else is the graph's own, which raises `RetryableError` for
what it knows to pass.
"""

from __future__ import annotations

import errno

import psycopg

# Of the standard library, requests, httpx, and the clients of OpenAI and Anthropic: by name, since none of these need
# be installed.
_NAMES = frozenset({"ConnectionError", "TransportError", "APIConnectionError"})
# A connection that was not answered in time is a TimeoutError, and a host out of reach an OSError: neither has a class.
_ERRNOS = frozenset({errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN})
_STATUSES = frozenset({408, 429, 502, 503, 504, 529})


def may_pass(error: Exception) -> bool:
    """Whether another attempt after a pause may succeed."""
    if isinstance(error, psycopg.OperationalError):
        return True
    if isinstance(error, OSError) and error.errno in _ERRNOS:
        return True
    return _status_of(error) in _STATUSES or any(kind.__name__ in _NAMES for kind in type(error).__mro__)


def _status_of(error: Exception) -> object:
    """The HTTP status that an error carries, itself or in its response; None without one."""
    found = getattr(error, "status_code", None)
    return found if isinstance(found, int) else getattr(getattr(error, "response", None), "status_code", None)
