"""How far each projection has come, why it stopped if it did, and the advisory locks around it.

Exactly once rests on one statement, `move`: in the transaction that writes the rows it takes the position from what
the writer believed to what it has folded; if it was not there, nothing is written. Two locks a projection save work:
`lead` is held by the process that follows the log for it, as long as its session lives; `rebuild` by whoever makes its
table again, or, shared, compares it with the log.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b

from psycopg import Connection, Cursor
from psycopg.rows import TupleRow
from psycopg.types.numeric import Int8

from runs_es.domain import StoreUnavailable
from runs_es.log import arrays, session
from runs_es.log.arrays import Ints, Texts
from runs_projections import tables
from runs_projections.projection import AnyProjection
from runs_projections.stored_text import storable

# Not of projections: what follows the log for itself and keeps its place in the same table, by name.
RESERVED = frozenset({"checkpoints", "webhooks"})
_REASON_LENGTH = 2000
_SHORT = 10_000  # facts that a live driver catches up with in a moment: nobody has to know
_NEARLY = 1000

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

_MOVE = """
update tracking t
   set position = %b::bigint, failed_position = null, failed_reason = null, failed_at = null
  from unnest(%b::text[], %b::int[]) p(name, version)
 where t.name = p.name and t.version = p.version and t.position = %b::bigint
returning t.name
"""


@dataclass(frozen=True, slots=True)
class Stand:
    """Where a projection stands.

    `retries` counts the times that an operator wanted it to go on; `is_built` once it has been at the end of the log.
    """

    position: int
    retries: int
    is_built: bool


def connect(url: str, schema: str, name: str) -> Connection[TupleRow]:
    """An autocommit session that writes read models."""
    connection = session.connect(url, schema, name, **_SETTINGS)
    arrays.register(connection)
    return connection


def forget_plans(connection: Connection[TupleRow]) -> None:
    """Plan again by the size that the tables have now; until they are analysed, nothing else would."""
    connection.execute("discard plans")


def ensure(connection: Connection[TupleRow], schema: str, projections: Iterable[AnyProjection]) -> None:
    """Let each projection have a table and a position: 0 where it has none."""
    projections = list(projections)
    tables.ensure(connection, schema, projections)
    enter(connection, projections)


def enter(connection: Connection[TupleRow], projections: Iterable[AnyProjection]) -> None:
    """Let each projection have a position, whether or not it has a table."""
    for projection in projections:
        connection.execute(
            "insert into tracking (name, version, position, built_at)"
            " select %s, %s, 0, case when coalesce(max(position), 0) < %s then clock_timestamp() end"
            "   from events_facts on conflict do nothing",
            (projection.name, projection.version, _SHORT),
        )


def stands(connection: Connection[TupleRow], projections: Sequence[AnyProjection]) -> dict[str, Stand]:
    """Where each projection stands, by name."""
    rows = connection.execute(
        "select t.name, t.position, t.retries, t.built_at is not null from tracking t"
        " join unnest(%s::text[], %s::int[]) p(name, version) using (name, version)",
        ([projection.name for projection in projections], [projection.version for projection in projections]),
    ).fetchall()
    return {name: Stand(*values) for name, *values in rows}


def positions(connection: Connection[TupleRow], projections: Sequence[AnyProjection]) -> dict[str, int]:
    """The position of each projection, by name."""
    return {name: stand.position for name, stand in stands(connection, projections).items()}


def move(
    connection: Connection[TupleRow], projections: Sequence[AnyProjection], old: int, new: int
) -> Cursor[TupleRow]:
    """Ask to move projections from `old` to `new`; the answer has a row for each that moved."""
    return connection.execute(
        _MOVE,
        (
            Int8(new),
            Texts([projection.name for projection in projections]),
            Ints([projection.version for projection in projections]),
            Int8(old),
        ),
    )


def note_failure(connection: Connection[TupleRow], projection: AnyProjection, position: int, reason: str) -> None:
    """Let everybody see that it stopped before `position`, unless somebody has got past."""
    connection.execute(
        "update tracking set failed_position = %s, failed_reason = %s, failed_at = clock_timestamp()"
        " where name = %s and version = %s and position < %s",
        (position, storable(reason)[:_REASON_LENGTH], projection.name, projection.version, position),
    )


def note_built(connection: Connection[TupleRow], projections: Sequence[AnyProjection]) -> None:
    """Let lists be read of those that have come near the end of the log for the first time."""
    connection.execute(
        "update tracking t set built_at = clock_timestamp() from unnest(%s::text[], %s::int[]) p(name, version)"
        " where t.name = p.name and t.version = p.version and t.built_at is null"
        "   and t.position >= (select coalesce(max(position), 0) from events_facts) - %s",
        ([projection.name for projection in projections], [projection.version for projection in projections], _NEARLY),
    )


def ask_again(connection: Connection[TupleRow], projection: AnyProjection) -> None:
    """Let every process try again where it had stopped."""
    connection.execute(
        "update tracking set retries = retries + 1 where name = %s and version = %s",
        (projection.name, projection.version),
    )


def try_lead(connection: Connection[TupleRow], schema: str, projection: AnyProjection) -> bool:
    """Become the one that follows the log for this projection, until the session ends or `stop_leading`."""
    row = connection.execute("select pg_try_advisory_lock(%s)", (_key("lead", schema, projection),)).fetchone()
    return row == (True,)


def stop_leading(connection: Connection[TupleRow], schema: str, projection: AnyProjection) -> None:
    connection.execute("select pg_advisory_unlock(%s)", (_key("lead", schema, projection),))


@contextmanager
def rebuild_lock(
    connection: Connection[TupleRow], schema: str, projection: AnyProjection, *, shared: bool = False
) -> Iterator[None]:
    """Keep other rebuilds out; `shared` lets in those that only look. Raises StoreUnavailable if there is one."""
    suffix = "_shared" if shared else ""
    key = _key("rebuild", schema, projection)
    if connection.execute(f"select pg_try_advisory_lock{suffix}(%s)", (key,)).fetchone() != (True,):
        raise StoreUnavailable(f"{projection.name} is being rebuilt or verified by another process; wait for that one")
    try:
        yield
    finally:
        if not connection.closed:  # a lost connection has lost its locks as well
            connection.execute(f"select pg_advisory_unlock{suffix}(%s)", (key,))


@contextmanager
def unled(connection: Connection[TupleRow], schema: str, name: str, version: int) -> Iterator[None]:
    """Keep every process from following for this version. Raises StoreUnavailable while one does."""
    key = _key_of("lead", schema, name, version)
    if connection.execute("select pg_try_advisory_lock(%s)", (key,)).fetchone() != (True,):
        raise StoreUnavailable(f"a process still follows the log for version {version} of {name}: stop it first")
    try:
        yield
    finally:
        if not connection.closed:
            connection.execute("select pg_advisory_unlock(%s)", (key,))


def lead_key(schema: str, projection: AnyProjection) -> int:
    """The advisory lock that the leader holds."""
    return _key("lead", schema, projection)


def _key(purpose: str, schema: str, projection: AnyProjection) -> int:
    return _key_of(purpose, schema, projection.name, projection.version)


def _key_of(purpose: str, schema: str, name: str, version: int) -> int:
    text = f"{purpose}\0{schema}\0{name}\0{version}"
    digest = blake2b(text.encode(), digest_size=8, person=b"runs-es:project")
    return int.from_bytes(digest.digest(), "big", signed=True)
