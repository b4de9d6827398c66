"""The rows of what is owed: how they come from the log, and who may send one."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from runs_es.domain import Provenance
from runs_es.log.retention import erase_thread
from runs_es.service.commands import CancelRunCommand, CreateRunCommand
from runs_es.service.views import RunSnapshot
from runs_es.webhooks import deliverer
from runs_es.webhooks import deliveries as module
from runs_es.webhooks.deliveries import Delivery
from runs_projections.wiring import Store
from tests.webhooks.conftest import OpenStore, settled
from tests.webhooks.receiver import Receiver

URL = "http://127.0.0.1:9/"


@pytest.fixture
def idle(open_quick: OpenStore) -> Store:
    """A store that follows and sends nothing by itself."""
    return open_quick(work=False)


def create(store: Store, **fields: Any) -> RunSnapshot:
    given = {"assistant_id": "a", "options": {"webhook": URL}, "after_seconds": 3600, **fields}
    return asyncio.run(store.service.create_background(CreateRunCommand(**given)))


def ended(store: Store, **fields: Any) -> RunSnapshot:
    run = create(store, **fields)
    asyncio.run(store.service.cancel(CancelRunCommand(run_id=run.run_id)))
    return run


def claimed(store: Store, lease: float) -> Delivery:
    """The next that is due, waiting for that."""
    while True:
        delivery = store.webhooks.claim(lease)
        if delivery is not None:
            return delivery


def state(store: Store, run: RunSnapshot) -> str | None:
    found = store.webhooks.find(run.thread_id, run.run_id)
    return None if found is None else found.state


def test_only_runs_with_a_webhook_are_followed(idle: Store) -> None:
    without = ended(idle, options={})
    talks_of_it = ended(idle, options={}, input={"webhook": URL, "nested": {"webhook": URL}})
    waits, due = create(idle), ended(idle)
    assert not idle.webhooks.follow()
    assert [state(idle, run) for run in (without, talks_of_it, waits, due)] == [None, None, "waiting", "pending"]


def test_each_batch_is_taken_over_whole_or_not_at_all(idle: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run = ended(idle)
    real = module._take_over

    def dies(*arguments: Any) -> None:
        real(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_take_over", dies)
    with pytest.raises(KeyboardInterrupt):
        idle.webhooks.follow()
    assert state(idle, run) is None
    monkeypatch.setattr(module, "_take_over", real)
    idle.webhooks.follow()
    assert state(idle, run) == "pending"


@pytest.mark.parametrize("batch", [1, 4])
def test_a_log_is_followed_in_batches_of_any_size(idle: Store, monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    monkeypatch.setattr(module, "_BATCH", batch)
    runs = [ended(idle) for _ in range(3)]
    while idle.webhooks.follow():
        pass
    assert [state(idle, run) for run in runs] == ["pending"] * 3
    assert idle.webhooks.backlog().behind == 0


def test_who_comes_while_another_process_follows_does_not_wait_for_it(idle: Store, database_url: str) -> None:
    run = ended(idle)
    with psycopg.connect(database_url) as other:
        other.execute("select from runs_es.tracking where name = 'webhooks' for update")
        assert not idle.webhooks.follow()
        assert state(idle, run) is None
    idle.webhooks.follow()
    assert state(idle, run) == "pending"


def test_what_one_has_claimed_nobody_else_can_before_its_lease_is_over(idle: Store) -> None:
    ended(idle)
    idle.webhooks.follow()
    first = claimed(idle, 0.2)
    assert idle.webhooks.claim(10) is None
    second = claimed(idle, 10)
    assert (first.run_id, first.attempts, second.attempts) == (second.run_id, 1, 2)
    assert first.delivery_id == second.delivery_id
    assert idle.webhooks.claim(10) is None


def test_a_failure_that_is_told_too_late_changes_nothing(idle: Store) -> None:
    run = ended(idle)
    idle.webhooks.follow()
    first = claimed(idle, 0)
    second = claimed(idle, 10)
    idle.webhooks.note_failed(first, "slow", 500, None)
    assert state(idle, run) == "pending"
    idle.webhooks.note_delivered(second, 200)
    idle.webhooks.note_failed(first, "slow", 500, 0)
    assert state(idle, run) == "delivered"
    assert idle.webhooks.claim(10) is None


def test_an_acknowledgement_counts_however_late_it_is_told(idle: Store) -> None:
    run = ended(idle)
    idle.webhooks.follow()
    first = claimed(idle, 0)
    second = claimed(idle, 10)
    idle.webhooks.note_failed(second, "down", None, None)
    assert state(idle, run) == "failed"
    idle.webhooks.note_delivered(first, 200)
    assert state(idle, run) == "delivered"
    assert idle.webhooks.retry() == 0


def test_hosts_that_are_busy_are_passed_over(idle: Store) -> None:
    ended(idle)
    other = ended(idle, options={"webhook": "http://127.0.0.2:9/"})
    idle.webhooks.follow()
    found = idle.webhooks.claim(10, ["127.0.0.1"])
    assert found is not None
    assert found.run_id == other.run_id
    assert idle.webhooks.claim(10, ["127.0.0.1"]) is None


def test_one_whose_sender_is_lost_each_time_is_given_up(open_quick: OpenStore, idle: Store) -> None:
    run = ended(idle)
    idle.webhooks.follow()
    for _ in range(2):
        claimed(idle, 0)
    with Receiver() as receiver:
        store = open_quick(webhook_attempts=2)
        found = settled(store, run.thread_id, run.run_id, "failed")
        assert found.last_error == "the process that made the last attempt was lost"
        assert receiver.requests == []


def test_a_run_that_cannot_be_read_is_tried_again_and_given_up(
    open_quick: OpenStore, idle: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(*_: Any) -> Any:
        raise ValueError("broken page")

    monkeypatch.setattr(deliverer, "ended_run", unreadable)
    run = ended(idle)
    found = settled(open_quick(webhook_attempts=2), run.thread_id, run.run_id, "failed")
    assert (found.attempts, found.last_error) == (2, "the run cannot be read: ValueError: broken page")


def test_a_thread_erased_before_its_webhook_is_due_owes_none(idle: Store) -> None:
    run = create(idle)
    idle.webhooks.follow()
    erase_thread(idle.log, run.thread_id, provenance=Provenance(), force=True)
    idle.webhooks.follow()
    assert state(idle, run) is None
