"""How projections stand, as the database knows it: what the status page, the metrics and the command show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from psycopg import Connection
from psycopg.rows import TupleRow

from runs_projections import tracking
from runs_projections.projection import AnyProjection
from runs_projections.stored_text import original

STATES = ("live", "behind", "stopped", "left behind")
_BEHIND_SECONDS = 2.0

_STANDS = """
select t.name, t.version, t.position, t.failed_position, t.failed_reason, t.failed_at,
       (select coalesce(max(position), 0) from events_facts) as last,
       extract(epoch from clock_timestamp() - (select recorded_at from events_facts f where f.position > t.position
                                                order by f.position limit 1))::float8 as lag,
       r.phase, r.facts
  from tracking t left join rebuilds r on r.name = t.name and r.version = t.version and r.phase <> 'done'
 order by t.name, t.version
"""
# A 64-bit key stands in pg_locks in two halves.
_LED = """
select ((classid::bigint << 32) | objid::bigint) from pg_locks
 where locktype = 'advisory' and objsubid = 1 and granted
   and database = (select oid from pg_database where datname = current_database())
"""


@dataclass(frozen=True, slots=True)
class ProjectionStatus:
    """`lag_seconds` is the age of the oldest fact that is not in yet, `behind` at most how many there are.

    `state`: live; behind (facts wait for more than two seconds); stopped (at `failed_position`, for `reason`); or left
    behind: a version that this code does not have.
    """

    name: str
    version: int
    state: str
    position: int
    behind: int
    lag_seconds: float
    is_led: bool
    failed_position: int | None = None
    reason: str | None = None
    failed_at: str | None = None
    rebuild: str | None = None


def read(connection: Connection[TupleRow], schema: str, projections: Sequence[AnyProjection]) -> list[ProjectionStatus]:
    """The status of these projections, in their order, and of other versions and projections that have left tracks."""
    held = {key for (key,) in connection.execute(_LED).fetchall()}
    leads = {(each.name, each.version): tracking.lead_key(schema, each) for each in projections}
    order = {key: place for place, key in enumerate(leads)}
    found = []
    for name, version, position, failed, reason, at, last, lag, phase, facts in connection.execute(_STANDS).fetchall():
        if name in tracking.RESERVED:
            continue
        key = (name, version)
        lag_seconds = max(float(lag or 0.0), 0.0)
        found.append(
            ProjectionStatus(
                name=name,
                version=version,
                state=_state(key in leads, failed, lag_seconds),
                position=position,
                behind=max(last - position, 0),
                lag_seconds=lag_seconds,
                is_led=leads.get(key) in held,
                failed_position=failed,
                reason=original(reason) if reason is not None else None,
                failed_at=at.isoformat() if at is not None else None,
                rebuild=f"{phase}, {facts:,} facts read" if phase is not None else None,
            )
        )
    return sorted(found, key=lambda each: order.get((each.name, each.version), len(order)))


def _state(is_known: bool, failed: int | None, lag_seconds: float) -> str:
    if not is_known:
        return "left behind"
    if failed is not None:
        return "stopped"
    return "behind" if lag_seconds > _BEHIND_SECONDS else "live"
