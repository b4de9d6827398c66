"""One step of a projection: rows and position in one transaction. Live and rebuild take the same."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from psycopg import Connection, Cursor
from psycopg.rows import TupleRow

from runs_es.domain import Recorded
from runs_projections import store, tracking
from runs_projections.projection import AnyProjection, Fold


def advance(
    connection: Connection[TupleRow],
    schema: str,
    projections: Sequence[AnyProjection],
    old: int,
    recordeds: Sequence[Recorded],
) -> bool:
    """Take projections that stand at `old` over these facts.

    False, and nothing is changed, when one of them stands elsewhere (somebody else did it) or a rebuild has its gate.
    """
    with suppress(_Elsewhere), connection.pipeline(), connection.transaction():
        # The position first: its row lock is what makes a second writer wait, and then find that it is too late.
        moved = tracking.move(connection, schema, projections, old, recordeds[-1].position)
        asked = [(projection, _ask(connection, projection, recordeds)) for projection in projections]
        if len(moved.fetchall()) != len(projections):
            raise _Elsewhere
        for projection, cursor in asked:
            _fold_and_write(connection, projection, cursor, recordeds)
        return True
    return False


class _Elsewhere(Exception):
    """A projection is not where it was thought to be; rolls the batch back."""


def refill(connection: Connection[TupleRow], projection: AnyProjection, recordeds: Sequence[Recorded]) -> None:
    """Take one projection over these facts, in a table that nobody else knows of."""
    with connection.transaction():
        _fold_and_write(connection, projection, _ask(connection, projection, recordeds), recordeds)


def _ask(
    connection: Connection[TupleRow], projection: AnyProjection, recordeds: Sequence[Recorded]
) -> Cursor[TupleRow] | None:
    keys = projection.keys(recordeds)
    return store.select(connection, projection.table, keys) if keys else None


def _fold_and_write(
    connection: Connection[TupleRow],
    projection: AnyProjection,
    cursor: Cursor[TupleRow] | None,
    recordeds: Sequence[Recorded],
) -> None:
    folded: Fold[Any] = Fold(projection, store.loaded(projection.table, cursor) if cursor else None)
    for recorded in recordeds:
        folded.apply(recorded)
    store.write(connection, projection.table, folded)
