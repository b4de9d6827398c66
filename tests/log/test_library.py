"""The `eventsourcing` library's own contract suites over our recorder, and its tools over our log.

Not run, because they cannot apply: the suites with UUID originators (ours are texts: the library's own text suites are
the same tests with text ids, and those run), and `InfrastructureFactoryTestCase` (it makes the stock tables and checks
that the recorders are the stock classes; our tables are the migrations').
"""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import eventsourcing.tests.persistence as suites
import pytest
from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event
from eventsourcing.persistence import IntegrityError, StoredEvent, Tracking
from eventsourcing.popo import POPOTrackingRecorder
from eventsourcing.postgres import PostgresDatastore
from eventsourcing.projection import ApplicationSubscription, Projection, ProjectionRunner
from psycopg import conninfo

from runs_es import Settings, open_store
from runs_es.domain import Run, ThreadCreated, UnknownTopic, now
from runs_es.log.event_log import EventLog
from runs_es.log.library import FactAggregateRecorder, FactApplication, FactEvent, FactMapper, FactRecorder


def library_environment(url: str) -> dict[str, str]:
    parts = conninfo.conninfo_to_dict(url)
    return {
        "POSTGRES_DBNAME": str(parts["dbname"]),
        "POSTGRES_HOST": str(parts["host"]),
        "POSTGRES_PORT": str(parts.get("port") or 5432),
        "POSTGRES_USER": str(parts["user"]),
        "POSTGRES_PASSWORD": str(parts.get("password") or "unused"),
        "POSTGRES_SCHEMA": "runs_es",
    }


def datastore(url: str, **settings: Any) -> PostgresDatastore:
    env = library_environment(url)
    return PostgresDatastore(
        dbname=env["POSTGRES_DBNAME"],
        host=env["POSTGRES_HOST"],
        port=env["POSTGRES_PORT"],
        user=env["POSTGRES_USER"],
        password=env["POSTGRES_PASSWORD"],
        schema="runs_es",
        originator_id_type="text",
        **settings,
    )


class OurRecorder:
    """What the suites ask of a recorder: texts as ids, versions from 0, a fresh database each."""

    INITIAL_VERSION = 0
    url: str

    @pytest.fixture(autouse=True)
    def _database(self, database_url: str) -> Iterator[None]:
        self.url = database_url
        self.opened: list[PostgresDatastore] = []
        yield
        for each in self.opened:
            each.close()

    def new_originator_id(self) -> str:
        return str(uuid.uuid4())

    def create_recorder(self) -> FactRecorder:
        self.opened.append(datastore(self.url, pool_size=12))
        return FactRecorder(self.opened[-1])


class TestAggregateSuite(OurRecorder, suites.AggregateRecorderTestCase):
    def create_recorder(self) -> FactAggregateRecorder:
        self.opened.append(datastore(self.url))
        return FactAggregateRecorder(self.opened[-1])


class TestApplicationSuite(OurRecorder, suites.ApplicationRecorderTestCase[FactRecorder]):
    def test_insert_subscribe(self) -> None:
        self.optional_test_insert_subscribe()


class TestOrderOfNotificationsSuite(OurRecorder, suites.NonInterleavingNotificationIDsBaseCase):
    pass


@pytest.fixture
def application(database_url: str) -> Iterator[FactApplication]:
    with FactApplication(env=library_environment(database_url)) as application:
        yield application


@pytest.fixture
def log(database_url: str) -> Iterator[EventLog]:
    with EventLog(database_url) as log:
        yield log


def thread_created(thread_id: str) -> ThreadCreated:
    return ThreadCreated(thread_id=thread_id, occurred_at=now())


def test_several_originators_in_one_call_are_all_or_nothing(database_url: str) -> None:
    store = datastore(database_url)
    recorder = FactRecorder(store)
    recorder.insert_events([StoredEvent("a", 0, "topic", b"1")])
    with pytest.raises(IntegrityError):
        recorder.insert_events([StoredEvent("b", 0, "topic", b"1"), StoredEvent("a", 0, "topic", b"2")])
    assert recorder.select_events("b") == []
    store.close()


def test_positions_come_back_in_the_order_the_events_were_given(database_url: str) -> None:
    store = datastore(database_url)
    recorder = FactRecorder(store)
    events = [StoredEvent("b", 0, "t", b"0"), StoredEvent("a", 0, "t", b"1"), StoredEvent("b", 1, "t", b"2")]
    positions = recorder.insert_events(events)
    assert positions is not None
    by_position = {each.id: each.state for each in recorder.select_notifications(1, 10)}
    assert [by_position[position] for position in positions] == [b"0", b"1", b"2"]
    store.close()


def test_what_the_library_saves_the_store_reads_and_the_other_way_round(
    application: FactApplication, log: EventLog
) -> None:
    thread_id = str(uuid.uuid4())
    application.save(FactEvent(thread_id, 0, thread_created(thread_id)), actor="somebody", reason="a test")
    run = Run.create(run_id="r", thread_id=thread_id, assistant_id="a")
    log.append(thread_id, run.pull_events(), expected=1).result(10)

    facts = log.reader.facts(thread_id)
    assert [each.fact.topic for each in facts] == ["thread.created", "run.created"]
    assert facts[0].provenance.actor == "somebody"
    assert [each.run_id for each in log.reader.rows_after(thread_id, 0, 10)] == [None, "r"]
    events = list(application.events.get(thread_id))
    assert [event.fact for event in events] == [each.fact for each in facts]


def test_the_librarys_notification_log_pages_over_the_store(application: FactApplication, log: EventLog) -> None:
    for number in range(7):
        log.append(f"t{number}", [thread_created(f"t{number}")], expected=0).result(10)
    section = application.notification_log["1,5"]
    assert [item.originator_id for item in section.items] == ["t0", "t1", "t2", "t3", "t4"]
    assert section.next_id == "6,10"


def test_the_librarys_subscription_sees_what_the_store_appends(application: FactApplication, log: EventLog) -> None:
    with ApplicationSubscription(application, gt=0) as subscription:
        log.append("t", [thread_created("t")], expected=0).result(10)
        event, tracking = next(iter(subscription))
    assert isinstance(event, FactEvent)
    assert event.fact.topic == "thread.created"
    assert tracking.notification_id == 1


class CountedFacts(POPOTrackingRecorder):
    def __init__(self) -> None:
        super().__init__()
        self.topics: list[str] = []


class CountFacts(Projection[CountedFacts]):
    name = "counted"
    topics = ()

    def process_event(self, domain_event: Any, tracking: Tracking) -> None:
        self.view.topics.append(domain_event.fact.topic)
        self.view.insert_tracking(tracking)


def test_the_librarys_projection_runner_works_over_the_store(database_url: str, log: EventLog) -> None:
    log.append("t", [thread_created("t")], expected=0).result(10)
    runner: Callable[..., ProjectionRunner[Application[str], CountedFacts]] = ProjectionRunner
    with runner(
        application_class=FactApplication,
        projection_class=CountFacts,
        view_class=CountedFacts,
        env=library_environment(database_url),
    ) as running:
        run = Run.create(run_id="r", thread_id="t", assistant_id="a")
        appended = log.append("t", run.pull_events(), expected=1).result(10)
        running.wait(appended.position, timeout=10)
        assert running.projection.view.topics == ["thread.created", "run.created"]


def test_a_topic_that_is_not_registered_is_refused_not_imported(application: FactApplication) -> None:
    mapper = application.mapper
    assert isinstance(mapper, FactMapper)
    with pytest.raises(UnknownTopic, match="os:system"):
        mapper.to_domain_event(StoredEvent("t", 0, "os:system", b"{}"))


class Order(Aggregate):
    INITIAL_VERSION = 0

    @event("Placed")
    def __init__(self) -> None:
        self.paid = False


class Shop(Application[uuid.UUID]):
    """An application of somebody's own that was pointed at the store's persistence module."""


def test_an_aggregate_of_ones_own_is_refused_and_no_read_model_stops(database_url: str, settings: Settings) -> None:
    env = {**library_environment(database_url), "PERSISTENCE_MODULE": "runs_es.log.library", "CREATE_TABLE": "no"}
    with Shop(env=env) as shop, pytest.raises(UnknownTopic, match=r"Order\.Placed' is no fact of this store"):
        shop.save(Order())
    with open_store(settings, work=False) as store:
        assert store.log.reader.last_position() == 0
        asyncio.run(store.service.create_thread("t"))
        assert [each.thread_id for each in store.threads.search()] == ["t"]


def test_an_application_of_facts_says_so_to_what_is_none(application: FactApplication) -> None:
    with pytest.raises(TypeError, match=r"records facts of runs \(FactEvent\), not Order.Placed"):
        application.save(Order())  # type: ignore[arg-type]


def test_a_version_that_is_not_the_next_one_is_told_which_is(application: FactApplication) -> None:
    with pytest.raises(IntegrityError, match="next version of originator t is 0, not 1; versions begin at 0 here"):
        application.save(FactEvent("t", 1, thread_created("t")))
    application.save(FactEvent("t", 0, thread_created("t")))
    with pytest.raises(IntegrityError, match=r"next version of originator t is 1, not 3$"):
        application.save(FactEvent("t", 3, thread_created("t")))


def test_conflicting_saves_of_one_version_let_exactly_one_win(application: FactApplication) -> None:
    thread_id = str(uuid.uuid4())
    outcomes: list[str] = []

    def save() -> None:
        try:
            application.save(FactEvent(thread_id, 0, thread_created(thread_id)))
            outcomes.append("won")
        except IntegrityError:
            outcomes.append("lost")

    threads = [threading.Thread(target=save) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert sorted(outcomes) == ["lost"] * 7 + ["won"]
