"""When a cron is due: a schedule in cron's own notation and the time zone that its clock shows.

The ticks of a schedule are a set of moments that follows from the two alone, so every process that asks for the one
after a moment gets the same. When clocks change they are those of Debian's cron: what a jump of the clock would leave
out comes right after it, and what is at certain hours comes once although they come twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from itertools import pairwise
from zoneinfo import ZoneInfo, available_timezones

from cronsim import CronSim, CronSimError

MAX_LENGTH = 255
_SECOND = timedelta(seconds=1)
_DAY = timedelta(days=1)
_LOOKED_AT = 100  # ticks, for the shortest time between two
_SHORTHANDS = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_FIELDS = (
    "it has five fields: minute, hour, day of month, month, day of week; or six, with seconds in front;"
    f" or is one of {', '.join(_SHORTHANDS)}"
)


class Schedule:
    """`text` as cron writes it, `timezone` an IANA name; without one it is UTC. Raises ValueError that says why not."""

    def __init__(self, text: str, timezone: str | None = None) -> None:
        self.text = text
        self._zone = _zone(timezone)
        self._expression = _SHORTHANDS.get(text.strip().lower(), text)
        if len(text) > MAX_LENGTH:
            raise ValueError(f"schedule: must have at most {MAX_LENGTH} characters")
        try:
            # It raises the case of letters first, and some of other scripts would become ASCII by that.
            if not self._expression.isascii():
                raise CronSimError("not ASCII")
            CronSim(self._expression, datetime(2000, 1, 1, tzinfo=self._zone))
        except CronSimError as error:
            raise ValueError(f"schedule: {text!r} is no schedule ({_in_words(error)}); {_FIELDS}") from None

    def after(self, moment: datetime) -> datetime | None:
        """The first tick after a moment, in UTC; None when none comes in the next fifty years."""
        return next(self.ticks(moment), None)

    def latest(self, moment: datetime) -> datetime | None:
        """The last tick at or before a moment; None when there is none."""
        back = CronSim(self._expression, (moment + _SECOND).astimezone(self._zone), reverse=True)
        rough = next((tick for tick in map(self._utc, back) if tick <= moment), None)
        if rough is None:
            return None
        # Where clocks change, backwards is not quite the way that came forwards.
        for margin in (_SECOND, _DAY):
            latest = None
            for tick in self.ticks(rough - margin):
                if tick > moment:
                    break
                latest = tick
            if latest is not None:
                return latest
        return None

    def ticks(self, moment: datetime) -> Iterator[datetime]:
        """All ticks after a moment, in UTC."""
        last = moment
        for tick in map(self._utc, CronSim(self._expression, moment.astimezone(self._zone))):
            if tick > last:  # begun in an hour that comes twice, it takes the first for the second
                last = tick
                yield tick

    def shortest_gap(self, moment: datetime) -> timedelta | None:
        """The shortest time between two of the next hundred ticks; None where there are no two."""
        coming = [tick for tick, _ in zip(self.ticks(moment), range(_LOOKED_AT), strict=False)]
        return min((later - earlier for earlier, later in pairwise(coming)), default=None)

    def _utc(self, tick: datetime) -> datetime:
        return tick.astimezone(UTC)


def _in_words(error: CronSimError) -> str:
    return str(error)[:1].lower() + str(error)[1:]


def _zone(name: str | None) -> tzinfo:
    if name is None:
        return UTC
    if name not in _names():
        raise ValueError(f"timezone: {name!r} is no IANA time zone, as in 'Europe/Berlin'")
    return ZoneInfo(name)


@lru_cache(maxsize=1)
def _names() -> frozenset[str]:
    return frozenset(available_timezones())
