"""The live driver: one thread a process that keeps the read models at the end of the log.

Several processes may run it: each projection is led by one of them, the others look every second whether its session
has ended. Leading only saves work; that nothing is applied twice or left out is the position's doing (tracking.py).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import psycopg
from psycopg import Connection
from psycopg.rows import TupleRow

from runs_es.database.reporting import report
from runs_es.domain import Recorded
from runs_es.log.append import Append, Appended
from runs_es.log.event_log import EventLog
from runs_projections import feed, interventions, rebuilds, step, tables, tracking
from runs_projections.ahead import ReadAhead
from runs_projections.interventions import NO_SKIPS, Skips
from runs_projections.loading import PROJECTIONS
from runs_projections.projection import AnyProjection

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0  # without any news: is there a projection to lead, or has a hint been lost?
_FROZEN_SECONDS = 10  # a session that does not even look for so long is ended: what it leads, another does
_HINT_SECONDS = 0.01  # hints come for pages too, many a second; they may wait so long for each other
_SWEEP_SECONDS = 30.0  # is there a table that a rebuild replaced and whose time has come?
_GROWTH = 8  # how many times larger batches grow while there is much to catch up with
_FIRST_POLL, _LAST_POLL = 0.005, 0.05  # seconds, while somebody waits for what another process leads
_COLLECT_SECONDS = 0.025  # between two rounds while facts keep coming, unless somebody waits for them
_FAILED_WAIT = 0.1  # what failed here may go on elsewhere, but hardly soon


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a projection stands still in this process, and at which fact."""

    position: int
    reason: str


class LiveProjector:
    """Follows `log` from `start` to `close`. A projection that fails stops alone: see `failures`."""

    def __init__(
        self,
        log: EventLog,
        projections: Sequence[AnyProjection] = PROJECTIONS,
        *,
        batch: int = 500,
        batch_bytes: int = 16 * 1024 * 1024,
    ) -> None:
        self.failures: dict[str, Failure] = {}
        self.applied = dict.fromkeys((projection.name for projection in projections), 0)  # facts, by this process
        self._retries: dict[str, int] = {}
        self._skips: Skips = NO_SKIPS
        self._swept = 0.0
        self._log, self._schema = log, log.schema
        self._projections = tuple(projections)
        self._batch, self._batch_bytes = batch, batch_bytes
        self._portion = batch
        self._ahead = ReadAhead(log.url, log.schema)
        self._positions: dict[str, int] = {}
        self._led: dict[str, AnyProjection] = {}
        self._looked = self._read_at = 0.0
        self._wake = threading.Condition()
        self._urgent = self._hinted = self._closing = False
        self._reached = threading.Condition()
        self._waiting = 0
        self._poll = _FIRST_POLL
        self._thread: threading.Thread | None = None

    def start(self) -> LiveProjector:
        """Begin to follow. Entering as a context manager does it too."""
        self._log.watch(on_commit=self._committed, on_hints=self._heard, on_poll=self._heard)
        self._thread = threading.Thread(target=self._run, name="runs-es projector", daemon=True)
        self._thread.start()
        return self

    def close(self) -> None:
        """Finish the batch under way and let another process lead."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        with self._reached:
            self._reached.notify_all()
        if self._thread is not None:
            self._thread.join(30)

    def __enter__(self) -> LiveProjector:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def leads(self) -> frozenset[str]:
        """The projections that this process leads."""
        return frozenset(self._led)

    def wait_for(self, position: int, timeout: float, names: Iterable[str] | None = None) -> bool:
        """Block until these projections (all, if not said) have reached `position`; False after `timeout` seconds.

        Whichever process leads them. One that failed here is waited for only briefly.
        """
        wanted = tuple(names) if names is not None else tuple(each.name for each in self._projections)
        if self._has_reached(position, wanted):
            return True
        deadline = time.monotonic() + timeout
        with self._reached:
            self._waiting += 1
            self._poll = _FIRST_POLL
        try:
            self._rouse()
            with self._reached:
                self._reached.wait_for(lambda: self._has_failed(wanted) or self._is_over(position, wanted), timeout)
                left = min(deadline - time.monotonic(), _FAILED_WAIT)
                self._reached.wait_for(lambda: self._is_over(position, wanted), max(left, 0))
        finally:
            with self._reached:
                self._waiting -= 1
        return self._has_reached(position, wanted)

    def _is_over(self, position: int, names: Sequence[str]) -> bool:
        return self._closing or self._has_reached(position, names)

    def _has_failed(self, names: Sequence[str]) -> bool:
        return not self.failures.keys().isdisjoint(names)

    def _has_reached(self, position: int, names: Iterable[str]) -> bool:
        return all(self._positions.get(name, -1) >= position for name in names)

    # --- called by the log, in its threads ---

    def _committed(self, committed: Sequence[tuple[Append, Appended]]) -> None:
        if any(appended.position is not None for _, appended in committed):
            self._rouse()

    def _heard(self, _: Mapping[str, int] | None = None) -> None:
        with self._wake:
            self._hinted = True
            self._wake.notify()

    def _rouse(self) -> None:
        with self._wake:
            self._urgent = True
            self._wake.notify()

    # --- the projector's thread ---

    def _run(self) -> None:
        while not self._closing:
            try:
                with tracking.connect(self._log.url, self._schema, "projector") as connection:
                    connection.execute(f"set idle_session_timeout = '{_FROZEN_SECONDS}s'")
                    self._enter(connection)
                    self._skips = interventions.skips(connection, self._projections)
                    self._follow(connection)
            except Exception as error:  # noqa: BLE001  (reported)
                report(logger, error, "the projector failed; it begins again")
            self._ahead.close()
            # The session is gone, and with it what this process led.
            self._led.clear()
            self._looked = 0.0
            with self._wake:
                self._wake.wait_for(lambda: self._closing, _LOOK_SECONDS)

    def _enter(self, connection: Connection[TupleRow]) -> None:
        """Positions for all, and tables; a projection whose table cannot be made stops alone."""
        tracking.enter(connection, self._projections)
        for projection in self._projections:
            try:
                tables.ensure(connection, self._schema, [projection])
            except psycopg.Error as error:
                if _is_of_the_connection(error):
                    raise
                position = tracking.positions(connection, [projection])[projection.name]
                self._fail(connection, projection, position + 1, error)

    def _follow(self, connection: Connection[TupleRow]) -> None:
        while not self._closing:
            if time.monotonic() - self._looked >= _LOOK_SECONDS:
                self._look(connection)
            elif self._waiting and len(self._led) < len(self._projections):
                self._note(tracking.positions(connection, self._others()))
            if not self._round(connection):
                self._ahead.close()
                self._idle()
            elif self._portion == self._batch:
                # At the end of the log a round is a transaction for a fact or two: at hundreds of runs a second
                # they took a fifth of the process.
                with self._wake:
                    self._wake.wait_for(lambda: self._closing or self._waiting > 0, _COLLECT_SECONDS)

    def _look(self, connection: Connection[TupleRow]) -> None:
        """See where everything stands, and lead what nobody leads."""
        stands = tracking.stands(connection, self._projections)
        self._note({name: stand.position for name, stand in stands.items()})
        if not all(stand.is_built for stand in stands.values()):
            tracking.note_built(connection, self._projections)
        self._heed(connection, {name: stand.retries for name, stand in stands.items()})
        for projection in self._others():
            if projection.name not in self.failures and tracking.try_lead(connection, self._schema, projection):
                self._led[projection.name] = projection
        tracking.forget_plans(connection)
        self._looked = time.monotonic()
        if self._looked - self._swept > _SWEEP_SECONDS:
            self._swept = self._looked
            rebuilds.drop_retired(connection, self._schema)

    def _heed(self, connection: Connection[TupleRow], retries: Mapping[str, int]) -> None:
        """Where an operator has said to go on, by trying again or by passing over a fact: go on."""
        changed = [name for name, number in retries.items() if self._retries.get(name, number) != number]
        self._retries.update(retries)
        if not changed:
            return
        self._skips = interventions.skips(connection, self._projections)
        with self._reached:
            for name in changed:
                self.failures.pop(name, None)
        self._enter(connection)

    def _others(self) -> list[AnyProjection]:
        return [each for each in self._projections if each.name not in self._led]

    def _round(self, connection: Connection[TupleRow]) -> bool:
        """Take what this process leads over the next portion of facts; False when there was none."""
        worked = False
        self._read_at = time.monotonic()
        at = self._positions.__getitem__
        for position, names in groupby(sorted(self._led, key=at), key=at):
            group = [self._led[name] for name in names]
            topics = feed.union(projection.topics for projection in group)
            portion = self._ahead.take(position, topics) or feed.after(
                connection, position, self._portion, self._batch_bytes, topics
            )
            if portion.size >= self._batch:
                self._portion = min(self._portion * 2, self._batch * _GROWTH)
                self._ahead.begin(portion.last, self._portion, self._batch_bytes, topics)
            else:
                self._portion = self._batch
            if portion.size:
                worked |= self._apply(connection, group, position, portion)
            elif portion.unreadable is not None:
                worked |= self._pass_over(connection, group, position, portion.unreadable)
        return worked

    def _pass_over(
        self,
        connection: Connection[TupleRow],
        group: Sequence[AnyProjection],
        position: int,
        unreadable: feed.Unreadable,
    ) -> bool:
        """Behind a fact that cannot be read, those that it does not concern or that an operator let go on; the others
        stop.
        """
        worked = False
        for projection in group:
            is_skipped = unreadable.position in self._skips.get(projection.name, ())
            if is_skipped or not unreadable.concerns(projection.topics):
                worked |= step.advance(connection, [projection], position, (), to=unreadable.position)
            else:
                self._fail(connection, projection, unreadable.position, unreadable.error)
        self._note(tracking.positions(connection, group))
        return worked

    def _apply(
        self,
        connection: Connection[TupleRow],
        group: Sequence[AnyProjection],
        position: int,
        portion: feed.Portion,
    ) -> bool:
        recordeds = portion.recordeds
        try:
            moved = step.advance(
                connection,
                group,
                position,
                recordeds,
                to=portion.last,
                skips=self._skips,
                meanwhile=self._ahead.decode,
            )
        except Exception as error:
            if _is_of_the_connection(error):
                raise
            self._apply_singly(connection, group, position, portion)
            return True
        if moved:
            for projection in group:
                self.applied[projection.name] += portion.size
            self._note({projection.name: portion.last for projection in group})
        else:
            self._note(tracking.positions(connection, group))
        return moved

    def _apply_singly(
        self,
        connection: Connection[TupleRow],
        group: Sequence[AnyProjection],
        position: int,
        portion: feed.Portion,
    ) -> None:
        """Fact by fact, each projection alone: which one fails, and at which fact?"""
        # The end of the portion is a step too: it may lie behind the last fact, and hold none at all.
        steps: list[tuple[Sequence[Recorded], int]] = [([each], each.position) for each in portion.recordeds]
        steps.append(([], portion.last))
        for projection in group:
            at = position
            for recordeds, to in steps:
                try:
                    if to > at and not step.advance(connection, [projection], at, recordeds, to=to, skips=self._skips):
                        break
                except Exception as error:
                    if _is_of_the_connection(error):
                        raise
                    self._fail(connection, projection, to, error)
                    break
                self.applied[projection.name] += len(recordeds)
                at = to
        self._note(tracking.positions(connection, group))

    def _fail(
        self, connection: Connection[TupleRow], projection: AnyProjection, position: int, error: Exception
    ) -> None:
        """Stop this projection here and let another process, perhaps of a newer version, lead it."""
        reason = f"{type(error).__name__}: {error}"
        tracking.note_failure(connection, projection, position, reason)
        with self._reached:
            self.failures[projection.name] = Failure(position, reason)
            self._reached.notify_all()
        logger.error("projection %s stopped at position %d: %s", projection.name, position, reason, exc_info=error)
        self._led.pop(projection.name, None)
        tracking.stop_leading(connection, self._schema, projection)

    def _note(self, positions: Mapping[str, int]) -> None:
        with self._reached:
            if any(self._positions.get(name) != position for name, position in positions.items()):
                self._positions.update(positions)
                self._poll = _FIRST_POLL
                self._reached.notify_all()

    def _idle(self) -> None:
        """Wait for news. What arrives from here on is read in the next round, so the marks are wiped here."""
        with self._wake:
            self._wake.wait_for(lambda: self._urgent or self._hinted or self._closing, self._pause())
            if self._hinted and not self._urgent:
                early = self._read_at + _HINT_SECONDS - time.monotonic()
                self._wake.wait_for(lambda: self._urgent or self._closing, max(early, 0))
            self._urgent = self._hinted = False

    def _pause(self) -> float:
        if self._waiting and len(self._led) < len(self._projections):
            self._poll = min(self._poll * 1.5, _LAST_POLL)
            return self._poll
        return _LOOK_SECONDS


def _is_of_the_connection(error: Exception) -> bool:
    """Whether trying again later may help: the server or the session is in trouble, not the facts."""
    if isinstance(error, psycopg.errors.ProgramLimitExceeded):
        return False
    return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError | psycopg.InternalError)
