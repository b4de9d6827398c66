"""External workers over HTTP: who may claim, what may be written, what lands once, who is refused and why."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from runs_es.domain import RunFailed
from runs_es.process_log import MAX_TRACEBACK_BYTES
from runs_es.settings import Settings
from runs_projections.wiring import Store, open_store
from tests.api.conftest import ScriptedExecutor, client_of, events_of, new_thread

MESSAGE = {"id": "m1", "type": "ai", "content": "hello"}


@pytest.fixture(scope="module")
def external_settings(store_settings: Settings) -> Settings:
    return store_settings.model_copy(
        update={
            "external_assistants": "remote, other",
            "sweep_seconds": 0.1,
            "heartbeat_seconds": 0.3,
            "lease_seconds": 30.0,
            "cancel_grace_seconds": 0.3,
            "max_attempts": 2,
            "worker_max_items": 50,
        }
    )


@pytest.fixture(scope="module")
def store(external_settings: Settings, executor: ScriptedExecutor) -> Iterator[Store]:
    with open_store(external_settings, executor=executor) as opened:
        yield opened


@pytest.fixture
async def client(store: Store, external_settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(store, external_settings) as client:
        yield client


class Worker:
    """One claim, and what it knows."""

    def __init__(self, client: httpx.AsyncClient, claim: dict[str, Any]) -> None:
        self.client = client
        self.claim = claim
        self.run_id: str = claim["run_id"]
        self.thread_id: str = claim["thread_id"]
        self.known: dict[str, Any] = {key: claim[key] for key in ("claim_id", "fence", "frames")}

    async def ask(self, what: str, **body: Any) -> httpx.Response:
        return await self.client.post(f"/workers/runs/{self.run_id}/{what}", json={**self.known, **body})

    async def told(self, what: str, **body: Any) -> dict[str, Any]:
        answer = await self.ask(what, **body)
        assert answer.status_code == 200, answer.text
        told: dict[str, Any] = answer.json()
        if "frames" in told:
            self.known |= {"fence": told["fence"], "frames": told["frames"]}
        return told

    async def refused(self, what: str, **body: Any) -> dict[str, Any]:
        answer = await self.ask(what, **body)
        assert answer.status_code == 409, answer.text
        return dict(answer.json())


async def claim(client: httpx.AsyncClient, **body: Any) -> httpx.Response:
    return await client.post("/workers/claim", json={"worker_id": "w1", "assistants": ["remote"], **body})


async def claimed(client: httpx.AsyncClient, **body: Any) -> Worker:
    answer = await claim(client, wait_seconds=10, **body)
    assert answer.status_code == 200, answer.text
    return Worker(client, answer.json())


def expire(store: Store, worker: Worker) -> None:
    """As if the worker had been silent for its whole lease."""
    with store.log.reader.connection() as connection:
        connection.execute("update leases set ends_at = now() where claim_id = %s", (worker.claim["claim_id"],))


async def start(client: httpx.AsyncClient, thread: str | None = None, **body: Any) -> tuple[str, str]:
    thread = thread or await new_thread(client)
    answer = await client.post(f"/threads/{thread}/runs", json={"assistant_id": "remote", "input": {}, **body})
    assert answer.status_code == 200, answer.text
    return thread, answer.json()["run_id"]


async def status(client: httpx.AsyncClient, thread: str, run: str) -> str:
    return str((await client.get(f"/threads/{thread}/runs/{run}")).json()["status"])


async def stream(client: httpx.AsyncClient, thread: str, run: str) -> list[dict[str, str]]:
    return events_of((await client.get(f"/threads/{thread}/runs/{run}/stream")).text)


async def test_a_worker_claims_a_run_writes_and_finishes_it(client: httpx.AsyncClient):
    thread, run = await start(client, input={"say": "hello"})
    worker = await claimed(client)
    assert (worker.run_id, worker.thread_id, worker.claim["attempt"]) == (run, thread, 1)
    assert worker.claim["run"]["kwargs"]["input"] == {"say": "hello"}
    assert await status(client, thread, run) == "running"
    told = await worker.told("append", messages=[MESSAGE], events=[{"event": "custom", "data": {"n": 1}}] * 3)
    assert told["frames"] == worker.claim["frames"] + 3
    fact = {"type": "tool.called", "content": {"tool": "clock"}, "idempotency_key": "call-1"}
    await worker.told("append", facts=[fact])
    ended = await worker.told("finish", outcome="success", values={"answer": 42})
    assert ended["status"] == "success"
    shown = await stream(client, thread, run)
    assert [event["event"] for event in shown] == ["metadata", "custom", "custom", "custom", "values", "end"]
    assert (await client.get(f"/threads/{thread}/runs/{run}/join")).json() == {"answer": 42}
    messages = (await client.get(f"/threads/{thread}/messages")).json()
    assert [message["content"] for message in messages] == [MESSAGE]
    facts = (await client.get(f"/threads/{thread}/events?types=tool.called")).json()
    assert [event["content"] for event in facts] == [{"tool": "clock"}]


async def test_what_is_sent_again_after_a_lost_answer_lands_once(client: httpx.AsyncClient):
    thread, run = await start(client)
    worker = await claimed(client)
    fact = {"type": "noted", "content": 1, "idempotency_key": "k"}
    everything = {"messages": [MESSAGE], "facts": [fact], "events": [{"event": "custom", "data": 1}]}
    requests: list[dict[str, Any]] = [
        everything,
        {"events": [{"event": "custom", "data": 2}, {"event": "custom", "data": 3}]},
        {"messages": [{**MESSAGE, "content": "hello again"}]},
        {"facts": [{**fact, "idempotency_key": "k2"}]},
    ]
    for request in requests:
        first = (await worker.ask("append", **request)).json()
        again = (await worker.ask("append", **request)).json()
        assert (first["frames"], first["seq"]) == (again["frames"], again["seq"])
        worker.known["frames"] = again["frames"]
    last = {"outcome": "success", "values": {"done": True}, "events": [{"event": "custom", "data": 4}]}
    assert (await worker.ask("finish", **last)).json() == (await worker.ask("finish", **last)).json()
    data = [event["data"] for event in await stream(client, thread, run) if event["event"] in ("custom", "values")]
    assert data == ["1", "2", "3", "4", '{"done":true}']
    facts = (await client.get(f"/threads/{thread}/events?types=noted")).json()
    assert len(facts) == 2
    ends = (await client.get(f"/threads/{thread}/events?types=run.completed")).json()
    assert len(ends) == 1
    versions = (await client.get(f"/threads/{thread}/messages/m1/versions")).json()
    assert len(versions) == 2


async def test_the_same_request_sent_twice_at_once_lands_once(client: httpx.AsyncClient):
    thread, run = await start(client)
    worker = await claimed(client)
    for number in range(10):
        request = {
            "messages": [{**MESSAGE, "content": str(number)}],
            "facts": [{"type": "noted", "content": number, "idempotency_key": str(number)}],
            "events": [{"event": "custom", "data": number}] * (number % 2),
        }
        answers = await asyncio.gather(*(worker.ask("append", **request) for _ in range(3)))
        assert {answer.status_code for answer in answers} == {200}, [answer.text for answer in answers]
        worker.known["frames"] = answers[0].json()["frames"]
    await worker.told("finish", outcome="success")
    shown = [event["data"] for event in await stream(client, thread, run) if event["event"] == "custom"]
    assert shown == ["1", "3", "5", "7", "9"]
    assert len((await client.get(f"/threads/{thread}/events?types=noted")).json()) == 10
    assert len((await client.get(f"/threads/{thread}/messages/m1/versions")).json()) == 10


async def test_a_write_that_missed_another_is_told_how_many_frames_there_are(client: httpx.AsyncClient):
    await start(client)
    worker = await claimed(client)
    before = worker.known["frames"]
    await worker.told("append", events=[{"event": "custom", "data": 1}])
    worker.known["frames"] = before
    other = [{"event": "custom", "data": "another"}]
    assert await worker.refused("append", events=other) | {"detail": ""} == {
        "detail": "",
        "reason": "frames",
        "frames": before + 1,
    }
    assert (await worker.refused("finish", outcome="success"))["frames"] == before + 1
    worker.known["frames"] = before + 1
    await worker.told("finish", outcome="success")


async def test_a_worker_that_was_lost_can_write_nothing_and_learns_who_has_the_run(client: httpx.AsyncClient):
    thread, run = await start(client)
    first = await claimed(client, lease_seconds=1)
    await first.told("append", events=[{"event": "custom", "data": "first"}])
    second = await claimed(client, worker_id="w2")
    assert (second.run_id, second.claim["attempt"]) == (run, 2)
    for what in ("append", "renew", "finish", "release"):
        body = {"outcome": "success"} if what == "finish" else {"events": [{"event": "custom", "data": "late"}]}
        refusal = await first.refused(what, **body)
        assert (refusal["reason"], refusal["worker_id"], refusal["attempt"]) == ("lost", "w2", 2)
    # Not even with what the other one knows.
    first.known |= {"fence": second.known["fence"], "frames": second.known["frames"]}
    assert (await first.refused("append", events=[{"event": "custom", "data": "late"}]))["reason"] == "lost"
    await second.told("finish", outcome="success", events=[{"event": "custom", "data": "second"}])
    assert (await first.refused("finish", outcome="error"))["reason"] == "ended"
    shown = await stream(client, thread, run)
    assert [event["data"] for event in shown if event["event"] == "custom"] == ['"first"', '"second"']
    attempts = [json.loads(event["data"])["attempt"] for event in shown if event["event"] == "metadata"]
    assert attempts == [1, 2]
    facts = (await client.get(f"/threads/{thread}/events?types=run.requeued")).json()
    assert facts[0]["metadata"]["actor"] == "sweep"
    assert "w1" in facts[0]["metadata"]["reason"]


async def test_a_run_that_loses_its_worker_too_often_fails(store: Store, client: httpx.AsyncClient):
    thread, run = await start(client)
    for _ in range(2):
        worker = await claimed(client)
        expire(store, worker)
    await client.get(f"/threads/{thread}/runs/{run}/join")
    assert await status(client, thread, run) == "error"
    shown = await stream(client, thread, run)
    assert json.loads(shown[-2]["data"])["error"] == "WorkerLost"


async def test_a_worker_that_renews_keeps_its_run_and_is_told_of_a_cancel(client: httpx.AsyncClient):
    thread, run = await start(client)
    worker = await claimed(client, lease_seconds=1)
    until = worker.claim["lease_until"]
    for _ in range(3):
        told = await worker.told("renew")
        assert datetime.fromisoformat(told["lease_until"]) > datetime.fromisoformat(until)
        assert told["cancel_requested"] is None
        until = told["lease_until"]
    assert (await client.post(f"/threads/{thread}/runs/{run}/cancel")).status_code == 202
    assert (await worker.told("renew"))["cancel_requested"] == "interrupt"
    refusal = await worker.refused("append", events=[{"event": "custom", "data": 1}])
    assert (refusal["reason"], refusal["action"]) == ("cancelled", "interrupt")
    last = {"outcome": "success", "values": {"too": "late"}}
    assert (await worker.told("finish", **last))["status"] == "interrupted"
    assert [event["event"] for event in await stream(client, thread, run)] == ["metadata", "end"]
    path = f"/threads/{thread}/runs/{run}"
    request, end = (await client.get(f"{path}/events?types=run.cancel_requested,run.cancelled")).json()
    assert end["metadata"]["causation_id"] == str(request["seq"])
    assert end["metadata"]["correlation_id"] == request["metadata"]["correlation_id"]
    assert end["metadata"]["reason"].startswith("cancel requested by api")
    assert end["metadata"]["reason"] in (await client.get(f"{path}/history")).text


@pytest.mark.parametrize("action", ["interrupt", "rollback"])
async def test_a_cancelled_run_whose_worker_does_not_react_is_ended_after_the_grace(
    client: httpx.AsyncClient, action: str
):
    thread, run = await start(client)
    worker = await claimed(client)
    await worker.told("append", events=[{"event": "values", "data": {"half": "done"}}])
    cancelled = await client.post(f"/threads/{thread}/runs/{run}/cancel", params={"wait": True, "action": action})
    assert cancelled.status_code == 200
    assert (await worker.refused("append", events=[{"event": "custom", "data": 1}]))["reason"] == "ended"
    found = await client.get(f"/threads/{thread}/runs/{run}")
    assert found.status_code == 404 if action == "rollback" else found.json()["status"] == "interrupted"


@pytest.mark.parametrize(
    ("config", "said"),
    [({"timeout_seconds": 0.3}, "timeout_seconds"), ({"idle_timeout_seconds": 0.3}, "idle_timeout_seconds")],
)
async def test_timeouts_of_a_run_hold_for_external_workers_too(
    client: httpx.AsyncClient, config: dict[str, Any], said: str
):
    thread, run = await start(client, config=config)
    worker = await claimed(client)
    result = (await client.get(f"/threads/{thread}/runs/{run}/join")).json()
    assert said in result["__error__"]["message"]
    assert await status(client, thread, run) == "timeout"
    refusal = await worker.refused("renew")
    assert (refusal["reason"], refusal["status"]) == ("ended", "timeout")


async def test_outcomes_become_those_of_runs(client: httpx.AsyncClient):
    thread = await new_thread(client)
    failure = {"outcome": "error", "error": {"type": "KeyError", "message": "the key"}}
    interrupts = {"ask": [{"id": "i1", "value": "go on?"}]}
    for outcome, run_status, thread_status in [
        (failure, "error", "error"),
        ({"outcome": "timeout"}, "timeout", "error"),
        ({"outcome": "success", "values": {"n": 1}}, "success", "idle"),
        ({"outcome": "interrupted", "interrupts": interrupts}, "success", "interrupted"),
    ]:
        _, run = await start(client, thread)
        worker = await claimed(client)
        assert (await worker.told("finish", **outcome))["status"] == run_status
        assert await status(client, thread, run) == run_status
        found = (await client.get(f"/threads/{thread}")).json()
        assert found["status"] == thread_status
        if run_status == "error":
            result = (await client.get(f"/threads/{thread}/runs/{run}/join")).json()
            assert result == {"__error__": {"error": "KeyError", "message": "the key"}}
    assert found["interrupts"] == interrupts


async def test_a_workers_traceback_is_kept_for_the_operator_and_shown_to_no_client(
    client: httpx.AsyncClient, store: Store
):
    thread, run = await start(client)
    worker = await claimed(client)
    told = "Traceback (most recent call last):\n" + "x" * 100_000 + "\x00 the end"
    failure = {"type": "KeyError", "message": "the key", "traceback": told}
    ended = await worker.told("finish", outcome="error", error=failure)
    (kept,) = [each.fact for each in store.log.reader.run_facts(run) if isinstance(each.fact, RunFailed)]
    assert kept.traceback.startswith("Traceback (most recent call last):\nxxx")
    assert kept.traceback.endswith("\ufffd the end")
    assert len(kept.traceback.encode()) <= MAX_TRACEBACK_BYTES
    shown = [(await client.get(f"/threads/{thread}/runs/{run}{what}")).text for what in ("", "/events", "/stream")]
    assert not any("Traceback" in text for text in (str(ended), *shown))


async def test_a_released_run_goes_to_the_next_worker(client: httpx.AsyncClient):
    _, run = await start(client)
    worker = await claimed(client)
    assert (await worker.told("release"))["status"] == "pending"
    assert (await worker.told("release"))["status"] == "pending"
    again = await claimed(client, worker_id="w2")
    assert (again.run_id, again.claim["attempt"]) == (run, 2)
    assert (await worker.refused("release"))["worker_id"] == "w2"
    await again.told("finish", outcome="success")


async def test_releases_do_not_count_against_a_run(store: Store, client: httpx.AsyncClient):
    thread, run = await start(client)
    for _ in range(3):
        await (await claimed(client)).told("release")
    worker = await claimed(client)
    expire(store, worker)
    again = await claimed(client)
    assert (again.run_id, again.claim["attempt"]) == (run, 5)
    await again.told("finish", outcome="success")
    facts = (await client.get(f"/threads/{thread}/events?types=run.requeued")).json()
    assert [fact["content"]["cause"] for fact in facts] == ["worker_stopped"] * 3 + ["worker_lost"]


async def test_of_workers_that_race_for_runs_each_run_has_one(client: httpx.AsyncClient):
    runs = {(await start(client))[1] for _ in range(8)}
    workers = await asyncio.gather(*(claimed(client, worker_id=f"w{number}") for number in range(8)))
    assert {worker.run_id for worker in workers} == runs
    assert (await claim(client)).status_code == 204
    for worker in workers:
        await worker.told("finish", outcome="success")


async def test_a_claim_sent_again_with_its_own_id_is_the_same_claim(client: httpx.AsyncClient):
    runs = {(await start(client))[1] for _ in range(2)}
    claim_id = uuid.uuid4().hex
    first = await claimed(client, claim_id=claim_id)
    again = await claimed(client, claim_id=claim_id)
    assert first.claim["run_id"] == again.claim["run_id"]
    assert first.known == again.known
    other = await claimed(client)
    assert {first.run_id, other.run_id} == runs
    for worker in (first, other):
        await worker.told("finish", outcome="success")


async def test_a_claim_that_waits_gets_the_run_that_comes(client: httpx.AsyncClient):
    waiting = asyncio.create_task(claimed(client))
    done, _ = await asyncio.wait((waiting,), timeout=0.3)
    assert not done
    _, run = await start(client)
    worker = await waiting
    assert worker.run_id == run
    await worker.told("finish", outcome="success")
    assert (await claim(client, wait_seconds=0.1)).status_code == 204


async def test_on_a_mixed_thread_each_run_waits_for_its_own_kind_of_worker(client: httpx.AsyncClient):
    thread = await new_thread(client)
    _, first = await start(client, thread)
    _, second = await start(client, thread, assistant_id="scripted", input={"frames": [["custom", "ours"]]})
    _, third = await start(client, thread)
    worker = await claimed(client)
    assert worker.run_id == first
    assert await status(client, thread, second) == "pending"
    waiting = asyncio.create_task(claimed(client))
    await worker.told("finish", outcome="success")
    worker = await waiting
    assert worker.run_id == third
    assert await status(client, thread, second) == "success"
    await worker.told("finish", outcome="success")


async def test_a_pending_run_of_theirs_is_cancelled_without_them(client: httpx.AsyncClient):
    thread, first = await start(client)
    _, second = await start(client, thread)
    worker = await claimed(client)
    assert (await client.post(f"/threads/{thread}/runs/{second}/cancel?wait=1")).status_code == 200
    assert await status(client, thread, second) == "interrupted"
    await worker.told("release")
    # Nobody works on it now, and what an attempt may have left is to be rolled back: our own workers do that.
    answer = await client.post(f"/threads/{thread}/runs/{first}/cancel", params={"wait": True, "action": "rollback"})
    assert answer.status_code == 200
    assert (await client.get(f"/threads/{thread}/runs/{first}")).status_code == 404


async def test_frames_come_out_byte_for_byte_as_they_went_in(client: httpx.AsyncClient):
    thread, run = await start(client)
    worker = await claimed(client)
    texts = ['{"a": 1.0,  "b":[1e3 , 12345678901234567890123]}', '"\\u00e9 é 😀 \\u2028"', "null", '{"a":1,"a":2}']
    for text in texts:
        await worker.told("append", events=[{"event": "custom", "json": text}])
    await worker.told("finish", outcome="success", events=[{"event": "custom|sub", "json": text} for text in texts])
    shown = await stream(client, thread, run)
    assert [event["data"] for event in shown if event["event"].startswith("custom")] == [*texts, *texts]


UNWRITABLE: list[tuple[str, dict[str, Any], int, str]] = [
    ("append", {"events": [{"event": "end"}]}, 422, "the store's own"),
    ("append", {"events": [{"event": "two\nlines"}]}, 422, "one line"),
    ("append", {"events": [{"event": "custom", "json": "{"}]}, 422, "must be JSON"),
    ("append", {"events": [{"event": "custom", "json": "[1,\n2]"}]}, 422, "on one line"),
    ("append", {"events": [{"event": "custom"}] * 51}, 413, "RUNS_ES_WORKER_MAX_ITEMS"),
    ("append", {"messages": [MESSAGE, MESSAGE]}, 422, "once"),
    ("append", {"facts": [{"type": "t", "content": 1, "idempotency_key": "a\0"}]}, 422, "idempotency_key"),
    ("append", {"facts": [{"type": "t", "content": 1}]}, 422, "idempotency_key"),
    ("append", {"facts": [{"type": "t", "category": "no", "idempotency_key": "a"}]}, 422, "category"),
    ("finish", {"outcome": "cancelled"}, 422, "outcome"),
    ("finish", {"outcome": "interrupted", "interrupts": {"a": 1}}, 422, "interrupts"),
]
UNCLAIMABLE: list[tuple[dict[str, Any], str]] = [
    ({"lease_seconds": 0.5}, "lease_seconds"),
    ({"lease_seconds": 4000}, "RUNS_ES_WORKER_MAX_LEASE_SECONDS"),
    ({"wait_seconds": 61}, "RUNS_ES_WORKER_MAX_WAIT_SECONDS"),
    ({"assistants": ["scripted"]}, "RUNS_ES_EXTERNAL_ASSISTANTS"),
    ({"worker_id": ""}, "worker_id"),
    ({"worker_id": "a\0b"}, "worker_id"),
    ({"claim_id": "short"}, "claim_id"),
]


async def test_what_cannot_be_written_or_claimed_is_refused_by_name(client: httpx.AsyncClient):
    await start(client)
    worker = await claimed(client)
    for what, body, code, said in UNWRITABLE:
        answer = await worker.ask(what, **body)
        assert (answer.status_code, said in answer.text) == (code, True), answer.text
    await worker.told("finish", outcome="success")
    for body, said in UNCLAIMABLE:
        answer = await claim(client, **body)
        assert (answer.status_code, said in answer.text) == (422, True), answer.text


async def test_a_run_that_nobody_claimed_and_one_that_is_not_there_are_not_found(client: httpx.AsyncClient):
    body = {"claim_id": "0" * 32, "fence": 1, "frames": 0}
    thread, run = await start(client)
    for run_id in (run, str(uuid.uuid4())):
        answer = await client.post(f"/workers/runs/{run_id}/append", json=body)
        assert answer.status_code == 404
    await client.delete(f"/threads/{thread}")


async def test_a_run_of_a_deleted_thread_has_ended(client: httpx.AsyncClient):
    thread, _ = await start(client)
    worker = await claimed(client)
    await client.delete(f"/threads/{thread}")
    assert (await worker.refused("append", events=[{"event": "custom"}]))["reason"] == "ended"


async def test_a_stateless_run_takes_its_thread_along(client: httpx.AsyncClient):
    answer = await client.post("/runs", json={"assistant_id": "other", "input": {}})
    worker = await claimed(client, assistants=["other"])
    assert worker.claim["assistant"] == "other"
    await worker.told("finish", outcome="success", values={"n": 1})
    assert (await client.get(f"/runs/{answer.json()['run_id']}/join")).json() == {"n": 1}
    assert (await client.get(f"/threads/{worker.thread_id}")).status_code == 404


@pytest.mark.parametrize(
    "header",
    [
        "Origin",
        "Forwarded",
        "Via",
        "X-Forwarded-For",
        "X-Forwarded-Host",
        "X-Forwarded-Proto",
        "X-Real-IP",
        "X-User",
        "X-Client-IP",
        "True-Client-IP",
        "CF-Connecting-IP",
        "X-Envoy-External-Address",
        "X-Amzn-Trace-Id",
        "Remote-User",
        "Sec-Fetch-Site",
        "Cookie",
    ],
)
async def test_without_a_token_a_request_with_any_header_of_a_proxy_or_a_browser_is_refused(
    client: httpx.AsyncClient, header: str
):
    answer = await client.post("/workers/claim", json={"worker_id": "w"}, headers={header: "http://localhost"})
    assert answer.status_code == 403
    assert f"the header {header.lower()}" in answer.json()["detail"]
    assert "RUNS_ES_WORKER_TOKEN" in answer.json()["detail"]


async def test_without_a_token_what_http_clients_send_by_themselves_is_taken(client: httpx.AsyncClient):
    usual = {"Accept-Language": "*", "Sec-Fetch-Mode": "cors", "traceparent": "00-1-1-01", "X-Request-Id": "a"}
    assert (await client.post("/workers/claim", json={"worker_id": "w"}, headers=usual)).status_code == 204


async def test_where_there_are_users_a_worker_needs_a_token(store: Store, external_settings: Settings):
    settings = external_settings.model_copy(update={"user_header": "X-User"})
    async with client_of(store, settings) as client:
        for path in ("claim", *(f"runs/{uuid.uuid4()}/{what}" for what in ("append", "renew", "finish", "release"))):
            answer = await client.post(f"/workers/{path}", json={"worker_id": "w"})
            assert (answer.status_code, "RUNS_ES_WORKER_TOKEN" in answer.text) == (403, True)


async def test_with_a_token_everybody_needs_it(store: Store, external_settings: Settings):
    settings = external_settings.model_copy(update={"worker_token": SecretStr("s3cret")})
    async with client_of(store, settings) as client:
        for headers in ({}, {"Authorization": "Bearer s3cre"}, {"Authorization": "Basic s3cret"}):
            for path in ("claim", f"runs/{uuid.uuid4()}/append"):
                answer = await client.post(f"/workers/{path}", json={"worker_id": "w"}, headers=headers)
                assert answer.status_code == 401, path
        headers = {"Authorization": "bearer s3cret", "X-Forwarded-For": "1.2.3.4"}
        assert (await client.post("/workers/claim", json={"worker_id": "w"}, headers=headers)).status_code == 204
