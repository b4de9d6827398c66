"""Tables of projections: made where `migrations/` does not make them, made again beside the live ones, and swapped.

A table under construction lies in the schema `<schema>_rebuild`, one that was replaced in `<schema>_retired`. So table
and indexes keep their names, and a swap is two changes of schema: who waits for its lock looks the name up again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from psycopg import Connection
from psycopg.rows import TupleRow

from runs_projections.projection import AnyProjection, AnyTable

_ON = re.compile(r" ON \S+ USING ")


def schema_of_rebuilds(schema: str) -> str:
    return f"{schema}_rebuild"


def schema_of_retired(schema: str) -> str:
    return f"{schema}_retired"


def ensure(connection: Connection[TupleRow], schema: str, projections: Iterable[AnyProjection]) -> None:
    """Make the tables of a user's projections where they are missing."""
    for table in (projection.table for projection in projections if not projection.table.migrated):
        if _exists(connection, f"{schema}.{table.name}"):
            continue
        with connection.transaction():
            # `if not exists` alone fails when two do it at once.
            connection.execute("select pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"runs-es tables {schema}",))
            for statement in definition(table):
                connection.execute(statement)


def definition(table: AnyTable) -> list[str]:
    """The statements that make the table and its indexes in the first schema of the search path."""
    columns = ", ".join(
        f"{column.name} {column.kind.name}{' not null' if column.name in table.key else ''}" for column in table.columns
    )
    unique = ", ".join(f"md5({name})" if name in table.hashed else name for name in table.key)
    return [
        f"create table if not exists {table.name} ({columns}) with (fillfactor = 80)",
        f"create unique index if not exists {table.name}_key on {table.name} ({unique})",
        *(
            f"create index if not exists {table.name}_{number} on {table.name} ({columns})"
            for number, columns in enumerate(table.indexes, 1)
        ),
    ]


def rebuilt(schema: str, projection: AnyProjection) -> AnyProjection:
    """The same projection over the table that a rebuild makes."""
    return _over(projection, f"{schema_of_rebuilds(schema)}.{projection.table.name}")


def temporary(projection: AnyProjection) -> AnyProjection:
    """The same projection over a table that goes with the session."""
    return _over(projection, f"pg_temp.{projection.table.name}")


def _over(projection: AnyProjection, name: str) -> AnyProjection:
    return replace(projection, table=replace(projection.table, name=name))


def is_alike(connection: Connection[TupleRow], schema: str, live: AnyTable, new: AnyTable) -> bool:
    """Whether the new table is there and has the columns of the live one, which a migration may have changed since."""
    of_live, of_new = (_columns(connection, name) for name in (f"{schema}.{live.name}", new.name))
    return of_live == of_new


def _columns(connection: Connection[TupleRow], name: str) -> list[TupleRow]:
    return connection.execute(
        "select attname, format_type(atttypid, atttypmod) from pg_attribute"
        " where attrelid = to_regclass(%s) and attnum > 0 and not attisdropped order by attname",
        (name,),
    ).fetchall()


def begin(connection: Connection[TupleRow], schema: str, live: AnyTable, new: AnyTable) -> None:
    """An empty table like the live one, but without indexes, in place of whatever an earlier rebuild left."""
    original = f"{schema}.{live.name}"
    if not new.name.startswith("pg_temp."):
        connection.execute(f"create schema if not exists {schema_of_rebuilds(schema)}")
    connection.execute(f"drop table if exists {new.name}")
    connection.execute(
        f"create table {new.name} (like {original} including defaults including constraints including storage)"
    )
    row = connection.execute("select reloptions from pg_class where oid = %s::regclass", (original,)).fetchone()
    if row is not None and row[0]:
        connection.execute(f"alter table {new.name} set ({', '.join(row[0])})")


def make_indexes(connection: Connection[TupleRow], schema: str, live: AnyTable, new: AnyTable) -> None:
    """Those of the live table that the new one lacks, under the same names; and what the planner has to know."""
    indexes = connection.execute(
        "select c.relname, pg_get_indexdef(i.indexrelid), i.indisprimary from pg_index i"
        " join pg_class c on c.oid = i.indexrelid where i.indrelid = %s::regclass order by c.relname",
        (f"{schema}.{live.name}",),
    ).fetchall()
    for name, statement, is_primary in indexes:
        if _exists(connection, f"{new.name.rpartition('.')[0]}.{name}"):
            continue
        with connection.transaction():
            connection.execute(_ON.sub(f" ON {new.name} USING ", statement, count=1))
            if is_primary:
                connection.execute(f"alter table {new.name} add constraint {name} primary key using index {name}")
    connection.execute(f"analyze {new.name}")


def prepare_swap(connection: Connection[TupleRow], schema: str, live: AnyTable, new: AnyTable) -> None:
    """What can be done before everybody has to wait: make room, and let others do to the new table what they may."""
    connection.execute(f"create schema if not exists {schema_of_retired(schema)}")
    drop_retired(connection, schema, live.name)
    grants = connection.execute(
        "select format('grant %%s on %%s to %%s', a.privilege_type, %s::text,"
        "   case a.grantee when 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end)"
        " from pg_class c, aclexplode(c.relacl) a where c.oid = %s::regclass and a.grantee <> c.relowner",
        (new.name, f"{schema}.{live.name}"),
    ).fetchall()
    for (grant,) in grants:
        connection.execute(grant)


def swap(connection: Connection[TupleRow], schema: str, live: AnyTable, new: AnyTable) -> None:
    """Put the new table in the live one's place; part of the caller's transaction."""
    connection.execute(f"alter table {schema}.{live.name} set schema {schema_of_retired(schema)}")
    connection.execute(f"alter table {new.name} set schema {schema}")


def drop_retired(connection: Connection[TupleRow], schema: str, name: str) -> None:
    connection.execute(f"drop table if exists {schema_of_retired(schema)}.{name}")


def _exists(connection: Connection[TupleRow], name: str) -> bool:
    return connection.execute("select to_regclass(%s) is not null", (name,)).fetchone() == (True,)
