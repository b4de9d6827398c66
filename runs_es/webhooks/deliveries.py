"""What is owed, and what came of it: the table `webhooks`, a row for each run that was created with one.

`follow` makes it from the log, by position, like a projection; but what was sent stands nowhere else, so it is no
projection: nothing rebuilds it. A row is `waiting` until its run has ended, `pending` until its receiver has
acknowledged it (`delivered`), or until it is given up (`failed`).
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any

from psycopg import Connection
from psycopg.rows import TupleRow

from runs_es.domain import TERMINAL_TOPICS, RunCreated, ThreadErased
from runs_es.log import codec
from runs_es.log.reader import LogReader
from runs_es.webhooks.addresses import host_of

NAME = "webhooks"
# States of rows that nothing was acknowledged of.
OPEN = ("waiting", "pending", "failed")
_BATCH = 5000  # facts
_MAX_ERROR = 1000  # characters

_NEWS = "select exists (select from events_facts f where f.position > t.position) from tracking t where t.name = %s"
_CREATED = (
    "select thread_id, state, position from events_facts where position > %s and position <= %s and topic = %s"
    """ and position('"webhook":"'::bytea in state) > 0 order by position"""
)
_INSERT = (
    "insert into webhooks (thread_id, run_id, url, host, position) values (%s, %s, %s, %s, %s) on conflict do nothing"
)
_ENDED = (
    "update webhooks w set state = 'pending', due_at = clock_timestamp(), ended_at = f.recorded_at from events_facts f"
    " where f.position > %s and f.position <= %s and f.topic = any(%s)"
    "   and w.thread_id = f.thread_id and w.run_id = f.run_id and w.state = 'waiting'"
)
_ERASED = (
    "delete from webhooks w using events_facts f where f.position > %s and f.position <= %s and f.topic = %s"
    "   and w.thread_id = f.thread_id and w.position < f.position"
)
# Who claims has until `due_at` to say how it went; then the row is anybody's again.
_CLAIM = """
update webhooks w
   set claim = %(claim)s, attempts = attempts + 1, last_attempt_at = clock_timestamp(),
       due_at = clock_timestamp() + %(lease)s * interval '1 second'
 where (thread_id, run_id) = (
   select thread_id, run_id from webhooks
    where state = 'pending' and due_at <= clock_timestamp() and host <> all(%(busy)s)
    order by due_at limit 1 for update skip locked)
returning thread_id, run_id, url, host, attempts
"""
_SEEN = (
    "select thread_id, run_id, url, state, attempts, last_status, last_error, last_attempt_at, ended_at,"
    " case when state = 'pending' then due_at end, delivered_at from webhooks"
)


@dataclass(frozen=True, slots=True)
class Delivery:
    """A claimed row: `claim` is this one's alone, `attempts` counts it."""

    thread_id: str
    run_id: str
    url: str
    host: str
    attempts: int
    claim: uuid.UUID

    @property
    def delivery_id(self) -> str:
        return delivery_id(self.run_id)


@dataclass(frozen=True, kw_only=True)
class WebhookStatus:
    """How a run's webhook stands. Times are ISO 8601."""

    thread_id: str
    run_id: str
    url: str
    state: str = "waiting"
    attempts: int = 0
    last_status: int | None = None
    last_error: str | None = None
    last_attempt_at: str | None = None
    ended_at: str | None = None
    next_attempt_at: str | None = None
    delivered_at: str | None = None

    @property
    def delivery_id(self) -> str:
        return delivery_id(self.run_id)


@dataclass(frozen=True, slots=True)
class Backlog:
    """For metrics: rows by state, how long the oldest has been pending, and facts that were not looked at yet."""

    states: dict[str, int]
    oldest_seconds: float
    behind: int


def delivery_id(run_id: str) -> str:
    """The same for every attempt: a run ends once."""
    return f"msg_{run_id}"


class Deliveries:
    """Synchronous, and safe in any number of processes. Every method may raise StoreUnavailable."""

    def __init__(self, reader: LogReader) -> None:
        self._reader = reader

    # --- what is owed ---

    def follow(self) -> bool:
        """Take over what the log has had since; whether there is more. Another process that is at it is not waited for.

        Raises UnknownTopic and ValueError for a creation that cannot be read: to pass over it would lose its webhook.
        """
        with self._reader.connection() as connection:
            news = connection.execute(_NEWS, (NAME,)).fetchone()
            return news == (True,) and self._follow(connection)

    def _follow(self, connection: Connection[TupleRow]) -> bool:
        with connection.transaction():
            # Rows and position are lost together, and made again from the log.
            connection.execute("set local synchronous_commit = off")
            # A process that is stopped in here must not keep the others from it.
            connection.execute("set local idle_in_transaction_session_timeout = '10s'")
            held = connection.execute(
                "select position from tracking where name = %s for update skip locked", (NAME,)
            ).fetchone()
            if held is None:
                return False
            last, count = _next_facts(connection, held[0])
            if last is None:
                return False
            _take_over(connection, held[0], last)
            connection.execute("update tracking set position = %s where name = %s", (last, NAME))
            return count == _BATCH

    # --- sending it ---

    def claim(self, lease: float, busy: Collection[str] = ()) -> Delivery | None:
        """The one that has been due longest, but for those to `busy` hosts; it is this caller's for `lease` seconds."""
        claim = uuid.uuid4()
        with self._reader.connection() as connection:
            row = connection.execute(_CLAIM, {"claim": claim, "lease": lease, "busy": list(busy)}).fetchone()
        if row is None:
            return None
        thread_id, run_id, url, host, attempts = row
        return Delivery(thread_id, run_id, url, host, attempts, claim)

    def note_delivered(self, delivery: Delivery, status: int) -> None:
        """It was acknowledged; that holds whoever has claimed it since."""
        self._write(
            "update webhooks set state = 'delivered', delivered_at = clock_timestamp(), due_at = null,"
            " last_status = %s, last_error = null where thread_id = %s and run_id = %s and state <> 'delivered'",
            (status, delivery.thread_id, delivery.run_id),
        )

    def note_failed(self, delivery: Delivery, error: str, status: int | None, retry_in: float | None) -> None:
        """The attempt failed; the next is due in so many seconds, or with None there is none."""
        self._write(
            "update webhooks set state = case when %(in)s::float8 is null then 'failed' else 'pending' end,"
            " due_at = clock_timestamp() + %(in)s::float8 * interval '1 second', last_status = %(status)s,"
            " last_error = %(error)s where thread_id = %(thread)s and run_id = %(run)s and claim = %(claim)s"
            "   and state = 'pending'",
            {
                "in": retry_in,
                "status": status,
                "error": error.replace("\x00", "\ufffd")[:_MAX_ERROR],
                "thread": delivery.thread_id,
                "run": delivery.run_id,
                "claim": delivery.claim,
            },
        )

    def retry(self, *, run_id: str | None = None) -> int:
        """Begin anew with those that were given up, or with that of one run; how many those are."""
        return self._write(
            "update webhooks set state = 'pending', attempts = 0, due_at = clock_timestamp()"
            " where state = 'failed' and (%(run)s::text is null or run_id = %(run)s)",
            {"run": run_id},
        )

    # --- looking at it ---

    def find(self, thread_id: str, run_id: str) -> WebhookStatus | None:
        return next(iter(self._seen("where thread_id = %s and run_id = %s", (thread_id, run_id))), None)

    def list(self, state: str | None, limit: int) -> Sequence[WebhookStatus]:
        """Those of runs that ended last, first."""
        return self._seen(
            "where %(state)s::text is null or state = %(state)s order by ended_at desc nulls first, position desc"
            " limit %(limit)s",
            {"state": state, "limit": limit},
        )

    def backlog(self, seconds: float | None = None) -> Backlog:
        """How much is not delivered. `seconds` bound the wait for a connection."""
        with self._reader.connection(seconds) as connection:
            rows = connection.execute(
                "select state, count(*), extract(epoch from clock_timestamp() - min(ended_at))::float8 from webhooks"
                " where state <> 'delivered' group by state"
            ).fetchall()
            behind = connection.execute(
                "select greatest((select coalesce(max(position), 0) from events_facts) - position, 0) from tracking"
                " where name = %s",
                (NAME,),
            ).fetchone()
        states = {state: count for state, count, _ in rows}
        oldest = next((age for state, _, age in rows if state == "pending"), None)
        return Backlog(states, max(oldest or 0.0, 0.0), behind[0] if behind else 0)

    def _write(self, statement: str, parameters: Any) -> int:
        with self._reader.connection() as connection:
            return connection.execute(statement.encode(), parameters).rowcount

    def _seen(self, where: str, parameters: Any) -> Sequence[WebhookStatus]:
        with self._reader.connection() as connection:
            rows = connection.execute(f"{_SEEN} {where}".encode(), parameters).fetchall()
        names = [field.name for field in fields(WebhookStatus)]
        return [WebhookStatus(**dict(zip(names, map(_iso, row), strict=True))) for row in rows]


def _next_facts(connection: Connection[TupleRow], after: int) -> tuple[int | None, int]:
    """The last position of the next batch, and how many facts it has."""
    row = connection.execute(
        "select max(position), count(*) from (select position from events_facts where position > %s"
        " order by position limit %s) next",
        (after, _BATCH),
    ).fetchone()
    assert row is not None
    return row[0], row[1]


def _take_over(connection: Connection[TupleRow], after: int, last: int) -> None:
    """Statement after statement in the order of a run's life, so that all of one may lie in a batch."""
    created = connection.execute(_CREATED, (after, last, RunCreated.topic), binary=True).fetchall()
    for thread_id, state, position in created:
        fact = codec.decode(RunCreated.topic, state, thread_id)
        assert isinstance(fact, RunCreated)
        url = fact.kwargs.get("webhook")
        if isinstance(url, str):
            connection.execute(_INSERT, (thread_id, fact.run_id, url, host_of(url), position))
    connection.execute(_ENDED, (after, last, list(TERMINAL_TOPICS)))
    connection.execute(_ERASED, (after, last, ThreadErased.topic))


def _iso(value: Any) -> Any:
    return value.astimezone(UTC).isoformat() if isinstance(value, datetime) else value
