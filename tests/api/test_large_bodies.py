"""Large bodies: refused early or handled beside the event loop, and left out of lists."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from typing import Any

import httpx
import orjson
import pytest

from runs_api import json_bodies, responses
from runs_es.settings import Settings
from runs_projections.wiring import Store
from tests.api.conftest import client_of, new_thread

JSON = {"Content-Type": "application/json"}
LARGE = {"assistant_id": "scripted", "input": {"text": "x" * 200_000}}


@pytest.fixture
async def client(store: Store, store_settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(store, store_settings) as client:
        yield client


@pytest.mark.parametrize(
    ("inside", "status", "setting"),
    [
        (b",".join([b"[" * 190 + b"]" * 190] * 20_000), 413, "RUNS_ES_MAX_BODY_ELEMENTS"),
        (b",".join([b"[]"] * 3_000_000), 413, "RUNS_ES_MAX_BODY_ELEMENTS"),
        (b"[" * 230 + b"]" * 230, 422, "RUNS_ES_MAX_BODY_DEPTH"),
    ],
)
async def test_a_body_over_a_bound_is_refused_before_anything_is_built_of_it(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, inside: bytes, status: int, setting: str
):
    monkeypatch.setattr(json_bodies.orjson, "loads", lambda _: pytest.fail("was parsed"))
    sent = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal sent
        body = b'{"assistant_id": "scripted", "input": [' + inside + b"]}"
        for start in range(0, len(body), 65_536):
            sent += 1
            yield body[start : start + 65_536]

    for path in ("/runs", f"/threads/{'0' * 8}-0000-0000-0000-{'0' * 12}/runs/stream", "/threads", "/workers/claim"):
        sent = 0
        answer = await client.post(path, content=pieces(), headers=JSON)
        assert (answer.status_code, setting in answer.json()["detail"]) == (status, True), path
        assert sent <= 12  # of 92 to 117, where there are many elements


async def test_a_large_body_is_parsed_and_its_answer_encoded_beside_the_event_loop(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
):
    places: dict[str, set[str]] = {"loads": set(), "dumps": set()}

    class Watched:
        """orjson that notes which thread handles large values."""

        def __getattr__(self, name: str) -> Any:
            return getattr(orjson, name)

        def loads(self, body: bytes) -> Any:
            if len(body) > 100_000:
                places["loads"].add(threading.current_thread().name)
            return orjson.loads(body)

        def dumps(self, value: Any, **options: Any) -> bytes:
            written = orjson.dumps(value, **options)
            if len(written) > 100_000:
                places["dumps"].add(threading.current_thread().name)
            return written

    monkeypatch.setattr(json_bodies, "orjson", Watched())
    monkeypatch.setattr(responses, "orjson", Watched())
    thread = await new_thread(client)
    run = (await client.post(f"/threads/{thread}/runs", json=LARGE)).json()
    shown = (await client.get(f"/threads/{thread}/runs/{run['run_id']}")).json()
    assert shown["kwargs"]["input"] == LARGE["input"]
    here = threading.current_thread().name
    assert places["loads"]
    assert places["dumps"]
    assert here not in places["loads"] | places["dumps"]


@pytest.mark.parametrize(
    ("body", "status", "detail"),
    [
        (b'{"assistant_id": "scripted", "input": "' + b"x" * 100_000, 422, "Invalid JSON in request body"),
        (orjson.dumps({**LARGE, "multitask_strategy": "nope"}), 422, "multitask_strategy: "),
        (orjson.dumps({**LARGE, "stream_mode": ["nope"] * 50_000}), 422, "stream_mode: "),
        (orjson.dumps(["x" * 100_000]), 422, "The request body must be a JSON object"),
    ],
)
async def test_a_large_body_is_refused_in_the_same_words_as_a_small_one(
    client: httpx.AsyncClient, body: bytes, status: int, detail: str
):
    answer = await client.post("/runs", content=body, headers=JSON)
    assert (answer.status_code, answer.json()["detail"][: len(detail)]) == (status, detail)


async def test_a_large_body_that_does_not_say_json_is_refused(client: httpx.AsyncClient):
    answer = await client.post("/runs", content=orjson.dumps(LARGE), headers={"Content-Type": "text/plain"})
    assert answer.status_code == 415


async def test_lists_leave_out_what_is_large_and_say_so(client: httpx.AsyncClient):
    thread = await new_thread(client)
    repeated = {**LARGE, "input": {"text": "x" * 5_000_000}}  # stored, it is small
    small = {**LARGE, "input": {"text": "small"}}
    for body in (LARGE, repeated, small):
        assert (await client.post(f"/threads/{thread}/runs/wait", json=body)).status_code == 200
    for path in (f"/threads/{thread}/runs", f"/runs?thread_id={thread}"):
        newest, *others = (await client.get(path)).json()
        assert newest["kwargs"]["input"] == small["input"]
        for run in others:
            assert "RUNS_ES_LIST_KWARGS_BYTES" in run["kwargs"]["__omitted__"]
            whole = (await client.get(f"/threads/{thread}/runs/{run['run_id']}")).json()
            assert len(whole["kwargs"]["input"]["text"]) >= 200_000


async def test_bodies_that_a_process_holds_have_a_bound_together(store: Store, store_settings: Settings):
    settings = store_settings.model_copy(update={"max_bodies_bytes": 150_000, "max_body_bytes": 100_000})
    async with client_of(store, settings) as client:

        async def slow() -> AsyncIterator[bytes]:
            yield b'{"input": "' + b"x" * 90_000
            yield await refused()

        async def refused() -> bytes:
            answer = await client.post("/threads", content=b" " * 90_000, headers=JSON)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert "RUNS_ES_MAX_BODIES_BYTES" in answer.json()["detail"]
            return b'"}'

        assert (await client.post("/threads", content=slow(), headers=JSON)).status_code == 200
        # It came back: as much fits again.
        assert (await client.post("/threads", content=b"{" + b" " * 90_000 + b"}", headers=JSON)).status_code == 200
