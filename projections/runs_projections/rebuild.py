"""Throw read models away and make them again from the log; or make them again beside the live ones and compare.

Both read the log in short statements in the order of `position` and hold one portion of it in memory. A rebuild has the
gates of its projections to itself, so live drivers wait and go on from where it ends; should it be killed, they go on
from where it was. Until it ends, lists say that they are not current.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from psycopg import Connection
from psycopg.rows import TupleRow

from runs_es.log.event_log import EventLog
from runs_projections import feed, step, tracking
from runs_projections.live import PROJECTIONS
from runs_projections.projection import AnyProjection, AnyTable
from runs_projections.stored_text import original

OnProgress = Callable[[int, int], None]

_BATCH = 2000
_BATCH_BYTES = 32 * 1024 * 1024
_DIFFERENCES = 1000


@dataclass(frozen=True, slots=True)
class Difference:
    """Where a live row is not what the log says. `column` is empty for a row that is missing or too many."""

    name: str
    key: tuple[str, ...]
    column: str
    expected: Any
    found: Any


@dataclass(frozen=True, slots=True)
class RebuildReport:
    """`rows` by projection. `differences` only of a verification, the first thousand of each projection."""

    facts: int
    seconds: float
    rows: dict[str, int] = field(default_factory=dict)
    differences: tuple[Difference, ...] = ()


def rebuild(
    log: EventLog | str,
    names: Sequence[str] | None = None,
    on_progress: OnProgress | None = None,
    *,
    schema: str = "runs_es",
    verify: bool = False,
    projections: Sequence[AnyProjection] = PROJECTIONS,
    batch: int = _BATCH,
) -> RebuildReport:
    """Rebuild these read models (all, if not said), or with `verify` leave them and compare.

    `log` is an open log, or a URL that goes with `schema`. `on_progress` is told facts done and facts in all. Raises
    ValueError for an unknown name, UnknownTopic for a fact that this version cannot read.
    """
    chosen = _chosen(projections, names)
    url, schema = (log, schema) if isinstance(log, str) else (log.url, log.schema)
    begun = time.monotonic()
    with tracking.connect(url, schema, "rebuild") as connection:
        tracking.ensure(connection, chosen)
        progress = _Progress(on_progress, _count(connection))
        with tracking.gate_held(connection, schema, chosen, shared=verify):
            if verify:
                differences = _verify(connection, chosen, progress, batch)
            else:
                _refill(connection, schema, chosen, progress, batch)
                differences = ()
        rows = {projection.name: _rows_of(connection, projection.table) for projection in chosen}
    progress.finish()
    return RebuildReport(progress.done, time.monotonic() - begun, rows, differences)


def _chosen(projections: Sequence[AnyProjection], names: Sequence[str] | None) -> list[AnyProjection]:
    known = {projection.name: projection for projection in projections}
    unknown = sorted(set(names or ()) - known.keys())
    if unknown:
        raise ValueError(f"no such projection: {', '.join(unknown)}; there are {', '.join(known)}")
    return [known[name] for name in (dict.fromkeys(names) if names is not None else known)]


class _Progress:
    def __init__(self, tell: OnProgress | None, total: int) -> None:
        self.done = 0
        self._tell, self._total = tell, total

    def add(self, facts: int) -> None:
        self.done += facts
        self._total = max(self._total, self.done)  # the log grows meanwhile
        if self._tell is not None:
            self._tell(self.done, self._total)

    def finish(self) -> None:
        self._total = self.done
        self.add(0)


def _refill(
    connection: Connection[TupleRow], schema: str, chosen: list[AnyProjection], progress: _Progress, batch: int
) -> None:
    """Empty the tables, then take the steps that the live driver takes, only larger ones."""
    target = _last_position(connection)
    tracking.reset(connection, chosen)
    position = 0
    while True:
        portion = feed.after(connection, position, batch, _BATCH_BYTES)
        if portion.recordeds:
            if not step.advance(connection, schema, chosen, position, portion.recordeds):
                raise RuntimeError("somebody moved a projection while a rebuild held its gate")
            position = portion.recordeds[-1].position
            progress.add(len(portion.recordeds))
            tracking.forget_plans(connection)
        if portion.unreadable is not None:
            raise portion.unreadable.error
        # What is written while we work is the live driver's to do, or nobody would ever be ready.
        if not portion.recordeds or (position >= target and len(portion.recordeds) < batch):
            break
    for projection in chosen:
        connection.execute(f"analyze {projection.table.name}")


def _verify(
    connection: Connection[TupleRow], chosen: list[AnyProjection], progress: _Progress, batch: int
) -> tuple[Difference, ...]:
    """Fold the log into temporary tables up to where the live ones stand, and compare."""
    sides = [_beside(connection, projection) for projection in chosen]
    common = min(tracking.positions(connection, chosen).values())
    _catch_up(connection, sides, 0, common, progress, batch)
    # One snapshot for positions, the rest of the log and the rows: what a live driver does meanwhile is not in it.
    with connection.transaction():
        connection.execute("set transaction isolation level repeatable read")
        stand = tracking.positions(connection, chosen)
        for projection, side in zip(chosen, sides, strict=True):
            _catch_up(connection, [side], common, stand[projection.name], None, batch)
        for setting in ("enable_seqscan", "enable_hashjoin", "enable_mergejoin"):
            connection.execute(f"set local {setting} = on")
        return tuple(
            difference
            for projection, side in zip(chosen, sides, strict=True)
            for difference in _differences(connection, projection, side.table)
        )


def _beside(connection: Connection[TupleRow], projection: AnyProjection) -> AnyProjection:
    """The same projection over an empty temporary table."""
    table = projection.table
    name = f"{table.name}_expected"
    connection.execute(
        f"create temp table {name} (like {table.name} including defaults including constraints including indexes)"
    )
    return replace(projection, table=replace(table, name=f"pg_temp.{name}"))


def _catch_up(
    connection: Connection[TupleRow],
    sides: Sequence[AnyProjection],
    position: int,
    target: int,
    progress: _Progress | None,
    batch: int,
) -> None:
    """Take side tables from `position` to `target`."""
    while position < target:
        portion = feed.after(connection, position, batch, _BATCH_BYTES)
        recordeds = [recorded for recorded in portion.recordeds if recorded.position <= target]
        if not recordeds:
            if portion.unreadable is not None:
                raise portion.unreadable.error
            return  # the last facts up to here were erased
        for side in sides:
            step.refill(connection, side, recordeds)
        tracking.forget_plans(connection)
        position = recordeds[-1].position
        if progress is not None:
            progress.add(len(recordeds))


def _differences(connection: Connection[TupleRow], projection: AnyProjection, expected: AnyTable) -> list[Difference]:
    """Every column of every row, as text: `json` has no equality, and what is compared is what is stored."""
    names = [column.name for column in expected.columns]
    pairs = ", ".join(f"e.{name}::text, f.{name}::text" for name in names)
    left, right = (", ".join(f"{alias}.{name}::text" for name in names) for alias in "ef")
    key = ", ".join(expected.key)
    rows = connection.execute(
        f"select {key}, {pairs} from {expected.name} e full join {projection.table.name} f using ({key})"
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


def _count(connection: Connection[TupleRow]) -> int:
    return _number(connection, "select count(*) from events_facts")


def _last_position(connection: Connection[TupleRow]) -> int:
    return _number(connection, "select coalesce(max(position), 0) from events_facts")


def _rows_of(connection: Connection[TupleRow], table: AnyTable) -> int:
    return _number(connection, f"select count(*) from {table.name}")


def _number(connection: Connection[TupleRow], query: str) -> int:
    row = connection.execute(query).fetchone()
    assert row is not None
    return int(row[0])
