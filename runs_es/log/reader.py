"""Reading the log: rows of a thread after a cursor, facts by revision or position, where a run begins and ends.

Everything here is one short statement; a thread's events become visible in seq order, so what a read does not see yet
comes later and never in between.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, LiteralString

from psycopg import Connection, InterfaceError, OperationalError
from psycopg.rows import TupleRow
from psycopg_pool import PoolClosed, PoolTimeout

from runs_es.database.sessions import WAIT_SECONDS, SessionPool
from runs_es.domain import TERMINAL_TOPICS, Fact, Provenance, Recorded, StoreUnavailable
from runs_es.log import codec, session
from runs_es.log.append import ANONYMOUS, PAGE_TOPIC
from runs_es.log.key_cache import KeyCache
from runs_es.log.numbers import FIRST, RESTORED, WIDE, first_of
from runs_es.log.pages import KEY_BYTES, RAW, KeyPage, decode_page, key_of, only_body, rendered

FACT_COLUMNS = (
    "thread_id, topic, state, seq, revision, position, recorded_at, actor, reason, correlation_id, causation_id"
)
# Topics that a fold of a run's or thread's life does not need.
CONTENT_TOPICS = ("message.recorded", "message.removed", "event.recorded")


READ_BYTES = 256 * 1024
_ROW_COLUMNS: LiteralString = "seq, n, run_id, topic, state, first_frame"
_STORED: LiteralString = f"""
select h.head, r.seq, r.n, r.run_id, r.topic, r.state, r.first_frame, r.recorded_at, r.actor, r.reason,
       r.correlation_id, r.causation_id
  from heads h left join lateral (
    select * from (select e.*, sum(octet_length(state)) over (order by seq rows unbounded preceding)
                               - octet_length(state) before
      from (select {_ROW_COLUMNS}, recorded_at, actor, reason, correlation_id, causation_id from events
             where thread_id = h.thread_id and seq > %s order by seq limit %s) e) b where before < %s) r on true
 where h.thread_id = %s order by r.seq
"""
_STORED_FACTS: LiteralString = _STORED.replace("from events", "from events_facts")
_LIFECYCLE: LiteralString = f"""
select h.head, h.revision, h.fence, h.frames, f.* from heads h left join lateral
 (select {FACT_COLUMNS} from events_facts f where f.thread_id = h.thread_id
   and f.revision > %s and f.topic <> all(%s) order by f.revision) f on true where h.thread_id = %s
"""
_TRIES = 3
_POOL_SETTING = "RUNS_ES_READ_POOL_SIZE"
NOBODY = Provenance()


class KeyPageGone(ValueError):
    """The key page of a delta is not there. It went together with the delta, which was read just before."""


@dataclass(slots=True, eq=False)
class Row:
    """A stored row as streams see it: a fact, or a page of frames. It covers seqs `first … last`. Never changed.

    `recorded_at` and `provenance` are there when it comes from `stored_after` or from its commit.
    """

    first: int
    last: int
    run_id: str | None
    topic: str
    state: bytes
    first_frame: int | None = None
    key: KeyPage | None = None
    recorded_at: str = ""
    provenance: Provenance = ANONYMOUS
    is_wide: bool = False  # it covers numbers that this history never gave out
    # Made when first asked for: a row in the ring is asked by each of its subscribers.
    _bodies: list[bytes] | None = None
    _frames: list[bytes] | None = None
    _joined: bytes | None = None

    def know(self, bodies: list[bytes]) -> None:
        """Give the page's frames where they are at hand: they need not be decoded then."""
        self._bodies = bodies

    @property
    def is_page(self) -> bool:
        return self.topic == PAGE_TOPIC

    @property
    def is_decoded(self) -> bool:
        """Whether the page's frames are in memory."""
        return self._bodies is not None or self._joined is not None

    @property
    def bodies(self) -> list[bytes]:
        """The page's frames as stored: without their ids."""
        if self._bodies is None:
            self._bodies = decode_page(self.state, self.key)
        return self._bodies

    @property
    def frames(self) -> list[bytes]:
        """The page's frames as they go out, id and all; decoded and rendered once."""
        if self._frames is None:
            self._frames = [rendered(body, seq) for seq, body in enumerate(self.bodies, self.first)]
        return self._frames

    @property
    def joined(self) -> bytes:
        """All frames end to end."""
        if self._joined is None:
            if self._bodies is None and self.first == self.last and self.state[0] == RAW:
                self._joined = rendered(only_body(self.state), self.first)
            else:
                self._joined = b"".join([rendered(body, seq) for seq, body in enumerate(self.bodies, self.first)])
        return self._joined


@dataclass(frozen=True, slots=True)
class Head:
    """The counters of a thread's head row."""

    seq: int
    revision: int
    fence: int
    frames: int


@dataclass(frozen=True, slots=True)
class RunBounds:
    """Where a run stands in its thread: seqs of its first facts; None for what has not happened."""

    created: int
    started: int | None
    ended: int | None
    last_started: int | None = None


class LogReader:
    """Reads over a small pool of connections. Synchronous: an async caller goes through a thread."""

    def __init__(
        self, url: str, schema: str, *, pool_size: int = 8, timeout: float = WAIT_SECONDS, key_bytes: int = KEY_BYTES
    ) -> None:
        self._keys = KeyCache(key_bytes)
        self._pool = SessionPool(
            url, schema, "reader", size=pool_size, seconds=timeout, settings=session.READER_SETTINGS
        )

    def close(self) -> None:
        self._pool.close()

    def _none_free(self) -> StoreUnavailable:
        if (reason := self._pool.outage.reason) is not None:
            return StoreUnavailable(f"the database does not answer: {reason}")
        return StoreUnavailable(
            f"all connections that read were busy for {self._pool.timeout:g} s; more: {_POOL_SETTING}"
        )

    @contextmanager
    def connection(self, seconds: float | None = None) -> Iterator[Connection[TupleRow]]:
        """A pooled autocommit connection. Raises StoreUnavailable when there is none in time, or it breaks."""
        try:
            with self._pool.connection(seconds) as connection:
                yield connection
        except PoolTimeout as error:
            raise self._none_free() from error
        except PoolClosed as error:
            raise StoreUnavailable("the store is closed") from error
        except (OperationalError, InterfaceError) as error:
            raise StoreUnavailable(f"the database does not answer: {error}") from error

    def _fetch(self, statement: LiteralString, parameters: Any) -> list[TupleRow]:
        """The rows of one statement that only reads, for those asked hundreds of times a second.

        The connection is not asked beforehand whether it lives, which would double the queries; where it does not,
        the statement goes to another, which is.
        """
        try:
            with self._pool.unchecked() as connection:
                return connection.execute(statement, parameters, binary=True).fetchall()
        except PoolTimeout as error:
            raise self._none_free() from error
        except (OperationalError, InterfaceError):
            pass
        with self.connection() as connection:
            return connection.execute(statement, parameters, binary=True).fetchall()

    def rows_after(self, thread_id: str, seq: int, limit: int, most_bytes: int = READ_BYTES) -> list[Row]:
        """The thread's rows that hold anything after `seq`, in order; the first may begin before it.

        At most `limit`, and no more than `most_bytes` need: a reader that stalls keeps what it has read.
        """
        statement = (
            f"select {_ROW_COLUMNS} from (select *,"
            "   sum(octet_length(state)) over (order by seq rows unbounded preceding) - octet_length(state) before"
            f"   from (select {_ROW_COLUMNS} from events where thread_id = %s and seq > %s order by seq limit %s) e) r"
            " where before < %s order by seq"
        )
        return self._rows(thread_id, statement, (thread_id, seq, limit, most_bytes))

    def stored_after(
        self, thread_id: str, seq: int, limit: int, *, facts_only: bool = False, most_bytes: int = READ_BYTES
    ) -> tuple[list[Row], int]:
        """As `rows_after`, with all that is known of each row, and the seq up to which nothing else is there.

        With `facts_only` pages are not read.
        """
        for _ in range(_TRIES):
            with self.connection() as connection:
                # One snapshot: what is between the last row and the head is none of those asked for.
                answer = connection.execute(
                    _STORED_FACTS if facts_only else _STORED, (seq, limit, most_bytes, thread_id), binary=True
                ).fetchall()
                found = [values for values in answer if values[1] is not None]
                try:
                    rows = self._decodable(connection, thread_id, [values[1:7] for values in found])
                except KeyPageGone:
                    continue  # retention came in between: the deltas have gone as well
            for row, (at, *who) in zip(rows, (values[7:] for values in found), strict=True):
                row.recorded_at, row.provenance = at.isoformat(), _provenance(who)
            return rows, rows[-1].last if rows else answer[0][0] if answer else seq
        raise KeyPageGone(f"thread {thread_id} has pages that cannot be read: their key page is missing")

    def rows_before(self, thread_id: str, seq: int, limit: int) -> list[Row]:
        """The thread's last `limit` rows that hold anything before `seq`, in ascending order."""
        statement = (
            f"(select {_ROW_COLUMNS} from events"
            "  where thread_id = %(t)s and seq >= %(s)s order by seq limit 1)"
            " union all"
            f" (select {_ROW_COLUMNS} from events"
            "  where thread_id = %(t)s and seq < %(s)s order by seq desc limit %(l)s)"
        )
        found = self._rows(thread_id, statement, {"t": thread_id, "s": seq, "l": limit})
        return sorted((row for row in found if row.first < seq), key=lambda row: row.last)

    def _rows(self, thread_id: str, statement: LiteralString, parameters: Any) -> list[Row]:
        for _ in range(_TRIES):
            with self.connection() as connection:
                rows = _in_order(connection, statement, parameters)
                try:
                    return self._decodable(connection, thread_id, rows)
                except KeyPageGone:
                    continue  # retention came in between: the deltas have gone as well
        raise KeyPageGone(f"thread {thread_id} has pages that cannot be read: their key page is missing")

    def _decodable(self, connection: Connection[TupleRow], thread_id: str, rows: list[TupleRow]) -> list[Row]:
        """These rows (seq, n, run_id, topic, state, first_frame), each with the key page that it needs."""
        needed = [key_of(row[4]) if row[3] == PAGE_TOPIC else None for row in rows]
        seqs = {seq for seq in needed if seq is not None}
        keys = self._key_pages(connection, thread_id, seqs, rows) if seqs else {}
        return [
            Row(
                first_of(last, n, topic),
                last,
                run_id,
                topic,
                state,
                ff,
                None if key is None else keys[key],
                is_wide=n < 0,
            )
            for (last, n, run_id, topic, state, ff), key in zip(rows, needed, strict=True)
        ]

    def _key_pages(
        self, connection: Connection[TupleRow], thread_id: str, seqs: set[int], rows: Sequence[TupleRow] = ()
    ) -> dict[int, KeyPage]:
        """The key pages at `seqs`: from memory, from `rows` that were just read, or by one more read."""
        found = self._keys.get(thread_id, seqs)
        states = {row[0]: row[4] for row in rows if row[0] in seqs and row[0] not in found}
        missing = [seq for seq in seqs if seq not in found and seq not in states]
        if missing:
            statement = "select seq, state from events where thread_id = %s and seq = any(%s) and segment > 0"
            states.update(connection.execute(statement, (thread_id, missing), binary=True).fetchall())
        if len(states) + len(found) < len(seqs):
            raise KeyPageGone(f"a key page of thread {thread_id} is not there any more")
        read = {seq: KeyPage(seq, state) for seq, state in states.items()}
        self._keys.put(thread_id, read)
        return {**found, **read}

    def bodies(self, thread_id: str, state: bytes) -> list[bytes]:
        """The bodies of a page of the thread that was read elsewhere. Raises KeyPageGone when retention has cut it."""
        seq = key_of(state)
        if seq is None:
            return decode_page(state)
        with self.connection() as connection:
            return decode_page(state, self._key_pages(connection, thread_id, {seq})[seq])

    def is_of_lost_history(self, thread_id: str, seq: int) -> bool:
        """Whether `seq` is a number that only a history lost by a restore can have given out."""
        with self.connection() as connection:
            row = connection.execute(
                f"select n < 0, {FIRST}, topic, seq from events_facts"
                " where thread_id = %(t)s and seq > %(s)s order by seq limit 1",
                {"t": thread_id, "s": seq},
            ).fetchone()
            if row is None:
                return False
            is_wide, first, topic, last = row
            if first <= seq or topic not in ("thread.erased", RESTORED):
                return bool(is_wide) and first <= seq
            # An erasure takes the row that a thread made after a restore began with. What no other restore has passed
            # over up to here is where it began, in whole epochs, and what it had: far less than one.
            restored = connection.execute(
                "select coalesce(sum(-n), 0)::bigint from events_facts"
                " where thread_id = %s and topic = 'thread.restored' and seq < %s",
                (thread_id, last),
            ).fetchone()
        return restored is not None and seq <= ((first - 1) // WIDE - restored[0]) * WIDE

    def forget(self) -> None:
        """Let go of key pages: what is stored may have another history by now."""
        self._keys.clear()

    def head(self, thread_id: str) -> Head | None:
        with self.connection() as connection:
            row = connection.execute(
                "select head, revision, fence, frames from heads where thread_id = %s", (thread_id,)
            ).fetchone()
        return Head(*row) if row else None

    def heads(self, thread_ids: Sequence[str]) -> dict[str, int]:
        """The last seq of each of these threads."""
        with self.connection() as connection:
            rows = connection.execute(
                "select thread_id, head from heads where thread_id = any(%s)", (list(thread_ids),)
            ).fetchall()
        return dict(rows)

    def fences(self, thread_ids: Sequence[str]) -> dict[str, int]:
        """The fence of each of these threads."""
        with self.connection() as connection:
            rows = connection.execute(
                "select thread_id, fence from heads where thread_id = any(%s)", (list(thread_ids),)
            ).fetchall()
        return dict(rows)

    def lifecycle(self, thread_id: str, after_revision: int = 0) -> tuple[Head | None, list[Recorded]]:
        """The head row and the facts after `after_revision` but for messages and traces, of one snapshot."""
        rows = self._fetch(_LIFECYCLE, (after_revision, list(CONTENT_TOPICS), thread_id))
        if not rows:
            return None, []
        return Head(*rows[0][:4]), [recorded(row[4:]) for row in rows if row[4] is not None]

    def run_facts(self, run_id: str, thread_id: str | None = None) -> list[Recorded]:
        """A run's facts but for messages and traces, in order. Without `thread_id` the run is looked up."""
        with self.connection() as connection:
            rows = connection.execute(
                f"select {FACT_COLUMNS} from events_facts where run_id = %(r)s and topic <> all(%(c)s)"
                f"   and thread_id = coalesce(%(t)s::text, (select thread_id from events_facts"
                f"     where run_id = %(r)s and topic = 'run.created' order by position desc limit 1)) order by seq",
                {"r": run_id, "t": thread_id, "c": list(CONTENT_TOPICS)},
                binary=True,
            ).fetchall()
        return [recorded(row) for row in rows]

    def bounds(self, thread_id: str, run_id: str) -> RunBounds | None:
        """Where the run's stream begins and ends; None when there is no such run in the thread."""
        with self.connection() as connection:
            rows = connection.execute(
                "select topic, min(seq), max(seq) from events_facts where thread_id = %s and run_id = %s"
                " and topic = any(%s) group by topic",
                (thread_id, run_id, ["run.created", "run.started", *TERMINAL_TOPICS]),
            ).fetchall()
            seqs = {topic: (first, last) for topic, first, last in rows}
            if "run.created" not in seqs:
                return None
            started = seqs.get("run.started", (None, None))
            ended = min((first for topic, (first, _) in seqs.items() if topic in TERMINAL_TOPICS), default=None)
            if started[0] is None and ended is not None:
                started = self._only_page(connection, thread_id, run_id, ended), None
        return RunBounds(seqs["run.created"][0], started[0], ended, started[1])

    def _only_page(self, connection: Connection[TupleRow], thread_id: str, run_id: str, ended: int) -> int | None:
        """Where the frames begin that a run has which failed before it began: right before its end."""
        row = connection.execute(
            "select seq - n + 1, run_id, topic from events where thread_id = %s and seq = %s", (thread_id, ended - 1)
        ).fetchone()
        return int(row[0]) if row is not None and row[1:] == (run_id, PAGE_TOPIC) else None

    def available(self, thread_id: str, run_id: str) -> tuple[int | None, int | None]:
        """The first and last seq of the run's stream that can still be had; None where there is nothing."""
        with self.connection() as connection:
            row = connection.execute(
                "select min(seq - n + 1) filter (where segment > 0), max(seq) from events"
                " where thread_id = %s and run_id = %s and (segment > 0 or topic = any(%s))",
                (thread_id, run_id, list(TERMINAL_TOPICS)),
            ).fetchone()
        first, last = row or (None, None)
        return (first if first is not None else last), last

    def facts_after(self, position: int, limit: int) -> list[Recorded]:
        """The store's facts after `position`, in commit order. Whoever follows this misses nothing."""
        with self.connection() as connection:
            return facts_after(connection, position, limit)

    def facts(
        self, thread_id: str, *, run_id: str | None = None, topics: Sequence[str] | None = None
    ) -> list[Recorded]:
        """All facts of a thread or of one of its runs, in order."""
        with self.connection() as connection:
            rows = connection.execute(
                f"select {FACT_COLUMNS} from events_facts where thread_id = %(t)s"
                f" and (%(r)s::text is null or run_id = %(r)s) and (%(k)s::text[] is null or topic = any(%(k)s))"
                f" order by seq",
                {"t": thread_id, "r": run_id, "k": list(topics) if topics is not None else None},
                binary=True,
            ).fetchall()
        return [recorded(row) for row in rows]

    def last_of(
        self, thread_id: str, topics: Sequence[str], before: int, limit: int
    ) -> list[tuple[int, str, str | None]]:
        """(seq, topic, run id) of the thread's last `limit` facts of these topics before a seq, the newest first."""
        with self.connection() as connection:
            return connection.execute(
                "select seq, topic, run_id from events_facts where thread_id = %s and seq < %s and topic = any(%s)"
                " order by seq desc limit %s",
                (thread_id, before, list(topics), limit),
            ).fetchall()

    def last_position(self, thread_id: str | None = None) -> int:
        """The position of the newest fact of a thread, or of the store; 0 when there is none."""
        with self.connection() as connection:
            if thread_id is None:
                row = connection.execute("select max(position) from events_facts").fetchone()
            else:
                row = connection.execute(
                    "select position from events_facts where thread_id = %s order by seq desc limit 1", (thread_id,)
                ).fetchone()
        return (row[0] if row else None) or 0

    def message_keys(self, thread_id: str) -> list[tuple[str, bool]]:
        """The idempotency keys of what was recorded and removed of the thread's messages, in order, and whether each
        still counts: not of a deleted run, nor from before the thread was deleted.
        """
        with self.connection() as connection:
            # What is gone is read once and hashed: looked for message by message, 800 took 70 ms instead of one.
            return connection.execute(
                "with gone as materialized (select topic, run_id, seq from events_facts where thread_id = %(t)s"
                "   and topic in ('thread.deleted', 'thread.erased', 'run.deleted'))"
                " select m.idem_key, m.run_id not in (select run_id from gone where topic = 'run.deleted')"
                "   and m.seq > (select coalesce(max(seq), 0) from gone where topic <> 'run.deleted')"
                " from events_facts m where m.thread_id = %(t)s and m.topic in ('message.recorded', 'message.removed')"
                " and m.idem_key is not null order by m.seq",
                {"t": thread_id},
            ).fetchall()

    def by_idem_key(self, thread_id: str, key: str) -> Recorded | None:
        """The fact that was stored under this idempotency key."""
        with self.connection() as connection:
            row = connection.execute(
                f"select {FACT_COLUMNS} from events_facts where thread_id = %s and idem_key = %s",
                (thread_id, key),
                binary=True,
            ).fetchone()
        return recorded(row) if row else None


def _in_order(connection: Connection[TupleRow], statement: LiteralString, parameters: Any) -> list[TupleRow]:
    """The first rows of a thread's order. Where the planner takes the thread for a small one, as it does any that its
    statistics do not name, it would fetch and sort all the rest of it, again for each read.
    """
    connection.execute("set enable_bitmapscan = off")
    try:
        return connection.execute(statement, parameters, binary=True).fetchall()
    finally:
        if not connection.broken:
            connection.execute("set enable_bitmapscan = on")


def facts_after(connection: Connection[Any], position: int, limit: int) -> list[Recorded]:
    """As `LogReader.facts_after`, on the caller's connection."""
    rows = connection.execute(
        f"select {FACT_COLUMNS} from events_facts where position > %s order by position limit %s",
        (position, limit),
        binary=True,
    ).fetchall()
    return [recorded(row) for row in rows]


def recorded(row: Sequence[Any]) -> Recorded:
    """A row of the fact columns. Raises UnknownTopic, with its position, for what this version does not know."""
    thread_id, topic, state, seq, revision, position, at, *who = row
    fact: Fact = codec.decode(topic, state, thread_id)
    return Recorded(
        fact=fact,
        seq=seq,
        revision=revision,
        position=position,
        recorded_at=at.isoformat(),
        provenance=_provenance(who),
    )


def _provenance(who: Sequence[Any]) -> Provenance:
    actor, reason, correlation_id, causation_id = who
    if actor is reason is correlation_id is causation_id is None:
        return NOBODY  # most facts: one object for all of them costs less
    return Provenance(actor=actor, reason=reason, correlation_id=correlation_id, causation_id=causation_id)
