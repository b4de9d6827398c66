"""Crons over a real store, at moments that the test chooses: one run a tick, whoever fires it, however often."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from runs_es.domain import (
    CronDeleted,
    CronFired,
    CronSkipped,
    Fact,
    MultitaskStrategy,
    Provenance,
    RunCreated,
    RunScope,
    StoreUnavailable,
    cron_thread,
)
from runs_es.execution.protocol import ActiveRun
from runs_es.service import cron_scheduler
from runs_es.service.commands import CancelRunsCommand, CreateRunCommand
from runs_es.service.cron_scheduler import CronScheduler
from runs_es.service.crons import CronSnapshot, NewCron
from runs_es.settings import Settings
from runs_projections import rebuild
from runs_projections.wiring import Store, open_store
from tests.projections.comparing import folded, stored

MINUTE = timedelta(minutes=1)
TICKS = 6
HOURLY = NewCron(assistant_id="nobody", schedule="@hourly", on_run_completed="delete")


class Nobody:
    """No run is executed here."""

    async def execute(self, run: ActiveRun) -> None:
        raise AssertionError("a run was executed")


def opened(settings: Settings) -> Store:
    return open_store(settings, executor=Nobody(), work=False)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"cron_min_seconds": 1, "max_crons_per_user": 3})


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    with opened(settings) as store:
        yield store


def launch(cron: CronSnapshot, thread_id: str) -> CreateRunCommand:
    own = cron.run_thread_id is None
    return CreateRunCommand(
        assistant_id=cron.assistant_id,
        thread_id=thread_id,
        metadata={**cron.metadata, "cron_id": cron.cron_id},
        scope=RunScope.TEMPORARY_THREAD if own else RunScope.STATEFUL,
        create_thread=own,
        multitask_strategy=MultitaskStrategy(cron.payload.get("multitask_strategy", "enqueue")),
    )


def now_of(store: Store, cron: CronSnapshot) -> CronSnapshot:
    current = store.cron_lists.current(cron.cron_id)
    assert current is not None
    return current


def due(cron: CronSnapshot) -> datetime:
    assert cron.tick is not None
    return cron.tick


def facts(store: Store, cron: CronSnapshot) -> list[Fact]:
    return [each.fact for each in store.log.reader.facts(cron_thread(cron.cron_id))]


def runs(store: Store, cron: CronSnapshot) -> list[RunCreated]:
    everything = (each.fact for each in store.log.reader.facts_after(0, 100_000))
    created = (fact for fact in everything if isinstance(fact, RunCreated))
    return [fact for fact in created if fact.metadata.get("cron_id") == cron.cron_id]


def ticks(store: Store, cron: CronSnapshot) -> list[str]:
    return [fact.tick for fact in facts(store, cron) if isinstance(fact, CronFired)]


def thread_cron(store: Store, **fields: Any) -> CronSnapshot:
    thread_id = asyncio.run(store.service.create_thread("t"))
    return store.crons.create(NewCron(assistant_id="nobody", schedule="@hourly", run_thread_id=thread_id, **fields))


# --- one tick ---


def test_a_tick_becomes_a_run_once_and_the_cron_moves_to_the_next(store: Store) -> None:
    cron = store.crons.create(HOURLY)
    tick = due(cron)
    assert not store.crons.fire(cron, tick - timedelta(microseconds=1), launch)
    assert store.crons.fire(cron, tick, launch)
    assert not store.crons.fire(cron, tick, launch)
    after = now_of(store, cron)
    assert due(after) == tick + timedelta(hours=1)
    (run,) = runs(store, cron)
    (fired,) = [fact for fact in facts(store, cron) if isinstance(fact, CronFired)]
    assert (fired.tick, fired.run_id, fired.run_thread_id) == (cron.next_run_date, run.run_id, run.thread_id)
    (recorded,) = [each for each in store.log.reader.run_facts(run.run_id) if isinstance(each.fact, RunCreated)]
    assert recorded.provenance.actor == f"cron:{cron.cron_id}"
    assert recorded.provenance.reason == f"due at {cron.next_run_date}"


def test_who_is_killed_after_the_run_was_created_leaves_it_to_be_found(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    cron = store.crons.create(HOURLY)
    with monkeypatch.context() as killed:
        killed.setattr(store.crons, "_append", _dies)
        with pytest.raises(KeyboardInterrupt):
            store.crons.fire(cron, due(cron), launch)
    assert (len(runs(store, cron)), ticks(store, cron)) == (1, [])
    assert store.crons.fire(now_of(store, cron), due(cron) + MINUTE / 2, launch)
    assert (len(runs(store, cron)), ticks(store, cron)) == (1, [cron.next_run_date])


def _dies(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("strategy", list(MultitaskStrategy))
def test_two_processes_that_fire_the_same_ticks_at_once_make_one_run_of_each(
    settings: Settings, strategy: MultitaskStrategy
) -> None:
    with opened(settings) as first, opened(settings) as second, ThreadPoolExecutor(2) as pool:
        cron = thread_cron(first, payload={"multitask_strategy": strategy.value})
        fired = []
        for _ in range(TICKS):
            if fired and strategy is MultitaskStrategy.REJECT:  # a busy thread would reject the next run, rightly
                last = CancelRunsCommand(thread_id="t", run_ids=[runs(first, cron)[-1].run_id])
                asyncio.run(first.service.cancel_several(last))
            snapshots = now_of(first, cron), now_of(second, cron)
            gate = threading.Barrier(2)
            tries = [
                pool.submit(_fire_at, gate, each, snapshot)
                for each, snapshot in zip((first, second), snapshots, strict=True)
            ]
            assert any(each.result(30) for each in tries)
            fired.append(snapshots[0].next_run_date)
        assert ticks(first, cron) == fired
        assert [type(fact) for fact in facts(first, cron)[1:]] == [CronFired] * TICKS
        assert len(runs(first, cron)) == TICKS


def _fire_at(gate: threading.Barrier, store: Store, cron: CronSnapshot) -> bool:
    gate.wait(10)
    return store.crons.fire(cron, due(cron), launch)


def test_a_run_of_the_tick_that_another_creates_while_we_look_is_not_a_busy_thread(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(settings) as first, opened(settings) as second:
        cron = thread_cron(first, payload={"multitask_strategy": "reject"})
        look = first.log.reader.by_idem_key
        monkeypatch.setattr(second.crons, "_append", _dies)

        def looks_too_early(thread_id: str, key: str) -> Any:
            monkeypatch.setattr(first.log.reader, "by_idem_key", look)
            with pytest.raises(KeyboardInterrupt):
                second.crons.fire(cron, due(cron), launch)
            return None

        monkeypatch.setattr(first.log.reader, "by_idem_key", looks_too_early)
        assert first.crons.fire(cron, due(cron), launch)
        assert (len(runs(first, cron)), ticks(first, cron)) == (1, [cron.next_run_date])


# --- what was changed ---


def test_a_cron_that_was_changed_or_deleted_since_it_was_read_is_not_fired(store: Store) -> None:
    cron = store.crons.create(HOURLY)
    changed = store.crons.update(cron.cron_id, lambda _: {"metadata": {"a": 1}})
    assert due(changed) == due(cron)
    assert not store.crons.fire(cron, due(cron), launch)
    store.crons.delete(cron.cron_id)
    assert not store.crons.fire(changed, due(cron), launch)
    assert (runs(store, cron), store.cron_lists.current(cron.cron_id)) == ([], None)


def test_a_cron_that_is_off_has_no_date_and_counts_from_when_it_is_on_again(store: Store) -> None:
    cron = store.crons.create(HOURLY)
    off = store.crons.update(cron.cron_id, lambda _: {"enabled": False})
    assert off.next_run_date is None
    assert not store.crons.fire(off, due(cron), launch)
    assert due(store.crons.update(cron.cron_id, lambda _: {"enabled": True})) == due(cron)


def test_no_tick_after_the_end_time_is_run(store: Store) -> None:
    cron = store.crons.create(HOURLY)
    end = due(cron) + timedelta(hours=1)
    cron = store.crons.update(cron.cron_id, lambda _: {"end_time": end.isoformat()})
    store.crons.fire(cron, due(cron), launch)
    last = now_of(store, cron)
    assert due(last) == end  # the end itself is in
    store.crons.fire(last, due(last), launch)
    assert now_of(store, cron).next_run_date is None
    later = store.crons.update(cron.cron_id, lambda _: {"end_time": None})
    assert later.next_run_date is not None


def test_a_cron_whose_thread_is_gone_goes_too_and_says_why(store: Store) -> None:
    cron = thread_cron(store)
    asyncio.run(store.service.delete_thread("t", provenance=Provenance()))
    assert store.crons.fire(cron, due(cron), launch)
    last = store.log.reader.facts(cron_thread(cron.cron_id))[-1]
    assert isinstance(last.fact, CronDeleted)
    assert last.provenance.reason == "its thread t is gone"
    assert store.cron_lists.current(cron.cron_id) is None


def test_a_run_that_is_refused_leaves_its_tick_out_and_the_next_is_tried(store: Store) -> None:
    def refuse(cron: CronSnapshot, thread_id: str) -> CreateRunCommand:
        raise ValueError("no such graph")

    cron = store.crons.create(HOURLY)
    assert store.crons.fire(cron, due(cron), refuse)
    skipped = facts(store, cron)[-1]
    assert isinstance(skipped, CronSkipped)
    assert (skipped.tick, skipped.reason) == (cron.next_run_date, "refused: no such graph")
    assert store.crons.fire(now_of(store, cron), due(now_of(store, cron)), launch)
    assert len(runs(store, cron)) == 1


# --- ticks that were missed ---


def fire_all(store: Store, cron: CronSnapshot, moment: datetime) -> None:
    while store.crons.fire(now_of(store, cron), moment, launch):
        pass


def after(store: Store, cron: CronSnapshot) -> list[Any]:
    """What became of a cron: a tick where one was fired, or how many were left out."""
    told: list[Any] = []
    for fact in facts(store, cron)[1:]:
        if isinstance(fact, CronFired):
            told.append(datetime.fromisoformat(fact.tick) - due(cron))
        elif isinstance(fact, CronSkipped):
            assert fact.reason.startswith("missed: no server ran it by")
            told.append("missed")
    return told


def test_ticks_that_are_a_little_late_all_run(store: Store) -> None:
    cron = store.crons.create(NewCron(assistant_id="nobody", schedule="*/20 * * * * *"))
    fire_all(store, cron, due(cron) + MINUTE)
    assert after(store, cron) == [timedelta(seconds=20 * n) for n in range(4)]


def test_of_ticks_missed_for_longer_the_latest_runs_once(store: Store) -> None:
    cron = store.crons.create(HOURLY)
    fire_all(store, cron, due(cron) + timedelta(hours=30.5))
    assert after(store, cron) == ["missed", timedelta(hours=30)]
    assert due(now_of(store, cron)) == due(cron) + timedelta(hours=31)


def test_a_single_tick_that_was_missed_runs_however_late(store: Store) -> None:
    cron = store.crons.create(NewCron(assistant_id="nobody", schedule="@yearly"))
    fire_all(store, cron, due(cron) + timedelta(days=100))
    assert after(store, cron) == [timedelta(0)]


def test_the_latest_that_was_missed_is_the_one_before_the_end(store: Store) -> None:
    cron = store.crons.create(HOURLY)
    end = (due(cron) + timedelta(hours=5.5)).isoformat()
    cron = store.crons.update(cron.cron_id, lambda _: {"end_time": end})
    moment = due(cron) + timedelta(days=3)
    while store.crons.fire(now_of(store, cron), moment, launch):
        pass
    assert after(store, cron) == ["missed", timedelta(hours=5)]
    assert now_of(store, cron).next_run_date is None


def test_missed_ticks_can_be_left_out_altogether(settings: Settings) -> None:
    with opened(settings.model_copy(update={"cron_missed": "skip"})) as store:
        cron = store.crons.create(HOURLY)
        fire_all(store, cron, due(cron) + timedelta(hours=30.5))
        assert after(store, cron) == ["missed"]
        assert due(now_of(store, cron)) == due(cron) + timedelta(hours=31)


def test_a_tick_whose_run_exists_is_fired_however_late_it_is_said(store: Store) -> None:
    """A process created it in time and was held up; another looks when the tick counts as missed."""
    cron = store.crons.create(HOURLY)
    store.crons._run(cron, due(cron), launch)
    fire_all(store, cron, due(cron) + timedelta(hours=30.5))
    assert after(store, cron) == [timedelta(0), "missed", timedelta(hours=30)]
    assert len(runs(store, cron)) == 2


# --- limits ---


def test_a_user_may_have_so_many_crons_and_no_more(store: Store) -> None:
    for _ in range(3):
        store.crons.create(NewCron(assistant_id="a", schedule="@daily", user_id="ada"))
    with pytest.raises(ValueError, match=r"there are 3 crons already \(RUNS_ES_MAX_CRONS_PER_USER\)"):
        store.crons.create(NewCron(assistant_id="a", schedule="@daily", user_id="ada"))
    store.crons.create(NewCron(assistant_id="a", schedule="@daily", user_id="bob"))


def test_a_schedule_that_is_too_dense_is_refused(settings: Settings) -> None:
    with opened(settings.model_copy(update={"cron_min_seconds": 10})) as store:
        with pytest.raises(ValueError, match=r"comes every 1 s; 10 s must be between two"):
            store.crons.create(NewCron(assistant_id="a", schedule="* * * * * *"))
        cron = store.crons.create(NewCron(assistant_id="a", schedule="*/10 * * * * *"))
        with pytest.raises(ValueError, match=r"comes every 5 s"):
            store.crons.update(cron.cron_id, lambda _: {"schedule": "*/5 * * * * *"})


# --- the read model ---


def test_a_rebuilt_read_model_knows_what_is_due_next(store: Store) -> None:
    cron = store.crons.create(HOURLY)
    fire_all(store, cron, due(cron))
    gone = store.crons.create(HOURLY)
    store.crons.delete(gone.cron_id)
    before = stored(store.log)["crons"]
    assert [row.next_run_date for row in before.values()] == [now_of(store, cron).next_run_date]
    rebuild(store.log, ["crons"])
    assert stored(store.log)["crons"] == before == folded(store.log)["crons"]


def test_nobody_changes_a_cron_by_a_read_model_that_lags(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(settings.model_copy(update={"list_wait_seconds": 0.1})) as store:
        cron = store.crons.create(HOURLY)
        store.projector.close()
        with pytest.raises(StoreUnavailable):
            store.crons.update(cron.cron_id, lambda _: {"enabled": False})
        assert not store.crons.fire(cron, due(cron), launch)
        assert runs(store, cron) == []


# --- who fires ---


def scheduler(store: Store, fire: Callable[[CronSnapshot, datetime], bool]) -> CronScheduler:
    return CronScheduler(store.database.url, store.settings.db_schema, store.cron_lists.due, fire)


def until(is_so: Callable[[], bool], seconds: float = 20) -> None:
    """Look again and again."""
    deadline = datetime.now(UTC) + timedelta(seconds=seconds)
    while not is_so():
        assert datetime.now(UTC) < deadline, "it did not become so"
        threading.Event().wait(0.02)


def test_one_process_leads_and_another_takes_over_when_its_session_is_lost(store: Store) -> None:
    first, second = (scheduler(store, lambda *_: False) for _ in range(2))
    first.start()
    until(lambda: first.leads)
    second.start()
    try:
        with psycopg.connect(store.database.url, autocommit=True) as connection:
            waiting = "select count(*) from pg_stat_activity where application_name = 'runs-es crons'"
            until(lambda: connection.execute(waiting).fetchone() == (2,))
            assert not second.leads
            connection.execute(
                "select pg_terminate_backend(l.pid) from pg_locks l join pg_stat_activity a using (pid)"
                " where l.locktype = 'advisory' and a.application_name = 'runs-es crons'"
            )
        until(lambda: first.leads != second.leads)
    finally:
        first.close()
        second.close()


def test_a_leader_that_hangs_delays_ticks_and_loses_none(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cron_scheduler, "FOLLOWER_SECONDS", 0.5)
    hangs, let_go = threading.Event(), threading.Event()

    def hang(cron: CronSnapshot, moment: datetime) -> bool:
        hangs.set()
        return not let_go.wait(60)

    first = scheduler(store, hang)
    second = scheduler(store, lambda cron, moment: store.crons.fire(cron, moment, launch))
    first.start()
    until(lambda: first.leads)
    second.start()
    try:
        cron = store.crons.create(NewCron(assistant_id="nobody", schedule="* * * * * *"))
        assert hangs.wait(20)
        until(lambda: len(ticks(store, cron)) >= 2)
        assert not second.leads
    finally:
        let_go.set()
        first.close()
        second.close()
    fired = [datetime.fromisoformat(tick) for tick in ticks(store, cron)]
    assert fired == [due(cron) + timedelta(seconds=n) for n in range(len(fired))]


def test_a_cron_that_cannot_be_fired_keeps_no_other_from_it(store: Store) -> None:
    broken = store.crons.create(NewCron(assistant_id="broken", schedule="* * * * * *"))
    sound = store.crons.create(NewCron(assistant_id="sound", schedule="* * * * * *"))
    tried: list[str] = []

    def fire(cron: CronSnapshot, moment: datetime) -> bool:
        tried.append(cron.assistant_id)
        if cron.cron_id == broken.cron_id:
            raise RuntimeError("broken")
        return store.crons.fire(cron, moment, launch)

    firing = scheduler(store, fire)
    firing.start()
    try:
        until(lambda: len(ticks(store, sound)) >= 2)
    finally:
        firing.close()
    assert tried.count("broken") == 1
