"""Where a live read model is not what the log says, by row and column."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import Connection
from psycopg.rows import TupleRow

from runs_projections.projection import AnyProjection, AnyTable
from runs_projections.stored_text import original

_DIFFERENCES = 1000


@dataclass(frozen=True, slots=True)
class Difference:
    """Where a live row is not what the log says. `column` is empty for a row that is missing or too many."""

    name: str
    key: tuple[str, ...]
    column: str
    expected: Any
    found: Any


def differences(
    connection: Connection[TupleRow], projection: AnyProjection, expected: AnyTable, found: str
) -> list[Difference]:
    """Every column of every row, as text: `json` has no equality, and what is compared is what is stored.

    Part of the caller's transaction, whose planner settings it changes.
    """
    for setting in ("enable_seqscan", "enable_hashjoin", "enable_mergejoin"):
        connection.execute(f"set local {setting} = on")
    names = [column.name for column in expected.columns]
    pairs = ", ".join(f"e.{name}::text, f.{name}::text" for name in names)
    left, right = (", ".join(f"{alias}.{name}::text" for name in names) for alias in "ef")
    key = ", ".join(expected.key)
    rows = connection.execute(
        f"select {key}, {pairs} from {expected.name} e full join {found} f using ({key})"
        f" where ({left}) is distinct from ({right})"
        f" order by {', '.join(str(place + 1) for place in range(len(expected.key)))} limit {_DIFFERENCES}"
    ).fetchall()
    return [
        difference
        for row in rows
        for difference in _of_row(projection.name, names, row[: len(expected.key)], row[len(expected.key) :])
    ]


def _of_row(
    name: str, columns: Sequence[str], key: Sequence[str], values: Sequence[str | None]
) -> Iterator[Difference]:
    where = tuple(original(part) for part in key)
    expected, found = values[::2], values[1::2]
    if expected[0] is None or found[0] is None:  # thread_id: there is no row on that side
        yield Difference(name, where, "", expected[0] and "a row", found[0] and "a row")
        return
    for column, ours, theirs in zip(columns, expected, found, strict=True):
        if ours != theirs:
            yield Difference(name, where, column, ours, theirs)
