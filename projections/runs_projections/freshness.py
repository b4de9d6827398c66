"""Lists that say how fresh they are, and waiting until they are fresh enough.

A list is current when its read model had passed the newest fact that concerned it when it was asked for. Position and
rows come from one statement: read one after the other, a rebuild could empty the table in between.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from runs_es.domain import StoreUnavailable
from runs_es.log.reader import LogReader
from runs_projections import store
from runs_projections.loading import PROJECTIONS
from runs_projections.projection import AnyProjection, Projection

R = TypeVar("R")
T = TypeVar("T")

_FIRST_PAUSE, _LAST_PAUSE = 0.005, 0.05


class Listed(list[T]):
    """A list as of `position`; `current` when every fact that was there when it was asked for is in it."""

    def __init__(self, items: Iterable[T], *, current: bool, position: int) -> None:
        super().__init__(items)
        self.current = current
        self.position = position


class Counted(int):
    """A number as of `position`, like `Listed`."""

    current: bool
    position: int

    def __new__(cls, number: int, *, current: bool, position: int) -> Counted:
        counted = super().__new__(cls, number)
        counted.current, counted.position = current, position
        return counted


class Waiter(Protocol):
    """Whoever knows when a projection has reached a position: the process's `LiveProjector`, or `TrackingPoll`."""

    def wait_for(self, position: int, timeout: float, names: Iterable[str] | None = None) -> bool: ...


class TrackingPoll:
    """Waits by asking the database: for a process that only reads `projections`."""

    def __init__(self, reader: LogReader, projections: Iterable[AnyProjection] = PROJECTIONS) -> None:
        self._reader = reader
        self._versions = {projection.name: projection.version for projection in projections}

    def wait_for(self, position: int, timeout: float, names: Iterable[str] | None = None) -> bool:
        wanted = list(names) if names is not None else list(self._versions)
        deadline = time.monotonic() + timeout
        pause = _FIRST_PAUSE
        while not self._reached(position, wanted):
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(pause, left))
            pause = min(pause * 1.5, _LAST_PAUSE)
        return True

    def _reached(self, position: int, names: list[str]) -> bool:
        with self._reader.connection() as connection:
            row = connection.execute(
                "select min(position) >= %s from tracking join unnest(%s::text[], %s::int[]) p(name, version)"
                " using (name, version)",
                (position, names, [self._versions[name] for name in names]),
            ).fetchone()
        return row == (True,)


@dataclass(frozen=True)
class TrackedTable(Generic[R]):
    """The table of a projection, read together with its position; waits up to `seconds` for it to be current."""

    reader: LogReader
    projection: Projection[R]
    waiter: Waiter
    seconds: float
    instead: Mapping[str, str] = field(default_factory=dict)  # SQL that lists read for a column, of the table `t`

    def listed(
        self, needed: int, source: str, order: str, limit: int, offset: int, parameters: Mapping[str, Any]
    ) -> Listed[R]:
        """Rows of `source`, which is all that follows `from <table> t`, in `order`.

        `needed` is the position that makes the list current.
        """
        table = self.projection.table
        statement = self.listing(source, order, limit, offset)

        def read() -> tuple[int, Sequence[R]]:
            answer = self._execute(statement, parameters)
            return answer[0][0], [store.row_of(table, values[2:]) for values in answer if values[1] is not None]

        position, rows, current = self._when_current(needed, read)
        return Listed(rows, current=current, position=position)

    def listing(self, source: str, order: str, limit: int, offset: int) -> str:
        """The statement behind `listed`: the position, a place in the order, and a row."""
        table = self.projection.table
        # As numbers, not as parameters: a plan for any limit would be one for a tenth of the table.
        window = f"limit {max(limit, 0):d} offset {max(offset, 0):d}"
        return (
            f"select p.position, r.* from {_POSITION} left join lateral ("
            f"select row_number() over (order by {order}) as place, {store.select_list(table, 't', self.instead)}"
            f" from {table.name} t {source} order by {order} {window}) r on true order by r.place"
        )

    def is_current(self, needed: int) -> bool:
        """Whether it has come to position `needed`, once it has been waited for."""
        _, _, current = self._when_current(
            needed, lambda: self._execute(f"select position, null from {_POSITION}", {})[0]
        )
        return current

    def counted(self, needed: int, source: str, parameters: Mapping[str, Any]) -> Counted:
        """How many rows `source` has."""
        statement = (
            f"select p.position, (select count(*) from {self.projection.table.name} t {source}) from {_POSITION}"
        )
        position, number, current = self._when_current(needed, lambda: self._execute(statement, parameters)[0])
        return Counted(number, current=current, position=position)

    def _execute(self, statement: str, parameters: Mapping[str, Any]) -> list[Any]:
        named = {**parameters, "projection": self.projection.name, "version": self.projection.version}
        with self.reader.connection() as connection:
            # Planned each time: one plan for all threads would be that of a small one, which sorts all it has.
            return connection.execute(statement, named, prepare=False, binary=True).fetchall()

    def _when_current(self, needed: int, read: Callable[[], tuple[int, T]]) -> tuple[int, T, bool]:
        deadline = time.monotonic() + self.seconds
        while True:
            heard = self.waiter.wait_for(needed, max(deadline - time.monotonic(), 0), [self.projection.name])
            position, answer = read()
            if position < 0:
                position = -1 - position
                if position < needed and (not heard or time.monotonic() >= deadline):
                    raise StoreUnavailable(self._being_made(position))
            if position >= needed or not heard or time.monotonic() >= deadline:
                return position, answer, position >= needed
            time.sleep(_FIRST_PAUSE)  # it has not heard yet that a rebuild took the position back

    def _being_made(self, position: int) -> str:
        name, version = self.projection.name, self.projection.version
        return f"version {version} of the read model {name} is being made for the first time, at position {position}"


# Below zero, as -1 - position, while the read model has never been at the end of the log: what it has is a part.
_POSITION = (
    "(select coalesce((select case when built_at is null then -1 - position else position end from tracking"
    " where name = %(projection)s and version = %(version)s), 0) as position) p"
)
