"""The log as a persistence module of the `eventsourcing` library: its applications, subscriptions, notification logs
and projection runners work over it. Set `PERSISTENCE_MODULE=runs_es.log.library`, or use `FactApplication`.

Mapping: originator id = thread id, originator version = revision - 1, notification id = position. Tables are the
migrations'. Importing this module imports the library, which patches `dataclasses`; nothing else of the store does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import orjson
import psycopg
from eventsourcing import postgres
from eventsourcing.application import Application
from eventsourcing.domain import DomainEventProtocol
from eventsourcing.persistence import (
    IntegrityError,
    InterfaceError,
    Mapper,
    Notification,
    OperationalError,
    StoredEvent,
)
from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore
from eventsourcing.utils import retry
from psycopg.sql import SQL, Identifier

from runs_es.domain import Fact, Provenance, RunFact, UnknownTopic
from runs_es.log import append, arrays, codec, session
from runs_es.log.append import Append, FactItem

_PROVENANCE = ("actor", "reason", "correlation_id", "causation_id")
_ELSEWHERE = (
    "Give aggregates of your own a database schema of their own: PERSISTENCE_MODULE=eventsourcing.postgres and another"
    " POSTGRES_SCHEMA; or record what belongs to a run as an EventRecorded."
)
_UNAVAILABLE = (InterfaceError, OperationalError)


@dataclass(frozen=True)
class FactEvent:
    """A fact as the library's domain event."""

    originator_id: str
    originator_version: int
    fact: Fact


class FactMapper(Mapper[str]):
    """Facts to stored events and back, through the closed registry of topics."""

    def to_stored_event(self, domain_event: DomainEventProtocol[str]) -> StoredEvent:
        if not isinstance(domain_event, FactEvent):
            kind = type(domain_event).__qualname__
            raise TypeError(f"this application records facts of runs (FactEvent), not {kind}. {_ELSEWHERE}")
        return StoredEvent(
            originator_id=domain_event.originator_id,
            originator_version=domain_event.originator_version,
            topic=domain_event.fact.topic,
            state=codec.encode(domain_event.fact),
        )

    def to_domain_event(self, stored_event: StoredEvent) -> Any:
        """Raises UnknownTopic rather than importing whatever string stands in the database."""
        thread_id = str(stored_event.originator_id)
        fact = codec.decode(stored_event.topic, stored_event.state, thread_id)
        return FactEvent(thread_id, stored_event.originator_version, fact)


class FactRecorder(PostgresApplicationRecorder):
    """Inserts by the log's own append, reads its facts.

    Several originators in one call are all or nothing: the append runs in a transaction of its own and is rolled back
    when one thread lost. Versions are compared and set: they must go on where the thread stands.
    """

    def __init__(self, datastore: PostgresDatastore, *, events_table_name: str = "events") -> None:
        super().__init__(datastore, events_table_name=events_table_name)
        self.sql_create_statements.clear()  # migrations/ owns the tables
        self.channel_name = f"{datastore.schema}_hints"
        self._lock_key = session.append_lock_key(datastore.schema)
        self._path = SQL("set local search_path to {}").format(Identifier(datastore.schema))
        self._facts = Identifier(datastore.schema, "events_facts")

    @retry(_UNAVAILABLE, max_attempts=10, wait=0.2)
    def insert_events(self, stored_events: Sequence[StoredEvent], **kwargs: Any) -> Sequence[int] | None:
        """Append; returns the positions in the order given. `actor`, `reason`, … in kwargs go on every fact.

        Raises IntegrityError when a version is not the next one of its originator.
        """
        if not stored_events:
            return None
        provenance = Provenance(**{name: kwargs[name] for name in _PROVENANCE if name in kwargs})
        requests, places = _requests(stored_events, provenance)
        with self.datastore.get_connection() as connection:
            positions = self._append(connection, requests)
            # After the commit, never in it: a NOTIFY in the transaction would serialise all commits of the cluster.
            hints = orjson.dumps(["library", {request.thread_id: 0 for request in requests[:64]}]).decode()
            connection.execute("select pg_notify(%s, %s)", (self.channel_name, hints))
        # Appended thread by thread: back to the order in which the events were given.
        return [position for _, position in sorted(zip(places, positions, strict=True))]

    def _append(self, connection: psycopg.Connection[Any], requests: list[Append]) -> list[int]:
        """The positions of all items, thread by thread."""
        arrays.register(connection)
        with connection.transaction(), connection.cursor(row_factory=psycopg.rows.tuple_row) as cursor:
            cursor.execute(self._path)
            cursor.execute("set local idle_in_transaction_session_timeout to '5s'")
            cursor.execute("set local lock_timeout to '5s'")
            refused = cursor.execute("select doubt from history where doubt is not null or not is_raised").fetchone()
            if refused is not None:
                raise OperationalError(f"nothing is written until `runs-es restored` or `not-lost`: {refused[0]}")
            segment = cursor.execute("select max(segment) from segments").fetchone()
            assert segment is not None
            parameters = append.fact_parameters(requests, segment[0], self._lock_key)
            rows = cursor.execute(append.APPEND_FACTS, parameters, prepare=True).fetchall()
            if len(rows) < len(requests):
                raise IntegrityError(_lost(cursor, requests))
            # Drawn under the append's lock, in the order of the items: one after the other.
            last = max(row[5] for row in rows)
            count = sum(len(request.items) for request in requests)
        return list(range(last - count + 1, last + 1))

    @retry(_UNAVAILABLE, max_attempts=10, wait=0.2)
    def select_events(
        self,
        originator_id: Any,
        *,
        gt: int | None = None,
        lte: int | None = None,
        desc: bool = False,
        limit: int | None = None,
    ) -> Sequence[StoredEvent]:
        statement = SQL(
            "select revision - 1, topic, state from {facts} where thread_id = %s"
            " and (%s::bigint is null or revision - 1 > %s) and (%s::bigint is null or revision - 1 <= %s)"
            " order by revision {order} limit %s"
        ).format(facts=self._facts, order=SQL("desc" if desc else "asc"))
        with self.datastore.get_connection() as connection:
            cursor = connection.cursor(row_factory=psycopg.rows.tuple_row)
            rows = cursor.execute(statement, (str(originator_id), gt, gt, lte, lte, limit)).fetchall()
        return [StoredEvent(originator_id, version, topic, state) for version, topic, state in rows]

    @retry(_UNAVAILABLE, max_attempts=10, wait=0.2)
    def select_notifications(
        self,
        start: int | None,
        limit: int,
        stop: int | None = None,
        topics: Sequence[str] = (),
        *,
        inclusive_of_start: bool = True,
    ) -> Sequence[Notification]:
        first = (start or 0) if inclusive_of_start else (start or 0) + 1
        statement = SQL(
            "select position, thread_id, revision - 1, topic, state from {facts} where position >= %s"
            " and (%s::bigint is null or position <= %s) and (%s::text[] is null or topic = any(%s))"
            " order by position limit %s"
        ).format(facts=self._facts)
        wanted = list(topics) or None
        with self.datastore.get_connection() as connection:
            cursor = connection.cursor(row_factory=psycopg.rows.tuple_row)
            rows = cursor.execute(statement, (first, stop, stop, wanted, wanted, limit)).fetchall()
        return [
            Notification(id=position, originator_id=thread_id, originator_version=version, topic=topic, state=state)
            for position, thread_id, version, topic, state in rows
        ]

    @retry(_UNAVAILABLE, max_attempts=10, wait=0.2)
    def max_notification_id(self) -> int | None:
        with self.datastore.get_connection() as connection:
            cursor = connection.cursor(row_factory=psycopg.rows.tuple_row)
            row = cursor.execute(SQL("select max(position) from {facts}").format(facts=self._facts)).fetchone()
        return row[0] if row else None


class StoreRecorder(FactRecorder):
    """The recorder of applications: it takes facts of this store alone.

    At any other event each read model of the store would stop, since it cannot know what that changes.
    """

    def insert_events(self, stored_events: Sequence[StoredEvent], **kwargs: Any) -> Sequence[int] | None:
        """As FactRecorder's. Raises UnknownTopic for an event that is no fact of this store, before any is written."""
        for event in stored_events:
            if not codec.is_known(event.topic):
                raise UnknownTopic(
                    f"{event.topic!r} is no fact of this store, and its read models would stop. {_ELSEWHERE}"
                )
        positions: Sequence[int] | None = super().insert_events(stored_events, **kwargs)
        return positions


class FactAggregateRecorder(FactRecorder):
    """The same without notification ids: what the library calls an aggregate recorder."""

    def insert_events(self, stored_events: Sequence[StoredEvent], **kwargs: Any) -> None:
        super().insert_events(stored_events, **kwargs)


# Qualified, because the library looks through this module for its one factory class.
class FactsFactory(postgres.PostgresFactory):
    """The library's factory over our recorder. The names of the environment are the library's (`POSTGRES_…`)."""

    application_recorder_class = StoreRecorder


class FactApplication(Application[str]):
    """The store as an application of the library: `save(FactEvent(…))`, `notification_log`, subscriptions, runners.

    Give it the library's own environment: `POSTGRES_DBNAME` and so on, with `POSTGRES_SCHEMA` the store's schema.
    """

    name = "runs"
    env: ClassVar[dict[str, str]] = {
        "PERSISTENCE_MODULE": "runs_es.log.library",
        "MAPPER_TOPIC": "runs_es.log.library:FactMapper",
        "ORIGINATOR_ID_TYPE": "text",
        "CREATE_TABLE": "no",
    }


def _requests(stored_events: Sequence[StoredEvent], provenance: Provenance) -> tuple[list[Append], list[int]]:
    """One append a thread, and for each of their items its place among `stored_events`.

    Raises IntegrityError when the versions given for an originator do not follow each other.
    """
    requests: dict[str, Append] = {}
    places: dict[str, list[int]] = {}
    for place, event in enumerate(stored_events):
        thread_id = str(event.originator_id)
        request = requests.setdefault(thread_id, Append(thread_id, [], expected=event.originator_version))
        if event.originator_version != (request.expected or 0) + len(request.items):
            raise IntegrityError(f"versions of originator {thread_id} do not follow each other")
        request.items.append(_item(event, thread_id, provenance))
        places.setdefault(thread_id, []).append(place)
    return list(requests.values()), [place for each in places.values() for place in each]


def _lost(cursor: psycopg.Cursor[Any], requests: Sequence[Append]) -> str:
    """Which originator stands at another version than was stated, and what its next one is."""
    threads = [request.thread_id for request in requests]
    found = cursor.execute("select thread_id, revision from heads where thread_id = any(%s)", (threads,)).fetchall()
    revisions = dict(found)
    for request in requests:
        following = revisions.get(request.thread_id, 0)
        if request.expected != following:
            begins = "; versions begin at 0 here: give the aggregate INITIAL_VERSION = 0" if not following else ""
            return f"the next version of originator {request.thread_id} is {following}, not {request.expected}{begins}"
    return "an originator had another version a moment ago"


def _item(event: StoredEvent, thread_id: str, provenance: Provenance) -> FactItem:
    """What to append of a stored event; of a topic that is not ours nothing more is known."""
    if not codec.is_known(event.topic):
        return FactItem(event.topic, None, event.state, provenance=provenance)
    fact = codec.decode(event.topic, event.state, thread_id)
    run_id = fact.run_id if isinstance(fact, RunFact) else None
    return FactItem(event.topic, run_id, event.state, fact.raises_fence, provenance)
