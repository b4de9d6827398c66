"""One step of a projection: rows and position in one transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from psycopg import Connection, Cursor
from psycopg.rows import TupleRow

from runs_es.domain import Recorded
from runs_projections import store, tracking
from runs_projections.interventions import NO_SKIPS, Skips
from runs_projections.projection import AnyProjection, Fold


def advance(
    connection: Connection[TupleRow],
    projections: Sequence[AnyProjection],
    old: int,
    recordeds: Sequence[Recorded],
    *,
    to: int | None = None,
    skips: Skips = NO_SKIPS,
    meanwhile: Callable[[], None] = lambda: None,
) -> bool:
    """Take projections that stand at `old` over these facts, to the last one's position or to `to`.

    `meanwhile` is called while the database writes the rows.
    False, and nothing is changed, when one of them stands elsewhere: somebody else did it.
    """
    new = recordeds[-1].position if to is None else to
    seen = [(projection, _not_skipped(projection, recordeds, skips)) for projection in projections]
    with _contained(), suppress(_Elsewhere), connection.pipeline(), connection.transaction():
        # The position first: its row lock is what makes a second writer wait, and then find that it is too late.
        moved = tracking.move(connection, projections, old, new)
        asked = [(projection, facts, _ask(connection, projection, facts)) for projection, facts in seen]
        if len(moved.fetchall()) != len(projections):
            raise _Elsewhere
        for projection, facts, cursor in asked:
            _fold_and_write(connection, projection, cursor, facts)
        meanwhile()
        return True
    return False


def _not_skipped(projection: AnyProjection, recordeds: Sequence[Recorded], skips: Skips) -> Sequence[Recorded]:
    skipped = skips.get(projection.name)
    return [each for each in recordeds if each.position not in skipped] if skipped else recordeds


class ReadModelExited(Exception):
    """The code of a read model raised what is no `Exception`, such as SystemExit: only that read model stops."""


@contextmanager
def _contained() -> Iterator[None]:
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        raise ReadModelExited(f"it called for the end of its process: {type(error).__name__}: {error}") from error


class _Elsewhere(Exception):
    """A projection is not where it was thought to be; rolls the batch back."""


def refill(connection: Connection[TupleRow], projection: AnyProjection, recordeds: Sequence[Recorded]) -> None:
    """Take one projection over these facts, in a table that nobody else knows of; part of the caller's transaction."""
    with _contained():
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
