"""Whether this process can append to the log and read it now, and in words what keeps it from doing so."""

from __future__ import annotations

import time
from collections.abc import Iterator

import psycopg
from psycopg import Connection
from psycopg.rows import TupleRow

from runs_es.database.grants import lacking
from runs_es.database.outage import is_lost
from runs_es.domain import StoreUnavailable
from runs_es.log.event_log import EventLog

SECONDS = 1.5  # that the whole answer may take


def what_is_missing(log: EventLog, seconds: float = SECONDS) -> list[str]:
    """What keeps this process from appending and reading now, in words; nothing when it can. Takes `seconds` at most,
    unless the database accepts questions and answers none.
    """
    if (reason := log.outage.reason) is not None:
        return [f"the database does not answer: {reason}"]
    if (refusal := log.history.refusal) is not None:
        return [refusal]
    deadline = time.monotonic() + seconds
    found: list[str] = []
    try:
        appended = log.writer.probe()
        with log.reader.connection(max(seconds / 2, 0.1)) as connection:
            found += _missing_rights(connection, log.schema)
        error = appended.exception(max(deadline - time.monotonic(), 0.0))
    except StoreUnavailable as unavailable:
        return [str(unavailable)]
    except TimeoutError:
        return [*found, f"the log writer has not answered within {seconds:g} s: {log.outage.reason or 'it is busy'}"]
    except psycopg.Error as unreadable:
        return [*found, f"the log cannot be read: {_line(unreadable)}"]
    if error is not None and not (found and isinstance(error, psycopg.errors.InsufficientPrivilege)):
        found += _refusals(error)
    if (room := log.writer.waits_for_room) is not None:
        found.append(f"the database has no room, appends wait: {room}")
    return found


def _missing_rights(connection: Connection[TupleRow], schema: str) -> Iterator[str]:
    row = connection.execute("select current_user, pg_is_in_recovery()").fetchone()
    assert row is not None
    role, is_standby = row
    missing = lacking(connection, schema)
    if missing:
        yield f"the role {role} lacks {missing}"
    if is_standby:
        yield "the database is a read-only standby"


def _refusals(error: BaseException) -> Iterator[str]:
    if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
        yield "the database is read-only: nothing can be appended"
    elif is_lost(error):
        yield f"the database does not answer: {_line(error)}"
    else:
        yield f"nothing can be appended: {_line(error)}"


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
