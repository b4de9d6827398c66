"""Whether a database can hold a store, found out when a process starts; and the wait for one that is still starting."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import psycopg

from runs_es.database import sessions
from runs_es.database.errors import DatabaseUnavailable, MigrationFailed, reason

T = TypeVar("T")

logger = logging.getLogger(__name__)

OLDEST = 14
_PAUSE_SECONDS = 0.25
# Nothing that time heals. The text is all that libpq tells of a refused connection.
_FOR_GOOD = (
    "password authentication failed",
    "authentication failed",
    "no password supplied",
    "no pg_hba.conf entry",
    "does not exist",
    "is not permitted to log in",
    "could not translate host name",
    "failed to resolve host",
    "does not support SSL",
    "unsupported startup parameter",
    "no such database",
    "no such user",
)


@dataclass(frozen=True, slots=True)
class Facts:
    """What a server says of itself, and what two sessions of it find out.

    `locks_exclude`: what one session has locked, another cannot lock. `keeps_sessions`: each of two connections has a
    server process of its own, and keeps it.
    """

    version: str
    major: int
    encoding: str
    locks_exclude: bool = True
    keeps_sessions: bool = True


def refusal(facts: Facts) -> str | None:
    """Why this server cannot hold a store, and what to do; None when it can."""
    if not facts.version.startswith("PostgreSQL"):
        return (
            f"The database is {facts.version.split(' ')[0] or 'unknown'}, not PostgreSQL. The log rests on advisory "
            f"locks, which others accept and do not hold: use PostgreSQL {OLDEST} or newer"
        )
    if facts.major < OLDEST:
        return f"The database is PostgreSQL {facts.major}; {OLDEST} or newer is needed"
    if not facts.keeps_sessions:
        return (
            "The database is reached through a pooler in transaction or statement mode, which loses settings, locks "
            "and notifications: use its session mode (PgBouncer: pool_mode = session), or no pooler"
        )
    if not facts.locks_exclude:
        return (
            f"The database ({facts.version.split(',')[0]}) lets two sessions have the same advisory lock, and a log "
            "without such locks loses facts. Use PostgreSQL itself"
        )
    if facts.encoding != "UTF8":
        return (
            f"The database is encoded {facts.encoding}, and must be UTF8: make one with "
            "`createdb --encoding=UTF8 --template=template0`, and name it in RUNS_ES_DATABASE_URL"
        )
    return None


def check_server(url: str, seconds: float) -> None:
    """See that the database answers and can hold a store; wait up to `seconds` for one that is starting, in recovery
    or cutting sessions. Raises DatabaseUnavailable with what to do.
    """
    try:
        facts = patiently(lambda: facts_of(url), seconds)
    except psycopg.Error as error:
        raise DatabaseUnavailable(f"The database of RUNS_ES_DATABASE_URL cannot be reached: {reason(error)}") from error
    if (why := refusal(facts)) is not None:
        raise DatabaseUnavailable(why)


def patiently(act: Callable[[], T], seconds: float) -> T:
    """What `act` answers; tried again for `seconds` while the database is starting, or has cut its session.

    Raises what `act` raises when time does not heal it, or is over.
    """
    begun, is_said = time.monotonic(), False
    while True:
        try:
            return act()
        except (psycopg.Error, DatabaseUnavailable, MigrationFailed) as error:
            cause = error if isinstance(error, psycopg.Error) else error.__cause__
            if not may_pass(cause) or time.monotonic() - begun >= seconds:
                raise
            if not is_said:
                line = (str(cause).strip().splitlines() or [""])[0]
                setting = "RUNS_ES_DATABASE_START_SECONDS"
                logger.warning("the database cannot be used yet; waiting up to %g s (%s): %s", seconds, setting, line)
                is_said = True
            time.sleep(_PAUSE_SECONDS)


def may_pass(error: BaseException | None) -> bool:
    """Whether the database may answer a little later: it is starting, recovering, or has cut the session."""
    if not isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
        return False
    if error.sqlstate is not None:
        return error.sqlstate.startswith(("08", "57P", "53300"))
    return not any(each in str(error) for each in _FOR_GOOD)


def facts_of(url: str) -> Facts:
    """Ask the server, over two sessions. Raises psycopg.Error."""
    with sessions.attempt(url, None, "start") as one, sessions.attempt(url, None, "start") as other:
        row = one.execute("select version(), current_setting('server_encoding'), pg_backend_pid()").fetchone()
        assert row is not None
        version, encoding, process = row
        major = one.info.server_version // 10_000
        if not version.startswith("PostgreSQL"):
            return Facts(version, major, encoding)
        # Behind a pooler that hands sessions out for a statement, two clients share one, or one has several. Twice in a
        # row, because a pooler that hands them out in turn gives two clients that alternate the same ones again.
        processes = [each.execute("select pg_backend_pid()").fetchone() for each in (one, other, one)]
        keeps = processes[1] != (process,) and processes[0] == processes[2] == (process,)
        key = random.SystemRandom().getrandbits(62)
        lock = "select pg_try_advisory_lock(%s)"
        locked = [each.execute(lock, (key,)).fetchone() for each in (one, other)]
        return Facts(version, major, encoding, locked == [(True,), (False,)], keeps)
