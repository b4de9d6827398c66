"""Database sessions of the log: how each kind of connection is set up."""

from __future__ import annotations

import hashlib
from typing import Any

import psycopg
from psycopg import Connection, sql
from psycopg.rows import TupleRow

from runs_es.log import arrays

# The append's plan is right for every batch size when it goes by index; a planner that has seen an empty or a huge
# table thinks otherwise, so the choice is taken from it.
_WRITER_SETTINGS = {
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_bitmapscan": "off",
    "jit": "off",
    "plan_cache_mode": "force_generic_plan",
    "default_transaction_isolation": "read committed",
    "statement_timeout": "0",
    "synchronous_commit": "on",
}
# A server that vanished without a word (power, network) is noticed within seconds, not after the kernel's 15 minutes.
KEEPALIVE: dict[str, Any] = {
    "connect_timeout": 10,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,  # milliseconds
}
_TRANSACTION_TIMEOUT_SINCE = 170000


def connect(url: str, schema: str, name: str, **settings: str) -> Connection[TupleRow]:
    """An autocommit connection whose search_path is `schema`. `name` shows in pg_stat_activity."""
    connection = psycopg.connect(url, autocommit=True, application_name=f"runs-es {name}", **KEEPALIVE)
    _configure(connection, schema, settings)
    return connection


def connect_writer(url: str, schema: str, lock_seconds: float) -> Connection[TupleRow]:
    """The pinned session that appends: generic plans, index access, bounded waits, durable commits."""
    settings = {**_WRITER_SETTINGS, "lock_timeout": f"{max(int(lock_seconds * 1000), 1)}ms"}
    connection = connect(url, schema, "writer", **settings)
    if connection.info.server_version >= _TRANSACTION_TIMEOUT_SINCE:
        connection.execute("set transaction_timeout = '10s'")
    arrays.register(connection)
    return connection


def configure_reader(connection: Connection[Any], schema: str) -> None:
    """Set up a pooled connection that reads."""
    connection.autocommit = True
    _configure(connection, schema, {"statement_timeout": "60s", "lock_timeout": "8s", "jit": "off"})


def _configure(connection: Connection[Any], schema: str, settings: dict[str, str]) -> None:
    connection.execute(sql.SQL("set search_path to {}").format(sql.Identifier(schema)))
    for name, value in settings.items():
        connection.execute(sql.SQL("set {} to {}").format(sql.Identifier(name), sql.Literal(value)))


def append_lock_key(schema: str) -> int:
    """The advisory lock that facts of one store take in turn, so that position order is commit order."""
    return int.from_bytes(hashlib.blake2b(f"runs-es append\0{schema}".encode(), digest_size=8).digest(), signed=True)
