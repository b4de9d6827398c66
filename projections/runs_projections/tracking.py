"""How far each projection has come, and the advisory locks around it.

Exactly once rests on one statement, `move`: in the transaction that writes the rows it takes the position from what
the writer believed to what it has folded; if it was not there, nothing is written. Two locks a projection save work:
`lead` is held by the process that follows the log for it, as long as its session lives; the `gate` is taken shared
by every batch and exclusively by a rebuild, which thereby has the tables to itself.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b

from psycopg import Connection, Cursor
from psycopg.errors import LockNotAvailable
from psycopg.rows import TupleRow
from psycopg.types.numeric import Int8

from runs_es.domain import StoreUnavailable
from runs_es.log import arrays, session
from runs_es.log.arrays import Bigints, Ints, Texts
from runs_projections.projection import AnyProjection

_GATE_SECONDS = 600.0

# Batches touch few rows by key of tables that may have been empty when the plan was made: always by index.
_SETTINGS = {
    "synchronous_commit": "off",  # rows and position are lost together, and made again from the log
    "lock_timeout": "10s",
    "idle_in_transaction_session_timeout": "30s",  # a stopped process must not hold its batch's locks for ever
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
    "plan_cache_mode": "force_generic_plan",
}

# `open` asks for the gate without waiting: whoever finds it shut does something else meanwhile.
_MOVE = """
with open as materialized (
  select p.name, p.version from unnest(%b::text[], %b::int[], %b::bigint[]) p(name, version, gate)
   where pg_try_advisory_xact_lock_shared(p.gate))
update tracking t set position = %b::bigint
  from open where t.name = open.name and t.version = open.version and t.position = %b::bigint
returning t.name
"""


def connect(url: str, schema: str, name: str) -> Connection[TupleRow]:
    """An autocommit session that writes read models."""
    connection = session.connect(url, schema, name, **_SETTINGS)
    arrays.register(connection)
    return connection


def forget_plans(connection: Connection[TupleRow]) -> None:
    """Plan again by the size that the tables have now; until they are analysed, nothing else would."""
    connection.execute("discard plans")


def ensure(connection: Connection[TupleRow], projections: Iterable[AnyProjection]) -> None:
    """Let each projection have a position: 0 where it has none."""
    for projection in projections:
        connection.execute(
            "insert into tracking (name, version, position) values (%s, %s, 0) on conflict do nothing",
            (projection.name, projection.version),
        )


def positions(connection: Connection[TupleRow], projections: Sequence[AnyProjection]) -> dict[str, int]:
    """The position of each projection, by name."""
    rows = connection.execute(
        "select t.name, t.position from tracking t join unnest(%s::text[], %s::int[]) p(name, version)"
        " using (name, version)",
        ([projection.name for projection in projections], [projection.version for projection in projections]),
    ).fetchall()
    return dict(rows)


def move(
    connection: Connection[TupleRow], schema: str, projections: Sequence[AnyProjection], old: int, new: int
) -> Cursor[TupleRow]:
    """Ask to move projections from `old` to `new`; the answer has a row for each that moved."""
    return connection.execute(
        _MOVE,
        (
            Texts([projection.name for projection in projections]),
            Ints([projection.version for projection in projections]),
            Bigints([_gate(schema, projection) for projection in projections]),
            Int8(new),
            Int8(old),
        ),
    )


def reset(connection: Connection[TupleRow], projections: Sequence[AnyProjection]) -> None:
    """Empty the tables and begin at the first fact again. Locks go in the order of a batch: position, then rows."""
    with connection.transaction():
        for projection in projections:
            connection.execute(
                "update tracking set position = 0 where name = %s and version = %s",
                (projection.name, projection.version),
            )
        connection.execute(f"truncate {', '.join(projection.table.name for projection in projections)}")


def try_lead(connection: Connection[TupleRow], schema: str, projection: AnyProjection) -> bool:
    """Become the one that follows the log for this projection, until the session ends or `stop_leading`."""
    row = connection.execute("select pg_try_advisory_lock(%s)", (_key("lead", schema, projection),)).fetchone()
    return row == (True,)


def stop_leading(connection: Connection[TupleRow], schema: str, projection: AnyProjection) -> None:
    connection.execute("select pg_advisory_unlock(%s)", (_key("lead", schema, projection),))


@contextmanager
def gate_held(
    connection: Connection[TupleRow], schema: str, projections: Sequence[AnyProjection], *, shared: bool = False
) -> Iterator[None]:
    """Hold the gates of these projections: alone, or shared to keep only rebuilds out. Raises StoreUnavailable."""
    suffix = "_shared" if shared else ""
    keys = sorted(_gate(schema, projection) for projection in projections)  # one order for all: no deadlock
    held: list[int] = []
    try:
        for key in keys:
            _wait_for_gate(connection, f"select pg_advisory_lock{suffix}(%s)", key)
            held.append(key)
        yield
    finally:
        for key in held if not connection.closed else ():  # a lost connection has lost its locks as well
            connection.execute(f"select pg_advisory_unlock{suffix}(%s)", (key,))


def _wait_for_gate(connection: Connection[TupleRow], statement: str, key: int) -> None:
    # In turns of `lock_timeout`: a waiting statement holds a snapshot, and a rebuild may take long.
    deadline = time.monotonic() + _GATE_SECONDS
    while True:
        try:
            connection.execute(statement, (key,))
        except LockNotAvailable:
            if time.monotonic() > deadline:
                raise StoreUnavailable("another rebuild or check of this read model goes on and on") from None
        else:
            return


def _gate(schema: str, projection: AnyProjection) -> int:
    return _key("gate", schema, projection)


def _key(purpose: str, schema: str, projection: AnyProjection) -> int:
    text = f"{purpose}\0{schema}\0{projection.name}\0{projection.version}"
    digest = blake2b(text.encode(), digest_size=8, person=b"runs-es:project")
    return int.from_bytes(digest.digest(), "big", signed=True)
