"""Versions of projections that no process has any more: their position goes, and what their table holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from psycopg import Connection, sql
from psycopg.rows import TupleRow

from runs_projections import tracking
from runs_projections.loading import PROJECTIONS
from runs_projections.projection import AnyProjection


class NotLeftBehind(Exception):
    """The version is not there, or is one that this code reads."""


@dataclass(frozen=True, slots=True)
class Remains:
    """What is left of a version. `table` is None when it is not to be told which it was; `size` is in bytes."""

    name: str
    version: int
    table: str | None
    size: int


def remains(
    connection: Connection[TupleRow], schema: str, projections: Sequence[AnyProjection], name: str, version: int
) -> Remains:
    """Look at what `drop` would take away. Raises NotLeftBehind."""
    if name in tracking.RESERVED or (name, version) in {(each.name, each.version) for each in projections}:
        raise NotLeftBehind(f"version {version} of {name} is in use by this release")
    found = connection.execute("select 1 from tracking where name = %s and version = %s", (name, version)).fetchone()
    if found is None:
        raise NotLeftBehind(f"there is no version {version} of a read model {name}; see `runs-es projections list`")
    in_use = {each.table.name for each in projections}
    # The first version of a built-in read model has a table without a number.
    for table in (f"{name}_v{version}", *((name,) if version == 1 else ())):
        row = connection.execute(
            "select pg_total_relation_size(c.oid) from pg_class c join pg_namespace n on n.oid = c.relnamespace"
            " where n.nspname = %s and c.relname = %s and c.relkind = 'r'",
            (schema, table),
        ).fetchone()
        if row is not None and table not in in_use:
            return Remains(name, version, table, int(row[0]))
    return Remains(name, version, None, 0)


def drop(connection: Connection[TupleRow], schema: str, found: Remains) -> None:
    """Take it away. A table of `migrations/` is emptied and stays, for what later migrations do to it.

    A process of the older release that starts later fills it again from the beginning. Raises StoreUnavailable while
    a process follows the log for this version.
    """
    with tracking.unled(connection, schema, found.name, found.version), connection.transaction():
        for table in ("tracking", "rebuilds"):
            connection.execute(
                sql.SQL("delete from {} where name = %s and version = %s").format(sql.Identifier(table)),
                (found.name, found.version),
            )
        if found.table is not None:
            is_migrated = found.name in {each.name for each in PROJECTIONS}
            statement = sql.SQL("truncate {}" if is_migrated else "drop table {}")
            connection.execute(statement.format(sql.Identifier(schema, found.table)))
