"""The one place that connects to the database: single sessions, and pools of them for threads and for event loops.

Each session has a name in pg_stat_activity, notices within seconds that the server is gone, and is set up by statements
after it has connected. No startup parameter is sent but name and encoding: a pooler in session mode refuses others.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any
from weakref import WeakKeyDictionary

import psycopg
from psycopg import AsyncConnection, Connection, sql
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from runs_es.database.outage import is_lost, outage_of, patience

# A server that vanished without a word (power, network) is noticed within seconds, not after the kernel's 15 minutes.
KEEPALIVE: dict[str, Any] = {
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,  # milliseconds
}
WAIT_SECONDS = 5.0  # for a connection of a pool, unless a setting says otherwise
_LOGGERS = ("psycopg", "psycopg.pool")
_NAME = "runs-es"
_IDLE_SECONDS = 1.0  # a connection that was used since is not asked whether it lives


def parameters(name: str) -> dict[str, Any]:
    """What a connection is made with. `name` shows in pg_stat_activity."""
    return {**KEEPALIVE, "application_name": f"{_NAME} {name}", "client_encoding": "UTF8"}


def connect(url: str, schema: str | None, name: str, *, row_factory: Any = None, **settings: str) -> Connection[Any]:
    """An autocommit session whose search_path is `schema`, if one is given. Raises psycopg.Error.

    When there is none to be had, the outage is looked after.
    """
    try:
        return attempt(url, schema, name, row_factory=row_factory, **settings)
    except psycopg.OperationalError:
        outage_of(url).noticed()
        raise


def attempt(url: str, schema: str | None, name: str, *, row_factory: Any = None, **settings: str) -> Connection[Any]:
    """As `connect`, for who looks after an outage by itself."""
    options = parameters(name) if row_factory is None else {**parameters(name), "row_factory": row_factory}
    connection: Connection[Any] = psycopg.connect(url, autocommit=True, **options)
    try:
        configure(connection, schema, settings)
    except BaseException:
        connection.close()
        raise
    return connection


def configure(connection: Connection[Any], schema: str | None, settings: Mapping[str, str]) -> None:
    """Set search_path and `settings` for the session, in one round trip."""
    if (statement := _statement(schema, settings)) is not None:
        connection.execute(statement, prepare=False)


def _statement(schema: str | None, settings: Mapping[str, str]) -> sql.Composed | None:
    """One statement for all: connections that prepare everything take no second one with it."""
    values = {} if schema is None else {"search_path": sql.Identifier(schema).as_string()}
    parts = [
        sql.SQL("set_config({}, {}, false)").format(sql.Literal(name), sql.Literal(value))
        for name, value in {**values, **settings}.items()
    ]
    return sql.SQL("select ") + sql.SQL(", ").join(parts) if parts else None


class SessionPool(ConnectionPool[Connection[TupleRow]]):
    """A pool of sessions for threads; it connects at once when the database is back."""

    def __init__(
        self,
        url: str,
        schema: str,
        name: str,
        *,
        size: int,
        seconds: float = WAIT_SECONDS,
        settings: Mapping[str, str],
    ) -> None:
        """`settings` are of each session; `seconds` bound the wait for one."""
        self.outage = outage_of(url)
        self.outage.wake(self)
        self._unasked = threading.local()
        super().__init__(
            url,
            min_size=1,
            max_size=size,
            timeout=seconds,
            configure=lambda connection: configure(connection, schema, settings),
            kwargs={**parameters(name), "autocommit": True},
            check=self._live,
            # The outage looks when to connect again. The pool's own attempts are further apart each time.
            reconnect_timeout=0,
            reconnect_failed=lambda _: self.outage.noticed(),
            open=True,
            name=f"{_NAME} {name}",
        )

    @contextmanager
    def unchecked(self) -> Iterator[Connection[TupleRow]]:
        """A connection that was not asked whether it lives, for who tries again on another."""
        self._unasked.now = True
        try:
            with self.connection() as connection:
                self._unasked.now = False
                yield connection
        finally:
            self._unasked.now = False

    def getconn(self, timeout: float | None = None) -> Connection[TupleRow]:
        return super().getconn(patience(self.timeout) if timeout is None else timeout)

    def _live(self, connection: Connection[TupleRow]) -> None:
        if getattr(self._unasked, "now", False):
            return
        try:
            ConnectionPool.check_connection(connection)
        except psycopg.OperationalError:
            # One dead connection means that the server went away, and all the others are as dead: replace them at
            # once. Left to itself the pool finds them one by one, and waits twice as long before each.
            self.drain()
            raise

    def wake(self) -> None:
        """Replace what is dead, and connect for those who wait."""
        if not self.closed:
            self.check()


class AsyncSessionPool(AsyncConnectionPool[AsyncConnection[Any]]):
    """A pool of sessions for one event loop; it connects at once when the database is back. Open it before its use."""

    def __init__(
        self,
        url: str,
        schema: str,
        name: str,
        *,
        size: int,
        seconds: float = WAIT_SECONDS,
        least: int = 0,
        unasked_seconds: float = _IDLE_SECONDS,
        connection_options: Mapping[str, Any] | None = None,
        settings: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """As `SessionPool`; `least` connections are kept, and made with `connection_options` too.

        A connection used within `unasked_seconds` is not asked whether it lives: its user has to try again on another.
        """
        self.outage = outage_of(url)
        self._used: WeakKeyDictionary[AsyncConnection[Any], float] = WeakKeyDictionary()
        self._unasked_seconds = unasked_seconds
        self._home: asyncio.AbstractEventLoop | None = None
        self._tasks_of_outages: set[asyncio.Task[None]] = set()
        super().__init__(
            url,
            min_size=min(least, size),
            max_size=size,
            timeout=seconds,
            configure=async_configuring(schema, settings),
            kwargs={**parameters(name), **(connection_options or {})},
            check=self._live,
            reconnect_timeout=0,
            reconnect_failed=lambda _: self.outage.noticed(),
            open=False,
            name=f"{_NAME} {name}",
        )

    async def open(self, wait: bool = False, timeout: float = 30.0) -> None:
        self._home = asyncio.get_running_loop()
        await super().open(wait, timeout)
        self.outage.wake(self)

    async def _live(self, connection: AsyncConnection[Any]) -> None:
        """A restart of the server must not fail what comes next; but asking each time would double the queries."""
        now = time.monotonic()
        if now - self._used.get(connection, 0.0) >= self._unasked_seconds:
            try:
                await AsyncConnectionPool.check_connection(connection)
            except psycopg.OperationalError:
                await self.drain()
                raise
        self._used[connection] = now

    def wake(self) -> None:
        """Replace what is dead, and connect for those who wait. From any thread."""
        if self._home is not None and not self.closed:
            try:
                self._home.call_soon_threadsafe(self._wake_soon)
            except RuntimeError:
                logging.getLogger(__name__).debug("the loop of pool %s has ended", self.name)

    def _wake_soon(self) -> None:
        task = asyncio.get_running_loop().create_task(self.check())
        self._tasks_of_outages.add(task)
        task.add_done_callback(self._tasks_of_outages.discard)


def async_configuring(schema: str, settings: Mapping[str, str]) -> Callable[[AsyncConnection[Any]], Any]:
    """What sets up a connection of an event loop, as `configure` does; it leaves no transaction open."""
    statement = _statement(schema, settings)

    async def set_up(connection: AsyncConnection[Any]) -> None:
        if statement is not None:
            await connection.execute(statement, prepare=False)
            if not connection.autocommit:
                await connection.commit()

    return set_up


_GIVEN_UP = ("discarding", "query cancellation", "query not terminated")


class _SaidByOutage(logging.Filter):
    """Leaves out what psycopg and pools of this store say of each lost connection: the outage is said once."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno == logging.WARNING and str(record.msg).startswith(_GIVEN_UP):
            return False  # a connection that is lost; another takes its place
        if record.levelno != logging.WARNING or not isinstance(record.args, tuple) or not record.args:
            return True
        errors = [each for each in record.args if isinstance(each, BaseException)]
        if str(record.msg).startswith("error ignored"):  # on the way out of a pipeline or a connection
            return not errors or not all(map(is_lost, errors))
        is_ours = isinstance(record.args[0], str) and record.args[0].startswith(f"{_NAME} ")
        return not is_ours or not all(map(is_lost, errors))


for _logger in _LOGGERS:
    logging.getLogger(_logger).addFilter(_SaidByOutage())
