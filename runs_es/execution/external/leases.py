"""The table of leases: when a worker that says nothing counts as lost, and when a run's time is up. See `sweep`.

By the database's clock alone, so that it is the same for all servers.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from runs_es.log.reader import LogReader

_GRANT = """
insert into leases (claim_id, thread_id, run_id, worker_id, seconds, ends_at, deadline, idle_seconds, active_at)
values (%(claim)s, %(thread)s, %(run)s, %(worker)s, %(seconds)s, now() + make_interval(secs => %(seconds)s::float8),
        now() + make_interval(secs => %(left)s::float8), %(idle)s, now())
on conflict (claim_id) do update set ends_at = excluded.ends_at, active_at = excluded.active_at
 where (leases.thread_id, leases.run_id) = (excluded.thread_id, excluded.run_id) and leases.ends_at > '-infinity'
returning ends_at, active_at
"""
_EXTEND = """
update leases set ends_at = greatest(ends_at, now() + make_interval(secs => seconds)),
                  active_at = case when %s then now() else active_at end
 where claim_id = %s and ends_at > '-infinity' and coalesce(fence, 0) <= %s returning ends_at
"""
_SHORTEN = """
update leases set fence = %(fence)s,
  ends_at = case when %(grace)s::float8 is null then ends_at
                 else least(ends_at, now() + make_interval(secs => %(grace)s::float8)) end
 where claim_id = %(claim)s and ends_at > '-infinity' returning ends_at
"""
_DUE = """
select l.claim_id, l.thread_id, l.run_id, l.worker_id, l.ends_at < now(),
       case when l.deadline < now() then 'wall'
            when l.active_at + make_interval(secs => l.idle_seconds) < now() then 'idle' end
  from leases l left join heads h using (thread_id)
 where l.ends_at < now() or l.deadline < now() or l.active_at + make_interval(secs => l.idle_seconds) < now()
    or h.fence is distinct from l.fence
 order by l.ends_at
"""


@dataclass(frozen=True, slots=True)
class Granted:
    """A lease as one request made it: `at` tells it from what others with the same claim id make of it since."""

    until: datetime
    at: datetime


@dataclass(frozen=True, slots=True)
class Lease:
    """One that a sweep has to look at: it has ended, its run is `late` (wall, idle), or the fence was raised."""

    claim_id: str
    thread_id: str
    run_id: str
    worker_id: str
    expired: bool
    late: str | None


class Leases:
    """Synchronous."""

    def __init__(self, reader: LogReader) -> None:
        self._reader = reader

    def grant(
        self,
        claim_id: str,
        *,
        thread_id: str,
        run_id: str,
        worker_id: str,
        seconds: float,
        left: float | None,
        idle: float | None,
    ) -> Granted | None:
        """A lease from now on, for a claim that is about to be made or has just been; None when its id is that of
        another run's claim, or it is being taken away.

        `left` are the seconds until the run's time is up, `idle` those of silence that end it.
        """
        with self._reader.connection() as connection:
            row = connection.execute(
                _GRANT,
                {
                    "claim": claim_id,
                    "thread": thread_id,
                    "run": run_id,
                    "worker": worker_id,
                    "seconds": seconds,
                    "left": left,
                    "idle": idle,
                },
            ).fetchone()
        return Granted(*row) if row else None

    def extend(self, claim_id: str, fence: int, *, wrote: bool) -> datetime | None:
        """From now on once more, for who was found to hold the claim under this fence; until when. None when there is
        no such lease, it is being taken away, or a sweep has seen a higher fence: it may have shortened it.
        """
        with self._reader.connection() as connection:
            row = connection.execute(_EXTEND, (wrote, claim_id, fence)).fetchone()
        return row[0] if row else None

    def looked_at(self, claim_id: str, fence: int, *, grace: float | None = None) -> datetime | None:
        """Remember that the thread was looked at when it had this fence; with `grace` the lease ends so soon."""
        with self._reader.connection() as connection:
            row = connection.execute(_SHORTEN, {"claim": claim_id, "fence": fence, "grace": grace}).fetchone()
        return row[0] if row else None

    def until(self, claim_id: str) -> datetime | None:
        """When it ends; None when there is no such lease."""
        with self._reader.connection() as connection:
            row = connection.execute(
                "select ends_at from leases where claim_id = %s and ends_at > '-infinity'", (claim_id,)
            ).fetchone()
        return row[0] if row else None

    def holder(self, claim_id: str) -> tuple[str, str] | None:
        """(thread, run) that a claim of this id was to take."""
        with self._reader.connection() as connection:
            row = connection.execute("select thread_id, run_id from leases where claim_id = %s", (claim_id,)).fetchone()
        return (row[0], row[1]) if row else None

    def take(self, claim_id: str) -> bool:
        """Take away a lease that has ended, unless it was renewed just now. Nobody renews it any more."""
        with self._reader.connection() as connection:
            taken = connection.execute(
                "update leases set ends_at = '-infinity' where claim_id = %s and ends_at < now()", (claim_id,)
            )
            return taken.rowcount == 1

    def give_back(self, claim_id: str, granted: Granted) -> None:
        """The claim that it was granted for was not made: unless another request with this id has taken it up."""
        with self._reader.connection() as connection:
            connection.execute("delete from leases where claim_id = %s and active_at = %s", (claim_id, granted.at))

    def drop_expired(self, claim_id: str) -> None:
        """Nobody holds the claim: unless it has landed just now, which renews the lease."""
        with self._reader.connection() as connection:
            connection.execute("delete from leases where claim_id = %s and ends_at < now()", (claim_id,))

    def drop(self, claim_id: str) -> None:
        """The claim has come to its end."""
        with self._reader.connection() as connection:
            connection.execute("delete from leases where claim_id = %s", (claim_id,))

    def due(self) -> list[Lease]:
        """What a sweep has to look at."""
        with self._reader.connection() as connection:
            return [Lease(*row) for row in connection.execute(_DUE).fetchall()]
