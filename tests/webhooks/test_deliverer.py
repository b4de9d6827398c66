"""Deliveries of a store to a real receiver that fails, hesitates, redirects, and comes back."""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import ExitStack
from datetime import datetime
from typing import Any

import pytest
from standardwebhooks import Webhook

from runs_es.domain import CancelAction, Provenance, RunScope, RunStatus
from runs_es.log.retention import erase_thread
from runs_es.service.commands import CancelRunCommand, CreateRunCommand
from runs_es.service.views import RunSnapshot, run_body
from runs_es.webhooks.deliverer import MAX_BACKOFF, backoff
from runs_projections.wiring import Store
from tests.webhooks.conftest import OpenStore, settled
from tests.webhooks.receiver import Receiver
from tests.webhooks.test_signature import NEW, OLD


def create(store: Store, url: str, script: dict[str, Any] | None = None, **fields: Any) -> RunSnapshot:
    command = CreateRunCommand(assistant_id="a", input=script or {}, options={"webhook": url}, **fields)
    return asyncio.run(store.service.create_background(command))


def test_a_run_that_succeeds_is_told_once_with_all_that_the_platform_says(store: Store, receiver: Receiver) -> None:
    run = create(store, receiver.url("/hook?token=1"), {"frames": [["values", {"n": 1}], ["values", {"n": 2}]]})
    found = settled(store, run.thread_id, run.run_id, "delivered")
    (request,) = receiver.requests
    ended = store.runs.get(run.run_id)
    assert ended is not None
    expected = run_body(RunSnapshot.from_run(ended))
    body = request.json
    assert {name: body[name] for name in expected} == expected
    assert body["status"] == "success"
    assert body["values"] == {"n": 2}
    assert body["kwargs"]["webhook"] == receiver.url("/hook?token=1")
    assert body["created_at"] < body["run_started_at"] < body["run_ended_at"] < body["webhook_sent_at"]
    assert "error" not in body
    assert request.path == "/hook?token=1"
    assert request.headers["content-type"] == "application/json"
    assert request.id == found.delivery_id == f"msg_{run.run_id}"
    assert "webhook-signature" not in request.headers
    assert (found.attempts, found.last_status, found.last_error) == (1, 200, None)


def test_a_failed_run_says_why(store: Store, receiver: Receiver) -> None:
    run = create(store, receiver.url(), {"frames": [["values", {"n": 1}]], "fail": "no more tokens"})
    settled(store, run.thread_id, run.run_id, "delivered")
    body = receiver.requests[0].json
    assert (body["status"], body["error"], body["values"]) == ("error", "no more tokens", {"n": 1})


@pytest.mark.parametrize("action", list(CancelAction))
def test_a_cancelled_run_is_told_and_one_rolled_back_carries_no_values(
    store: Store, receiver: Receiver, action: CancelAction
) -> None:
    run = create(store, receiver.url(), {"frames": [["values", {"n": 1}]], "hold": "x"})
    asyncio.run(store.service.cancel(CancelRunCommand(run_id=run.run_id, action=action, wait=True)))
    settled(store, run.thread_id, run.run_id, "delivered")
    body = receiver.requests[0].json
    assert body["status"] == "interrupted"
    assert "error" not in body
    if action is CancelAction.ROLLBACK:
        assert body["values"] is None
        assert store.runs.get(run.run_id) is None


def test_a_run_cancelled_before_it_began_is_told(store: Store, receiver: Receiver) -> None:
    run = create(store, receiver.url(), after_seconds=3600)
    assert settled(store, run.thread_id, run.run_id, "waiting").attempts == 0
    asyncio.run(store.service.cancel(CancelRunCommand(run_id=run.run_id)))
    settled(store, run.thread_id, run.run_id, "delivered")
    body = receiver.requests[0].json
    assert (body["status"], body["run_started_at"], body["values"]) == ("interrupted", None, None)


def test_a_run_on_a_temporary_thread_is_told_with_its_values(store: Store, receiver: Receiver) -> None:
    script = {"frames": [["values", {"n": 1}]]}
    run = create(store, receiver.url(), script, scope=RunScope.TEMPORARY_THREAD)
    settled(store, run.thread_id, run.run_id, "delivered")
    assert store.threads.get(run.thread_id) is None
    assert receiver.requests[0].json["values"] == {"n": 1}


def test_a_run_deleted_since_and_its_thread_too_is_still_told_as_it_ended(store: Store, receiver: Receiver) -> None:
    answering = threading.Event()
    receiver.script = lambda made, _: 503 if not answering.is_set() else 200
    run = create(store, receiver.url(), {"frames": [["values", {"n": 1}]]})
    receiver.wait_for(lambda it: len(it.requests) > 0)
    asyncio.run(store.service.delete_run(run.thread_id, run.run_id, user_id=None, provenance=Provenance()))
    asyncio.run(store.service.delete_thread(run.thread_id, provenance=Provenance()))
    answering.set()
    settled(store, run.thread_id, run.run_id, "delivered")
    first, last = receiver.requests[0].json, receiver.requests[-1].json
    assert first.pop("webhook_sent_at") < last.pop("webhook_sent_at")
    assert first == last


def test_an_erased_thread_owes_nothing(store: Store, receiver: Receiver) -> None:
    receiver.script = lambda *_: 503
    run = create(store, receiver.url())
    receiver.wait_for(lambda it: len(it.requests) > 0)
    erase_thread(store.log, run.thread_id, provenance=Provenance(), force=True)
    for _ in range(600):
        store.webhooks.follow()
        if store.webhooks.find(run.thread_id, run.run_id) is None:
            return
    raise AssertionError("the delivery is still there")


def test_what_fails_is_sent_again_under_the_same_id_until_it_is_acknowledged(store: Store, receiver: Receiver) -> None:
    receiver.script = lambda made, _: [500, 302, 404, 204][made]
    run = create(store, receiver.url())
    found = settled(store, run.thread_id, run.run_id, "delivered")
    assert (found.attempts, found.last_status) == (4, 204)
    assert {request.id for request in receiver.requests} == {found.delivery_id}
    assert len(receiver.requests) == 4


def test_a_redirect_is_not_followed(store: Store, receiver: Receiver) -> None:
    with Receiver() as elsewhere:
        receiver.script = lambda made, _: (307, {"location": elsewhere.url()}) if made == 0 else 200
        run = create(store, receiver.url())
        settled(store, run.thread_id, run.run_id, "delivered")
        assert len(receiver.requests) == 2
        assert elsewhere.requests == []


def test_a_receiver_that_takes_too_long_is_left_and_asked_again(open_quick: OpenStore, receiver: Receiver) -> None:
    store = open_quick(webhook_timeout_seconds=0.3)
    enough = threading.Event()
    receiver.script = lambda made, _: 200 if made else (enough.wait(20), 200)[1]
    run = create(store, receiver.url())
    receiver.wait_for(lambda it: len(it.requests) > 1)
    enough.set()
    found = settled(store, run.thread_id, run.run_id, "delivered")
    assert found.attempts == 2


def test_what_is_never_acknowledged_is_given_up_loudly_and_can_be_begun_anew(
    open_quick: OpenStore, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_quick(webhook_attempts=3)
    receiver.script = lambda made, _: 500 if made < 3 else 200
    run = create(store, receiver.url())
    found = settled(store, run.thread_id, run.run_id, "failed")
    assert (found.attempts, found.last_status, found.last_error) == (3, 500, "the receiver answered 500")
    assert found.next_attempt_at is None
    assert store.webhooks.backlog().states == {"failed": 1}
    (said,) = [each for each in caplog.records if each.levelname == "ERROR"]
    assert run.run_id in said.getMessage()
    assert "given up after 3 attempts" in said.getMessage()
    assert store.webhooks.retry(run_id=run.run_id) == 1
    assert settled(store, run.thread_id, run.run_id, "delivered").attempts == 1
    assert len(receiver.requests) == 4


def test_a_receiver_that_is_gone_is_asked_no_more(store: Store, receiver: Receiver) -> None:
    receiver.script = lambda *_: 410
    run = create(store, receiver.url())
    found = settled(store, run.thread_id, run.run_id, "failed")
    assert (found.attempts, found.last_status) == (1, 410)


def test_a_receiver_that_asks_for_time_gets_it(store: Store, receiver: Receiver) -> None:
    receiver.script = lambda *_: (429, {"retry-after": "600"})
    run = create(store, receiver.url())
    receiver.wait_for(lambda it: len(it.requests) == 1)
    for _ in range(600):
        found = store.webhooks.find(run.thread_id, run.run_id)
        assert found is not None
        if found.last_status == 429:
            break
    assert found.next_attempt_at is not None
    assert found.last_attempt_at is not None
    assert _seconds(found.last_attempt_at, found.next_attempt_at) > 590


def test_a_name_that_leads_to_an_address_that_is_not_public_is_given_up(
    open_quick: OpenStore, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_quick(webhook_allowed_networks=[])
    _names(monkeypatch, {"rebound.example": ["93.184.215.14", "127.0.0.1"]})
    run = create(store, f"http://rebound.example:{receiver.port}/")
    found = settled(store, run.thread_id, run.run_id, "failed")
    assert found.last_error is not None
    assert "127.0.0.1 is a loopback address" in found.last_error
    assert (found.attempts, receiver.requests) == (1, [])


def test_the_address_that_was_checked_is_the_one_connected_to(
    store: Store, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up = _names(monkeypatch, {"hooks.example": ["127.0.0.1"]})
    run = create(store, f"http://hooks.example:{receiver.port}/")
    settled(store, run.thread_id, run.run_id, "delivered")
    assert receiver.requests[0].headers["host"] == f"hooks.example:{receiver.port}"
    assert looked_up == ["hooks.example"], "a second look-up could have answered something else"


def test_an_address_that_does_not_answer_leaves_time_for_the_others_of_its_name(
    store: Store, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as stack:
        deaf = stack.enter_context(socket.socket())
        deaf.bind(("127.0.0.2", receiver.port))
        deaf.listen(0)
        for _ in range(4):  # its queue is full: who comes now hears nothing
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(deaf.getsockname())
        _names(monkeypatch, {"two.example": ["127.0.0.2", "127.0.0.1"]})
        run = create(store, f"http://two.example:{receiver.port}/")
        assert settled(store, run.thread_id, run.run_id, "delivered").attempts == 1


def test_a_signed_webhook_is_verified_by_the_receivers_library(open_quick: OpenStore, receiver: Receiver) -> None:
    store = open_quick(webhook_secret=f"{NEW} {OLD}")
    run = create(store, receiver.url(), {"frames": [["values", {"text": "über"}]]})
    settled(store, run.thread_id, run.run_id, "delivered")
    (request,) = receiver.requests
    assert Webhook(OLD).verify(request.body, request.headers)["run_id"] == run.run_id


def test_a_webhook_owed_by_a_process_without_a_worker_is_sent_by_the_next_that_has_one(
    open_quick: OpenStore, receiver: Receiver
) -> None:
    first = open_quick(work=False)
    run = create(first, receiver.url(), after_seconds=3600)
    asyncio.run(first.service.cancel(CancelRunCommand(run_id=run.run_id)))
    ended = first.runs.get(run.run_id)
    assert ended is not None
    assert ended.status is RunStatus.INTERRUPTED
    assert receiver.requests == []
    settled(open_quick(), run.thread_id, run.run_id, "delivered")
    assert len(receiver.requests) == 1


def test_three_processes_share_the_work_and_send_each_webhook_once(open_quick: OpenStore, receiver: Receiver) -> None:
    stores = [open_quick() for _ in range(3)]
    runs = [create(stores[n % 3], receiver.url()) for n in range(60)]
    for run in runs:
        settled(stores[0], run.thread_id, run.run_id, "delivered")
    assert sorted(request.id for request in receiver.requests) == sorted(f"msg_{run.run_id}" for run in runs)


def test_a_slow_receiver_does_not_hold_up_the_others(open_quick: OpenStore, receiver: Receiver) -> None:
    store = open_quick(webhook_concurrency=4, webhook_timeout_seconds=20)
    enough = threading.Event()
    receiver.script = lambda *_: (enough.wait(20), 200)[1]
    for _ in range(12):
        create(store, receiver.url())
    receiver.wait_for(lambda it: len(it.requests) == 2)
    with Receiver() as other:
        run = create(store, f"http://localhost:{other.port}/")
        settled(store, run.thread_id, run.run_id, "delivered")
    assert sum(request.headers["host"].startswith("127.0.0.1") for request in receiver.requests) == 2
    enough.set()


def test_the_wait_between_attempts_doubles_up_to_an_hour_and_half_of_it_is_chance() -> None:
    for attempts, longest in ((1, 2.0), (2, 4.0), (3, 8.0), (11, 2048.0), (12, MAX_BACKOFF), (100, MAX_BACKOFF)):
        waits = [backoff(2.0, attempts) for _ in range(200)]
        assert longest / 2 <= min(waits) < 0.6 * longest
        assert 0.9 * longest < max(waits) <= longest


def _seconds(since: str, until: str) -> float:
    return (datetime.fromisoformat(until) - datetime.fromisoformat(since)).total_seconds()


def _names(monkeypatch: pytest.MonkeyPatch, known: dict[str, list[str]]) -> list[str]:
    """Answer for these names as a name server would; what was asked for."""
    asked: list[str] = []
    real = socket.getaddrinfo

    def answer(host: Any, port: Any, *rest: Any, **named: Any) -> Any:
        if host not in known:
            return real(host, port, *rest, **named)
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in known[host]]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    return asked
