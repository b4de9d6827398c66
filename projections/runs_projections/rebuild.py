"""Make read models again from the log beside the live ones and swap them in; or make them beside and compare.

The new table is filled thread by thread: a thread's rows are folded in memory and copied in once, in whole. Then it is
taken over what has been committed since, and swapped in by a transaction that also says how far it has come. Until then
everybody reads the old one, and nobody notices but for the moment of the swap. The log is read in short statements and
one portion and one thread of it are held in memory; what is done is on record, so a rebuild that is killed goes on from
there when it is started again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from psycopg import Connection
from psycopg.errors import LockNotAvailable
from psycopg.rows import TupleRow

from runs_es.domain import StoreUnavailable
from runs_es.log.event_log import EventLog
from runs_projections import comparison, feed, filling, interventions, rebuilds, step, tables, tracking
from runs_projections.comparison import Difference as Difference
from runs_projections.filling import OnProgress as OnProgress
from runs_projections.filling import Progress
from runs_projections.filling import RebuildFailed as RebuildFailed
from runs_projections.interventions import Skips
from runs_projections.loading import PROJECTIONS, find
from runs_projections.projection import AnyProjection
from runs_projections.rebuilds import Rebuild

GRACE_SECONDS = 600.0
_BATCH = 4000
_BATCH_BYTES = 16 * 1024 * 1024
_NEARLY = 200  # facts that may be left for the transaction that swaps
_LOCK_TRIES = 200
_LOCK_MILLISECONDS = 250  # while the swap waits for a lock, readers wait behind it
_PAUSE = 0.05


@dataclass(frozen=True, slots=True)
class RebuildReport:
    """`facts` were read, all projections together, those of an earlier try that was killed included.

    `rows` by projection; `swaps` the seconds that its readers and its live driver had to wait at most. `differences`
    only of a verification, the first thousand of each projection.
    """

    facts: int
    seconds: float
    rows: dict[str, int] = field(default_factory=dict)
    swaps: dict[str, float] = field(default_factory=dict)
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
    grace: float = GRACE_SECONDS,
    restart: bool = False,
    source: str | None = None,
) -> RebuildReport:
    """Rebuild these read models (all, if not said), or with `verify` leave them and compare.

    `log` is an open log, or a URL that goes with `schema`. `on_progress` is told facts done and facts in all. `restart`
    throws away what a killed rebuild has done. `source` is the URL of a replica, to read all but the newest facts from.
    Replaced tables are dropped after `grace` seconds. Raises ValueError for an unknown name, UnknownTopic for a fact
    that this version cannot read, RebuildFailed for one that a projection cannot take, StoreUnavailable when another
    rebuild is under way.
    """
    names = list(dict.fromkeys(names if names is not None else [each.name for each in projections]))
    chosen = [find(projections, name) for name in names]
    url, schema = (log, schema) if isinstance(log, str) else (log.url, log.schema)
    begun = time.monotonic()
    with ExitStack() as stack:
        connection = stack.enter_context(tracking.connect(url, schema, "rebuild"))
        reading = stack.enter_context(tracking.connect(source or url, schema, "rebuild reader"))
        connection.execute("set maintenance_work_mem = '128MB'")
        tracking.ensure(connection, schema, chosen)
        rebuilds.drop_retired(connection, schema)
        progress = Progress(on_progress)
        rebuilding = _Rebuilding(connection, reading, schema, interventions.skips(connection, chosen), progress, batch)
        for projection in chosen:
            progress.expect(feed.count(connection, feed.last_position(connection), projection.topics))
        rows, swaps, differences = {}, {}, []
        for projection in chosen:
            with tracking.rebuild_lock(connection, schema, projection, shared=verify):
                if verify:
                    differences += rebuilding.verify(projection)
                else:
                    swaps[projection.name] = rebuilding.rebuild(projection, grace, restart=restart)
            rows[projection.name] = _rows_of(connection, projection)
        if not grace:
            rebuilds.drop_retired(connection, schema)
    progress.finish()
    return RebuildReport(progress.done, time.monotonic() - begun, rows, swaps, tuple(differences))


def _rows_of(connection: Connection[TupleRow], projection: AnyProjection) -> int:
    row = connection.execute(f"select count(*) from {projection.table.name}").fetchone()
    assert row is not None
    return int(row[0])


@dataclass(frozen=True)
class _Rebuilding:
    """One call of `rebuild`: what its steps share. `reading` may be a replica."""

    connection: Connection[TupleRow]
    reading: Connection[TupleRow]
    schema: str
    skips: Skips
    progress: Progress
    batch: int

    def rebuild(self, projection: AnyProjection, grace: float, *, restart: bool) -> float:
        """Seconds that the swap took."""
        new = tables.rebuilt(self.schema, projection)
        stand = None if restart else rebuilds.find(self.connection, projection)
        if stand is None or not tables.is_alike(self.connection, self.schema, projection.table, new.table):
            stand = self._begin(projection, new)
        self.progress.add(stand.facts)
        if not stand.is_filled:
            stand = self._fill(projection, new, stand)
        tables.make_indexes(self.connection, self.schema, projection.table, new.table)
        tracking.forget_plans(self.connection)
        return self._swap(projection, new, stand, grace)

    def _begin(self, projection: AnyProjection, new: AnyProjection) -> Rebuild:
        target = feed.last_position(self.reading)
        filling.check_same_log(self.connection, self.reading, target)
        tables.begin(self.connection, self.schema, projection.table, new.table)
        return rebuilds.begin(self.connection, projection, target)

    def _fill(self, projection: AnyProjection, new: AnyProjection, stand: Rebuild) -> Rebuild:
        facts = stand.facts
        for filled in self._filled(new, stand.thread_id, stand.target):
            facts += filled.facts
            with self.connection.transaction(), filling.taking(projection.name, stand.target):
                filled.write(self.connection, new.table)
                rebuilds.note_threads(self.connection, projection, filled.thread_id, facts)
            self.progress.add(filled.facts)
        rebuilds.note_filled(self.connection, projection)
        return replace(stand, phase="catching up", position=stand.target, facts=facts)

    def _filled(self, new: AnyProjection, thread_id: str, target: int) -> Iterator[filling.Filled]:
        skipped = self.skips.get(new.name, frozenset())
        return filling.threads(self.reading, new, thread_id, target, skipped, self.batch, _BATCH_BYTES)

    def _swap(self, projection: AnyProjection, new: AnyProjection, stand: Rebuild, grace: float) -> float:
        position, facts = stand.position, stand.facts
        tables.prepare_swap(self.connection, self.schema, projection.table, new.table)
        for _ in range(_LOCK_TRIES):
            position, facts = self._catch_up(projection, new, position, facts)
            try:
                return self._swap_now(projection, new, position, grace)
            except LockNotAvailable:  # a long read or a batch has the table: let the others through
                time.sleep(_PAUSE)
        raise StoreUnavailable(
            f"{projection.table.name} is read without a pause; call again, and only the swap is left"
        )

    def _swap_now(self, projection: AnyProjection, new: AnyProjection, position: int, grace: float) -> float:
        connection = self.connection
        begun = time.monotonic()
        with connection.transaction():
            connection.execute(f"set local lock_timeout = {_LOCK_MILLISECONDS}")
            # From here on the live driver waits, and then finds itself where this has come to.
            row = connection.execute(
                "select position from tracking where name = %s and version = %s for update",
                (projection.name, projection.version),
            ).fetchone()
            live = row[0] if row else 0
            while position < live:
                position = self._step(new, position, live) or live
            tables.swap(connection, self.schema, projection.table, new.table)
            connection.execute(
                "update tracking set position = %s, retries = retries + 1, failed_position = null,"
                " failed_reason = null, failed_at = null, built_at = coalesce(built_at, clock_timestamp())"
                " where name = %s and version = %s",
                (position, projection.name, projection.version),
            )
            rebuilds.note_done(connection, projection, grace)
        return time.monotonic() - begun

    def _catch_up(self, projection: AnyProjection, new: AnyProjection, position: int, facts: int) -> tuple[int, int]:
        """Take the new table to within a few facts of the end of the log."""
        while True:
            with self.connection.transaction():
                before = self.progress.done
                reached = self._step(new, position, feed.LAST_REVISION)
                if reached is None:
                    return position, facts
                position, taken = reached, self.progress.done - before
                facts += taken
                rebuilds.note_position(self.connection, projection, position, facts)
            if taken < _NEARLY:
                return position, facts

    def _step(self, new: AnyProjection, position: int, target: int) -> int | None:
        """One batch in the order of commits, no further than `target`; None when there is no more."""
        portion = feed.after(self.connection, position, self.batch, _BATCH_BYTES, new.topics)
        skipped = self.skips.get(new.name, frozenset())
        recordeds = [each for each in portion.recordeds if each.position <= target]
        if recordeds:
            with filling.taking(new.name, recordeds[-1].position):
                step.refill(self.connection, new, [each for each in recordeds if each.position not in skipped])
            self.progress.add(len(recordeds))
            return recordeds[-1].position
        if portion.size and portion.last <= target:
            return portion.last  # nothing in it that it wants
        if portion.unreadable is None or portion.unreadable.position > target:
            return None
        if portion.unreadable.position not in skipped:
            raise filling.not_read(new.name, portion.unreadable) from portion.unreadable.error
        return portion.unreadable.position

    def verify(self, projection: AnyProjection) -> list[Difference]:
        """Make it in a temporary table up to where the live one stands, and compare."""
        new = tables.temporary(projection)
        connection = self.connection
        tables.begin(connection, self.schema, projection.table, new.table)
        position = tracking.positions(connection, [projection])[projection.name]
        for filled in self._filled(new, "", position):
            with filling.taking(projection.name, position):
                filled.write(connection, new.table)
            self.progress.add(filled.facts)
        tables.make_indexes(connection, self.schema, projection.table, new.table)
        tracking.forget_plans(connection)
        # One snapshot for position, the rest of the log and the rows: what a live driver does meanwhile is not in it.
        with connection.transaction():
            connection.execute("set transaction isolation level repeatable read")
            live = tracking.positions(connection, [projection])[projection.name]
            while position < live:
                position = self._step(new, position, live) or live
            found = comparison.differences(connection, projection, new.table, f"{self.schema}.{projection.table.name}")
        connection.execute(f"drop table {new.table.name}")
        return found
