"""Database sessions of the log: how each kind of connection is set up."""

from __future__ import annotations

import hashlib

from psycopg import Connection
from psycopg.rows import TupleRow

from runs_es.database.sessions import KEEPALIVE, connect
from runs_es.log import arrays

__all__ = ["KEEPALIVE", "READER_SETTINGS", "append_lock_key", "connect", "connect_writer"]

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
READER_SETTINGS = {"statement_timeout": "60s", "lock_timeout": "8s", "jit": "off"}
_TRANSACTION_TIMEOUT_SINCE = 170000


def connect_writer(url: str, schema: str, lock_seconds: float) -> Connection[TupleRow]:
    """The pinned session that appends: generic plans, index access, bounded waits, durable commits."""
    settings = {**_WRITER_SETTINGS, "lock_timeout": f"{max(int(lock_seconds * 1000), 1)}ms"}
    connection = connect(url, schema, "writer", **settings)
    try:
        if connection.info.server_version >= _TRANSACTION_TIMEOUT_SINCE:
            connection.execute("set transaction_timeout = '10s'")
        arrays.register(connection)
        # What has to hold before this session appends anything is checked here, on every new connection.
    except BaseException:
        connection.close()
        raise
    return connection


def append_lock_key(schema: str) -> int:
    """The advisory lock that facts of one store take in turn, so that position order is commit order."""
    return int.from_bytes(hashlib.blake2b(f"runs-es append\0{schema}".encode(), digest_size=8).digest(), signed=True)
