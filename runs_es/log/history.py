"""Which history this process writes to: the one that the log was written to last, or another one.

A restored backup, and a standby that lacks what its primary had acknowledged, look like the log that clients and
processes know, and are not. The table `history` holds where the log was written last: the cluster, its timeline, the
database, the table `heads`. Whoever finds another place refuses to write until an operator has said `runs-es restored`
or `runs-es not-lost`, or a setting says it for him. A copy of the cluster's files that was never recovered to another
timeline has the same place: no process can tell it, unless it has itself appended what is missing there.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, LiteralString

from psycopg import Connection, Error, InterfaceError, OperationalError, sql
from psycopg.errors import InsufficientPrivilege, ReadOnlySqlTransaction

from runs_es.domain import StoreUnavailable

logger = logging.getLogger(__name__)

# Hosted databases do not offer all of these to everybody; what is not offered is not compared.
_SYSTEM: LiteralString = "(select system_identifier::text from pg_control_system())"
# Of the name of the write-ahead log's file: the control file learns of a new timeline with its next checkpoint only.
_TIMELINE: LiteralString = (
    "case when not pg_is_in_recovery() then"
    " ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::bigint end"
)
_STATE = """
select h.epoch, h.is_raised, h.doubt, h.token, h.system_identifier, h.timeline, h.database_oid, h.heads_oid,
       {system}, {timeline}, (select oid::bigint from pg_database where datname = current_database()),
       'heads'::regclass::oid::bigint, (select last_value from event_position)
  from history h
"""
# What this place does not show stays as it was: a standby has no timeline, some roles see no system identifier.
_SETTLE = """
update history set system_identifier = coalesce(%s, system_identifier), timeline = coalesce(%s, timeline),
                   database_oid = coalesce(%s, database_oid), heads_oid = coalesce(%s, heads_oid), doubt = null
 where token = %s and is_raised
"""
_DOUBT = "update history set doubt = %s, token = %s where token = %s and doubt is null and is_raised"
_PARTS = ("system identifier", "timeline", "database", "table heads")
_ONLY_READS = (InsufficientPrivilege, ReadOnlySqlTransaction)  # this process, or this database
SAY = (
    "if it was restored from a backup, or failed over to a standby that lacked something, run `runs-es restored`; "
    "if nothing was lost, `runs-es not-lost` (or set RUNS_ES_ON_NEW_HISTORY)"
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a log lies. None for a part that is not known."""

    system_identifier: str | None
    timeline: int | None
    database_oid: int | None
    heads_oid: int | None

    def parts(self) -> tuple[object, ...]:
        return self.system_identifier, self.timeline, self.database_oid, self.heads_oid

    def difference(self, other: Place) -> str | None:
        """What differs, in words; None when nothing that both know does."""
        found = [
            f"{name} {now}, was {was}"
            for name, was, now in zip(_PARTS, self.parts(), other.parts(), strict=True)
            if was is not None and now is not None and was != now
        ]
        return "; ".join(found) or None

    def shows_more_than(self, other: Place) -> bool:
        """Whether a part is known here that is not known there."""
        return any(was is None and now is not None for was, now in zip(other.parts(), self.parts(), strict=True))


@dataclass(frozen=True, slots=True)
class State:
    """The row of `history`, and the place where it was read. `position` is the last one that was given out."""

    epoch: int
    is_raised: bool
    doubt: str | None
    token: uuid.UUID
    written_at: Place
    place: Place
    position: int


class StateQuery:
    """Reads the state, with as much of the place as this database shows."""

    def __init__(self) -> None:
        self._statement: sql.Composed | None = None

    def read(self, connection: Connection[Any]) -> State:
        """The state as it is now. Raises psycopg's errors, and StoreUnavailable where the row is missing."""
        if self._statement is None:
            parts = {"system": _offered(connection, _SYSTEM), "timeline": _offered(connection, _TIMELINE)}
            self._statement = sql.SQL(_STATE).format(**parts)
        row = connection.execute(self._statement).fetchone()
        if row is None:
            raise StoreUnavailable("the table history has lost its row: restore it from a backup")
        epoch, is_raised, doubt, token = row[:4]
        return State(epoch, is_raised, doubt, token, Place(*row[4:8]), Place(*row[8:12]), row[12])


def _offered(connection: Connection[Any], expression: LiteralString) -> sql.SQL:
    try:
        connection.execute(sql.SQL("select {}").format(sql.SQL(expression)))
    except (OperationalError, InterfaceError):
        raise
    except Error as error:
        logger.info("this database does not show %s: %s", expression, error)
        return sql.SQL("null")
    return sql.SQL(expression)


class HistoryGuard:
    """What this process knows of the history. Safe between threads.

    `on_new_history` is what to do at another place: `refuse`, `restored`, `not-lost`. `restore` does what
    `runs-es restored` does, where this process is to do it by itself.
    """

    def __init__(self, on_new_history: str = "refuse", restore: Callable[[], None] | None = None) -> None:
        self._policy = on_new_history
        self._restore = restore
        self._query = StateQuery()
        self._lock = threading.RLock()
        self._listeners: list[Callable[[], None]] = []
        self._seen: tuple[object, ...] | None = None
        self._position = 0
        self._raising: threading.Thread | None = None
        self.generation = 0
        """Grows when what is in memory may be of another history. Who decides on such a thing states it."""
        self.epoch: int | None = None
        """How many epochs the numbers have been taken up; None until this process has looked."""
        self.refusal: str | None = None
        """Why nothing may be written; None when all is well."""

    def watch(self, listener: Callable[[], None]) -> None:
        """Be told to forget what was read before now. Called before anything else is appended: return quickly."""
        self._listeners.append(listener)

    def acknowledged(self, position: int) -> None:
        """The log has told this process that it holds a fact at `position`."""
        self._position = max(self._position, position)

    def admit(self, connection: Connection[Any]) -> None:
        """Let a new connection append. Raises StoreUnavailable while nobody may, and psycopg's errors."""
        self.look(connection)
        if self.refusal is not None:
            raise StoreUnavailable(self.refusal)

    def look(self, connection: Connection[Any]) -> None:
        """Compare the place with the one the log was last written at. `connection` must be autocommit."""
        with self._lock:
            acknowledged = self._position  # before the state is read: the writer appends meanwhile
            state = self._query.read(connection)
            if self._seen is not None and state.token != self._seen[0] and state.doubt is None:
                # Somebody has spoken: what this process had appended counts no more.
                self._position = acknowledged = 0
            if state.is_raised:
                reason = self._reason(state, acknowledged)
                if reason is not None:
                    state = self._decided(connection, state, reason)
                elif state.doubt is None and state.place.shows_more_than(state.written_at):
                    self._settle(connection, state)  # for the first time, or more is shown than before
            elif self._policy == "restored":
                self._raise()
            self._note(state)

    @staticmethod
    def _reason(state: State, acknowledged: int) -> str | None:
        """Why this may be another history than the one that was written last."""
        where = state.written_at.difference(state.place)
        if where is not None:
            return where
        if state.position < acknowledged:
            return f"the log ends at position {state.position}, and had acknowledged {acknowledged}"
        return None

    def _decided(self, connection: Connection[Any], state: State, reason: str) -> State:
        if self._policy == "not-lost":
            logger.warning("the log is at another place (%s); as RUNS_ES_ON_NEW_HISTORY says, nothing was lost", reason)
            self._settle(connection, state)
            self._position = 0
            return self._query.read(connection)
        if self._policy == "restored":
            logger.warning("the log is at another place (%s); as RUNS_ES_ON_NEW_HISTORY says, it was restored", reason)
            self._raise()
        elif state.doubt is None and self.refusal is None:  # once, also where the doubt cannot be written down
            logger.error("nothing is written any more: %s; %s", reason, SAY)
        try:
            connection.execute(_DOUBT, (reason, uuid.uuid4(), state.token))
        except _ONLY_READS:
            return State(state.epoch, True, reason, state.token, state.written_at, state.place, state.position)
        return self._query.read(connection)

    def _settle(self, connection: Connection[Any], state: State) -> None:
        try:
            connection.execute(_SETTLE, (*state.place.parts(), state.token))
        except _ONLY_READS:
            return

    def _raise(self) -> None:
        """Raise the threads in a thread of its own: meanwhile nothing is written."""
        if self._restore is None or (self._raising is not None and self._raising.is_alive()):
            return
        self._raising = threading.Thread(target=self._restore, name="runs-es restored", daemon=True)
        self._raising.start()

    def _note(self, state: State) -> None:
        seen: tuple[object, ...] = (state.token, state.epoch)
        if self._policy != "not-lost":
            seen += state.place.parts()
        self.epoch = state.epoch
        if not state.is_raised:
            self.refusal = "nothing is written until `runs-es restored` has come to its end; run it again to go on"
        elif state.doubt is not None:
            self.refusal = f"nothing is written, because this may be another history of the log ({state.doubt}): {SAY}"
        else:
            self.refusal = None
        if self._seen is not None and seen != self._seen:
            self.generation += 1
            for listener in self._listeners:
                listener()
        self._seen = seen
