"""Rows of any projection in PostgreSQL: read by key, written in batches. One statement each, whatever their number."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, TypeVar

from psycopg import Connection, Cursor
from psycopg.rows import TupleRow

from runs_es.log.arrays import Bigints, Ints, Texts
from runs_projections.projection import AnyTable, Fold, Key, Scope, Table
from runs_projections.stored_text import storable

R = TypeVar("R")

_ARRAYS: Final[dict[str, Callable[[Iterable[Any]], list[Any]]]] = {"text": Texts, "bigint": Bigints, "int": Ints}
_SCANNED = 1000


def select_list(table: AnyTable, alias: str, instead: Mapping[str, str] | None = None) -> str:
    """The columns that make a row; JSON comes as text. `instead` has SQL for single columns."""
    given = instead or {}
    return ", ".join(
        given.get(column.name) or f"{alias}.{column.name}" + ("::text" if column.kind.name.startswith("json") else "")
        for column in table.stored
    )


def row_of(table: Table[R], values: Sequence[Any]) -> R:
    """The row of what `select_list` answered."""
    return table.row(
        *[
            value if value is None or column.kind.read is None else column.kind.read(value)
            for column, value in zip(table.stored, values, strict=True)
        ]
    )


def select(connection: Connection[TupleRow], table: AnyTable, keys: Sequence[Key]) -> Cursor[TupleRow]:
    """Ask for the rows of these keys; `loaded` reads the answer, so that a pipeline may ask for more before."""
    return connection.execute(_select_by_key(table), _key_columns(keys), binary=True)


def loaded(table: Table[R], cursor: Cursor[TupleRow]) -> dict[Key, R]:
    rows = (row_of(table, values) for values in cursor.fetchall())
    return {table.key_of(row): row for row in rows}


def write(connection: Connection[TupleRow], table: AnyTable, folded: Fold[Any]) -> None:
    """Write what a fold changed. Deletes come first: what was cleared may have come back since."""
    for length in sorted({len(scope) for scope in folded.cleared}):
        _delete(connection, table, [scope for scope in folded.cleared if len(scope) == length])
    if folded.deletes:
        _delete(connection, table, folded.deletes)
    if folded.upserts:
        connection.execute(_upsert(table), _values(table, folded.upserts))


def copy(connection: Connection[TupleRow], table: AnyTable, rows: Sequence[Any]) -> None:
    """Add rows to a table that has none of their keys: several times as fast as `write`."""
    names = ", ".join(column.name for column in table.columns)
    columns = _values(table, rows)
    with connection.cursor().copy(f"copy {table.name} ({names}) from stdin") as copying:
        for values in zip(*columns, strict=True):
            copying.write_row(values)


def _delete(connection: Connection[TupleRow], table: AnyTable, scopes: Sequence[Scope]) -> None:
    connection.execute(_delete_by(table, len(scopes[0])), _key_columns(scopes))


def scan(connection: Connection[TupleRow], table: Table[R]) -> Iterator[R]:
    """All rows, in order of the key, in short statements."""
    after: Sequence[str] = [""] * len(table.key)
    names = ", ".join(table.key)
    marks = ", ".join(["%s"] * len(table.key))
    query = (
        f"select {select_list(table, 't')} from {table.name} t where ({names}) > ({marks})"
        f" order by {names} limit {_SCANNED}"
    )
    while rows := [row_of(table, values) for values in connection.execute(query, after, binary=True).fetchall()]:
        yield from rows
        after = [storable(value) for value in table.key_of(rows[-1])]


def _key_columns(keys: Sequence[Key]) -> list[Texts]:
    return [Texts([storable(value) for value in column]) for column in zip(*keys, strict=True)]


def _values(table: AnyTable, rows: Sequence[Any]) -> list[list[Any]]:
    """A list of values a column."""
    columns: list[list[Any]] = []
    for column in table.columns:
        derive, change = column.derive, column.kind.write
        values = [getattr(row, column.name) for row in rows] if derive is None else [derive(row) for row in rows]
        if change is not None:
            values = [None if value is None else change(value) for value in values]
        columns.append(_ARRAYS[column.kind.sent](values))
    return columns


@lru_cache
def _select_by_key(table: AnyTable) -> str:
    names = ", ".join(table.key)
    arrays = ", ".join("%b::text[]" for _ in table.key)
    # Said of the hash too, so that the unique index fits better than any other, whatever the planner has seen.
    same = [f"t.{name} = k.{name}" for name in table.key] + [f"md5(t.{name}) = md5(k.{name})" for name in table.hashed]
    return (
        f"select {select_list(table, 't')} from {table.name} t join unnest({arrays}) k({names}) on {' and '.join(same)}"
    )


@lru_cache
def _delete_by(table: AnyTable, length: int) -> str:
    names = table.key[:length]
    arrays = ", ".join("%b::text[]" for _ in names)
    same = " and ".join(f"t.{name} = k.{name}" for name in names)
    return f"delete from {table.name} t using unnest({arrays}) k({', '.join(names)}) where {same}"


@lru_cache
def _upsert(table: AnyTable) -> str:
    names = ", ".join(column.name for column in table.columns)
    arrays = ", ".join(f"%b::{column.kind.sent}[]" for column in table.columns)
    values = ", ".join(
        f"r.{column.name}" + (f"::{column.kind.name}" if column.kind.name != column.kind.sent else "")
        for column in table.columns
    )
    unique = [f"md5({name})" if name in table.hashed else name for name in table.key]
    changes = ", ".join(f"{column.name} = excluded.{column.name}" for column in table.columns)
    return (
        f"insert into {table.name} ({names}) select {values} from unnest({arrays}) r({names})"
        f" on conflict ({', '.join(unique)}) do update set {changes}"
    )
