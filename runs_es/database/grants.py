"""What a role needs that serves and works without owning the tables: derived from the catalogue and the list below.

A table without an entry is refused, so nobody forgets one. Schemas, partitions of the log and functions need no entry:
partitions are reached through `events`, functions are everybody's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import Connection, sql

from runs_es.database.errors import SchemaMismatch
from runs_es.database.migrate import checkpoint_schema, queue_schema

_READ = ("select",)
_ADD = ("select", "insert")
_KEEP = ("select", "insert", "update")
_ALL = ("select", "insert", "update", "delete")

# Of the schema of the log. The log itself can be added to, and no stored event changed or deleted.
LOG: Mapping[str, Sequence[str]] = {
    "events": _ADD,
    "events_facts": _ADD,
    "heads": _KEEP,
    "history": ("select", "update"),
    "segments": _READ,
    "schema_versions": _READ,
    "tracking": _KEEP,
    "rebuilds": _READ,
    "webhooks": _ALL,
    "leases": _ALL,
    "checkpoint_undo": _ALL,
    "event_position": ("usage", "select", "update"),
}
READ_MODELS: Mapping[str, Sequence[str]] = dict.fromkeys(
    ("runs", "messages", "threads", "threads_v2", "usage", "crons"), _ALL
)
QUEUE: Mapping[str, Sequence[str]] = {
    "procrastinate_jobs": _ALL,
    "procrastinate_events": _ALL,
    "procrastinate_workers": _ALL,
    "procrastinate_periodic_defers": _ALL,
    "procrastinate_jobs_id_seq": ("usage", "select"),
    "procrastinate_events_id_seq": ("usage", "select"),
    "procrastinate_workers_id_seq": ("usage", "select"),
    "procrastinate_periodic_defers_id_seq": ("usage", "select"),
}
CHECKPOINTS: Mapping[str, Sequence[str]] = {
    "checkpoint_migrations": _READ,
    "checkpoints": _ALL,
    "checkpoint_blobs": _ALL,
    "checkpoint_writes": _ALL,
}

# Ordinary and partitioned tables, sequences and views; of partitions only that of the facts, which is read by name.
_RELATIONS = """
select n.nspname, c.relname, c.relkind from pg_class c join pg_namespace n on n.oid = c.relnamespace
 where n.nspname = any(%s) and c.relkind in ('r', 'p', 'S', 'v', 'm')
   and (not c.relispartition or c.relname = 'events_facts') and c.relname !~ '^events_p[0-9]+$'
 order by 1, 2
"""


_LACKING = """
select coalesce(string_agg(distinct upper(w.what) || ' on ' || n.nspname || coalesce('.' || c.relname, ''), ', '), '')
  from unnest(%(schema)s::text[], %(name)s::text[], %(what)s::text[]) w(schema, name, what)
  join pg_namespace n on n.nspname = w.schema
  left join pg_class c on c.relnamespace = n.oid and c.relname = w.name
 where case when w.name = '' then not has_schema_privilege(n.oid, w.what)
            when c.relkind = 'S' then not has_sequence_privilege(c.oid, w.what)
            when c.oid is not null then not has_table_privilege(c.oid, w.what) end
"""


@dataclass(frozen=True, slots=True)
class Grant:
    """Rights on one schema, table or sequence."""

    rights: tuple[str, ...]
    kind: str
    name: tuple[str, ...]

    def statement(self, role: str) -> sql.Composed:
        return sql.SQL("grant {} on {} {} to {}").format(
            sql.SQL(", ".join(self.rights)), sql.SQL(self.kind), sql.Identifier(*self.name), sql.Identifier(role)
        )


def declared_of(schema: str) -> dict[str, Mapping[str, Sequence[str]]]:
    """What is needed on each table and sequence of the store, by schema."""
    return {
        schema: {**LOG, **READ_MODELS},
        queue_schema(schema): QUEUE,
        checkpoint_schema(schema): CHECKPOINTS,
    }


def lacking(connection: Connection[Any], schema: str) -> str:
    """The rights that the connection's role lacks to serve and work, in words; of what there is. Empty: none."""
    wanted = [
        (of, name, right)
        for of, rights in declared_of(schema).items()
        for name, needed in {"": ("usage",), **rights}.items()
        for right in needed
    ]
    schemas, names, rights = (list(each) for each in zip(*wanted, strict=True))
    row = connection.execute(_LACKING, {"schema": schemas, "name": names, "what": rights}).fetchone()
    return str(row[0]) if row is not None else ""


def grants(
    connection: Connection[Any], schema: str, *, own_tables: Collection[str] = (), read_only: bool = False
) -> list[Grant]:
    """What a role needs to serve and work, or with `read_only` to read; `own_tables` are of read models of one's own.

    Raises SchemaMismatch for a table that nothing is known of, and where there are no tables.
    """
    declared = declared_of(schema)
    declared[schema] = {**declared[schema], **dict.fromkeys(own_tables, _ALL)}
    found = connection.execute(_RELATIONS, (list(declared),)).fetchall()
    if not any(name == schema for name, _, _ in found):
        raise SchemaMismatch(f"there is no schema {schema} with tables: run `runs-es migrate` as the owner first")
    unknown = [f"{of}.{name}" for of, name, _ in found if name not in declared[of]]
    if unknown:
        raise SchemaMismatch(
            f"no rights are declared for {', '.join(unknown)}: move what is not the store's to another schema, or name "
            "the read model's module in RUNS_ES_PROJECTIONS"
        )
    schemas = sorted({of for of, _, _ in found})
    wanted = [Grant(("usage",), "schema", (name,)) for name in schemas]
    for of, name, kind in found:
        rights = tuple(right for right in declared[of][name] if right == "select" or not read_only)
        wanted.append(Grant(rights, "sequence" if kind == "S" else "table", (of, name)))
    return wanted


def _refuse_owner(connection: Connection[Any], role: str, wanted: Sequence[Grant]) -> None:
    """Who owns the tables may do everything, and would lose it here."""
    owned = connection.execute(
        "select c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace"
        " where n.nspname = any(%s) and pg_get_userbyid(c.relowner) = %s limit 1",
        ([each.name[0] for each in wanted], role),
    ).fetchone()
    if owned is not None:
        raise ValueError(f"{role} owns the tables and may do everything: name another role")


def apply(connection: Connection[Any], role: str, wanted: Sequence[Grant]) -> None:
    """Give the role exactly these rights on what `wanted` names: others, given before, are taken from it. All or none.

    Raises ValueError for the owner, and psycopg's errors.
    """
    with connection.transaction():
        _refuse_owner(connection, role, wanted)
        for each in wanted:
            on = (sql.SQL(each.kind), sql.Identifier(*each.name), sql.Identifier(role))
            connection.execute(sql.SQL("revoke all on {} {} from {}").format(*on))
            connection.execute(each.statement(role))
